"""Configuration: storages of sites and policies of links."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from psycopg import Connection
from psycopg.types.json import Jsonb

from asyncstageout.core.policies import SETTINGS, PolicyRow


class UnknownSetting(ValueError):
    """A link policy names a setting that does not exist."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = sorted(names)
        super().__init__(
            f"no such link setting: {', '.join(self.names)}; there are {', '.join(sorted(SETTINGS))}"
        )


def put_sites(conn: Connection, prefixes: Mapping[str, str], updated_by: str) -> int:
    """Add sites or change their PFN prefix; return how many rows are new or different."""
    return conn.execute(
        """
        INSERT INTO site AS s (name, pfn_prefix, updated_by)
        SELECT name, prefix, %(by)s FROM unnest(%(names)s::text[], %(prefixes)s::text[]) AS u(name, prefix)
        ON CONFLICT (name) DO UPDATE
            SET pfn_prefix = excluded.pfn_prefix, updated_at = now(), updated_by = excluded.updated_by
            WHERE s.pfn_prefix <> excluded.pfn_prefix
        """,
        {"names": list(prefixes), "prefixes": list(prefixes.values()), "by": updated_by},
    ).rowcount


def site_prefixes(conn: Connection) -> dict[str, str]:
    """Return each site's PFN prefix by its name."""
    return dict(conn.execute("SELECT name, pfn_prefix FROM site ORDER BY name").fetchall())


def put_policy(
    conn: Connection, source: str | None, destination: str | None, settings: dict[str, Any], updated_by: str
) -> None:
    """Set the policy row for a link, a source, a destination, or (None, None) everything.

    Raises:
        UnknownSetting: ``settings`` has a key that is not a field of ``LinkPolicy``.
    """
    if unknown := settings.keys() - SETTINGS:
        raise UnknownSetting(unknown)
    conn.execute(
        """
        INSERT INTO link_policy (source, destination, settings, updated_by) VALUES (%s, %s, %s, %s)
        ON CONFLICT (source, destination) DO UPDATE
            SET settings = excluded.settings, updated_at = now(), updated_by = excluded.updated_by
        """,
        (source, destination, Jsonb(settings), updated_by),
    )


def policy_rows(conn: Connection) -> list[PolicyRow]:
    """Return every row of policy; :func:`asyncstageout.core.policies.policy_for` picks from them."""
    rows = conn.execute("SELECT source, destination, settings FROM link_policy")
    return [PolicyRow(*row) for row in rows]
