"""What a file costs from its arrival to DONE, step by step: ``python -m bench.pipeline``, from ``tests``.

The steps run one after the other in this process, as their tasks do, against a Postgres whose commits are durable and a
sandbox FTS in a process of its own that moves no bytes and takes no time. FTS is not counted. Each result is a JSON line.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import requests
from psycopg import Connection

from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.cycles import CycleParams, open_cycle
from asyncstageout.catalogue.fts_servers import add_server, remove_server
from asyncstageout.catalogue.history import move_finished
from asyncstageout.catalogue.intake import add_transfers
from asyncstageout.catalogue.step_runs import Actor
from asyncstageout.clients.fts3 import FTS3Client
from asyncstageout.clients.http import Access, new_session
from asyncstageout.core.requests import read_json_requests
from asyncstageout.sandbox.layout import free_port
from asyncstageout.sandbox.tls import SandboxTLS, sandbox_tls
from asyncstageout.steps.collect import collect
from asyncstageout.steps.group import group
from asyncstageout.steps.recording import Summary, recorded
from asyncstageout.steps.sense import sense_once
from asyncstageout.steps.submit import submit
from asyncstageout.steps.summarise import summarise
from asyncstageout.steps.update_catalogue import update_catalogue
from load.bodies import SITES
from load.history import fill
from load.queue import MEMORY, seed
from load.server import LoadedCatalogue, loaded_catalogue

T = TypeVar("T")

FILES = 100_000
USERS = 200
BATCH = 10_000
SERVER = "fts"
DEADLINE_S = 600.0
READY_S = 30.0
PAUSE_S = 0.05


@dataclass
class Cost:
    """CPU of one step so far, in seconds."""

    python_s: float = 0.0
    postgres_s: float = 0.0
    took_s: float = 0.0

    def per_1000(self, files: int) -> dict[str, float]:
        per = 1000 / files
        return {"python": round(self.python_s * per, 4), "postgres": round(self.postgres_s * per, 4)}


@dataclass
class Meter:
    """Reads the CPU clocks of this process and of Postgres around each step."""

    catalogue: LoadedCatalogue
    costs: dict[str, Cost] = field(default_factory=dict)

    def __call__(self, step: str, work: Callable[[], T]) -> T:
        cost = self.costs.setdefault(step, Cost())
        python_s, postgres_s, started_s = time.process_time(), self.catalogue.cpu_s(), time.perf_counter()
        result = work()
        cost.python_s += time.process_time() - python_s
        cost.postgres_s += self.catalogue.cpu_s() - postgres_s
        cost.took_s += time.perf_counter() - started_s
        return result


@dataclass(frozen=True)
class OneServer:
    """FTS clients of one server and one identity."""

    only: FTS3Client

    def client(self, _server: str, _identity: str) -> FTS3Client:
        return self.only

    def storage_tokens(self, _identity: str) -> None:
        return None


@contextmanager
def instant_fts(folder: Path) -> Iterator[FTS3Client]:
    """Yield a client of an FTS for which every transfer ends as soon as it is looked at."""
    tls = sandbox_tls(folder / "tls")
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "asyncstageout.sandbox.fts",
        "--port",
        str(port),
        "--state",
        str(folder / "fts"),
    ]
    command += ["--cert", str(tls.server.cert), "--key", str(tls.server.key), "--ca", str(tls.ca)]
    command += ["--no-bytes", "--seconds", "0", "--link-limit", "1000000", "--workers", "1000000"]
    (folder / "fts").mkdir()
    with (folder / "fts.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            session = _session(tls)
            _await_answer(f"https://127.0.0.1:{port}", session)
            with FTS3Client(f"https://127.0.0.1:{port}", session, vo="cms") as client:
                yield client
        finally:
            process.terminate()


def _session(tls: SandboxTLS) -> requests.Session:
    return new_session(Access(ca=str(tls.ca), cert_file=str(tls.client.cert), key_file=str(tls.client.key)))


def _await_answer(url: str, session: requests.Session) -> None:
    until_s = time.monotonic() + READY_S
    while True:
        try:
            session.get(url, timeout=5)
        except requests.ConnectionError:
            if time.monotonic() > until_s:
                raise
            time.sleep(0.1)
        else:
            return


def request_line(number: int, links: int) -> bytes:
    """One request; neighbouring numbers are of one task, and a task's files come from a few sites."""
    link = number // 20 % links
    task = number // 2_000
    username = f"user{task % USERS}"
    source, destination = link % 30, 30 + (link // 30 + task) % 30
    tail = f"mc/bench/QCD_Pt-15to7000_13TeV/261122_101112/{number // 1000:04d}/out_{number}.root"
    return json.dumps(
        {
            "task": f"bench_{username}_{task}",
            "username": username,
            "source": SITES[source],
            "destination": SITES[destination],
            "source_lfn": f"/store/temp/user/{username}.0123456789abcdef0123456789abcdef01234567/{tail}",
            "destination_lfn": f"/store/user/{username}/{tail}",
            "size_bytes": 1_000_000_000 + number,
            "adler32": f"{number + 1:08x}",
        }
    ).encode()


def arrive(conn: Connection, lines: list[bytes], step_run: int) -> None:
    good, bad = read_json_requests(lines)
    assert not bad, bad[0]
    answers = add_transfers(conn, good, step_run)
    assert all(answer.outcome == "created" for answer in answers)


def cycle(conn: Connection, clients: OneServer, meter: Meter, number: int, limit: int) -> int:
    """Run one cycle as the DAG does; return how many files FTS accepted."""
    run_id, params = f"bench__{number}", CycleParams(limit=limit)

    def under_record(task_id: str, step: Callable[[int], Summary]) -> Summary:
        actor = Actor(task_id=task_id, name="airflow", dag_id="stageout_transfer", run_id=run_id)
        return meter(task_id, lambda: recorded(conn, actor, step))

    today = datetime.now(UTC).date()
    under_record(
        "collect",
        lambda step_run: collect(
            conn, dag_id="stageout_transfer", run_id=run_id, params=params, today=today, step_run=step_run
        ),
    )
    shards: list[Any] = []

    def plan(step_run: int) -> Summary:
        summary, packed = group(
            conn, open_cycle(conn, "stageout_transfer", run_id, params), step_run=step_run
        )
        shards.extend(packed)
        return summary

    under_record("group", plan)
    cycle_id = open_cycle(conn, "stageout_transfer", run_id, params).cycle_id
    accepted = 0
    for shard in range(len(shards)):
        accepted += under_record(
            "submit",
            lambda step_run, shard=shard: submit(
                conn, clients, cycle_id=cycle_id, shard=shard, step_run=step_run
            ),
        ).counts["files"]
    under_record(
        "summarise", lambda _: summarise(conn, open_cycle(conn, "stageout_transfer", run_id, params))
    )
    return accepted


def settle(conn: Connection, client: FTS3Client, meter: Meter, files: int) -> None:
    """Sense and apply until so many files are DONE."""
    done = 0
    until_s = time.monotonic() + DEADLINE_S
    while done < files:
        found = meter("sense", lambda: sense_once(conn, client, now=datetime.now(UTC)))
        if not found.news:
            assert time.monotonic() < until_s, f"{done} of {files} are done"
            time.sleep(PAUSE_S)
            continue
        actor = Actor(task_id="update_catalogue", name="airflow", dag_id="stageout_sense", run_id="bench")
        summary = meter(
            "update_catalogue",
            lambda actor=actor: recorded(
                conn, actor, lambda step_run: update_catalogue(conn, now=datetime.now(UTC), step_run=step_run)
            ),
        )
        done += summary.counts.get("done", 0)


# What waits already is like what arrives: the same users on the same links.
_WAITING = """
INSERT INTO transfer (request_id, task_id, username, identity, source, destination, source_lfn, destination_lfn,
    size_bytes, adler32, priority, due_at, created_at)
SELECT encode(sha224(('seed' || n)::bytea), 'hex'), %(task)s + n / %(per_task)s, u.name, u.name,
    (%(sites)s::text[])[1 + link %% 30], (%(sites)s::text[])[31 + (link / 30 + task) %% 30],
    '/store/temp/user/' || u.name || '.0123456789abcdef0123456789abcdef01234567/' || u.tail,
    '/store/user/' || u.name || '/' || u.tail, 1000000000 + n, '0a1b2c3d', 3,
    now() - make_interval(secs => (%(files)s - n) / 100.0), now() - make_interval(secs => (%(files)s - n) / 100.0)
FROM generate_series(0, %(files)s - 1) n,
    LATERAL (SELECT n / 20 %% {links} AS link, n / 2000 %% {tasks} AS task) l,
    LATERAL (SELECT 'user' || task AS name, 'mc/bench/QCD_Pt-15to7000_13TeV/261121_101112/0000/out_' || n || '.root' AS tail) u
"""


def measure(
    files: int, links: int, limit: int, *, pending: int = 0, past: int = 0,
    settings: Mapping[str, str] | None = None, look: Callable[[Connection], None] = lambda _: None,
) -> dict[str, Any]:  # fmt: skip
    """Let files arrive and be driven to DONE, beside ``pending`` others that wait and a history of ``past`` ones.

    Args:
        settings: of Postgres, beside those of the sandbox.
        look: called when all are DONE.
    """
    settings = (MEMORY if pending or past else {}) | dict(settings or {})
    with (
        tempfile.TemporaryDirectory(prefix="aso-bench-") as folder,
        loaded_catalogue(settings=settings) as catalogue,
    ):
        meter = Meter(catalogue)
        with instant_fts(Path(folder)) as client, connect(catalogue.url) as conn:
            fill(conn, past)
            if pending:
                seed(conn, pending, _WAITING.format(links=links, tasks=max(files // 2_000, 1)))
            conn.execute("CHECKPOINT")
            add_server(conn, SERVER, by="bench")
            remove_server(conn, "fts3_default", by="bench")
            clients, wal = OneServer(client), _wal_position(conn)
            _arrivals(conn, meter, files, links)
            waiting, number = files, 0
            while waiting > 0:
                accepted = cycle(conn, clients, meter, number, min(limit, waiting))
                settle(conn, client, meter, accepted)
                waiting, number = waiting - accepted, number + 1
            look(conn)
            jobs, seen = conn.execute(
                "SELECT count(*), count(DISTINCT (source, destination)) FROM fts_job"
                " WHERE cycle_id IN (SELECT id FROM cycle WHERE run_id LIKE 'bench%')"
            ).fetchone() or (0, 0)
            result = _result(meter, files, links, limit, jobs) | {"links_used": seen}
            if pending or past:
                return result | {"pending": pending, "past": past}
            disk = _disk(conn, wal, files)
            later = _to_history(conn, catalogue)
    return result | {"bytes_per_file": disk, "a_day_later": {"move_finished": later.per_1000(files)}}


def _arrivals(conn: Connection, meter: Meter, files: int, links: int) -> None:
    for first in range(0, files, BATCH):
        lines = [request_line(number, links) for number in range(first, min(first + BATCH, files))]
        actor = Actor(task_id="intake", name="bench")

        def step(step_run: int, lines: list[bytes] = lines) -> Summary:
            arrive(conn, lines, step_run)
            return Summary("in")

        meter("intake", lambda actor=actor, step=step: recorded(conn, actor, step))


def _wal_position(conn: Connection) -> str:
    return str((conn.execute("SELECT pg_current_wal_lsn()").fetchone() or ("",))[0])


def _disk(conn: Connection, wal: str, files: int) -> dict[str, int]:
    """Return what a file left on disk, with its indexes: by table, and in the write-ahead log."""
    logged = conn.execute("SELECT pg_current_wal_lsn() - %s::pg_lsn", (wal,)).fetchone() or (0,)
    tables = conn.execute(
        "SELECT coalesce(p.relname, c.relname), sum(pg_total_relation_size(c.oid)) FROM pg_class c"
        " LEFT JOIN pg_inherits i ON i.inhrelid = c.oid LEFT JOIN pg_class p ON p.oid = i.inhparent"
        " WHERE c.relkind = 'r' AND coalesce(p.relname, c.relname) IN ('transfer', 'transfer_event', 'fts_job')"
        " GROUP BY 1"
    ).fetchall()
    return {name: round(float(size) / files) for name, size in [("wal", logged[0]), *tables]}


def _to_history(conn: Connection, catalogue: LoadedCatalogue) -> Cost:
    """Move all files to the history, as ``update_catalogue`` does with those that ended a day ago."""
    meter = Meter(catalogue)
    while meter("move_finished", lambda: move_finished(conn, keep_done_s=0)):
        pass
    return meter.costs["move_finished"]


def _result(meter: Meter, files: int, links: int, limit: int, jobs: int) -> dict[str, Any]:
    steps = {step: cost.per_1000(files) for step, cost in meter.costs.items()}
    python, postgres = (sum(cost[who] for cost in steps.values()) for who in ("python", "postgres"))
    return {
        "bench": "pipeline",
        "files": files,
        "links": links,
        "files_per_cycle": limit,
        "files_per_job": round(files / max(jobs, 1), 1),
        "cpu_s_per_1000_files": {
            "total": round(python + postgres, 4),
            "python": round(python, 4),
            "postgres": round(postgres, 4),
        },
        "steps": steps,
        "took_s": round(sum(cost.took_s for cost in meter.costs.values()), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.pipeline", description=__doc__)
    parser.add_argument("--files", type=int, default=FILES)
    parser.add_argument("--links", type=int, default=300)
    parser.add_argument("--limit", type=int, default=20_000, help="files that a cycle takes at most")
    parser.add_argument("--pending", type=int, default=0, help="files that wait already")
    parser.add_argument("--past", type=int, default=0, help="files of the history")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    found = measure(args.files, args.links, args.limit, pending=args.pending, past=args.past)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
