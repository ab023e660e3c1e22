"""What happened to files in a time: in all, over time, by link, user, task or site. Reads only.

A time is put together from days that are over, the hours around them, the counted minutes of hours that are
not over, and the events since. What it costs follows the number of those, never that of files.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from psycopg import Connection
from psycopg.rows import dict_row

from asyncstageout.catalogue.measures import (
    ATTEMPTS,
    COLUMNS,
    COUNTED,
    COUNTS,
    DELAYS,
    MAPS,
    MOVES,
    WITHOUT_DELAYS,
    added_up,
)
from asyncstageout.core.delays import quantile_s

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
LIVE = timedelta(minutes=15)
"""So much is counted while somebody waits; what was not counted before that is missing from the answer."""
SHARES = {"p50_s": 0.5, "p95_s": 0.95, "p99_s": 0.99}
_MONDAY = datetime(2000, 1, 3, tzinfo=UTC)
"""What whole minutes, hours, days and weeks are counted from."""


class Kind(StrEnum):
    """By what is counted."""

    TOTAL = "total"
    LINK = "link"
    SOURCE = "source"
    DESTINATION = "destination"
    USER = "user"
    TASK = "task"


@dataclass(frozen=True, slots=True)
class Of:
    """All of a kind, or those that are named."""

    kind: Kind = Kind.TOTAL
    subject: str | None = None
    """The source of a link; the name of a site, user or task."""
    other: str | None = None
    """The destination of a link."""
    usernames: Collection[str] | None = None
    """Only these users, or their tasks; None: everybody's."""
    which: Collection[tuple[str, str]] | None = None
    """Only these pairs of ``subject`` and ``other``; None: all."""


EVERYTHING = Of()


@dataclass(frozen=True, slots=True)
class Period:
    """A time that is counted by itself, in pieces or as a whole. Times are aware."""

    start: datetime
    end: datetime
    width: timedelta | None = None
    """Of a piece; None: as a whole."""

    @classmethod
    def covering(
        cls, start: datetime, end: datetime, width: timedelta | None = None, *, kind: Kind = Kind.TOTAL
    ) -> Period:
        """Return the period of whole pieces that covers a time; by minutes only the total is counted."""
        least = MINUTE if width is not None and kind is Kind.TOTAL else HOUR
        step = least if width is None else max(width, least)
        return cls(_MONDAY + (start - _MONDAY) // step * step, end, width and step)

    @property
    def is_by_minutes(self) -> bool:
        return self.width is not None and self.width < HOUR

    @property
    def takes_days(self) -> bool:
        return self.width is None or self.width % DAY == timedelta(0)


_CONDITIONS = {
    "kind": "s.kind = %(kind)s::text::statistic_kind",
    "subject": "s.subject = %(subject)s",
    "other": "s.other = %(other)s",
    "which": "(s.subject, s.other) IN (SELECT * FROM unnest(%(subjects)s::text[], %(others)s::text[]))",
}
_OWNER = {Kind.USER: "s.subject", Kind.TASK: "s.other"}

# Each pair is a range of the index.
_COUNTED = """
SELECT {columns}
FROM unnest(%({name}_starts)s::timestamptz[], %({name}_ends)s::timestamptz[]) AS r(start_at, end_at)
    JOIN statistic_{name} s ON s.at >= r.start_at AND s.at < r.end_at
WHERE {condition}
"""

_MOVE_COUNTS = ", ".join(
    f"coalesce({aggregate} FILTER (WHERE {move}), 0) AS {name}{unit}"
    for name, move in MOVES.items()
    for aggregate, unit in (("count(*)", ""), ("sum(f.size_bytes)", "_bytes"))
)
_ATTEMPT_COUNTS = ", ".join(f"count(*) FILTER (WHERE {end}) AS {name}" for name, end in ATTEMPTS.items())

# As roll-ups are, but for delays: a row for each category of failure, which add up as those of hours do.
_LIVE = f"""
SELECT date_trunc('minute', e.at) AS at, s.subject, s.other, {_MOVE_COUNTS}, {_ATTEMPT_COUNTS},
    CASE WHEN e.failure_category IS NOT NULL THEN jsonb_build_object(e.failure_category, count(*)) END
        AS failures,
    NULL::jsonb AS around, {", ".join(f"NULL::integer[] AS {delay}" for delay in DELAYS)}
FROM transfer_event e
CROSS JOIN LATERAL (SELECT * FROM transfer WHERE id = e.transfer_id LIMIT 1) f
JOIN task k ON k.id = f.task_id
CROSS JOIN LATERAL (VALUES
    ('total'::statistic_kind, '', ''), ('link', f.source, f.destination), ('source', f.source, ''),
    ('destination', f.destination, ''), ('user', k.username, ''), ('task', k.name, k.username)
) s(kind, subject, other)
WHERE e.at >= %(live_start)s AND e.at < %(live_end)s AND {COUNTED} AND {{condition}}
GROUP BY 1, 2, 3, e.failure_category
"""

ORDERS: dict[str, tuple[str, ...]] = {
    "files": ("arrived", "done", "failed"),
    "bytes": ("done_bytes",),
    "failures": ("attempts_failed",),
    "name": (),
}
"""What comes first: that of which these counts together are most."""


def counted_until(conn: Connection) -> datetime | None:
    """Return up to when what happened is counted; None: nothing is."""
    row = conn.execute("SELECT max(until) FROM rolled_hour").fetchone()
    return row[0] if row else None


def totals(
    conn: Connection, period: Period, of: Of = EVERYTHING, *, columns: Collection[str] = COLUMNS
) -> dict[str, Any]:
    """Return the sums over a period of all that is meant."""
    rows = _ask(conn, period, of, keys=(), columns=columns)
    return rows[0] if rows else _finished({name: 0 if name in COUNTS else None for name in columns})


def over_time(
    conn: Connection, period: Period, of: Of = EVERYTHING, *, columns: Collection[str] = WITHOUT_DELAYS
) -> list[dict[str, Any]]:
    """Return the sums of each piece (``at``: its beginning) in which anything was counted, in their order."""
    return _ask(conn, period, of, keys=("at",), columns=columns, ending="ORDER BY at")


def by_subject(
    conn: Connection,
    period: Period,
    of: Of,
    *,
    order: str = "files",
    limit: int = 1000,
    columns: Collection[str] = WITHOUT_DELAYS,
) -> list[dict[str, Any]]:
    """Return the sums of each link, site, user or task, those first that ``order`` says (:data:`ORDERS`).

    Args:
        columns: those that are wanted (:mod:`asyncstageout.catalogue.measures`), which decides what thousands
            of links cost; those of the order are there too.
    """
    most = ORDERS[order]
    first = f"{' + '.join(most)} DESC, " if most else ""
    ending = f"ORDER BY {first}subject, other LIMIT %(limit)s"
    wanted = dict.fromkeys((*columns, *most))
    return _ask(conn, period, of, keys=("subject", "other"), columns=wanted, ending=ending, limit=limit)


_MOST_FAILED = """
SELECT subject, other, sum(attempts)::bigint AS failed_attempts
FROM (SELECT subject, other, {attempts} AS attempts FROM ({source}) p) counted
GROUP BY 1, 2 HAVING sum(attempts) > 0 ORDER BY 3 DESC, 1, 2 LIMIT %(limit)s
"""
# Whatever failed, of whatever category, is one of these; two counts are many times cheaper than a map.
_FAILED = "retried + failed"
_FAILED_OF = "(failures ->> %(category)s)::bigint"


def failures_by_subject(
    conn: Connection, period: Period, of: Of, *, category: str | None = None, limit: int = 1000
) -> list[dict[str, Any]]:
    """Return how many attempts failed of each link, site, user or task, the most first.

    Args:
        category: only such failures; None: all.
    """
    source, values = _source(conn, period, of, ("failures",) if category else ("retried", "failed"))
    query = _MOST_FAILED.format(source=source, attempts=_FAILED_OF if category else _FAILED)
    with conn.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query, values | {"category": category, "limit": limit}).fetchall()


_WHY = """
WITH word AS (
    SELECT p.subject, p.other, m.key AS category, sum(m.value::bigint) AS attempts
    FROM ({source}) p CROSS JOIN LATERAL jsonb_each_text(p.failures) m GROUP BY 1, 2, 3
)
SELECT DISTINCT ON (subject, other) subject, other, category FROM word
ORDER BY subject, other, attempts DESC, category
"""


def most_frequent_failures(
    conn: Connection, period: Period, kind: Kind, which: Collection[tuple[str, str]]
) -> dict[tuple[str, str], str]:
    """Return of which category most failed attempts of these were.

    Args:
        which: subjects with what is other about them (:class:`Of`). What it costs follows their number.
    """
    source, values = _source(conn, period, Of(kind, which=which), ("failures",))
    rows = conn.execute(_WHY.format(source=source), values)
    return {(subject, other): category for subject, other, category in rows}


def subjects_seen(conn: Connection, period: Period) -> dict[str, int]:
    """Return how many links, sites, users and tasks had anything to do with what happened, by kind."""
    pieces, values = _pieces(conn, period)
    named = "DISTINCT s.kind, s.subject, s.other"
    parts = [_COUNTED.format(name=name, columns=named, condition="s.kind <> 'total'") for name in pieces]
    rows = conn.execute(f"SELECT kind::text, count(*) FROM ({' UNION '.join(parts)}) s GROUP BY kind", values)
    return {kind.value: 0 for kind in Kind if kind is not Kind.TOTAL} | dict(rows.fetchall())


def _ask(
    conn: Connection, period: Period, of: Of, *, keys: Sequence[str], columns: Collection[str],
    ending: str = "", **values: Any,
) -> list[dict[str, Any]]:  # fmt: skip
    source, known = _source(conn, period, of, columns)
    at = "date_bin(%(width)s, at, %(start)s)" if period.width else "NULL::timestamptz"
    wanted = ", ".join((f"{at} AS at", "true AS whole", "subject", "other", *columns))
    added = added_up(f"SELECT {wanted} FROM ({source}) p", keys or ("whole",), columns)
    with conn.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(f"WITH {added} SELECT * FROM added {ending}", known | values)
        return [_finished(row) for row in rows]


def _source(conn: Connection, period: Period, of: Of, columns: Collection[str]) -> tuple[str, dict[str, Any]]:
    """Return a SELECT of all pieces of a period with ``at``, ``subject``, ``other`` and these columns."""
    pieces, values = _pieces(conn, period)
    condition = _condition(of)
    named = ", ".join(f"s.{name}" for name in ("at", "subject", "other", *columns))
    parts = [_COUNTED.format(name=name, columns=named, condition=condition) for name in pieces]
    if values["live_start"] < values["live_end"]:
        parts.append(f"SELECT {named} FROM ({_LIVE.format(condition=condition)}) s")
    return " UNION ALL ".join(parts), values | _meant(of) | {"width": period.width}


def _condition(of: Of) -> str:
    parts = [text for name, text in _CONDITIONS.items() if getattr(of, name) is not None]
    if of.usernames is not None:
        parts.append(f"{_OWNER[of.kind]} = ANY(%(usernames)s::text[])")
    return " AND ".join(parts)


def _meant(of: Of) -> dict[str, Any]:
    """Return the values that :func:`_condition` names."""
    return {
        "kind": of.kind.value,
        "subject": of.subject,
        "other": of.other,
        "usernames": None if of.usernames is None else list(of.usernames),
        "subjects": [subject for subject, _ in of.which or ()],
        "others": [other for _, other in of.which or ()],
    }


def _pieces(conn: Connection, period: Period) -> tuple[list[str], dict[str, Any]]:
    """Return which roll-ups a period is put together from, and of which times."""
    until = counted_until(conn)
    live_start = max(period.start, until or period.end - LIVE)
    is_near = period.end - live_start <= LIVE
    values: dict[str, Any] = {
        "start": period.start,
        "live_start": live_start,
        "live_end": period.end if is_near else live_start,
    }
    if period.is_by_minutes:
        ranges = {"minute": [(period.start, period.end)]}
    else:
        days = _made_days(conn, period) if period.takes_days else []
        between = [period.start, *(edge for first, last in days for edge in (first, last)), period.end]
        hours = [
            (first, last) for first, last in zip(between[::2], between[1::2], strict=True) if first < last
        ]
        ranges = {"day": days, "hour": hours, "slice": [(period.start, period.end)]}
    for name, times in ranges.items():
        values[f"{name}_starts"] = [first for first, _ in times]
        values[f"{name}_ends"] = [last for _, last in times]
    return list(ranges), values


def _made_days(conn: Connection, period: Period) -> list[tuple[datetime, datetime]]:
    """Return the times that whole days cover which were added up, without gaps in them."""
    rows = conn.execute(
        "SELECT at FROM statistic_day WHERE kind = 'total' AND at >= %s AND at <= %s ORDER BY at",
        (period.start, period.end - DAY),
    )
    return list(_runs(day for (day,) in rows))


def _runs(days: Iterator[datetime]) -> Iterator[tuple[datetime, datetime]]:
    first = last = None
    for day in days:
        if last is not None and day != last:
            yield first or last, last
            first = day
        first, last = first or day, day + DAY
    if first is not None and last is not None:
        yield first, last


def _finished(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row for people: quantiles in place of buckets, and how many of the attempts went well."""
    row.pop("whole", None)
    if row.keys() >= ATTEMPTS.keys():
        ended = sum(row[name] for name in ATTEMPTS)
        row["efficiency"] = row["attempts_done"] / ended if ended else None
    for name in row.keys() & MAPS:
        row[name] = row[name] or {}
    for name in row.keys() & DELAYS:
        files = dict(row[name] or ())
        row[name] = {name: quantile_s(files, share) for name, share in SHARES.items()} if files else None
    return row
