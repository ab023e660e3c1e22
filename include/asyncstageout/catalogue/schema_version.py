"""Which version of the schema the catalogue has."""

from __future__ import annotations

from functools import cache

from psycopg import Connection

from asyncstageout.catalogue.migrate import head_revision


def is_current(conn: Connection) -> bool:
    """Say whether the catalogue has the schema that this code expects."""
    row = conn.execute("SELECT to_regclass('alembic_version') IS NOT NULL").fetchone()
    if row is None or not row[0]:
        return False
    return conn.execute("SELECT version_num FROM alembic_version").fetchall() == [(_head(),)]


@cache
def _head() -> str:
    return head_revision()
