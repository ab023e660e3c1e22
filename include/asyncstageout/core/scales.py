"""Round numbers for the scales of charts."""

from __future__ import annotations

import math

_NICE = (1, 2, 2.5, 5, 10)


def nice(largest: float) -> float:
    """Return a round number that is not less.

    >>> nice(0), nice(17), nice(1200), nice(96_000_000)
    (1.0, 20.0, 2000.0, 100000000.0)
    """
    if largest <= 1:
        return 1.0
    power = 10.0 ** math.floor(math.log10(largest))
    return next(step * power for step in _NICE if step * power >= largest)
