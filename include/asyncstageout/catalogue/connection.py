"""Connections to the catalogue."""

from __future__ import annotations

import psycopg
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict, make_conninfo

_LINE = "keepalives_idle=15 keepalives_interval=5 keepalives_count=3 tcp_user_timeout=30000"
"""For libpq (s, s, 1, ms): by default it waits two hours for a server that has vanished."""


def connect(url: str, application_name: str = "asyncstageout") -> Connection:
    """Open a connection to the catalogue at a ``postgresql://`` URL; see :func:`prepared`.

    Raises:
        psycopg.OperationalError: the server is not there or refuses the login.
    """
    info = make_conninfo(
        url, application_name=application_name, connect_timeout=10, **conninfo_to_dict(_LINE)
    )
    return prepared(psycopg.connect(info))


def prepared(conn: Connection) -> Connection:
    """Set a fresh connection up as every function of this package expects it.

    Autocommit: each function opens the transaction that it needs, so that none is held open while something
    outside answers. Times come back in UTC.
    """
    conn.autocommit = True
    conn.execute("SET TimeZone = 'UTC'")
    return conn
