"""Connections to the catalogue."""

from __future__ import annotations

import os
import socket

import psycopg
from psycopg import Connection

# (option, value): the kernel's own defaults wait two hours for a server that has vanished.
_TCP_OPTIONS = (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 30_000))


def connect(url: str, application_name: str = "asyncstageout") -> Connection:
    """Open a connection to the catalogue at a ``postgresql://`` URL; see :func:`prepared`.

    Raises:
        psycopg.OperationalError: the server is not there or refuses the login.
    """
    return prepared(psycopg.connect(url, application_name=application_name, connect_timeout=10))


def prepared(conn: Connection) -> Connection:
    """Set a fresh connection up, whoever opened it, as every function of this package expects it.

    Autocommit: each function opens the transaction that it needs, so that none is held open while something
    outside answers. Times come back in UTC. A server that vanished is noticed within half a minute.
    """
    _notice_silence(conn.fileno())
    conn.autocommit = True
    conn.execute("SET TimeZone = 'UTC'")
    return conn


def _notice_silence(descriptor: int) -> None:
    with socket.socket(fileno=os.dup(descriptor)) as line:
        if line.family == socket.AF_UNIX:
            return
        line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _TCP_OPTIONS:
            if hasattr(socket, name):  # macOS has no TCP_USER_TIMEOUT
                line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
