"""Sweeps through temporary areas: how far each has come, what it found, and which orphans were deleted."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from psycopg import Connection
from psycopg.rows import class_row

from asyncstageout.core.naming import request_id


class Found(NamedTuple):
    """What was found in one area, of a user or a group."""

    area: str
    files: int
    size_bytes: int
    orphans: int
    orphan_bytes: int
    oldest_at: datetime | None


class Orphan(NamedTuple):
    """A file that no file of ours needs."""

    lfn: str
    url: str
    size_bytes: int
    modified_at: datetime


@dataclass(frozen=True, slots=True)
class SweepView:
    """A sweep, and all that it found."""

    site: str
    older_than_days: int
    started_at: datetime
    ended_at: datetime | None
    """None: it is not over."""
    visited: int
    closed: int
    """Directories of which the storage did not tell what is in them."""
    left: int
    """Directories that are still to be visited, as far as they are known."""
    areas: int
    files: int
    size_bytes: int
    orphans: int
    orphan_bytes: int
    oldest_at: datetime | None


_BEGIN = """
INSERT INTO sweep AS s (site, older_than_days, step_run, to_visit)
VALUES (%(site)s, %(older_than_days)s, %(step_run)s, %(roots)s)
ON CONFLICT (site) DO UPDATE SET older_than_days = excluded.older_than_days, started_at = now(),
    ended_at = NULL, step_run = excluded.step_run, to_visit = excluded.to_visit, visited = 0, closed = 0
WHERE s.ended_at IS NOT NULL OR s.older_than_days <> excluded.older_than_days
RETURNING site
"""

_ADVANCE = """
UPDATE sweep SET to_visit = to_visit[:cardinality(to_visit) - %(visited)s] || %(more)s::text[],
    visited = visited + %(visited)s, closed = closed + %(closed)s, step_run = %(step_run)s,
    ended_at = CASE WHEN cardinality(to_visit) = %(visited)s AND %(more)s::text[] = '{}' THEN now() END
WHERE site = %(site)s
"""

_ADD = """
INSERT INTO sweep_area AS a (site, area, files, size_bytes, orphans, orphan_bytes, oldest_at)
SELECT %(site)s, * FROM unnest(%(areas)s::text[], %(files)s::bigint[], %(sizes)s::bigint[],
    %(orphans)s::bigint[], %(orphan_sizes)s::bigint[], %(oldest)s::timestamptz[])
ON CONFLICT (site, area) DO UPDATE SET files = a.files + excluded.files,
    size_bytes = a.size_bytes + excluded.size_bytes, orphans = a.orphans + excluded.orphans,
    orphan_bytes = a.orphan_bytes + excluded.orphan_bytes, oldest_at = least(a.oldest_at, excluded.oldest_at)
"""

# What waits to be deleted, or was given up, is the business of its own deletion.
_NEEDED = """
SELECT request_id FROM transfer t WHERE request_id = ANY(%(ids)s)
    AND (ended_at IS NULL OR EXISTS (SELECT FROM cleaning c WHERE c.transfer_id = t.id))
UNION ALL
SELECT request_id FROM transfer_history h WHERE request_id = ANY(%(ids)s)
    AND EXISTS (SELECT FROM cleaning c WHERE c.transfer_id = h.id)
"""

_INTEND = """
INSERT INTO orphan_deletion (site, source_lfn, size_bytes, modified_at, step_run)
SELECT %(site)s, *, %(step_run)s
FROM unnest(%(lfns)s::text[], %(sizes)s::bigint[], %(modified)s::timestamptz[])
RETURNING id, source_lfn
"""

_VIEW = """
SELECT s.site, s.older_than_days, s.started_at, s.ended_at, s.visited, s.closed,
    cardinality(s.to_visit) AS left, count(a.area) AS areas, coalesce(sum(a.files), 0)::bigint AS files,
    coalesce(sum(a.size_bytes), 0)::bigint AS size_bytes, coalesce(sum(a.orphans), 0)::bigint AS orphans,
    coalesce(sum(a.orphan_bytes), 0)::bigint AS orphan_bytes, min(a.oldest_at) AS oldest_at
FROM sweep s LEFT JOIN sweep_area a USING (site)
WHERE %(site)s::text IS NULL OR s.site = %(site)s
GROUP BY s.site ORDER BY orphan_bytes DESC, s.site
"""


def begin_or_go_on(
    conn: Connection, site: str, *, older_than_days: int, roots: Sequence[str], step_run: int
) -> None:
    """Begin a sweep of a site; one that is not over, for the same age, goes on where it stopped."""
    values = {"site": site, "older_than_days": older_than_days, "roots": list(roots), "step_run": step_run}
    with conn.transaction():
        if conn.execute(_BEGIN, values).fetchone():
            conn.execute("DELETE FROM sweep_area WHERE site = %s", (site,))


def next_directories(conn: Connection, site: str, at_most: int) -> list[str]:
    """Return the directories (LFN) that are to be visited next."""
    row = conn.execute(
        "SELECT to_visit[greatest(1, cardinality(to_visit) - %s + 1):] FROM sweep WHERE site = %s",
        (at_most, site),
    ).fetchone()
    return list(row[0]) if row else []


def advance(
    conn: Connection,
    site: str,
    *,
    visited: int,
    closed: int,
    more: Sequence[str],
    found: Collection[Found],
    step_run: int,
) -> None:
    """Note what the next directories held, and which ones are in them, in one transaction."""
    with conn.transaction():
        conn.execute(
            _ADVANCE,
            {"site": site, "visited": visited, "closed": closed, "more": list(more), "step_run": step_run},
        )
        if found:
            names = ("areas", "files", "sizes", "orphans", "orphan_sizes", "oldest")
            columns = zip(names, zip(*found, strict=True), strict=True)
            conn.execute(_ADD, {"site": site} | {name: list(column) for name, column in columns})


def needed(conn: Connection, lfns: Collection[str]) -> set[str]:
    """Return which of these names a file of ours needs, or whose deletion waits."""
    by_id = {request_id(lfn): lfn for lfn in lfns}
    return {by_id[found] for (found,) in conn.execute(_NEEDED, {"ids": list(by_id)})}


def intend(conn: Connection, site: str, orphans: Sequence[Orphan], step_run: int) -> dict[str, int]:
    """Write down which orphans are about to be deleted; return the number of each, by its LFN."""
    rows = conn.execute(
        _INTEND,
        {
            "site": site,
            "lfns": [orphan.lfn for orphan in orphans],
            "sizes": [orphan.size_bytes for orphan in orphans],
            "modified": [orphan.modified_at for orphan in orphans],
            "step_run": step_run,
        },
    )
    return {lfn: number for number, lfn in rows}


def note_outcomes(conn: Connection, outcomes: Sequence[tuple[int, str, str | None]]) -> None:
    """Write down what became of orphans: (number, outcome, why)."""
    conn.execute(
        "UPDATE orphan_deletion d SET outcome = w.outcome, reason = w.reason"
        " FROM unnest(%s::bigint[], %s::text[], %s::text[]) AS w(id, outcome, reason) WHERE d.id = w.id",
        [list(column) for column in zip(*outcomes, strict=True)],
    )


def sweep_views(conn: Connection, site: str | None = None) -> list[SweepView]:
    """Return each sweep, the one with most to delete first."""
    with conn.cursor(row_factory=class_row(SweepView)) as cursor:
        return cursor.execute(_VIEW, {"site": site}).fetchall()


def swept_areas(conn: Connection, site: str, limit: int = 100) -> list[Found]:
    """Return what a sweep found in the areas of a site, those with most orphans first."""
    rows = conn.execute(
        "SELECT area, files, size_bytes, orphans, orphan_bytes, oldest_at FROM sweep_area WHERE site = %s"
        " ORDER BY orphan_bytes DESC, area LIMIT %s",
        (site, limit),
    )
    return [Found(*row) for row in rows]
