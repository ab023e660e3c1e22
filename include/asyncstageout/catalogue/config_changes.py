"""Who changed which configuration, when, from what to what. Triggers write it; nobody can change it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg import Connection
from psycopg.errors import ForeignKeyViolation


class UnknownSite(ValueError):
    """Configuration names a site that the catalogue does not have."""

    def __init__(self, detail: str) -> None:
        super().__init__(f"there is no such site: {detail}")


@dataclass(frozen=True, slots=True)
class ConfigChange:
    """One change of one row of configuration."""

    at: datetime
    actor: str
    object: str
    """Table that the row is in."""
    before: dict[str, Any] | None
    """The row as it was; None: it is new."""
    after: dict[str, Any] | None
    """The row as it became; None: it was deleted."""


@contextmanager
def changing(conn: Connection, actor: str) -> Iterator[None]:
    """Open a transaction in which ``actor`` changes configuration: a deleted row cannot say who deleted it.

    Raises:
        UnknownSite: a site that was named does not exist.
    """
    try:
        with conn.transaction():
            conn.execute("SELECT set_config('stageout.actor', %s, true)", (actor,))
            yield
    except ForeignKeyViolation as error:
        raise UnknownSite(error.diag.message_detail or str(error)) from error


def config_changes(
    conn: Connection, *, since: datetime | None = None, table: str | None = None, limit: int = 50
) -> list[ConfigChange]:
    """Return the last changes, the newest first."""
    rows = conn.execute(
        """
        SELECT at, actor, object, before, after FROM config_change
        WHERE (%(since)s::timestamptz IS NULL OR at >= %(since)s)
            AND (%(table)s::text IS NULL OR object = %(table)s)
        ORDER BY id DESC LIMIT %(limit)s
        """,
        {"since": since, "table": table, "limit": limit},
    )
    return [ConfigChange(*row) for row in rows]
