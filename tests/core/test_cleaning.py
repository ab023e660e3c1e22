"""When a temporary copy may go, whether it is the one that was meant, and when to try again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncstageout.core.cleaning import (
    AGAIN,
    LOOK_AGAIN,
    PAUSES,
    SLACK,
    WAITS,
    Copy,
    Outcome,
    Trouble,
    goes_at,
    holds_cleaning,
    next_look,
    next_try,
    pause,
    why_left,
)
from asyncstageout.core.policies import LinkPolicy
from asyncstageout.core.restrictions import Mode, Restriction
from asyncstageout.core.states import FINAL_STATES, TransferState

S = TransferState
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
SAME = timedelta(0)


def copy_of(
    ended_as: TransferState = S.DONE, *, size_bytes: int = 1000, awaits: bool = False, tries: int = 0
) -> Copy:
    return Copy(
        1, "T2_IT_Bari", "/store/temp/user/alice.0a1b/x.root", "T2_CH_CERN", "alice", "alice", "default", size_bytes,
        NOON - HOUR, ended_as, NOON, awaits, tries, is_destination=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("copy", "policy", "expected"),
    [
        (copy_of(S.DONE), {}, SAME),
        (copy_of(S.DONE, awaits=True), {}, None),
        (copy_of(S.DONE, awaits=True), {"clean_waits_for_publication": False}, SAME),
        (copy_of(S.FAILED), {}, timedelta(days=7)),
        (copy_of(S.FAILED, awaits=True), {"clean_failed_after_h": 1}, HOUR),
        (copy_of(S.FAILED), {"clean_failed_after_h": 0}, SAME),
        (copy_of(S.KILLED), {}, timedelta(days=1)),
        (copy_of(S.KILLED), {"clean_killed_after_h": 2}, 2 * HOUR),
        *((copy_of(state), {"clean": False}, None) for state in FINAL_STATES),
    ],
)
def test_when_a_copy_goes(copy: Copy, policy: dict[str, object], expected: timedelta | None) -> None:
    found = goes_at(copy, LinkPolicy.model_validate(policy))
    assert found == (None if expected is None else NOON + expected)


def test_what_must_wait_is_looked_at_again_in_time() -> None:
    policy = LinkPolicy(clean_failed_after_h=10)
    failed = copy_of(S.FAILED)
    assert next_look(failed, policy, NOON) == NOON + LOOK_AGAIN
    assert next_look(failed, policy, NOON + 8 * HOUR) == NOON + 10 * HOUR
    assert next_look(failed, policy, NOON + 10 * HOUR) is None
    assert next_look(failed, LinkPolicy(clean=False), NOON + 99 * HOUR) == NOON + 99 * HOUR + LOOK_AGAIN


def left(
    copy: Copy,
    *,
    size_bytes: int = 1000,
    modified_at: datetime | None = NOON - 2 * HOUR,
    ahead: timedelta = SAME,
    is_directory: bool = False,
) -> str | None:
    return why_left(
        copy, is_directory=is_directory, size_bytes=size_bytes, modified_at=modified_at, clock_is_ahead=ahead
    )


@pytest.mark.parametrize("ended_as", sorted(FINAL_STATES))
def test_the_copy_that_was_meant_goes(ended_as: TransferState) -> None:
    assert left(copy_of(ended_as)) is None
    assert left(copy_of(ended_as, size_bytes=0), size_bytes=77) is None, "its size was never known"
    assert left(copy_of(ended_as), modified_at=None) is None, "without a time, its size tells"


@pytest.mark.parametrize("ended_as", sorted(FINAL_STATES))
def test_what_was_not_meant_stays(ended_as: TransferState) -> None:
    copy = copy_of(ended_as)
    assert "after the copy" in (left(copy, modified_at=NOON) or "")
    assert "after the copy" in (left(copy, modified_at=copy.known_at + SLACK + timedelta(seconds=1)) or "")
    assert "directory" in (left(copy, is_directory=True) or "")
    assert "no time" in (left(copy, modified_at=None, size_bytes=999) or "")
    assert "no time" in (left(copy_of(ended_as, size_bytes=0), modified_at=None) or "")


def test_a_wrong_size_tells_only_of_what_is_done() -> None:
    """What failed may have failed for just that."""
    assert "999 bytes, the file that was moved 1,000" in (left(copy_of(S.DONE), size_bytes=999) or "")
    assert left(copy_of(S.FAILED), size_bytes=999) is None


@given(ahead=st.timedeltas(-timedelta(days=400), timedelta(days=400)), after=st.timedeltas(-HOUR, HOUR))
def test_the_clock_of_the_storage_does_not_matter(ahead: timedelta, after: timedelta) -> None:
    copy = copy_of()
    modified_at = copy.known_at + after + ahead
    assert (left(copy, modified_at=modified_at, ahead=ahead) is not None) == (after > SLACK)


@pytest.mark.parametrize("trouble", Trouble)
def test_failures_are_tried_again_and_then_given_up(trouble: Trouble) -> None:
    waits = WAITS[trouble]
    for tries, wait in enumerate(waits, start=1):
        assert next_try(trouble, tries, NOON) == (Outcome.WAITING, NOON + wait)
    for tries in (len(waits) + 1, len(waits) + 2, 99):
        assert next_try(trouble, tries, NOON) == (Outcome.FAILED, NOON + AGAIN)
    assert list(waits) == sorted(waits)


def test_pauses_grow_and_stay_bounded() -> None:
    assert [pause(number) for number in range(len(PAUSES) + 2)] == [*PAUSES, PAUSES[-1], PAUSES[-1]]


def restriction(mode: Mode, **changes: object) -> Restriction:
    nothing = dict.fromkeys(("site", "source", "destination", "username", "activity"))
    fields = nothing | {"reason": "r", "author": "maria", "starts_at": NOON} | changes
    return Restriction(1, mode, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("row", "holds"),
    [
        (restriction(Mode.BAN, site="T2_IT_Bari"), True),
        (restriction(Mode.BAN, source="T2_IT_Bari"), True),
        (restriction(Mode.PAUSE, site="T2_IT_Bari", is_downtime=True), True),
        (restriction(Mode.PAUSE, site="T2_IT_Bari"), False),
        (restriction(Mode.DRAIN, site="T2_IT_Bari"), False),
        (restriction(Mode.BAN, site="T2_CH_CERN"), False),
        (restriction(Mode.BAN, destination="T2_IT_Bari"), False),
        (restriction(Mode.BAN, source="T2_IT_Bari", destination="T2_CH_CERN"), False),
        (restriction(Mode.BAN, site="T2_IT_Bari", username="bob"), False),
        (restriction(Mode.BAN), True),
    ],
)
def test_what_holds_cleaning_at_a_site(row: Restriction, holds: bool) -> None:
    assert holds_cleaning(row, "T2_IT_Bari") is holds
