"""Stops files: what waits is killed at once; what FTS may have is marked, and ends as FTS says.

FTS is told by ``steps.cancel``, for which the bell of kills is rung.
"""

from __future__ import annotations

from psycopg import Connection
from psycopg.errors import DeadlockDetected
from tenacity import retry, retry_if_exception_type, stop_after_attempt

from asyncstageout.catalogue.bell import ring_kills
from asyncstageout.catalogue.selected import LEFT_OVER, MAX_FILES, WORDS, Outcomes, Visible, act
from asyncstageout.core.selections import Selection
from asyncstageout.core.states import TransferState

S = TransferState
KILLED = "killed"
BEING_KILLED = "being_killed"

OUTCOMES: dict[TransferState, str] = {
    S.NEW: KILLED,
    S.RETRY: KILLED,
    S.ACQUIRED: BEING_KILLED,
    S.SUBMITTED: BEING_KILLED,
    S.KILL: "already_being_killed",
    S.KILLED: "already_killed",
    S.DONE: "too_late",
    S.FAILED: "too_late",
}
"""What a kill makes of a file, by the state in which it finds it."""

_STOPPABLE = "('NEW', 'RETRY', 'ACQUIRED', 'SUBMITTED')"

_KILL = f"""
WITH chosen AS (
    SELECT t.id, t.state FROM transfer t WHERE {{condition}} AND t.state IN {_STOPPABLE}
    ORDER BY t.id LIMIT %(at_most)s FOR UPDATE OF t
), changed AS (
    UPDATE transfer t SET updated_at = now(),
        state = (CASE WHEN c.state IN ('NEW', 'RETRY') THEN 'KILLED' ELSE 'KILL' END)::transfer_state,
        ended_at = CASE WHEN c.state IN ('NEW', 'RETRY') THEN now() END,
        -- Killed while it waited: it is in no job, the one that it was in last has long counted it out.
        fts_job = CASE WHEN c.state NOT IN ('NEW', 'RETRY') THEN t.fts_job END
    FROM chosen c WHERE t.id = c.id
    RETURNING t.id, t.request_id, c.state AS from_state, t.state, t.attempt, t.fts_job
), event AS (
    INSERT INTO transfer_event (transfer_id, from_state, to_state, attempt, fts_job, step_run, reason)
    SELECT c.id, e.from_state, e.to_state, c.attempt, c.fts_job, %(step_run)s, %(comment)s
    FROM changed c CROSS JOIN LATERAL (
        VALUES (1, c.from_state, 'KILL'::transfer_state), (2, 'KILL', 'KILLED')
    ) e(place, from_state, to_state)
    WHERE e.place = 1 OR c.state = 'KILLED' ORDER BY c.id, e.place
), job AS (
    -- Who holds a job's row is changing it: it is passed over, so that nobody waits for anybody.
    SELECT sid FROM fts_job
    WHERE state = 'SUBMITTED' AND sid IN (SELECT fts_job FROM changed WHERE state = 'KILL')
    FOR NO KEY UPDATE SKIP LOCKED
), looked_at AS (
    -- Of a job without a state, sensing asks for the files.
    UPDATE fts_job j SET fts_state = NULL, next_poll_at = now() FROM job WHERE j.sid = job.sid
), answer AS (
    SELECT c.id, c.request_id, w.word AS outcome, NULL::text AS reason
    FROM changed c JOIN {WORDS} ON w.state = c.from_state
    UNION ALL
    -- What could have been stopped and was not has ended meanwhile, or is beyond the limit.
    SELECT s.id, s.request_id, CASE WHEN s.state NOT IN {_STOPPABLE} THEN w.word
        WHEN (SELECT count(*) FROM changed) = %(at_most)s THEN '{LEFT_OVER}' ELSE 'too_late' END, NULL
    FROM ({{selected}}) s JOIN {WORDS} USING (state) WHERE s.id NOT IN (SELECT id FROM changed)
)
"""

_LOOK = f"""
WITH answer AS (
    SELECT s.id, s.request_id, w.word AS outcome, NULL::text AS reason
    FROM ({{selected}}) s JOIN {WORDS} USING (state)
)
"""


# FTS's acceptance locks a job's files in no order of its own.
@retry(retry=retry_if_exception_type(DeadlockDetected), stop=stop_after_attempt(5), reraise=True)
def kill(
    conn: Connection,
    selection: Selection,
    visible: Visible,
    *,
    comment: str,
    step_run: int,
    at_most: int = MAX_FILES,
    rings: bool = True,
) -> Outcomes:
    """Stop files, each with its events, in one statement; the same call again changes nothing.

    Args:
        visible: users whose files may be touched; None: everybody's.
        comment: for the history of each file.
        rings: whether somebody else is to tell FTS.

    Returns the outcomes of :data:`OUTCOMES`, ``not_yours`` and ``left_over``.
    """
    with conn.transaction():
        outcomes = act(
            conn, _KILL, OUTCOMES, selection, visible, comment=comment, step_run=step_run, at_most=at_most
        )
        if rings and outcomes.counts.get(BEING_KILLED):
            ring_kills(conn)
    return outcomes


def would_kill(conn: Connection, selection: Selection, visible: Visible) -> Outcomes:
    """Return what :func:`kill` would say now, and change nothing."""
    return act(conn, _LOOK, OUTCOMES, selection, visible)
