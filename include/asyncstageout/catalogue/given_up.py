"""Jobs at an FTS server that never comes back: an operator gives them up, and their files go elsewhere."""

from __future__ import annotations

from typing import NamedTuple

import psycopg
from psycopg import Connection
from psycopg.errors import DeadlockDetected
from tenacity import retry, retry_if_exception_type, stop_after_attempt

from asyncstageout.catalogue.bell import ring
from asyncstageout.catalogue.repairs import WITHOUT_A_JOB
from asyncstageout.core.failures import Category, own_failure

COPY_S = 86_400
"""As long as the copy of a file may last in FTS, where the job says nothing else."""


class NotDown(Exception):
    """Only what operators have set down is given up: else cycles go on sending jobs there."""

    def __init__(self, name: str, state: str) -> None:
        self.name, self.state = name, state
        super().__init__(f"{name} is {state}, not down")


class GivenUp(NamedTuple):
    """What became of a server's jobs and their files."""

    jobs: int
    waiting: int
    """Files that go on, at other servers."""
    killed: int
    """Files that were to be stopped."""
    may_still_write: int
    """Jobs that were left: the server may be copying their files although it does not answer."""


# What may write as long as its files can wait in the server's queue and be copied. One that nobody sent
# (no poster) is not there.
_GIVE_UP = f"""
WITH open AS MATERIALIZED (
    SELECT sid, state, NOT %(may_still_write)s AND (state = 'SUBMITTED' OR poster IS NOT NULL)
        AND greatest(planned_at, submitted_at) + make_interval(
            hours => coalesce((params->>'max_time_in_queue')::integer, 0),
            secs => coalesce((params->>'timeout_s')::integer, {COPY_S})) > now() AS may_write
    FROM fts_job WHERE fts_server = %(name)s AND state IN ('PLANNED', 'SUBMITTED')
    ORDER BY sid FOR NO KEY UPDATE
), job AS (
    UPDATE fts_job j SET ended_at = now(), open_files = 0, reason = %(reason)s,
        state = (CASE o.state WHEN 'PLANNED' THEN 'REFUSED' ELSE 'ENDED' END)::job_state
    FROM open o WHERE j.sid = o.sid AND NOT o.may_write RETURNING j.sid, j.transfer_ids
), way AS (
    SELECT * FROM unnest(%(states)s::transfer_state[], %(next)s::transfer_state[]) AS w(state, next_state)
), seen AS (
    SELECT t.id, t.state, w.next_state
    FROM job CROSS JOIN LATERAL unnest(job.transfer_ids) AS u(id)
        JOIN transfer t ON t.id = u.id AND t.fts_job = job.sid JOIN way w USING (state)
    ORDER BY t.id FOR UPDATE OF t
), changed AS (
    UPDATE transfer t SET state = s.next_state, due_at = now(), updated_at = now(),
        ended_at = CASE WHEN s.next_state = 'KILLED' THEN now() END,
        failure_category = CASE WHEN s.next_state = 'RETRY' THEN %(category)s ELSE t.failure_category END,
        failure_code = CASE WHEN s.next_state = 'RETRY' THEN %(code)s ELSE t.failure_code END,
        failure_reason = CASE WHEN s.next_state = 'RETRY' THEN %(reason)s ELSE t.failure_reason END
    FROM seen s WHERE t.id = s.id RETURNING t.id, s.state AS from_state, t.state, t.attempt, t.fts_job
), event AS (
    INSERT INTO transfer_event (transfer_id, from_state, to_state, attempt, fts_job, step_run, reason)
    SELECT id, from_state, state, attempt, fts_job, %(step_run)s, %(reason)s FROM changed ORDER BY id
)
SELECT (SELECT count(*) FROM job), count(*) FILTER (WHERE state <> 'KILLED'),
    count(*) FILTER (WHERE state = 'KILLED'), (SELECT count(*) FROM open WHERE may_write)
FROM changed
"""


@retry(retry=retry_if_exception_type(DeadlockDetected), stop=stop_after_attempt(5), reraise=True)
def give_up(
    conn: Connection,
    name: str,
    *,
    reason: str,
    step_run: int,
    may_still_write: bool = False,
    dry_run: bool = False,
) -> GivenUp | None:
    """Close a server's open jobs, and let their files go on as if it had lost them; None: no such server.

    Args:
        reason: for the history of each file.
        may_still_write: also jobs whose files the server may be copying at this moment: two may write one
            destination then.
        dry_run: only say what would be.

    Raises:
        NotDown: nobody set it down.
    """
    lost = own_failure(Category.LOST, reason)
    with conn.transaction():
        # Nobody sets it up again while this lasts.
        row = conn.execute("SELECT state FROM fts_server WHERE name = %s FOR UPDATE", (name,)).fetchone()
        if row is None:
            return None
        if row[0] != "down":
            raise NotDown(name, row[0])
        values = {
            "name": name, "reason": lost.reason, "category": lost.category.value, "code": lost.code,
            "states": list(WITHOUT_A_JOB), "next": list(WITHOUT_A_JOB.values()),
            "may_still_write": may_still_write, "step_run": step_run,
        }  # fmt: skip
        done = GivenUp(*conn.execute(_GIVE_UP, values).fetchone() or (0, 0, 0, 0))
        if dry_run:
            raise psycopg.Rollback
        ring(conn)
    return done
