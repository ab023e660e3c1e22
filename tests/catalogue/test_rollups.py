"""An hour is counted from its events: exactly, again and again the same, in one piece or in slices."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from math import log
from typing import Any

import pytest
from psycopg import Connection
from psycopg.rows import dict_row

from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.history import move_finished
from asyncstageout.catalogue.kills import kill
from asyncstageout.catalogue.measures import COLUMNS
from asyncstageout.catalogue.retries_by_people import retry_files
from asyncstageout.catalogue.rollups import hours_to_count, make_days, roll_up_hour, roll_up_open
from asyncstageout.catalogue.transitions import Move, apply_moves
from asyncstageout.core.delays import GROWTH, LEAST_S, bucket
from asyncstageout.core.failures import classify
from asyncstageout.core.selections import Selection
from asyncstageout.core.states import TransferState
from fixtures.catalogue import Add, Plan, record
from fixtures.past import happened_at

S = TransferState
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
QUOTA = classify("TRANSFER [5] HTTP 507 : Insufficient Storage")
STALLED = classify("TRANSFER [110] probably stalled")


@pytest.fixture
def lived(conn: Connection, add: Add, submitted: Plan, step: int) -> Connection:
    """Noon: of alice's four files one is done, one is done at once after a retry, one fails, one is killed; bob's is done."""
    add(*(record(number) for number in range(4)), record(9, username="bob", source="T2_US_MIT"))
    jobs = submitted()
    (first, again, failed, killed), (bobs,) = (list(job.transfer_ids) for job in jobs)
    apply_moves(
        conn,
        [
            Move(first, jobs[0].sid, S.DONE, fts_finished_at=datetime.now(UTC)),
            Move(again, jobs[0].sid, S.RETRY, STALLED, due_at=datetime.now(UTC)),
            Move(failed, jobs[0].sid, S.FAILED, QUOTA),
            Move(bobs, jobs[1].sid, S.DONE, fts_finished_at=datetime.now(UTC)),
        ],
        step,
    )
    kill(conn, Selection(ids=[killed]), None, comment="no longer wanted", step_run=step)
    apply_moves(conn, [Move(killed, jobs[0].sid, S.KILLED)], step)
    (second,) = submitted()
    apply_moves(conn, [Move(again, second.sid, S.DONE, fts_finished_at=datetime.now(UTC))], step)
    conn.execute(
        "INSERT INTO file_event (transfer_id, kind, from_state, to_state, step_run)"
        " VALUES (%s, 'publication', 'ACQUIRED', 'DONE', %s)",
        (first, step),
    )
    happened_at(conn, NOON, spread_s=30)
    return conn


def rows(conn: Connection, table: str = "statistic_hour") -> dict[tuple[str, str, str], dict[str, Any]]:
    with conn.cursor(row_factory=dict_row) as cursor:
        found = cursor.execute(f"SELECT * FROM {table}").fetchall()
    return {(row["kind"], row["subject"], row["other"]): row for row in found}


def everything(conn: Connection) -> list[tuple[Any, ...]]:
    return [
        row
        for table in ("hour", "day", "minute", "slice")
        for row in conn.execute(
            f"SELECT '{table}', kind, at, subject, other, {', '.join(COLUMNS)} FROM statistic_{table} ORDER BY 2, 3, 4, 5"
        )
    ]


def test_what_happened_is_counted_by_link_site_user_and_task(lived: Connection, step: int) -> None:
    assert roll_up_hour(lived, NOON, step_run=step) == 18
    found = rows(lived)
    total = found["total", "", ""]
    assert {name: total[name] for name in ("arrived", "accepted", "done", "retried", "failed", "killed", "sent_again")} == {
        "arrived": 5, "accepted": 6, "done": 3, "retried": 1, "failed": 1, "killed": 1, "sent_again": 0,
    }  # fmt: skip
    assert total["done_bytes"] == 1000 + 1001 + 1009
    assert total["failed_bytes"] == 1002
    assert (total["attempts_done"], total["attempts_failed"]) == (3, 2)
    assert total["failures"] == {QUOTA.category.value: 1, STALLED.category.value: 1}
    assert total["around"] == {"publication DONE": 1}
    assert total["at"] == NOON
    assert found["link", "T2_IT_Bari", "T2_CH_CERN"]["done"] == 2
    assert found["link", "T2_US_MIT", "T2_CH_CERN"]["done"] == 1
    assert found["source", "T2_IT_Bari", ""]["failures"] == total["failures"]
    assert found["destination", "T2_CH_CERN", ""]["done"] == 3
    assert found["user", "bob", ""]["done_bytes"] == 1009
    assert found["user", "bob", ""]["failures"] is None
    assert found["task", "261122_alice_task", "alice"]["done"] == 2
    assert len(found) == 10


def test_how_long_files_waited_is_counted_in_buckets(lived: Connection, step: int) -> None:
    roll_up_hour(lived, NOON, step_run=step)
    found = rows(lived)["user", "bob", ""]
    waited = {
        to_state: at - NOON
        for to_state, at in lived.execute(
            "SELECT e.to_state::text, e.at FROM transfer_event e JOIN transfer t ON t.id = e.transfer_id"
            " WHERE t.username = 'bob'"
        )
    }
    assert found["accepted_after"] == [[bucket(waited["SUBMITTED"].total_seconds()), 1]]
    assert found["done_after"] == [[bucket(waited["DONE"].total_seconds()), 1]]
    assert len(found["in_fts"]) == len(found["settled_after"]) == 1
    total = rows(lived)["total", "", ""]
    assert sum(files for _, files in total["accepted_after"]) == 5, "first acceptances only"
    assert sum(files for _, files in total["done_after"]) == 3


def test_postgres_and_the_core_agree_on_buckets(conn: Connection) -> None:
    waits = [0.0, LEAST_S, 0.5, 1.0, 1.3, 59.0, 60.0, 61.0, 86_400.0, 3e6]
    found = conn.execute(
        "SELECT array_agg(ceil(ln(greatest(w, %s)) / %s)::integer ORDER BY place)"
        " FROM unnest(%s::float8[]) WITH ORDINALITY AS u(w, place)",
        (LEAST_S, log(GROWTH), waits),
    ).fetchone()
    assert found == ([bucket(wait) for wait in waits],)


def test_the_same_hour_again_gives_the_same(lived: Connection, step: int) -> None:
    roll_up_hour(lived, NOON, step_run=step)
    before = everything(lived)
    assert len(before) > 10
    roll_up_hour(lived, NOON, step_run=step)
    assert everything(lived) == before


def test_finished_files_are_found_in_the_history(lived: Connection, step: int) -> None:
    roll_up_hour(lived, NOON, step_run=step)
    before = everything(lived)
    assert move_finished(lived, keep_done_s=-1, keep_failed_s=-1) == 5
    roll_up_hour(lived, NOON, step_run=step)
    assert everything(lived) == before


def test_what_is_counted_in_slices_adds_up_to_the_hour(lived: Connection, step: int) -> None:
    lived.execute(
        "INSERT INTO rolled_hour (hour, until, events, step_run) VALUES (%s, %s, 0, 1)", (NOON - HOUR, NOON)
    )
    events, now = 0, NOON
    while now < NOON + HOUR:
        now += MINUTE
        events += roll_up_open(lived, now, step_run=step)
    events += roll_up_open(lived, now + MINUTE, step_run=step)
    assert events == 18
    (until, counted) = lived.execute(
        "SELECT until, events FROM rolled_hour WHERE hour = %s", (NOON,)
    ).fetchone() or (None, None)
    assert (until, counted) == (NOON + HOUR, 18)
    slices = lived.execute(
        "SELECT count(DISTINCT at), sum(arrived), sum(done), sum(done_bytes), sum(attempts_failed)"
        " FROM statistic_slice WHERE kind = 'link'"
    ).fetchone()
    minutes = [row for row in everything(lived) if row[0] == "minute"]
    assert slices == (slices and slices[0], 5, 3, 3010, 2)
    roll_up_hour(lived, NOON, step_run=step)
    assert [row for row in everything(lived) if row[0] == "minute"] == minutes
    assert lived.execute("SELECT count(*) FROM statistic_slice").fetchone() == (0,)


def test_a_slice_is_counted_when_there_is_something_to_gain(lived: Connection, step: int) -> None:
    lived.execute(
        "INSERT INTO rolled_hour (hour, until, events, step_run) VALUES (%s, %s, 0, 1)", (NOON - HOUR, NOON)
    )
    assert roll_up_open(lived, NOON + MINUTE, step_run=step) == 0
    assert roll_up_open(lived, NOON + 2 * MINUTE, step_run=step) == 0, (
        "what is written now may not be seen yet"
    )
    assert roll_up_open(lived, NOON + 3 * MINUTE, step_run=step) > 0
    assert roll_up_open(lived, NOON + 3 * MINUTE, step_run=step) == 0


def test_a_slice_is_left_to_whoever_counts_it(lived: Connection, catalogue_url: str, step: int) -> None:
    with connect(catalogue_url) as other:
        other.execute("SELECT pg_advisory_lock(%s)", (0x5A60,))
        assert roll_up_open(lived, NOON + HOUR, step_run=step) == 0
    assert lived.execute("SELECT count(*) FROM rolled_hour").fetchone() == (0,)


def test_hours_that_somebody_must_count(lived: Connection, step: int) -> None:
    after = NOON + HOUR
    assert hours_to_count(lived, after) == []
    for hour in (NOON - 5 * HOUR, NOON):
        roll_up_hour(lived, hour, step_run=step)
    missing = [NOON - number * HOUR for number in (4, 3, 2, 1)]
    assert hours_to_count(lived, after) == missing
    for hour in missing:
        roll_up_hour(lived, hour, step_run=step)
    assert hours_to_count(lived, after) == []
    lived.execute(
        "INSERT INTO file_event (transfer_id, at, kind, to_state, step_run) VALUES (1, %s, 'cleaning', 'DONE', 1)",
        (NOON + MINUTE,),
    )
    assert hours_to_count(lived, after) == [NOON]
    roll_up_hour(lived, NOON, step_run=step)
    assert hours_to_count(lived, after) == []
    assert rows(lived)["total", "", ""]["around"] == {"publication DONE": 1, "cleaning DONE": 1}


def test_a_day_is_the_sum_of_its_hours(lived: Connection, step: int) -> None:
    midnight = NOON - 12 * HOUR
    for number in (12, 22):
        roll_up_hour(lived, midnight + number * HOUR, step_run=step)
    assert make_days(lived) == []
    roll_up_hour(lived, midnight + 23 * HOUR, step_run=step)
    assert make_days(lived) == [midnight]
    assert make_days(lived) == []
    noon, day = rows_at(lived, NOON), rows(lived, "statistic_day")
    assert set(day) == set(noon)
    for key, row in day.items():
        assert {name: row[name] for name in COLUMNS} == {name: noon[key][name] for name in COLUMNS}, key
    roll_up_hour(lived, NOON, step_run=step)
    assert rows(lived, "statistic_day") == {}, "it is not what its hours are until it is made again"
    assert make_days(lived) == [midnight]


def rows_at(conn: Connection, at: datetime) -> dict[tuple[str, str, str], dict[str, Any]]:
    with conn.cursor(row_factory=dict_row) as cursor:
        found = cursor.execute("SELECT * FROM statistic_hour WHERE at = %s", (at,)).fetchall()
    return {(row["kind"], row["subject"], row["other"]): row for row in found}


def test_waits_of_a_file_that_was_sent_again_begin_then(
    conn: Connection, add: Add, submitted: Plan, step: int
) -> None:
    add(record(1))
    (job,) = submitted()
    (number,) = job.transfer_ids
    apply_moves(conn, [Move(number, job.sid, S.FAILED, QUOTA)], step)
    retry_files(conn, Selection(ids=[number]), None, comment="room was made", step_run=step)
    (second,) = submitted()
    apply_moves(conn, [Move(number, second.sid, S.DONE, fts_finished_at=datetime.now(UTC))], step)
    happened_at(conn, NOON, spread_s=600)
    conn.execute("UPDATE transfer SET created_at = created_at - interval '20 days'")
    for hour in (NOON, NOON + HOUR):
        roll_up_hour(conn, hour, step_run=step)
    total = {at: row for (kind, at), row in by_hour(conn).items() if kind == "total"}
    assert total[NOON]["sent_again"] == 1
    # Sent again at 12:40; accepted at 13:00, done at 13:10.
    assert total[NOON + HOUR]["accepted_after"] == [[bucket(1200), 1]]
    assert total[NOON + HOUR]["done_after"] == [[bucket(1800), 1]]


def by_hour(conn: Connection) -> dict[tuple[str, datetime], dict[str, Any]]:
    with conn.cursor(row_factory=dict_row) as cursor:
        found = cursor.execute("SELECT * FROM statistic_hour").fetchall()
    return {(row["kind"], row["at"]): row for row in found}
