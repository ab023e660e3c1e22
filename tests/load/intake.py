"""How quickly files come in through the API: ``python -m load.intake [files] [clients]``, from ``tests``.

Prepared NDJSON bodies of 10,000 requests go over loopback to a real server process (uvicorn, as Airflow's) with a
Postgres of its own whose commits are durable. Says seconds, CPU-seconds of both, and the server's memory.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection as Pipe
from time import perf_counter

import psutil
import requests
import uvicorn
from starlette.requests import Request

from asyncstageout.api.app import create_app
from asyncstageout.api.callers import APIHouse
from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.pool import CataloguePool
from asyncstageout.core.callers import EVERYBODY, Caller, Role
from asyncstageout.sandbox.layout import free_port
from client.serving import mounted
from load.bodies import bodies
from load.server import cpu_s, loaded_catalogue, say

FILES = 100_000
HEADERS = {"Content-Type": "application/x-ndjson", "Authorization": "Bearer load"}
PER_BODY = 10_000
CLIENTS = 2
"""Bodies on their way at a time: while one is in Postgres, the other is checked."""


def main(files: int = FILES, clients: int = CLIENTS) -> None:
    with loaded_catalogue() as catalogue, _api(catalogue.url) as (url, pid):
        _send(url, list(bodies(PER_BODY, PER_BODY, "warm")), clients)
        prepared = list(bodies(files, PER_BODY, "load"))
        say(f"{files:,} files, {sum(map(len, prepared)) / 1e6:,.0f} MB, {clients} at a time")
        before = (cpu_s(pid), catalogue.cpu_s(), psutil.Process(pid).memory_info().rss)
        started_s = perf_counter()
        outcomes = _send(url, prepared, clients)
        took_s = perf_counter() - started_s
        after = (cpu_s(pid), catalogue.cpu_s(), psutil.Process(pid).memory_info().rss)
        assert outcomes == {"created": files}, outcomes
        api_s, postgres_s, grown = (late - early for late, early in zip(after, before, strict=True))
        say(f"{took_s:.1f} s, {files / took_s:,.0f} files/s")
        say(
            f"CPU-seconds per 1,000 files: API {api_s * 1000 / files:.3f}, Postgres {postgres_s * 1000 / files:.3f}"
        )
        say(f"memory of the API: {before[2] / 1e6:.0f} MB before, {grown / 1e6:+.0f} MB")
        one = b"\n".join(bodies(files, PER_BODY, "stream"))
        started_s = perf_counter()
        assert _send(url, [one], 1) == {"created": files}
        rss = psutil.Process(pid).memory_info().rss
        say(f"as one stream of {files:,}: {perf_counter() - started_s:.1f} s, API at {rss / 1e6:.0f} MB")


def _send(url: str, prepared: Sequence[bytes], clients: int) -> Counter[str]:
    with ThreadPoolExecutor(clients) as pool:
        return sum(pool.map(lambda body: _post(url, body), prepared), Counter())


def _post(url: str, body: bytes) -> Counter[str]:
    answer = requests.post(url, data=body, headers=HEADERS, timeout=120)
    assert answer.status_code == 200, answer.text
    return Counter(json.loads(line)["outcome"] for line in answer.content.splitlines())


class _api:  # noqa: N801 -- reads as a function
    """The API in a process of its own."""

    def __init__(self, catalogue_url: str) -> None:
        ours, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._ready, self._port = ours, free_port()
        self._process = context.Process(target=_serve, args=(catalogue_url, self._port, theirs), daemon=True)

    def __enter__(self) -> tuple[str, int]:
        self._process.start()
        assert self._ready.poll(60), "the API did not start"
        assert self._process.pid is not None
        return f"http://127.0.0.1:{self._port}/stageout/api/v1/transfers", self._process.pid

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join(30)


def _serve(catalogue_url: str, port: int, ready: Pipe) -> None:
    async def authenticate(_: Request) -> Caller:
        return Caller("crab", Role.SERVICE, frozenset({EVERYBODY}))

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[object] | None = None) -> None:
            await super().startup(sockets)  # type: ignore[arg-type]
            ready.send("")

    pool = CataloguePool(lambda: connect(catalogue_url))
    app = mounted(create_app(APIHouse(catalogue=pool.connection, authenticate=authenticate)))
    Server(uvicorn.Config(app, port=port, log_level="warning", lifespan="off")).run()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
