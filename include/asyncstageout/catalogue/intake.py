"""How files get in: a batch of requests becomes transfers, once each, with the events of their arrival."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from psycopg import Connection

from asyncstageout.catalogue.bell import ring
from asyncstageout.catalogue.history import MOVING_LOCK
from asyncstageout.catalogue.restrictions import restrictions_in_force
from asyncstageout.core.requests import TransferRequest
from asyncstageout.core.restrictions import REFUSING, Restrictions
from asyncstageout.core.states import PublicationState


class Answer(NamedTuple):
    """What became of one request."""

    position: int
    request_id: str
    outcome: str
    """``created``, ``exists`` (it was there already; nothing changed) or ``refused``."""
    reason: str | None


_INCOMING = """
CREATE TEMP TABLE incoming (
    position integer, request_id text, task text, username text, vo_group text, vo_role text, identity text,
    source text, destination text, source_lfn text, destination_lfn text, size_bytes bigint, adler32 text,
    type file_type, activity text, priority smallint, publication publication_state,
    job_id text, job_retry_count smallint, outcome text, reason text
) ON COMMIT DROP
"""

_COPY = """
COPY incoming (position, request_id, task, username, vo_group, vo_role, identity, source, destination,
    source_lfn, destination_lfn, size_bytes, adler32, type, activity, priority, publication, job_id,
    job_retry_count)
FROM STDIN
"""

_ADD_TASKS = """
INSERT INTO task (name, username, vo_group, vo_role)
SELECT DISTINCT ON (task) task, username, vo_group, vo_role FROM incoming ORDER BY task, position
ON CONFLICT (name) DO NOTHING
"""

# In the order in which a person would check; the first thing wrong is the one that is told.
_REFUSE = """
UPDATE incoming i SET reason = CASE
    WHEN NOT EXISTS (SELECT FROM site WHERE name = i.source) THEN 'unknown source site ' || i.source
    WHEN NOT EXISTS (SELECT FROM site WHERE name = i.destination)
        THEN 'unknown destination site ' || i.destination
    WHEN i.source = i.destination AND i.source_lfn = i.destination_lfn
        THEN 'source and destination are the same file'
    ELSE (SELECT 'task ' || t.name || ' belongs to ' || t.username FROM task t
          WHERE t.name = i.task AND t.username <> i.username)
END
"""

# What is known already goes on.
_RESTRICTED = """
UPDATE incoming i SET reason = r.reason
FROM unnest(%(sources)s::text[], %(destinations)s::text[], %(usernames)s::text[], %(activities)s::text[],
    %(reasons)s::text[]) AS r(source, destination, username, activity, reason)
WHERE i.reason IS NULL AND i.source = r.source AND i.destination = r.destination
    AND i.username = r.username AND i.activity = r.activity
    AND NOT EXISTS (SELECT FROM transfer t WHERE t.request_id = i.request_id)
    AND NOT EXISTS (SELECT FROM transfer_history h WHERE h.request_id = i.request_id)
"""

_CREATE = """
WITH created AS (
    INSERT INTO transfer (request_id, task_id, username, identity, source, destination, source_lfn,
        destination_lfn, size_bytes, adler32, type, activity, priority, publication, job_id, job_retry_count)
    SELECT i.request_id, t.id, i.username, i.identity, i.source, i.destination, i.source_lfn,
        i.destination_lfn, i.size_bytes, i.adler32, i.type, i.activity, i.priority, i.publication,
        i.job_id, i.job_retry_count
    FROM (SELECT DISTINCT ON (request_id) * FROM incoming WHERE reason IS NULL
          ORDER BY request_id, position) i
    JOIN task t ON t.name = i.task
    WHERE NOT EXISTS (SELECT FROM transfer_history h WHERE h.request_id = i.request_id)
    ORDER BY i.position
    ON CONFLICT DO NOTHING
    RETURNING id, request_id
), event AS (
    INSERT INTO transfer_event (transfer_id, to_state, attempt, step_run)
    SELECT id, 'NEW', 0, %(step_run)s FROM created
)
UPDATE incoming i SET outcome = 'created' FROM (
    SELECT DISTINCT ON (request_id) position FROM incoming JOIN created USING (request_id)
    WHERE reason IS NULL ORDER BY request_id, position
) first WHERE i.position = first.position
"""

# What was neither created nor refused met another request: for the same file, or for the same destination.
_ANSWER = """
SELECT position, request_id,
    CASE WHEN outcome IS NOT NULL THEN outcome WHEN reason IS NULL AND known THEN 'exists' ELSE 'refused' END,
    CASE WHEN outcome IS NULL AND reason IS NULL AND NOT known
        THEN 'another file is on its way to ' || destination_lfn || ' at ' || destination ELSE reason END
FROM (
    SELECT *, EXISTS (SELECT FROM transfer t WHERE t.request_id = i.request_id)
        OR EXISTS (SELECT FROM transfer_history h WHERE h.request_id = i.request_id) AS known
    FROM incoming i
) answer ORDER BY position
"""


def add_transfers(
    conn: Connection, requests: Iterable[tuple[int, TransferRequest]], step_run: int
) -> list[Answer]:
    """Take a batch in, all in one transaction, and say what became of each request.

    A file is known by its source LFN: the same request again, in this batch or a later one, is answered
    ``exists`` and changes nothing.

    Args:
        requests: (place in the batch, request), as :func:`asyncstageout.core.requests.read_requests` gives.
    """
    with conn.transaction():
        conn.execute("SELECT pg_advisory_xact_lock_shared(%s)", (MOVING_LOCK,))
        conn.execute(_INCOMING)
        with conn.cursor().copy(_COPY) as copy:
            for position, request in requests:
                copy.write_row(_row(position, request))
        conn.execute("ANALYZE incoming")
        conn.execute(_ADD_TASKS)
        conn.execute(_REFUSE)
        _refuse_restricted(conn)
        conn.execute(_CREATE, {"step_run": step_run})
        answers = [Answer(*row) for row in conn.execute(_ANSWER)]
        if any(answer.outcome == "created" for answer in answers):
            ring(conn)
    return answers


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


def _row(position: int, request: TransferRequest) -> Sequence[object]:
    publication = PublicationState.NEW if request.publish else PublicationState.NOT_REQUIRED
    return (
        position, request.request_id, request.task, request.username, request.vo_group, request.vo_role,
        str(request.identity), request.source, request.destination, request.source_lfn,
        request.destination_lfn, request.size_bytes, request.adler32, request.type.value, request.activity,
        request.priority, publication.value, request.job_id, request.job_retry_count,
    )  # fmt: skip
