"""A link's breaker: every step of its life is a line of the table."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncstageout.core.breaker import (
    LONGEST_WAIT_S,
    PROBE_FILES,
    Breaker,
    BreakerState,
    Score,
    Step,
    account,
    next_step,
    wait_s,
)
from asyncstageout.core.policies import LinkPolicy

NONE, OPEN, PROBING = None, BreakerState.OPEN, BreakerState.PROBING
NOTHING = Score()
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)

LIFE = [
    # Healthy: trips at 20 attempts of which 80 % failed.
    (NONE, Score(4, 16), NOTHING, Step.OPEN),
    (NONE, Score(0, 20), NOTHING, Step.OPEN),
    (NONE, Score(5, 16), NOTHING, Step.STAY),
    (NONE, Score(0, 19), NOTHING, Step.STAY),
    (NONE, NOTHING, NOTHING, Step.STAY),
    # Open: waits, unless what was under way arrives after all.
    (OPEN, Score(0, 500), NOTHING, Step.STAY),
    (OPEN, Score(4, 0), NOTHING, Step.STAY),
    (OPEN, Score(5, 4), NOTHING, Step.CLOSE),
    (OPEN, Score(5, 5), NOTHING, Step.STAY),
    # Probing: the majority decides, as soon as it is one.
    (PROBING, NOTHING, Score(3, 0, 2), Step.CLOSE),
    (PROBING, NOTHING, Score(2, 0, 3), Step.STAY),
    (PROBING, NOTHING, Score(2, 2, 1), Step.STAY),
    (PROBING, NOTHING, Score(0, 3, 2), Step.REOPEN),
    (PROBING, NOTHING, Score(2, 3, 0), Step.REOPEN),
    (PROBING, NOTHING, Score(1, 1, 0), Step.REOPEN),
    (PROBING, NOTHING, Score(1, 0, 0), Step.CLOSE),
    (PROBING, NOTHING, NOTHING, Step.PROBE_AGAIN),
    (PROBING, Score(9, 1), Score(0, 0, 5), Step.CLOSE),
]


@pytest.mark.parametrize(("state", "recent", "probe", "step"), LIFE)
def test_life(state: BreakerState | None, recent: Score, probe: Score, step: Step) -> None:
    assert next_step(state, recent, probe, LinkPolicy()) is step


@pytest.mark.parametrize("state", [NONE, OPEN, PROBING])
def test_it_can_be_switched_off(state: BreakerState | None) -> None:
    step = next_step(state, Score(0, 1000), Score(0, 5), LinkPolicy(breaker_attempts=0))
    assert step is (Step.STAY if state is None else Step.CLOSE)


@given(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5))
def test_a_probe_without_open_files_always_decides(succeeded: int, failed: int, pending: int) -> None:
    step = next_step(PROBING, NOTHING, Score(succeeded, failed, pending), LinkPolicy())
    if not pending:
        assert step is not Step.STAY
    if step is Step.CLOSE:
        assert succeeded > failed


def breaker(state: BreakerState, probe_at: datetime) -> Breaker:
    reason = account(Score(6, 34), "SOURCE [112] curl error (56)")
    return Breaker(state, reason, 1, NOON, probe_at)


def test_room_and_reason() -> None:
    later = NOON + timedelta(minutes=5)
    waiting = breaker(OPEN, later)
    assert (waiting.room(1000, NOON), waiting.room(1000, later), waiting.room(2, later)) == (
        0,
        PROBE_FILES,
        2,
    )
    assert waiting.sentence(NOON) == (
        "breaker open since 12:00: 34 of 40 attempts failed, lately SOURCE [112] curl error (56); next probe 12:05"
    )
    assert waiting.sentence(later).endswith("; the next probe is due")
    probing = breaker(PROBING, later)
    assert probing.room(1000, later + timedelta(days=1)) == 0
    assert probing.sentence(later).endswith("; probing since 12:05")


def test_waits_double_up_to_an_hour() -> None:
    assert [wait_s(n) for n in range(1, 7)] == [300, 600, 1200, 2400, 3600, 3600]
    assert wait_s(10**9) == LONGEST_WAIT_S
