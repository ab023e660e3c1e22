"""The evidence itself: what was done wrong on purpose must be seen."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from psycopg import Connection

from asyncstageout.sandbox.days import Day
from chaos.evidence import Copy, Findings, Lives, longest_idle_s, overlaps, read_copies, repeated
from chaos.ledger import Entry, Ledger
from fixtures.catalogue import Add, Plan, record

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def copy(job: str, start: float, end: float | None, *, arrived: bool = True, to: str = "davs://x/a") -> Copy:
    return Copy(job, to, at(start), None if end is None else at(end), arrived)


def line(event: str, seconds: float, job: str = "one", **facts: object) -> str:
    said = {"at": at(seconds).isoformat(), "event": event, "job_id": job, "destination": "davs://x/a"}
    return json.dumps(said | facts) + "\n"


@pytest.mark.parametrize(
    ("second", "is_wrong"),
    [
        (copy("two", 5, 15), True),
        (copy("two", 10, 15), False),
        (copy("one", 5, 15), False),
        (copy("two", 5, 15, to="davs://x/b"), False),
    ],
    ids=["at the same time", "one after the other", "the same job", "another destination"],
)
def test_two_jobs_at_one_destination(second: Copy, is_wrong: bool) -> None:
    assert bool(overlaps([copy("one", 0, 10), second])) == is_wrong


def test_a_copy_that_never_ended_overlaps_all_that_follow() -> None:
    assert overlaps([copy("one", 0, None, arrived=False), copy("two", 99, 100)])


@pytest.mark.parametrize(
    ("first", "lives", "is_wrong"),
    [
        (copy("one", 0, 10), Lives(), True),
        (copy("one", 0, 10, arrived=False), Lives(), False),
        (copy("one", 0, 10), Lives(emptied=[at(12)]), False),
        (copy("one", 0, 10), Lives(emptied=[at(30)]), True),
    ],
    ids=["again", "after a failure", "FTS had forgotten", "before FTS forgot"],
)
def test_what_had_arrived_is_not_copied_again(first: Copy, lives: Lives, is_wrong: bool) -> None:
    assert bool(repeated([first, copy("two", 20, 25)], lives)) == is_wrong


def test_the_log_of_an_fts_that_was_killed(tmp_path: Path) -> None:
    """Its last line is cut short, and what it was copying ended with it."""
    log = tmp_path / "transfers.jsonl"
    log.write_text(
        line("start", 0) + '{"at": "2026-11' + line("start", 20, "two") + line("end", 25, "two", ok=True)
    )
    first, second = read_copies(log, Lives(deaths=[at(10)]))
    assert (first.ended_at, first.arrived) == (at(10), False)
    assert (second.ended_at, second.arrived) == (at(25), True)


def test_the_longest_time_without_a_next_step(conn: Connection, add: Add, plan: Plan, step: int) -> None:
    """Six minutes between the plan and FTS; before and after that, seconds."""
    add(record(1, task="261122_alice_chaosX-analysis1"))
    conn.execute("ALTER TABLE transfer_event DISABLE TRIGGER USER")
    conn.execute("UPDATE transfer_event SET at = %s", (at(0),))
    (job,) = plan()
    for seconds, state in ((360, "SUBMITTED"), (1000, "DONE")):
        conn.execute(
            "INSERT INTO transfer_event (transfer_id, at, to_state, attempt, fts_job, step_run)"
            " VALUES (%s, %s, %s, 1, %s, %s)",
            (job.transfer_ids[0], at(seconds), state, job.sid, step),
        )
    conn.execute("UPDATE transfer_event SET at = %s WHERE to_state = 'ACQUIRED'", (at(3),))
    conn.execute("UPDATE fts_job SET job_id = sid, state = 'SUBMITTED', submitted_at = now()")
    destination = conn.execute(
        "SELECT (v.body->'protocols'->0->>'prefix') || destination_lfn FROM transfer JOIN site s ON name = destination"
        " JOIN storage v ON v.id = s.storage_id"
    ).fetchone()
    assert destination is not None
    copies = [copy(str(job.sid), 370, 998, to=destination[0])]
    day = Day(label="chaosX")
    assert longest_idle_s(conn, day, copies, Lives()) == pytest.approx(357)
    # Without word of an end at FTS, every second since the acceptance counts.
    assert longest_idle_s(conn, day, [], Lives()) == pytest.approx(640)


def test_the_table_is_red_for_each_promise_that_was_broken() -> None:
    broken = (
        Findings(1, 1, 0, 1.0), Findings(1, 0, 1, 1.0), Findings(1, 0, 0, 120.0), Findings(1, 0, 0, 1.0, ("x",)),
    )  # fmt: skip
    good = Ledger()
    good.entries.append(Entry("fault", 1, 1, Findings(1, 0, 0, 119.9)))
    assert good.is_right
    assert "All is well." in good.table()
    for findings in broken:
        bad = Ledger()
        bad.entries += [*good.entries, Entry("fault", 1, 1, findings)]
        assert not bad.is_right
        assert "NOT WELL." in bad.table()
    assert not Ledger().is_right
