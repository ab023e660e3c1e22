"""A sandbox FTS and its sites inside the test's process, with a clock that only moves when told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import requests

from asyncstageout.clients.http import Access, new_session
from asyncstageout.core.states import FTS_JOB_FINAL
from asyncstageout.sandbox.faults import Faults
from asyncstageout.sandbox.fts.service import Options, SandboxFTS
from asyncstageout.sandbox.serving import running, server
from asyncstageout.sandbox.sites.names import Sites
from asyncstageout.sandbox.sites.webdav import Storage, application
from asyncstageout.sandbox.tls import KeyPair, SandboxTLS, client_certificate, sandbox_tls

DEADLINE_S = 20
NOON_S = datetime(2026, 11, 22, 12, tzinfo=UTC).timestamp()
ALICE, BOB, HOST = (f"/DC=test/DC=fts/CN={name}" for name in ("alice", "bob", "localhost"))
GRIDMAP = {ALICE: "testvo", BOB: "othervo", HOST: "testvo"}


class Clock:
    """Seconds since the epoch; stands still."""

    def __init__(self, now_s: float = NOON_S) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Bench:
    """One served FTS and its callers."""

    fts: SandboxFTS
    clock: Clock
    url: str
    callers: dict[str | None, requests.Session]

    def ask(
        self, user: str | None, method: str, path: str, body: Any = None, **options: Any
    ) -> requests.Response:
        if isinstance(body, dict | list):
            options["json"] = body
        elif body is not None:
            options["data"] = body
        return self.callers[user].request(method, self.url + path, timeout=DEADLINE_S, **options)

    def submit(self, body: Any, user: str = "alice") -> str:
        answer = self.ask(user, "POST", "/jobs", body)
        assert answer.status_code == 200, answer.text
        job_id: str = answer.json()["job_id"]
        return job_id

    def status(self, job_id: str, columns: str = "file_id,file_state,reason", user: str = "alice") -> Any:
        return self.ask(user, "GET", f"/jobs/{job_id}?files={columns}").json()

    def tick(self, seconds: float = 0) -> None:
        """Let time pass, and do what became due."""

        def act() -> None:
            self.clock.now_s += seconds
            self.fts.engine.tick()

        self.fts.call(act)

    def hold(self) -> None:
        """Start nothing any more."""
        self._limit(0)

    def release(self) -> None:
        """Start files again."""
        self._limit(8)
        self.tick()

    def _limit(self, workers: int) -> None:
        self.fts.engine.limits = replace(self.fts.engine.limits, workers=workers)

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something is so; looked at after every change of a job or file."""
        changed = threading.Event()

        def watch(_job: object, _file: object) -> None:
            changed.set()

        self.fts.engine.on_change = watch
        while not self.fts.call(condition):
            assert changed.wait(DEADLINE_S), "nothing happens"
            changed.clear()

    def finish(self, *job_ids: str, seconds: int = 1) -> None:
        """Let time pass until the jobs are final and nothing runs."""
        engine = self.fts.engine

        def idle() -> bool:
            return not engine.running_real

        def over() -> bool:
            return all(engine.jobs[job_id].job_state in FTS_JOB_FINAL for job_id in job_ids)

        for _ in range(1000):
            self.tick(seconds)
            self.until(idle)
            if self.fts.call(over) and self.fts.engine.stats()["files"]["running"] == 0:
                return
        raise AssertionError([engine.jobs[job_id].job_state for job_id in job_ids])


@contextmanager
def bench(
    tls: SandboxTLS, certificates: Path, options: Options, clock: Clock | None = None
) -> Iterator[Bench]:
    """Serve an FTS for alice, bob, host (root) and the anonymous."""
    clock = clock or Clock()
    options = replace(options, gridmap=GRIDMAP, root_dns=frozenset({HOST}), ca=str(tls.ca))
    fts = SandboxFTS(options, clock)
    callers: dict[str | None, requests.Session] = {None: new_session(Access(ca=str(tls.ca)))}
    for name, dn in (("alice", ALICE), ("bob", BOB), ("host", HOST)):
        pair = client_certificate(certificates, name, dn)
        callers[name] = caller(tls, pair)
    with running(server(fts.app, tls=tls.server, client_ca=tls.ca)) as port:
        yield Bench(fts, clock, f"https://127.0.0.1:{port}", callers)
    for session in callers.values():
        session.close()


def caller(tls: SandboxTLS, pair: KeyPair) -> requests.Session:
    return new_session(Access(ca=str(tls.ca), cert_file=str(pair.cert), key_file=str(pair.key)))


@dataclass
class SiteBench:
    """Served sites."""

    root: Path
    port: int
    storage: Storage

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def put(self, site: str, lfn: str, content: bytes) -> Path:
        """Put a file at a site without asking it."""
        path = self.root / site / lfn.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def read(self, site: str, lfn: str) -> bytes | None:
        path = self.root / site / lfn.lstrip("/")
        return path.read_bytes() if path.exists() else None


@contextmanager
def site_bench(tls: SandboxTLS, root: Path, *names: str, makes_parents: bool = True) -> Iterator[SiteBench]:
    """Serve sites."""
    storage = Storage(Sites(root, names or None), Faults(), makes_parents=makes_parents)
    with running(server(application(storage), tls=tls.server)) as port:
        yield SiteBench(root, port, storage)


def certificates(directory: Path) -> SandboxTLS:
    return sandbox_tls(directory)
