"""The bell: a word to whoever listens that files may be waiting. It carries no data."""

from __future__ import annotations

from psycopg import Connection

PENDING_CHANNEL = "stageout_pending"


def ring(conn: Connection) -> None:
    """Tell whoever listens that files are waiting (at commit, if a transaction is open)."""
    conn.execute("SELECT pg_notify(%s, '')", (PENDING_CHANNEL,))
