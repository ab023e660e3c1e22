"""Accounts of services that submit for users, and for which users."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from psycopg import Connection

from asyncstageout.catalogue.config_changes import changing


@dataclass(frozen=True, slots=True)
class SubmittingService:
    """A service: ``may_act_for`` are names of users, or ``*`` for all."""

    name: str
    may_act_for: frozenset[str]
    updated_at: datetime
    updated_by: str


def submitting_services(conn: Connection) -> list[SubmittingService]:
    """Return all services, by name."""
    rows = conn.execute(
        "SELECT name, may_act_for, updated_at, updated_by FROM submitting_service ORDER BY name"
    )
    return [SubmittingService(name, frozenset(users), *rest) for name, users, *rest in rows]


def put_service(conn: Connection, name: str, may_act_for: Collection[str], by: str) -> bool:
    """Say for whom an account may act, from now on for nobody else; return whether anything changed."""
    with changing(conn, by):
        changed = conn.execute(
            """
            INSERT INTO submitting_service AS s (name, may_act_for, updated_by) VALUES (%s, %s, %s)
            ON CONFLICT (name) DO UPDATE SET may_act_for = excluded.may_act_for, updated_at = now(),
                updated_by = excluded.updated_by
            WHERE s.may_act_for <> excluded.may_act_for
            """,
            (name, sorted(set(may_act_for)), by),
        )
    return changed.rowcount > 0


def remove_service(conn: Connection, name: str, by: str) -> bool:
    """Make an account one of a plain user again; False if it was."""
    with changing(conn, by):
        return conn.execute("DELETE FROM submitting_service WHERE name = %s", (name,)).rowcount > 0
