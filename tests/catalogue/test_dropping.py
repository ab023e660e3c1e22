"""The past goes in its time, and nothing that lives misses anything."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest
from psycopg import Connection

from asyncstageout.catalogue import partitions
from asyncstageout.catalogue.audit import audit
from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.dropping import (
    Part,
    detach_history,
    drop_events,
    drop_statistics,
    finish_dropping,
    going,
    parts_before,
    sort_strays,
)
from asyncstageout.catalogue.history import MOVING_LOCK, bring_back, move_finished
from asyncstageout.catalogue.lookup import file_events, find_file
from asyncstageout.catalogue.partitions import ensure_days, ensure_month, ensure_partitions
from asyncstageout.catalogue.retention import EVENTS, gone_until, horizons
from asyncstageout.catalogue.rollups import roll_up_hour
from asyncstageout.catalogue.transitions import Move, apply_moves
from asyncstageout.core.failures import classify
from asyncstageout.core.naming import request_id
from asyncstageout.core.states import TransferState
from fixtures.catalogue import Add, Plan, record
from fixtures.past import happened_at

S = TransferState
DAY = timedelta(days=1)
NOON = datetime(2026, 8, 10, 12, tzinfo=UTC)
MIDNIGHT = NOON.replace(hour=0)
STALLED = classify("TRANSFER [110] probably stalled")
QUOTA = classify("TRANSFER [5] HTTP 507")
DONE, WAITING, FAILED = 1, 2, 3


@pytest.fixture
def old(conn: Connection, add: Add, submitted: Plan, step: int) -> Connection:
    """A day in August: one file was done, one failed, both are in the history; one waits ever since."""
    add(*(record(number) for number in (DONE, WAITING, FAILED)))
    (job,) = submitted()
    apply_moves(
        conn,
        [
            Move(DONE, job.sid, S.DONE),
            Move(WAITING, job.sid, S.RETRY, STALLED, due_at=datetime.now(UTC)),
            Move(FAILED, job.sid, S.FAILED, QUOTA),
        ],
        step,
    )
    conn.execute("INSERT INTO crab_record (transfer_id) SELECT id FROM transfer")
    conn.execute(
        "INSERT INTO file_metadata (request_id, task, username, body, received_by)"
        " SELECT request_id, 'task', username, '{}', 'test' FROM transfer"
    )
    conn.execute(
        "INSERT INTO file_event (transfer_id, kind, to_state, step_run)"
        " SELECT id, 'cleaning', 'DONE', %s FROM transfer WHERE state <> 'RETRY'",
        (step,),
    )
    happened_at(conn, NOON)
    move_finished(conn)
    for table in EVENTS:
        assert sort_strays(conn, table) == [f"{table}_20260810"]
    ensure_month(conn, ("transfer_history",), NOON.date())
    return conn


def drop_day(conn: Connection, step: int, before: datetime = MIDNIGHT + DAY) -> None:
    for table in EVENTS:
        for part in parts_before(conn, table, before):
            assert drop_events(conn, table, part, step_run=step)


def violations(conn: Connection) -> dict[str, int]:
    return {one.name: one.violations for one in audit(conn) if one.violations and one.name != "no leak"}


def of(conn: Connection, table: str) -> dict[int, int]:
    return dict(conn.execute(f"SELECT transfer_id, count(*) FROM {table} GROUP BY 1").fetchall())


def test_a_file_under_way_keeps_its_events_and_the_others_lose_theirs(old: Connection, step: int) -> None:
    before = file_events(old, WAITING)
    assert violations(old) == {}
    drop_day(old, step)
    assert of(old, "transfer_event") == {WAITING: 4}
    assert file_events(old, WAITING) == before
    assert of(old, "file_event") == {}
    assert violations(old) == {}
    assert [(one.table, one.part, one.until) for one in horizons(old)] == [
        ("file_event", "file_event_20260810", MIDNIGHT + DAY),
        ("transfer_event", "transfer_event_20260810", MIDNIGHT + DAY),
    ]


def test_it_goes_on_as_if_nothing_had_been_dropped(
    old: Connection, add: Add, submitted: Plan, step: int
) -> None:
    drop_day(old, step)
    ensure_partitions(old, datetime.now(UTC).date())
    add(record(7))
    jobs = submitted()
    apply_moves(old, [Move(WAITING, job.sid, S.DONE) for job in jobs if WAITING in job.transfer_ids], step)
    assert [event.to_state for event in file_events(old, WAITING)][-3:] == ["ACQUIRED", "SUBMITTED", "DONE"]
    assert violations(old) == {}


def test_what_was_kept_goes_when_its_file_is_over(old: Connection, submitted: Plan, step: int) -> None:
    drop_day(old, step)
    (job,) = submitted()
    apply_moves(old, [Move(WAITING, job.sid, S.DONE)], step)
    assert move_finished(old, keep_done_s=-1) == 1
    ensure_days(old, "transfer_event", [date(2026, 8, 11)])
    drop_day(old, step, MIDNIGHT + 2 * DAY)
    assert len(file_events(old, WAITING)) == 3, "what happened today"
    assert violations(old) == {}


def test_a_file_that_comes_back_without_its_first_events_is_not_broken(
    old: Connection, submitted: Plan, step: int
) -> None:
    drop_day(old, step)
    (found,) = old.execute("SELECT request_id FROM transfer_history WHERE id = %s", (FAILED,)).fetchone() or (
        "",
    )
    with old.transaction():
        old.execute("SELECT pg_advisory_xact_lock_shared(%s)", (MOVING_LOCK,))
        assert bring_back(old, [found]) == 1
    assert violations(old) == {}


def test_a_line_that_is_broken_after_the_horizon_is_still_found(old: Connection, step: int) -> None:
    drop_day(old, step)
    old.execute(
        "INSERT INTO transfer_event (transfer_id, from_state, to_state, attempt, step_run)"
        " VALUES (%s, 'SUBMITTED', 'RETRY', 1, %s)",
        (WAITING, step),
    )
    assert "every move on record" in violations(old)


def test_a_young_file_without_events_is_still_found(old: Connection, add: Add, step: int) -> None:
    drop_day(old, step)
    add(record(9))
    old.execute("ALTER TABLE transfer_event DISABLE TRIGGER transfer_event_append_only")
    old.execute("DELETE FROM transfer_event WHERE transfer_id > %s", (FAILED,))
    assert violations(old) == {"every move on record": 1}


def test_who_needs_the_events_is_not_waited_for(
    old: Connection, catalogue_url: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "LOCK_TIMEOUT_S", 0.05)
    (part,) = parts_before(old, "transfer_event", MIDNIGHT + DAY)
    with connect(catalogue_url) as other, other.transaction():
        other.execute("SELECT count(*) FROM transfer_event")
        assert not drop_events(old, "transfer_event", part, step_run=step)
    assert of(old, "transfer_event") == {DONE: 4, WAITING: 4, FAILED: 4}
    assert gone_until(old, "transfer_event") is None
    assert drop_events(old, "transfer_event", part, step_run=step)


def history_part(conn: Connection) -> Part:
    (part,) = parts_before(conn, "transfer_history", datetime(2026, 9, 1, tzinfo=UTC))
    return part


def test_history_goes_after_its_events_with_all_that_hangs_on_it(
    old: Connection, add: Add, step: int
) -> None:
    part = history_part(old)
    assert not detach_history(old, part, step_run=step), "its events are still there"
    drop_day(old, step)
    assert detach_history(old, part, step_run=step)
    assert find_file(old, str(DONE)) is None
    assert going(old) == ["dropped_transfer_history_202608"]
    assert of(old, "crab_record") == {DONE: 1, WAITING: 1, FAILED: 1}
    assert finish_dropping(old, going(old)[0]) == 6
    assert going(old) == []
    assert of(old, "crab_record") == {WAITING: 1}
    assert of(old, "past_request") == {}
    kept = old.execute("SELECT request_id FROM file_metadata").fetchall()
    assert kept == [(request_id(record(WAITING)["source_lfn"]),)]
    assert violations(old) == {}
    assert gone_until(old, "transfer_history") == datetime(2026, 9, 1, tzinfo=UTC)
    (again,) = add(record(DONE))
    assert again.outcome == "created", "nobody knows it any more"


def test_a_month_that_was_taken_out_and_not_finished_is_found_again(old: Connection, step: int) -> None:
    """Dying between the two leaves a table by itself, in which the rest can be looked up."""
    drop_day(old, step)
    detach_history(old, history_part(old), step_run=step)
    old.execute("DELETE FROM crab_record WHERE transfer_id = %s", (DONE,))
    (name,) = going(old)
    assert finish_dropping(old, name) == 5
    assert going(old) == []


def test_a_month_of_statistics(old: Connection, step: int) -> None:
    roll_up_hour(old, NOON, step_run=step)
    assert parts_before(old, "statistic_hour", MIDNIGHT + DAY) == []
    (part,) = parts_before(old, "statistic_hour", datetime(2026, 9, 1, tzinfo=UTC))
    assert drop_statistics(old, "statistic_hour", part, step_run=step)
    assert old.execute("SELECT count(*) FROM statistic_hour").fetchone() == (0,)
    assert gone_until(old, "statistic_hour") == datetime(2026, 9, 1, tzinfo=UTC)


def test_only_whole_partitions_that_are_over_are_named(conn: Connection) -> None:
    ensure_partitions(conn, date(2026, 8, 10))
    parts = parts_before(conn, "transfer_event", MIDNIGHT + 3 * DAY)
    assert [(part.name, part.start, part.end) for part in parts] == [
        (f"transfer_event_2026081{number}", MIDNIGHT + number * DAY, MIDNIGHT + (number + 1) * DAY)
        for number in range(3)
    ]
