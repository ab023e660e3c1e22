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


def by_command(platform: Platform, dag_id: str, first: datetime, last: datetime) -> Counter[str]:
    """Backfill as docs/how-to/backfill.md says; return how many runs came to which end."""
    known = {one["id"] for one in backfills(platform, dag_id)}
    done = platform.aso(
        "airflow", "backfill", "create", "--dag-id", dag_id,
        "--from-date", first.isoformat(), "--to-date", last.isoformat(), "--reprocess-behavior", "completed",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (created,) = [one["id"] for one in backfills(platform, dag_id) if one["id"] not in known]
    return ended(platform, dag_id, created)


def by_rest(platform: Platform, dag_id: str, first: datetime, last: datetime) -> Counter[str]:
    """The same through Airflow's REST API."""
    created = platform.api(
        "POST",
        "/backfills",
        {"dag_id": dag_id, "from_date": first.isoformat(), "to_date": last.isoformat(),
         "reprocess_behavior": "completed", "max_active_runs": 3},
    )  # fmt: skip
    return ended(platform, dag_id, created["id"])


def backfills(platform: Platform, dag_id: str) -> list[dict[str, Any]]:
    return list(platform.api("GET", f"/backfills?dag_id={dag_id}")["backfills"])


def ended(platform: Platform, dag_id: str, backfill: int) -> Counter[str]:
    def look() -> Counter[str] | None:
        if platform.api("GET", f"/backfills/{backfill}")["completed_at"] is None:
            return None
        runs = platform.api("GET", f"/dags/{dag_id}/dagRuns?limit=100&run_type=backfill")["dag_runs"]
        return Counter(run["state"] for run in runs)

    return until(look, within_s=240, what=f"the backfill of {dag_id}")


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


def of_transfer(platform: Platform, past: Past) -> None:
    """NEW, RETRY and FAILED of the window go again; others do not."""
    runs = by_command(platform, "stageout_transfer", START, START + MINUTE)
    assert runs == {"success": 2}
    with platform.connect() as conn:
        until_taken(conn, past, times=1)

        def all_failed() -> bool | None:
            """There are no such files at their source, as FTS finds out."""
            states = {state for (state,) in conn.execute(
                "SELECT state::text FROM transfer WHERE id = ANY(%s)", ([past.ids[name] for name in GO_AGAIN],)
            )}  # fmt: skip
            return states == {"FAILED"} or None

        assert until(all_failed, within_s=120, what="the ends of the files")
        # The same runs once more: what failed since goes again.
        assert by_rest(platform, "stageout_transfer", START, START + MINUTE) == {"success": 2}
        until_taken(conn, past, times=2)
        assert until(all_failed, within_s=120, what="the ends of the files")
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


def of_intake(platform: Platform) -> None:
    """Each interval is read again, and nothing added twice."""
    assert by_command(platform, "stageout_intake", START, START + INTERVAL) == {"success": 2}
    with platform.connect() as conn:
        assert collected(conn) == [{"created": 1, "existed": 0}] * 2
        assert by_rest(platform, "stageout_intake", START, START + INTERVAL) == {"success": 2}
        assert collected(conn) == [{"created": 0, "existed": 1}] * 2
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


def of_statistics(platform: Platform) -> None:
    """The same numbers again."""

    def rows(conn: Connection) -> list[Any]:
        return conn.execute(
            f"SELECT kind, subject, other, {', '.join(COLUMNS)} FROM statistic_hour WHERE at = %s ORDER BY 1, 2, 3",
            (HOUR,),
        ).fetchall()

    assert by_command(platform, "stageout_statistics", HOUR, HOUR) == {"success": 1}
    with platform.connect() as conn:
        first = rows(conn)
        arrived = conn.execute("SELECT arrived FROM statistic_hour WHERE at = %s AND kind = 'total'", (HOUR,))
        assert arrived.fetchone() == (len(WANTED),)
        counted = conn.execute("SELECT rolled_at FROM rolled_hour WHERE hour = %s", (HOUR,)).fetchone()
        assert by_rest(platform, "stageout_statistics", HOUR, HOUR) == {"success": 1}
        assert rows(conn) == first
        again = conn.execute("SELECT rolled_at FROM rolled_hour WHERE hour = %s", (HOUR,)).fetchone()
        steps = conn.execute(
            "SELECT DISTINCT task_id FROM step_run WHERE dag_id = 'stageout_statistics' AND run_id LIKE 'backfill%'"
        ).fetchall()
    assert counted is not None
    assert again is not None
    assert again > counted
    assert steps == [("roll_up",)], "a backfill counts, and deletes nothing"
