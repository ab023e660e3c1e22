"""When a message comes again, and who may be told what."""

from __future__ import annotations

import doctest
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncstageout.core import crab, deliveries, rucio_names
from asyncstageout.core.crab import Call, call_for, lists_of, read_list, written_list
from asyncstageout.core.deliveries import (
    LONGEST_PAUSE_S,
    MAX_TRIES,
    File,
    Message,
    message_type,
    pause_s,
    retry_delay_s,
)
from asyncstageout.core.rucio_names import dataset_of
from asyncstageout.core.subscriptions import EVENTS, Kind, SubscriptionInvalid, read_subscription

SPREAD = st.floats(0, 1, exclude_max=True)
DAY_S = 86_400


@given(SPREAD)
def test_a_message_is_dead_after_more_than_a_day(spread: float) -> None:
    waits = [retry_delay_s(tries, spread) for tries in range(1, MAX_TRIES + 1)]
    assert waits[-1] is None
    assert None not in waits[:-1]
    assert DAY_S < sum(wait for wait in waits if wait) < 2 * DAY_S
    assert all(before < after for before, after in itertools.pairwise(waits) if before and after)


@given(st.integers(1, 10_000), SPREAD, st.none() | st.floats(0, 1e9))
def test_a_pause_grows_and_ends(failures: int, spread: float, asked_for_s: float | None) -> None:
    pause = pause_s(failures, spread, asked_for_s)
    assert 10 < pause <= LONGEST_PAUSE_S * 1.2
    assert pause >= min(asked_for_s or 0, LONGEST_PAUSE_S)
    assert pause_s(failures + 1, spread) >= pause_s(failures, spread)


# --- subscriptions ---

WANTED = {"name": "a", "kind": "webhook", "conn_id": "c"}


@pytest.mark.parametrize("kind", Kind)
def test_a_kind_is_told_of_what_it_can_use_unless_it_says_otherwise(kind: Kind) -> None:
    wanted = read_subscription(WANTED | {"kind": kind.value, "events": None, "source": None})
    assert set(wanted.events) <= set(EVENTS[kind])
    assert wanted.kind == kind
    every = read_subscription(WANTED | {"kind": kind.value, "events": EVENTS[kind] * 2})
    assert every.events == EVENTS[kind]


@pytest.mark.parametrize(
    ("changes", "field", "why"),
    [
        ({"kind": "mail"}, "kind", "webhook"), ({"name": "A"}, "name", "pattern"), ({"events": []}, "events", "at least 1"),
        ({"events": ["transfer:GONE"]}, "events", "no event for webhook: 'transfer:GONE'"),
        ({"kind": "rucio", "events": ["transfer:FAILED"]}, "events", "transfer:DONE, publication:DONE"),
        ({"settings": {"batch": 0}}, "settings.batch", "greater than or equal to 1"),
        ({"settings": {"secret": "x"}}, "settings.secret", "not permitted"),
        ({"kind": "rucio", "settings": {"rse": "{site"}}, "settings.rse", "no template"),
        ({"kind": "rucio", "settings": {"dataset": "{site}"}}, "settings.dataset", "unknown {site}"),
        ({"kind": "rucio", "settings": {"user_scope": "{0}"}}, "settings.user_scope", "unknown {0}"),
        ({"kind": "crab", "settings": {"worker": "a b"}}, "settings.worker", "pattern"),
        ({"username": "a b"}, "username", "pattern"), ({"source": "CERN"}, "source", "T2_IT_Bari"), ({"x": 1}, "x", "not permitted"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_subscription_is_named(changes: dict[str, object], field: str, why: str) -> None:
    with pytest.raises(SubscriptionInvalid) as raised:
        read_subscription(WANTED | changes)
    assert raised.value.field == field
    assert why in str(raised.value)


# --- names in Rucio ---


@given(st.text(min_size=1, max_size=300))
def test_any_task_has_a_dataset_of_its_own_with_a_legal_name(task: str) -> None:
    template = "/AsyncStageOut/{username}-{task}/USER#{uuid}"
    name = dataset_of(template, "alice", task)
    assert name.isascii()
    assert (
        not set(name) - set("/#-_.") - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
    )
    assert len(name.split("/")[2]) <= 199
    assert dataset_of(template, "alice", task + "x") != name


# --- CRAB's calls ---


def message(state: str, kind: str = "transfer", **fields: object) -> Message:
    data = dict.fromkeys(File.model_fields) | {"request_id": "f" * 56} | fields
    reason = data.pop("reason", None)
    return Message.model_construct(
        id="x", type=message_type(kind, state), state=state, reason=reason, data=File.model_construct(**data)
    )


@given(st.lists(st.text(max_size=60), min_size=1, max_size=5))
def test_crab_reads_as_many_items_as_were_written(reasons: list[str]) -> None:
    """As its REST does: quotes and brackets out, a cut at each comma; and as ours does."""
    written = written_list(reasons)
    assert len(written.translate(str.maketrans("", "", "[]'")).split(",")) == len(reasons)
    assert len(read_list(written)) == len(reasons)


@pytest.mark.parametrize(
    ("said", "call", "lists"),
    [
        (message("DONE"), Call("updateTransfers"), {"list_of_transfer_state"}),
        (message("SUBMITTED", fts_job_id="j", fts_server="s"), Call("updateTransfers", has_job=True),
         {"list_of_transfer_state", "list_of_fts_id", "list_of_fts_instance"}),
        (message("SUBMITTED"), Call("updateTransfers"), {"list_of_transfer_state"}),
        (message("RETRY", reason="x" * 900), Call("updateTransfers", has_reason=True),
         {"list_of_transfer_state", "list_of_failure_reason", "list_of_retry_value"}),
        (message("FAILED"), Call("updateTransfers", has_reason=True),
         {"list_of_transfer_state", "list_of_failure_reason", "list_of_retry_value"}),
        (message("DONE", "publication"), Call("updatePublication"), {"list_of_publication_state"}),
        (message("FAILED", "publication"), Call("updatePublication", has_reason=True),
         {"list_of_publication_state", "list_of_failure_reason", "list_of_retry_value"}),
    ],
)  # fmt: skip
def test_crab_is_told_in_its_own_calls(said: Message, call: Call, lists: set[str]) -> None:
    assert call_for(said) == call
    written = lists_of(call, [said, said])
    assert written.keys() == {"list_of_ids"} | lists
    assert {len(read_list(text)) for text in written.values()} == {2}
    assert all(len(text) < 1100 for text in written.values())


@pytest.mark.parametrize("module", [crab, deliveries, rucio_names])
def test_the_examples_are_true(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]
