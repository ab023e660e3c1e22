"""What an operator may set for a link, and which setting counts when several do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class LinkPolicy:
    """How files travel on one link."""

    files_per_job: int = 200
    max_files_in_flight: int = 20_000
    """Files of this link in FTS at one time, at most."""
    max_attempts: int = 3
    retry_scale: float = 1.0
    """Factor on every waiting time before a retry."""
    verify_checksum: str = "both"
    overwrite: bool = True
    """As ASO and CRAB do: a task that runs again writes the same names with other bytes."""
    overwrite_wrong: bool = True
    """Where ``overwrite`` is off: once overwrite what an attempt of our own may have left, if it is wrong."""
    fts_retry: int = -1
    """Retries inside FTS; -1 is none, since this service retries and shows why."""
    max_time_in_queue_h: int = 10
    paused: str | None = None
    """Why no new file may start here, or None."""
    breaker_attempts: int = 20
    """The breaker judges a link by at least so many attempts in 10 minutes; 0 switches it off."""
    breaker_failed_share: float = 0.8
    """From this share of failed attempts on, nothing starts but probes."""


@dataclass(frozen=True, slots=True)
class PolicyRow:
    """One row of configuration: settings for what it names; None names everything."""

    source: str | None
    destination: str | None
    settings: dict[str, Any]

    def rank(self) -> int:
        """More names, more weight; of two with one name each, the destination's counts (it is written to)."""
        return 2 * (self.destination is not None) + (self.source is not None)

    def covers(self, source: str, destination: str) -> bool:
        return self.source in (None, source) and self.destination in (None, destination)


SETTINGS = frozenset(item.name for item in fields(LinkPolicy))


def policy_for(rows: Iterable[PolicyRow], source: str, destination: str) -> LinkPolicy:
    """Return the policy of a link: each setting from the most specific row that sets it."""
    merged: dict[str, Any] = {}
    for row in sorted((row for row in rows if row.covers(source, destination)), key=PolicyRow.rank):
        merged |= row.settings
    return LinkPolicy(**merged)
