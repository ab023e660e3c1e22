"""Whether live work costs the same however long the past is: ``python -m load.flatness [rows ...]``, from ``tests``.

For each length of the past it makes a Postgres of its own in a temporary folder (800 bytes of disk per file of the
past), asks everything some times, and deletes it. Says the CPU time of Postgres, how many times that of the first length
this is, and the time on the clock.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from time import perf_counter
from typing import Any
from uuid import uuid4

import psutil
from psycopg import Connection

from asyncstageout.catalogue import lookup, questions
from asyncstageout.catalogue.claims import Entitled, links_with_work, lock_grouping, take
from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.cycles import CycleParams, open_cycle
from asyncstageout.catalogue.file_metadata import Metadata, put_metadata
from asyncstageout.catalogue.fts_servers import add_server
from asyncstageout.catalogue.history import move_finished
from asyncstageout.catalogue.intake import add_transfers
from asyncstageout.catalogue.jobs import planned_loads, record_accepted
from asyncstageout.catalogue.kills import kill
from asyncstageout.catalogue.metrics import measurements
from asyncstageout.catalogue.questions import TransferFilter, newest_tasks, newest_transfers, task_summary
from asyncstageout.catalogue.retries_by_people import retry_files
from asyncstageout.catalogue.sensing import Report, stage_reports, take_reports
from asyncstageout.catalogue.step_runs import Actor, start_step
from asyncstageout.catalogue.transitions import Move, apply_moves
from asyncstageout.core.requests import read_requests
from asyncstageout.core.selections import Selection
from asyncstageout.core.states import TransferState
from asyncstageout.steps.group import group
from load.bodies import record
from load.history import fill
from load.queue import MEMORY
from load.server import loaded_catalogue, say

PASTS = (0, 10_000_000)
WAITING, BATCH = 100_000, 10_000
ENOUGH_S, MOST_TIMES = 0.5, 200
"""It is asked until it has computed for so long: the kernel counts in hundredths of a second."""

Question = tuple[str, Callable[[], Any]]


def main(*pasts: int) -> None:
    first: dict[str, float] = {}
    for rows in pasts or PASTS:
        with loaded_catalogue(durable=False, settings=MEMORY) as loaded, connect(loaded.url) as conn:
            started_s = perf_counter()
            fill(conn, rows)
            say(f"{rows:,} files of the past ({perf_counter() - started_s:,.0f} s)")
            for what, ask in asked(conn, *live(conn)):
                cpu_ms, took_ms = cost(conn, ask)
                base_ms = first.setdefault(what, cpu_ms)
                say(f"{cpu_ms:10.2f} ms of CPU {cpu_ms / base_ms:6.2f} {took_ms:10.1f} ms  {what}")


def cost(conn: Connection, ask: Callable[[], Any]) -> tuple[float, float]:
    """Return the CPU of Postgres, and the time, of asking once, in milliseconds; what it changes is taken back."""
    backend = psutil.Process(conn.info.backend_pid)
    asked, before_s, started_s = -1, 0.0, 0.0
    while asked < MOST_TIMES and (asked < 2 or cpu_s(backend) - before_s < ENOUGH_S):
        if asked == 0:  # The first time plans, and reads from disk.
            before_s, started_s = cpu_s(backend), perf_counter()
        with conn.transaction(force_rollback=True):
            ask()
        asked += 1
    return 1000 * (cpu_s(backend) - before_s) / asked, 1000 * (perf_counter() - started_s) / asked


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def live(conn: Connection) -> tuple[int, list[int]]:
    """Let files wait, and some be under way in FTS jobs; return the step, and those that are under way."""
    step = start_step(conn, Actor(task_id="load", name="load"))
    add_server(conn, "fts3_default", by="load")
    for first in range(0, WAITING, BATCH):
        good, _ = read_requests(record(number) for number in range(first, first + BATCH))
        add_transfers(conn, good, step)
    cycle = open_cycle(conn, "stageout_transfer", "load", CycleParams(limit=BATCH))
    group(conn, cycle, step_run=step)
    sids = [load.sid for load in planned_loads(conn, cycle.cycle_id)]
    record_accepted(conn, [(sid, uuid4()) for sid in sids], step)
    conn.execute("VACUUM ANALYZE transfer, fts_job, transfer_event")
    return step, [number for (number,) in conn.execute("SELECT id FROM transfer WHERE state = 'SUBMITTED'")]


def asked(conn: Connection, step: int, under_way: list[int]) -> Iterator[Question]:
    """Yield everything that live work, users and pages ask, with names."""
    params = CycleParams(limit=20_000)

    def take_work() -> None:
        views = links_with_work(conn, params)
        lock_grouping(conn)
        take(conn, params, [Entitled(*view.link, user, 2_000) for view in views for user in view.usernames])

    def take_in(first: int) -> Callable[[], Any]:
        good, _ = read_requests(record(number) for number in range(first, first + BATCH))
        return lambda: add_transfers(conn, good, step)

    yield "links and 20,000 files of a cycle", take_work
    yield "10,000 requests, all new", take_in(WAITING)
    yield "10,000 requests, all there already", take_in(0)
    yield (
        "1,000 metadata",
        lambda: put_metadata(
            conn,
            [Metadata(f"{number:056x}", "t", "u", "{}") for number in range(1000)],
            by="load",
            step_run=step,
        ),
    )
    jobs = dict(conn.execute("SELECT id, fts_job FROM transfer WHERE id = ANY(%s)", (under_way,)).fetchall())
    reports = [
        Report(sid, number, number, "FINISHED", "FINISHED", "", None, datetime.now(UTC))
        for number, sid in jobs.items()
    ]

    def apply() -> None:
        stage_reports(conn, reports)
        done = [Move(one.transfer_id, one.sid, TransferState.DONE) for one in take_reports(conn, BATCH)]
        assert apply_moves(conn, done, step) == {"DONE": len(reports)}

    yield f"{len(reports):,} ends of files", apply
    yield (
        "2,000 files of a task killed",
        lambda: kill(conn, Selection(task="load_user0_0"), None, comment="load", step_run=step),
    )
    yield (
        "the same of 1,000 files by id",
        lambda: kill(conn, Selection(ids=under_way[:1000]), None, comment="load", step_run=step),
    )
    conn.execute(
        "UPDATE transfer SET state = 'FAILED', ended_at = now() - interval '40 days' WHERE task_id ="
        " (SELECT id FROM task WHERE name = 'load_user1_1') AND state = 'NEW'"
    )
    yield (
        "2,000 files of a task sent again",
        lambda: retry_files(conn, Selection(task="load_user1_1"), None, comment="load", step_run=step),
    )
    yield "2,000 files go to the history", lambda: move_finished(conn)
    yield from _pages(conn)


def _pages(conn: Connection) -> Iterator[Question]:
    past = conn.execute(
        "SELECT h.id, h.request_id, h.destination_lfn, k.name, k.username FROM transfer_history h"
        " JOIN task k ON k.id = h.task_id LIMIT 1"
    ).fetchone() or (1, "0" * 56, record(1)["destination_lfn"], "load_user0_0", "user0")
    number, request_id, lfn, task, username = past
    filters = {
        "all files": TransferFilter(),
        "failed files": TransferFilter(states=(TransferState.FAILED,)),
        "waiting files": TransferFilter(states=(TransferState.NEW, TransferState.RETRY)),
        "killed files": TransferFilter(states=(TransferState.KILLED,)),
        "files of a site": TransferFilter(source="T2_XX_S07"),
        "files of a link that there is not": TransferFilter(source="T2_XX_S07", destination="T2_XX_S07"),
        "files of a user": TransferFilter(username=username),
        "files of a user who is none": TransferFilter(visible=["nobody"]),
        "files of a task": TransferFilter(task=task),
        "files of this hour": TransferFilter(since=datetime.now(UTC).replace(minute=0)),
        "failed files of a user": TransferFilter(username=username, states=(TransferState.FAILED,)),
    }
    for what, where in filters.items():
        yield f"page of {what}", lambda where=where: newest_transfers(conn, where, limit=101)
    yield "page far back", lambda: newest_transfers(conn, TransferFilter(), limit=101, before_id=number + 500)
    for what, wanted in (
        ("number", str(number)),
        ("request", request_id),
        ("destination", lfn),
        ("source", record(5)["source_lfn"]),
    ):
        yield f"a file by its {what}", lambda wanted=wanted: lookup.find_file(conn, wanted)
    yield "the events of a file", lambda: lookup.file_events(conn, number)
    yield "the jobs of a file", lambda: questions.jobs_of(conn, number)
    yield "page of tasks", lambda: newest_tasks(conn, None, limit=21)
    yield "page of a user's tasks", lambda: newest_tasks(conn, [username], limit=21)
    yield "a task of the past", lambda: task_summary(conn, task, None)
    yield "metrics", lambda: measurements(conn)


if __name__ == "__main__":
    main(*(int(float(text)) for text in sys.argv[1:]))
