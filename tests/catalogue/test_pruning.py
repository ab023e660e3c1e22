"""Rows of the past go by their own rules; what is under way, or named by an event that is left, stays."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from psycopg import Connection

from asyncstageout.catalogue import pruning
from asyncstageout.catalogue.audit import audit
from asyncstageout.catalogue.dropping import (
    detach_history,
    drop_events,
    finish_dropping,
    going,
    parts_before,
    sort_strays,
)
from asyncstageout.catalogue.history import move_finished
from asyncstageout.catalogue.partitions import ensure_days, ensure_month
from asyncstageout.catalogue.pruning import PRUNES, Prune, prune
from asyncstageout.catalogue.retention import EVENTS, gone_until, horizons
from asyncstageout.catalogue.rollups import roll_up_hour
from asyncstageout.catalogue.step_runs import Actor, end_step, start_step
from asyncstageout.catalogue.transitions import Move, apply_moves
from asyncstageout.core.failures import classify
from asyncstageout.core.retention import SETTINGS, Retention
from asyncstageout.core.states import TransferState
from fixtures.catalogue import Add, Plan, new_cycle, record
from fixtures.past import happened_at

S = TransferState
KEEP = Retention()
NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
DAY = timedelta(days=1)
NOON = datetime(2025, 8, 10, 12, tzinfo=UTC)
STALLED = classify("TRANSFER [110] probably stalled")
BY_TABLE = {one.table: one for one in PRUNES}

PruneTable = Callable[..., int]


@pytest.fixture
def pruned(conn: Connection) -> PruneTable:
    """Delete what may go of a table; return how many rows."""
    keeper = start_step(conn, Actor(task_id="prune", name="tester"))

    def prune_table(table: str, now: datetime = NOW, batch: int = 2) -> int:
        return prune(conn, BY_TABLE[table], KEEP, now=now, step_run=keeper, batch=batch)

    return prune_table


def count(conn: Connection, table: str) -> int:
    row = conn.execute(f"SELECT count(*) FROM {table}").fetchone()
    return int(row[0]) if row else 0


@pytest.mark.parametrize("one", PRUNES, ids=lambda one: one.table)
def test_each_kind_has_a_reason_and_a_bound(one: Prune) -> None:
    assert one.why
    assert one.until in (None, "events", "history", *SETTINGS)
    assert "%(batch)s" in one.delete


@pytest.mark.parametrize("one", PRUNES, ids=lambda one: one.table)
def test_nothing_goes_that_is_new(conn: Connection, add: Add, submitted: Plan, step: int, one: Prune) -> None:
    """Everything that a day leaves behind is still there at its end."""
    add(*(record(number) for number in range(3)))
    (job,) = submitted(limit=2)
    apply_moves(conn, [Move(number, job.sid, S.DONE) for number in job.transfer_ids], step)
    submitted()
    roll_up_hour(conn, datetime.now(UTC).replace(minute=0, second=0, microsecond=0), step_run=step)
    before = count(conn, one.table)
    assert prune(conn, one, KEEP, now=datetime.now(UTC), step_run=step) == 0
    assert count(conn, one.table) == before


@pytest.fixture
def gone(conn: Connection, add: Add, submitted: Plan, step: int) -> Connection:
    """Fifteen months ago a step made a file done, and left one waiting; the day's events and the month are gone."""
    for task_id, numbers in (("first", (1, 2)), ("second", (3,))):
        add(*(record(number) for number in numbers))
        (job,) = submitted()
        maker = start_step(conn, Actor(task_id=task_id, name="tester"))
        moves = {1: Move(1, job.sid, S.DONE), 2: Move(2, job.sid, S.RETRY, STALLED, due_at=datetime.now(UTC)),
                 3: Move(3, job.sid, S.DONE)}  # fmt: skip
        apply_moves(conn, [moves[number] for number in job.transfer_ids], maker)
        end_step(conn, maker, outcome="success", sentence="", counts={})
        conn.execute("UPDATE transfer SET driver = 'nobody' WHERE state = 'RETRY'")
    conn.execute("UPDATE transfer SET driver = NULL")
    end_step(conn, step, outcome="success", sentence="", counts={})
    happened_at(conn, NOON)
    move_finished(conn)
    ensure_month(conn, ("transfer_history",), NOON.date())
    for table in EVENTS:
        sort_strays(conn, table)
        ensure_days(conn, table, [(NOON + number * DAY).date() for number in range(23)])
        for part in parts_before(conn, table, datetime(2025, 9, 1, tzinfo=UTC)):
            assert drop_events(conn, table, part, step_run=step)
    (month,) = parts_before(conn, "transfer_history", datetime(2025, 9, 1, tzinfo=UTC))
    assert detach_history(conn, month, step_run=step)
    finish_dropping(conn, going(conn)[0])
    return conn


def test_steps_go_with_the_events_that_they_made(gone: Connection, pruned: PruneTable) -> None:
    assert pruned("step_run") == 1
    left = gone.execute("SELECT task_id FROM step_run ORDER BY id").fetchall()
    assert left == [("test",), ("first",), ("prune",)], "the others made events of the file that waits"
    assert {one.name for one in audit(gone) if one.violations} == set()
    assert pruned("step_run") == 0
    assert gone_until(gone, "step_run") == datetime(2025, 8, 30, tzinfo=UTC)


def test_a_step_that_never_ended_stays(gone: Connection, pruned: PruneTable) -> None:
    gone.execute("UPDATE step_run SET ended_at = NULL WHERE task_id = 'second'")
    assert pruned("step_run") == 0


def test_fts_jobs_go_with_their_files(gone: Connection, pruned: PruneTable) -> None:
    (waiting_in,) = gone.execute("SELECT fts_job FROM transfer WHERE state = 'RETRY'").fetchone() or (None,)
    assert count(gone, "fts_job") == 2
    assert pruned("fts_job") == 1
    assert gone.execute("SELECT sid FROM fts_job").fetchall() == [(waiting_in,)]
    assert {one.name for one in audit(gone) if one.violations} == set()


def test_cycles_go_when_they_planned_nothing_or_their_jobs_are_gone(
    gone: Connection, pruned: PruneTable
) -> None:
    idle, fresh = new_cycle(gone), new_cycle(gone)
    gone.execute("UPDATE cycle SET created_at = %s WHERE id = %s", (NOW - 20 * DAY, idle.cycle_id))
    gone.execute("UPDATE cycle SET created_at = %s WHERE id = %s", (NOW - DAY, fresh.cycle_id))
    for cycle in (idle, fresh):
        gone.execute(
            "INSERT INTO cycle_link SELECT %s, 'T2_IT_Bari', 'T2_XX_' || n, 1, 0, 0 FROM generate_series(1, 3) n",
            (cycle.cycle_id,),
        )
    assert pruned("cycle_link") == 3
    assert pruned("cycle") == 1
    assert count(gone, "cycle") == 3
    assert pruned("fts_job") == 1
    assert pruned("cycle", NOW + DAY) == 1, "the one whose job is gone"
    assert count(gone, "cycle_link") == 3


def test_metadata_go_when_they_are_published_or_nobodys(
    conn: Connection, add: Add, submitted: Plan, step: int, pruned: PruneTable
) -> None:
    add(*(record(number, publish=True) for number in range(4)))
    (job,) = submitted()
    published, failed, waiting, unpublished = job.transfer_ids
    apply_moves(conn, [Move(number, job.sid, S.DONE) for number in (published, failed)], step)
    for number, state in ((published, "DONE"), (failed, "FAILED")):
        conn.execute("UPDATE transfer SET publication = %s WHERE id = %s", (state, number))
    move_finished(conn, keep_done_s=-1)
    conn.execute(
        "INSERT INTO file_metadata (request_id, task, username, body, received_at, received_by)"
        " SELECT request_id, 'task', 'alice', '{}'::jsonb, %(old)s, 'test' FROM (SELECT request_id FROM transfer UNION ALL"
        " SELECT request_id FROM transfer_history UNION ALL VALUES ('nobodys')) f"
        " UNION ALL SELECT 'young', 'task', 'alice', '{}', %(young)s, 'test'",
        {"old": NOW - 40 * DAY, "young": NOW - DAY},
    )
    assert pruned("file_metadata") == 2
    assert count(conn, "file_metadata") == 4
    kept = conn.execute(
        "SELECT f.id FROM file_metadata JOIN (SELECT id, request_id FROM transfer UNION ALL"
        " SELECT id, request_id FROM transfer_history) f USING (request_id) ORDER BY 1"
    ).fetchall()
    assert kept == [(failed,), (waiting,), (unpublished,)]
    # What was looked at is not looked at again.
    conn.execute("UPDATE transfer SET publication = 'DONE'")
    assert pruned("file_metadata", NOW + DAY) == 0


def test_a_pass_that_takes_too_long_begins_there_again(
    conn: Connection, pruned: PruneTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    conn.execute(
        "INSERT INTO file_metadata (request_id, task, username, body, received_at, received_by)"
        " SELECT n::text, 'task', 'alice', '{}', %s, 'test' FROM generate_series(1, 5) n",
        (NOW - 40 * DAY,),
    )
    monkeypatch.setattr(pruning, "PATIENCE_S", -1.0)
    assert pruned("file_metadata") == 0
    assert gone_until(conn, "file_metadata") is None
    ticks = iter((0.0, 0.0, 1e9))
    monkeypatch.setattr(pruning, "monotonic", lambda: next(ticks))
    monkeypatch.setattr(pruning, "PATIENCE_S", 60.0)
    assert pruned("file_metadata") == 2
    monkeypatch.undo()
    assert pruned("file_metadata") == 3
    (found,) = horizons(conn)
    assert (found.table, found.part, found.rows, found.until) == ("file_metadata", "", 5, NOW - 30 * DAY)


def test_what_was_taken_in_is_forgotten_but_not_until_when_a_source_was_read(
    conn: Connection, pruned: PruneTable
) -> None:
    for name in ("a", "b", ""):
        conn.execute(
            "INSERT INTO intake_object (source, name, digest, taken_at, step_run) VALUES ('s', %s, 'd', %s, 1)",
            (name, NOW - 500 * DAY if name != "b" else NOW),
        )
    assert pruned("intake_object") == 1
    assert conn.execute("SELECT name FROM intake_object ORDER BY 1").fetchall() == [("",), ("b",)]


def test_minutes_and_the_record_of_hours(conn: Connection, step: int, pruned: PruneTable) -> None:
    for hour in (NOW - 20 * DAY, NOW - 1200 * DAY, NOW):
        roll_up_hour(conn, hour, step_run=step)
        conn.execute(
            "INSERT INTO statistic_minute SELECT (jsonb_populate_record(NULL::statistic_minute,"
            " to_jsonb(h) || jsonb_build_object('at', h.at + interval '1 min'))).* FROM statistic_hour h WHERE at = %s",
            (hour,),
        )
    assert pruned("statistic_minute") == 2
    assert pruned("rolled_hour") == 1
    assert count(conn, "rolled_hour") == 2


def test_leftovers_of_sensing_and_breakers(
    conn: Connection, add: Add, submitted: Plan, step: int, pruned: PruneTable
) -> None:
    add(record(1), record(2, source="T2_US_MIT"))
    jobs = submitted()
    apply_moves(conn, [Move(jobs[0].transfer_ids[0], jobs[0].sid, S.DONE)], step)
    for job in jobs:
        conn.execute(
            "INSERT INTO fts_report (sid, transfer_id, job_state, file_state, reason)"
            " SELECT %s, n, 'FINISHED', 'FINISHED', '' FROM generate_series(1, 3) n",
            (job.sid,),
        )
    conn.execute(
        "INSERT INTO link_window (source, destination, minute) VALUES ('a', 'b', %s), ('a', 'c', %s)",
        (NOW - 2 * DAY, NOW),
    )
    assert pruned("fts_report") == 3
    assert {sid for (sid,) in conn.execute("SELECT sid FROM fts_report")} == {jobs[1].sid}
    assert pruned("link_window") == 1
    assert horizons(conn) == [], "they have no horizon"
