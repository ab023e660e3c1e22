"""What is read is what happened, from whatever pieces it is put together."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from psycopg import Connection

from asyncstageout.catalogue.measures import WITHOUT_DELAYS
from asyncstageout.catalogue.rollups import make_days, roll_up_hour, roll_up_open
from asyncstageout.catalogue.statistics import (
    DAY,
    HOUR,
    MINUTE,
    Kind,
    Of,
    Period,
    by_subject,
    counted_until,
    failures_by_subject,
    most_frequent_failures,
    over_time,
    subjects_seen,
    totals,
)
from asyncstageout.catalogue.transitions import Move, apply_moves
from asyncstageout.core.delays import RELATIVE_ERROR
from asyncstageout.core.failures import classify
from asyncstageout.core.states import TransferState
from fixtures.catalogue import Add, Plan, record
from fixtures.past import happened_at

S = TransferState
MIDNIGHT = datetime(2026, 11, 20, tzinfo=UTC)
QUOTA = classify("TRANSFER [5] HTTP 507 : Insufficient Storage")
GONE = classify("SOURCE [2] No such file")
NOTHING = (0, 0, 0, 0)


@pytest.fixture
def lived(conn: Connection, add: Add, submitted: Plan, step: int) -> Connection:
    """22:00: four files of alice and two of bob; one of alice's fails at 23:10, all else is done by 03:40."""
    add(
        *(record(number) for number in range(4)),
        *(record(n, username="bob", source="T2_US_MIT") for n in (8, 9)),
    )
    jobs = {job.transfer_ids[0]: job for job in submitted()}
    moves = [
        Move(number, job.sid, S.DONE, fts_finished_at=datetime.now(UTC))
        for job in jobs.values()
        for number in job.transfer_ids
    ]
    moves[0] = Move(moves[0].transfer_id, moves[0].fts_job, S.FAILED, QUOTA)
    for move in moves:
        apply_moves(conn, [move], step)
    happened_at(conn, MIDNIGHT - 2 * HOUR, spread_s=840)
    return conn


def numbers(row: dict[str, Any]) -> tuple[int, ...]:
    return tuple(row[name] for name in ("arrived", "accepted", "done", "failed"))


def count_until(conn: Connection, until: datetime, step: int) -> None:
    """Count as the DAG does up to a moment: whole hours, days, and the minutes since the last hour."""
    hour = MIDNIGHT - 2 * HOUR
    while hour + HOUR <= until:
        roll_up_hour(conn, hour, step_run=step)
        hour += HOUR
    make_days(conn)
    while roll_up_open(conn, until + MINUTE, step_run=step):
        pass


LATER = MIDNIGHT + 4 * HOUR


@pytest.mark.parametrize(
    "until", [MIDNIGHT - HOUR, MIDNIGHT - 20 * MINUTE, MIDNIGHT, MIDNIGHT + 50 * MINUTE, LATER]
)
def test_a_period_is_put_together_from_what_is_counted(lived: Connection, step: int, until: datetime) -> None:
    """Wherever counting is, the times before it are answered in full, and with the last minutes that are not counted."""
    count_until(lived, until, step)
    counted = counted_until(lived)
    assert counted is not None
    end = min(counted + 10 * MINUTE, LATER)
    expected = lived.execute(
        "SELECT count(*) FILTER (WHERE from_state IS NULL), count(*) FILTER (WHERE to_state = 'SUBMITTED'),"
        " count(*) FILTER (WHERE to_state = 'DONE'), count(*) FILTER (WHERE to_state = 'FAILED')"
        " FROM transfer_event WHERE at < %s",
        (end,),
    ).fetchone()
    found = totals(lived, Period.covering(MIDNIGHT - 5 * HOUR, end))
    assert numbers(found) == expected
    pieces = over_time(lived, Period.covering(MIDNIGHT - 5 * HOUR, end, HOUR))
    assert tuple(map(sum, zip(*map(numbers, pieces), strict=True))) == expected
    minutes = over_time(lived, Period.covering(MIDNIGHT - 5 * HOUR, end, 5 * MINUTE))
    assert tuple(map(sum, zip(*map(numbers, minutes), strict=True))) == expected
    links = by_subject(lived, Period.covering(MIDNIGHT - 5 * HOUR, end, kind=Kind.LINK), Of(Kind.LINK))
    assert tuple(map(sum, zip(*map(numbers, links), strict=True))) == expected


def test_a_period_that_is_over_leaves_out_what_came_later(lived: Connection, step: int) -> None:
    count_until(lived, LATER, step)
    assert numbers(totals(lived, Period.covering(MIDNIGHT - 2 * HOUR, MIDNIGHT - HOUR))) == (5, 0, 0, 0)
    before = Period.covering(MIDNIGHT - 9 * HOUR, MIDNIGHT - 3 * HOUR)
    assert numbers(totals(lived, before)) == NOTHING
    assert totals(lived, before)["efficiency"] is None
    assert over_time(lived, before) == []


def test_days_stand_for_their_hours(lived: Connection, step: int) -> None:
    for number in range(-3, 4):
        roll_up_hour(lived, MIDNIGHT + number * HOUR, step_run=step)
    period = Period.covering(MIDNIGHT - DAY - 5 * HOUR, LATER)
    before = totals(lived, period)
    assert make_days(lived) == [MIDNIGHT - DAY]
    lived.execute("DELETE FROM statistic_hour WHERE at < %s", (MIDNIGHT,))
    assert totals(lived, period) == before
    days = over_time(lived, Period.covering(MIDNIGHT - 2 * DAY, LATER, DAY))
    assert [row["at"] for row in days] == [MIDNIGHT - DAY, MIDNIGHT]
    weeks = over_time(lived, Period.covering(MIDNIGHT - 2 * DAY, LATER, 7 * DAY))
    assert [row["at"] for row in weeks] == [datetime(2026, 11, 16, tzinfo=UTC)]
    assert numbers(weeks[0]) == numbers(before)


def test_each_link_user_site_and_task_has_its_own(lived: Connection, step: int) -> None:
    count_until(lived, LATER, step)
    period = Period.covering(MIDNIGHT - 2 * HOUR, LATER)
    links = by_subject(lived, period, Of(Kind.LINK), columns=(*WITHOUT_DELAYS, "done_after"))
    assert [(row["subject"], row["other"], *numbers(row)) for row in links] == [
        ("T2_IT_Bari", "T2_CH_CERN", 4, 4, 3, 1), ("T2_US_MIT", "T2_CH_CERN", 2, 2, 2, 0),
    ]  # fmt: skip
    assert links[0]["failures"] == {"quota": 1}
    assert links[0]["efficiency"] == 0.75
    assert "in_fts" not in links[0]
    worst = by_subject(lived, period, Of(Kind.USER), order="failures", limit=1)
    assert [row["subject"] for row in worst] == ["alice"]
    (bobs,) = by_subject(lived, period, Of(Kind.TASK, usernames=["bob"]))
    assert (bobs["subject"], bobs["other"]) == ("261122_bob_task", "bob")
    (cern,) = by_subject(lived, period, Of(Kind.DESTINATION))
    assert numbers(cern) == numbers(totals(lived, period))
    one_link = Of(Kind.LINK, "T2_US_MIT", "T2_CH_CERN")
    assert numbers(totals(lived, period, one_link)) == (2, 2, 2, 0)
    assert numbers(totals(lived, period, Of(Kind.USER, usernames=["bob"]))) == (2, 2, 2, 0)
    assert totals(lived, period, Of(Kind.USER, usernames=[]))["done"] == 0


@pytest.mark.parametrize("until", [MIDNIGHT - 2 * HOUR, LATER])
def test_who_has_most_failures_and_why(
    conn: Connection, add: Add, submitted: Plan, step: int, until: datetime
) -> None:
    """What is counted, and the last minutes that are not: three attempts of alice's, one of bob's, none of carol's."""
    users = {1: "alice", 2: "alice", 3: "alice", 4: "bob", 5: "carol"}
    add(*(record(number, username=username) for number, username in users.items()))
    jobs = {number: job.sid for job in submitted() for number in job.transfer_ids}
    for number, reason in zip(sorted(jobs), (QUOTA, GONE, QUOTA, GONE), strict=False):
        apply_moves(conn, [Move(number, jobs[number], S.FAILED, reason)], step)
    happened_at(conn, MIDNIGHT - 2 * HOUR)
    count_until(conn, until, step)
    period = Period.covering(MIDNIGHT - 2 * HOUR, max(until, MIDNIGHT - 2 * HOUR + 10 * MINUTE))
    found = failures_by_subject(conn, period, Of(Kind.USER))
    assert [(row["subject"], row["failed_attempts"]) for row in found] == [("alice", 3), ("bob", 1)]
    assert [row["subject"] for row in failures_by_subject(conn, period, Of(Kind.USER), limit=1)] == ["alice"]
    gone = failures_by_subject(conn, period, Of(Kind.USER), category="source-missing")
    assert [(row["subject"], row["failed_attempts"]) for row in gone] == [("alice", 1), ("bob", 1)]
    (link,) = failures_by_subject(conn, period, Of(Kind.LINK))
    assert (link["subject"], link["other"], link["failed_attempts"]) == ("T2_IT_Bari", "T2_CH_CERN", 4)
    why = most_frequent_failures(conn, period, Kind.USER, [("alice", ""), ("carol", "")])
    assert why == {("alice", ""): "quota"}


def test_quantiles_are_of_the_whole_period(lived: Connection, step: int) -> None:
    count_until(lived, LATER, step)
    found = totals(lived, Period.covering(MIDNIGHT - 2 * HOUR, LATER))
    (true_s,) = lived.execute(
        "SELECT percentile_disc(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM e.at - t.created_at))"
        " FROM transfer_event e JOIN transfer t ON t.id = e.transfer_id WHERE e.to_state = 'DONE'"
    ).fetchone() or (0,)
    assert found["done_after"]["p50_s"] == pytest.approx(float(true_s), rel=RELATIVE_ERROR)
    assert set(found["accepted_after"]) == {"p50_s", "p95_s", "p99_s"}


def test_who_had_to_do_with_it(lived: Connection, step: int) -> None:
    count_until(lived, LATER, step)
    assert subjects_seen(lived, Period.covering(MIDNIGHT - 2 * HOUR, LATER)) == {
        "link": 2, "source": 2, "destination": 1, "user": 2, "task": 2,
    }  # fmt: skip
    assert set(subjects_seen(lived, Period.covering(LATER, LATER + HOUR)).values()) == {0}


def test_what_nobody_has_counted_for_long_is_missing_and_the_end_is_told(
    lived: Connection, step: int
) -> None:
    assert counted_until(lived) is None
    assert numbers(totals(lived, Period.covering(MIDNIGHT - 2 * HOUR, LATER))) == NOTHING
    roll_up_hour(lived, MIDNIGHT - 2 * HOUR, step_run=step)
    assert counted_until(lived) == MIDNIGHT - HOUR
    assert numbers(totals(lived, Period.covering(MIDNIGHT - 2 * HOUR, LATER))) == (5, 0, 0, 0)
    nearly = MIDNIGHT - HOUR + 14 * MINUTE
    assert numbers(totals(lived, Period.covering(MIDNIGHT - 2 * HOUR, nearly))) == (6, 0, 0, 0)


def test_periods_begin_where_something_is_counted() -> None:
    start, end = datetime(2026, 11, 20, 10, 47, 31, tzinfo=UTC), datetime(2026, 11, 21, 3, 2, tzinfo=UTC)
    assert Period.covering(start, end).start == start.replace(minute=0, second=0)
    assert Period.covering(start, end, MINUTE).start == start.replace(second=0)
    assert Period.covering(start, end, 15 * MINUTE).start == start.replace(minute=45, second=0)
    assert Period.covering(start, end, MINUTE, kind=Kind.LINK).width == HOUR
    assert Period.covering(start, end, DAY).start == MIDNIGHT
    assert Period.covering(start, end, 7 * DAY).start == datetime(2026, 11, 16, tzinfo=UTC)
