"""Closed blocks on their way into DBS: what it is told of each, and what its answer changes.

A block stays CLOSED until DBS is known to have it, or never to take it. Every change compares that, so a late
answer and a second task that works on the same block change nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from psycopg import Connection
from psycopg.rows import class_row

from asyncstageout.core.states import BlockState, PublicationState


class DueBlock(NamedTuple):
    """A closed block that may be told to DBS now, as far as sharing out the work needs it."""

    block_id: int
    dataset: str
    files: int
    payload_bytes: int


@dataclass(frozen=True, slots=True)
class ClosedBlock:
    """A closed block that this task may tell DBS about until its lease is over."""

    block_id: int
    name: str
    dataset: str
    destination: str
    dbs: str
    tries: int
    silences: int
    silent_since: datetime | None
    silent_s: float
    """How long ago that was."""
    parent_blocks: list[str] | None
    """Input blocks that it needs; None: nobody has looked for them."""
    parent_datasets: list[str]
    parents_unknown: list[str]
    input_dataset: str | None
    with_parents: bool
    dataset_goes: bool
    """DBS took another block of its dataset within the day."""


class Member(NamedTuple):
    """A file of a block, with what its submitter says of it."""

    transfer_id: int
    lfn: str
    size_bytes: int
    adler32: str | None
    metadata: Mapping[str, Any] | None


class FileOutcome(NamedTuple):
    """What is known now of one file of a block."""

    transfer_id: int
    state: PublicationState
    """DONE or FAILED."""
    subject: str | None = None
    """The block in which DBS has it."""
    reason: str | None = None


_DUE = """
SELECT id, dataset, cardinality(transfer_ids), payload_bytes FROM block
WHERE state = 'CLOSED' AND due_at <= now() ORDER BY due_at, id LIMIT %s
"""

# Whoever comes second finds it not due: a block is told by one task at a time, as long as that one lives.
_LEASE = """
WITH mine AS MATERIALIZED (
    SELECT id FROM block WHERE id = ANY(%(ids)s) AND state = 'CLOSED' AND due_at <= now()
    ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
), leased AS (
    UPDATE block b SET due_at = now() + make_interval(secs => %(lease_s)s) FROM mine WHERE b.id = mine.id
    RETURNING b.*
)
SELECT l.id AS block_id, l.name, l.dataset, l.destination, l.dbs, l.tries, l.silences, l.silent_since,
    coalesce(extract(epoch FROM now() - l.silent_since), 0)::float8 AS silent_s,
    l.parent_blocks, l.parent_datasets, l.parents_unknown, k.input_dataset, k.with_parents,
    EXISTS (SELECT FROM block o WHERE o.dbs = l.dbs AND o.dataset = l.dataset AND o.state = 'PUBLISHED'
        AND o.closed_at > now() - interval '1 day') AS dataset_goes
FROM leased l JOIN task k ON k.id = l.task_id ORDER BY l.id
"""

_MEMBERS = """
SELECT t.id, t.destination_lfn, t.size_bytes, t.adler32, m.body
FROM block b CROSS JOIN LATERAL unnest(b.transfer_ids) WITH ORDINALITY AS u(id, place)
JOIN transfer t ON t.id = u.id AND t.block_id = b.id AND t.publication = 'ACQUIRED'
LEFT JOIN file_metadata m USING (request_id)
WHERE b.id = %s AND b.state = 'CLOSED' ORDER BY u.place
"""

_PUBLISHED = """
WITH told AS (
    UPDATE block SET state = 'PUBLISHED', settled_at = now(), settled_by = %(step_run)s, reason = NULL
    WHERE id = ANY(%(ids)s) AND state = 'CLOSED' RETURNING id, name, transfer_ids
), changed AS (
    UPDATE transfer t SET publication = 'DONE'
    FROM told CROSS JOIN LATERAL unnest(told.transfer_ids) AS u(id)
    WHERE t.id = u.id AND t.block_id = told.id AND t.publication = 'ACQUIRED'
    RETURNING t.id, told.name
), record AS (
    UPDATE crab_record c SET dbs_blockname = x.name, updated_at = now() FROM changed x
    WHERE c.transfer_id = x.id
), event AS (
    INSERT INTO file_event (transfer_id, kind, from_state, to_state, subject, step_run)
    SELECT id, 'publication', 'ACQUIRED', 'DONE', name, %(step_run)s FROM changed ORDER BY id
)
SELECT count(*) FROM changed
"""

# What is not in one of the parts has its outcome beside it; files that have left the block are nobody's here.
_SETTLE = """
WITH old AS (
    UPDATE block SET state = %(state)s::block_state, settled_at = now(), settled_by = %(step_run)s,
        reason = %(reason)s
    WHERE id = %(id)s AND state = 'CLOSED' RETURNING *
), outcome AS (
    SELECT * FROM unnest(%(ids)s::bigint[], %(states)s::publication_state[], %(subjects)s::text[],
        %(reasons)s::text[]) AS o(id, state, subject, reason)
), member AS MATERIALIZED (
    SELECT t.id, u.place FROM old CROSS JOIN LATERAL unnest(old.transfer_ids) WITH ORDINALITY AS u(id, place)
        JOIN transfer t ON t.id = u.id AND t.block_id = old.id AND t.publication = 'ACQUIRED'
    ORDER BY t.id FOR UPDATE OF t
), ended AS (
    UPDATE transfer t SET publication = o.state, block_id = CASE WHEN o.subject IS NULL THEN t.block_id
        ELSE (SELECT b.id FROM block b WHERE b.name = o.subject) END
    FROM member m JOIN outcome o USING (id) WHERE t.id = m.id
    RETURNING t.id, t.publication, o.subject, o.reason
), part AS (
    SELECT p.name, array_agg(m.id ORDER BY m.place) AS ids,
        sum(coalesce(d.lumis, 0)) AS lumis, sum(coalesce(d.payload_bytes, 0)) AS payload_bytes,
        sum(greatest(t.size_bytes, coalesce(d.size_bytes, 0))) AS size_bytes, min(t.ended_at) AS oldest_at
    FROM unnest(%(part_ids)s::bigint[], %(part_names)s::text[]) AS p(id, name) JOIN member m USING (id)
        JOIN transfer t USING (id) LEFT JOIN file_metadata d ON d.request_id = t.request_id
    GROUP BY p.name
), made AS (
    INSERT INTO block (name, task_id, dataset, destination, dbs, transfer_ids, lumis, payload_bytes,
        size_bytes, opened_at, oldest_at, state, closed_at, close_reason, tries, reason, split_from)
    SELECT p.name, old.task_id, old.dataset, old.destination, old.dbs, p.ids, p.lumis, p.payload_bytes,
        p.size_bytes, old.opened_at, p.oldest_at, 'CLOSED', now(), 'split: ' || %(reason)s, old.tries,
        %(reason)s, old.id
    FROM part p CROSS JOIN old
    RETURNING id, name, transfer_ids
), moved AS (
    UPDATE transfer t SET block_id = made.id
    FROM made CROSS JOIN LATERAL unnest(made.transfer_ids) AS u(id) WHERE t.id = u.id
    RETURNING t.id, made.name
), record AS (
    UPDATE crab_record c SET dbs_blockname = coalesce(e.subject, c.dbs_blockname), updated_at = now(),
        publication_failure_reason = coalesce(e.reason, c.publication_failure_reason)
    FROM ended e WHERE c.transfer_id = e.id
), event AS (
    INSERT INTO file_event (transfer_id, kind, from_state, to_state, subject, step_run, reason)
    SELECT id, 'publication', 'ACQUIRED', publication::text, subject, %(step_run)s, reason FROM ended
    UNION ALL
    SELECT id, 'publication', 'ACQUIRED', 'ACQUIRED', name, %(step_run)s, %(reason)s FROM moved
)
SELECT (SELECT array_agg(id ORDER BY id) FROM made), EXISTS (SELECT FROM old)
"""

_WAIT = """
UPDATE block SET due_at = now() + make_interval(secs => %(wait_s)s), reason = %(reason)s,
    tries = tries + %(tries)s, silences = silences + %(silences)s,
    silent_since = CASE WHEN %(silences)s > 0 THEN coalesce(silent_since, now()) ELSE silent_since END
WHERE id = ANY(%(ids)s) AND state = 'CLOSED'
"""

_OTHERS_GO = """
SELECT EXISTS (
    SELECT FROM block o WHERE o.dbs = %(dbs)s AND o.state = 'PUBLISHED' AND o.settled_at > %(since)s)
"""


# A block that waits for its input has the next day for it.
_STUCK = """
SELECT b.dbs, count(*), min(b.closed_at), (array_agg(b.reason ORDER BY b.closed_at))[1] FROM block b
WHERE b.state = 'CLOSED' AND b.closed_at < now() - make_interval(secs => %(stuck_s)s)
    AND (b.closed_at < now() - make_interval(secs => %(input_s)s) OR NOT EXISTS (
        SELECT FROM unnest(b.parent_blocks) AS p(name) JOIN dbs_migration m
            ON m.dbs = b.dbs AND m.block_name = p.name WHERE m.state = 'OPEN'))
GROUP BY b.dbs ORDER BY b.dbs
"""

_FAILED_IN_RUN = """
SELECT b.name, b.reason FROM step_run s JOIN block b ON b.settled_by = s.id
WHERE s.dag_id = %s AND s.run_id = %s AND b.state = 'FAILED' ORDER BY b.id LIMIT %s
"""

_RUN_COUNTS = """
SELECT c.key, sum(c.value::bigint)::bigint FROM step_run s CROSS JOIN LATERAL jsonb_each_text(s.counts) AS c
WHERE s.dag_id = %s AND s.run_id = %s GROUP BY c.key
"""


class Stuck(NamedTuple):
    """Blocks that a DBS instance has not taken for long."""

    dbs: str
    blocks: int
    since: datetime
    reason: str | None
    """Of the oldest."""


def due_blocks(conn: Connection, at_most: int) -> list[DueBlock]:
    """Return closed blocks that may be told to DBS now, those that wait for the longest first."""
    return [DueBlock(*row) for row in conn.execute(_DUE, (at_most,))]


def lease(conn: Connection, block_ids: Sequence[int], lease_s: float) -> list[ClosedBlock]:
    """Take blocks for this task alone; those that another one has, or that are not due, are not returned.

    Args:
        lease_s: after so long anybody may take them again: this task must have died.
    """
    with conn.cursor(row_factory=class_row(ClosedBlock)) as cursor:
        return cursor.execute(_LEASE, {"ids": list(block_ids), "lease_s": lease_s}).fetchall()


def members(conn: Connection, block_id: int) -> list[Member]:
    """Return the files of a closed block in their order, without those that have left it."""
    return [Member(*row) for row in conn.execute(_MEMBERS, (block_id,))]


def record_published(conn: Connection, block_ids: Sequence[int], step_run: int) -> int:
    """Record that DBS has blocks with all their files; return how many files are DONE with that."""
    row = conn.execute(_PUBLISHED, {"ids": list(block_ids), "step_run": step_run}).fetchone()
    return int(row[0]) if row else 0


def settle(
    conn: Connection,
    block_id: int,
    state: BlockState,
    reason: str,
    *,
    outcomes: Sequence[FileOutcome] = (),
    parts: Mapping[str, Sequence[int]] | None = None,
    step_run: int,
) -> list[int] | None:
    """End a closed block: some of its files have an outcome, the others go on in new closed blocks.

    Args:
        parts: files of each new block, by its fresh name; a part without files is not made.

    Returns the new blocks; None, and changes nothing, if the block is not CLOSED any more.
    """
    parts = parts or {}
    values = {
        "id": block_id,
        "state": state.value,
        "reason": reason,
        "ids": [one.transfer_id for one in outcomes],
        "states": [one.state.value for one in outcomes],
        "subjects": [one.subject for one in outcomes],
        "reasons": [one.reason for one in outcomes],
        "part_ids": [one for ids in parts.values() for one in ids],
        "part_names": [name for name, ids in parts.items() for _ in ids],
        "step_run": step_run,
    }
    row = conn.execute(_SETTLE, values).fetchone()
    made, was_closed = row or (None, False)
    return list(made or ()) if was_closed else None


def let_wait(
    conn: Connection,
    block_ids: Sequence[int],
    reason: str,
    wait_s: float,
    *,
    tries: int = 0,
    silences: int = 0,
) -> None:
    """Tell DBS about closed blocks later.

    Args:
        tries: by how many their count grows; only what blames the block counts.
        silences: by how many the count of those grows.
    """
    values = {
        "ids": list(block_ids), "reason": reason, "wait_s": wait_s, "tries": tries, "silences": silences
    }  # fmt: skip
    conn.execute(_WAIT, values)


def others_go(conn: Connection, dbs: str, since: datetime) -> bool:
    """Say whether DBS took another block since then."""
    row = conn.execute(_OTHERS_GO, {"dbs": dbs, "since": since}).fetchone()
    return bool(row and row[0])


def stuck_blocks(conn: Connection, stuck_s: float, input_s: float) -> list[Stuck]:
    """Return how many closed blocks each instance has not taken for so long.

    Args:
        stuck_s: after closing.
        input_s: the same, for blocks whose input is being migrated.
    """
    return [Stuck(*row) for row in conn.execute(_STUCK, {"stuck_s": stuck_s, "input_s": input_s})]


def failed_in_run(conn: Connection, dag_id: str, run_id: str, at_most: int) -> list[tuple[str, str]]:
    """Return blocks that a run of the DAG gave up, and why."""
    return conn.execute(_FAILED_IN_RUN, (dag_id, run_id, at_most)).fetchall()


def run_counts(conn: Connection, dag_id: str, run_id: str) -> dict[str, int]:
    """Return what the steps of a run have counted, added up."""
    return dict(conn.execute(_RUN_COUNTS, (dag_id, run_id)).fetchall())
