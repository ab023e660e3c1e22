"""Who computes when several want to: everybody goes slower alike, as on a machine with too few cores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

ROUNDS = 25
EXACT = 1.001


class Kind(StrEnum):
    """Whose cores."""

    PYTHON = "python"
    POSTGRES = "postgres"
    FTS = "fts"


@dataclass(slots=True)
class Activity:
    """One thing that takes time, in so many equal strands side by side. Seconds are of one strand."""

    wait_s: float = 0.0
    """Nobody of ours computes."""
    python_s: float = 0.0
    postgres_s: float = 0.0
    fts_s: float = 0.0
    """At the other end, in ``threads``, meanwhile."""
    threads: int = 1
    strands: float = 1.0
    done: float = 0.0
    """Part of it that is over."""

    def takes_s(self, slow: dict[Kind, float]) -> float:
        """Return how long all of it takes where everything is so many times slower."""
        ours = self.python_s * slow[Kind.PYTHON] + self.postgres_s * slow[Kind.POSTGRES]
        return self.wait_s + max(ours, self.fts_s * slow[Kind.FTS] / self.threads)

    def cpu_s(self) -> dict[Kind, float]:
        """Return what all of it computes, in all strands."""
        return {
            Kind.PYTHON: self.python_s * self.strands,
            Kind.POSTGRES: self.postgres_s * self.strands,
            Kind.FTS: self.fts_s * self.strands,
        }


@dataclass(slots=True)
class Cores:
    """So many cores of each kind, and how long they have been busy."""

    count: dict[Kind, float]
    busy_s: dict[Kind, float] = field(default_factory=lambda: dict.fromkeys(Kind, 0.0))

    def slowness(self, running: Sequence[Activity], flows: dict[Kind, float]) -> dict[Kind, float]:
        """Return how many times slower each kind is now.

        Args:
            flows: cores that are busy whatever the activities do.
        """
        slow = dict.fromkeys(Kind, 1.0)
        for _ in range(ROUNDS):
            is_exact = True
            for kind in Kind:
                used = sum(
                    activity.cpu_s()[kind] / takes_s
                    for activity in running
                    if (takes_s := activity.takes_s(slow)) > 0
                )
                over = used / max(self.count[kind] - flows.get(kind, 0.0), 1e-3 * self.count[kind])
                if over > EXACT or (slow[kind] > 1 and over < 1 / EXACT):
                    slow[kind], is_exact = max(1.0, slow[kind] * over), False
            if is_exact:
                break
        return slow

    def spend(self, cpu_s: dict[Kind, float], part: float = 1.0) -> None:
        for kind, amount in cpu_s.items():
            self.busy_s[kind] += amount * part
