"""FTS servers: what operators want of them, and what the last contact with each brought."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from psycopg import Connection

from asyncstageout.core.servers import FTSServer, State

FAILING_AFTER_S = 20.0
"""A server that gave no answer for so long counts as failing: not for one lost packet."""
FORGOTTEN_AFTER_S = 300.0
"""If nobody has asked a failing server for so long (sensing is paused), it counts as answering again."""

# What failing means is said once, here: everything else asks this function.
_FAILING = f"""
CASE WHEN h.checked_at - h.failing_since >= interval '{FAILING_AFTER_S} s'
    AND h.checked_at > now() - interval '{FORGOTTEN_AFTER_S} s' THEN h.failing_since END
"""

AWAY = f"""
SELECT s.name FROM fts_server s LEFT JOIN fts_server_health h USING (name)
WHERE s.state = 'down' OR ({_FAILING}) IS NOT NULL
"""
"""Query: servers that nothing can be asked of just now."""

_SERVERS = f"""
SELECT s.name, s.endpoint, s.vo, s.regions, s.weight, s.state, {_FAILING}, h.problem
FROM fts_server s LEFT JOIN fts_server_health h USING (name) ORDER BY s.name
"""

_VIEWS = """
SELECT s.name, s.reason, s.updated_at, s.updated_by, h.checked_at, h.version, coalesce(j.jobs, 0),
    coalesce(j.files, 0), coalesce(j.in_doubt, 0)
FROM fts_server s LEFT JOIN fts_server_health h USING (name) LEFT JOIN (
    SELECT fts_server AS name, count(*) AS jobs, sum(open_files) AS files,
        count(*) FILTER (WHERE state = 'PLANNED') AS in_doubt
    FROM fts_job WHERE state IN ('PLANNED', 'SUBMITTED') GROUP BY fts_server
) j USING (name) ORDER BY s.name
"""

# The time of the first failure stays; an answer ends it. A server that nobody knows has no health.
_NOTE = """
INSERT INTO fts_server_health AS h (name, checked_at, failing_since, problem, version)
SELECT name, %(now)s, %(failing_since)s, %(problem)s, %(version)s FROM fts_server WHERE name = %(name)s
ON CONFLICT (name) DO UPDATE SET checked_at = greatest(h.checked_at, excluded.checked_at),
    failing_since = CASE WHEN excluded.failing_since IS NOT NULL
        THEN least(h.failing_since, excluded.failing_since) END,
    problem = excluded.problem, version = coalesce(excluded.version, h.version)
WHERE excluded.checked_at >= h.checked_at
"""


class HasOpenJobs(Exception):
    """A server may not be forgotten while files are under way in its jobs."""

    def __init__(self, name: str, jobs: int) -> None:
        self.name, self.jobs = name, jobs
        super().__init__(f"{name} has {jobs:,} open jobs: drain it first")


@dataclass(frozen=True, slots=True)
class ServerView:
    """A server as operators look at it."""

    server: FTSServer
    reason: str | None
    updated_at: datetime
    updated_by: str
    checked_at: datetime | None
    version: str | None
    open_jobs: int
    open_files: int
    in_doubt: int
    """Of the open jobs, those that it has not confirmed."""


def servers(conn: Connection) -> list[FTSServer]:
    """Return all servers; ``failing_since`` is set for those that count as failing."""
    return [
        FTSServer(name, endpoint, vo, tuple(regions), weight, state, failing_since, problem)
        for name, endpoint, vo, regions, weight, state, failing_since, problem in conn.execute(_SERVERS)
    ]


def server_views(conn: Connection) -> list[ServerView]:
    """Return all servers with what is under way in their jobs."""
    by_name = {server.name: server for server in servers(conn)}
    return [ServerView(by_name[name], *row) for name, *row in conn.execute(_VIEWS) if name in by_name]


def note_contact(
    conn: Connection,
    name: str,
    problem: str | None,
    now: datetime,
    version: str | None = None,
    *,
    refused: bool = False,
) -> None:
    """Keep what a contact brought; the first good one ends all failing.

    Args:
        problem: why there was no answer; None: there was one.
        refused: nobody listens there, so that the server counts as failing at once.
    """
    since = None
    if problem is not None:
        since = now - timedelta(seconds=FAILING_AFTER_S) if refused else now
    conn.execute(
        _NOTE, {"name": name, "now": now, "failing_since": since, "problem": problem, "version": version}
    )


def last_contact(conn: Connection, name: str) -> datetime | None:
    """Return when somebody last tried to reach a server."""
    row = conn.execute("SELECT checked_at FROM fts_server_health WHERE name = %s", (name,)).fetchone()
    return row[0] if row else None


def add_server(
    conn: Connection,
    name: str,
    *,
    endpoint: str | None = None,
    vo: str | None = None,
    regions: Sequence[str] | None = None,
    weight: int | None = None,
    by: str,
) -> bool:
    """Add a server, or change what is given of a known one; return whether it is new."""
    row = conn.execute(
        """
        INSERT INTO fts_server AS s (name, endpoint, vo, regions, weight, updated_by)
        VALUES (%(name)s, %(endpoint)s, coalesce(%(vo)s, ''), coalesce(%(regions)s::text[], '{}'),
            coalesce(%(weight)s::integer, 100), %(by)s)
        ON CONFLICT (name) DO UPDATE SET endpoint = coalesce(%(endpoint)s, s.endpoint),
            vo = coalesce(%(vo)s, s.vo), regions = coalesce(%(regions)s::text[], s.regions),
            weight = coalesce(%(weight)s::integer, s.weight), updated_at = now(), updated_by = %(by)s
        RETURNING xmax = 0
        """,
        {
            "name": name,
            "endpoint": endpoint,
            "vo": vo,
            "regions": None if regions is None else list(regions),
            "weight": weight,
            "by": by,
        },
    ).fetchone()
    return bool(row and row[0])


def set_state(conn: Connection, name: str, state: State, *, reason: str | None, by: str) -> bool:
    """Say what a server is to do; False if there is no such server."""
    changed = conn.execute(
        "UPDATE fts_server SET state = %s, reason = %s, updated_at = now(), updated_by = %s WHERE name = %s",
        (state, reason, by, name),
    )
    return bool(changed.rowcount)


def remove_server(conn: Connection, name: str, *, by: str) -> bool:
    """Forget a server; False if there is no such server.

    Raises:
        HasOpenJobs: files are under way in its jobs.
    """
    with conn.transaction():
        # A cycle that plans a job for it meanwhile has it recognised by the connection of that name.
        conn.execute("SELECT set_config('stageout.actor', %s, true)", (by,))
        removed = conn.execute("DELETE FROM fts_server WHERE name = %s", (name,)).rowcount
        row = conn.execute(
            "SELECT count(*) FROM fts_job WHERE fts_server = %s AND state IN ('PLANNED', 'SUBMITTED')",
            (name,),
        ).fetchone()
        if row and row[0]:
            raise HasOpenJobs(name, int(row[0]))
    return bool(removed)


def installation_id(conn: Connection) -> UUID:
    """Return who we are in the metadata of FTS jobs."""
    row = conn.execute("SELECT id FROM installation").fetchone()
    assert row is not None  # noqa: S101 - the migration writes the one row
    return UUID(str(row[0]))
