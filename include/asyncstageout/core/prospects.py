"""What comes next for a file, and what its failure means, in words for the person who asks."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from asyncstageout.core.failures import Category
from asyncstageout.core.states import PENDING_STATES, TransferState

S = TransferState
C = Category


class Remedy(NamedTuple):
    """What a kind of failure means, and what a person can do about it."""

    meaning: str
    action: str


REMEDIES: dict[str, Remedy] = {
    C.QUOTA: Remedy("the destination has no room", "free space there, or ask the site for more"),
    C.PERMISSION: Remedy(
        "a site does not let us read or write there",
        "ask the site (the reason names the side) to give the user or the service access",
    ),
    C.QUEUE_TIMEOUT: Remedy(
        "the link was so busy that FTS gave up before it began", "wait until the link has less to do"
    ),
    C.SOURCE_MISSING: Remedy(
        "the file is not at its source any more", "check the job's log; the job may have to run again"
    ),
    C.SOURCE_CHECKSUM: Remedy("the file at its source is not what the job wrote", "the job has to run again"),
    C.DESTINATION_CHECKSUM: Remedy(
        "what arrived is not what was sent, twice in a row", "tell the destination site"
    ),
    C.DESTINATION_EXISTS: Remedy(
        "a file with this name and other bytes is at the destination",
        "delete it there, or let the link overwrite",
    ),
    C.SOURCE: Remedy("the source site failed", "ask the source site"),
    C.DESTINATION: Remedy("the destination site failed", "ask the destination site"),
    C.TRANSFER: Remedy("the copying itself failed", "look at FTS's log of the file"),
    C.CANCELED: Remedy("somebody cancelled it in FTS", "ask the operators of FTS"),
    C.CREDENTIAL: Remedy("a proxy, token or certificate expired", "renew it; `aso doctor` checks ours"),
    C.NAME: Remedy("a site of it is not configured", "configure the site's storage"),
    C.REFUSED: Remedy("FTS did not take the file", "the reason says what FTS minds; mend the request"),
    C.LOST: Remedy("FTS forgot the job it had accepted", "ask the operators of FTS"),
    C.OTHER: Remedy("none of the failures that we know", "read the reason"),
}
_PLAIN = {
    S.NEW: "It waits for the next cycle of stageout_transfer, which starts within a minute.",
    S.ACQUIRED: "It is in an FTS job that is being submitted. "
    "If FTS does not confirm the job, a later cycle submits it.",
    S.KILL: "It is being stopped; FTS may be copying its last bytes.",
    S.KILLED: "Nothing: somebody stopped it. The history says who.",
}
_PLACES: dict[str, str] = {
    S.NEW: "It waits at {file[source]} for its first attempt.",
    S.ACQUIRED: "It is being handed to FTS.",
    S.SUBMITTED: "It is on its way: FTS has it, for attempt {file[attempt]}.",
    S.RETRY: "It waits at {file[source]}, since attempt {file[attempt]} failed: {meaning}.",
    S.DONE: "It is at {file[destination]}, after {attempts}.",
    S.FAILED: "It failed for good, after {attempts}: {meaning}.",
    S.KILL: "It is being stopped.",
    S.KILLED: "It was stopped, after {attempts}.",
    "ALREADY_THERE": "It is at {file[destination]}, where its job wrote it.",
}


def where_it_is(file: Mapping[str, Any]) -> str:
    """Say where a file is, and why it is not farther.

    Args:
        file: a row of :func:`asyncstageout.catalogue.lookup.find_file`.
    """
    attempts = f"{file['attempt']} attempt{'' if file['attempt'] == 1 else 's'}"
    found = "ALREADY_THERE" if file["already_there"] else file["state"]
    meaning = remedy(file["failure_category"]).meaning
    return _PLACES[found].format(file=file, attempts=attempts, meaning=meaning)


def what_next(file: Mapping[str, Any], now: datetime, held: str | None = None) -> str:
    """Say what will happen to a file, or what somebody has to do.

    Args:
        file: a row of :func:`asyncstageout.catalogue.lookup.find_file`.
        now: aware UTC.
        held: why no cycle takes files of its link or identity at the moment.
    """
    if held and S(file["state"]) in PENDING_STATES:
        return f"It waits, and uses no attempt: {held}. Nobody has to send it again."
    match S(file["state"]):
        case S.SUBMITTED:
            return f"FTS has it (job {file['fts_job_id']}); stageout_sense notices its end within seconds."
        case S.RETRY:
            return _retry(file["due_at"], now)
        case S.DONE:
            return _done(file["publication"])
        case S.FAILED:
            return _failed(file["failure_category"], file["id"])
        case state:
            return _PLAIN[state]


def remedy(category: str | None) -> Remedy:
    """Return what a category on record means; a word of an older version counts as unknown."""
    return REMEDIES.get(category or "", REMEDIES[C.OTHER])


def _retry(due_at: datetime, now: datetime) -> str:
    if due_at <= now:
        return "Its next attempt is due: the next cycle of stageout_transfer takes it."
    return f"Its next attempt starts after {due_at:%Y-%m-%d %H:%M:%S} UTC."


def _done(publication: str) -> str:
    if publication in ("NEW", "ACQUIRED", "RETRY"):
        return f"It is at its destination, and waits to be published ({publication})."
    if publication == "FAILED":
        return "Nothing by itself: it is at its destination, and its publication was given up."
    return "Nothing: it is at its destination."


def _failed(category: str | None, number: int) -> str:
    known = remedy(category)
    return (
        f"Nothing by itself. It failed for good ({category}): {known.meaning}. What helps: {known.action}. "
        f"Then send it again: aso retry {number}."
    )
