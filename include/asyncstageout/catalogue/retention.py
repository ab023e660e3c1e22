"""For how long the past is kept, what of it is gone, and which days were exported."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, NamedTuple

from psycopg import Connection
from psycopg.types.json import Jsonb

from asyncstageout.catalogue.config_changes import changing
from asyncstageout.core.retention import Retention, check_retention

EVENTS = ("transfer_event", "file_event")
EXPORTED = ("transfer", *EVENTS)
"""What is exported of a day: files that ended in it, and events."""


class SetBy(NamedTuple):
    """A setting that differs from its default."""

    value: Any
    updated_by: str
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Horizon:
    """What of a table is gone."""

    table: str
    part: str
    """Partition that was dropped; empty: rows that were deleted, all in all."""
    until: datetime
    rows: int
    updated_at: datetime
    step_run: int


class ExportedDay(NamedTuple):
    """A day of a table in a file."""

    table: str
    day: date
    location: str
    rows: int
    size_bytes: int


def retention_settings(conn: Connection) -> dict[str, SetBy]:
    """Return what is set, by name."""
    rows = conn.execute("SELECT name, value, updated_by, updated_at FROM retention")
    return {name: SetBy(*rest) for name, *rest in rows}


def retention(conn: Connection) -> Retention:
    """Return for how long everything is kept."""
    return Retention.model_validate({name: one.value for name, one in retention_settings(conn).items()})


def set_retention(conn: Connection, settings: Mapping[str, Any], by: str) -> bool:
    """Set how long things are kept; return whether anything changed.

    Raises:
        WrongRetention: a setting is unknown, or cannot have this value beside the others.
    """
    with changing(conn, by):
        conn.execute("LOCK TABLE retention IN SHARE ROW EXCLUSIVE MODE")
        check_retention({name: one.value for name, one in retention_settings(conn).items()} | dict(settings))
        changed = [
            conn.execute(
                "INSERT INTO retention AS r (name, value, updated_by) VALUES (%s, %s, %s)"
                " ON CONFLICT (name) DO UPDATE SET value = excluded.value, updated_at = now(),"
                " updated_by = excluded.updated_by WHERE r.value <> excluded.value",
                (name, Jsonb(value), by),
            ).rowcount
            for name, value in settings.items()
        ]
    return any(changed)


def unset_retention(conn: Connection, names: Collection[str], by: str) -> list[str]:
    """Let defaults count again; return which settings there were.

    Raises:
        WrongRetention: the defaults contradict what else is set.
    """
    with changing(conn, by):
        conn.execute("LOCK TABLE retention IN SHARE ROW EXCLUSIVE MODE")
        rows = conn.execute("DELETE FROM retention WHERE name = ANY(%s) RETURNING name", (list(names),))
        dropped = sorted(name for (name,) in rows)
        check_retention({name: one.value for name, one in retention_settings(conn).items()})
    return dropped


def note_gone(
    conn: Connection, table: str, until: datetime, *, part: str = "", rows: int, step_run: int
) -> None:
    """Note what of a table is gone, in the transaction that makes it so; rows that are deleted add up.

    Args:
        part: partition that was dropped; empty: rows were deleted.
    """
    conn.execute(
        """
        INSERT INTO horizon AS h (table_name, part, until, row_count, step_run) VALUES (%s, %s, %s, %s, %s)
        ON CONFLICT (table_name, part) DO UPDATE SET until = greatest(h.until, excluded.until),
            row_count = h.row_count + excluded.row_count, updated_at = now(), step_run = excluded.step_run
        """,
        (table, part, until, rows, step_run),
    )


def gone_until(conn: Connection, table: str) -> datetime | None:
    """Return up to when a table's past is gone; None: nothing of it is."""
    row = conn.execute("SELECT max(until) FROM horizon WHERE table_name = %s", (table,)).fetchone()
    return row[0] if row else None


def horizons(conn: Connection) -> list[Horizon]:
    """Return all that is gone, by table, the latest first."""
    rows = conn.execute(
        "SELECT table_name, part, until, row_count, updated_at, step_run FROM horizon"
        " ORDER BY table_name, until DESC, part"
    )
    return [Horizon(*row) for row in rows]


def note_exported(conn: Connection, exported: ExportedDay, step_run: int) -> None:
    """Note that a day of a table lies in a file; the last export counts."""
    conn.execute(
        """
        INSERT INTO exported_day (table_name, day, location, row_count, size_bytes, step_run)
        VALUES (%s, %s, %s, %s, %s, %s)
        ON CONFLICT (table_name, day) DO UPDATE SET location = excluded.location,
            row_count = excluded.row_count, size_bytes = excluded.size_bytes, exported_at = now(),
            step_run = excluded.step_run
        """,
        (*exported, step_run),
    )


def days_not_exported(conn: Connection, table: str, first: date, last: date, under: str) -> list[date]:
    """Return the days from ``first`` to ``last`` that do not lie, complete, in files below a place.

    A day is complete if it was over when it was exported.
    """
    rows = conn.execute(
        """
        SELECT d::date FROM generate_series(%(first)s::date, %(last)s::date, interval '1 day') AS d
        WHERE NOT EXISTS (SELECT FROM exported_day e WHERE e.table_name = %(table)s AND e.day = d::date
            AND starts_with(e.location, %(under)s)
            AND e.exported_at >= (e.day + 1)::timestamp AT TIME ZONE 'UTC')
        ORDER BY 1
        """,
        {"table": table, "first": first, "last": last, "under": under.rstrip("/") + "/"},
    )
    return [day for (day,) in rows]


def midnight(day: date) -> datetime:
    """Return the beginning of a day, in UTC."""
    return datetime(day.year, day.month, day.day, tzinfo=UTC)
