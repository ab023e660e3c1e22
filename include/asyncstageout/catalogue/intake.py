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
    job_id text, job_retry_count smallint, reason text
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
UPDATE incoming i SET reason = wrong.reason FROM (
    SELECT position, CASE
        WHEN s.name IS NULL THEN 'unknown source site ' || i.source
        WHEN d.name IS NULL THEN 'unknown destination site ' || i.destination
        WHEN i.source = i.destination AND i.source_lfn = i.destination_lfn
            THEN 'source and destination are the same file'
        ELSE 'task ' || t.name || ' belongs to ' || t.username END AS reason
    FROM incoming i LEFT JOIN site s ON s.name = i.source LEFT JOIN site d ON d.name = i.destination
        LEFT JOIN task t ON t.name = i.task
    WHERE s.name IS NULL OR d.name IS NULL OR t.username <> i.username
        OR (i.source = i.destination AND i.source_lfn = i.destination_lfn)
) wrong WHERE i.position = wrong.position
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

# Of requests for one file in one batch the first good one counts.
_CREATE = """
WITH fresh AS MATERIALIZED (
    SELECT i.*, t.id AS task_id FROM incoming i JOIN task t ON t.name = i.task
    WHERE i.reason IS NULL
        AND NOT EXISTS (SELECT FROM incoming e
            WHERE e.request_id = i.request_id AND e.reason IS NULL AND e.position < i.position)
        AND NOT EXISTS (SELECT FROM transfer_history h WHERE h.request_id = i.request_id)
), created AS (
    INSERT INTO transfer (request_id, task_id, username, identity, source, destination, source_lfn,
        destination_lfn, size_bytes, adler32, type, activity, priority, publication, job_id, job_retry_count,
        origin)
    SELECT request_id, task_id, username, identity, source, destination, source_lfn, destination_lfn,
        size_bytes, adler32, type, activity, priority, publication, job_id, job_retry_count, %(origin)s
    FROM fresh ORDER BY position
    ON CONFLICT DO NOTHING
    RETURNING id, request_id
), event AS (
    INSERT INTO transfer_event (transfer_id, to_state, attempt, step_run)
    SELECT id, 'NEW', 0, %(step_run)s FROM created
)
SELECT position FROM fresh JOIN created USING (request_id)
"""

# A statement of its own, so that it sees what others wrote meanwhile. What was neither created nor refused
# met another request: for the same file, or for the same destination.
_ANSWER = """
SELECT position, request_id,
    CASE WHEN reason IS NULL AND known THEN 'exists' ELSE 'refused' END,
    CASE WHEN reason IS NULL AND NOT known
        THEN 'another file is on its way to ' || destination_lfn || ' at ' || destination ELSE reason END
FROM (
    SELECT *, EXISTS (SELECT FROM transfer t WHERE t.request_id = i.request_id)
        OR EXISTS (SELECT FROM transfer_history h WHERE h.request_id = i.request_id) AS known
    FROM incoming i WHERE position <> ALL(%(created)s)
) answer
"""


def add_transfers(
    conn: Connection,
    requests: Iterable[tuple[int, TransferRequest]],
    step_run: int,
    *,
    origin: str | None = None,
) -> list[Answer]:
    """Take a batch in, all in one transaction, and say what became of each request.

    A file is known by its source LFN: the same request again, in this batch or a later one, is answered
    ``exists`` and changes nothing.

    Args:
        requests: (place in the batch, request), as :func:`asyncstageout.core.requests.read_requests` gives.
        origin: the collected source that they come from; None: they are handed in.
    """
    ids: dict[int, str] = {}
    with conn.transaction():
        conn.execute("SELECT pg_advisory_xact_lock_shared(%s)", (MOVING_LOCK,))
        conn.execute(_INCOMING)
        with conn.cursor().copy(_COPY) as copy:
            for position, request in requests:
                ids[position] = request_id = request.request_id
                copy.write_row(_row(position, request_id, request))
        conn.execute("ANALYZE incoming (request_id, task)")
        conn.execute(_ADD_TASKS)
        conn.execute(_REFUSE)
        _refuse_restricted(conn)
        values = {"step_run": step_run, "origin": origin}
        created = {position for (position,) in conn.execute(_CREATE, values)}
        if created:
            ring(conn)
        answers = {position: Answer(position, ids[position], "created", None) for position in created}
        if len(created) < len(ids):
            rest = conn.execute(_ANSWER, {"created": list(created)})
            answers |= {row[0]: Answer(*row) for row in rest}
    return [answers[position] for position in sorted(ids)]


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
        request.priority, publication.value, request.job_id, request.job_retry_count,
    )  # fmt: skip
