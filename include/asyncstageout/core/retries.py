"""When a failed file is tried again: exponential, with jitter, per category, a bounded number of times."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from asyncstageout.core.failures import Category


@dataclass(frozen=True, slots=True)
class Backoff:
    """``first_s * factor ** (attempt - 1)``, at most ``cap_s``, spread by +-20 %."""

    first_s: float = 60.0
    factor: float = 4.0
    cap_s: float = 7200.0
    """The cool-off of the original AsyncStageOut, which was used for every retry."""


DEFAULT_BACKOFF = Backoff()
BACKOFFS: dict[Category, Backoff] = {
    # The link is busy, not broken: there is no use in queueing again at once.
    Category.QUEUE_TIMEOUT: Backoff(first_s=900.0, factor=2.0),
    # Nothing was copied and nothing is wrong with the file.
    Category.LOST: Backoff(first_s=5.0, factor=4.0),
    # Until somebody has renewed it.
    Category.CREDENTIAL: Backoff(first_s=900.0, factor=2.0),
}
JITTER = 0.2

CANCELLED_COPY_S = 15.0
"""How long a copy may live on after FTS said CANCELED; dying, it removes what is at its destination.

FTS looks for cancelled copies every 10 s (``CancelCheckInterval``). Until then nothing may be sent there.
"""

ATTEMPT_SHARES: dict[Category, float] = {
    # No byte was moved: it costs little to queue again, and patience is what helps.
    Category.QUEUE_TIMEOUT: 2.0,
    # Not the file's fault.
    Category.LOST: 2.0,
    Category.CREDENTIAL: 2.0,
    # The same bytes spoiled twice in a row are a broken storage, and every attempt moves them all.
    Category.DESTINATION_CHECKSUM: 2 / 3,
}


def attempts_allowed(category: Category, max_attempts: int) -> int:
    """Return after how many attempts a file is given up whose last one failed like this.

    Args:
        max_attempts: the link's limit for ordinary failures.
    """
    return ceil(max_attempts * ATTEMPT_SHARES.get(category, 1.0))


def retry_delay_s(category: Category, attempt: int, spread: float, scale: float = 1.0) -> float:
    """Return how long to wait before the next attempt, in seconds.

    Args:
        category: why the last attempt failed.
        attempt: how many attempts were made, from 1.
        spread: a number in [0, 1) that differs from file to file, so that they do not all come back at once.
        scale: the link's factor; below 1 where waiting teaches nothing (the sandbox).
    """
    backoff = BACKOFFS.get(category, DEFAULT_BACKOFF)
    delay_s = min(backoff.cap_s, backoff.first_s * backoff.factor ** (attempt - 1))
    return scale * delay_s * (1 - JITTER + 2 * JITTER * spread)
