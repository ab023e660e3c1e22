"""Temporary copies: when one may go, whether what lies there is what was meant, and when to try again."""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from asyncstageout.core.policies import LinkPolicy
from asyncstageout.core.restrictions import Mode, Restriction
from asyncstageout.core.states import TransferState

S = TransferState


class Copy(NamedTuple):
    """A temporary copy of a file that has ended."""

    transfer_id: int
    source: str
    """Site where it is."""
    source_lfn: str
    destination: str
    username: str
    identity: str
    """Whose it is, as :mod:`asyncstageout.core.identities` writes it."""
    activity: str
    size_bytes: int
    """Of the file that was to be moved; 0: not known."""
    known_at: datetime
    """The copy that was to be moved is not younger than this."""
    ended_as: TransferState
    ended_at: datetime
    awaits_publication: bool
    tries: int
    """How often its deletion has failed."""
    is_destination: bool
    """Whether it is where a file was moved to, or is being moved to."""


class Outcome(StrEnum):
    """What became of a deletion. All but the last two are the end of it."""

    DELETED = "DELETED"
    GONE = "GONE"
    """It was not there any more."""
    LEFT = "LEFT"
    """What lies there is not the copy that was meant: a newer one, or something else."""
    FAILED = "FAILED"
    """Given up, for a person to look at; tried again every week."""
    WAITING = "WAITING"
    """To be tried again."""


class Trouble(StrEnum):
    """Why a copy was not deleted, as far as it says when to try again."""

    NAME = "name"
    """It has no name under which it may be deleted."""
    DENIED = "denied"
    REFUSED = "refused"
    """The storage cannot do it, or says something that makes no sense."""
    UNAVAILABLE = "unavailable"
    """The storage answers, but not for this file."""


_HOURS = {
    # Only a person can mend it: a description, or an area that is none.
    Trouble.NAME: (),
    # Sites change permissions by hand.
    Trouble.DENIED: (1, 6, 24),
    Trouble.REFUSED: (1, 6),
    # A pool or a tape server that is away comes back in a day or two.
    Trouble.UNAVAILABLE: (0.25, 1, 6, 24, 24),
}
WAITS = {trouble: tuple(timedelta(hours=one) for one in hours) for trouble, hours in _HOURS.items()}
"""How long to wait after each try; after one more it is given up."""

AGAIN = timedelta(days=7)
"""What was given up is tried again: storages do get mended."""
LOOK_AGAIN = timedelta(hours=6)
"""A copy that must wait is looked at as often, so that a change of policy counts by then."""
SLACK = timedelta(seconds=2)
"""Times of HTTP are whole seconds."""


def goes_at(copy: Copy, policy: LinkPolicy) -> datetime | None:
    """Return when a copy may be deleted; None: not as things are.

    ============  =============================================================================
    it ended as   deleted
    ============  =============================================================================
    DONE          at once; where the policy says so, when its publication has ended, well or not
    FAILED        when nobody may send it again any more
    KILLED        the same
    ============  =============================================================================
    """
    if not policy.clean:
        return None
    if copy.ended_as is S.DONE:
        waits = copy.awaits_publication and policy.clean_waits_for_publication
        return None if waits else copy.ended_at
    hours = policy.clean_failed_after_h if copy.ended_as is S.FAILED else policy.clean_killed_after_h
    return copy.ended_at + timedelta(hours=hours)


def next_look(copy: Copy, policy: LinkPolicy, now: datetime) -> datetime | None:
    """Return when to look at a copy again that must not be deleted yet; None: it may be."""
    at = goes_at(copy, policy)
    if at is not None and at <= now:
        return None
    return now + LOOK_AGAIN if at is None else min(at, now + LOOK_AGAIN)


def why_left(
    copy: Copy,
    *,
    is_directory: bool,
    size_bytes: int,
    modified_at: datetime | None,
    clock_is_ahead: timedelta,
) -> str | None:
    """Return why what lies under a copy's name must stay; None: it is the copy, and may be deleted.

    A job that runs again writes the same name, before its request reaches us. Its time tells: the copy that
    was moved was there when FTS was told of the last attempt. Without a time, a copy is believed to be the
    one that was meant only if its size is known and right.

    Args:
        modified_at: by the storage's clock; None: it says nothing.
        clock_is_ahead: by how much the storage's clock is ahead of ours.
    """
    if is_directory:
        return "it is a directory"
    is_known = copy.size_bytes > 0
    if modified_at is None:
        if is_known and size_bytes == copy.size_bytes:
            return None
        return "the storage gives it no time, and its size does not tell that it is the copy that was meant"
    if modified_at - clock_is_ahead > copy.known_at + SLACK:
        return f"it was written at {modified_at:%Y-%m-%d %H:%M:%S} UTC, after the copy that was meant"
    # A file that failed may have failed because its size was wrong; one that is done had the right size.
    if copy.ended_as is S.DONE and is_known and size_bytes != copy.size_bytes:
        return f"it has {size_bytes:,} bytes, the file that was moved {copy.size_bytes:,}"
    return None


def next_try(trouble: Trouble, tries: int, now: datetime) -> tuple[Outcome, datetime]:
    """Return what a failed deletion comes to, and when the next one may be.

    Args:
        tries: how many have failed, with this one.
    """
    waits = WAITS[trouble]
    if tries <= len(waits):
        return Outcome.WAITING, now + waits[tries - 1]
    return Outcome.FAILED, now + AGAIN


PAUSES = tuple(timedelta(minutes=one) for one in (15, 30, 60, 120, 240))
"""How long a storage is left alone that does not answer, the more often the longer."""


def pause(pauses: int) -> timedelta:
    """Return how long to leave a storage alone that did not answer, after so many pauses before."""
    return PAUSES[min(pauses, len(PAUSES) - 1)]


def holds_cleaning(restriction: Restriction, site: str) -> bool:
    """Say whether nothing must be deleted at a site while a restriction is in force.

    A ban stops what must stop, and in a downtime nobody answers. A pause or a drain does not hold cleaning:
    "disk full" and "is being emptied" are reasons for it.
    """
    return (
        (restriction.mode is Mode.BAN or restriction.is_downtime)
        and restriction.site in (None, site)
        and restriction.source in (None, site)
        and (restriction.destination, restriction.username, restriction.activity) == (None, None, None)
    )
