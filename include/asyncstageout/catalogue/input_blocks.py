"""Input blocks that have to be in a DBS before blocks with their descendants: looked up once, migrated once.

That a block needs others is written down before anybody is asked to migrate them. Of tasks that want the same
input block one asks for it, and all look at what became of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import NamedTuple

from psycopg import Connection

_KEEP_PARENTS = """
UPDATE block SET parent_blocks = %(missing)s, parent_datasets = %(datasets)s, parents_unknown = %(unknown)s
WHERE id = %(id)s AND state = 'CLOSED'
"""

# Whoever looked just now found it missing: what was settled before is not so any more.
_WANT = """
INSERT INTO dbs_migration (dbs, block_name)
SELECT %(dbs)s, name FROM unnest(%(missing)s::text[]) AS name ORDER BY name
ON CONFLICT (dbs, block_name) DO UPDATE SET state = 'OPEN', tries = 0, due_at = now(), wanted_at = now(),
    settled_at = NULL, request_id = NULL, reason = NULL
WHERE dbs_migration.state <> 'OPEN'
"""

_UNSETTLED = """
SELECT b.id, m.block_name, m.state, m.reason
FROM block b CROSS JOIN LATERAL unnest(b.parent_blocks) AS p(name)
    JOIN dbs_migration m ON m.dbs = b.dbs AND m.block_name = p.name
WHERE b.id = ANY(%s) AND m.state <> 'DONE' ORDER BY b.id, m.block_name
"""

_LEASE = """
WITH mine AS MATERIALIZED (
    SELECT block_name FROM dbs_migration
    WHERE dbs = %(dbs)s AND block_name = ANY(%(names)s) AND state = 'OPEN' AND due_at <= now()
    ORDER BY block_name LIMIT %(at_most)s FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE dbs_migration m SET due_at = now() + make_interval(secs => %(lease_s)s)
FROM mine WHERE m.dbs = %(dbs)s AND m.block_name = mine.block_name
RETURNING m.block_name, m.request_id, m.tries
"""

_RECORD = """
UPDATE dbs_migration m SET state = h.state, request_id = coalesce(h.request_id, m.request_id),
    tries = m.tries + h.tries, reason = h.reason, due_at = now() + make_interval(secs => %(wait_s)s),
    settled_at = CASE WHEN h.state IN ('DONE', 'FAILED') THEN now() END
FROM unnest(%(names)s::text[], %(states)s::text[], %(requests)s::bigint[], %(tries)s::smallint[],
    %(reasons)s::text[]) AS h(name, state, request_id, tries, reason)
WHERE m.dbs = %(dbs)s AND m.block_name = h.name AND m.state = 'OPEN'
"""


class Wanted(NamedTuple):
    """A migration that is to be asked for, or asked about."""

    block_name: str
    request_id: int | None
    """DBS's; None: nobody is known to have asked."""
    tries: int


class Heard(NamedTuple):
    """What became of one."""

    block_name: str
    state: str
    """OPEN, DONE or FAILED."""
    request_id: int | None = None
    reason: str | None = None
    tries: int = 0
    """By how many its count grows."""


class Unsettled(NamedTuple):
    """An input block for which a block waits, or in vain."""

    block_name: str
    has_failed: bool
    reason: str | None


def keep_parents(
    conn: Connection,
    block_id: int,
    dbs: str,
    *,
    missing: Sequence[str],
    datasets: Sequence[str],
    unknown: Sequence[str],
) -> None:
    """Write down, in one transaction, which input blocks a block needs, and that they are wanted in its DBS.

    Args:
        missing: blocks that another DBS has.
        datasets: of all parents that are known.
        unknown: LFNs of parents that no DBS has.
    """
    values = {
        "id": block_id, "dbs": dbs, "missing": list(missing), "datasets": list(datasets),
        "unknown": list(unknown),
    }  # fmt: skip
    with conn.transaction():
        conn.execute(_KEEP_PARENTS, values)
        conn.execute(_WANT, values)


def forget_parents(conn: Connection, block_id: int) -> None:
    """Have a block's parents looked for again."""
    conn.execute("UPDATE block SET parent_blocks = NULL WHERE id = %s AND state = 'CLOSED'", (block_id,))


def unsettled(conn: Connection, block_ids: Collection[int]) -> dict[int, list[Unsettled]]:
    """Return for each of the blocks the input blocks that are not in its DBS."""
    found: dict[int, list[Unsettled]] = defaultdict(list)
    for block_id, name, state, reason in conn.execute(_UNSETTLED, (list(block_ids),)):
        found[block_id].append(Unsettled(name, state == "FAILED", reason))
    return found


def lease_migrations(
    conn: Connection, dbs: str, names: Collection[str], lease_s: float, at_most: int
) -> list[Wanted]:
    """Take migrations that are due for this task alone; after ``lease_s`` anybody may take them again."""
    values = {"dbs": dbs, "names": list(names), "lease_s": lease_s, "at_most": at_most}
    return [Wanted(*row) for row in conn.execute(_LEASE, values)]


def record_migrations(conn: Connection, dbs: str, heard: Sequence[Heard], wait_s: float) -> None:
    """Write down what DBS says; what is not settled is asked about again after ``wait_s``."""
    values = {
        "dbs": dbs,
        "names": [one.block_name for one in heard],
        "states": [one.state for one in heard],
        "requests": [one.request_id for one in heard],
        "tries": [one.tries for one in heard],
        "reasons": [one.reason for one in heard],
        "wait_s": wait_s,
    }
    conn.execute(_RECORD, values)
