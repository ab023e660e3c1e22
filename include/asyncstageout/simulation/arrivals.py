"""When files arrive, and on how many links at a time."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp
from random import Random
from typing import Final

from asyncstageout.simulation.topology import LinkClass

HOURLY_SUBMISSIONS: Final = (3, 2, 2, 2, 2, 2, 3, 4, 7, 10, 11, 11, 9, 10, 11, 12, 12, 11, 9, 8, 7, 6, 5, 4)
"""Weight of each hour (UTC): Europe's working day, then America's."""
FLAT: Final = (1,)
DAY_S: Final = 86_400
LOUDNESS_S: Final = 900
"""For so long the links of a class stay as loud as they are."""
QUIETEST_TASKS: Final = 0.05
"""Tasks at a time below which a class counts as having so many: Gamma's tail grows without end."""


def intensity(profile: Sequence[float], at_s: float) -> float:
    """Return how many times the day's average arrives at a moment; an hour's weight holds in its middle.

    >>> round(intensity(FLAT, 5000), 3)
    1.0
    """
    place = (at_s % DAY_S) / DAY_S * len(profile) - 0.5
    before, part = int(place // 1), place % 1
    weight = profile[before % len(profile)] * (1 - part) + profile[(before + 1) % len(profile)] * part
    return weight * len(profile) / sum(profile)


def peak(profile: Sequence[float]) -> float:
    """Return how many times the day's average arrives at its busiest."""
    return max(profile) * len(profile) / sum(profile)


def loudness(tasks: float, random: Random) -> float:
    """Return how many times its average a class of links gets now, with so many tasks at a time behind it.

    Shot noise: many tasks are steady, one task is there or not.
    """
    shape = max(tasks, QUIETEST_TASKS)
    return random.gammavariate(shape, 1 / shape)


def streams(link: LinkClass, files_per_s: float, files_per_stream: float, stream_s: float) -> float:
    """Return how many flows (a task's files on one link) the links of a class carry at a time."""
    return files_per_s * link.share * stream_s / files_per_stream


def busy_links(links: float, flows: float) -> float:
    """Return on how many of so many equal links so many flows fall.

    >>> round(busy_links(100, 1), 2), round(busy_links(100, 10_000), 2)
    (1.0, 100.0)
    """
    return links * (1 - exp(-flows / links)) if flows / links > 1e-6 else flows


def jobs_of(files: float, busy: float, files_per_job: int) -> float:
    """Return into how many FTS jobs so many files fall that lie anyhow on so many links.

    >>> round(jobs_of(1000, 1, 200), 1), round(jobs_of(10, 1000, 200), 1)
    (5.5, 10.0)
    """
    if files <= 0 or busy <= 0:
        return 0.0
    each = files / busy
    touched = busy * (1 - exp(-each)) if each > 1e-6 else files
    return min(files, touched * max(1.0, files / touched / files_per_job + 0.5))
