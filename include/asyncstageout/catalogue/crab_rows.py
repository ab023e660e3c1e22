"""CRAB's tables as its clients read them: rows of ``filetransfersdb``, in its columns and numbers.

Postgres writes each row as JSON, since a publisher asks for up to 100,000 of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from psycopg import Connection

from asyncstageout.catalogue.selected import Visible
from asyncstageout.core.crab import MAX_RETRIES, PUBLICATION_NUMBERS, TRANSFER_NUMBERS

DEFAULT_ROWS = 1000
MAX_ROWS = 100_000
MAX_ROWS_TO_KILL = 5000


class Table(NamedTuple):
    """An answer: names of columns, and each row as a JSON list."""

    columns: tuple[str, ...]
    rows: list[str]


_EPOCH = "extract(epoch FROM {})::bigint"
_WORKER = "coalesce(t.driver, c.publisher)"
_TRANSFER_STATE = "array_position(%(transfer_states)s::text[], t.state::text) - 1"
_PUBLICATION_STATE = "array_position(%(publication_states)s::text[], t.publication::text) - 1"
_UPDATED = _EPOCH.format("greatest(t.updated_at, c.updated_at)")
_STARTED = f"coalesce(c.start_time, {_EPOCH.format('t.created_at')})"

COLUMNS = {
    "tm_id": "t.request_id",
    "tm_username": "t.username",
    "tm_taskname": "k.name",
    "tm_destination": "t.destination",
    "tm_destination_lfn": "t.destination_lfn",
    "tm_source": "t.source",
    "tm_source_lfn": "t.source_lfn",
    "tm_filesize": "t.size_bytes",
    "tm_publish": "coalesce(c.publish, (t.publication <> 'NOT_REQUIRED')::integer)",
    "tm_jobid": "t.job_id",
    "tm_job_retry_count": "t.job_retry_count",
    "tm_type": "t.type",
    "tm_aso_worker": _WORKER,
    "tm_transfer_retry_count": "greatest(t.attempt - 1, 0)",
    "tm_transfer_max_retry_count": f"{MAX_RETRIES}",
    "tm_publication_retry_count": "coalesce(c.publication_tries, 0)",
    "tm_publication_max_retry_count": f"{MAX_RETRIES}",
    "tm_dbs_blockname": "c.dbs_blockname",
    "tm_block_complete": "c.block_complete",
    "tm_transfer_state": _TRANSFER_STATE,
    "tm_publication_state": _PUBLICATION_STATE,
    "tm_transfer_failure_reason": "t.failure_reason",
    "tm_publication_failure_reason": "c.publication_failure_reason",
    "tm_fts_id": "coalesce(j.job_id::text, c.fts_id)",
    "tm_fts_instance": "coalesce(s.endpoint, j.fts_server, c.fts_instance)",
    "tm_last_update": _UPDATED,
    "tm_start_time": _STARTED,
    "tm_end_time": _EPOCH.format("t.ended_at"),
    "tm_creation_time": "t.created_at",
}
"""Columns of ``filetransfersdb`` in their order (``Databases/FileTransfersDB/Oracle/Create.py``)."""

OF_TASK = {"tm_user_role": "k.vo_role", "tm_user_group": "k.vo_group"}
# URLs of CRAB's own services; this one has no use for them.
OF_PUBLICATION = {"tm_input_dataset": "k.input_dataset", "tm_cache_url": "NULL", "tm_dbs_url": "NULL"}

TRANSFER_STATUS = ("tm_id", "tm_jobid", "tm_transfer_state", "tm_start_time", "tm_last_update", "tm_fts_id",
    "tm_fts_instance")  # fmt: skip
PUBLICATION_STATUS = ("tm_id", "tm_jobid", "tm_publication_state", "tm_start_time", "tm_last_update")

GROUPS = (
    ("tm_aso_worker",),
    ("tm_aso_worker", "tm_username"),
    ("tm_aso_worker", "tm_username", "tm_taskname"),
    ("tm_aso_worker", "tm_username", "tm_source"),
    ("tm_aso_worker", "tm_username", "tm_source", "tm_destination"),
    ("tm_aso_worker", "tm_username", "tm_taskname", "tm_source", "tm_destination"),
)
"""What ``groupedTransferStatistics`` counts by, for each grouping; publications know the first three."""

_EVER = "(SELECT * FROM transfer UNION ALL SELECT * FROM transfer_history)"
_FROM = """
FROM {files} t JOIN task k ON k.id = t.task_id LEFT JOIN crab_record c ON c.transfer_id = t.id
    LEFT JOIN fts_job j ON j.sid = t.fts_job LEFT JOIN fts_server s ON s.name = j.fts_server
"""
_VISIBLE = "(%(visible)s::text[] IS NULL OR t.username = ANY(%(visible)s))"
_NUMBERS = {"transfer_states": list(TRANSFER_NUMBERS), "publication_states": list(PUBLICATION_NUMBERS)}

ACQUIRED = "t.state = 'ACQUIRED' AND t.driver = %(worker)s"
TO_KILL = "t.state = 'KILL' AND t.driver = %(worker)s"
ACQUIRED_PUBLICATION = "t.state = 'DONE' AND t.publication = 'ACQUIRED' AND c.publisher = %(worker)s"

Exactly = Mapping[str, str | None]
"""What has to be so; None: anything."""

_WHERE = {
    "username": "t.username = %(username)s",
    "vo_group": "k.vo_group = %(vo_group)s",
    "vo_role": "k.vo_role = %(vo_role)s",
    "source": "t.source = %(source)s",
    "destination": "t.destination = %(destination)s",
    "task": "t.task_id = (SELECT id FROM task WHERE name = %(task)s)",
    "worker": f"{_WORKER} = %(worker)s",
}


def file_by_id(conn: Connection, request_id: str, visible: Visible) -> Table:
    """Return one file, wherever it is; no row if there is none."""
    return _table(conn, COLUMNS, "t.request_id = %(request_id)s", visible, {"request_id": request_id})


def statuses(conn: Connection, columns: tuple[str, ...], username: str, task: str, visible: Visible) -> Table:
    """Return these columns of all files that a task of this user ever had."""
    where = f"{_WHERE['task']} AND {_WHERE['username']}"
    chosen = {name: COLUMNS[name] for name in columns}
    return _table(conn, chosen, where, visible, {"task": task, "username": username})


def files_of_worker(
    conn: Connection,
    condition: str,
    worker: str,
    limit: int,
    visible: Visible,
    *,
    exactly: Exactly = MappingProxyType({}),
    of_publication: bool = False,
) -> Table:
    """Return files of a worker, the oldest first, with the VO attributes of their tasks.

    Args:
        condition: :data:`ACQUIRED`, :data:`TO_KILL` or :data:`ACQUIRED_PUBLICATION`.
        exactly: of username, vo_group, vo_role, source and destination.
    """
    wanted = {name: value for name, value in exactly.items() if value is not None}
    where = " AND ".join([condition, *(_WHERE[name] for name in wanted)])
    columns = COLUMNS | OF_TASK | (OF_PUBLICATION if of_publication else {})
    values = {**wanted, "worker": worker, "limit": limit}
    ending = "ORDER BY t.id LIMIT %(limit)s"
    return _table(conn, columns, where, visible, values, files="transfer", ending=ending)


def voms_attributes(conn: Connection, task: str, visible: Visible) -> Table:
    """Return the VO role and group of a task."""
    rows = conn.execute(
        "SELECT json_build_array(t.vo_role, t.vo_group)::text FROM task t"
        f" WHERE t.name = %(task)s AND {_VISIBLE}",
        {"task": task, "visible": _list(visible)},
    )
    return Table(tuple(OF_TASK), [row for (row,) in rows])


def active_users(conn: Connection, worker: str, visible: Visible, *, of_publication: bool = False) -> Table:
    """Return who has files that a worker could take, or has taken, and how many."""
    mine = ACQUIRED_PUBLICATION if of_publication else ACQUIRED
    free = (
        "t.state = 'DONE' AND t.publication = 'NEW' AND c.publish = 1"
        if of_publication
        else "t.state = 'NEW' AND t.driver IS NULL"
    )
    unowned = "(c.publisher IS NULL OR c.publisher = %(worker)s)"
    where = f"c.transfer_id IS NOT NULL AND (({mine}) OR ({free} AND {unowned}))"
    names = ("tm_username", "tm_user_role", "tm_user_group")
    return _counts(conn, names, where, visible, {"worker": worker}, count_last=True)


def statistics(
    conn: Connection, state: str, by: tuple[str, ...], visible: Visible, exactly: Exactly
) -> Table:
    """Count CRAB's live files by some columns and by their state.

    Args:
        state: ``tm_transfer_state`` or ``tm_publication_state``.
        exactly: of worker, username, task, source and destination.
    """
    wanted = {name: value for name, value in exactly.items() if value is not None}
    where = " AND ".join(["c.transfer_id IS NOT NULL", *(_WHERE[name] for name in wanted)])
    return _counts(conn, (*by, state), where, visible, wanted)


def _counts(
    conn: Connection,
    names: tuple[str, ...],
    where: str,
    visible: Visible,
    values: Mapping[str, Any],
    *,
    count_last: bool = False,
) -> Table:
    known = COLUMNS | OF_TASK
    listed = ", ".join(f"{known[name]} AS {name}" for name in names)
    built = ", ".join([*names, "files"] if count_last else ["files", *names])
    rows = conn.execute(
        f"SELECT json_build_array({built})::text FROM (SELECT count(*) AS files, {listed}"
        f" {_FROM.format(files='transfer')} WHERE {where} AND {_VISIBLE}"
        f" GROUP BY {', '.join(names)}) AS counted ORDER BY {', '.join(names)}",
        {**_NUMBERS, **values, "visible": _list(visible)},
    )
    return Table((*names, "count(*)") if count_last else ("count", *names), [row for (row,) in rows])


def _table(
    conn: Connection,
    columns: Mapping[str, str],
    where: str,
    visible: Visible,
    values: Mapping[str, Any],
    *,
    files: str = _EVER,
    ending: str = "",
) -> Table:
    rows = conn.execute(
        f"SELECT json_build_array({', '.join(columns.values())})::text {_FROM.format(files=files)}"
        f" WHERE {where} AND {_VISIBLE} {ending}",
        {**_NUMBERS, **values, "visible": _list(visible)},
    )
    return Table(tuple(columns), [row for (row,) in rows])


def _list(visible: Visible) -> list[str] | None:
    return None if visible is None else list(visible)
