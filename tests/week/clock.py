"""The fast clock: what time it is in the week, for every process of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import psycopg
import time_machine

from week.hands import Hands

_FUNCTIONS = {"now": "STABLE", "clock_timestamp": "VOLATILE"}
"""What the catalogue asks Postgres for the time with."""


class WeekClock:
    """The clock of the process that runs the steps, which puts all others forward too."""

    def __init__(self, hands: Hands, catalogue: str, travel: time_machine.Traveller) -> None:
        self._hands = hands
        self._catalogue = catalogue
        self._travel = travel

    @property
    def now(self) -> datetime:
        return datetime.now(UTC)

    def jump_to(self, at: datetime) -> None:
        """Put the clock forward; it never goes back, so late work is late."""
        if at > self.now:
            self._set(at)

    def _set(self, at: datetime) -> None:
        real_s = time_machine.escape_hatch.time.time()
        self._hands.shift_s = at.timestamp() - real_s
        with psycopg.connect(self._catalogue, autocommit=True) as conn:
            set_catalogue_clock(conn, self._hands.shift_s)
        self._travel.shift(at - self.now)


@contextmanager
def week_clock(hands: Hands, catalogue: str, start: datetime) -> Iterator[WeekClock]:
    """Let it be ``start`` now, for this process, the servers and the catalogue, while the block runs."""
    with time_machine.travel(start, tick=True) as travel:
        clock = WeekClock(hands, catalogue, travel)
        clock._set(start)
        yield clock


def prepare_catalogue(url: str) -> None:
    """Give an empty database the clock's functions, before its tables are made with them as defaults.

    New tables go into the first schema of the path, and functions are looked for in its order: only because
    ``pg_catalog`` is named does it not come first.
    """
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("CREATE SCHEMA clock")
        set_catalogue_clock(conn, 0.0)
        conn.execute(
            psycopg.sql.SQL("ALTER DATABASE {} SET search_path = public, clock, pg_catalog").format(
                psycopg.sql.Identifier(conn.info.dbname)
            )
        )


def set_catalogue_clock(conn: psycopg.Connection, shift_s: float) -> None:
    """Make the functions anew: Postgres puts their bodies into plans, so that they cost nothing."""
    with conn.transaction():
        for name, volatility in _FUNCTIONS.items():
            conn.execute(
                f"CREATE OR REPLACE FUNCTION clock.{name}() RETURNS timestamptz LANGUAGE sql {volatility}"
                f" PARALLEL SAFE AS $$ SELECT pg_catalog.{name}() + interval '{shift_s:.6f} s' $$"
            )
