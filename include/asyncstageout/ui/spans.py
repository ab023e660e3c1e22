"""Times that pages look back on, and into which pieces their charts cut them."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Literal, NamedTuple

from asyncstageout.catalogue.statistics import Kind, Period

SpanName = Literal["1h", "6h", "24h", "7d", "30d"]
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


class Span(NamedTuple):
    """So far back from now."""

    name: SpanName
    words: str
    length: timedelta
    width: timedelta
    """Of a piece, where everything is counted by minutes; links, sites and users are counted by hours."""

    def whole(self, now: datetime) -> Period:
        """Return the time as a whole."""
        return Period.covering(now - self.length, now)

    def pieces(self, now: datetime, kind: Kind = Kind.TOTAL) -> Period:
        """Return the time in pieces."""
        return Period.covering(now - self.length, now, self.width, kind=kind)

    def by_hours(self, now: datetime) -> Period:
        """Return the time in pieces that delays are counted for: hours at least."""
        return Period.covering(now - self.length, now, max(self.width, HOUR))


SPANS: dict[SpanName, Span] = {
    span.name: span
    for span in (
        Span("1h", "the last hour", HOUR, MINUTE),
        Span("6h", "the last 6 hours", 6 * HOUR, 5 * MINUTE),
        Span("24h", "the last 24 hours", DAY, 30 * MINUTE),
        Span("7d", "the last 7 days", 7 * DAY, 3 * HOUR),
        Span("30d", "the last 30 days", 30 * DAY, DAY),
    )
}
