"""Counters for a monitoring system, made of the statistics: no restart of anything sets them back.

They begin anew every Monday at 00:00 UTC, which a monitoring system takes for the restart of a counter: so a
week is added up, never all of the past. Which links have counters of their own is decided by the week before:
none comes or goes within a week, since what is then left for the others would look like a restart, too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from psycopg import Connection
from psycopg.rows import dict_row

from asyncstageout.catalogue.measures import ATTEMPTS, COLUMNS, COUNTS, MOVES, added_up
from asyncstageout.core.delays import GROWTH, Delay, value_s
from asyncstageout.core.planning import Link

WEEK = timedelta(days=7)
LINKS = 20
"""So many links have counters of their own; all others are counted together."""
OTHER = Link("other", "other")
EDGES = (5, 11, 17, 20, 23, 28, 34, 41, 46, 50, 57, 62)
"""Buckets of :mod:`asyncstageout.core.delays` at whose ends a histogram is told: about 3, 9, 30 and 55 s,
2, 5 and 15 minutes, 1, 3, 6 and 26 hours, and 3 days."""
LINK_EVENTS = ("done", "failed")

_MONDAY = datetime(2000, 1, 3, tzinfo=UTC)

_UNTIL = "SELECT coalesce(max(until), now()) FROM rolled_hour"

_BUSIEST = """
SELECT subject, other FROM (
    SELECT subject, other, done_bytes FROM statistic_day
    WHERE kind = 'link' AND at >= %(start)s AND at < %(end)s
    UNION ALL
    -- In its first week an installation has nothing else.
    SELECT subject, other, done_bytes FROM statistic_hour
    WHERE kind = 'link' AND at >= %(end)s AND at < %(end)s + interval '1 day'
        AND NOT EXISTS (SELECT FROM statistic_day WHERE kind = 'total' AND at < %(end)s)
) s GROUP BY 1, 2 ORDER BY sum(done_bytes) DESC, 1, 2 LIMIT %(links)s
"""

# Days that were made, the hours of the others, and what is counted of the open hour.
_PIECES = """
SELECT {columns} FROM statistic_day s WHERE at >= %(start)s AND {of}
UNION ALL SELECT {columns} FROM statistic_hour s WHERE at >= %(start)s AND {of}
    AND NOT EXISTS (SELECT FROM statistic_day d
        WHERE d.kind = 'total' AND d.subject = '' AND d.other = '' AND d.at = date_trunc('day', s.at, 'UTC'))
UNION ALL SELECT {columns} FROM statistic_slice s WHERE at >= %(start)s AND {of}
"""
_COLUMNS = ", ".join(COLUMNS)
_SUM = "WITH {added} SELECT * FROM added"
_TOTAL = _SUM.format(
    added=added_up(
        _PIECES.format(
            columns=f"true AS whole, {_COLUMNS}", of="kind = 'total' AND subject = '' AND other = ''"
        ),
        ("whole",),
    )
)
_OF_LINKS = _SUM.format(
    added=added_up(
        _PIECES.format(
            columns=f"subject, other, {_COLUMNS}",
            of="kind = 'link' AND (subject, other) IN (SELECT * FROM unnest(%(sources)s::text[],"
            " %(destinations)s::text[]))",
        ),
        ("subject", "other"),
        (*COUNTS, Delay.DONE_AFTER),
    )
)


class Count(NamedTuple):
    """One number of a counter or histogram."""

    name: str
    labels: tuple[str, ...]
    value: float


class Week(NamedTuple):
    """Since when counters count, and up to when what happened is in them."""

    start: datetime
    until: datetime


def week(conn: Connection) -> Week:
    """Return the week that counters are of."""
    (until,) = conn.execute(_UNTIL).fetchone() or (datetime.now(UTC),)
    # A week is over when its last minute is counted, not when the clock says so.
    return Week(_MONDAY + (until - timedelta(seconds=1) - _MONDAY) // WEEK * WEEK, until)


def busiest_links(conn: Connection, start: datetime) -> list[Link]:
    """Return the links of the most volume in the week before ``start``."""
    rows = conn.execute(_BUSIEST, {"start": start - WEEK, "end": start, "links": LINKS})
    return [Link(*row) for row in rows]


def counts(conn: Connection, start: datetime, links: Sequence[Link]) -> Iterator[Count]:
    """Return all counters since the beginning of the week.

    Args:
        links: those with counters of their own (:func:`busiest_links`).
    """
    with conn.cursor(row_factory=dict_row) as cursor:
        total = cursor.execute(_TOTAL, {"start": start}).fetchone() or {}
        values = {
            "start": start,
            "sources": [link.source for link in links],
            "destinations": [link.destination for link in links],
        }
        by_link = {
            Link(row["subject"], row["other"]): row for row in cursor.execute(_OF_LINKS, values).fetchall()
        }
    yield from _of_all(total)
    found = {link: by_link.get(link, {}) for link in links}
    yield from _by_link(found | {OTHER: _rest(total, found.values())})


def _of_all(total: Mapping[str, Any]) -> Iterator[Count]:
    for name in MOVES:
        yield Count("files_total", (name,), total.get(name, 0))
        yield Count("file_bytes_total", (name,), total.get(f"{name}_bytes", 0))
    for name in ATTEMPTS:
        yield Count("attempts_total", (name.removeprefix("attempts_"),), total.get(name, 0))
    for category, attempts in (total.get("failures") or {}).items():
        yield Count("failed_attempts_total", (category,), attempts)
    for word, files in (total.get("around") or {}).items():
        kind, _, state = word.partition(" ")
        yield Count("file_events_total", (kind, state), files)
    for delay in Delay:
        yield from _histogram("delay_seconds", (delay.value,), dict(total.get(delay) or ()))


def _by_link(found: Mapping[Link, Mapping[str, Any]]) -> Iterator[Count]:
    for link, row in found.items():
        for name in LINK_EVENTS:
            yield Count("link_files_total", (*link, name), row.get(name, 0))
            yield Count("link_bytes_total", (*link, name), row.get(f"{name}_bytes", 0))
        for name in ATTEMPTS:
            yield Count("link_attempts_total", (*link, name.removeprefix("attempts_")), row.get(name, 0))
        yield from _histogram("link_done_seconds", link, dict(row.get(Delay.DONE_AFTER) or ()))


def _rest(total: Mapping[str, Any], rows: Collection[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what is left of the total without some links."""
    names = [*(f"{name}{unit}" for name in LINK_EVENTS for unit in ("", "_bytes")), *ATTEMPTS]
    rest: dict[str, Any] = {
        name: max(total.get(name, 0) - sum(row.get(name, 0) for row in rows), 0) for name in names
    }
    waits: dict[int, int] = dict(total.get(Delay.DONE_AFTER) or ())
    for row in rows:
        for number, files in row.get(Delay.DONE_AFTER) or ():
            waits[number] = max(waits.get(number, 0) - files, 0)
    return rest | {Delay.DONE_AFTER: list(waits.items())}


def _histogram(name: str, labels: tuple[str, ...], files: Mapping[int, int]) -> Iterator[Count]:
    """Return a histogram; its counts are exact, its sum is within the error of the buckets."""
    for edge in EDGES:
        within = sum(count for number, count in files.items() if number <= edge)
        yield Count(f"{name}_bucket", (*labels, f"{GROWTH**edge:.4g}"), within)
    total = sum(files.values())
    yield Count(f"{name}_bucket", (*labels, "+Inf"), total)
    yield Count(f"{name}_sum", labels, sum(value_s(number) * count for number, count in files.items()))
    yield Count(f"{name}_count", labels, total)
