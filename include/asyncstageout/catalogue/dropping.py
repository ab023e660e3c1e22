"""Drops partitions of the past whose time is over, so that nothing living loses anything.

Who needs a table's partitions at this moment is not waited for: the drop is tried again an hour later.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from psycopg import Connection, sql
from psycopg.errors import LockNotAvailable

from asyncstageout.catalogue import partitions
from asyncstageout.catalogue.retention import note_gone

BATCH = 10_000


class Part(NamedTuple):
    """A partition of a range of time, and what the planner thinks how many rows it has."""

    name: str
    start: datetime
    end: datetime
    rows: int


# How Postgres writes the bounds of a range.
_PARTS = r"""
SELECT name, bound[1]::timestamptz, bound[2]::timestamptz, rows FROM (
    SELECT c.relname AS name, greatest(c.reltuples, 0)::bigint AS rows,
        regexp_match(pg_get_expr(c.relpartbound, c.oid), $$FROM \('([^']+)'\) TO \('([^']+)'\)$$) AS bound
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = %s::regclass
) part WHERE bound IS NOT NULL ORDER BY 2
"""

# A file's number is not larger than that of any file which arrived after it: few living ones are so old.
_KEEP = """
CREATE TABLE {fresh} (LIKE {table} INCLUDING DEFAULTS INCLUDING CONSTRAINTS);
INSERT INTO {fresh}
SELECT e.* FROM (SELECT * FROM {kept} UNION ALL SELECT * FROM {part}) e
WHERE e.transfer_id = ANY(ARRAY(
    SELECT id FROM transfer WHERE id <= greatest((SELECT max(transfer_id) FROM {part}),
        (SELECT max(transfer_id) FROM {kept}))));
ALTER TABLE {table} DETACH PARTITION {part};
ALTER TABLE {table} DETACH PARTITION {kept};
DROP TABLE {part}, {kept};
ALTER TABLE {fresh} RENAME TO {kept};
ALTER TABLE {table} ATTACH PARTITION {kept} FOR VALUES FROM (MINVALUE) TO ({end})
"""

_DEPENDENTS = (
    (
        "past_request",
        """DELETE FROM past_request d USING {part} f WHERE d.key = hashtextextended(f.request_id, 0)
            AND d.transfer_id = f.id AND f.id = ANY(%s)""",
    ),
    # CRAB knows files by their number, metadata may have come before the file.
    ("crab_record", "DELETE FROM crab_record d USING {part} f WHERE d.transfer_id = f.id AND f.id = ANY(%s)"),
    (
        "file_metadata",
        "DELETE FROM file_metadata d USING {part} f WHERE d.request_id = f.request_id AND f.id = ANY(%s)",
    ),
)
"""What is known of a file beside its row, and goes with it."""
GOING = "dropped_"
"""Begins the name of a partition that is out of its table and not gone yet."""


def parts_before(conn: Connection, table: str, before: datetime) -> list[Part]:
    """Return a table's partitions that end at or before a time, the oldest first."""
    return [part for part in _parts(conn, table) if part.end <= before]


def _parts(conn: Connection, table: str) -> list[Part]:
    return [Part(*row) for row in conn.execute(_PARTS, (table,))]


def drop_events(conn: Connection, table: str, part: Part, *, step_run: int) -> bool:
    """Drop the oldest day of events; files under way keep theirs. Return whether it was possible."""
    names = {
        "table": sql.Identifier(table),
        "part": sql.Identifier(part.name),
        "kept": sql.Identifier(f"{table}_kept"),
        "fresh": sql.Identifier(f"{table}_fresh"),
        "end": sql.Literal(part.end.isoformat()),
    }
    try:
        with conn.transaction():
            conn.execute(f"SET LOCAL lock_timeout = '{partitions.LOCK_TIMEOUT_S}s'")
            for statement in _KEEP.split(";"):
                conn.execute(sql.SQL(statement).format(**names))
            note_gone(conn, table, part.end, part=part.name, rows=part.rows, step_run=step_run)
    except LockNotAvailable:
        return False
    return True


def detach_history(conn: Connection, part: Part, *, step_run: int) -> bool:
    """Take a month out of the history: from now on its files are gone. Return whether it was possible.

    Not before their events are: an event without a file would look like a file that was lost.
    """
    if any(events.start < part.end for events in _parts(conn, "transfer_event")):
        return False
    try:
        with conn.transaction():
            conn.execute(f"SET LOCAL lock_timeout = '{partitions.LOCK_TIMEOUT_S}s'")
            names = {"part": sql.Identifier(part.name), "going": sql.Identifier(GOING + part.name)}
            conn.execute(sql.SQL("ALTER TABLE transfer_history DETACH PARTITION {part}").format(**names))
            conn.execute(sql.SQL("ALTER TABLE {part} RENAME TO {going}").format(**names))
            note_gone(conn, "transfer_history", part.end, part=part.name, rows=part.rows, step_run=step_run)
    except LockNotAvailable:
        return False
    return True


def going(conn: Connection) -> list[str]:
    """Return the months that are out of the history and still there, with what is known of their files."""
    rows = conn.execute(
        "SELECT relname FROM pg_class WHERE relname LIKE %s AND relkind = 'r'"
        " AND relnamespace = current_schema()::regnamespace ORDER BY 1",
        (GOING.replace("_", r"\_") + "%",),
    )
    return [name for (name,) in rows]


def finish_dropping(conn: Connection, name: str) -> int:
    """Delete what is known of the files of a month that is out of the history, and then the month.

    It may be stopped at any time, and begins again. Return how many rows were deleted beside the month.
    """
    part = sql.Identifier(name)
    deleted, last = 0, -1
    while ids := _ids_after(conn, part, last):
        for _, statement in _DEPENDENTS:
            deleted += conn.execute(sql.SQL(statement).format(part=part), (ids,)).rowcount
        last = ids[-1]
    conn.execute(sql.SQL("DROP TABLE {}").format(part))
    return deleted


def _ids_after(conn: Connection, part: sql.Identifier, last: int) -> Sequence[int]:
    rows = conn.execute(
        sql.SQL("SELECT id FROM {} WHERE id > %s ORDER BY id LIMIT %s").format(part), (last, BATCH)
    )
    return [number for (number,) in rows]


def drop_statistics(conn: Connection, table: str, part: Part, *, step_run: int) -> bool:
    """Drop a month of statistics; return whether it was possible."""
    try:
        with conn.transaction():
            conn.execute(f"SET LOCAL lock_timeout = '{partitions.LOCK_TIMEOUT_S}s'")
            conn.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(part.name)))
            note_gone(conn, table, part.end, part=part.name, rows=part.rows, step_run=step_run)
    except LockNotAvailable:
        return False
    return True


def sort_strays(conn: Connection, table: str, *, at_most: int = 31) -> list[str]:
    """Make the days of events that a default partition caught, so that they go in their time."""
    rows = conn.execute(
        sql.SQL("SELECT DISTINCT (at AT TIME ZONE 'UTC')::date FROM {} ORDER BY 1 LIMIT %s").format(
            sql.Identifier(f"{table}_default")
        ),
        (at_most,),
    )
    return partitions.ensure_days(conn, table, [day for (day,) in rows])
