"""What else is known of one file: its block, temporary copies, who waits to hear of it, what CRAB said."""

from __future__ import annotations

from typing import Any

from psycopg import Connection
from psycopg.rows import dict_row

_BLOCK = """
SELECT b.name, b.dataset, b.dbs, b.state::text AS state, cardinality(b.transfer_ids) AS files, b.opened_at,
    b.closed_at, b.due_at, b.tries, b.reason, b.settled_at
FROM block b WHERE b.id = %s
"""

_COPIES = """
SELECT source AS site, source_lfn, state, due_at, tries, awaits_publication, failed_at, reason
FROM cleaning WHERE transfer_id = %s ORDER BY known_at
"""

# For each subscription by the index outbox_of_file.
_MESSAGES = """
SELECT s.name AS subscription, o.event_kind, o.to_state, o.at, o.due_at, o.tries, o.problem, o.dead_at
FROM subscription s CROSS JOIN LATERAL (
    SELECT * FROM outbox WHERE subscription = s.id AND transfer_id = %s ORDER BY id LIMIT 20
) o ORDER BY s.name, o.id
"""

_CRAB = """
SELECT fts_id, fts_instance, publish, publisher, publication_tries, publication_failure_reason, dbs_blockname,
    block_complete, updated_at
FROM crab_record WHERE transfer_id = %s
"""


def block_of(conn: Connection, block_id: int | None) -> dict[str, Any] | None:
    """Return the block in which a file is, or was, published."""
    return None if block_id is None else next(iter(_rows(conn, _BLOCK, block_id)), None)


def copies_of(conn: Connection, transfer_id: int) -> list[dict[str, Any]]:
    """Return a file's temporary copies that are still to be deleted, the oldest first."""
    return _rows(conn, _COPIES, transfer_id)


def messages_of(conn: Connection, transfer_id: int) -> list[dict[str, Any]]:
    """Return what subscribers have not taken yet of what happened to a file, by subscription."""
    return _rows(conn, _MESSAGES, transfer_id)


def crab_record_of(conn: Connection, transfer_id: int) -> dict[str, Any] | None:
    """Return what only CRAB's clients say of a file; None: it is none of CRAB's."""
    return next(iter(_rows(conn, _CRAB, transfer_id)), None)


def _rows(conn: Connection, query: str, number: int) -> list[dict[str, Any]]:
    with conn.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query, (number,)).fetchall()
