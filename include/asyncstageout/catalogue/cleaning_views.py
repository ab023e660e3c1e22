"""What people ask about temporary copies: how many wait where, what was given up; and trying that again."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from psycopg import Connection
from psycopg.rows import class_row


@dataclass(frozen=True, slots=True)
class SiteView:
    """The temporary copies at one site, and how its storage is."""

    site: str
    due: int
    """To be deleted now, or being deleted."""
    waiting: int
    """Their time has not come: the policy says later, or a try has failed."""
    resting: int
    """Their file is on its way again, from another site."""
    failed: int
    due_bytes: int
    oldest_due_at: datetime | None
    paused_until: datetime | None
    failing_since: datetime | None
    reason: str | None
    """Why the storage is left alone."""


@dataclass(frozen=True, slots=True)
class FailedCopy:
    """A copy whose deletion was given up."""

    transfer_id: int
    site: str
    source_lfn: str
    username: str
    size_bytes: int
    tries: int
    failed_at: datetime
    due_at: datetime
    """When it is tried again."""
    reason: str | None


class Failures(NamedTuple):
    """What was given up at a site."""

    site: str
    copies: int
    example: str
    """The reason of one of them."""


class FailingSite(NamedTuple):
    """A site whose storage does not let anything be deleted."""

    site: str
    failing_since: datetime
    reason: str


_STATUS = """
WITH copies AS (
    SELECT source AS site, count(*) FILTER (WHERE is_due) AS due,
        count(*) FILTER (WHERE state = 'WAITING' AND NOT is_due) AS waiting,
        count(*) FILTER (WHERE is_due IS NULL) AS resting, count(*) FILTER (WHERE state = 'FAILED') AS failed,
        coalesce(sum(size_bytes) FILTER (WHERE is_due), 0)::bigint AS due_bytes,
        min(due_at) FILTER (WHERE is_due AND state = 'WAITING') AS oldest_due_at
    FROM (
        SELECT *, CASE state WHEN 'DELETING' THEN true WHEN 'WAITING' THEN due_at <= now() ELSE false END
            AS is_due
        FROM cleaning WHERE %(site)s::text IS NULL OR source = %(site)s
    ) c GROUP BY source
), failing AS (
    SELECT site, paused_until, failing_since, reason FROM cleaning_site
    WHERE failing_since IS NOT NULL AND (%(site)s::text IS NULL OR site = %(site)s)
)
SELECT site, coalesce(due, 0) AS due, coalesce(waiting, 0) AS waiting, coalesce(resting, 0) AS resting,
    coalesce(failed, 0) AS failed, coalesce(due_bytes, 0) AS due_bytes, oldest_due_at, paused_until,
    failing_since, reason
FROM copies FULL JOIN failing USING (site) ORDER BY failed DESC, due DESC, site
"""

_FAILED = """
SELECT transfer_id, source AS site, source_lfn, username, size_bytes, tries, failed_at, due_at, reason
FROM cleaning WHERE state = 'FAILED' AND (%(site)s::text IS NULL OR source = %(site)s)
ORDER BY failed_at DESC, transfer_id LIMIT %(limit)s
"""

_FAILED_SINCE = """
SELECT source, count(*), coalesce(min(reason), '') FROM cleaning
WHERE state = 'FAILED' AND (%(since)s::timestamptz IS NULL OR failed_at >= %(since)s)
GROUP BY source ORDER BY 2 DESC, 1
"""

_TRY_AGAIN = """
WITH chosen AS (
    SELECT transfer_id, source FROM cleaning
    WHERE state = 'FAILED' AND (%(site)s::text IS NULL OR source = %(site)s)
        AND (%(username)s::text IS NULL OR username = %(username)s)
        AND (%(ids)s::bigint[] IS NULL OR transfer_id = ANY(%(ids)s))
    ORDER BY transfer_id FOR UPDATE SKIP LOCKED
), changed AS (
    UPDATE cleaning c SET state = 'WAITING', tries = 0, failed_at = NULL, due_at = now()
    FROM chosen x WHERE c.transfer_id = x.transfer_id AND c.source = x.source
    RETURNING c.transfer_id, c.source
)
INSERT INTO file_event (transfer_id, kind, from_state, to_state, subject, step_run, reason)
SELECT transfer_id, 'cleaning', 'FAILED', 'WAITING', source, %(step_run)s, %(comment)s FROM changed
ORDER BY transfer_id
"""


def cleaning_status(conn: Connection, site: str | None = None) -> list[SiteView]:
    """Return each site with temporary copies, or whose storage does not answer, the worst first."""
    with conn.cursor(row_factory=class_row(SiteView)) as cursor:
        return cursor.execute(_STATUS, {"site": site}).fetchall()


def failing_sites(conn: Connection) -> list[FailingSite]:
    """Return the sites whose storage does not answer, or refuses everything, the longest first."""
    rows = conn.execute(
        "SELECT site, failing_since, coalesce(reason, '') FROM cleaning_site"
        " WHERE failing_since IS NOT NULL ORDER BY failing_since, site"
    )
    return [FailingSite(*row) for row in rows]


def failed_copies(conn: Connection, *, site: str | None = None, limit: int = 100) -> list[FailedCopy]:
    """Return copies whose deletion was given up, the latest first."""
    with conn.cursor(row_factory=class_row(FailedCopy)) as cursor:
        return cursor.execute(_FAILED, {"site": site, "limit": limit}).fetchall()


def failed_since(conn: Connection, since: datetime | None) -> list[Failures]:
    """Return what was given up since then, by site, the most first; None: ever."""
    return [Failures(*row) for row in conn.execute(_FAILED_SINCE, {"since": since})]


def try_again(
    conn: Connection,
    *,
    comment: str,
    step_run: int,
    site: str | None = None,
    username: str | None = None,
    ids: list[int] | None = None,
) -> int:
    """Try to delete again what was given up, with all its tries; return how many copies."""
    values = {"site": site, "username": username, "ids": ids, "step_run": step_run, "comment": comment}
    return conn.execute(_TRY_AGAIN, values).rowcount


def previous_step_at(conn: Connection, step_run: int) -> datetime | None:
    """Return when the same task of the same DAG began the last time before this step, or None."""
    row = conn.execute(
        "SELECT p.started_at FROM step_run s JOIN step_run p ON p.dag_id = s.dag_id AND p.task_id = s.task_id"
        " AND p.id < s.id AND p.run_id <> s.run_id WHERE s.id = %s ORDER BY p.id DESC LIMIT 1",
        (step_run,),
    ).fetchone()
    return row[0] if row else None
