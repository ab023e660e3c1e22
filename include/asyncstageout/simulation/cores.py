"""Who computes when several want to: everybody goes slower alike, as on a machine with too few cores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

ROUNDS = 25
EXACT = 1.001
NOTICED = 0.01
"""Part of all cores by which a flow must change to count as another one."""
LEAST_PART = 1e-3
"""Of all cores, that is left for activities whatever flows beside them."""


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

    def takes_s(self, slow: Mapping[Kind, float]) -> float:
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
    slow: dict[Kind, float] = field(default_factory=lambda: dict.fromkeys(Kind, 1.0))
    """How many times longer everything takes now than alone."""
    running: dict[int, Activity] = field(default_factory=dict)
    _postgres_flow: float = 0.0

    def swap(self, before: Activity | None, after: Activity | None) -> None:
        """Note that an activity ended and that another one began."""
        if before is not None:
            self.running.pop(id(before), None)
        if after is not None:
            self.running[id(after)] = after
        self._slow_down()

    def flow(self, postgres: float) -> None:
        """Note how many cores of Postgres are busy whatever the activities do."""
        if abs(postgres - self._postgres_flow) > NOTICED * self.count[Kind.POSTGRES]:
            self._postgres_flow = postgres
            self._slow_down()

    def _slow_down(self) -> None:
        """Find how many times longer everything takes, so that no more is computed than there are cores."""
        costs = [(activity, activity.cpu_s()) for activity in self.running.values()]
        flows = {Kind.POSTGRES: self._postgres_flow}
        for _ in range(ROUNDS):
            speeds = [1 / (activity.takes_s(self.slow) or 1.0) for activity, _ in costs]
            is_exact = True
            for kind, slow in self.slow.items():
                used = sum(cost[kind] * speed for (_, cost), speed in zip(costs, speeds, strict=True))
                over = used / max(self.count[kind] - flows.get(kind, 0.0), LEAST_PART * self.count[kind])
                if over > EXACT or (slow > 1 and over < 1 / EXACT):
                    self.slow[kind], is_exact = max(1.0, slow * over), False
            if is_exact:
                return

    def spend(self, cpu_s: Mapping[Kind, float], part: float = 1.0) -> None:
        for kind, amount in cpu_s.items():
            self.busy_s[kind] += amount * part
