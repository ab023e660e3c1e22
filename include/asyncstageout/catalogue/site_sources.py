"""Where descriptions of sites come from, and what came of the last look at each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from psycopg import Connection
from psycopg.rows import class_row

# A problem is as old as the first look in a row that had one.
_RECORD = """
INSERT INTO site_load AS l (location, site, loaded_at, problem, failing_since)
SELECT %(location)s, site, %(now)s, problem, CASE WHEN problem IS NOT NULL THEN %(now)s::timestamptz END
FROM unnest(%(sites)s::text[], %(problems)s::text[]) AS u(site, problem)
ORDER BY site
ON CONFLICT (location, site) DO UPDATE SET loaded_at = excluded.loaded_at, problem = excluded.problem,
    failing_since = CASE WHEN excluded.problem IS NOT NULL
        THEN coalesce(l.failing_since, excluded.failing_since) END
"""


@dataclass(frozen=True, slots=True)
class SiteSource:
    """A file, a folder, a URL or an RSE that describes sites."""

    location: str
    kind: str
    """``siteconf``, ``storage.json``, ``tfc`` or ``rucio``."""
    site: str | None = None
    """For a TFC, which does not say whose it is."""


@dataclass(frozen=True, slots=True)
class SiteLoad:
    """What came of the last look at a source, for one site."""

    location: str
    site: str
    loaded_at: datetime
    problem: str | None
    failing_since: datetime | None


@dataclass(frozen=True, slots=True)
class SiteFacts:
    """A site with the version of its storage that counts."""

    site: str
    kind: str | None
    version: int | None
    loaded_at: datetime | None
    origin: str | None
    loaded_by: str | None
    problem: str | None


def put_source(conn: Connection, source: SiteSource, by: str) -> None:
    """Remember a source, so that it is looked at every day."""
    conn.execute(
        """
        INSERT INTO site_source AS s (location, kind, site, updated_by) VALUES (%s, %s, %s, %s)
        ON CONFLICT (location) DO UPDATE SET kind = excluded.kind, site = excluded.site, is_active = true,
            updated_at = now(), updated_by = excluded.updated_by
            WHERE (s.kind, s.site, s.is_active) IS DISTINCT FROM (excluded.kind, excluded.site, true)
        """,
        (source.location, source.kind, source.site, by),
    )


def sources(conn: Connection) -> list[SiteSource]:
    """Return the sources that are looked at."""
    rows = conn.execute("SELECT location, kind, site FROM site_source WHERE is_active ORDER BY location")
    return [SiteSource(*row) for row in rows]


def forget_source(conn: Connection, location: str, by: str) -> bool:
    """Look at a source no more; what it described goes on to count. Return whether there was one."""
    with conn.transaction():
        known = conn.execute(
            "UPDATE site_source SET is_active = false, updated_at = now(), updated_by = %s"
            " WHERE location = %s AND is_active",
            (by, location),
        ).rowcount
        conn.execute("DELETE FROM site_load WHERE location = %s", (location,))
    return bool(known)


def owners(conn: Connection) -> dict[str, str]:
    """Return by site the location that describes it well; the first by name, should there be two."""
    rows = conn.execute(
        "SELECT DISTINCT ON (l.site) l.site, l.location FROM site_load l JOIN site_source s USING (location)"
        " WHERE s.is_active AND l.problem IS NULL ORDER BY l.site, l.location"
    )
    return dict(rows.fetchall())


def record_looks(
    conn: Connection, location: str, problems: Mapping[str, str | None], *, now: datetime
) -> None:
    """Record what came of a look at a source, by site; sites that it describes no more are left out."""
    conn.execute("DELETE FROM site_load WHERE location = %s AND site <> ALL(%s)", (location, list(problems)))
    conn.execute(
        _RECORD,
        {
            "location": location,
            "sites": list(problems),
            "problems": list(problems.values()),
            "now": now,
        },
    )


def looks(conn: Connection, location: str | None = None) -> list[SiteLoad]:
    """Return what came of the last looks at one active source, or at all."""
    with conn.cursor(row_factory=class_row(SiteLoad)) as cursor:
        return cursor.execute(
            "SELECT l.location, l.site, l.loaded_at, l.problem, l.failing_since"
            " FROM site_load l JOIN site_source s USING (location)"
            " WHERE s.is_active AND (%(one)s::text IS NULL OR location = %(one)s) ORDER BY location, l.site",
            {"one": location},
        ).fetchall()


def failing(conn: Connection, *, longer_than: timedelta, now: datetime) -> list[SiteLoad]:
    """Return the looks that have failed for longer than this, the oldest first."""
    late = (one for one in looks(conn) if one.failing_since and one.failing_since <= now - longer_than)
    return sorted(late, key=lambda one: (one.failing_since, one.site))


def site_facts(conn: Connection, sites: Sequence[str] | None = None) -> list[SiteFacts]:
    """Return all sites, or these, with where their storage comes from and what is wrong with it now.

    A site that could never be read is there too, without a storage.
    """
    with conn.cursor(row_factory=class_row(SiteFacts)) as cursor:
        return cursor.execute(
            """
            WITH problem AS (
                SELECT l.site, string_agg(l.problem, '; ' ORDER BY l.location) AS problem
                FROM site_load l JOIN site_source s USING (location)
                WHERE s.is_active AND l.problem IS NOT NULL GROUP BY l.site
            )
            SELECT coalesce(s.name, p.site) AS site, v.kind, v.id AS version, v.loaded_at, v.origin,
                v.loaded_by, p.problem
            FROM site s LEFT JOIN storage v ON v.id = s.storage_id FULL JOIN problem p ON p.site = s.name
            WHERE %(sites)s::text[] IS NULL OR coalesce(s.name, p.site) = ANY(%(sites)s)
            ORDER BY site
            """,
            {"sites": None if sites is None else list(sites)},
        ).fetchall()
