"""Connections to the catalogue."""

from __future__ import annotations

import psycopg
from psycopg import Connection


def connect(url: str, application_name: str = "asyncstageout") -> Connection:
    """Open a connection to the catalogue at a ``postgresql://`` URL.

    Autocommit: each catalogue function opens the transaction that it needs, so that none is held open while
    something outside answers. Times come back in UTC.

    Raises:
        psycopg.OperationalError: the server is not there or refuses the login.
    """
    conn = psycopg.connect(url, autocommit=True, application_name=application_name, connect_timeout=10)
    conn.execute("SET TimeZone = 'UTC'")
    return conn
