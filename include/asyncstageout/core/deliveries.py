"""What a subscriber is told, when it is told again, and when a person has to look.

Two things can go wrong, and the other one never pays for it:

* the receiver takes nothing (it is down, busy, or does not let us in): the subscription pauses
  (:func:`pause_s`), and no message uses a try;
* it takes others and not this one: the message waits (:func:`retry_delay_s`), and with it all later ones of
  its file; after :data:`MAX_TRIES` it is dead, and a person replays or discards it.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from asyncstageout.core.retries import JITTER

WAITS_S = (
    60.0,  # a restart of the receiver's own store
    300.0,
    1800.0,  # something that its people see in working hours
    7200.0,
    6 * 3600.0,
    10 * 3600.0,
    14 * 3600.0,  # over a night, or the next working day
)
"""After each refusal of a message; Standard Webhooks 1.0 recommends a schedule like it, over days."""
MAX_TRIES = len(WAITS_S) + 1
"""More than a day lies between the first and the last, whatever the jitter."""

FIRST_PAUSE_S = 15.0
LONGEST_PAUSE_S = 900.0
"""So long may a receiver be up again before it hears of it."""


class Delivery(StrEnum):
    """What becomes of a message; ``file_event.to_state`` of the kind ``delivery``."""

    PENDING = "PENDING"
    """Waits, perhaps again."""
    DELIVERED = "DELIVERED"
    DEAD = "DEAD"
    """Refused too often; holds the later ones of its file back."""
    DISCARDED = "DISCARDED"
    """A person decided that the subscriber need not hear of it, or removed the subscription."""


def retry_delay_s(tries: int, spread: float) -> float | None:
    """Return how long a message waits that was refused so often, in seconds; None: it is dead.

    Args:
        tries: from 1.
        spread: in [0, 1), other for each message, so that they do not all come back at once.
    """
    if tries >= MAX_TRIES:
        return None
    return _jittered(WAITS_S[tries - 1], spread)


def pause_s(failures: int, spread: float, asked_for_s: float | None = None) -> float:
    """Return for how long nothing is sent to a receiver that took nothing so often in a row, in seconds.

    Args:
        failures: from 1.
        asked_for_s: what the receiver asks for (``Retry-After``); counts up to :data:`LONGEST_PAUSE_S`.
    """
    own_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(failures - 1, 10))
    return max(_jittered(own_s, spread), min(asked_for_s or 0.0, LONGEST_PAUSE_S))


def _jittered(wait_s: float, spread: float) -> float:
    return wait_s * (1 - JITTER + 2 * JITTER * spread)


class File(BaseModel):
    """The file that a message is about: as it was at the event, and where that is not kept, as it is now."""

    model_config = ConfigDict(frozen=True)

    number: int = Field(description="Of the file in this installation.")
    request_id: str = Field(description="SHA-224 of its source LFN, as CRAB makes it.")
    task: str = Field(description="Task (workflow) that it belongs to.")
    username: str = Field(description="CERN account of its owner.")
    source: str = Field(description="Site that it came from.")
    destination: str = Field(description="Site that it goes to.")
    source_lfn: str
    destination_lfn: str
    size_bytes: int = Field(description="0: unknown.")
    adler32: str | None = Field(description="Eight hexadecimal digits.")
    file_type: str = Field(description="output or log.")
    job_id: str = Field(description="Of the job that made it, as its submitter names it.")
    job_retry_count: int
    attempt: int | None = Field(description="Attempt, from 1; null in messages of publication.")
    fts_job_id: str | None = Field(description="FTS job that it is in, or was in last.")
    fts_server: str | None = Field(description="Address of the FTS server of that job.")
    destination_url: str | None = Field(description="Where that job writes it.")
    block: str | None = Field(description="Block in which it is published, in messages of publication.")


class Message(BaseModel):
    """One event of one file."""

    model_config = ConfigDict(frozen=True)

    id: str = Field(description="The same whenever this message comes again: drop what you have seen.")
    type: str = Field(description="Such as transfer.done or publication.failed.")
    timestamp: datetime = Field(description="When it happened.")
    state: str = Field(description="State of the transfer, or of the publication, since then.")
    reason: str | None = Field(description="Why, if that was said.")
    data: File


class Batch(BaseModel):
    """Body of a POST to a webhook."""

    model_config = ConfigDict(frozen=True)

    installation: str = Field(description="Who sends this: id of the installation of AsyncStageOut.")
    subscription: str = Field(description="Name of the subscription there.")
    messages: list[Message] = Field(description="At most one about each file, none before an earlier one.")


def message_type(event_kind: str, state: str) -> str:
    """Return the type of a message.

    >>> message_type("publication", "NOT_REQUIRED")
    'publication.not_required'
    """
    return f"{event_kind}.{state.lower()}"
