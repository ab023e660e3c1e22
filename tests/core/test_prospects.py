"""Where a file is, in words."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from asyncstageout.core.prospects import what_next, where_it_is
from asyncstageout.core.states import TransferState

S = TransferState


def file(state: TransferState, **changes: Any) -> dict[str, Any]:
    return {
        "id": 7, "state": state.value, "attempt": 2, "source": "T2_IT_Bari", "destination": "T2_CH_CERN",
        "already_there": False, "failure_category": "quota", "publication": "NOT_REQUIRED", "fts_job_id": "j",
        "due_at": datetime(2026, 11, 27, tzinfo=UTC),
    } | changes  # fmt: skip


@pytest.mark.parametrize("state", TransferState)
def test_every_state_is_a_place(state: TransferState) -> None:
    words = where_it_is(file(state))
    assert words.endswith(".")
    assert "{" not in words


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (file(S.NEW, attempt=0), "It waits at T2_IT_Bari for its first attempt."),
        (file(S.RETRY, attempt=1), "attempt 1 failed: the destination has no room."),
        (file(S.FAILED, attempt=1), "It failed for good, after 1 attempt: the destination has no room."),
        (file(S.DONE), "It is at T2_CH_CERN, after 2 attempts."),
        (file(S.DONE, already_there=True), "It is at T2_CH_CERN, where its job wrote it."),
    ],
)
def test_where_a_file_is(found: dict[str, Any], words: str) -> None:
    assert words in where_it_is(found)


def test_a_publication_that_was_given_up_is_not_nothing() -> None:
    said = what_next(file(S.DONE, publication="FAILED"), datetime(2026, 11, 27, tzinfo=UTC))
    assert "its publication was given up" in said
