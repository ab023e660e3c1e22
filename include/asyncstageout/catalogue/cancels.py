"""Files that people stopped and FTS may have: what to tell FTS, that it was told, and how it ended."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from psycopg import Connection
from psycopg.errors import DeadlockDetected
from tenacity import retry, retry_if_exception_type, stop_after_attempt

from asyncstageout.catalogue.fts_servers import AWAY
from asyncstageout.core.states import FTS_JOB_FINAL

TOLD_AGAIN_S = 300.0
"""FTS ends what it was told to stop within seconds: a file that is open so much later is told again."""
UNSENT = "it was stopped before FTS heard of it"


class JobToCancel(NamedTuple):
    """An accepted job with files that are to stop."""

    sid: UUID
    job_id: UUID
    fts_server: str
    identity: str
    transfer_ids: tuple[int, ...]
    """The files that are to stop and have not ended."""
    file_count: int
    is_whole: bool
    """Whether no other file of the job is under way."""


class Kept(NamedTuple):
    """Files that are to stop and of which FTS is not told now."""

    planned: int
    """FTS has not confirmed their job: they are cancelled as soon as it has."""
    at_away: int
    """Their FTS server is down, or does not answer."""
    inseparable: int
    """They share one session with files that go on: FTS only stops such a job as a whole."""


class Ended(NamedTuple):
    """How files ended that were under way when they were killed."""

    killed: int
    too_late: int
    """They had arrived."""


_TO_KILL = """
to_kill AS (
    SELECT fts_job AS sid, array_agg(id ORDER BY id) AS ids, count(*) AS files, max(updated_at) AS asked_at
    FROM transfer WHERE state = 'KILL' AND fts_job IS NOT NULL GROUP BY fts_job
)
"""
_IS_WHOLE = """
NOT EXISTS (SELECT FROM transfer o WHERE o.fts_job = j.sid AND o.state IN ('ACQUIRED', 'SUBMITTED'))
"""
_IS_REUSE = "coalesce((j.params->>'reuse')::boolean, false)"

# A job that has ended at FTS is not cancelled any more, but files that it left open can be.
_JOBS = f"""
WITH {_TO_KILL}, job AS (
    SELECT j.*, k.ids, {_IS_WHOLE} AS is_whole FROM to_kill k JOIN fts_job j USING (sid)
    WHERE j.state = 'SUBMITTED' AND j.fts_server NOT IN ({AWAY})
        AND (j.cancelled_at IS NULL OR j.cancelled_at < k.asked_at
            OR j.cancelled_at < %(now)s - make_interval(secs => {TOLD_AGAIN_S}))
)
SELECT sid, job_id, fts_server, identity, ids, cardinality(transfer_ids),
    is_whole AND coalesce(fts_state <> ALL(%(final)s), true)
FROM job j WHERE is_whole OR NOT {_IS_REUSE} ORDER BY submitted_at, sid
"""

_KEPT = f"""
WITH {_TO_KILL}
SELECT coalesce(sum(k.files) FILTER (WHERE j.state = 'PLANNED'), 0)::integer,
    coalesce(sum(k.files) FILTER (WHERE j.state = 'SUBMITTED' AND j.fts_server IN ({AWAY})), 0)::integer,
    coalesce(sum(k.files) FILTER (WHERE j.state = 'SUBMITTED' AND j.fts_server NOT IN ({AWAY})
        AND {_IS_REUSE} AND NOT {_IS_WHOLE}), 0)::integer
FROM to_kill k JOIN fts_job j USING (sid)
"""

# No submitter has marked it, so no byte of it has left; one that comes later finds it closed.
_CLOSE_UNSENT = f"""
WITH {_TO_KILL}, job AS (
    UPDATE fts_job j SET state = 'REFUSED', reason = '{UNSENT}', ended_at = now(), open_files = 0
    FROM to_kill k WHERE j.sid = k.sid AND j.state = 'PLANNED' AND j.poster IS NULL AND {_IS_WHOLE}
    RETURNING j.sid
), changed AS (
    UPDATE transfer t SET state = 'KILLED', updated_at = now(), ended_at = now()
    FROM job WHERE t.fts_job = job.sid AND t.state = 'KILL' RETURNING t.id, t.attempt, t.fts_job
), event AS (
    INSERT INTO transfer_event (transfer_id, from_state, to_state, attempt, fts_job, step_run, reason)
    SELECT id, 'KILL', 'KILLED', attempt, fts_job, %(step_run)s, '{UNSENT}' FROM changed ORDER BY id
)
SELECT count(*) FROM changed
"""

_NOTE = """
UPDATE fts_job j SET cancelled_at = %(now)s, canceller = %(step_run)s, fts_state = NULL,
    next_poll_at = %(now)s
FROM (
    SELECT sid FROM fts_job WHERE sid = ANY(%(sids)s) AND state = 'SUBMITTED' ORDER BY sid FOR NO KEY UPDATE
) job WHERE j.sid = job.sid
"""

_STEPS = """
step AS (SELECT id, started_at FROM step_run WHERE dag_id = %(dag_id)s AND run_id = %(run_id)s)
"""

_OPEN = f"""
WITH {_STEPS}
SELECT count(*) FROM transfer t JOIN fts_job j ON j.sid = t.fts_job
WHERE t.state = 'KILL' AND j.canceller IN (SELECT id FROM step)
"""

# What the run killed itself, and what others did in jobs of which it told FTS. The times keep to some days'
# partitions.
_ENDED = f"""
WITH {_STEPS}, file AS (
    SELECT u.id, j.sid FROM fts_job j CROSS JOIN LATERAL unnest(j.transfer_ids) AS u(id)
    WHERE j.canceller IN (SELECT id FROM step)
    UNION
    SELECT transfer_id, fts_job FROM transfer_event
    WHERE step_run IN (SELECT id FROM step) AND to_state = 'KILL' AND fts_job IS NOT NULL
        AND at >= (SELECT min(started_at) FROM step)
)
SELECT count(*) FILTER (WHERE e.to_state = 'KILLED'), count(*) FILTER (WHERE e.to_state <> 'KILLED')
FROM file f JOIN transfer_event e ON e.transfer_id = f.id AND e.fts_job = f.sid AND e.from_state = 'KILL'
    AND e.at >= (SELECT min(started_at) FROM step)
"""


class KillRun(NamedTuple):
    """A run of a DAG that killed files, told FTS to stop some, or both."""

    dag_id: str
    run_id: str


def jobs_to_cancel(conn: Connection, now: datetime) -> list[JobToCancel]:
    """Return the accepted jobs with files to stop that FTS was not told of, the oldest first."""
    rows = conn.execute(_JOBS, {"now": now, "final": list(FTS_JOB_FINAL)})
    return [
        JobToCancel(sid, job_id, server, identity, tuple(ids), files, is_whole)
        for sid, job_id, server, identity, ids, files, is_whole in rows
    ]


def kept(conn: Connection) -> Kept:
    """Return how many files are to stop of which FTS is not told now, and why."""
    return Kept(*conn.execute(_KEPT).fetchone() or (0, 0, 0))


# Others lock jobs and files in an order of their own.
_at_once = retry(retry=retry_if_exception_type(DeadlockDetected), stop=stop_after_attempt(5), reraise=True)


@_at_once
def close_unsent(conn: Connection, step_run: int) -> int:
    """Kill what is in planned jobs of which FTS never heard and no other file needs; return how much."""
    row = conn.execute(_CLOSE_UNSENT, {"step_run": step_run}).fetchone()
    return int(row[0]) if row else 0


@_at_once
def note_told(conn: Connection, sids: Sequence[UUID], step_run: int, now: datetime) -> None:
    """Note that FTS was told to stop files of jobs, and have sensing look at them at once."""
    conn.execute(_NOTE, {"sids": list(sids), "step_run": step_run, "now": now})


def still_open(conn: Connection, run: KillRun) -> int:
    """Return how many files have not ended of those of which this run was the last to tell FTS."""
    row = conn.execute(_OPEN, run._asdict()).fetchone()
    return int(row[0]) if row else 0


def ended(conn: Connection, run: KillRun) -> Ended:
    """Return how files ended that were under way when this run killed them, or told FTS to stop them."""
    return Ended(*conn.execute(_ENDED, run._asdict()).fetchone() or (0, 0))
