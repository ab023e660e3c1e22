"""Backfills with the real scheduler, by the commands that docs/how-to/backfill.md gives.

They are called by test_demo.py, on its platform.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from psycopg import Connection

from asyncstageout.catalogue.claims import write_jobs
from asyncstageout.catalogue.intake import add_transfers
from asyncstageout.catalogue.jobs import record_accepted
from asyncstageout.catalogue.kills import kill
from asyncstageout.catalogue.measures import COLUMNS
from asyncstageout.catalogue.step_runs import Actor, end_step, start_step
from asyncstageout.catalogue.transitions import Move, apply_moves
from asyncstageout.core.failures import classify
from asyncstageout.core.planning import PendingFile, plan_jobs
from asyncstageout.core.requests import read_requests
from asyncstageout.core.selections import Selection
from asyncstageout.core.states import TransferState
from end_to_end.platform import Platform, until
from fixtures.catalogue import file_names, key_of, new_cycle

S = TransferState
HOUR = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=3)
START = HOUR + timedelta(minutes=10)
"""Of the first run. A run of a minute takes what arrived in the minute before it, so files arrived at 9 and 10 past."""
MINUTE, INTERVAL = timedelta(minutes=1), timedelta(minutes=5)
STALLED = classify("TRANSFER [110] probably stalled")
QUOTA = classify("TRANSFER [5] HTTP 507 : Insufficient Storage")
WANTED = {
    "new": S.NEW,
    "retry": S.RETRY,
    "failed": S.FAILED,
    "killed": S.KILLED,
    "done": S.DONE,
    "outside": S.FAILED,
}
WINDOWS = {
    "stageout_transfer": (START, START + MINUTE, 2),
    "stageout_intake": (START, START + INTERVAL, 2),
    "stageout_statistics": (HOUR, HOUR, 1),
}
"""First and last run of each DAG's backfill, and how many runs that makes."""
GO_AGAIN = {"new", "retry", "failed"}
SOURCE = {
    "name": "offered", "kind": "query", "conn_id": "stageout_db", "overlap_min": 0,
    "sql": "SELECT task, username, source, destination, source_lfn, destination_lfn, size_bytes, adler32"
    " FROM outbound WHERE made_at >= :start AND made_at < :end",
}  # fmt: skip


@dataclass
class Past:
    """Files that arrived three hours ago, by what became of them."""

    link: tuple[str, str]
    ids: dict[str, int] = field(default_factory=dict)


def make_past(platform: Platform) -> Past:
    with platform.connect() as conn:
        row = conn.execute("SELECT source, destination FROM transfer ORDER BY id LIMIT 1").fetchone()
        assert row is not None
        made = Past((row[0], row[1]))
        with conn.transaction():
            _live_through(conn, made)
        return made


def _live_through(conn: Connection, made: Past) -> None:
    """Make the files what they are, with all that is on record of it; nobody sees it in between."""
    step = start_step(conn, Actor(task_id="test", name="tester"))
    good, bad = read_requests(request(name, made.link, task="261122_past") for name in WANTED)
    assert not bad
    add_transfers(conn, good, step)
    rows = conn.execute(
        "SELECT t.id, source, destination, t.username, identity, activity, priority, size_bytes, source_lfn,"
        " destination_lfn FROM transfer t JOIN task k ON k.id = t.task_id WHERE k.name = '261122_past' ORDER BY id"
    ).fetchall()
    made.ids = dict(zip(WANTED, (row[0] for row in rows), strict=True))
    under_way = [PendingFile(*row, None, False) for row in rows if row[0] != made.ids["new"]]
    names = file_names(conn)
    keys = [(key_of(file, names)._replace(fts_server="fts3_default"), file) for file in under_way]
    (job,) = plan_jobs(keys, lambda _: 200, uuid4)
    write_jobs(conn, new_cycle(conn), [job], step_run=step)
    record_accepted(conn, [(job.sid, uuid4())], step)
    later = datetime.now(UTC) + timedelta(hours=2)
    apply_moves(
        conn,
        [
            Move(made.ids["retry"], job.sid, S.RETRY, STALLED, later),
            Move(made.ids["failed"], job.sid, S.FAILED, QUOTA),
            Move(made.ids["outside"], job.sid, S.FAILED, QUOTA),
            Move(made.ids["done"], job.sid, S.DONE),
        ],
        step,
    )
    kill(conn, Selection(ids=[made.ids["killed"]]), None, comment="test", step_run=step)
    apply_moves(conn, [Move(made.ids["killed"], job.sid, S.KILLED)], step)
    conn.execute("UPDATE transfer SET due_at = %s WHERE id = %s", (later, made.ids["new"]))
    for place, name in enumerate(WANTED):
        at = START + (place % 2 - 1) * MINUTE if name != "outside" else START + MINUTE
        _arrived(conn, made.ids[name], at)
    end_step(conn, step, outcome="success", sentence="", counts={})


def _arrived(conn: Connection, number: int, at: datetime) -> None:
    """Let a file have arrived at another time."""
    conn.execute("UPDATE transfer SET created_at = %s WHERE id = %s", (at, number))
    conn.execute("ALTER TABLE transfer_event DISABLE TRIGGER transfer_event_append_only")
    conn.execute(
        "UPDATE transfer_event SET at = %s WHERE transfer_id = %s AND from_state IS NULL", (at, number)
    )
    conn.execute("ALTER TABLE transfer_event ENABLE TRIGGER transfer_event_append_only")


def request(name: str, link: tuple[str, str], task: str) -> dict[str, Any]:
    return {
        "task": task, "username": "alice", "source": link[0], "destination": link[1],
        "source_lfn": f"/store/temp/user/alice.0/{task}/{name}.root",
        "destination_lfn": f"/store/user/alice/{task}/{name}.root", "size_bytes": 1, "adler32": "1",
    }  # fmt: skip


def by_command(platform: Platform) -> None:
    """Backfill all three as docs/how-to/backfill.md says, side by side."""
    for dag_id, (first, last, _) in WINDOWS.items():
        done = platform.aso(
            "airflow", "backfill", "create", "--dag-id", dag_id,
            "--from-date", first.isoformat(), "--to-date", last.isoformat(), "--reprocess-behavior", "completed",
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    until_ended(platform, times=1)


def by_rest(platform: Platform) -> None:
    """The same through Airflow's REST API."""
    for dag_id, (first, last, _) in WINDOWS.items():
        platform.api(
            "POST",
            "/backfills",
            {"dag_id": dag_id, "from_date": first.isoformat(), "to_date": last.isoformat(),
             "reprocess_behavior": "completed", "max_active_runs": 3},
        )  # fmt: skip
    until_ended(platform, times=2)


def until_ended(platform: Platform, *, times: int) -> None:
    """Wait until each DAG has so many backfills, all over; the runs of one that comes again are the same."""
    for dag_id, (_, _, runs) in WINDOWS.items():

        def look(dag_id: str = dag_id) -> Counter[str] | None:
            made = platform.api("GET", f"/backfills?dag_id={dag_id}")["backfills"]
            assert len(made) == times
            if any(one["completed_at"] is None for one in made):
                return None
            found = platform.api("GET", f"/dags/{dag_id}/dagRuns?limit=100&run_type=backfill")["dag_runs"]
            return Counter(run["state"] for run in found)

        assert until(look, within_s=240, what=f"the backfill of {dag_id}") == {"success": runs}


def taken(conn: Connection, past: Past) -> dict[str, int]:
    """Return how often cycles took each file, by name: a file that is due is taken by whichever comes first."""
    rows = dict(
        conn.execute(
            "SELECT e.transfer_id, count(*) FROM transfer_event e JOIN step_run s ON s.id = e.step_run"
            " WHERE e.to_state = 'ACQUIRED' AND s.dag_id = 'stageout_transfer' AND e.transfer_id = ANY(%s) GROUP BY 1",
            (list(past.ids.values()),),
        ).fetchall()
    )
    return {name: rows.get(number, 0) for name, number in past.ids.items()}


def until_taken(conn: Connection, past: Past, *, times: int) -> None:
    wanted = {name: times * int(name in GO_AGAIN) for name in WANTED}
    until(lambda: taken(conn, past) == wanted or None, within_s=120, what=f"{wanted} taken")


def until_sent(conn: Connection, past: Past, *, times: int) -> None:
    """NEW, RETRY and FAILED of the window go again; others do not."""
    until_taken(conn, past, times=times)

    def all_failed() -> bool | None:
        """There are no such files at their source, as FTS finds out."""
        states = {state for (state,) in conn.execute(
            "SELECT state::text FROM transfer WHERE id = ANY(%s)", ([past.ids[name] for name in GO_AGAIN],)
        )}  # fmt: skip
        return states == {"FAILED"} or None

    assert until(all_failed, within_s=120, what="the ends of the files")


def check_cycles(conn: Connection) -> None:
    """Each run took its own minute, twice."""
    cycles = conn.execute(
        "SELECT round, params->>'created_from' FROM cycle WHERE run_id LIKE 'backfill%' ORDER BY 1, 2"
    ).fetchall()
    assert [(number, datetime.fromisoformat(start)) for number, start in cycles] == [
        (number, START + place * MINUTE) for number in (0, 1) for place in (-1, 0)
    ]


@contextmanager
def offered(platform: Platform, past: Past) -> Iterator[None]:
    """A table of another service, with requests of then, that nobody has read yet."""
    with platform.connect() as conn:
        conn.execute(
            "CREATE TABLE outbound (made_at timestamptz, task text, username text, source text,"
            " destination text, source_lfn text, destination_lfn text, size_bytes bigint, adler32 text)"
        )
        for place in range(2):
            row = request(f"file_{place}", past.link, task="261122_offered")
            at = START + place * INTERVAL
            conn.execute(
                "INSERT INTO outbound VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)", (at, *row.values())
            )
    platform.api("POST", "/variables", {"key": "stageout_sources", "value": json.dumps([SOURCE])})
    try:
        yield
    finally:
        platform.api("DELETE", "/variables/stageout_sources")
        with platform.connect() as conn:
            conn.execute("DROP TABLE outbound")


def check_intake(conn: Connection, **counts: int) -> None:
    """Each interval is read again, and nothing added twice."""
    assert collected(conn) == [counts] * 2
    files = conn.execute(
        "SELECT count(*) FROM transfer t JOIN task k ON k.id = t.task_id WHERE k.name = '261122_offered'"
    ).fetchone()
    assert files == (2,)


def collected(conn: Connection) -> list[dict[str, int]]:
    """Return what the last try of each run of the backfill took in."""
    rows = conn.execute(
        "SELECT DISTINCT ON (run_id) counts FROM step_run WHERE dag_id = 'stageout_intake' AND task_id = 'collect'"
        " AND run_id LIKE 'backfill%' ORDER BY run_id, id DESC"
    )
    return [{name: counts[name] for name in ("created", "existed")} for (counts,) in rows]


def counted(conn: Connection) -> tuple[list[Any], datetime]:
    """Return what was counted of the hour, and when."""
    rows = conn.execute(
        f"SELECT kind, subject, other, {', '.join(COLUMNS)} FROM statistic_hour WHERE at = %s ORDER BY 1, 2, 3",
        (HOUR,),
    ).fetchall()
    (arrived,) = conn.execute("SELECT arrived FROM statistic_hour WHERE at = %s AND kind = 'total'", (HOUR,))
    assert arrived == (len(WANTED),)
    (rolled,) = conn.execute("SELECT rolled_at FROM rolled_hour WHERE hour = %s", (HOUR,))
    return rows, rolled[0]


def check_that_nothing_was_deleted(conn: Connection) -> None:
    steps = conn.execute(
        "SELECT DISTINCT task_id FROM step_run WHERE dag_id = 'stageout_statistics' AND run_id LIKE 'backfill%'"
    ).fetchall()
    assert steps == [("roll_up",)], "a backfill counts, and deletes nothing"
