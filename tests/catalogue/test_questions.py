"""Questions: pages that meet every file once, and tasks whose cost does not grow with the rest."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import Connection

from asyncstageout.catalogue.partitions import ensure_month
from asyncstageout.catalogue.questions import (
    TransferFilter,
    jobs_of,
    newest_tasks,
    newest_transfers,
    task_summary,
)
from asyncstageout.core.states import TransferState
from fixtures.catalogue import Add, Plan, file_ids, record

EVERYTHING = TransferFilter()
_INTO_THE_PAST = """
WITH gone AS (
    UPDATE transfer SET state = 'DONE', ended_at = now() WHERE id % {step} = 0 RETURNING id
)
SELECT count(*) FROM gone
"""
_MOVE = """
WITH gone AS (DELETE FROM transfer WHERE state = 'DONE' RETURNING *)
INSERT INTO transfer_history SELECT * FROM gone
"""


def ids(rows: list[dict[str, Any]]) -> list[int]:
    return [row["id"] for row in rows]


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    limit=st.integers(1, 7),
    arriving=st.lists(st.integers(0, 3), max_size=12),
    past=st.integers(2, 5),
    visible=st.sampled_from([None, ["alice"], ["alice", "bob"]]),
)
def test_pages_meet_every_file_once_whatever_arrives_and_ends(
    conn: Connection, *, add: Add, limit: int, arriving: list[int], past: int, visible: list[str] | None
) -> None:
    conn.execute("TRUNCATE transfer, transfer_history, transfer_event, task CASCADE")
    add(*(record(n, username="bob" if n % 3 == 0 else "alice") for n in range(10)))
    names = {"bob", "alice"} if visible is None else set(visible)
    there = {
        number
        for number, username in conn.execute("SELECT id, username FROM transfer").fetchall()
        if username in names
    }
    met: list[int] = []
    before_id = None
    arrivals = iter(enumerate(arriving, 1))
    while page := newest_transfers(conn, TransferFilter(visible=visible), limit=limit, before_id=before_id):
        met += ids(page)
        before_id = page[-1]["id"]
        place, count = next(arrivals, (0, 0))
        add(*(record(100 * place + n) for n in range(count)))
        conn.execute(_INTO_THE_PAST.format(step=past))
        conn.execute(_MOVE)
    assert met == sorted(there, reverse=True)


def test_filters_hold_together(conn: Connection, add: Add, submitted: Plan) -> None:
    add(record(0))
    submitted()
    add(record(1, source="T2_US_MIT"), record(2))
    first, second, third = file_ids(conn)
    found = {
        "states": newest_transfers(conn, TransferFilter(states=[TransferState.NEW]), limit=9),
        "source": newest_transfers(conn, TransferFilter(source="T2_IT_Bari"), limit=9),
        "task": newest_transfers(conn, TransferFilter(task="261122_alice_task", source="T2_US_MIT"), limit=9),
        "nobody": newest_transfers(conn, TransferFilter(visible=["bob"], task="261122_alice_task"), limit=9),
    }
    assert {name: ids(rows) for name, rows in found.items()} == {
        "states": [third, second], "source": [third, first], "task": [second], "nobody": [],
    }  # fmt: skip
    assert [job["fts_server"] for job in jobs_of(conn, first)] == ["fts"]
    assert jobs_of(conn, second) == []


def seed(conn: Connection, tasks: int, files: int) -> None:
    """Write many files without going through the door."""
    conn.execute(
        "INSERT INTO task (name, username) SELECT 'task_' || n, 'user_' || n %% 10"
        " FROM generate_series(1, %s) n",
        (tasks,),
    )
    conn.execute(
        "INSERT INTO transfer (request_id, task_id, username, source, destination, source_lfn,"
        " destination_lfn, size_bytes) SELECT 'r' || k.id || '-' || n, k.id, k.username, 'T2_IT_Bari',"
        " 'T2_CH_CERN', '/s/' || n, '/d/' || k.id || '/' || n, 1"
        " FROM task k CROSS JOIN generate_series(1, %s) n",
        (files,),
    )
    conn.execute("ANALYZE transfer, task")


def rows_read(conn: Connection, query: Any, *, table: str = "transfer", **options: Any) -> int:
    """Return how many rows of files a question read."""
    reading = "SELECT pg_stat_clear_snapshot(), pg_stat_force_next_flush()"
    counted = (
        "SELECT seq_tup_read + coalesce(idx_tup_fetch, 0) FROM pg_stat_user_tables WHERE relid = %s::regclass"
    )

    def count() -> int:
        conn.execute(reading)
        conn.execute(reading)
        return int(conn.execute(counted, (table,)).fetchone()[0])

    before = count()
    query(conn, **options)
    return count() - before


@pytest.fixture
def crowd(conn: Connection) -> Connection:
    seed(conn, tasks=100, files=300)
    return conn


def test_a_page_reads_what_it_shows(crowd: Connection) -> None:
    assert rows_read(crowd, newest_transfers, where=EVERYTHING, limit=50) <= 100
    of_a_user = TransferFilter(visible=["user_3"])
    assert rows_read(crowd, newest_transfers, where=of_a_user, limit=50) <= 10 * 50 + 100
    of_a_task = TransferFilter(task="task_7")
    assert rows_read(crowd, newest_transfers, where=of_a_task, limit=50) <= 100


def test_files_since_a_time_are_not_looked_for_in_the_months_before_it(crowd: Connection) -> None:
    now = datetime.now(UTC)
    old, new = now - timedelta(days=70), now - timedelta(days=2)
    ensure_month(crowd, ("transfer_history",), old.date())
    for step, ended_at in ((2, old), (3, new)):
        crowd.execute(
            "UPDATE transfer SET state = 'DONE', created_at = %(at)s, ended_at = %(at)s WHERE id %% %(step)s = 0",
            {"at": ended_at, "step": step},
        )
        crowd.execute(_MOVE)
    partition = f"transfer_history_{old:%Y%m}"
    nowhere = TransferFilter(source="T2_US_MIT")
    assert rows_read(crowd, newest_transfers, table=partition, where=nowhere, limit=50) >= 10_000
    lately = replace(nowhere, since=now - timedelta(days=3))
    assert rows_read(crowd, newest_transfers, table=partition, where=lately, limit=50) == 0
    found = newest_transfers(crowd, replace(EVERYTHING, since=now - timedelta(days=3)), limit=20_000)
    assert {row["created_at"] for row in found if row["ended_at"]} == {new}


def test_a_task_reads_its_own_files(crowd: Connection) -> None:
    assert rows_read(crowd, task_summary, task="task_7", visible=None) <= 400
    assert rows_read(crowd, newest_tasks, visible=["user_3"], limit=5) <= 5 * 300 + 100
    summary = task_summary(crowd, "task_7", ["user_7"])
    assert summary is not None
    assert (summary["files"], summary["states"]) == (300, {"NEW": 300})
    assert task_summary(crowd, "task_7", ["user_8"]) is None
