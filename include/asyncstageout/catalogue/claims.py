"""What a cycle may take, and the taking: waiting files into FTS jobs, fairly, each file once.

The cost follows the number of (link, user) pairs with waiting files and the size of the cycle, never the
length of the queue: pairs are found by hopping from key to key along the index ``transfer_pending``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from psycopg import Connection
from psycopg.types.json import Jsonb

from asyncstageout.catalogue.arrays import array
from asyncstageout.catalogue.cycles import Cycle, CycleParams
from asyncstageout.core.failures import GOES_WITH_OVERWRITE
from asyncstageout.core.planning import SHARE, InFlight, Link, PendingFile, PlannedJob

_GROUPING_LOCK = 0x5A51
"""Cycles that run at the same moment group one after the other, so that a link's limit holds for all."""


@dataclass(frozen=True, slots=True)
class LinkView:
    """One link with waiting files, as a cycle sees it."""

    link: Link
    usernames: tuple[str, ...]
    in_flight: InFlight


class Entitled(NamedTuple):
    """Whose files of a link may be taken, and how many at most."""

    source: str
    destination: str
    username: str
    room: int


class Barred(NamedTuple):
    """Files that stay, although their user's others go: those of an activity, or of an identity."""

    source: str
    destination: str
    username: str
    activity: str | None
    identity: str | None


# One index probe per (link, user), however many files wait (a "loose index scan").
_LINKS = """
WITH RECURSIVE pair AS (
    (SELECT source, destination, username FROM transfer WHERE state IN ('NEW', 'RETRY') AND driver IS NULL
     ORDER BY source, destination, username LIMIT 1)
    UNION ALL
    SELECT following.* FROM pair p CROSS JOIN LATERAL (
        SELECT source, destination, username FROM transfer
        WHERE state IN ('NEW', 'RETRY') AND driver IS NULL
            AND (source, destination, username) > (p.source, p.destination, p.username)
        ORDER BY source, destination, username LIMIT 1
    ) following
), link AS (
    SELECT source, destination, array_agg(username) AS usernames FROM pair
    WHERE (%(username)s::text IS NULL OR username = %(username)s)
        AND (%(source)s::text IS NULL OR source = %(source)s)
        AND (%(destination)s::text IS NULL OR destination = %(destination)s)
    GROUP BY source, destination
)
SELECT l.source, l.destination, l.usernames, busy.files, busy.size_bytes
FROM link l CROSS JOIN LATERAL (
    -- What is left of a job counts with the average size of its files.
    SELECT coalesce(sum(j.open_files), 0)::bigint AS files,
        coalesce(sum(j.size_bytes * j.open_files / cardinality(j.transfer_ids)), 0)::bigint AS size_bytes
    FROM fts_job j
    WHERE j.source = l.source AND j.destination = l.destination AND j.state IN ('PLANNED', 'SUBMITTED')
) busy ORDER BY l.source, l.destination
"""

_BUSY = """
SELECT t.source, t.destination, t.username, t.activity, count(*), sum(t.size_bytes)::bigint
FROM unnest(%(sources)s::text[], %(destinations)s::text[]) AS l(source, destination)
JOIN fts_job j ON j.source = l.source AND j.destination = l.destination
    AND j.state IN ('PLANNED', 'SUBMITTED')
JOIN transfer t ON t.fts_job = j.sid AND t.state IN ('ACQUIRED', 'SUBMITTED', 'KILL')
GROUP BY 1, 2, 3, 4
"""

# A user's files in the order of priority, then age; the n-th costs the sum of 1/weight so far ("turn").
# Files with the lowest turn go first, so users take turns, and a high priority comes round more often.
_TAKE = """
WITH wanted AS (
    SELECT * FROM unnest(%(sources)s::text[], %(destinations)s::text[], %(usernames)s::text[],
        %(rooms)s::integer[]) AS r(source, destination, username, room) WHERE room > 0
), barred AS (
    SELECT * FROM unnest(%(barred_sources)s::text[], %(barred_destinations)s::text[],
        %(barred_usernames)s::text[], %(barred_activities)s::text[], %(barred_identities)s::text[])
        AS b(source, destination, username, activity, identity)
), share AS (
    SELECT * FROM unnest(%(priorities)s::smallint[], %(weights)s::float8[]) AS s(priority, weight)
), entitled AS (
    -- Twice the even share each: what some users do not need, others may take.
    SELECT source, destination, username, max(room) OVER link AS room,
        least(room, ceil(2.0 * max(room) OVER link / count(*) OVER link)::integer) AS most
    FROM wanted WINDOW link AS (PARTITION BY source, destination)
), candidate AS (
    SELECT f.id, e.source, e.destination, e.room, f.due_at, sum(1 / s.weight) OVER (
        PARTITION BY e.source, e.destination, e.username ORDER BY s.priority DESC, f.due_at, f.id
    ) AS turn
    FROM entitled e CROSS JOIN share s CROSS JOIN LATERAL (
        SELECT id, due_at FROM transfer t
        WHERE t.state IN ('NEW', 'RETRY') AND t.source = e.source AND t.destination = e.destination
            AND t.username = e.username AND t.priority = s.priority AND t.due_at <= now()
            AND t.driver IS NULL  -- else somebody outside moves it
            AND NOT EXISTS (
                SELECT FROM barred b WHERE b.source = e.source AND b.destination = e.destination
                    AND b.username = e.username AND (b.activity = t.activity OR b.identity = t.identity))
            AND (%(task)s::text IS NULL OR t.task_id = (SELECT id FROM task WHERE name = %(task)s))
            AND (%(created_from)s::timestamptz IS NULL OR t.created_at >= %(created_from)s)
            AND (%(created_to)s::timestamptz IS NULL OR t.created_at < %(created_to)s)
        ORDER BY t.due_at, t.id LIMIT e.most
    ) f
), ranked AS (
    SELECT *, row_number() OVER (PARTITION BY source, destination ORDER BY turn, due_at, id) AS place
    FROM candidate
), picked AS (
    SELECT id, turn FROM ranked WHERE place <= room ORDER BY turn, due_at, id LIMIT %(limit)s
)
SELECT t.id, t.source, t.destination, t.username, t.identity, t.activity, t.priority, t.size_bytes,
    t.source_lfn, t.destination_lfn, t.fts_job,
    (t.attempt > 0 AND t.failure_category = ANY(%(overwriting)s)) IS TRUE, t.adler32 IS NOT NULL
-- One probe by id for each, whatever the planner believes of how many wait: after a burst into an empty queue
-- it believes in none, and would compare every picked file with every waiting one.
FROM picked p CROSS JOIN LATERAL (
    SELECT * FROM transfer WHERE id = p.id AND state::text IN ('NEW', 'RETRY') AND driver IS NULL
    FOR UPDATE SKIP LOCKED
) t
ORDER BY p.turn, t.due_at, t.id
"""

_WRITE_JOBS = """
COPY fts_job (sid, cycle_id, source, destination, fts_server, identity, activity, priority,
    source_storage, source_protocol, destination_storage, destination_protocol, params, transfer_ids,
    open_files, size_bytes) FROM STDIN
"""

_ACQUIRE = """
WITH plan AS (
    SELECT * FROM unnest(%(ids)s::bigint[], %(sids)s::uuid[]) AS p(id, sid)
), old AS (
    SELECT t.id, t.state, p.sid FROM transfer t JOIN plan p USING (id)
), changed AS (
    UPDATE transfer t SET state = 'ACQUIRED', fts_job = o.sid, fts_file_id = NULL, fts_finished_at = NULL,
        updated_at = now()
    FROM old o WHERE t.id = o.id AND t.state IN ('NEW', 'RETRY')
    RETURNING t.id, o.state, t.attempt, t.fts_job
)
INSERT INTO transfer_event (transfer_id, from_state, to_state, attempt, fts_job, step_run)
SELECT id, state, 'ACQUIRED', attempt, fts_job, %(step_run)s FROM changed
"""

_WINDOW = """
    created_at >= %(created_from)s AND created_at < %(created_to)s
    AND (%(username)s::text IS NULL OR username = %(username)s)
    AND (%(source)s::text IS NULL OR source = %(source)s)
    AND (%(destination)s::text IS NULL OR destination = %(destination)s)
    AND (%(task)s::text IS NULL OR task_id = (SELECT id FROM task WHERE name = %(task)s))
"""

_FAILED_IN_WINDOW = f"state = 'FAILED' AND driver IS NULL AND {_WINDOW}"

# One that has just come may wait for somebody outside to claim it.
_HASTEN = f"""
UPDATE transfer SET due_at = now(), updated_at = now()
WHERE state IN ('NEW', 'RETRY') AND driver IS NULL AND due_at > now()
    AND created_at < now() - interval '1 minute' AND {_WINDOW}
"""

_REDRIVE = f"""
WITH changed AS (
    UPDATE transfer t SET state = 'NEW', due_at = now(), attempt = 0, ended_at = NULL, fts_job = NULL,
        updated_at = now()
    WHERE NOT EXISTS (  -- a later request for the same destination has taken its place
            SELECT FROM transfer o WHERE o.destination_key = t.destination_key AND o.id <> t.id
                AND (o.state NOT IN ('DONE', 'FAILED', 'KILLED') OR o.id > t.id))
        AND (cleaned_at < ended_at) IS NOT FALSE AND {_FAILED_IN_WINDOW}
    RETURNING id
)
INSERT INTO transfer_event (transfer_id, from_state, to_state, attempt, step_run, reason)
SELECT id, 'FAILED', 'NEW', 0, %(step_run)s, 'driven again by a backfill' FROM changed
"""

_CLEANED = f"SELECT count(*) FROM transfer WHERE cleaned_at >= ended_at AND {_FAILED_IN_WINDOW}"


def links_with_work(conn: Connection, params: CycleParams) -> list[LinkView]:
    """Return the links on which files wait that the cycle may take."""
    rows = conn.execute(_LINKS, _filters(params))
    return [
        LinkView(Link(source, destination), tuple(usernames), InFlight(files, size_bytes))
        for source, destination, usernames, files, size_bytes in rows
    ]


def in_flight_of(conn: Connection, links: Collection[Link]) -> dict[tuple[str, str, str, str], InFlight]:
    """Return what is in flight on links, by (source, destination, username, activity)."""
    rows = conn.execute(
        _BUSY,
        {
            "sources": [link.source for link in links],
            "destinations": [link.destination for link in links],
        },
    )
    return {
        (source, destination, username, activity): InFlight(files, size_bytes)
        for source, destination, username, activity, files, size_bytes in rows
    }


def waiting_files(conn: Connection, link: Link, at_most: int = 10_000) -> int:
    """Count the files that wait on a link, up to a bound: beyond it nobody needs the exact number."""
    row = conn.execute(
        "SELECT count(*) FROM (SELECT FROM transfer WHERE state IN ('NEW', 'RETRY')"
        " AND source = %s AND destination = %s LIMIT %s) AS waiting",
        (*link, at_most),
    ).fetchone()
    return int(row[0]) if row else 0


def waiting_for(
    conn: Connection,
    link: Link,
    *,
    usernames: Collection[str] = (),
    identities: Collection[str] = (),
    at_most: int = 10_000,
) -> int:
    """Count the files of these users, or of these identities, that wait on a link, up to a bound."""
    row = conn.execute(
        "SELECT count(*) FROM (SELECT FROM transfer WHERE state IN ('NEW', 'RETRY')"
        " AND source = %s AND destination = %s AND (username = ANY(%s) OR identity = ANY(%s)) LIMIT %s)"
        " AS waiting",
        (*link, list(usernames), list(identities), at_most),
    ).fetchone()
    return int(row[0]) if row else 0


def redrive_failed(conn: Connection, params: CycleParams, step_run: int) -> int:
    """Make the FAILED files of a backfill's window NEW again, with all their attempts; return how many."""
    return conn.execute(_REDRIVE, {**_filters(params), "step_run": step_run}).rowcount


def cleaned_failed(conn: Connection, params: CycleParams) -> int:
    """Count the FAILED files of a backfill's window that cannot go again, as their copies are deleted."""
    row = conn.execute(_CLEANED, _filters(params)).fetchone()
    return int(row[0]) if row else 0


def hasten_retries(conn: Connection, params: CycleParams) -> int:
    """Make the files of a backfill's window due that would wait longer for an attempt; return how many."""
    return conn.execute(_HASTEN, _filters(params)).rowcount


def lock_grouping(conn: Connection) -> None:
    """Wait for a concurrent cycle to finish grouping; released at the end of the open transaction."""
    conn.execute("SELECT pg_advisory_xact_lock(%s)", (_GROUPING_LOCK,))


def take(
    conn: Connection,
    params: CycleParams,
    entitled: Sequence[Entitled],
    *,
    barred: Sequence[Barred] = (),
) -> list[PendingFile]:
    """Lock and return the files to send now, in the order in which they should travel.

    Args:
        entitled: who may send on which link, and how many files; the link gets the largest of them.
    """
    rows = conn.execute(
        _TAKE,
        {
            **_filters(params),
            "sources": [one.source for one in entitled],
            "destinations": [one.destination for one in entitled],
            "usernames": [one.username for one in entitled],
            "rooms": [one.room for one in entitled],
            "barred_sources": [one.source for one in barred],
            "barred_destinations": [one.destination for one in barred],
            "barred_usernames": [one.username for one in barred],
            "barred_activities": [one.activity for one in barred],
            "barred_identities": [one.identity for one in barred],
            "priorities": list(SHARE),
            "weights": list(SHARE.values()),
            "overwriting": [category.value for category in GOES_WITH_OVERWRITE],
        },
    )
    return [PendingFile(*row) for row in rows.fetchall()]


def write_jobs(conn: Connection, cycle: Cycle, jobs: Sequence[PlannedJob], *, step_run: int) -> None:
    """Write planned FTS jobs with their exact file lists and make their files ACQUIRED.

    Call it in the transaction that took the files.
    """
    with conn.cursor().copy(_WRITE_JOBS) as copy:
        for job in jobs:
            copy.write_row((
                job.sid, cycle.cycle_id, *job.key[:6], *job.key.names, Jsonb(dict(job.key.params)),
                array(job.transfer_ids), len(job.transfer_ids), job.size_bytes,
            ))  # fmt: skip
    ids = array(transfer_id for job in jobs for transfer_id in job.transfer_ids)
    sids = array(job.sid for job in jobs for _ in job.transfer_ids)
    conn.execute(_ACQUIRE, {"ids": ids, "sids": sids, "step_run": step_run})


def record_links(conn: Connection, cycle_id: int, rows: Sequence[tuple[LinkView, int, str | None]]) -> None:
    """Keep what the cycle saw: (link, room, why it was held or None)."""
    with conn.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO cycle_link (cycle_id, source, destination, users, in_flight, room, held)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
            [
                (cycle_id, *view.link, len(view.usernames), view.in_flight.files, room, held)
                for view, room, held in rows
            ],
        )


def _filters(params: CycleParams) -> dict[str, Any]:
    return params.model_dump(exclude={"dry_run"})
