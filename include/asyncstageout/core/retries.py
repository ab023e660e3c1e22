"""When a failed file is tried again: exponential, with jitter, per category, a bounded number of times."""

from __future__ import annotations

from dataclasses import dataclass

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
}
JITTER = 0.2


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
