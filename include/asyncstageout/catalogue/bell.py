"""The bells: words to whoever listens that files may be waiting, or are to be stopped. They carry no data."""

from __future__ import annotations

from psycopg import Connection

PENDING_CHANNEL = "stageout_pending"
KILLS_CHANNEL = "stageout_kills"


def ring(conn: Connection) -> None:
    """Tell whoever listens that files are waiting (at commit, if a transaction is open)."""
    conn.execute("SELECT pg_notify(%s, '')", (PENDING_CHANNEL,))


def ring_kills(conn: Connection) -> None:
    """Tell whoever listens that FTS is to stop files (at commit, if a transaction is open)."""
    conn.execute("SELECT pg_notify(%s, '')", (KILLS_CHANNEL,))
