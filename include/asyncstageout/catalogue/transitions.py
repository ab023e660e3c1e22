"""Moves files from state to state, thousands in one statement: compare, set, and write the event, or nothing.

A move names the FTS job that it speaks for. If the file meanwhile belongs to another job, or is in a state
from which the move is not legal (``core.states.TRANSITIONS``), that move changes nothing: a late answer, a
second worker and a task that is run again are harmless by construction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from psycopg import Connection

from asyncstageout.catalogue.arrays import array
from asyncstageout.core.failures import Failure
from asyncstageout.core.states import TRANSITIONS, TransferState

LEGAL_MOVES = sorted(f"{start}>{end}" for start, ends in TRANSITIONS.items() for end in ends)
"""The transition table as the statements below compare it."""


@dataclass(frozen=True, slots=True)
class Move:
    """One file's wished-for change."""

    transfer_id: int
    fts_job: UUID | None
    """sid of the job that the change speaks for; None only for files that never were in one."""
    to_state: TransferState
    failure: Failure | None = None
    due_at: datetime | None = None
    """For RETRY: when the next attempt may start."""
    fts_file_id: int | None = None
    fts_finished_at: datetime | None = None
    note: str | None = None
    """Why, where it is no failure; for the event."""


TOO_LATE = "too late to be stopped: it had arrived"
"""For the history of a file that was to be killed."""

_APPLY = f"""
WITH move AS (
    SELECT * FROM unnest(
        %(ids)s::bigint[], %(jobs)s::uuid[], %(states)s::transfer_state[], %(dues)s::timestamptz[],
        %(file_ids)s::bigint[], %(finished)s::timestamptz[], %(categories)s::text[], %(codes)s::integer[],
        %(scopes)s::text[], %(errnos)s::integer[], %(reasons)s::text[], %(notes)s::text[]
    ) AS m(id, fts_job, to_state, due_at, fts_file_id, fts_finished_at, category, code, scope, errno, reason,
        note)
), target AS (
    SELECT m.*, t.state AS from_state,
        CASE WHEN t.state = 'KILL' AND m.to_state IN ('RETRY', 'FAILED') THEN 'KILLED' ELSE m.to_state END
            AS next_state
    FROM move m JOIN transfer t ON t.id = m.id AND t.fts_job IS NOT DISTINCT FROM m.fts_job
    WHERE t.state || '>' ||
        CASE WHEN t.state = 'KILL' AND m.to_state IN ('RETRY', 'FAILED') THEN 'KILLED' ELSE m.to_state END
        = ANY(%(legal)s)
    ORDER BY t.id
    FOR UPDATE OF t
), changed AS (
    UPDATE transfer t SET
        state = x.next_state,
        -- Killed while it waited: it is in no job, the one that it was in last has long counted it out.
        fts_job = CASE WHEN x.next_state = 'KILL' AND x.from_state IN ('NEW', 'RETRY') THEN NULL
            ELSE t.fts_job END,
        due_at = coalesce(x.due_at, t.due_at),
        fts_file_id = coalesce(x.fts_file_id, t.fts_file_id),
        fts_finished_at = x.fts_finished_at,
        failure_category = x.category, failure_code = x.code, failure_scope = x.scope,
        failure_errno = x.errno, failure_reason = x.reason,
        updated_at = now(),
        ended_at = CASE WHEN x.next_state IN ('DONE', 'FAILED', 'KILLED') THEN now() END
    FROM target x WHERE t.id = x.id
    RETURNING t.id, x.from_state, t.state, t.attempt, t.fts_job,
        CASE WHEN x.from_state = 'KILL' AND t.state = 'DONE' THEN concat_ws('; ', '{TOO_LATE}', x.note)
            ELSE coalesce(x.note, t.failure_reason) END AS reason,
        CASE WHEN t.state IN ('RETRY', 'FAILED') THEN x.category END AS category
), event AS (
    INSERT INTO transfer_event (transfer_id, from_state, to_state, attempt, fts_job, step_run, reason,
        failure_category)
    SELECT id, from_state, state, attempt, fts_job, %(step_run)s, reason, category FROM changed
), closed AS (
    UPDATE fts_job j SET
        -- A count that is too low must not stop the others' moves: reconcile corrects it.
        open_files = greatest(j.open_files - c.files, 0),
        state = CASE WHEN j.open_files <= c.files AND j.state = 'SUBMITTED' THEN 'ENDED' ELSE j.state END,
        ended_at = CASE WHEN j.open_files <= c.files AND j.state = 'SUBMITTED' THEN now() ELSE j.ended_at END
    FROM (
        SELECT fts_job, count(*)::integer AS files FROM changed
        WHERE from_state IN ('ACQUIRED', 'SUBMITTED', 'KILL')
            AND state NOT IN ('ACQUIRED', 'SUBMITTED', 'KILL') GROUP BY fts_job
    ) c WHERE j.sid = c.fts_job
)
SELECT state::text, count(*) FROM changed GROUP BY state
"""


def apply_moves(conn: Connection, moves: Sequence[Move], step_run: int) -> dict[str, int]:
    """Make the moves that are still legal and return how many files went to which state.

    Files leave their FTS job's count of open files with the move; the last one ends the job.
    """
    if not moves:
        return {}
    failures = [move.failure for move in moves]
    rows = conn.execute(
        _APPLY,
        {
            "ids": array(move.transfer_id for move in moves),
            "jobs": array(move.fts_job for move in moves),
            "states": array(move.to_state for move in moves),
            "dues": array(move.due_at for move in moves),
            "file_ids": array(move.fts_file_id for move in moves),
            "finished": array(move.fts_finished_at for move in moves),
            "categories": array(failure.category if failure else None for failure in failures),
            "codes": array(failure.code if failure else None for failure in failures),
            "scopes": [failure and failure.scope for failure in failures],
            "errnos": array(failure.errno if failure else None for failure in failures),
            "reasons": [failure and failure.reason for failure in failures],
            "notes": [move.note for move in moves],
            "legal": LEGAL_MOVES,
            "step_run": step_run,
        },
    )
    return {str(state): int(count) for state, count in rows}
