"""Every message reaches its receiver at least once and in order per file, whatever fails on the way."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import Connection

from asyncstageout.catalogue.audit import audit
from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.dead_letters import Chosen, backlogs, replay
from asyncstageout.catalogue.outbox import due_subscriptions
from asyncstageout.catalogue.step_runs import Actor, start_step
from asyncstageout.catalogue.subscriptions import set_state, subscriptions
from asyncstageout.catalogue.transitions import Move, apply_moves
from asyncstageout.clients.receivers import (
    ContentRefused,
    Faulty,
    Gone,
    NotLetIn,
    ReceiverError,
    Refusals,
)
from asyncstageout.core.deliveries import MAX_TRIES, Message
from asyncstageout.core.states import TransferState
from asyncstageout.core.subscriptions import State
from asyncstageout.steps.deliver import DeliveryNeedsAPerson, NoSuchSubscription, deliver
from asyncstageout.steps.recording import Summary
from fixtures.catalogue import Add, Plan, file_ids, record
from fixtures.receivers import DOWN, Listener, make_due, refusing, subscribe

S = TransferState
MOVES = ("transfer:NEW", "transfer:ACQUIRED", "transfer:SUBMITTED", "transfer:DONE")

Deliver = Callable[..., Summary]


@pytest.fixture
def told(conn: Connection, step: int) -> Deliver:
    def run(listener: Listener, name: str = "hook", **options: object) -> Summary:
        return deliver(conn, name, lambda _view: listener, step_run=step, **options)  # type: ignore[arg-type]

    return run


@pytest.fixture
def lived(conn: Connection, add: Add, submitted: Plan, step: int) -> list[int]:
    """Eight files with four messages each."""
    subscribe(conn, events=MOVES)
    add(*(record(number) for number in range(8)))
    for job in submitted():
        apply_moves(conn, [Move(number, job.sid, S.DONE) for number in job.transfer_ids], step)
    return file_ids(conn)


def assert_in_order(heard: Sequence[tuple[int, str]], files: Sequence[int]) -> None:
    """Each file's messages came in order; one that came again came right after itself."""
    for number in files:
        types = [kind for one, kind in heard if one == number]
        once = [kind for at, kind in enumerate(types) if at == 0 or types[at - 1] != kind]
        assert once == [f"transfer.{state}" for state in ("new", "acquired", "submitted", "done")]


def pending(conn: Connection) -> int:
    return backlogs(conn)[0].pending


def assert_sound(conn: Connection) -> None:
    assert [one for one in audit(conn) if one.violations] == []


def test_all_is_told_once_in_order(conn: Connection, lived: list[int], told: Deliver) -> None:
    listener = Listener(batch=5)
    summary = told(listener)
    assert summary.counts == {"delivered": 32, "refused": 0, "dead": 0, "stopped": 0}
    assert summary.sentence == "hook: 32 messages delivered"
    assert len(listener.heard) == 32
    assert max(map(len, listener.tried)) <= 5
    assert_in_order(listener.heard, lived)
    assert_sound(conn)
    assert told(listener).counts["delivered"] == 0


def test_a_run_ends_in_time_and_the_next_goes_on(conn: Connection, lived: list[int], told: Deliver) -> None:
    listener = Listener(batch=5)
    assert told(listener, longest_s=0).counts["delivered"] == 5
    assert due_subscriptions(conn) == ["hook"]
    told(listener)
    assert_in_order(listener.heard, lived)


@pytest.mark.parametrize("error", [ContentRefused("there", "POST /", 422), Faulty("there", "POST /", 500)])
def test_a_bad_message_is_found_and_holds_up_only_its_own_file(
    conn: Connection, lived: list[int], told: Deliver, error: ReceiverError
) -> None:
    bad = lived[3]

    def judge(messages: Sequence[Message]) -> Refusals:
        if any(one.data.number == bad for one in messages):
            raise error
        return {}

    listener = Listener(judge=judge)
    assert told(listener).counts == {"delivered": 28, "refused": 1, "dead": 0, "stopped": 0}
    assert pending(conn) == 4
    assert len(listener.tried) <= 4 + 7, "about 2 log2 n calls more"
    assert subscriptions(conn)[0].health is None
    listener.judge = lambda _messages: {}
    make_due(conn)
    told(listener)
    assert_in_order(listener.heard, lived)


def test_what_a_receiver_names_is_not_told_and_the_rest_is(
    conn: Connection, lived: list[int], told: Deliver
) -> None:
    listener = Listener(judge=lambda messages: {messages[0].id: "not\0this one"})
    assert told(listener, longest_s=0).counts == {"delivered": 7, "refused": 1, "dead": 0, "stopped": 0}
    assert conn.execute("SELECT problem, tries FROM outbox WHERE tries > 0").fetchall() == [
        ("notthis one", 1)
    ]
    assert len(listener.tried) == 1


def test_a_receiver_that_is_down_costs_no_try(conn: Connection, lived: list[int], told: Deliver) -> None:
    listener = Listener(judge=lambda _messages: (_ for _ in ()).throw(DOWN))
    summary = told(listener)
    assert summary.counts == {"delivered": 0, "refused": 0, "dead": 0, "stopped": 1}
    assert "then it took nothing: there: POST / failed" in summary.sentence
    assert len(listener.tried) == 1
    assert due_subscriptions(conn) == []
    (view,) = subscriptions(conn)
    assert view.health is not None
    first = view.health.retry_at - view.health.failing_since
    for _ in range(9):
        make_due(conn)
        told(listener)
    assert [len(one) for one in listener.tried[1:]] == [1] * 9, "it is not asked with a whole batch"
    (view,) = subscriptions(conn)
    assert view.health is not None
    assert view.health.failures == 10
    assert first.total_seconds() < 20
    row = conn.execute("SELECT retry_at - now() > interval '11 min' FROM subscription_health").fetchone()
    assert row == (True,)
    assert conn.execute("SELECT sum(tries) FROM outbox").fetchone() == (0,)
    make_due(conn)
    listener.judge = lambda _messages: {}
    assert told(listener).counts["delivered"] == 32
    assert subscriptions(conn)[0].health is None
    assert_in_order(listener.heard, lived)


@pytest.mark.parametrize(
    "error", [ContentRefused("there", "POST /", 400), Faulty("there", "POST /", None, "timed out")]
)
def test_a_receiver_that_takes_nothing_at_all_is_not_blamed_on_its_messages(
    conn: Connection, lived: list[int], told: Deliver, error: ReceiverError
) -> None:
    """Single messages from both ends decide, so that all others keep their tries."""
    listener = Listener(judge=lambda _messages: (_ for _ in ()).throw(error))
    assert told(listener).counts == {"delivered": 0, "refused": 2, "dead": 0, "stopped": 1}
    assert [len(one) for one in listener.tried] == [8, 4, 2, 1, 1]
    assert {listener.tried[3][0], listener.tried[4][0]} == {listener.tried[0][0], listener.tried[0][-1]}
    make_due(conn)
    assert told(listener).counts["refused"] == 1
    assert len(listener.tried) == 6
    listener.judge = lambda _messages: {}
    make_due(conn)
    told(listener)
    assert_in_order(listener.heard, lived)


def test_bad_messages_at_both_ends_do_not_stop_the_others_for_long(
    conn: Connection, lived: list[int], told: Deliver
) -> None:
    listener = Listener(judge=refusing(lived[0], lived[-1]))
    assert told(listener).counts["stopped"] == 1
    conn.execute("UPDATE subscription_health SET retry_at = now()")  # its pause is shorter than their waits
    assert told(listener).counts["delivered"] == 24
    assert subscriptions(conn)[0].health is None


def test_after_the_last_try_a_message_is_dead_and_people_are_told(
    conn: Connection, lived: list[int], told: Deliver, step: int
) -> None:
    listener = Listener(judge=refusing(lived[0]))
    for _ in range(MAX_TRIES - 1):
        told(listener)
        make_due(conn)
    with pytest.raises(DeliveryNeedsAPerson, match=r"1 dead after the last try \(runbooks/dead-letters.md\)"):
        told(listener)
    make_due(conn)
    assert told(listener).counts["delivered"] == 0
    assert_sound(conn)
    listener.judge = lambda _messages: {}
    replay(conn, Chosen(), comment="", step_run=step)
    assert told(listener).counts["delivered"] == 4
    assert_in_order(listener.heard, lived)
    assert_sound(conn)


def test_who_does_not_let_us_in_needs_a_person(conn: Connection, lived: list[int], told: Deliver) -> None:
    error = NotLetIn("there", "POST /", 401, "no such key")
    listener = Listener(judge=lambda _messages: (_ for _ in ()).throw(error))
    with pytest.raises(DeliveryNeedsAPerson, match="no such key"):
        told(listener)
    (view,) = subscriptions(conn)
    assert view.health is not None
    assert view.health.needs_person
    assert (view.state, pending(conn), due_subscriptions(conn)) == (State.ACTIVE, 32, [])
    set_state(conn, "hook", State.ACTIVE, reason=None, by="maria")
    assert due_subscriptions(conn) == ["hook"], "to resume is to try again at once"


def test_a_connection_that_is_wrong_stops_before_anything_is_claimed(
    conn: Connection, lived: list[int], step: int
) -> None:
    def fail(_view: object) -> Listener:
        raise NotLetIn("hook", "its connection", None, "there is no such connection")

    with pytest.raises(DeliveryNeedsAPerson, match="there is no such connection"):
        deliver(conn, "hook", fail, step_run=step)
    assert conn.execute("SELECT count(*) FROM outbox WHERE claimed_by IS NOT NULL").fetchone() == (0,)


def test_who_is_gone_is_told_nothing_more(
    conn: Connection, lived: list[int], told: Deliver, add: Add
) -> None:
    listener = Listener(judge=lambda _messages: (_ for _ in ()).throw(Gone("there", "POST /", 410)))
    with pytest.raises(DeliveryNeedsAPerson, match="410"):
        told(listener)
    (view,) = subscriptions(conn)
    assert (view.state, view.updated_by) == (State.OFF, "the receiver")
    assert "410" in (view.reason or "")
    add(record(99))
    assert pending(conn) == 32, "nothing is kept for it any more, nothing that was is lost"


def test_there_must_be_such_a_subscription(told: Deliver) -> None:
    with pytest.raises(NoSuchSubscription, match="there is no subscription nobody"):
        told(Listener(), "nobody")


def test_one_who_came_too_late_sends_nothing(
    conn: Connection, catalogue_url: str, lived: list[int], told: Deliver, step: int
) -> None:
    """The lease is over and somebody else has the rest of the batch while ours is divided."""
    other = Listener()

    def judge(messages: Sequence[Message]) -> Refusals:
        if len(messages) == 8:
            with connect(catalogue_url) as own:
                make_due(own)
                deliver(own, "hook", lambda _view: other, step_run=step + 1)
            raise ContentRefused("there", "POST /", 413)
        raise AssertionError("these are somebody else's")

    listener = Listener(judge=judge)
    assert told(listener).counts["delivered"] == 0
    assert_in_order(other.heard, lived)


# --- deaths ---

RUN = """
import sys
from asyncstageout.catalogue.connection import connect
from asyncstageout.steps.deliver import deliver
from fixtures.receivers import Listener
class Told(Listener):
    def send(self, messages):
        with open(sys.argv[2], "a") as file:
            file.writelines(f"{one.data.number} {one.type}\\n" for one in messages)
        return {}
with connect(sys.argv[1]) as conn:
    deliver(conn, "hook", lambda view: Told(batch=5), step_run=int(sys.argv[3]))
"""


@pytest.mark.parametrize(
    ("point", "again"),
    [("deliver.before_send", 0), ("deliver.after_send", 3), ("deliver.after_record", 0)],
)
def test_a_death_loses_nothing_and_repeats_what_was_not_recorded(
    conn: Connection,
    *,
    catalogue_url: str,
    lived: list[int],
    step: int,
    tmp_path: Path,
    point: str,
    again: int,
) -> None:
    wish, heard = tmp_path / "wish", tmp_path / "heard"
    wish.write_text(f"{point}:2\n")
    environment = os.environ | {"ASO_CRASH_AT": str(wish), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", RUN, catalogue_url, str(heard), str(step)]
    assert subprocess.run(command, env=environment, check=False).returncode == -9
    make_due(conn)
    listener = Listener()
    deliver(conn, "hook", lambda _view: listener, step_run=step)
    lines = [line.split() for line in heard.read_text().splitlines()]
    all_heard = [(int(number), kind) for number, kind in lines] + listener.heard
    assert len(all_heard) == 32 + again
    assert_in_order(all_heard, lived)
    assert_sound(conn)


# --- whatever happens ---


class Died(BaseException):
    """A deliverer is killed."""


class Chaos:
    """A receiver that takes, refuses and fails as chance has it, for a while; its answers may be lost."""

    def __init__(self, seed: int, trouble: int) -> None:
        self.random, self.trouble = Random(seed), trouble
        self.heard: list[tuple[int, str]] = []

    def listener(self) -> Listener:
        return Listener(batch=self.random.choice([1, 3, 100]), judge=self.judge)

    def judge(self, messages: Sequence[Message]) -> Refusals:
        self.trouble -= 1
        what = self.random.choice(["take", "some", "down", "refuse", "fail", "time out", "die", "die after"])
        if self.trouble < 0 or what == "take":
            return self.take(messages)
        if what == "some":
            refused = {one.id: "no" for one in messages if self.random.random() < 0.5}
            self.take([one for one in messages if one.id not in refused])
            return refused
        if what in ("time out", "die after"):
            self.take(messages)
        raise {
            "down": DOWN,
            "refuse": ContentRefused("there", "POST /", 400),
            "fail": Faulty("there", "POST /", 500),
            "time out": Faulty("there", "POST /", None, "timed out"),
        }.get(what, Died())

    def take(self, messages: Sequence[Message]) -> Refusals:
        self.heard += [(one.data.number, one.type) for one in messages]
        return {}


@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32), trouble=st.integers(0, 40))
def test_at_least_once_and_in_order_whatever_happens(
    conn: Connection, *, catalogue_url: str, add: Add, submitted: Plan, step: int, seed: int, trouble: int
) -> None:
    """Two deliverers beside each other, deaths, time that passes, dead letters that are replayed."""
    before = set(file_ids(conn))
    subscribe(conn, events=MOVES)
    add(*(record(len(before) + number) for number in range(4)))
    for job in submitted():
        apply_moves(conn, [Move(number, job.sid, S.DONE) for number in job.transfer_ids], step)
    files = sorted(set(file_ids(conn)) - before)
    chaos = Chaos(seed, trouble)
    other = start_step(conn, Actor(task_id="test", name="other"))

    def run(step_run: int) -> None:
        with connect(catalogue_url) as own, suppress(DeliveryNeedsAPerson, Died):
            deliver(own, "hook", lambda _view: chaos.listener(), step_run=step_run)

    with ThreadPoolExecutor(2) as pool:
        while backlogs(conn)[0].pending:
            list(pool.map(run, (step, other)))
            replay(conn, Chosen(), comment="", step_run=step)
            make_due(conn)
    assert_in_order(chaos.heard, files)
    assert_sound(conn)
