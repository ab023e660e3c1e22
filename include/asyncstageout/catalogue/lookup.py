"""Questions about the catalogue: how many, which, where is this one, how long did it take. Reads only."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg import Connection
from psycopg.rows import dict_row

from asyncstageout.catalogue.storages import Naming
from asyncstageout.core.naming import request_id
from asyncstageout.core.planning import FileNames
from asyncstageout.core.states import TransferState

# Live rows and history answer alike; a finished file is found wherever it is.
_FILES = "(SELECT * FROM transfer UNION ALL SELECT * FROM transfer_history)"


@dataclass(frozen=True, slots=True)
class FileFilter:
    """Which files; None leaves a field open."""

    state: TransferState | None = None
    username: str | None = None
    task: str | None = None
    source: str | None = None
    destination: str | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a file's history: what happened, when, and which step of which run did it."""

    at: datetime
    from_state: str | None
    to_state: str
    attempt: int
    reason: str | None
    sid: UUID | None
    fts_job_id: UUID | None
    actor: str
    dag_id: str | None
    run_id: str | None
    task_id: str
    map_index: int
    try_number: int
    failure_category: str | None
    """Of an attempt that failed."""


@dataclass(frozen=True, slots=True)
class SideEvent:
    """One thing that happened around a file, beside its moves."""

    at: datetime
    kind: str
    """``publication``, ``cleaning``, ``delivery`` or ``request``."""
    from_state: str | None
    to_state: str
    subject: str | None
    """publication: the block; cleaning: the storage; delivery: the subscription."""
    reason: str | None
    actor: str
    dag_id: str | None
    run_id: str | None
    task_id: str
    map_index: int
    try_number: int


@dataclass(frozen=True, slots=True)
class Delays:
    """Quantiles in seconds over the files of a scope; None where no file counts yet."""

    accepted_p50_s: float | None
    """From a file's arrival to its first acceptance by FTS."""
    accepted_p95_s: float | None
    settled_p50_s: float | None
    """From its end in FTS (whole seconds there) to DONE here."""
    settled_p95_s: float | None


def state_counts(conn: Connection, task_like: str = "%") -> dict[str, int]:
    """Return how many live files are in each state; ``task_like`` is an SQL LIKE pattern of task names."""
    rows = conn.execute(
        "SELECT t.state::text, count(*) FROM transfer t JOIN task k ON k.id = t.task_id"
        " WHERE %(like)s::text = '%%' OR k.name LIKE %(like)s GROUP BY t.state",
        {"like": task_like},
    )
    return {str(state): int(count) for state, count in rows}


def job_counts(conn: Connection) -> dict[str, int]:
    """Return how many FTS jobs are in each state of the catalogue."""
    return {str(s): int(n) for s, n in conn.execute("SELECT state::text, count(*) FROM fts_job GROUP BY 1")}


def list_files(conn: Connection, where: FileFilter, *, limit: int, after_id: int = 0) -> list[dict[str, Any]]:
    """Return files in the order of their ids, after ``after_id``: the page of a list."""
    with conn.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(
            f"""
            SELECT t.id, t.request_id, t.state::text, t.attempt, t.username, k.name AS task, t.source,
                t.destination, t.destination_lfn, t.size_bytes, t.failure_category, t.failure_reason,
                t.created_at, t.updated_at
            FROM {_FILES} t JOIN task k ON k.id = t.task_id
            WHERE t.id > %(after_id)s
                AND (%(state)s::transfer_state IS NULL OR t.state = %(state)s)
                AND (%(username)s::text IS NULL OR t.username = %(username)s)
                AND (%(task)s::text IS NULL OR k.name = %(task)s)
                AND (%(source)s::text IS NULL OR t.source = %(source)s)
                AND (%(destination)s::text IS NULL OR t.destination = %(destination)s)
            ORDER BY t.id LIMIT %(limit)s
            """,
            {
                "after_id": after_id,
                "limit": limit,
                "state": where.state and where.state.value,
                "username": where.username,
                "task": where.task,
                "source": where.source,
                "destination": where.destination,
            },
        ).fetchall()


def find_file(conn: Connection, wanted: str) -> dict[str, Any] | None:
    """Return one file by its number, its request id, or its source or destination LFN; None if there is none.

    Of several files that ended at the same destination LFN, the latest. Its URLs are those in its last FTS
    job.
    """
    with conn.cursor(row_factory=dict_row) as cursor:
        file = cursor.execute(
            # First all that match, by their indexes: "the newest one" would be looked for from the newest on.
            f"""
            WITH found AS MATERIALIZED (SELECT * FROM {_FILES} t WHERE {_condition(wanted)})
            SELECT t.*, t.state::text AS state, t.type::text AS type, t.publication::text AS publication,
                k.name AS task, k.vo_group, k.vo_role, j.job_id AS fts_job_id, j.fts_server,
                j.fts_state, j.source_storage, j.source_protocol, j.destination_storage,
                j.destination_protocol
            FROM found t JOIN task k ON k.id = t.task_id LEFT JOIN fts_job j ON j.sid = t.fts_job
            ORDER BY t.id DESC LIMIT 1
            """,
            {"wanted": wanted, "of_source": request_id(wanted)},
        ).fetchone()
    return file and file | _urls(conn, file)


def _urls(conn: Connection, file: dict[str, Any]) -> dict[str, str | None]:
    names = FileNames(*(file.pop(field) for field in FileNames._fields))
    if names.source_storage is None:  # it never was in a job
        return {"source_url": None, "destination_url": None}
    naming = Naming(conn, [names])
    owner, destination = file["username"], file["destination"]
    return {
        "source_url": naming.source(names, file["source_lfn"], owner, destination),
        "destination_url": naming.destination(names, file["destination_lfn"], owner, destination),
    }


def _condition(wanted: str) -> str:
    """Return the condition, over indexed columns only, that fits what somebody knows of a file."""
    if wanted.startswith("/"):
        return "t.request_id = %(of_source)s OR t.destination_lfn = %(wanted)s"
    if wanted.isdigit() and len(wanted) < 19:
        return "t.id = %(wanted)s::bigint"
    return "t.request_id = %(wanted)s"


def file_events(conn: Connection, transfer_id: int) -> list[Event]:
    """Return everything that happened to a file, oldest first."""
    rows = conn.execute(
        """
        SELECT e.at, e.from_state::text, e.to_state::text, e.attempt, e.reason, e.fts_job, j.job_id,
            s.actor, s.dag_id, s.run_id, s.task_id, s.map_index, s.try_number, e.failure_category
        FROM transfer_event e JOIN step_run s ON s.id = e.step_run LEFT JOIN fts_job j ON j.sid = e.fts_job
        WHERE e.transfer_id = %s ORDER BY e.id
        """,
        (transfer_id,),
    )
    return [Event(*row) for row in rows]


def side_events(conn: Connection, transfer_id: int) -> list[SideEvent]:
    """Return what happened around a file, oldest first."""
    rows = conn.execute(
        """
        SELECT e.at, e.kind, e.from_state, e.to_state, e.subject, e.reason,
            s.actor, s.dag_id, s.run_id, s.task_id, s.map_index, s.try_number
        FROM file_event e JOIN step_run s ON s.id = e.step_run WHERE e.transfer_id = %s ORDER BY e.id
        """,
        (transfer_id,),
    )
    return [SideEvent(*row) for row in rows]


def delays(conn: Connection, task_like: str = "%") -> Delays:
    """Return the two delays that this service answers for, over the live files of the tasks."""
    row = conn.execute(
        """
        WITH file AS (
            SELECT t.id, t.created_at, t.ended_at, t.fts_finished_at, t.state
            FROM transfer t JOIN task k ON k.id = t.task_id WHERE k.name LIKE %s
        ), accepted AS (
            SELECT extract(epoch FROM min(e.at) - f.created_at) AS waited_s
            FROM file f JOIN transfer_event e ON e.transfer_id = f.id AND e.to_state = 'SUBMITTED'
            GROUP BY f.id, f.created_at
        ), settled AS (
            SELECT extract(epoch FROM ended_at - fts_finished_at) AS waited_s
            FROM file WHERE state = 'DONE' AND fts_finished_at IS NOT NULL
        )
        SELECT
            (SELECT percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY waited_s) FROM accepted),
            (SELECT percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY waited_s) FROM settled)
        """,
        (task_like,),
    ).fetchone()
    accepted, settled = row or (None, None)
    return Delays(*(accepted or (None, None)), *(settled or (None, None)))


def failure_counts(conn: Connection, task_like: str = "%") -> list[tuple[str, str, int]]:
    """Return (category, a reason of it, files) of the live FAILED files, the most frequent first."""
    rows = conn.execute(
        "SELECT t.failure_category, min(t.failure_reason), count(*) FROM transfer t"
        " JOIN task k ON k.id = t.task_id WHERE t.state = 'FAILED' AND k.name LIKE %s"
        " GROUP BY 1 ORDER BY 3 DESC",
        (task_like,),
    )
    return [(str(category), str(reason), int(count)) for category, reason, count in rows]


def link_count(conn: Connection, task_like: str = "%") -> int:
    """Return on how many links the live files of the tasks travel."""
    row = conn.execute(
        "SELECT count(DISTINCT (t.source, t.destination)) FROM transfer t JOIN task k ON k.id = t.task_id"
        " WHERE k.name LIKE %s",
        (task_like,),
    ).fetchone()
    return int(row[0]) if row else 0


def next_due(conn: Connection, after: datetime) -> datetime | None:
    """Return when, after a moment, the next file becomes due or the next pause or ban ends, or None."""
    row = conn.execute(
        """
        SELECT least(
            (SELECT min(due_at) FROM transfer
             WHERE state IN ('NEW', 'RETRY') AND driver IS NULL AND due_at > %(after)s),
            (SELECT min(ends_at) FROM restriction
             WHERE lifted_at IS NULL AND mode <> 'drain' AND ends_at > %(after)s)
        )
        """,
        {"after": after},
    ).fetchone()
    return row[0] if row else None
