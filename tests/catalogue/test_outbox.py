"""Messages are written with the events, claimed in order per file by one at a time, and leave on record."""

from __future__ import annotations

import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from enum import StrEnum

import psycopg
import pytest
from psycopg import Connection

from asyncstageout.catalogue import dead_letters, outbox
from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.dead_letters import Chosen, backlogs
from asyncstageout.catalogue.history import move_finished
from asyncstageout.catalogue.intake import add_transfers
from asyncstageout.catalogue.outbox import Claim, Refusal, due_subscriptions
from asyncstageout.catalogue.partitions import ensure_partitions
from asyncstageout.catalogue.subscriptions import (
    KindIsFixed,
    note_failing,
    put_subscription,
    remove_subscription,
    set_state,
    subscriptions,
)
from asyncstageout.catalogue.transitions import Move, apply_moves
from asyncstageout.core.failures import classify
from asyncstageout.core.requests import read_requests
from asyncstageout.core.states import TransferState
from asyncstageout.core.subscriptions import Kind, State, read_subscription
from fixtures.catalogue import Add, Plan, record
from fixtures.receivers import make_due, subscribe

S = TransferState
QUOTA = classify("TRANSFER [5] HTTP 507 : Insufficient Storage")
ALL_MOVES = ("transfer:NEW", "transfer:ACQUIRED", "transfer:SUBMITTED", "transfer:DONE", "transfer:FAILED")


def waiting(conn: Connection) -> list[tuple[str, int, str]]:
    return conn.execute(
        "SELECT s.name, o.transfer_id, o.event_kind || ':' || o.to_state FROM outbox o"
        " JOIN subscription s ON s.id = o.subscription ORDER BY o.id"
    ).fetchall()


def take(conn: Connection, subscription: int, step: int, at_most: int = 100, lease_s: float = 60) -> Claim:
    return outbox.claim(conn, subscription, at_most=at_most, lease_s=lease_s, step_run=step)


def deliveries(conn: Connection) -> list[tuple[str, str, str]]:
    return conn.execute(
        "SELECT from_state, to_state, reason FROM file_event WHERE kind = 'delivery' ORDER BY id"
    ).fetchall()


# --- written with the events ---


def test_each_subscriber_gets_the_events_that_it_wants(
    conn: Connection, add: Add, submitted: Plan, step: int
) -> None:
    subscribe(conn, "all", ALL_MOVES)
    subscribe(conn, "ends", ["transfer:DONE"])
    add(record(0))
    (job,) = submitted()
    apply_moves(conn, [Move(job.transfer_ids[0], job.sid, S.DONE)], step)
    number = job.transfer_ids[0]
    assert waiting(conn) == [
        *(("all", number, f"transfer:{state}") for state in ("NEW", "ACQUIRED", "SUBMITTED", "DONE")),
        ("ends", number, "transfer:DONE"),
    ]


SCOPES: dict[str, tuple[dict[str, str], int]] = {
    "all": ({}, 4),
    "user": ({"username": "alice"}, 2),
    "from": ({"source": "T2_US_MIT"}, 1),
    "to": ({"destination": "T2_CH_CERN"}, 4),
    "nothing": ({"username": "alice", "source": "T2_US_MIT"}, 0),
    "brought": ({"origin": "inbox"}, 1),
    "other": ({"origin": "other"}, 0),
}


def test_a_subscription_is_for_what_it_names(conn: Connection, add: Add, step: int) -> None:
    for name, (scope, _) in SCOPES.items():
        subscribe(conn, name, events=["transfer:NEW"], **scope)
    add(record(0), record(1), record(2, username="bob", source="T2_US_MIT"))
    good, _ = read_requests([record(3, username="carol")])
    add_transfers(conn, good, step, origin="inbox")
    counts = Counter(name for name, _, _ in waiting(conn))
    assert {name: counts[name] for name in SCOPES} == {name: count for name, (_, count) in SCOPES.items()}


def test_nothing_is_written_where_nobody_listens_or_rows_only_move(conn: Connection, add: Add) -> None:
    add(record(0))
    number = subscribe(conn, events=["transfer:NEW"])
    set_state(conn, "hook", State.OFF, reason=None, by="test")
    add(record(1))
    assert waiting(conn) == []
    set_state(conn, "hook", State.PAUSED, reason=None, by="test")
    add(record(2))
    assert len(waiting(conn)) == 1
    ensure_partitions(conn, datetime.now(UTC).date())
    assert len(waiting(conn)) == 1
    assert subscriptions(conn)[0].number == number


def test_a_change_that_is_taken_back_leaves_no_message(conn: Connection, add: Add) -> None:
    subscribe(conn, events=["transfer:NEW"])
    with conn.transaction(force_rollback=True):
        add(record(0))
        assert len(waiting(conn)) == 1
    assert waiting(conn) == []


def test_events_of_publication_name_their_block(conn: Connection, add: Add, step: int) -> None:
    number = subscribe(conn, events=["publication:DONE"])
    add(record(0))
    conn.execute(
        "INSERT INTO file_event (transfer_id, kind, from_state, to_state, subject, step_run)"
        " SELECT id, kind, 'NEW', 'DONE', '/A/B/USER#1', %s FROM transfer,"
        " unnest('{publication,cleaning,delivery}'::text[]) AS kind",
        (step,),
    )
    ((one,), _) = take(conn, number, step)
    assert (one.message.type, one.message.data.block) == ("publication.done", "/A/B/USER#1")
    assert one.message.id.startswith("publication-")


# --- claimed in order ---


def test_of_a_file_only_the_first_message_is_claimed(
    conn: Connection, add: Add, submitted: Plan, step: int
) -> None:
    number = subscribe(conn, events=ALL_MOVES)
    add(*(record(one) for one in range(3)))
    submitted()
    seen = []
    while (claim := take(conn, number, step)).messages:
        assert len({one.message.data.number for one in claim.messages}) == len(claim.messages) == 3
        assert take(conn, number, step).messages == []
        seen.append({one.message.type for one in claim.messages})
        assert outbox.told(conn, [one.number for one in claim.messages], step_run=step) == 3
    assert seen == [{"transfer.new"}, {"transfer.acquired"}, {"transfer.submitted"}]
    assert waiting(conn) == []
    assert {reason.split()[1] for _, _, reason in deliveries(conn)} == {"NEW", "ACQUIRED", "SUBMITTED"}


def test_a_message_says_what_is_known_of_its_file(
    conn: Connection, add: Add, submitted: Plan, step: int
) -> None:
    number = subscribe(conn, events=["transfer:SUBMITTED", "transfer:FAILED"])
    add(record(7, job_id="12"))
    (job,) = submitted()
    apply_moves(conn, [Move(job.transfer_ids[0], job.sid, S.FAILED, QUOTA)], step)
    move_finished(conn, keep_done_s=-1, keep_failed_s=-1)
    ((first,), _) = take(conn, number, step)
    row = conn.execute("SELECT job_id::text FROM fts_job").fetchone()
    assert row
    assert first.message.model_dump(exclude={"id", "timestamp"}) == {
        "type": "transfer.submitted", "state": "SUBMITTED", "reason": None,
        "data": {
            "number": job.transfer_ids[0], "request_id": record_id(conn), "task": "261122_alice_task",
            "username": "alice", "source": "T2_IT_Bari", "destination": "T2_CH_CERN",
            "source_lfn": "/store/temp/user/alice.abc/mc/out_7.root",
            "destination_lfn": "/store/user/alice/mc/out_7.root", "size_bytes": 1007, "adler32": "00000008",
            "file_type": "output", "job_id": "12", "job_retry_count": 0, "attempt": 1, "fts_job_id": row[0],
            "fts_server": "fts", "block": None,
            "destination_url": "davs://t2-ch-cern.sandbox.test:8443/store/user/alice/mc/out_7.root",
        },
    }  # fmt: skip
    outbox.told(conn, [first.number], step_run=step)
    ((last,), _) = take(conn, number, step)
    assert (last.message.state, last.message.reason) == ("FAILED", QUOTA.reason)
    assert (datetime.now(UTC) - last.message.timestamp) < timedelta(minutes=1)


def record_id(conn: Connection) -> str:
    row = conn.execute("SELECT request_id FROM transfer_history").fetchone()
    assert row
    return str(row[0])


def test_a_lease_that_is_over_is_anybodys(conn: Connection, add: Add, step: int) -> None:
    number = subscribe(conn, events=["transfer:NEW"])
    add(record(0))
    (dead,) = take(conn, number, step).messages
    assert take(conn, number, step + 1).messages == []
    make_due(conn)
    (one,) = take(conn, number, step + 1).messages
    assert one.message.id == dead.message.id
    assert outbox.hold(conn, [one.number], lease_s=60, step_run=step) == set()
    assert outbox.told(conn, [one.number], step_run=step) == 0, "it is somebody else's"
    outbox.give_back(conn, [one.number], step_run=step)
    assert outbox.hold(conn, [one.number], lease_s=60, step_run=step + 1) == {one.number}


def test_two_at_once_never_claim_one_message(
    conn: Connection, catalogue_url: str, add: Add, submitted: Plan, step: int
) -> None:
    number = subscribe(conn, events=ALL_MOVES)
    add(*(record(one) for one in range(60)))
    submitted()

    def claim_and_tell(step_run: int) -> list[tuple[int, str]]:
        seen = []
        with connect(catalogue_url) as own:
            while (claim := take(own, number, step_run, at_most=7)) and (claim.messages or claim.blocked):
                outbox.told(own, [one.number for one in claim.messages], step_run=step_run)
                seen += [(one.message.data.number, one.message.state) for one in claim.messages]
                make_due(own) if not claim.messages else None
        return seen

    with ThreadPoolExecutor(2) as pool:
        seen = [one for part in pool.map(claim_and_tell, (step, step + 1)) for one in part]
    make_due(conn)
    seen += claim_and_tell(step)
    assert len(seen) == len(set(seen)) == 180
    assert waiting(conn) == []


def test_nothing_is_claimed_for_who_is_not_active(conn: Connection, add: Add, step: int) -> None:
    number = subscribe(conn, events=["transfer:NEW"])
    add(record(0))
    assert due_subscriptions(conn) == ["hook"]
    set_state(conn, "hook", State.PAUSED, reason="moves house", by="test")
    assert (due_subscriptions(conn), take(conn, number, step).messages) == ([], [])
    set_state(conn, "hook", State.ACTIVE, reason=None, by="test")
    note_failing(conn, number, "down", wait_s=60)
    assert due_subscriptions(conn) == []
    make_due(conn)
    assert due_subscriptions(conn) == ["hook"]


# --- dead letters ---


@pytest.fixture
def dead(conn: Connection, add: Add, submitted: Plan, step: int) -> list[int]:
    """Two dead letters with two later messages behind each."""
    number = subscribe(conn, events=ALL_MOVES)
    add(record(0), record(1, username="bob"))
    submitted()
    claimed = take(conn, number, step).messages
    problems = ["no scope user.alice", "no scope user.bob"]
    refusals = [Refusal(one.number, why, None) for one, why in zip(claimed, problems, strict=True)]
    assert outbox.refused(conn, refusals, step_run=step) == (0, 2)
    return [one.number for one in claimed]


def test_a_dead_letter_holds_the_later_ones_of_its_file_back(
    conn: Connection, dead: list[int], step: int
) -> None:
    (view,) = subscriptions(conn)
    make_due(conn)
    claim = take(conn, view.number, step)
    assert (claim.messages, claim.blocked) == ([], 4)
    assert take(conn, view.number, step).blocked == 0, "not looked at again at once"
    assert deliveries(conn)[0][:2] == ("PENDING", "DEAD")
    first, second = dead_letters.dead_letters(conn, Chosen(), limit=10)
    assert (first.username, first.problem, first.holds_back) == ("alice", "no scope user.alice", 2)
    assert (second.number, second.tries) == (dead[1], 1)
    (backlog,) = backlogs(conn)
    assert (backlog.pending, backlog.dead) == (4, 2)


CHOSEN = (
    (Chosen(), 2),
    (Chosen(subscription="hook"), 2),
    (Chosen(subscription="other"), 0),
    (Chosen(username="bob"), 1),
    (Chosen(problem="user.alice"), 1),
    (Chosen(problem="user%"), 0),
    (Chosen(dead_before=datetime.now(UTC) - timedelta(hours=1)), 0),
    (Chosen(numbers=[]), 0),
)


def test_what_is_chosen_is_replayed(conn: Connection, dead: list[int], step: int) -> None:
    for chosen, count in CHOSEN:
        with conn.transaction(force_rollback=True):
            assert dead_letters.count_dead(conn, chosen) == count, chosen
            assert dead_letters.replay(conn, chosen, comment="mended", step_run=step) == count
            assert dead_letters.count_dead(conn, Chosen()) == 2 - count
            claimed = take(conn, subscriptions(conn)[0].number, step).messages
            assert [one.tries for one in claimed] == [0] * count
            assert [(start, end) for start, end, _ in deliveries(conn)[2:]] == [("DEAD", "PENDING")] * count


def test_what_is_discarded_sets_the_later_ones_free(conn: Connection, dead: list[int], step: int) -> None:
    number = subscriptions(conn)[0].number
    assert take(conn, number, step).messages == []
    assert dead_letters.discard(conn, Chosen(numbers=dead[:1]), comment="", step_run=step) == 1
    (one,) = take(conn, number, step).messages
    assert (one.message.state, one.message.data.username) == ("ACQUIRED", "alice")
    start, end, reason = deliveries(conn)[-1]
    assert (start, end, reason.split()[1]) == ("DEAD", "DISCARDED", "NEW")


# --- the subscriptions themselves ---


def test_every_change_of_a_subscription_is_on_record(conn: Connection, step: int) -> None:
    wanted = read_subscription({"name": "crab", "kind": "crab", "conn_id": "crab"})
    assert put_subscription(conn, wanted, "maria")
    assert not put_subscription(conn, wanted, "maria")
    put_subscription(conn, wanted.model_copy(update={"username": "alice"}), "paolo")
    with pytest.raises(KindIsFixed, match="crab is of kind crab"):
        put_subscription(conn, read_subscription({"name": "crab", "kind": "rucio", "conn_id": "r"}), "x")
    assert set_state(conn, "crab", State.PAUSED, reason="r", by="anna")
    assert remove_subscription(conn, "crab", by="otto", step_run=step) == 0
    assert remove_subscription(conn, "crab", by="otto", step_run=step) is None
    actors = conn.execute("SELECT actor FROM config_change WHERE object = 'subscription' ORDER BY id")
    assert [actor for (actor,) in actors] == ["maria", "paolo", "anna", "otto"]


def test_a_removal_discards_what_waits_on_record(conn: Connection, dead: list[int], step: int) -> None:
    assert remove_subscription(conn, "hook", by="otto", step_run=step) == 6
    assert waiting(conn) == []
    ends = [(start, end) for start, end, _ in deliveries(conn)[2:]]
    assert sorted(ends) == [("DEAD", "DISCARDED")] * 2 + [("PENDING", "DISCARDED")] * 4


def test_a_removal_waits_for_events_that_reckon_with_it(
    conn: Connection, catalogue_url: str, add: Add, step: int
) -> None:
    subscribe(conn, events=["transfer:NEW"])
    with connect(catalogue_url) as other, ThreadPoolExecutor(1) as pool:
        with conn.transaction():
            add(record(0))
            removal = pool.submit(remove_subscription, other, "hook", by="otto", step_run=step)
            with pytest.raises(TimeoutError):
                removal.result(timeout=0.3)
        assert removal.result(timeout=20) == 1
    assert conn.execute("SELECT count(*) FROM outbox").fetchone() == (0,)


def test_what_is_delivered_waits_for_no_removal(
    conn: Connection, catalogue_url: str, add: Add, step: int
) -> None:
    """Else the two could wait for each other: a removal waits for messages."""
    number = subscribe(conn, events=["transfer:NEW"])
    subscribe(conn, "other", events=["publication:DONE"])
    add(record(0))
    (one,) = take(conn, number, step).messages
    with connect(catalogue_url) as other, other.transaction(force_rollback=True):
        other.execute("DELETE FROM subscription")
        conn.execute("SET statement_timeout = '5 s'")
        assert outbox.told(conn, [one.number], step_run=step) == 1


@pytest.mark.parametrize(("column", "words"), [("kind", Kind), ("state", State)])
def test_words_of_the_database_are_those_of_the_core(
    conn: Connection, column: str, words: type[StrEnum]
) -> None:
    row = conn.execute(
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = %s",
        (f"subscription_{column}_check",),
    ).fetchone()
    assert row
    assert set(re.findall("'([a-z]+)'", row[0])) == set(words)


def test_an_unknown_site_is_said(conn: Connection) -> None:
    with pytest.raises(ValueError, match="T2_FR_No"):
        subscribe(conn, source="T2_FR_No")
    with pytest.raises(psycopg.errors.CheckViolation):
        conn.execute(
            "INSERT INTO outbox (subscription, transfer_id, event_kind, event_id, to_state, at)"
            " VALUES (1, 1, 'cleaning', 1, 'DONE', now())"
        )
