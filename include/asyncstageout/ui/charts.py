"""Charts as SVG that the server draws: there with the first paint, in any colours, on paper, scriptless.

Places along the time are in percent of the width, so that a chart fits any screen and no letter is stretched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, NamedTuple

from markupsafe import Markup

from asyncstageout.catalogue.statistics import Period
from asyncstageout.core.scales import nice
from asyncstageout.ui import words

HEIGHT = 160
"""Of the plot, in CSS pixels."""
LABELS = 6
"""Times written below a chart, at most."""
_DAY = timedelta(days=1)
_NICE_S = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14_400, 21_600, 43_200, 86_400)

Say = Callable[[Any], str | Markup]


class Series(NamedTuple):
    """What is drawn in one colour."""

    name: str
    """Class in the style sheet, which knows its colour: a state in small letters, ``p50``, ``p95``."""
    title: str
    values: Sequence[float | None]
    """One for each piece; None: nothing is known of it."""


class Bar(NamedTuple):
    """A part of a column."""

    series: str
    y: float
    height: float


class Slot(NamedTuple):
    """One piece of the time."""

    x: float
    """Percent."""
    width: float
    bars: Sequence[Bar]
    words: str


class Segment(NamedTuple):
    """A piece of a line."""

    series: str
    x1: float
    y1: float
    x2: float
    y2: float


class Mark(NamedTuple):
    """A number beside the plot, or a time below it."""

    at: float
    """Pixels from above, or percent from the left."""
    words: str


@dataclass(frozen=True, slots=True)
class Chart:
    """What a template's ``chart`` macro shows, with the same as a table behind it.

    Columns stand on one another, which adds them up; lines do not.
    """

    name: str
    title: str
    starts: Sequence[datetime]
    width: timedelta
    series: Sequence[Series]
    say: Say
    """Says a value with its unit."""
    is_lines: bool = False
    until: datetime | None = None
    """Up to then the last piece is counted; None: it is over."""

    @property
    def is_empty(self) -> bool:
        return not any(value for one in self.series for value in one.values)

    @property
    def top(self) -> float:
        """Value at the upper edge."""
        if self.is_lines:
            largest = max((value for one in self.series for value in one.values if value), default=0)
            return next((step for step in _NICE_S if step >= largest), float(largest))
        sums = (
            sum(value or 0 for value in piece) for piece in zip(*(s.values for s in self.series), strict=True)
        )
        return nice(max(sums, default=0))

    def scale(self) -> list[str | Markup]:
        """Return what stands beside the lines of the plot, from above."""
        return [self.say(_whole(self.top * part)) for part in (1, 0.5)] + [self.say(0)]

    def slots(self) -> list[Slot]:
        step = 100 / max(len(self.starts), 1)
        return [
            Slot(place * step, step, tuple(self._bars(place)), self.piece(place))
            for place in range(len(self.starts))
        ]

    def segments(self) -> Iterator[Segment]:
        step = 100 / max(len(self.starts), 1)
        for one in self.series:
            for place, (value, following) in enumerate(pairwise([*one.values, None])):
                if value is None:
                    continue
                x, y = (place + 0.5) * step, self._y(value)
                if following is not None:
                    yield Segment(one.name, x, y, x + step, self._y(following))
                elif place == 0 or one.values[place - 1] is None:
                    yield Segment(one.name, x, y, x, y)

    def marks(self) -> list[Mark]:
        """Return times below the plot."""
        every = math.ceil(len(self.starts) / LABELS) or 1
        step = 100 / max(len(self.starts), 1)
        form = "{0.day} {0:%b}" if self.width >= timedelta(hours=3) else "{0:%H:%M}"
        return [
            Mark(place * step, form.format(self.starts[place])) for place in range(0, len(self.starts), every)
        ]

    def piece(self, place: int) -> str:
        """Say what happened in one piece."""
        parts = [
            f"{one.title} {self.say(value)}"
            for one in self.series
            if (value := one.values[place]) is not None
        ]
        return f"{self.time_of(place)}: {', '.join(parts) or 'nothing is known'}"

    def time_of(self, place: int) -> str:
        start, end = self.starts[place], self.starts[place] + self.width
        if self.width >= _DAY:
            said = f"{start.day} {start:%b}"
        else:
            said = f"{start.day} {start:%b %H:%M} to {end:%H:%M}"
        return said + (" so far" if self.until and self.until < end else "")

    def _bars(self, place: int) -> Iterator[Bar]:
        if self.is_lines:
            return
        below = 0.0
        for one in self.series:
            value = one.values[place] or 0
            if value:
                height = max(value / self.top * HEIGHT, 1)
                yield Bar(one.name, round(HEIGHT - below - height, 1), round(height, 1))
                below += height

    def _y(self, value: float) -> float:
        return round(HEIGHT - value / (self.top or 1) * HEIGHT, 1)


def _whole(value: float) -> float | int:
    return int(value) if value == int(value) else value


def starts_of(period: Period) -> list[datetime]:
    """Return the beginnings of the pieces of a period, in UTC."""
    assert period.width is not None  # noqa: S101 - a chart is of pieces
    count = -((period.start - period.end) // period.width)
    return [period.start.astimezone(UTC) + number * period.width for number in range(count)]


def columns(
    name: str,
    title: str,
    period: Period,
    rows: Iterable[Mapping[str, Any]],
    *,
    measures: Mapping[str, tuple[str, str]],
    say: Say,
) -> Chart:
    """Return a chart of columns.

    Args:
        rows: as :func:`asyncstageout.catalogue.statistics.over_time` returns them.
        measures: name of a series -> (its title, the measure), from below.
    """
    starts, by_start = starts_of(period), {row["at"]: row for row in rows}
    series = [
        Series(key, said, [int(by_start[at][measure]) if at in by_start else 0 for at in starts])
        for key, (said, measure) in measures.items()
    ]
    return Chart(name, title, starts, _width(period), series, say, until=period.end)


def delay_lines(
    name: str, title: str, period: Period, rows: Iterable[Mapping[str, Any]], delay: str
) -> Chart:
    """Return a chart of a delay: how long half of the files waited at most, and all but 5 %."""
    starts, by_start = starts_of(period), {row["at"]: row for row in rows}

    def values(quantile: str) -> list[float | None]:
        return [found[quantile] if (found := by_start.get(at, {}).get(delay)) else None for at in starts]

    series = [Series("p50", "half within", values("p50_s")), Series("p95", "95 % within", values("p95_s"))]
    return Chart(name, title, starts, _width(period), series, words.duration, is_lines=True, until=period.end)


def _width(period: Period) -> timedelta:
    assert period.width is not None  # noqa: S101 - a chart is of pieces
    return period.width
