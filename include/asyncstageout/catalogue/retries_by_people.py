"""Sends files again that failed for good, or were killed: NEW, with all their attempts.

However long ago they ended: what is in the history comes back first.
"""

from __future__ import annotations

from psycopg import Connection
from psycopg.errors import DeadlockDetected, UniqueViolation
from tenacity import retry, retry_if_exception_type, stop_after_attempt

from asyncstageout.catalogue.bell import ring
from asyncstageout.catalogue.history import LIVE_COLUMNS, MOVING_LOCK
from asyncstageout.catalogue.selected import (
    LEFT_OVER,
    MAX_FILES,
    REFUSED,
    WORDS,
    Outcomes,
    Visible,
    act,
    condition,
    parameters,
)
from asyncstageout.core.retries import CANCELLED_COPY_S
from asyncstageout.core.selections import Selection
from asyncstageout.core.states import TransferState

S = TransferState
SENT_AGAIN = "sent_again"

OUTCOMES: dict[TransferState, str] = {
    S.FAILED: SENT_AGAIN,
    S.KILLED: "killed",
    S.NEW: "already_waiting",
    S.RETRY: "already_waiting",
    S.ACQUIRED: "already_under_way",
    S.SUBMITTED: "already_under_way",
    S.KILL: "being_killed",
    S.DONE: "done",
}
"""What a retry makes of a file, by the state in which it finds it; KILLED is sent again only where asked."""

# Two files that write one destination would spoil each other, and the latest request is what the user wants.
_JUDGED = """
    SELECT c.*, CASE
        WHEN c.cleaned_at >= c.ended_at THEN CASE
            WHEN EXISTS (SELECT FROM cleaning q WHERE q.transfer_id = c.id AND q.state = 'DELETING')
            THEN 'its temporary copy is being deleted'
            ELSE 'its temporary copy was deleted on ' || to_char(c.cleaned_at, 'YYYY-MM-DD')
                || '; its job has to write it again' END
        WHEN EXISTS (SELECT FROM transfer o WHERE o.destination_lfn = c.destination_lfn
            AND o.destination = c.destination AND o.id <> c.id
            AND o.state NOT IN ('DONE', 'FAILED', 'KILLED'))
            THEN 'another file is on its way to its destination'
        WHEN EXISTS (SELECT FROM transfer o WHERE o.destination_lfn = c.destination_lfn
                AND o.destination = c.destination AND o.id > c.id)
            OR EXISTS (SELECT FROM transfer_history o WHERE o.destination_lfn = c.destination_lfn
                AND o.destination = c.destination AND o.id > c.id)
            THEN 'a later request for its destination has taken its place'
    END AS why
    FROM chosen c
"""

_WANTED = "(t.state = 'FAILED' OR (t.state = 'KILLED' AND %(killed_too)s))"
_COLUMNS = "t.id, t.request_id, t.state, t.destination, t.destination_lfn, t.cleaned_at, t.ended_at"
_CHOSEN = f"SELECT {_COLUMNS} FROM transfer t WHERE {{condition}} AND {_WANTED}"
_PAST = f"SELECT {_COLUMNS} FROM transfer_history t WHERE {{condition}} AND {_WANTED}"
_FIRST = "ORDER BY id LIMIT %(at_most)s"

_BRING_BACK = f"""
WITH gone AS (
    DELETE FROM transfer_history h USING (
        SELECT id, ended_at FROM transfer_history t WHERE {{condition}} AND {_WANTED} {_FIRST}
    ) t WHERE h.id = t.id AND h.ended_at = t.ended_at
    RETURNING h.*
)
INSERT INTO transfer ({LIVE_COLUMNS}) SELECT {LIVE_COLUMNS} FROM gone
"""

_ANSWER = f"""
    SELECT j.id, j.request_id, CASE WHEN j.why IS NULL THEN '{SENT_AGAIN}' ELSE '{REFUSED}' END AS outcome,
        j.why AS reason
    FROM judged j
    UNION ALL
    SELECT t.id, t.request_id, CASE WHEN NOT {_WANTED} THEN t.word
        WHEN (SELECT count(*) FROM chosen) = %(at_most)s THEN '{LEFT_OVER}' ELSE 'already_waiting' END, NULL
    FROM (SELECT * FROM ({{selected}}) found JOIN {WORDS} USING (state)) t
    WHERE t.id NOT IN (SELECT id FROM judged)
"""

_RETRY = f"""
WITH chosen AS ({_CHOSEN} {_FIRST} FOR UPDATE OF t), judged AS MATERIALIZED ({_JUDGED}), changed AS (
    UPDATE transfer t SET state = 'NEW', attempt = 0, ended_at = NULL, fts_job = NULL, driver = NULL,
        updated_at = now(),
        -- Its cancelled copy may still be dying, and would remove what came after it.
        due_at = greatest(now(), CASE WHEN j.state = 'KILLED' AND t.fts_job IS NOT NULL
            THEN t.ended_at + make_interval(secs => {CANCELLED_COPY_S}) END)
    FROM judged j WHERE t.id = j.id AND j.why IS NULL
    RETURNING t.id, j.state AS from_state
), event AS (
    INSERT INTO transfer_event (transfer_id, from_state, to_state, attempt, step_run, reason)
    SELECT id, from_state, 'NEW', 0, %(step_run)s, %(comment)s FROM changed ORDER BY id
), answer AS ({_ANSWER})
"""

_LOOK = f"WITH chosen AS ({_CHOSEN} {_FIRST}), judged AS MATERIALIZED ({_JUDGED}), answer AS ({_ANSWER})"
_LOOK_BACK = f"""
WITH chosen AS ({_CHOSEN} UNION ALL {_PAST} {_FIRST}), judged AS MATERIALIZED ({_JUDGED}),
    answer AS ({_ANSWER})
"""


# A request for the same destination that comes in at this moment wins: the second look sees it.
@retry(
    retry=retry_if_exception_type((DeadlockDetected, UniqueViolation)),
    stop=stop_after_attempt(5),
    reraise=True,
)
def retry_files(
    conn: Connection,
    selection: Selection,
    visible: Visible,
    *,
    comment: str,
    step_run: int,
    killed_too: bool = False,
    at_most: int = MAX_FILES,
) -> Outcomes:
    """Send files again, each with its event, in one statement; the same call again changes nothing.

    Args:
        visible: users whose files may be touched; None: everybody's.
        comment: for the history of each file.
        killed_too: also what somebody has stopped.

    Returns the outcomes of :data:`OUTCOMES`, ``refused`` with reasons, ``not_yours`` and ``left_over``.
    """
    wish = {"killed_too": killed_too, "at_most": at_most}
    with conn.transaction():
        if selection.reaches_back:
            conn.execute("SELECT pg_advisory_xact_lock_shared(%s)", (MOVING_LOCK,))
            bring_back = _BRING_BACK.format(condition=condition(selection, visible))
            conn.execute(bring_back, parameters(selection, visible) | wish)
        outcomes = act(conn, _RETRY, OUTCOMES, selection, visible, comment=comment, step_run=step_run, **wish)
        if outcomes.counts.get(SENT_AGAIN):
            ring(conn)
    return outcomes


def would_retry(
    conn: Connection, selection: Selection, visible: Visible, *, killed_too: bool = False
) -> Outcomes:
    """Return what :func:`retry_files` would say now, and change nothing."""
    look = _LOOK_BACK if selection.reaches_back else _LOOK
    return act(conn, look, OUTCOMES, selection, visible, killed_too=killed_too, at_most=MAX_FILES)
