"""How long files waited, counted in buckets that can be added up: quantiles of any sum, with a known error.

The buckets grow geometrically, as DDSketch's do (Masson, Rim and Lee, VLDB 2019): whatever was added to
whatever, a quantile is within :data:`RELATIVE_ERROR` of the true one.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from math import ceil, log

RELATIVE_ERROR = 0.1
LEAST_S = 0.1
"""Shorter waits count as this one."""
GROWTH = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
"""Each bucket ends at so many times the end of the one before; bucket 0 ends at 1 s."""


class Delay(StrEnum):
    """What is waited for."""

    ACCEPTED_AFTER = "accepted_after"
    """From a file's arrival, or from when it was sent again, to its first acceptance by FTS."""
    IN_FTS = "in_fts"
    """From the acceptance to the end of the copy in FTS, of attempts that succeeded."""
    SETTLED_AFTER = "settled_after"
    """From the end in FTS (whole seconds there) to DONE here."""
    DONE_AFTER = "done_after"
    """From a file's arrival, or from when it was sent again, to DONE."""


def bucket(waited_s: float) -> int:
    """Return the bucket of a wait, in seconds.

    >>> bucket(1.0), bucket(60.0), bucket(61.0)
    (0, 21, 21)
    """
    return ceil(log(max(waited_s, LEAST_S)) / log(GROWTH))


def value_s(number: int) -> float:
    """Return the wait that stands for a bucket: no wait in it is farther off than the error."""
    return float(2 * GROWTH**number / (GROWTH + 1))


def quantile_s(files: Mapping[int, int], share: float) -> float | None:
    """Return the wait that ``share`` of the files did not exceed, in seconds; None if there are no files.

    Args:
        files: how many waited, by bucket.
    """
    rank, seen = share * (sum(files.values()) - 1), 0
    for number in sorted(files):
        seen += files[number]
        if seen > rank:
            return value_s(number)
    return None
