"""What the whole service costs, and how quick it is, under load: ``python -m bench.platform``, from ``tests``.

All of it on this machine, as ``aso up`` starts it: Postgres, api-server, scheduler, DAG processor, triggerer, tasks. FTS
moves no bytes, takes ``TRANSFER_S`` for each file, and is not counted. Files arrive through the API at a rate that does
not care how the service fares. Temporary copies are not deleted: there are none. Each phase is a JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import requests
from psycopg import Connection

from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.fts_servers import add_server
from asyncstageout.catalogue.storages import put_sites
from asyncstageout.sandbox.airflow_env import ADMIN, LOGINS_FILE, SECOND_FTS, catalogue_url
from asyncstageout.sandbox.layout import LOOPBACK, Layout
from asyncstageout.sandbox.services import NO_BYTES
from asyncstageout.sandbox.state import read_status
from bench.arrivals import REFERENCE_PER_S, World
from load.bodies import SITES

TRANSFER_S = 10
SERVICES = ("postgres", "api-server", "scheduler", "dag-processor", "triggerer")
"""Whose CPU and memory count; a scheduler's children are the tasks."""
QUIET_DAGS = ("stageout_clean",)
SEND_EVERY_S = 0.5
DRAIN_S = 600.0
SETTLE_S = 90.0
"""Until the start of Airflow, and the first run of each DAG, are over: they belong to no phase."""
LOOK_S = 5.0


class Load(NamedTuple):
    """One phase."""

    name: str
    times: float
    """Of the reference day's rate."""
    seconds: float
    fts_servers: int = 1
    """None is asked for more than 2,500 rows of files a second (ADR 0005), which is some 760 files."""


PHASES = (
    Load("idle", 0, 120), Load("1x", 1, 300), Load("10x", 10, 300), Load("50x", 50, 300), Load("100x", 100, 600),
    Load("216x", 216, 600, fts_servers=2),
)  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """The running platform."""

    home: Path

    @property
    def layout(self) -> Layout:
        return Layout.load(self.home)

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.layout.ports.api_server}"

    def connect(self) -> Connection:
        return connect(catalogue_url(self.layout), "bench")

    def aso(self, *words: str) -> None:
        subprocess.run(
            [sys.executable, "-m", "asyncstageout.cli", *words],
            env=os.environ | {"ASO_HOME": str(self.home), "AIRFLOW_HOME": "", NO_BYTES: str(TRANSFER_S)},
            check=True,
            stdout=subprocess.DEVNULL,
        )

    def login(self) -> requests.Session:
        password = json.loads((self.layout.secrets / LOGINS_FILE).read_text())[ADMIN]
        body = {"username": ADMIN, "password": password}
        token = requests.post(f"{self.url}/auth/token", json=body, timeout=30).json()["access_token"]
        session = requests.Session()
        session.headers["Authorization"] = f"Bearer {token}"
        return session

    def processes(self) -> dict[str, list[psutil.Process]]:
        """Return the living processes of each service; tasks apart from the scheduler."""
        seen = read_status(self.layout.state_file)
        assert seen is not None
        found: dict[str, list[psutil.Process]] = {}
        for name in SERVICES:
            process = psutil.Process(seen.service(name).pid)
            children = process.children(recursive=True)
            if name == "scheduler":
                found |= {"scheduler": [process], "tasks": children}
            else:
                found[name] = [process, *children]
        return found

    def cpu_s(self) -> dict[str, float]:
        """Return the CPU so far of each service, with that of its children that have ended."""
        used: dict[str, float] = defaultdict(float)
        for name, processes in self.processes().items():
            spent = [_spent(one) for one in processes]
            used[name] += sum(own for own, _ in spent)
            used["tasks" if name == "scheduler" else name] += sum(ended for _, ended in spent)
        return used

    def memory_bytes(self) -> int:
        """Return the memory of all, what they share counted once."""
        total = 0
        for processes in self.processes().values():
            for one in processes:
                try:
                    total += one.memory_full_info().pss
                except psutil.NoSuchProcess:
                    continue
        return total


def _spent(process: psutil.Process) -> tuple[float, float]:
    """Return CPU-seconds of a process, and of its children that have ended."""
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0, 0.0
    return float(times.user + times.system), float(times.children_user + times.children_system)


@contextmanager
def running() -> Iterator[Bench]:
    # Not below a folder that is closed to the user that Postgres runs as under root.
    with tempfile.TemporaryDirectory(prefix="aso-bench-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o711)
        bench = Bench(Path(folder) / "home")
        try:
            bench.aso("up")
            with bench.connect() as conn:
                put_sites(conn, {site: f"davs://{site.lower()}.sandbox.test:8443" for site in SITES}, "bench")
            session = bench.login()
            for dag_id in QUIET_DAGS:
                answer = session.patch(
                    f"{bench.url}/api/v2/dags/{dag_id}", json={"is_paused": True}, timeout=30
                )
                answer.raise_for_status()
            time.sleep(SETTLE_S)
            yield bench
        finally:
            bench.aso("down")


class Sender(threading.Thread):
    """Sends what has arrived, twice a second, whatever the service makes of it."""

    def __init__(self, bench: Bench, world: World, load: Load) -> None:
        super().__init__(daemon=True)
        self._bench, self._load = bench, load
        self._bursts = list(world.day(load.times * REFERENCE_PER_S, load.seconds))
        self.files = sum(len(burst.lines) for burst in self._bursts)
        self.problem: str | None = None
        self.longest_s = 0.0

    def run(self) -> None:
        session, url = self._bench.login(), f"{self._bench.url}/stageout/api/v1/transfers"
        started, waiting = time.monotonic(), self._bursts[::-1]
        while waiting:
            passed_s = time.monotonic() - started
            lines: list[bytes] = []
            while waiting and waiting[-1].at_s <= passed_s:
                lines += waiting.pop().lines
            if lines:
                sent = time.monotonic()
                answer = session.post(
                    url, data=b"\n".join(lines), headers={"Content-Type": "application/x-ndjson"}, timeout=120
                )
                self.longest_s = max(self.longest_s, time.monotonic() - sent)
                if answer.status_code != 200 or b'"refused"' in answer.content:
                    self.problem = answer.text[:500]
                    return
            time.sleep(SEND_EVERY_S)


def phase(bench: Bench, world: World, load: Load) -> dict[str, Any]:
    """Live through one phase, and until all its files have ended; return what it cost."""
    cores = psutil.cpu_count() or 1
    with bench.connect() as conn:
        if load.fts_servers > 1:
            add_server(conn, SECOND_FTS, by="bench")
        (since,) = conn.execute("SELECT clock_timestamp()").fetchone() or (None,)
        before, started = bench.cpu_s(), time.monotonic()
        sender = Sender(bench, world, load) if load.times else None
        if sender is not None:
            sender.start()
        memory, backlog = 0, []
        while True:
            time.sleep(LOOK_S)
            passed_s = time.monotonic() - started
            memory = max(memory, bench.memory_bytes())
            counts = _counts(conn, since)
            done = counts.get("DONE", 0)
            backlog.append((round(passed_s), sum(counts.values()) - done, done))
            if passed_s >= load.seconds and (
                sender is None or (not sender.is_alive() and done >= sender.files)
            ):
                break
            assert sender is None or sender.problem is None, sender.problem
            assert passed_s < load.seconds + DRAIN_S, f"{load.name}: {counts}"
        took_s = time.monotonic() - started
        used = {name: round(after - before[name], 2) for name, after in bench.cpu_s().items()}
        files = sender.files if sender is not None else 0
        result: dict[str, Any] = {
            "bench": "platform", "phase": load.name, "offered_files_per_s": round(load.times * REFERENCE_PER_S, 2),
            "files": files, "seconds": load.seconds, "took_s": round(took_s, 1),
            "cpu_s": used, "cores_busy": round(sum(used.values()) / took_s, 3), "cores": cores,
            "memory_mb": round(memory / 1e6),
        }  # fmt: skip
        if sender is not None:
            result |= {
                "done_files_per_s": _throughput(conn, since),
                "cpu_s_per_1000_files": {name: round(1000 * one / files, 3) for name, one in used.items()},
                "delays_s": {"arrival_to_accepted": _accepted(conn, since), "final_to_done": _done(conn, since)},
                "jobs": _jobs(conn, since), "longest_post_s": round(sender.longest_s, 2),
                "series": {"t_s, open, done": backlog},
            }  # fmt: skip
    return result


def _counts(conn: Connection, since: Any) -> dict[str, int]:
    rows = conn.execute(
        "SELECT state::text, count(*) FROM transfer WHERE created_at >= %s GROUP BY 1", (since,)
    ).fetchall()
    return {state: int(count) for state, count in rows}


_PERCENTILES = (0.5, 0.95, 0.99, 1.0)


def _spread(conn: Connection, query: str, since: Any) -> dict[str, float]:
    row = conn.execute(
        f"SELECT percentile_cont(%s) WITHIN GROUP (ORDER BY s) FROM ({query}) AS delay(s)",
        (list(_PERCENTILES), since),
    ).fetchone()
    values = row[0] if row and row[0] else []
    return {f"p{100 * part:g}": round(value, 2) for part, value in zip(_PERCENTILES, values, strict=False)}


def _accepted(conn: Connection, since: Any) -> dict[str, float]:
    return _spread(
        conn,
        "SELECT extract(epoch FROM e.at - t.created_at) FROM transfer t JOIN transfer_event e ON e.transfer_id = t.id"
        " WHERE t.created_at >= %s AND e.to_state = 'SUBMITTED' AND e.attempt = 1",
        since,
    )


def _done(conn: Connection, since: Any) -> dict[str, float]:
    # FTS says whole seconds.
    return _spread(
        conn,
        "SELECT extract(epoch FROM ended_at - fts_finished_at) FROM transfer"
        " WHERE created_at >= %s AND state = 'DONE'",
        since,
    )


def _throughput(conn: Connection, since: Any) -> float:
    """Return files a second from the first that was DONE to the last."""
    (rate,) = conn.execute(
        "SELECT count(*) / nullif(extract(epoch FROM max(ended_at) - min(ended_at)), 0) FROM transfer"
        " WHERE created_at >= %s AND state = 'DONE'",
        (since,),
    ).fetchone() or (None,)
    return round(float(rate or 0), 1)


def _jobs(conn: Connection, since: Any) -> int:
    (count,) = conn.execute("SELECT count(*) FROM fts_job WHERE planned_at >= %s", (since,)).fetchone() or (
        0,
    )
    return int(count)


def measure(phases: tuple[Load, ...], seed: int, scale: float) -> Iterator[dict[str, Any]]:
    world = World(seed)
    with running() as bench:
        for load in phases:
            # Runs come by the minute: less than two of them say nothing of doing nothing.
            yield phase(bench, world, load._replace(seconds=load.seconds * (scale if load.times else 1)))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.platform", description=__doc__)
    names = [load.name for load in PHASES]
    parser.add_argument("--phases", nargs="+", choices=names, default=names)
    parser.add_argument("--scale", type=float, default=1.0, help="of the time that each phase lasts")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    for result in measure(tuple(one for one in PHASES if one.name in args.phases), args.seed, args.scale):
        sys.stdout.write(json.dumps(result) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
