"""Connections to the catalogue that many short requests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import Connection
from psycopg.pq import TransactionStatus
from sqlalchemy import event
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import QueuePool


class CatalogueBusy(Exception):
    """All connections are in use, and none came free in time."""


class CataloguePool:
    """At most ``size`` connections, opened when wanted, looked at before each use.

    Args:
        open_connection: returns a fresh one, as ``catalogue.connection.prepared`` leaves it.
        patience_s: seconds to wait for one to come free.
        statement_timeout_s: seconds after which Postgres stops a statement.
    """

    def __init__(
        self,
        open_connection: Callable[[], Connection],
        *,
        size: int = 10,
        patience_s: float = 5.0,
        statement_timeout_s: float = 30.0,
    ) -> None:
        def limited() -> Any:
            conn = open_connection()
            conn.execute("SELECT set_config('statement_timeout', %s, false)", (f"{statement_timeout_s}s",))
            return conn

        self._pool = QueuePool(
            limited, pool_size=size, max_overflow=0, timeout=patience_s, reset_on_return=None, use_lifo=True
        )
        event.listen(self._pool, "checkout", _look)

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """Lend a connection, in autocommit.

        Raises:
            CatalogueBusy: none came free in time.
            psycopg.OperationalError: the catalogue does not answer.
        """
        try:
            lent = self._pool.connect()
        except PoolTimeout as error:
            raise CatalogueBusy from error
        conn = lent.dbapi_connection
        assert isinstance(conn, Connection)  # noqa: S101 - as open_connection returned it
        try:
            yield conn
        finally:
            if conn.closed or conn.info.transaction_status is not TransactionStatus.IDLE:
                lent.invalidate()
            lent.close()

    def close(self) -> None:
        self._pool.dispose()


def _look(conn: Any, *_: object) -> None:
    """Find out before a request does that the server was restarted."""
    try:
        conn.execute("SELECT 1")
    except psycopg.OperationalError as error:
        raise InvalidatePoolError from error
