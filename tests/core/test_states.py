"""The transition table is complete, closed, and says what the design says."""

from __future__ import annotations

from itertools import pairwise

import pytest

from asyncstageout.core.states import FINAL_STATES, TRANSITIONS, TransferState, is_legal

S = TransferState


def test_every_state_is_in_the_table() -> None:
    assert set(TRANSITIONS) == set(TransferState)


@pytest.mark.parametrize(
    "life",
    [
        [None, S.NEW, S.ACQUIRED, S.SUBMITTED, S.DONE],
        [None, S.NEW, S.ACQUIRED, S.SUBMITTED, S.RETRY, S.ACQUIRED, S.SUBMITTED, S.FAILED, S.NEW],
        [None, S.NEW, S.ACQUIRED, S.ACQUIRED, S.NEW],
        [None, S.NEW, S.KILL, S.KILLED, S.NEW],
        [None, S.NEW, S.ACQUIRED, S.SUBMITTED, S.KILL, S.DONE],
        [None, S.DONE],
    ],
)
def test_lives_of_files(life: list[TransferState | None]) -> None:
    for start, end in pairwise(life):
        assert end is not None
        assert is_legal(start, end), (start, end)


def test_a_final_file_only_starts_anew() -> None:
    for state in FINAL_STATES:
        assert TRANSITIONS[state] == {S.NEW}


def test_nothing_arrives_in_the_middle_of_a_life() -> None:
    assert {state for state in TransferState if is_legal(None, state)} == {S.NEW, S.DONE}


def test_every_state_can_reach_an_end() -> None:
    for state in TransferState:
        seen = {state}
        while not seen & FINAL_STATES:
            further = seen | {end for start in seen for end in TRANSITIONS[start]}
            assert further != seen, f"{state} leads nowhere"
            seen = further
