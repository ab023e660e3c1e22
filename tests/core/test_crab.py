"""CRAB's words: its lists, its numbers, and what its workers may make of a file."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncstageout.core.crab import (
    INSERTED,
    PUBLICATION_MOVES,
    PUBLICATION_NUMBERS,
    TRANSFER_NUMBERS,
    UNCLAIMED,
    WORKER_PATHS,
    read_list,
)
from asyncstageout.core.naming import BadName
from asyncstageout.core.states import PublicationState, TransferState, is_legal


def test_numbers_are_those_of_crab() -> None:
    assert ",".join(TRANSFER_NUMBERS) == "NEW,ACQUIRED,FAILED,DONE,RETRY,SUBMITTED,KILL,KILLED"
    assert ",".join(PUBLICATION_NUMBERS) == "NEW,ACQUIRED,FAILED,DONE,RETRY,NOT_REQUIRED"
    assert set(TRANSFER_NUMBERS) == set(TransferState)
    assert set(PUBLICATION_NUMBERS) == set(PUBLICATION_MOVES) == set(PublicationState)


@pytest.mark.parametrize(("pair", "path"), WORKER_PATHS.items(), ids=str)
def test_every_path_of_a_worker_is_legal(
    pair: tuple[TransferState, TransferState], path: tuple[TransferState, ...]
) -> None:
    for start, end in itertools.pairwise((pair[0], *path)):
        assert is_legal(start, end)
    said, ends = pair[1], ([pair[0], *path])[-1]
    assert ends == said or (said, ends) in {
        (TransferState.NEW, TransferState.ACQUIRED),
        (TransferState.FAILED, TransferState.KILLED),
        (TransferState.RETRY, TransferState.KILLED),
    }


def test_no_worker_moves_what_has_ended() -> None:
    assert all(not path for (state, _), path in WORKER_PATHS.items() if state.is_final)
    assert all(pair in WORKER_PATHS for pair in UNCLAIMED)
    assert all(is_legal(None, state) for state in INSERTED)


@given(st.lists(st.text(st.characters(codec="utf-8"))))
def test_lists_are_read_as_python_writes_them(items: list[str]) -> None:
    assert read_list(str(items)) == items


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("[u'a', u'b']", ["a", "b"]),
        ("[1, 0]", ["1", "0"]),
        ("abc", ["abc"]),
        ("not found! gone, really", ["not found! gone, really"]),
        ("", [""]),
        ("[]", []),
        ("['']", [""]),
    ],
)
def test_lists_as_clients_send_them(text: str, items: list[str]) -> None:
    assert read_list(text) == items


@pytest.mark.parametrize("text", ["['a'", "['a' 'b']", "[[1]]", "['\\x']", "['a]", "[" * 100_000])
def test_what_is_no_list_is_refused(text: str) -> None:
    with pytest.raises(BadName):
        read_list(text)
