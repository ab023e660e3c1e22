"""Rows of any database that Airflow has a connection for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import closing
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg
from airflow.providers.common.sql.hooks.sql import DbApiHook
from airflow.sdk import BaseHook

from asyncstageout.steps.intake import CHUNK, Interval, Record, Report, SourceUnreadable, numbered

# Not the second colon of Postgres' casts.
_PARAMETER = re.compile(r"(?<![:\w]):(start|end)\b")


class QuerySource:
    """Reads what a SELECT gives; its columns are named as the fields of a request.

    ``:start`` and ``:end`` stand for the times of the interval, which begins an overlap earlier for rows that
    became visible after their time. The transaction only reads, and is always rolled back.

    :param conn_id: Airflow connection whose hook is a ``DbApiHook``.
    :param overlap_min: minutes.
    """

    def __init__(self, name: str, conn_id: str, sql: str, *, overlap_min: int) -> None:
        self.name = name
        self.conn_id = conn_id
        self.sql = sql
        self.overlap = timedelta(minutes=overlap_min)

    @property
    def has_times(self) -> bool:
        return _PARAMETER.search(self.sql) is not None

    def batches(self, interval: Interval) -> Iterator[Window]:
        hook = BaseHook.get_connection(self.conn_id).get_hook()
        if not isinstance(hook, DbApiHook):
            raise SourceUnreadable(self.name, f"connection {self.conn_id} is of no database")
        yield Window(self, hook, Interval(interval.start_at - self.overlap, interval.end_at))


class Window:
    """The rows of one interval."""

    digest = None
    again = True

    def __init__(self, source: QuerySource, hook: DbApiHook, interval: Interval) -> None:
        self.name = (
            f"{interval.start_at:%Y-%m-%dT%H:%M:%S} to {interval.end_at:%Y-%m-%dT%H:%M:%S}"
            if source.has_times
            else "all rows"
        )
        self._source = source
        self._hook = hook
        self._interval = interval

    def records(self) -> Iterator[Record]:
        statement, values = bound(self._source.sql, self._interval, self._hook.placeholder)
        with closing(self._hook.get_conn()) as conn:
            try:
                with closing(_reading_cursor(conn)) as cursor:
                    # Without values the statement goes as it is, its percent signs too.
                    cursor.execute(*([statement, values] if values else [statement]))
                    yield from numbered(_rows(cursor))
            finally:
                conn.rollback()

    def done(self, report: Report) -> None:
        """Nothing: it is known until which time was read."""

    def refused(self, report: Report) -> None:
        """Nothing: the catalogue remembers the problem, and the run is red."""


def bound(sql: str, interval: Interval, placeholder: str) -> tuple[str, tuple[datetime, ...]]:
    """Return the statement as the database's driver takes it, and the values of its placeholders, in order.

    >>> from datetime import UTC, datetime
    >>> interval = Interval(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC))
    >>> bound("SELECT x::text FROM t WHERE a LIKE 'x%' AND at >= :start", interval, "%s")[0]
    "SELECT x::text FROM t WHERE a LIKE 'x%%' AND at >= %s"
    """
    values = tuple(
        interval.start_at if found == "start" else interval.end_at for found in _PARAMETER.findall(sql)
    )
    if values and placeholder == "%s":
        sql = sql.replace("%", "%%")
    return _PARAMETER.sub(lambda _: placeholder, sql), values


def _reading_cursor(conn: Any) -> Any:
    if isinstance(conn, psycopg.Connection):
        conn.read_only = True
        # Else all rows would come at once.
        return conn.cursor("stageout_intake")
    return conn.cursor()


def _rows(cursor: Any) -> Iterator[Mapping[str, Any]]:
    names: list[str] = []
    while rows := cursor.fetchmany(CHUNK):
        # Some drivers know the columns only now; Oracle has them in capitals.
        names = names or [str(column[0]).lower() for column in cursor.description]
        for row in rows:
            yield dict(zip(names, map(_plain, row), strict=True))


def _plain(value: Any) -> Any:
    """Return a database's number without decimals as the whole number that it is."""
    if isinstance(value, Decimal) and value == value.to_integral_value():
        return int(value)
    return value
