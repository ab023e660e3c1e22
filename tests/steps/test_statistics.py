"""The step that counts: which hours, what it says, and what it refuses."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from psycopg import Connection

from asyncstageout.catalogue.retention import note_gone
from asyncstageout.catalogue.statistics import HOUR
from asyncstageout.catalogue.transitions import Move, apply_moves
from asyncstageout.core.failures import classify
from asyncstageout.core.states import TransferState
from asyncstageout.steps.statistics import EventsGone, roll_up, say_what_happened
from fixtures.catalogue import Add, Plan, record
from fixtures.past import happened_at

S = TransferState
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
NOW = NOON + 3 * HOUR + timedelta(minutes=20)


@pytest.fixture
def lived(conn: Connection, add: Add, submitted: Plan, step: int) -> Connection:
    """12:00 to 12:20: one of two files is done, the other failed."""
    add(record(1), record(2))
    (job,) = submitted()
    moves = [Move(1, job.sid, S.DONE), Move(2, job.sid, S.FAILED, classify("HTTP 507"))]
    apply_moves(conn, moves, step)
    happened_at(conn, NOON, spread_s=180)
    return conn


def hours(conn: Connection) -> list[int]:
    return [hour.hour for (hour,) in conn.execute("SELECT hour FROM rolled_hour ORDER BY 1")]


def test_the_hours_of_a_time_that_are_over(lived: Connection, step: int) -> None:
    said = roll_up(lived, NOON + timedelta(minutes=40), NOW + HOUR, now=NOW, step_run=step)
    assert said.sentence == "Counted 3 hours: 6 events"
    assert hours(lived) == [12, 13, 14]
    assert roll_up(lived, NOW - HOUR, NOW, now=NOW - HOUR, step_run=step).counts["hours"] == 0
    again = roll_up(lived, NOON, NOON + HOUR, now=NOW, step_run=step)
    assert again.sentence == "Counted 1 hour: 6 events"
    assert again.counts == {"hours": 1, "earlier_hours": 0, "events": 6, "days": 0}


def test_a_run_catches_up_with_what_was_missed(lived: Connection, step: int) -> None:
    roll_up(lived, NOON - HOUR, NOON, now=NOW, step_run=step)
    said = roll_up(lived, NOON + 2 * HOUR, NOON + 3 * HOUR, now=NOW, step_run=step, catches_up=True)
    assert said.sentence == "Counted 1 hour, and 2 before that were not complete: 6 events"
    assert hours(lived) == [11, 12, 13, 14]


def test_times_of_other_zones(lived: Connection, step: int) -> None:
    india = datetime.fromisoformat("2026-11-22T17:30:00+05:30")
    roll_up(lived, india, india + HOUR, now=NOW, step_run=step)
    assert hours(lived) == [12]


def test_what_is_gone_is_never_counted_anew(lived: Connection, step: int) -> None:
    roll_up(lived, NOON, NOON + HOUR, now=NOW, step_run=step)
    before = lived.execute("SELECT * FROM statistic_hour ORDER BY kind, subject").fetchall()
    note_gone(lived, "file_event", NOON + HOUR, part="file_event_20261122", rows=0, step_run=step)
    with pytest.raises(EventsGone, match="before 2026-11-22 13:00 UTC are gone"):
        roll_up(lived, NOON, NOON + HOUR, now=NOW, step_run=step)
    assert lived.execute("SELECT * FROM statistic_hour ORDER BY kind, subject").fetchall() == before
    said = roll_up(lived, NOON, NOON + 2 * HOUR, now=NOW, step_run=step)
    assert said.sentence == "Counted 1 hour: 0 events; the events of 1 more are gone"


def test_what_happened_in_a_sentence(lived: Connection, step: int) -> None:
    assert say_what_happened(lived, NOON, NOON + HOUR).sentence == "0 files arrived, 0 done (0 B)"
    roll_up(lived, NOON, NOON + HOUR, now=NOW, step_run=step)
    said = say_what_happened(lived, NOON, NOON + HOUR)
    assert said.sentence == (
        "2 files arrived, 1 done (1.0 kB), 1 failed for good; 50.0% of the attempts went well;"
        " half of the files were done within 1,010 s"
    )
    assert said.counts["attempts_failed"] == 1
