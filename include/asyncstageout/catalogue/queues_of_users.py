"""What waits and what is under way, by user, at a cost that does not grow with the queue. Reads only.

As :mod:`asyncstageout.catalogue.queues` does by link: a long queue is not counted, but sampled.
"""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from psycopg import Connection

from asyncstageout.catalogue.queues import COUNTED_UP_TO, SAMPLED_PAGES

IN_FLIGHT_UP_TO = 50_000
"""By the index ``transfer_in_job``; each is read."""

# In the order of the index transfer_pending: else the planner may read the whole table to find few files.
_WAITING = """
SELECT username, count(*), min(due_at) FILTER (WHERE due_at <= now()) FROM (
    SELECT username, due_at FROM transfer WHERE state IN ('NEW', 'RETRY')
    ORDER BY source, destination, username, priority, due_at, id LIMIT %(at_most)s
) t GROUP BY 1
"""
_SAMPLE = """
SELECT username, count(*) * greatest((
        SELECT reltuples FROM pg_class WHERE oid = 'transfer_pending'::regclass
    ), %(at_most)s) / sum(count(*)) OVER (), NULL::timestamptz
FROM transfer TABLESAMPLE SYSTEM ((
    SELECT 100.0 * %(pages)s / greatest(relpages, %(pages)s) FROM pg_class WHERE oid = 'transfer'::regclass
)) REPEATABLE (1) WHERE state IN ('NEW', 'RETRY') GROUP BY 1
"""
_IN_FLIGHT = """
SELECT username, count(*), sum(size_bytes)::bigint FROM (
    SELECT username, size_bytes FROM transfer WHERE state IN ('ACQUIRED', 'SUBMITTED', 'KILL')
    ORDER BY fts_job LIMIT %(at_most)s
) t GROUP BY 1
"""


class UserQueue(NamedTuple):
    """What waits and what is under way of one user's files."""

    waiting: int = 0
    oldest_due_at: datetime | None = None
    """Since when the file could have started that could for longest; None: none could, or nobody knows."""
    in_flight: int = 0
    in_flight_bytes: int = 0


class UserQueues(NamedTuple):
    """Those of all users with any."""

    by_user: dict[str, UserQueue]
    is_estimate: bool
    """What waits was too much to be counted."""
    is_capped: bool
    """So much is under way that not all of it was counted."""


def queues_of_users(conn: Connection) -> UserQueues:
    """Return what waits and what is under way, by user."""
    rows = conn.execute(_WAITING, {"at_most": COUNTED_UP_TO}).fetchall()
    is_estimate = sum(row[1] for row in rows) == COUNTED_UP_TO
    if is_estimate:
        rows = conn.execute(_SAMPLE, {"at_most": COUNTED_UP_TO, "pages": SAMPLED_PAGES}).fetchall()
    found = {name: UserQueue(round(waiting), oldest) for name, waiting, oldest in rows}
    flying = conn.execute(_IN_FLIGHT, {"at_most": IN_FLIGHT_UP_TO}).fetchall()
    for name, files, size_bytes in flying:
        found[name] = found.get(name, UserQueue())._replace(in_flight=files, in_flight_bytes=size_bytes)
    return UserQueues(found, is_estimate, sum(row[1] for row in flying) == IN_FLIGHT_UP_TO)
