"""What CRAB's clients make of files: insert, send again, claim, report, publish. One statement for a set.

A file that a worker of CRAB moves has his name as ``transfer.driver``; nobody else changes it, and our
cycles pass it over. What only CRAB wants to know is in ``crab_record``; a file without one did not come
through CRAB, and its workers do not see it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

from psycopg import Connection
from psycopg.errors import UniqueViolation

from asyncstageout.catalogue.bell import ring
from asyncstageout.catalogue.history import MOVING_LOCK, bring_back
from asyncstageout.catalogue.intake import add_transfers
from asyncstageout.catalogue.reinjections import EVENTS, TAKEN, Again, reinject
from asyncstageout.catalogue.restrictions import restrictions_in_force
from asyncstageout.catalogue.selected import Visible
from asyncstageout.core.crab import (
    CLAIM_GRACE_S,
    MAX_RETRIES,
    OWN_PUBLICATION_WORDS,
    OWN_WORKER,
    PUBLICATION_MOVES,
    UNCLAIMED,
    WORKER_PATHS,
    Reinjection,
)
from asyncstageout.core.failures import classify
from asyncstageout.core.requests import TransferRequest
from asyncstageout.core.restrictions import REFUSING, Restrictions
from asyncstageout.core.states import PublicationState, TransferState

ACQUIRED_AT_ONCE = 1000
"""CRAB's limit of ``acquireTransfers``."""
PUBLICATIONS_AT_ONCE = 20_000
"""Some seconds of work; a publisher comes again."""


class NoSuchFile(LookupError):
    """No file of this id, or it is somebody else's."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        super().__init__(f"there is no file {request_id}")


class Refused(ValueError):
    """A file was not taken; ``str()`` says why."""

    def __init__(self, request_id: str, reason: str) -> None:
        self.request_id, self.reason = request_id, reason
        super().__init__(reason)


class Conflict(Exception):
    """The file is there already, or under way, and what is asked for does not fit."""

    def __init__(self, request_id: str, state: str, reason: str) -> None:
        self.request_id, self.state = request_id, state
        super().__init__(f"file {request_id} is {state}: {reason}")


@dataclass(frozen=True, slots=True)
class Said:
    """What CRAB says of a file beside the request to move it."""

    start_time: int
    """When its job handed it over, in epoch seconds; tells one retry of the job from another."""
    state: TransferState = TransferState.NEW
    publish: bool = False
    dbs_blockname: str | None = None
    block_complete: str | None = None


class Word(NamedTuple):
    """What a worker says of one file."""

    request_id: str
    state: TransferState
    reason: str | None = None
    fts_instance: str | None = None
    fts_id: str | None = None


class PublicationWord(NamedTuple):
    """What a publisher says of one file."""

    request_id: str
    state: PublicationState
    reason: str | None = None
    tries: int = 0
    """By how many its count of tries grows."""


class BlockWord(NamedTuple):
    """What Rucio's worker says of one file."""

    request_id: str
    dbs_blockname: str | None = None
    block_complete: str | None = None
    fts_instance: str | None = None
    fts_id: str | None = None


_RECORD = """
INSERT INTO crab_record (transfer_id, start_time, publish, publisher, dbs_blockname, block_complete)
SELECT id, %(start_time)s, %(publish)s::integer, %(publisher)s, %(dbs_blockname)s, %(block_complete)s
FROM transfer WHERE request_id = %(request_id)s
ON CONFLICT (transfer_id) DO UPDATE SET start_time = excluded.start_time, publish = excluded.publish,
    publisher = excluded.publisher, fts_id = NULL, fts_instance = NULL, publication_tries = 0,
    publication_failure_reason = NULL, dbs_blockname = excluded.dbs_blockname,
    block_complete = excluded.block_complete, updated_at = now()
"""

_WAIT_FOR_CLAIM = """
UPDATE transfer SET due_at = now() + make_interval(secs => %s) WHERE request_id = %s
"""

_SAME = """
SELECT t.state::text, c.start_time = %(start_time)s AND t.size_bytes = %(size_bytes)s
    AND t.source = %(source)s AND t.destination = %(destination)s
    AND t.destination_lfn = %(destination_lfn)s AND t.username = %(username)s
FROM (SELECT * FROM transfer UNION ALL SELECT * FROM transfer_history) t
    LEFT JOIN crab_record c ON c.transfer_id = t.id
WHERE t.request_id = %(request_id)s
"""

_LOOK = """
SELECT t.state::text, t.size_bytes, t.job_retry_count, t.destination, t.destination_lfn, t.activity,
    c.start_time
FROM transfer t JOIN task k ON k.id = t.task_id LEFT JOIN crab_record c ON c.transfer_id = t.id
WHERE t.request_id = %(request_id)s AND t.username = %(username)s AND k.name = %(task)s FOR UPDATE OF t
"""

_PATHS = """
way AS (
    SELECT state, said, string_to_array(path, ',')::transfer_state[] AS path, unclaimed
    FROM unnest(%(froms)s::transfer_state[], %(tos)s::transfer_state[], %(paths)s::text[],
        %(unclaimed)s::boolean[]) AS w(state, said, path, unclaimed)
)
"""

_TELL = f"""
WITH told AS (
    SELECT * FROM unnest(%(ids)s::text[], %(states)s::transfer_state[], %(instances)s::text[],
        %(fts_ids)s::text[], %(reasons)s::text[], %(categories)s::text[], %(codes)s::integer[],
        %(scopes)s::text[], %(errnos)s::integer[])
        AS u(request_id, said, fts_instance, fts_id, reason, category, code, scope, errno)
), {_PATHS}, seen AS (
    SELECT t.id, t.state AS from_state, t.attempt AS base, w.path, u.*
    FROM told u JOIN transfer t ON t.request_id = u.request_id
        JOIN crab_record c ON c.transfer_id = t.id
        JOIN way w ON w.state = t.state AND w.said = u.said
    WHERE (t.driver = %(worker)s OR (t.driver IS NULL AND w.unclaimed
            AND (c.publisher IS NULL OR c.publisher = %(worker)s)))
        AND (%(visible)s::text[] IS NULL OR t.username = ANY(%(visible)s))
    ORDER BY t.id FOR UPDATE OF t, c
), changed AS (
    UPDATE transfer t SET state = s.path[cardinality(s.path)], driver = %(worker)s,
        attempt = s.base + ('SUBMITTED' = ANY(s.path))::integer, fts_job = NULL, fts_file_id = NULL,
        due_at = now(), updated_at = now(),
        ended_at = CASE WHEN s.path[cardinality(s.path)] IN ('DONE', 'FAILED', 'KILLED') THEN now() END,
        -- What went wrong last stays readable, also when it went well later.
        failure_category = coalesce(s.category, t.failure_category),
        failure_code = coalesce(s.code, t.failure_code),
        failure_scope = CASE WHEN s.category IS NULL THEN t.failure_scope ELSE s.scope END,
        failure_errno = CASE WHEN s.category IS NULL THEN t.failure_errno ELSE s.errno END,
        failure_reason = coalesce(s.reason, t.failure_reason)
    FROM seen s WHERE t.id = s.id AND cardinality(s.path) > 0
    RETURNING t.id, s.from_state, s.path, s.base, s.reason
), event AS ({EVENTS}), record AS (
    UPDATE crab_record c SET publisher = coalesce(c.publisher, %(worker)s), updated_at = now(),
        fts_id = coalesce(s.fts_id, c.fts_id), fts_instance = coalesce(s.fts_instance, c.fts_instance)
    FROM seen s WHERE c.transfer_id = s.id
)
SELECT request_id FROM seen
"""

# Who leaves the moving to us only says whose publisher takes the file; it need not wait any longer.
_LEAVE_TO_US = """
WITH seen AS (
    SELECT t.id, t.request_id FROM transfer t JOIN crab_record c ON c.transfer_id = t.id
    WHERE t.request_id = ANY(%(ids)s) AND t.driver IS NULL
        AND (c.publisher IS NULL OR c.publisher = %(worker)s)
        AND (%(visible)s::text[] IS NULL OR t.username = ANY(%(visible)s))
    ORDER BY t.id FOR UPDATE OF t, c
), due AS (
    UPDATE transfer t SET due_at = least(t.due_at, now()) FROM seen s WHERE t.id = s.id AND t.state = 'NEW'
), record AS (
    UPDATE crab_record c SET publisher = %(worker)s, updated_at = now() FROM seen s WHERE c.transfer_id = s.id
)
SELECT request_id FROM seen
"""

_ACQUIRE = f"""
WITH waiting AS (
    SELECT t.id, t.attempt AS base, t.state AS from_state
    FROM transfer t JOIN crab_record c ON c.transfer_id = t.id
    WHERE t.state = 'NEW' AND t.driver IS NULL AND (c.publisher IS NULL OR c.publisher = %(worker)s)
        AND (%(username)s::text IS NULL OR t.username = %(username)s)
        AND (%(visible)s::text[] IS NULL OR t.username = ANY(%(visible)s))
    ORDER BY t.priority DESC, t.due_at, t.id LIMIT %(at_most)s FOR UPDATE OF t, c SKIP LOCKED
), changed AS (
    UPDATE transfer t SET state = 'ACQUIRED', driver = %(worker)s, fts_job = NULL, fts_file_id = NULL,
        updated_at = now()
    FROM waiting w WHERE t.id = w.id
    RETURNING t.id, w.from_state, w.base, '{{ACQUIRED}}'::transfer_state[] AS path, NULL::text AS reason
), event AS ({EVENTS}), record AS (
    UPDATE crab_record c SET publisher = %(worker)s, updated_at = now()
    FROM changed x WHERE c.transfer_id = x.id
)
SELECT count(*) FROM changed
"""

_RETRY = f"""
WITH due AS (
    SELECT id, attempt AS base, state AS from_state,
        (CASE WHEN attempt <= %(max_retries)s THEN '{{ACQUIRED}}' ELSE '{{FAILED}}' END)::transfer_state[]
            AS path
    FROM transfer t WHERE t.state = 'RETRY' AND t.driver = %(worker)s
        AND t.updated_at < now() - make_interval(secs => %(cooled_s)s)
        AND (%(visible)s::text[] IS NULL OR t.username = ANY(%(visible)s))
    ORDER BY id FOR UPDATE SKIP LOCKED
), changed AS (
    UPDATE transfer t SET state = d.path[1], updated_at = now(),
        ended_at = CASE WHEN d.path[1] = 'FAILED' THEN now() END
    FROM due d WHERE t.id = d.id
    RETURNING t.id, d.from_state, d.base, d.path,
        CASE WHEN d.path[1] = 'FAILED' THEN concat('no retry is left: ', t.failure_reason) END AS reason
), event AS ({EVENTS})
SELECT count(*) FROM changed
"""

_PUBLICATION_EVENTS = """
    INSERT INTO file_event (transfer_id, kind, from_state, to_state, step_run, reason)
    SELECT id, 'publication', was::text, publication::text, %(step_run)s, reason FROM changed
    WHERE was <> publication ORDER BY id
"""

_ACQUIRE_PUBLICATION = f"""
WITH ready AS (
    SELECT t.id, t.publication AS was FROM transfer t JOIN crab_record c ON c.transfer_id = t.id
    WHERE t.state = 'DONE' AND t.publication = 'NEW' AND c.publish = 1
        AND (c.publisher IS NULL OR c.publisher = %(worker)s)
        AND (%(visible)s::text[] IS NULL OR t.username = ANY(%(visible)s))
    ORDER BY t.id LIMIT %(at_most)s FOR UPDATE OF t, c SKIP LOCKED
), changed AS (
    UPDATE transfer t SET publication = 'ACQUIRED' FROM ready r WHERE t.id = r.id
    RETURNING t.id, r.was, t.publication, NULL::text AS reason
), event AS ({_PUBLICATION_EVENTS}), record AS (
    UPDATE crab_record c SET publisher = %(worker)s, updated_at = now()
    FROM changed x WHERE c.transfer_id = x.id
)
SELECT count(*) FROM changed
"""

_TELL_PUBLICATION = f"""
WITH told AS (
    SELECT * FROM unnest(%(ids)s::text[], %(states)s::publication_state[], %(reasons)s::text[],
        %(tries)s::integer[]) AS u(request_id, said, reason, tries)
), way AS (
    SELECT * FROM unnest(%(froms)s::publication_state[], %(tos)s::publication_state[]) AS w(state, said)
), seen AS (
    SELECT t.id, t.publication AS was, u.*
    FROM told u JOIN transfer t ON t.request_id = u.request_id
        JOIN crab_record c ON c.transfer_id = t.id
        JOIN way w ON w.state = t.publication AND w.said = u.said
    WHERE (c.publisher IS NULL OR c.publisher = %(worker)s)
        AND (t.state = 'DONE' OR u.said NOT IN ('ACQUIRED', 'DONE'))
        AND (%(visible)s::text[] IS NULL OR t.username = ANY(%(visible)s))
    ORDER BY t.id FOR UPDATE OF t, c
), changed AS (
    -- NEW, said again with the flag, is the word for which our own publisher waits.
    UPDATE transfer t SET publication = s.said,
        block_id = CASE WHEN s.said = 'NEW' THEN NULL ELSE t.block_id END,
        due_at = CASE WHEN s.said = 'NEW' AND t.state = 'DONE' THEN now() ELSE t.due_at END
    FROM seen s WHERE t.id = s.id AND (s.was <> s.said OR s.said = 'NEW')
    RETURNING t.id, s.was, t.publication, s.reason
), event AS ({_PUBLICATION_EVENTS}), record AS (
    UPDATE crab_record c SET publisher = coalesce(c.publisher, %(worker)s),
        publish = coalesce(%(publish)s::smallint, c.publish), updated_at = now(),
        publication_tries = least(c.publication_tries + s.tries, 32767),
        publication_failure_reason = coalesce(s.reason, c.publication_failure_reason)
    FROM seen s WHERE c.transfer_id = s.id
)
SELECT request_id FROM seen
"""

_RETRY_PUBLICATION = f"""
WITH due AS (
    SELECT t.id, t.publication AS was,
        (CASE WHEN c.publication_tries <= %(max_retries)s THEN 'NEW' ELSE 'FAILED' END)::publication_state
            AS next
    FROM transfer t JOIN crab_record c ON c.transfer_id = t.id
    WHERE t.publication = 'RETRY' AND c.publisher = %(worker)s
        AND c.updated_at < now() - make_interval(secs => %(cooled_s)s)
        AND (%(visible)s::text[] IS NULL OR t.username = ANY(%(visible)s))
    ORDER BY t.id FOR UPDATE OF t, c SKIP LOCKED
), changed AS (
    UPDATE transfer t SET publication = d.next FROM due d WHERE t.id = d.id
    RETURNING t.id, d.was, t.publication, NULL::text AS reason
), event AS ({_PUBLICATION_EVENTS}), record AS (
    UPDATE crab_record c SET publication_tries = least(c.publication_tries + 1, 32767), updated_at = now()
    FROM changed x WHERE c.transfer_id = x.id
)
SELECT count(*) FROM changed
"""

_TELL_BLOCKS = """
WITH told AS (
    SELECT * FROM unnest(%(ids)s::text[], %(blocks)s::text[], %(complete)s::text[], %(instances)s::text[],
        %(fts_ids)s::text[]) AS u(request_id, dbs_blockname, block_complete, fts_instance, fts_id)
), changed AS (
    UPDATE crab_record c SET dbs_blockname = coalesce(u.dbs_blockname, c.dbs_blockname),
        block_complete = coalesce(u.block_complete, c.block_complete),
        fts_instance = coalesce(u.fts_instance, c.fts_instance), fts_id = coalesce(u.fts_id, c.fts_id),
        updated_at = now()
    FROM told u JOIN transfer t ON t.request_id = u.request_id
    WHERE c.transfer_id = t.id AND coalesce(t.driver, c.publisher, %(worker)s) = %(worker)s
        AND (%(visible)s::text[] IS NULL OR t.username = ANY(%(visible)s))
    RETURNING u.request_id
)
SELECT request_id FROM changed
"""


def insert_file(
    conn: Connection, request: TransferRequest, said: Said, *, worker: str | None, step_run: int
) -> bool:
    """Take one file in as CRAB hands it over; return whether it is new (the same again changes nothing).

    Args:
        worker: who will move it, if that is said already; else it waits :data:`CLAIM_GRACE_S` for him.

    Raises:
        Refused: a name, a site, a task or a restriction speaks against it.
        Conflict: a file of this id is there already, and is another one.
    """
    with conn.transaction():
        conn.execute("SELECT pg_advisory_xact_lock_shared(%s)", (MOVING_LOCK,))
        if not _add(conn, request, said, step_run):
            _check_same(conn, request, said)
            return False
        conn.execute(_RECORD, _record(request, said))
        if worker:
            tell_transfers(conn, worker, [Word(request.request_id, said.state)], None, step_run)
    return True


def _add(conn: Connection, request: TransferRequest, said: Said, step_run: int) -> bool:
    is_there = said.state is TransferState.DONE
    file = request.model_copy(update={"publish": said.publish, "already_there": is_there})
    (answer,) = add_transfers(conn, [(0, file)], step_run, resends=False)
    if answer.outcome == "refused":
        raise Refused(request.request_id, answer.reason or "refused")
    if answer.outcome == "exists":
        return False
    conn.execute(_WAIT_FOR_CLAIM, (CLAIM_GRACE_S, request.request_id))
    return True


def _check_same(conn: Connection, request: TransferRequest, said: Said) -> None:
    found = conn.execute(_SAME, _values(request) | {"start_time": said.start_time}).fetchone()
    if found is None:
        raise Refused(request.request_id, f"task {request.task} belongs to somebody else")
    if not found[1]:
        raise Conflict(request.request_id, found[0], "it was inserted before; send it again with updateDoc")


def send_again(conn: Connection, request: Reinjection, said: Said, *, step_run: int) -> bool:
    """Send the file of a later job retry, with its new size and checksum; return whether anything changed.

    Its destination stays. A size that is the old one, without a checksum, is not believed: PostJob sends the
    size of the retry before (CRABServer, ``updateOrInsertDoc``), so it counts as unknown (0).

    Raises:
        NoSuchFile: it was never inserted, or is another user's or task's.
        Conflict: it is under way, or another file is on its way to its destination.
        Refused: the site is unknown, or drained.
    """
    name = request.request_id
    with conn.transaction():
        conn.execute("SELECT pg_advisory_xact_lock_shared(%s)", (MOVING_LOCK,))
        bring_back(conn, [name])
        found = conn.execute(_LOOK, _values(request)).fetchone()
        if found is None:
            raise NoSuchFile(name)
        state, size_bytes, job_retry_count, destination, destination_lfn, activity, start_time = found
        if start_time == said.start_time and job_retry_count == request.job_retry_count:
            return False
        if said.state is TransferState.NEW:
            _check_site(conn, request, destination, activity)
        is_stale = size_bytes == request.size_bytes and request.adler32 is None
        file = Again(
            name, request.task, request.username, request.source, destination, destination_lfn,
            0 if is_stale else request.size_bytes, request.adler32, request.job_id, request.job_retry_count,
            said.publish, said.state,
        )  # fmt: skip
        why = _reinject(conn, file, step_run)
        if why:
            raise Conflict(name, state, why)
        conn.execute(_RECORD, _record(request, said))
        ring(conn)
    return True


def _reinject(conn: Connection, file: Again, step_run: int) -> str | None:
    """Send a file again; return why not."""
    try:
        with conn.transaction():
            answers = reinject(
                conn, [file], step_run=step_run, newer_only=False, from_worker=True, grace_s=CLAIM_GRACE_S
            )
    except UniqueViolation:
        return TAKEN
    return answers[file.request_id]


def _check_site(conn: Connection, request: Reinjection, destination: str, activity: str) -> None:
    if not conn.execute("SELECT FROM site WHERE name = %s", (request.source,)).rowcount:
        raise Refused(request.request_id, f"unknown source site {request.source}")
    rows = [row for row in restrictions_in_force(conn) if row.mode in REFUSING]
    restrictions = Restrictions(rows, datetime.now(UTC))
    if found := restrictions.refuses(request.source, destination, request.username, activity):
        raise Refused(request.request_id, f"{found.what()}: {found.sentence()}")


def tell_transfers(
    conn: Connection, worker: str, words: Sequence[Word], visible: Visible, step_run: int
) -> list[str]:
    """Make the moves that a worker reports of his files; return the ids of those that he could speak of.

    ``core.crab.WORKER_PATHS`` says what his word makes of a file. A file that nobody moves yet becomes his.
    What has ended stays as it is.

    Args:
        visible: users whose files may be touched; None: everybody's.
    """
    words = _last_of_each(words)
    if worker == OWN_WORKER:
        return _leave_to_us(conn, words, visible)
    failures = [classify(word.reason) if word.reason else None for word in words]
    return _ids(
        conn,
        _TELL,
        {
            "ids": [word.request_id for word in words],
            "states": [word.state for word in words],
            "instances": [word.fts_instance for word in words],
            "fts_ids": [word.fts_id for word in words],
            "reasons": [failure and failure.reason for failure in failures],
            "categories": [failure and failure.category.value for failure in failures],
            "codes": [failure and failure.code for failure in failures],
            "scopes": [failure and failure.scope for failure in failures],
            "errnos": [failure and failure.errno for failure in failures],
            "froms": [state for state, _ in WORKER_PATHS],
            "tos": [said for _, said in WORKER_PATHS],
            "paths": [",".join(path) for path in WORKER_PATHS.values()],
            "unclaimed": [pair in UNCLAIMED for pair in WORKER_PATHS],
            **_who(worker, visible, step_run),
        },
    )


def _leave_to_us(conn: Connection, words: Sequence[Word], visible: Visible) -> list[str]:
    claims = [word.request_id for word in words if word.state in (TransferState.NEW, TransferState.DONE)]
    with conn.transaction():
        ids = _ids(conn, _LEAVE_TO_US, {"ids": claims, "worker": OWN_WORKER, "visible": _list(visible)})
        ring(conn)
    return ids


def acquire_transfers(
    conn: Connection, worker: str, username: str | None, visible: Visible, step_run: int
) -> int:
    """Give a worker up to 1,000 waiting files, of one user or of all; return how many."""
    if worker == OWN_WORKER:
        return 0
    who = _who(worker, visible, step_run)
    return _count(conn, _ACQUIRE, who | {"username": username, "at_most": ACQUIRED_AT_ONCE})


def retry_transfers(conn: Connection, worker: str, cooled_s: float, visible: Visible, step_run: int) -> int:
    """Give a worker his RETRY files back that have rested for so long; without a retry left they fail."""
    who = _who(worker, visible, step_run)
    return _count(conn, _RETRY, who | {"cooled_s": cooled_s, "max_retries": MAX_RETRIES})


def acquire_publication(conn: Connection, worker: str, visible: Visible, step_run: int) -> int:
    """Give a publisher the arrived files that are ready to be published; return how many."""
    if worker == OWN_WORKER:
        return 0
    return _count(
        conn, _ACQUIRE_PUBLICATION, _who(worker, visible, step_run) | {"at_most": PUBLICATIONS_AT_ONCE}
    )


def tell_publication(
    conn: Connection,
    worker: str,
    words: Sequence[PublicationWord],
    visible: Visible,
    step_run: int,
    *,
    publish: bool | None = None,
) -> list[str]:
    """Make the moves that a publisher reports of his files; return the ids of those that he could speak of.

    Args:
        publish: whether the files may be published from now on; None: as before.
    """
    words = _last_of_each(words)
    if worker == OWN_WORKER:
        words = [word for word in words if word.state in OWN_PUBLICATION_WORDS]
    pairs = [(start, end) for end, starts in PUBLICATION_MOVES.items() for start in starts]
    ids = [word.request_id for word in words]
    with conn.transaction():
        conn.execute("SELECT pg_advisory_xact_lock_shared(%s)", (MOVING_LOCK,))
        # The flag may come when its file ended long ago.
        bring_back(conn, [word.request_id for word in words if word.state == "NEW"])
        return _ids(
            conn,
            _TELL_PUBLICATION,
            {
                "ids": ids,
                "states": [word.state for word in words],
                "reasons": [word.reason or None for word in words],
                "tries": [word.tries for word in words],
                "froms": [start for start, _ in pairs],
                "tos": [end for _, end in pairs],
                "publish": None if publish is None else int(publish),
                **_who(worker, visible, step_run),
            },
        )


def retry_publication(conn: Connection, worker: str, cooled_s: float, visible: Visible, step_run: int) -> int:
    """Make a publisher's RETRY files NEW that have rested for so long; without a retry left they fail."""
    who = _who(worker, visible, step_run)
    return _count(conn, _RETRY_PUBLICATION, who | {"cooled_s": cooled_s, "max_retries": MAX_RETRIES})


def tell_blocks(conn: Connection, worker: str, words: Sequence[BlockWord], visible: Visible) -> list[str]:
    """Keep the blocks of files as Rucio's worker names them; return the ids of those that are his."""
    words = _last_of_each(words)
    return _ids(
        conn,
        _TELL_BLOCKS,
        {
            "ids": [word.request_id for word in words],
            "blocks": [word.dbs_blockname for word in words],
            "complete": [word.block_complete for word in words],
            "instances": [word.fts_instance for word in words],
            "fts_ids": [word.fts_id for word in words],
            "worker": worker,
            "visible": _list(visible),
        },
    )


W = TypeVar("W", Word, PublicationWord, BlockWord)


def _last_of_each(words: Sequence[W]) -> list[W]:
    return list({word.request_id: word for word in words}.values())


def _values(request: TransferRequest | Reinjection) -> dict[str, Any]:
    return request.model_dump() | {"request_id": request.request_id}


def _record(request: TransferRequest | Reinjection, said: Said) -> dict[str, Any]:
    return {
        "request_id": request.request_id,
        "start_time": said.start_time,
        "publish": said.publish,
        "publisher": None,
        "dbs_blockname": said.dbs_blockname,
        "block_complete": said.block_complete,
    }


def _publication(said: Said) -> PublicationState:
    return PublicationState.NEW if said.publish else PublicationState.NOT_REQUIRED


def _who(worker: str, visible: Visible, step_run: int) -> dict[str, Any]:
    return {"worker": worker, "visible": _list(visible), "step_run": step_run}


def _list(visible: Visible) -> list[str] | None:
    return None if visible is None else list(visible)


def _ids(conn: Connection, statement: str, values: Mapping[str, Any]) -> list[str]:
    return [request_id for (request_id,) in conn.execute(statement, values)]


def _count(conn: Connection, statement: str, values: Mapping[str, Any]) -> int:
    row = conn.execute(statement, values).fetchone()
    return int(row[0]) if row else 0
