"""Daily partitions of the events, monthly ones of the history and of the statistics, made ahead of need.

A default partition under each catches rows if this was not run for a week, so that no insert ever fails.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date, timedelta

from psycopg import Connection, sql

DAYS_AHEAD = 7
DAILY = ("transfer_event", "file_event")
MONTHLY = ("transfer_history", "statistic_hour", "statistic_day")
_LOCK = 0x5A50  # any number that no other advisory lock of this database uses


def wanted_partitions(today: date, days_ahead: int = DAYS_AHEAD) -> Iterator[tuple[str, str, date, date]]:
    """Yield (table, partition, from, to) for today and the days ahead; ``to`` is exclusive."""
    for offset in range(days_ahead + 1):
        day = today + timedelta(days=offset)
        for table in DAILY:
            yield table, f"{table}_{day:%Y%m%d}", day, day + timedelta(days=1)
    for month in dict.fromkeys(
        (today + timedelta(days=offset)).replace(day=1) for offset in range(days_ahead + 1)
    ):
        for table in MONTHLY:
            yield table, *_month(table, month)


def _month(table: str, month: date) -> tuple[str, date, date]:
    return f"{table}_{month:%Y%m}", month, (month + timedelta(days=32)).replace(day=1)


def ensure_partitions(conn: Connection, today: date, days_ahead: int = DAYS_AHEAD) -> list[str]:
    """Create the partitions that are missing and return their names. Cheap when none is.

    Rows that a default partition caught meanwhile move to where they belong.
    """
    wanted = {name: (table, start, end) for table, name, start, end in wanted_partitions(today, days_ahead)}
    return _ensure(conn, wanted)


def ensure_month(conn: Connection, tables: Sequence[str], day: date) -> list[str]:
    """Create the partitions of a day's month that are missing, of tables in :data:`MONTHLY`."""
    wanted = {}
    for table in tables:
        name, start, end = _month(table, day.replace(day=1))
        wanted[name] = (table, start, end)
    return _ensure(conn, wanted)


def ensure_days(conn: Connection, table: str, days: Sequence[date]) -> list[str]:
    """Create the partitions of days that are missing, of a table in :data:`DAILY`."""
    return _ensure(conn, {f"{table}_{day:%Y%m%d}": (table, day, day + timedelta(days=1)) for day in days})


def _ensure(conn: Connection, wanted: dict[str, tuple[str, date, date]]) -> list[str]:
    with conn.transaction():
        if not _missing(conn, wanted):
            return []
        conn.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        missing = _missing(conn, wanted)  # another process may have been quicker
        for table in dict.fromkeys(wanted[name][0] for name in missing):
            ranges = {name: wanted[name][1:] for name in missing if wanted[name][0] == table}
            _create(conn, table, ranges)
    return missing


def _create(conn: Connection, table: str, ranges: dict[str, tuple[date, date]]) -> None:
    """Create partitions beside an empty default one: Postgres refuses a range of which it holds rows."""
    names = {"table": sql.Identifier(table), "default": sql.Identifier(f"{table}_default"),
             "caught": sql.Identifier(f"{table}_caught")}  # fmt: skip
    caught = conn.execute(sql.SQL("SELECT EXISTS (SELECT FROM {default})").format(**names)).fetchone()
    if caught == (True,):
        for statement in (
            "ALTER TABLE {table} DETACH PARTITION {default}",
            "ALTER TABLE {default} RENAME TO {caught}",
            "CREATE TABLE {default} PARTITION OF {table} DEFAULT",
        ):
            conn.execute(sql.SQL(statement).format(**names))
    for name, (start, end) in ranges.items():
        conn.execute(
            sql.SQL("CREATE TABLE {} PARTITION OF {} FOR VALUES FROM ({}) TO ({})").format(
                sql.Identifier(name), names["table"], f"{start}T00:00:00Z", f"{end}T00:00:00Z"
            )
        )
    if caught == (True,):
        # These rows are no news: triggers that tell others of new events pass over them.
        conn.execute("SELECT set_config('stageout.moving', 'on', true)")
        conn.execute(sql.SQL("INSERT INTO {table} SELECT * FROM {caught}").format(**names))
        conn.execute("SELECT set_config('stageout.moving', '', true)")
        conn.execute(sql.SQL("DROP TABLE {caught}").format(**names))


def _missing(conn: Connection, wanted: dict[str, tuple[str, date, date]]) -> list[str]:
    rows = conn.execute(
        "SELECT name FROM unnest(%s::text[]) AS name WHERE to_regclass(name) IS NULL", (list(wanted),)
    )
    return [name for (name,) in rows]
