"""When an FTS job counts as slow: for people to look at, nothing is done about it."""

from __future__ import annotations

FACTOR = 4.0
AFTER_S = 600.0
"""No job is slow before; a link that is quick has small medians."""
SAMPLE = 20
"""So many of the last jobs of a link that ended are what the next ones are measured by ..."""
LEAST = 5
"""... if there are so many at least."""

RULE = (
    f"A job is slow when FTS has had it for more than {AFTER_S / 60:.0f} minutes, and {FACTOR:.0f} times"
    f" longer than half of the last {SAMPLE} jobs of its link took; with fewer than {LEAST} of those none is."
)


def is_slow(took_s: float, median_s: float | None) -> bool:
    """Say whether a job at FTS is slow.

    Args:
        took_s: since FTS accepted it.
        median_s: of the last jobs of its link; None: they are too few.

    >>> is_slow(3600, 700), is_slow(3600, 1000), is_slow(599, 10), is_slow(3600, None)
    (True, False, False, False)
    """
    return median_s is not None and took_s > AFTER_S and took_s > FACTOR * median_s
