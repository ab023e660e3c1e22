"""Policies of links, users and activities: what is set for whom, and by whom."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from psycopg import Connection
from psycopg.types.json import Jsonb

from asyncstageout.catalogue.config_changes import changing
from asyncstageout.core.policies import PolicyRow, check_settings
from asyncstageout.core.scopes import Scope

_PUT = """
INSERT INTO link_policy AS p (source, destination, username, activity, settings, updated_by)
VALUES (%s, %s, %s, %s, %s, %s)
ON CONFLICT (source, destination, username, activity) DO UPDATE
    SET settings = {settings}, updated_at = now(), updated_by = excluded.updated_by
    WHERE p.settings <> {settings}
"""
_REPLACE = _PUT.format(settings="excluded.settings")
_ADD = _PUT.format(settings="(p.settings || excluded.settings)")

_THAT_ROW = """
    source IS NOT DISTINCT FROM %s AND destination IS NOT DISTINCT FROM %s
    AND username IS NOT DISTINCT FROM %s AND activity IS NOT DISTINCT FROM %s
"""


def put_policy(
    conn: Connection,
    source: str | None,
    destination: str | None,
    settings: Mapping[str, Any],
    updated_by: str,
    *,
    username: str | None = None,
    activity: str | None = None,
) -> None:
    """Make these the settings for what is named, in place of those before; None names everything.

    Raises:
        UnknownSetting: a name is no field of :class:`asyncstageout.core.policies.LinkPolicy`.
        WrongValue: a setting cannot have this value.
        UnknownSite: there is no such source or destination.
    """
    _write(conn, _REPLACE, Scope(source, destination, username, activity), settings, updated_by)


def add_settings(conn: Connection, scope: Scope, settings: Mapping[str, Any], updated_by: str) -> bool:
    """Set these for what the scope names and leave its other settings; return whether anything changed.

    Raises:
        UnknownSetting, WrongValue, UnknownSite: as :func:`put_policy`.
    """
    return _write(conn, _ADD, scope, settings, updated_by)


def drop_settings(conn: Connection, scope: Scope, names: Collection[str], updated_by: str) -> list[str]:
    """Take settings away from a scope, all of them if none is named; return which it had.

    What the next less specific row says then counts. A row without settings goes away.
    """
    with changing(conn, updated_by):
        row = conn.execute(f"SELECT settings FROM link_policy WHERE {_THAT_ROW} FOR UPDATE", scope).fetchone()
        settings: dict[str, Any] = row[0] if row else {}
        had = sorted(settings.keys() & set(names or settings))
        left = {name: value for name, value in settings.items() if name not in had}
        if not left:
            conn.execute(f"DELETE FROM link_policy WHERE {_THAT_ROW}", scope)
        elif had:
            _write(conn, _REPLACE, scope, left, updated_by)
    return had


def policy_rows(conn: Connection) -> list[PolicyRow]:
    """Return every row of policy, for :class:`asyncstageout.core.policies.Policies`."""
    rows = conn.execute(
        "SELECT source, destination, settings, username, activity, updated_by, updated_at FROM link_policy"
    )
    return [PolicyRow(*row) for row in rows]


def _write(
    conn: Connection, statement: str, scope: Scope, settings: Mapping[str, Any], updated_by: str
) -> bool:
    check_settings(settings)
    with changing(conn, updated_by):
        return conn.execute(statement, (*scope, Jsonb(dict(settings)), updated_by)).rowcount > 0
