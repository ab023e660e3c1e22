"""Connections to the catalogue."""

from __future__ import annotations

import psycopg
from psycopg import Connection


def connect(url: str, application_name: str = "asyncstageout") -> Connection:
    """Open a connection to the catalogue at a ``postgresql://`` URL; see :func:`prepared`.

    Raises:
        psycopg.OperationalError: the server is not there or refuses the login.
    """
    return prepared(psycopg.connect(url, application_name=application_name, connect_timeout=10))


def prepared(conn: Connection) -> Connection:
    """Set a fresh connection up as every function of this package expects it.

    Autocommit: each function opens the transaction that it needs, so that none is held open while something
    outside answers. Times come back in UTC.
    """
    conn.autocommit = True
    conn.execute("SET TimeZone = 'UTC'")
    return conn
