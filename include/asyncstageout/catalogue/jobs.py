"""FTS jobs between the plan and the acceptance: what to POST, and what the answer changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID

from psycopg import Connection

from asyncstageout.catalogue.bell import ring_kills
from asyncstageout.catalogue.fts_servers import AWAY
from asyncstageout.catalogue.storages import Naming
from asyncstageout.core.planning import FileNames, Link, Shard, ShardLoad


class FileToSend(NamedTuple):
    """One file of a planned job, with names resolved."""

    transfer_id: int
    source_url: str
    destination_url: str
    size_bytes: int
    adler32: str | None
    attempt: int
    """The attempt that this submission is, from 1."""
    source_lfn: str = ""
    destination_lfn: str = ""


@dataclass(frozen=True, slots=True)
class JobToSubmit:
    """A planned job as FTS is to be told about it."""

    sid: UUID
    fts_server: str
    link: Link
    identity: str
    activity: str
    priority: int
    params: dict[str, Any]
    cycle_id: int
    files: tuple[FileToSend, ...]


# The list is what was planned, whatever happened to its files since: a repeated POST must say the same.
_TO_SUBMIT = """
SELECT j.sid, j.fts_server, j.source, j.destination, j.identity, j.activity, j.priority, j.params, j.cycle_id,
    j.source_storage, j.source_protocol, j.destination_storage, j.destination_protocol,
    array_agg(t.id ORDER BY u.place),
    array_agg(t.username ORDER BY u.place),
    array_agg(t.source_lfn ORDER BY u.place),
    array_agg(t.destination_lfn ORDER BY u.place),
    array_agg(t.size_bytes ORDER BY u.place),
    array_agg(t.adler32 ORDER BY u.place),
    array_agg((t.attempt + 1)::integer ORDER BY u.place)
FROM fts_job j
CROSS JOIN LATERAL unnest(j.transfer_ids) WITH ORDINALITY AS u(id, place)
JOIN transfer t ON t.id = u.id
WHERE j.state = 'PLANNED' AND j.sid = ANY(%s)
GROUP BY j.sid ORDER BY j.planned_at, j.sid
"""

_ADOPT = f"""
UPDATE fts_job j SET cycle_id = %(cycle_id)s, planned_at = now()
WHERE state = 'PLANNED' AND planned_at < now() - make_interval(secs => %(older_than_s)s)
    AND NOT EXISTS (SELECT FROM identity_hold h
                    WHERE h.fts_server IN ('', j.fts_server) AND h.identity = j.identity
                        AND h.retry_at > now())
    AND fts_server NOT IN ({AWAY})
"""

_ACCEPTED = """
WITH answer AS (
    SELECT * FROM unnest(%(sids)s::uuid[], %(job_ids)s::uuid[]) AS a(sid, job_id)
), job AS (
    -- Killed while FTS took it, to the last file: there is nothing to wait for.
    UPDATE fts_job j SET state = (CASE WHEN j.open_files = 0 THEN 'ENDED' ELSE 'SUBMITTED' END)::job_state,
        ended_at = CASE WHEN j.open_files = 0 THEN now() END,
        job_id = a.job_id, submitted_at = now(), next_poll_at = now()
    FROM answer a WHERE j.sid = a.sid AND j.state = 'PLANNED'
    RETURNING j.sid, j.transfer_ids
), changed AS (
    UPDATE transfer t SET state = 'SUBMITTED', attempt = t.attempt + 1, updated_at = now()
    FROM job CROSS JOIN LATERAL unnest(job.transfer_ids) AS u(id)
    -- One probe by id for each, and by no index of states: after a burst the planner believes that hardly a
    -- file is in a job, and would compare all that are with each of these jobs.
    WHERE t.id = u.id AND t.fts_job = job.sid AND t.state::text = 'ACQUIRED'
    RETURNING t.id, t.attempt, t.fts_job
), event AS (
    INSERT INTO transfer_event (transfer_id, from_state, to_state, attempt, fts_job, step_run)
    SELECT id, 'ACQUIRED', 'SUBMITTED', attempt, fts_job, %(step_run)s FROM changed
)
SELECT count(*), EXISTS (SELECT FROM job JOIN transfer t ON t.fts_job = job.sid WHERE t.state = 'KILL')
FROM changed
"""

# Locked in one order, so that two runs never wait for each other.
_RELEASE = """
WITH ours AS MATERIALIZED (
    SELECT sid FROM fts_job WHERE sid = ANY(%(sids)s) AND state = 'PLANNED'
        AND (%(poster)s::bigint IS NULL OR poster = %(poster)s)
    ORDER BY sid FOR NO KEY UPDATE
), job AS (
    UPDATE fts_job j SET state = 'REFUSED', reason = %(reason)s, ended_at = now(), open_files = 0
    FROM ours WHERE j.sid = ours.sid RETURNING j.sid, j.transfer_ids
), changed AS (
    -- A file that was being killed is in no job now, and so it is killed.
    UPDATE transfer t SET updated_at = now(),
        state = (CASE t.state WHEN 'KILL' THEN 'KILLED' ELSE 'NEW' END)::transfer_state,
        ended_at = CASE t.state WHEN 'KILL' THEN now() END,
        due_at = now() + make_interval(secs => %(wait_s)s)
    FROM job CROSS JOIN LATERAL unnest(job.transfer_ids) AS u(id)
    WHERE t.id = u.id AND t.fts_job = job.sid AND t.state::text IN ('ACQUIRED', 'KILL')
    RETURNING t.id, t.state, t.attempt, t.fts_job
), event AS (
    INSERT INTO transfer_event (transfer_id, from_state, to_state, attempt, fts_job, step_run, reason)
    SELECT id, CASE state WHEN 'KILLED' THEN 'KILL' ELSE 'ACQUIRED' END::transfer_state, state, attempt,
        fts_job, %(step_run)s, %(reason)s FROM changed
)
SELECT (SELECT array_agg(sid) FROM job), (SELECT count(*) FROM changed)
"""

_SPLIT = """
WITH old AS (
    UPDATE fts_job SET state = 'REFUSED', reason = %(reason)s, ended_at = now(), open_files = 0
    WHERE sid = %(sid)s AND state = 'PLANNED'
    RETURNING *
), member AS MATERIALIZED (
    -- Locked first, so that a file which is being killed at this moment is seen as killed.
    SELECT t.id, t.state, u.place
    FROM old CROSS JOIN LATERAL unnest(old.transfer_ids) WITH ORDINALITY AS u(id, place)
    JOIN transfer t ON t.id = u.id AND t.fts_job = old.sid AND t.state IN ('ACQUIRED', 'KILL')
    ORDER BY t.id FOR UPDATE OF t
), sided AS (  -- without files that were killed meanwhile: these lists are new
    SELECT id, place, CASE
        WHEN coalesce(id = ANY(%(first)s::bigint[]),
            2 * row_number() OVER (ORDER BY place) <= count(*) OVER ())
        THEN %(left)s::uuid ELSE %(right)s::uuid END AS sid
    FROM member WHERE state = 'ACQUIRED'
), part AS (
    SELECT sid, array_agg(id ORDER BY place) AS ids FROM sided GROUP BY sid
), job AS (
    INSERT INTO fts_job (sid, fts_server, cycle_id, shard, source, destination, identity, activity, priority,
        params, source_storage, source_protocol, destination_storage, destination_protocol, transfer_ids,
        open_files, size_bytes)
    SELECT p.sid, o.fts_server, o.cycle_id, o.shard, o.source, o.destination, o.identity, o.activity,
        o.priority, o.params, o.source_storage, o.source_protocol, o.destination_storage,
        o.destination_protocol, p.ids, cardinality(p.ids),
        (SELECT sum(t.size_bytes) FROM transfer t WHERE t.id = ANY(p.ids))
    FROM part p CROSS JOIN old o
), changed AS (
    UPDATE transfer t SET fts_job = p.sid, updated_at = now()
    FROM part p WHERE t.id = ANY(p.ids) AND t.fts_job = %(sid)s AND t.state = 'ACQUIRED'
    RETURNING t.id, t.attempt, t.fts_job
), killed AS (
    UPDATE transfer t SET state = 'KILLED', updated_at = now(), ended_at = now()
    FROM member m WHERE t.id = m.id AND m.state = 'KILL'
    RETURNING t.id, t.attempt, t.fts_job
), event AS (
    INSERT INTO transfer_event (transfer_id, from_state, to_state, attempt, fts_job, step_run, reason)
    SELECT id, 'ACQUIRED'::transfer_state, 'ACQUIRED'::transfer_state, attempt, fts_job, %(step_run)s,
        %(reason)s FROM changed
    UNION ALL
    SELECT id, 'KILL', 'KILLED', attempt, fts_job, %(step_run)s, %(reason)s FROM killed
)
SELECT count(*) FROM old
"""

# FTS took the same parameters on the same link within the hour; or whoever could mend them had a day.
_BLAMES_FILE = """
SELECT %(alone)s AND EXISTS (
        SELECT FROM fts_job o WHERE o.source = j.source AND o.destination = j.destination
            AND o.planned_at > now() - interval '1 day' AND o.params = j.params
            AND o.submitted_at > now() - interval '1 hour')
    OR coalesce((SELECT max(t.created_at) FROM transfer t WHERE t.fts_job = j.sid) < now() - interval '1 day',
        false)
FROM fts_job j WHERE j.sid = %(sid)s
"""


def adopt_orphans(conn: Connection, cycle_id: int, older_than_s: float) -> int:
    """Give a cycle the planned jobs that nobody told FTS about for so long; return how many.

    Their cycle died, or FTS did not answer it. POSTing them again is safe whatever happened: the sid is kept.
    Those of an identity that FTS does not let in wait until the hold is over, those of a server that is down
    or failing until it answers.
    """
    return conn.execute(_ADOPT, {"cycle_id": cycle_id, "older_than_s": older_than_s}).rowcount


def planned_in_shard(conn: Connection, cycle_id: int, shard: int) -> list[UUID]:
    """Return the sids of a shard's jobs that FTS has not confirmed."""
    rows = conn.execute(
        "SELECT sid FROM fts_job WHERE cycle_id = %s AND shard = %s AND state = 'PLANNED'", (cycle_id, shard)
    )
    return [sid for (sid,) in rows]


def assign_shards(conn: Connection, shards: Sequence[Shard]) -> None:
    """Note which task submits which job; the first shard is 0."""
    conn.execute(
        "UPDATE fts_job j SET shard = p.shard"
        " FROM unnest(%s::uuid[], %s::smallint[]) AS p(sid, shard) WHERE j.sid = p.sid",
        (
            [sid for shard in shards for sid in shard.sids],
            [number for number, shard in enumerate(shards) for _ in shard.sids],
        ),
    )


@dataclass(frozen=True, slots=True)
class CycleResult:
    """What a cycle did, from the catalogue."""

    planned_jobs: int
    """Jobs that FTS has not confirmed."""
    jobs: int
    files: int
    size_bytes: int
    links: int
    held: tuple[tuple[str, int], ...]
    """(reason, links), the most frequent first."""


def cycle_result(conn: Connection, cycle_id: int) -> CycleResult:
    """Return what became of a cycle's jobs, and which links it held back."""
    row = conn.execute(
        """
        SELECT count(*) FILTER (WHERE state = 'PLANNED'), count(*) FILTER (WHERE accepted),
            coalesce(sum(cardinality(transfer_ids)) FILTER (WHERE accepted), 0),
            coalesce(sum(size_bytes) FILTER (WHERE accepted), 0),
            count(DISTINCT (source, destination)) FILTER (WHERE accepted)
        FROM (SELECT *, submitted_at IS NOT NULL AS accepted FROM fts_job WHERE cycle_id = %s) job
        """,
        (cycle_id,),
    ).fetchone()
    held = conn.execute(
        "SELECT held, count(*) FROM cycle_link WHERE cycle_id = %s AND held IS NOT NULL"
        " GROUP BY held ORDER BY 2 DESC, 1",
        (cycle_id,),
    ).fetchall()
    assert row is not None  # noqa: S101 - an aggregate without GROUP BY always gives a row
    planned, accepted, file_count, size_bytes, links = (int(number) for number in row)
    return CycleResult(planned, accepted, file_count, size_bytes, links, tuple(held))


def planned_loads(conn: Connection, cycle_id: int) -> list[ShardLoad]:
    """Return a cycle's jobs that FTS has not confirmed, to share them out."""
    rows = conn.execute(
        "SELECT sid, source, destination, cardinality(transfer_ids) FROM fts_job"
        " WHERE cycle_id = %s AND state = 'PLANNED' ORDER BY planned_at, sid",
        (cycle_id,),
    )
    return [ShardLoad(sid, Link(source, destination), files) for sid, source, destination, files in rows]


def jobs_to_submit(conn: Connection, sids: Sequence[UUID]) -> list[JobToSubmit]:
    """Return those of the jobs that are still PLANNED, with their exact files."""
    rows = conn.execute(_TO_SUBMIT, (list(sids),)).fetchall()
    naming = Naming(conn, {FileNames(*row[9:13]) for row in rows})
    return [_job_to_submit(row, naming) for row in rows]


def _job_to_submit(row: Sequence[Any], naming: Naming) -> JobToSubmit:
    sid, fts_server, source, destination, identity, activity, priority, params, cycle_id = row[:9]
    names = FileNames(*row[9:13])
    files = tuple(
        FileToSend(
            transfer_id,
            naming.source(names, source_lfn, username, destination),
            naming.destination(names, destination_lfn, username, destination),
            size_bytes,
            adler32,
            attempt,
            source_lfn,
            destination_lfn,
        )
        for transfer_id, username, source_lfn, destination_lfn, size_bytes, adler32, attempt in zip(
            *row[13:], strict=True
        )
    )
    link = Link(source, destination)
    return JobToSubmit(sid, fts_server, link, identity, activity, priority, params, cycle_id, files)


def record_accepted(conn: Connection, accepted: Sequence[tuple[UUID, UUID]], step_run: int) -> int:
    """Record that FTS took jobs, given as (sid, FTS job id); return how many files became SUBMITTED.

    A second call for the same job changes nothing. Where files were stopped while FTS took them, the bell of
    kills is rung.
    """
    with conn.transaction():
        row = conn.execute(
            _ACCEPTED,
            {
                "sids": [sid for sid, _ in accepted],
                "job_ids": [job_id for _, job_id in accepted],
                "step_run": step_run,
            },
        ).fetchone()
        files, has_kills = row or (0, False)
        if has_kills:
            ring_kills(conn)
    return int(files)


def release(
    conn: Connection,
    sids: Sequence[UUID],
    reason: str,
    *,
    wait_s: float,
    step_run: int,
    poster: int | None = None,
) -> tuple[set[UUID], int]:
    """Close planned jobs and give their files back to the queue, due again in ``wait_s``; no attempt is used.

    Args:
        poster: only jobs that this step run tells FTS about; None: whoever does.

    Returns which jobs were closed, and how many files went back.
    """
    row = conn.execute(
        _RELEASE,
        {"sids": list(sids), "reason": reason, "wait_s": wait_s, "step_run": step_run, "poster": poster},
    ).fetchone()
    closed, files = row or (None, 0)
    return set(closed or ()), int(files)


def close_refused(conn: Connection, sid: UUID, reason: str) -> None:
    """Record that FTS refused a job for good, in the transaction that decides on its files."""
    conn.execute(
        "UPDATE fts_job SET state = 'REFUSED', reason = %s, ended_at = now(), open_files = 0"
        " WHERE sid = %s AND state = 'PLANNED'",
        (reason, sid),
    )


def split(
    conn: Connection,
    sid: UUID,
    parts: tuple[UUID, UUID],
    reason: str,
    step_run: int,
    *,
    first: Sequence[int] | None = None,
) -> bool:
    """Replace a refused job by two planned ones, to find or to take out the file at fault.

    Args:
        parts: fresh sids; a part without files is not made.
        first: files of the first part; None gives each part half of the files.

    Returns False, and changes nothing, if the job is not PLANNED any more.
    """
    left, right = parts
    row = conn.execute(
        _SPLIT,
        {
            "sid": sid,
            "left": left,
            "right": right,
            "first": None if first is None else list(first),
            "reason": reason,
            "step_run": step_run,
        },
    ).fetchone()
    return bool(row and row[0])


def blames_file(conn: Connection, sid: UUID, *, alone: bool) -> bool:
    """Say whether the refusal of a job of one file is that file's fault, and not that of the parameters.

    Args:
        alone: nothing else was refused for the same reason, so what FTS took before on the link counts.
    """
    row = conn.execute(_BLAMES_FILE, {"sid": sid, "alone": alone}).fetchone()
    return bool(row and row[0])
