"""Pauses, drains, bans and downtimes: set, lifted, and which there are."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from psycopg import Connection

from asyncstageout.catalogue.bell import ring
from asyncstageout.catalogue.config_changes import changing
from asyncstageout.core.restrictions import Mode, Restriction

_COLUMNS = """
    id, mode::text, site, source, destination, username, activity, reason, set_by, starts_at, ends_at,
    lifted_at, is_downtime
"""

_SET = f"""
INSERT INTO restriction (mode, site, source, destination, username, activity, reason, is_downtime,
    starts_at, ends_at, set_by, updated_by)
SELECT %(mode)s::restriction_mode, %(site)s, %(source)s, %(destination)s, %(username)s, %(activity)s,
    %(reason)s, %(is_downtime)s, starts_at, ends_at, %(by)s, %(by)s
FROM (SELECT coalesce(%(starts_at)s::timestamptz, now()), %(ends_at)s::timestamptz) AS t(starts_at, ends_at)
WHERE ends_at IS NULL OR ends_at > greatest(now(), starts_at)
RETURNING {_COLUMNS}
"""

_LIFT = f"""
UPDATE restriction SET lifted_at = now(), updated_by = %(by)s
WHERE id = ANY(%(ids)s) AND lifted_at IS NULL AND (ends_at IS NULL OR ends_at > now())
RETURNING {_COLUMNS}
"""

_OPEN = f"""
SELECT {_COLUMNS} FROM restriction
WHERE lifted_at IS NULL AND (ends_at IS NULL OR ends_at > now())
"""


class NeverInForce(ValueError):
    """A restriction would end before it begins, or has ended already."""

    def __init__(self, ends_at: datetime | None) -> None:
        super().__init__(f"it would never be in force: it ends {ends_at:%Y-%m-%d %H:%M} UTC")
        self.ends_at = ends_at


class NoReason(ValueError):
    """A restriction comes without a reason, and users would not know why they wait."""

    def __init__(self) -> None:
        super().__init__("a restriction needs a reason: users read it")


@dataclass(frozen=True, slots=True, kw_only=True)
class Area:
    """What a restriction is for; all None is everything. A site is meant at either end."""

    site: str | None = None
    source: str | None = None
    destination: str | None = None
    username: str | None = None
    activity: str | None = None

    def __post_init__(self) -> None:
        if self.site and (self.source or self.destination):
            raise ValueError("a site is meant at either end; name it, or a source and a destination")


def restrict(
    conn: Connection,
    mode: Mode,
    area: Area,
    *,
    reason: str,
    by: str,
    starts_at: datetime | None = None,
    ends_at: datetime | None = None,
    is_downtime: bool = False,
) -> Restriction:
    """Set a restriction, from now on unless ``starts_at`` says otherwise, and return it.

    Raises:
        UnknownSite: a site that it names does not exist.
        NeverInForce: it would end before it begins, or has ended already.
        NoReason: the reason is empty.
    """
    parameters = {
        "mode": mode.value, "site": area.site, "source": area.source, "destination": area.destination,
        "username": area.username, "activity": area.activity, "reason": reason, "is_downtime": is_downtime,
        "starts_at": starts_at, "ends_at": ends_at, "by": by,
    }  # fmt: skip
    if not reason.strip():
        raise NoReason
    with changing(conn, by):
        row = conn.execute(_SET, parameters).fetchone()
    if row is None:
        raise NeverInForce(ends_at)
    return _restriction(row)


def lift(conn: Connection, ids: Collection[int], by: str) -> list[Restriction]:
    """End restrictions now, and ring so that files start at once; return those that were not over before."""
    with changing(conn, by):
        lifted = [_restriction(row) for row in conn.execute(_LIFT, {"ids": list(ids), "by": by})]
        if lifted:
            ring(conn)
    return lifted


def restrictions_in_force(conn: Connection) -> list[Restriction]:
    """Return the restrictions in force now."""
    return [_restriction(row) for row in conn.execute(f"{_OPEN} AND starts_at <= now()")]


def open_restrictions(conn: Connection) -> list[Restriction]:
    """Return the restrictions in force and those announced, in the order in which they begin."""
    return [_restriction(row) for row in conn.execute(f"{_OPEN} ORDER BY starts_at, id")]


def all_restrictions(conn: Connection, limit: int = 1000) -> list[Restriction]:
    """Return the last restrictions, also those that are over, the newest first."""
    rows = conn.execute(f"SELECT {_COLUMNS} FROM restriction ORDER BY id DESC LIMIT %s", (limit,))
    return [_restriction(row) for row in rows]


def _restriction(row: tuple[object, ...]) -> Restriction:
    restriction_id, mode, *rest = row
    return Restriction(restriction_id, Mode(mode), *rest)  # type: ignore[arg-type]
