"""Failed attempts are found from each side, those of others are not, and never by reading all events."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from psycopg import Connection

from asyncstageout.catalogue import failed_attempts as module
from asyncstageout.catalogue.failed_attempts import Wanted, failed_attempts
from asyncstageout.catalogue.history import move_finished
from asyncstageout.catalogue.transitions import Move, apply_moves
from asyncstageout.core.failures import classify
from asyncstageout.core.states import TransferState
from fixtures.catalogue import Add, Plan, record

S = TransferState
NO_ROOM = classify("TRANSFER [5] copy HTTP 507 : Insufficient Storage")
GONE = classify("SOURCE [2] No such file")
DOWN = classify("DESTINATION [112] Host is down")
SINCE = datetime.now(UTC) - timedelta(days=1)
MIT = {"source": "T2_US_MIT"}


@pytest.fixture
def failed(conn: Connection, add: Add, submitted: Plan, step: int) -> None:
    """Files 1 (alice) and 2 (bob) fail for good, 3 (bob, from MIT) goes again, 4 arrives at its second attempt."""
    add(
        record(1),
        record(2, username="bob"),
        record(3, username="bob", **MIT),
        record(4, username="bob"),
        record(5),
    )
    moves = {
        1: (S.FAILED, NO_ROOM),
        2: (S.FAILED, GONE),
        3: (S.RETRY, DOWN),
        4: (S.RETRY, NO_ROOM),
        5: (S.DONE,),
    }
    jobs = {number: job.sid for job in submitted() for number in job.transfer_ids}
    apply_moves(conn, [Move(number, jobs[number], *moves[number]) for number in jobs], step)
    conn.execute("UPDATE transfer SET due_at = now() + interval '1 h' WHERE id = 3")
    (again,) = submitted()
    apply_moves(conn, [Move(4, again.sid, S.DONE)], step)


Found = Callable[..., set[tuple[int, str, str]]]


@pytest.fixture
def found(conn: Connection, failed: None) -> Found:
    def found(since: datetime = SINCE, **wanted: Any) -> set[tuple[int, str, str]]:
        return {
            (one.file, one.state, one.category)
            for one in failed_attempts(conn, Wanted(since, **wanted)).attempts
        }

    return found


def test_every_attempt_is_seen_also_of_what_arrived_since(found: Found) -> None:
    everything = {
        (1, "FAILED", "quota"),
        (2, "FAILED", "source-missing"),
        (3, "RETRY", "destination"),
        (4, "DONE", "quota"),
    }
    assert found() == everything
    assert found(category="quota") == {(1, "FAILED", "quota"), (4, "DONE", "quota")}
    assert found(site="T2_US_MIT") == {(3, "RETRY", "destination")}
    assert found(site="T2_CH_CERN") == everything
    assert found(source="T2_IT_Bari") == {one for one in everything if one[0] != 3}
    assert found(since=datetime.now(UTC) + timedelta(hours=1)) == set()


def test_of_users_and_tasks_the_files_that_failed_last(found: Found) -> None:
    bobs = {(2, "FAILED", "source-missing"), (3, "RETRY", "destination")}
    assert found(usernames=["bob"]) == found(task="261122_bob_task") == bobs
    assert found(usernames=["alice"]) == {(1, "FAILED", "quota")}
    assert found(usernames=["alice"], task="261122_bob_task") == set()
    assert found(usernames=["bob"], source="T2_US_MIT") == {(3, "RETRY", "destination")}
    assert found(usernames=["bob"], category="quota") == set()
    assert found(usernames=[]) == set()


def test_of_a_link_those_of_its_last_jobs(found: Found) -> None:
    link = {"source": "T2_IT_Bari", "destination": "T2_CH_CERN"}
    assert found(**link) == {(1, "FAILED", "quota"), (2, "FAILED", "source-missing")}
    assert found(**link, category="quota") == {(1, "FAILED", "quota")}


def test_what_is_past_is_found_too(conn: Connection, found: Found) -> None:
    everything, tasks = found(), found(task="261122_alice_task")
    conn.execute("UPDATE transfer SET ended_at = now() + interval '1 min' WHERE ended_at IS NOT NULL")
    moved = move_finished(conn, keep_done_s=-3600, keep_failed_s=-3600)
    assert moved == 4
    assert found() == everything
    assert found(task="261122_alice_task") == tasks


def test_there_is_an_end_to_looking(conn: Connection, failed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EACH", 1)
    look = failed_attempts(conn, Wanted(SINCE))
    assert sorted(one.category for one in look.attempts) == ["destination", "quota", "source-missing"]
    assert (look.each, look.words) == (1, "Of the latest 1 failed attempts of each category.")


def test_events_that_did_not_fail_are_not_read(conn: Connection, failed: None) -> None:
    conn.execute("SET enable_seqscan = off")
    plan = conn.execute(
        "EXPLAIN SELECT transfer_id FROM transfer_event WHERE failure_category = 'quota' AND at >= %s"
        " ORDER BY at DESC LIMIT 10", (SINCE,),
    ).fetchall()  # fmt: skip
    text = "\n".join(line for (line,) in plan)
    assert "failure_category_at_idx" in text, text
    assert "Sort" not in text, text
