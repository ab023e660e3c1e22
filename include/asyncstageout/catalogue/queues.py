"""What waits and what is under way, by link, at a cost that does not grow with the queue. Reads only.

Up to :data:`COUNTED_UP_TO` waiting files are counted, by the index ``transfer_pending`` alone. Of a longer
queue Postgres knows the length, as of its last look (``ANALYZE``), and a sample of pages the links' shares.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from datetime import datetime

from psycopg import Connection

from asyncstageout.core.planning import Link

COUNTED_UP_TO = 100_000
SAMPLED_PAGES = 2_000
"""Of 8 kB; read at random."""
OWN_FILES_UP_TO = 50_000

# In the order of the index: else the planner may read the whole table to find few files.
_WAITING = """
SELECT source, destination, count(*), min(due_at) FILTER (WHERE due_at <= now()) FROM (
    SELECT source, destination, due_at FROM transfer WHERE state IN ('NEW', 'RETRY')
    ORDER BY source, destination, username, priority, due_at, id LIMIT %(at_most)s
) t GROUP BY 1, 2
"""

_LENGTH = """
SELECT greatest(q.reltuples, %(at_least)s)::bigint, 100.0 * %(pages)s / greatest(t.relpages, %(pages)s),
    (SELECT min(due_at) FROM transfer WHERE state IN ('NEW', 'RETRY') AND due_at <= now())
FROM pg_class q, pg_class t WHERE q.oid = 'transfer_pending'::regclass AND t.oid = 'transfer'::regclass
"""

# The same pages each time, so that numbers do not jump when nothing happens.
_SAMPLE = """
SELECT source, destination, count(*) FROM transfer TABLESAMPLE SYSTEM (%(percent)s) REPEATABLE (1)
WHERE state IN ('NEW', 'RETRY') GROUP BY 1, 2
"""

# By the index fts_job_in_flight. What is left of a job counts with the average size of its files.
_IN_FLIGHT = """
SELECT source, destination, count(*), count(*) FILTER (WHERE state = 'PLANNED'), sum(open_files)::bigint,
    sum(size_bytes * open_files / greatest(cardinality(transfer_ids), 1))::bigint, min(planned_at)
FROM fts_job WHERE state IN ('PLANNED', 'SUBMITTED')
    AND (%(source)s::text IS NULL OR source = %(source)s)
    AND (%(destination)s::text IS NULL OR destination = %(destination)s)
GROUP BY 1, 2
"""

_WAITING_ON = """
SELECT count(*), min(due_at) FILTER (WHERE due_at <= now()) FROM (
    SELECT due_at FROM transfer WHERE state IN ('NEW', 'RETRY') AND source = %s AND destination = %s LIMIT %s
) t
"""

# By the indices task_of_user and transfer_of_task.
_OWN = """
SELECT state::text, count(*), min(created_at) FROM (
    SELECT t.state, t.created_at FROM task k CROSS JOIN LATERAL (
        SELECT state, created_at FROM transfer WHERE task_id = k.id ORDER BY id DESC LIMIT %(at_most)s
    ) t WHERE k.username = ANY(%(usernames)s::text[]) ORDER BY k.id DESC LIMIT %(at_most)s
) t GROUP BY 1
"""


@dataclass(frozen=True, slots=True)
class Queue:
    """What waits and what is under way on one link, or on several."""

    waiting: int = 0
    oldest_due_at: datetime | None = None
    """Since when the file could have started that could for longest; None: none could, or nobody knows."""
    jobs: int = 0
    """At FTS, or on their way there."""
    in_doubt: int = 0
    """Of the jobs, those that FTS has not confirmed."""
    in_flight: int = 0
    in_flight_bytes: int = 0
    oldest_job_at: datetime | None = None

    def with_(self, other: Queue) -> Queue:
        return Queue(
            self.waiting + other.waiting,
            _earlier(self.oldest_due_at, other.oldest_due_at),
            self.jobs + other.jobs,
            self.in_doubt + other.in_doubt,
            self.in_flight + other.in_flight,
            self.in_flight_bytes + other.in_flight_bytes,
            _earlier(self.oldest_job_at, other.oldest_job_at),
        )


@dataclass(frozen=True, slots=True)
class Queues:
    """All of it."""

    total: Queue
    by_link: dict[Link, Queue] = field(default_factory=dict)
    is_estimate: bool = False
    """What waits was too much to be counted."""


@dataclass(frozen=True, slots=True)
class OwnFiles:
    """Live files of some users by their state."""

    states: dict[str, int]
    oldest_at: dict[str, datetime]
    """Arrival of the oldest in each state."""
    is_capped: bool
    """There are more: those of the newest tasks were counted."""


def queues(conn: Connection) -> Queues:
    """Return what waits and what is under way, by link."""
    by_link, is_estimate, oldest_due_at = _waiting(conn)
    for link, flight in _in_flight(conn).items():
        by_link[link] = by_link.get(link, Queue()).with_(flight)
    total = Queue()
    for queue in by_link.values():
        total = total.with_(queue)
    if is_estimate:
        total = replace(total, oldest_due_at=oldest_due_at)
    return Queues(total, by_link, is_estimate)


def queue_on(conn: Connection, link: Link) -> tuple[Queue, bool]:
    """Return what waits and is under way on one link, and whether more wait than were counted."""
    waiting, oldest = conn.execute(_WAITING_ON, (*link, COUNTED_UP_TO)).fetchone() or (0, None)
    flight = _in_flight(conn, link.source, link.destination).get(link, Queue())
    return Queue(waiting, oldest).with_(flight), waiting == COUNTED_UP_TO


def own_files(conn: Connection, usernames: Collection[str]) -> OwnFiles:
    """Return the live files of some users."""
    rows = conn.execute(_OWN, {"usernames": list(usernames), "at_most": OWN_FILES_UP_TO}).fetchall()
    states = {state: count for state, count, _ in rows}
    return OwnFiles(
        states, {state: oldest for state, _, oldest in rows}, sum(states.values()) == OWN_FILES_UP_TO
    )


def _waiting(conn: Connection) -> tuple[dict[Link, Queue], bool, datetime | None]:
    rows = conn.execute(_WAITING, {"at_most": COUNTED_UP_TO}).fetchall()
    if sum(count for _, _, count, _ in rows) < COUNTED_UP_TO:
        counted = {
            Link(source, destination): Queue(count, oldest) for source, destination, count, oldest in rows
        }
        return counted, False, None
    values = {"at_least": COUNTED_UP_TO, "pages": SAMPLED_PAGES}
    length, percent, oldest = conn.execute(_LENGTH, values).fetchone() or (0, 100, None)
    sample = conn.execute(_SAMPLE, {"percent": percent}).fetchall()
    seen = sum(count for _, _, count in sample) or 1
    shares = {
        Link(source, destination): Queue(round(count * length / seen))
        for source, destination, count in sample
    }
    return shares, True, oldest


def _in_flight(
    conn: Connection, source: str | None = None, destination: str | None = None
) -> dict[Link, Queue]:
    rows = conn.execute(_IN_FLIGHT, {"source": source, "destination": destination})
    return {
        Link(*names): Queue(
            jobs=jobs, in_doubt=in_doubt, in_flight=files, in_flight_bytes=size_bytes, oldest_job_at=oldest
        )
        for *names, jobs, in_doubt, files, size_bytes, oldest in rows
    }


def _earlier(one: datetime | None, other: datetime | None) -> datetime | None:
    return min((at for at in (one, other) if at is not None), default=None)
