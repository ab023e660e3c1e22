"""The fast clock: what time it is in the week, for every process of it."""

from __future__ import annotations

import mmap
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import time_machine

_SHIFT = struct.Struct("d")
_FUNCTIONS = {"now": "STABLE", "clock_timestamp": "VOLATILE"}
"""What the catalogue asks Postgres for the time with."""


class Hands:
    """Where the clock stands, in a file that all processes map: seconds since the epoch when it is called."""

    def __init__(self, file: Path) -> None:
        if not file.exists():
            file.write_bytes(_SHIFT.pack(0.0))
        with file.open("r+b") as stream:
            self._map = mmap.mmap(stream.fileno(), _SHIFT.size)

    def __call__(self) -> float:
        return time.time() + self.shift_s

    @property
    def shift_s(self) -> float:
        """How far the week is ahead of the world."""
        shift_s: float = _SHIFT.unpack_from(self._map)[0]
        return shift_s

    @shift_s.setter
    def shift_s(self, shift_s: float) -> None:
        _SHIFT.pack_into(self._map, 0, shift_s)


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
