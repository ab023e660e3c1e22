"""Who changed which configuration, when, from what to what. Triggers write it; nobody can change it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg import Connection
from psycopg.errors import ForeignKeyViolation

from asyncstageout.core.scopes import Scope


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
    change_id: int

    def subject(self) -> str:
        """Return what the row is about, for a person: ``policy of T2_IT_Bari → anywhere``."""
        row = self.after or self.before or {}
        scope = Scope(*(row.get(name) for name in Scope._fields))
        match self.object:
            case "link_policy":
                return f"policy of {scope}"
            case "restriction":
                site = [f"site {row['site']}"] if row.get("site") else []
                rest = [str(scope)] if any(scope) or not site else []
                return f"{row['mode']} {row['id']} of {', '.join(site + rest)}"
            case "alert_silence":
                return f"silence of {row['rule']} for {row['subject']}"
        return f"{self.object} {row.get('name') or row.get('location')}"

    def differences(self) -> list[tuple[str, Any, Any]]:
        """Return (field, before, after) of what is different; None: it was not there."""
        before, after = _fields(self.before), _fields(self.after)
        return [
            (name, before.get(name), after.get(name))
            for name in dict.fromkeys([*before, *after])
            if before.get(name) != after.get(name)
        ]


_NO_NEWS = frozenset({"id", "set_at", "set_by", "updated_at", "updated_by"})


def _fields(row: dict[str, Any] | None) -> dict[str, Any]:
    """Return a row's fields, and in place of its settings each of them."""
    fields = {name: value for name, value in (row or {}).items() if name not in _NO_NEWS}
    settings: dict[str, Any] = fields.pop("settings", {})
    return fields | settings


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
    conn: Connection,
    *,
    since: datetime | None = None,
    table: str | None = None,
    actor: str | None = None,
    kind: str | None = None,
    before: int | None = None,
    limit: int = 50,
) -> list[ConfigChange]:
    """Return the last changes, the newest first.

    Args:
        kind: part of the name of the table.
        before: only changes that are older than the one of this id.
    """
    rows = conn.execute(
        """
        SELECT at, actor, object, before, after, id FROM config_change
        WHERE (%(since)s::timestamptz IS NULL OR at >= %(since)s)
            AND (%(table)s::text IS NULL OR object = %(table)s)
            AND (%(actor)s::text IS NULL OR actor = %(actor)s)
            AND (%(kind)s::text IS NULL OR strpos(object, lower(%(kind)s)) > 0)
            AND (%(before)s::bigint IS NULL OR id < %(before)s)
        ORDER BY id DESC LIMIT %(limit)s
        """,
        {"since": since, "table": table, "actor": actor, "kind": kind, "before": before, "limit": limit},
    )
    return [ConfigChange(*row) for row in rows]
