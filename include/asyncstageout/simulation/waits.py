"""Files that wait, with since when; and how long those waited that do no more."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

from asyncstageout.core.delays import bucket, quantile_s

_bucket = cache(bucket)
MOST_COHORTS = 48
"""Longer queues are kept coarser: neighbours become one, with the age of the older."""


class Cohort(NamedTuple):
    since_s: float
    files: float


@dataclass(slots=True)
class Queue:
    """A first-in, first-out queue of amounts."""

    files: float = 0.0
    _cohorts: deque[Cohort] = field(default_factory=deque)

    def put(self, cohorts: Iterable[Cohort]) -> None:
        for cohort in cohorts:
            if cohort.files > 0:
                self._cohorts.append(cohort)
                self.files += cohort.files
        if len(self._cohorts) > MOST_COHORTS:
            self._coarsen()

    def take(self, files: float) -> list[Cohort]:
        """Take so many files at most, the oldest first."""
        taken = []
        while files > 0 and self._cohorts:
            since_s, there = self._cohorts.popleft()
            part = min(there, files)
            taken.append(Cohort(since_s, part))
            files -= part
            if part < there:
                self._cohorts.appendleft(Cohort(since_s, there - part))
        self.files = sum(cohort.files for cohort in self._cohorts) if self._cohorts else 0.0
        return taken

    def __iter__(self) -> Iterator[Cohort]:
        return iter(self._cohorts)

    def _coarsen(self) -> None:
        old, merged = list(self._cohorts), deque[Cohort]()
        for first, second in zip(old[::2], [*old[1::2], None][: len(old[::2])], strict=True):
            merged.append(Cohort(first.since_s, first.files + second.files) if second else first)
        self._cohorts = merged


@dataclass(slots=True)
class Delays:
    """How long files waited, in the buckets of :mod:`asyncstageout.core.delays`."""

    counts: dict[int, float] = field(default_factory=dict)

    def note(self, waited_s: float, files: float) -> None:
        if files > 0:
            place = _bucket(round(waited_s, 1))
            self.counts[place] = self.counts.get(place, 0.0) + files

    def add(self, others: Delays) -> None:
        for place, files in others.counts.items():
            self.counts[place] = self.counts.get(place, 0.0) + files

    def quantile_s(self, share: float) -> float | None:
        """Return the wait that this share of the files did not exceed; None if there were none."""
        # Amounts are no whole numbers here: scaled up, the one that core.delays takes off does not count.
        total = sum(self.counts.values())
        if total <= 0:
            return None
        return quantile_s({place: round(files / total * 1e9) for place, files in self.counts.items()}, share)
