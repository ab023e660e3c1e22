"""What happened in the week, for people: a table by day, and counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from psycopg import Connection

from week.manifest import DAYS, START

_DAYS = """
SELECT least((e.at AT TIME ZONE 'UTC')::date, %(after)s) AS day, {columns} FROM {table} e
GROUP BY 1 ORDER BY 1
"""
_MOVES = {
    "arrived": "from_state IS NULL",
    "again": "from_state IN ('DONE', 'FAILED', 'KILLED') AND to_state = 'NEW'",
    "to FTS": "to_state = 'SUBMITTED'",
    "retried": "to_state = 'RETRY'",
    "done": "to_state = 'DONE'",
    "failed": "to_state = 'FAILED'",
    "killed": "to_state = 'KILLED'",
}
_OTHERS = {
    "published": "kind = 'publication' AND to_state = 'DONE'",
    "cleaned": "kind = 'cleaning' AND to_state = 'DELETED'",
    "told": "kind = 'delivery' AND to_state = 'DELIVERED'",
}


def table(conn: Connection) -> Iterator[str]:
    """Yield the lines of the table by day; what came after Sunday is in one line."""
    rows: dict[Any, dict[str, int]] = {}
    for name, columns in (("transfer_event", _MOVES), ("file_event", _OTHERS)):
        wanted = ", ".join(f"count(*) FILTER (WHERE {condition})" for condition in columns.values())
        query = _DAYS.format(columns=wanted, table=name)
        for day, *counts in conn.execute(query, {"after": (START + timedelta(days=DAYS)).date()}):
            rows.setdefault(day, {}).update(zip(columns, counts, strict=True))
    yield f"{'':5}" + "".join(f"{name:>11}" for name in (*_MOVES, *_OTHERS))
    for day, counts in sorted(rows.items()):
        label = f"{day:%a}" if day < (START + timedelta(days=DAYS)).date() else "later"
        yield f"{label:5}" + "".join(f"{counts.get(name, 0):11,}" for name in (*_MOVES, *_OTHERS))


def counts(
    happened: Mapping[str, int], deaths: Mapping[str, int], spared: Sequence[str], reds: Mapping[str, int]
) -> Iterator[str]:
    """Yield a line for each kind of event.

    Args:
        deaths: of workers, by the point at which they came.
        spared: points by which no worker came any more.
    """
    for name, count in happened.items():
        if count:
            yield f"{count:11,}  {name}"
    missed = f" (nobody came by {', '.join(spared)})" if spared else ""
    yield f"{sum(deaths.values()):11,}  workers killed between two effects{missed}"
    said = ", ".join(f"{count} {name}" for name, count in sorted(reds.items()))
    yield f"{sum(reds.values()):11,}  red tasks" + (f" ({said})" if said else "")


def breakers(conn: Connection) -> int:
    """Return how often breakers opened."""
    row = conn.execute(
        "SELECT coalesce(sum((counts->>'breakers_opened')::int), 0) FROM step_run WHERE task_id = 'update_catalogue'"
    ).fetchone()
    return int(row[0]) if row else 0


def moment(at: datetime) -> str:
    """Say a moment of the week.

    >>> from datetime import UTC
    >>> moment(datetime(2026, 11, 25, 14, 15, tzinfo=UTC))
    'Wed 14:15'
    """
    return f"{at:%a %H:%M}"
