"""A link's circuit breaker: when too many attempts fail, files wait instead of failing one after the other.

A link without a breaker is healthy. Its life is the table of :func:`next_step`:

======== ============================================== ==========================================
state    what is seen                                   what follows
======== ============================================== ==========================================
none     most of enough recent attempts failed          OPEN; nothing starts for 5 minutes
OPEN     the wait is over (a cycle sees it)             PROBING: a few files go
OPEN     what was still under way arrives after all     none
PROBING  most of the probe arrives                      none
PROBING  most of the probe fails                        OPEN, the wait twice as long, at most 1 hour
PROBING  the probe ends and says nothing of the link    OPEN, and the next cycle probes again
======== ============================================== ==========================================
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum, StrEnum

from asyncstageout.core.policies import LinkPolicy

WINDOW_S = 600
PROBE_FILES = 5
FIRST_WAIT_S = 300.0
LONGEST_WAIT_S = 3600.0


class BreakerState(StrEnum):
    OPEN = "open"
    PROBING = "probing"


class Step(Enum):
    """What a breaker does next."""

    STAY = "stay"
    OPEN = "open"
    REOPEN = "reopen"
    PROBE_AGAIN = "probe again"
    CLOSE = "close"


@dataclass(frozen=True, slots=True)
class Score:
    """Attempts that ended and speak of the link, and those that have not ended."""

    succeeded: int = 0
    failed: int = 0
    pending: int = 0

    @property
    def ended(self) -> int:
        return self.succeeded + self.failed


@dataclass(frozen=True, slots=True)
class Breaker:
    """A link on which nothing starts but probes."""

    state: BreakerState
    reason: str
    openings: int
    """How often it has opened since the link was healthy."""
    opened_at: datetime
    probe_at: datetime
    """OPEN: when the next probe may start. PROBING: when it did."""

    def room(self, room: int, now: datetime) -> int:
        """Return how many files may start now, of those for whom there is room."""
        if self.state is BreakerState.PROBING or now < self.probe_at:
            return 0
        return min(room, PROBE_FILES)

    def sentence(self, now: datetime) -> str:
        """Say why files wait, and until when."""
        if self.state is BreakerState.PROBING:
            following = f"probing since {self.probe_at:%H:%M}"
        else:
            following = (
                f"next probe {self.probe_at:%H:%M}" if now < self.probe_at else "the next probe is due"
            )
        return f"breaker open since {self.opened_at:%H:%M}: {self.reason}; {following}"


def next_step(state: BreakerState | None, recent: Score, probe: Score, policy: LinkPolicy) -> Step:
    """Return what follows for a link.

    Args:
        state: of its breaker; None while it has none.
        recent: all attempts that ended in the last :data:`WINDOW_S` seconds, or since the breaker opened.
        probe: the files of the running probe.
    """
    if state is None:
        return Step.OPEN if _trips(recent, policy) else Step.STAY
    if not policy.breaker_attempts or _most_succeeded(recent):
        return Step.CLOSE
    if state is BreakerState.OPEN:
        return Step.STAY
    return _after_probe(probe)


def _trips(recent: Score, policy: LinkPolicy) -> bool:
    enough = 0 < policy.breaker_attempts <= recent.ended
    return enough and recent.failed >= policy.breaker_failed_share * recent.ended


def _most_succeeded(recent: Score) -> bool:
    return recent.succeeded >= PROBE_FILES and 2 * recent.succeeded > recent.ended


def _after_probe(probe: Score) -> Step:
    files = probe.ended + probe.pending
    if 2 * probe.succeeded > files:
        return Step.CLOSE
    if probe.failed and 2 * probe.failed >= files:
        return Step.REOPEN
    return Step.STAY if probe.pending else Step.PROBE_AGAIN


def wait_s(openings: int) -> float:
    """Return for how long nothing starts after the n-th opening in a row, in seconds."""
    doublings = min(openings - 1, 10)
    return min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0**doublings)


def account(recent: Score, most_frequent: str) -> str:
    """Say what was seen.

    >>> account(Score(6, 34), "SOURCE [112] curl error (56)")
    '34 of 40 attempts failed, lately SOURCE [112] curl error (56)'
    """
    return f"{recent.failed} of {recent.ended} attempts failed, lately {most_frequent[:80]}"
