"""How files get in: a batch of requests becomes transfers, once each, with the events of their arrival.

A request for a known file with a higher ``job_retry_count`` is its later job retry's: the file goes again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from psycopg import Connection
from psycopg.errors import DeadlockDetected, UniqueViolation
from tenacity import retry, retry_if_exception_type, stop_after_attempt

from asyncstageout.catalogue.bell import ring
from asyncstageout.catalogue.history import IN_HISTORY, MOVING_LOCK, bring_back
from asyncstageout.catalogue.reinjections import Again, reinject
from asyncstageout.catalogue.restrictions import restrictions_in_force
from asyncstageout.core.requests import TransferRequest
from asyncstageout.core.restrictions import REFUSING, Restrictions
from asyncstageout.core.retries import CANCELLED_COPY_S
from asyncstageout.core.states import PublicationState, TransferState

Values = Mapping[str, Any]
"""``step_run`` and ``origin``, for all files of a batch."""
OUTCOMES = ("created", "again", "exists", "refused")


class Answer(NamedTuple):
    """What became of one request."""

    position: int
    request_id: str
    outcome: str
    """``created``, ``again`` (a later retry of its job sends it again), ``exists`` (it was there already;
    nothing changed) or ``refused``."""
    reason: str | None


_INCOMING = """
CREATE TEMP TABLE incoming (
    position integer, request_id text, task text, username text, vo_group text, vo_role text, identity text,
    source text, destination text, source_lfn text, destination_lfn text, size_bytes bigint, adler32 text,
    type file_type, activity text, priority smallint, publication publication_state,
    job_id text, job_retry_count smallint, already_there boolean, reason text,
    in_history boolean DEFAULT false, is_again boolean DEFAULT false
) ON COMMIT DROP
"""

_COPY = """
COPY incoming (position, request_id, task, username, vo_group, vo_role, identity, source, destination,
    source_lfn, destination_lfn, size_bytes, adler32, type, activity, priority, publication, job_id,
    job_retry_count, already_there)
FROM STDIN
"""

# Asked once for all that follows: the lock lets nothing get there meanwhile, and what leaves it is live.
_LOOK_BACK = f"UPDATE incoming i SET in_history = true WHERE {IN_HISTORY.format(request_id='i.request_id')}"

_ADD_TASKS = """
INSERT INTO task (name, username, vo_group, vo_role)
SELECT DISTINCT ON (task) task, username, vo_group, vo_role FROM incoming ORDER BY task, position
ON CONFLICT (name) DO NOTHING
"""

# In the order in which a person would check; the first thing wrong is the one that is told. What is at its
# destination already is not moved, so nobody need know the sites.
_REFUSE = """
UPDATE incoming i SET reason = wrong.reason FROM (
    SELECT position, CASE
        WHEN s.name IS NULL AND NOT i.already_there THEN 'unknown source site ' || i.source
        WHEN d.name IS NULL AND NOT i.already_there THEN 'unknown destination site ' || i.destination
        WHEN i.source = i.destination AND i.source_lfn = i.destination_lfn AND NOT i.already_there
            THEN 'source and destination are the same file'
        WHEN t.username <> i.username THEN 'task ' || t.name || ' belongs to ' || t.username END AS reason
    FROM incoming i LEFT JOIN site s ON s.name = i.source LEFT JOIN site d ON d.name = i.destination
        LEFT JOIN task t ON t.name = i.task
) wrong WHERE i.position = wrong.position AND wrong.reason IS NOT NULL
"""

# Of requests for one file in one batch that of the latest job retry counts, of several the first.
_COUNTS = """
    i.reason IS NULL AND NOT EXISTS (SELECT FROM incoming e WHERE e.request_id = i.request_id
        AND e.reason IS NULL AND (e.job_retry_count, -e.position) > (i.job_retry_count, -i.position))
"""

_MARK_AGAIN = f"""
UPDATE incoming i SET is_again = true
WHERE i.job_retry_count > 0 AND {_COUNTS} AND i.job_retry_count > coalesce(
    (SELECT t.job_retry_count FROM transfer t WHERE t.request_id = i.request_id),
    (SELECT max(h.job_retry_count) FROM transfer_history h
        WHERE i.in_history AND h.request_id = i.request_id))
"""

# What is known already goes on, unless it is to start anew.
_RESTRICTED = """
UPDATE incoming i SET reason = r.reason
FROM unnest(%(sources)s::text[], %(destinations)s::text[], %(usernames)s::text[], %(activities)s::text[],
    %(reasons)s::text[]) AS r(source, destination, username, activity, reason)
WHERE i.reason IS NULL AND i.source = r.source AND i.destination = r.destination
    AND i.username = r.username AND i.activity = r.activity AND NOT i.already_there
    AND (i.is_again OR NOT (i.in_history
        OR EXISTS (SELECT FROM transfer t WHERE t.request_id = i.request_id)))
"""

_CREATE = f"""
WITH fresh AS MATERIALIZED (
    SELECT i.*, t.id AS task_id FROM incoming i JOIN task t ON t.name = i.task
    WHERE NOT i.is_again AND NOT i.in_history AND {_COUNTS}
), created AS (
    INSERT INTO transfer (request_id, task_id, username, identity, source, destination, source_lfn,
        destination_lfn, size_bytes, adler32, type, activity, priority, publication, job_id, job_retry_count,
        origin, already_there, state, ended_at)
    SELECT request_id, task_id, username, identity, source, destination, source_lfn, destination_lfn,
        size_bytes, adler32, type, activity, priority, publication, job_id, job_retry_count,
        %(origin)s, already_there, CASE WHEN already_there THEN 'DONE' ELSE 'NEW' END::transfer_state,
        CASE WHEN already_there THEN now() END
    FROM fresh ORDER BY position
    ON CONFLICT DO NOTHING
    RETURNING id, request_id, state
), event AS (
    INSERT INTO transfer_event (transfer_id, to_state, attempt, step_run, reason)
    SELECT id, state, 0, %(step_run)s,
        CASE WHEN state = 'DONE' THEN 'written straight to its destination' END FROM created
)
SELECT position FROM fresh JOIN created USING (request_id)
"""

# Nothing is sent where a cancelled copy may still be dying: it would remove what came after it.
_WAIT_FOR_THE_DYING = f"""
UPDATE transfer t SET due_at = k.ended_at + make_interval(secs => {CANCELLED_COPY_S})
FROM transfer k
WHERE k.ended_at > now() - make_interval(secs => {CANCELLED_COPY_S}) AND k.state = 'KILLED'
    AND k.fts_job IS NOT NULL AND t.destination_key = k.destination_key AND t.state = 'NEW'
    AND t.due_at < k.ended_at + make_interval(secs => {CANCELLED_COPY_S})
"""

# A statement of its own, so that it sees what others wrote meanwhile. What was neither created nor refused
# met another request: for the same file, or for the same destination.
_ANSWER = """
SELECT position, request_id,
    CASE WHEN reason IS NULL AND known THEN 'exists' ELSE 'refused' END,
    CASE WHEN reason IS NULL AND NOT known
        THEN 'another file is on its way to ' || destination_lfn || ' at ' || destination ELSE reason END
FROM (
    SELECT *, in_history OR EXISTS (SELECT FROM transfer t WHERE t.request_id = i.request_id) AS known
    FROM incoming i WHERE position <> ALL(%(answered)s)
) answer
"""


def add_transfers(
    conn: Connection,
    requests: Iterable[tuple[int, TransferRequest]],
    step_run: int,
    *,
    origin: str | None = None,
    resends: bool = True,
) -> list[Answer]:
    """Take a batch in, all in one transaction, and say what became of each request.

    A file is known by its source LFN: the same request again, in this batch or a later one, is answered
    ``exists`` and changes nothing; one of a later retry of its job sends it again.

    Args:
        requests: (place in the batch, request), as :func:`asyncstageout.core.requests.read_requests` gives.
        origin: the collected source that they come from; None: they are handed in.
        resends: whether later retries of jobs send their files again; else these exist, too.
    """
    return _take_in(conn, dict(requests), {"step_run": step_run, "origin": origin}, resends=resends)


# Who took a file or its destination at this moment is seen by the second look.
@retry(
    retry=retry_if_exception_type((DeadlockDetected, UniqueViolation)),
    stop=stop_after_attempt(5),
    reraise=True,
)
def _take_in(
    conn: Connection, requests: Mapping[int, TransferRequest], values: Values, *, resends: bool
) -> list[Answer]:
    ids = {position: request.request_id for position, request in requests.items()}
    with conn.transaction():
        conn.execute("SELECT pg_advisory_xact_lock_shared(%s)", (MOVING_LOCK,))
        _copy_in(conn, requests, ids)
        conn.execute(_LOOK_BACK)
        conn.execute(_ADD_TASKS)
        conn.execute(_REFUSE)
        if resends and any(request.job_retry_count for request in requests.values()):
            conn.execute(_MARK_AGAIN)
        _refuse_restricted(conn)
        answers = _create(conn, ids, values) | _send_again(conn, requests, ids, values)
        if any(answer.outcome != "refused" for answer in answers.values()):
            conn.execute(_WAIT_FOR_THE_DYING)
            ring(conn)
        if len(answers) < len(ids):
            rest = conn.execute(_ANSWER, {"answered": list(answers)})
            answers |= {row[0]: Answer(*row) for row in rest}
    return [answers[position] for position in sorted(ids)]


def _copy_in(conn: Connection, requests: Mapping[int, TransferRequest], ids: Mapping[int, str]) -> None:
    conn.execute(_INCOMING)
    with conn.cursor().copy(_COPY) as copy:
        for position, request in requests.items():
            copy.write_row(_row(position, ids[position], request))
    # All that the statements after this choose by: guesses of a few rows would compare each with each.
    conn.execute("ANALYZE incoming (request_id, task, reason, is_again, job_retry_count)")


def _create(conn: Connection, ids: Mapping[int, str], values: Values) -> dict[int, Answer]:
    rows = conn.execute(_CREATE, values)
    return {position: Answer(position, ids[position], "created", None) for (position,) in rows.fetchall()}


def _send_again(
    conn: Connection, requests: Mapping[int, TransferRequest], ids: Mapping[int, str], values: Values
) -> dict[int, Answer]:
    rows = conn.execute("SELECT position FROM incoming WHERE is_again AND reason IS NULL")
    wanted = {ids[position]: position for (position,) in rows}
    if not wanted:
        return {}
    bring_back(conn, list(wanted))
    files = [_again(requests[position], request_id) for request_id, position in wanted.items()]
    return {
        wanted[request_id]: Answer(wanted[request_id], request_id, "refused" if why else "again", why)
        for request_id, why in reinject(conn, files, **values).items()
    }


def _again(request: TransferRequest, request_id: str) -> Again:
    return Again(
        request_id, request.task, request.username, request.source, request.destination,
        request.destination_lfn, request.size_bytes, request.adler32, request.job_id,
        request.job_retry_count, request.publish,
        TransferState.DONE if request.already_there else TransferState.NEW,
    )  # fmt: skip


def _refuse_restricted(conn: Connection) -> None:
    """Refuse what is drained or banned, and say by whom, until when and why."""
    rows = [row for row in restrictions_in_force(conn) if row.mode in REFUSING]
    if not rows:
        return
    restrictions = Restrictions(rows, datetime.now(UTC))
    kinds = conn.execute("SELECT DISTINCT source, destination, username, activity FROM incoming").fetchall()
    refused = [
        (*kind, f"{found.what()}: {found.sentence()}")
        for kind in kinds
        if (found := restrictions.refuses(*kind))
    ]
    columns = zip(*refused, strict=True) if refused else [()] * 5
    names = ("sources", "destinations", "usernames", "activities", "reasons")
    conn.execute(_RESTRICTED, {name: list(column) for name, column in zip(names, columns, strict=True)})


def _row(position: int, request_id: str, request: TransferRequest) -> Sequence[object]:
    publication = PublicationState.NEW if request.publish else PublicationState.NOT_REQUIRED
    return (
        position, request_id, request.task, request.username, request.vo_group, request.vo_role,
        str(request.identity), request.source, request.destination, request.source_lfn,
        request.destination_lfn, request.size_bytes, request.adler32, request.type.value, request.activity,
        request.priority, publication.value, request.job_id, request.job_retry_count, request.already_there,
    )  # fmt: skip
