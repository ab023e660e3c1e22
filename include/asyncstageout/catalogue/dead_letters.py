"""What operators see of the outbox, and what they do with it: replay, discard, send again from a time on."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from psycopg import Connection

from asyncstageout.catalogue.outbox import ID
from asyncstageout.core.deliveries import Delivery

MAX_MESSAGES = 50_000
"""What one call changes at most; the same call again goes on."""


class Backlog(NamedTuple):
    """What one subscriber still has to hear."""

    subscription: str
    kind: str
    state: str
    pending: int
    oldest_at: datetime | None
    """When the oldest event happened that it has not heard of."""
    dead: int
    failing_since: datetime | None
    problem: str | None
    retry_at: datetime | None
    needs_person: bool


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter: a message that was refused too often."""

    number: int
    subscription: str
    message: str
    """Id of the message, such as ``transfer-4711``."""
    to_state: str
    transfer_id: int
    username: str
    tries: int
    problem: str
    dead_at: datetime
    holds_back: int
    """Later messages of the same file that wait for it."""


class Chosen(NamedTuple):
    """Which dead letters; None: any."""

    numbers: Collection[int] | None = None
    subscription: str | None = None
    username: str | None = None
    problem: str | None = None
    """Part of what the receiver said."""
    dead_before: datetime | None = None


_BACKLOGS = """
SELECT s.name, s.kind, s.state, coalesce(o.pending, 0), o.oldest_at, coalesce(o.dead, 0), h.failing_since,
    h.problem, h.retry_at, coalesce(h.needs_person, false)
FROM subscription s LEFT JOIN subscription_health h ON h.subscription = s.id LEFT JOIN (
    SELECT subscription, count(*) FILTER (WHERE dead_at IS NULL) AS pending, min(at) AS oldest_at,
        count(*) FILTER (WHERE dead_at IS NOT NULL) AS dead
    FROM outbox GROUP BY subscription
) o ON o.subscription = s.id
WHERE %(name)s::text IS NULL OR s.name = %(name)s ORDER BY s.name
"""

_CHOSEN = """
    SELECT o.id FROM outbox o JOIN subscription s ON s.id = o.subscription
    WHERE o.dead_at IS NOT NULL
        AND (%(numbers)s::bigint[] IS NULL OR o.id = ANY(%(numbers)s))
        AND (%(subscription)s::text IS NULL OR s.name = %(subscription)s)
        AND (%(problem)s::text IS NULL OR strpos(o.problem, %(problem)s) > 0)
        AND (%(dead_before)s::timestamptz IS NULL OR o.dead_at < %(dead_before)s)
        AND (%(username)s::text IS NULL OR EXISTS (
            SELECT FROM transfer t WHERE t.id = o.transfer_id AND t.username = %(username)s
            UNION ALL
            SELECT FROM transfer_history t WHERE t.id = o.transfer_id AND t.username = %(username)s))
    ORDER BY o.id LIMIT %(at_most)s
"""

_LETTERS = f"""
SELECT o.id, s.name, {ID.format("o")}, o.to_state, o.transfer_id, t.username, o.tries, o.problem, o.dead_at,
    (SELECT count(*) FROM outbox l WHERE l.subscription = o.subscription AND l.transfer_id = o.transfer_id
        AND l.id > o.id)
FROM outbox o JOIN subscription s ON s.id = o.subscription
    LEFT JOIN LATERAL (
        SELECT username FROM transfer WHERE id = o.transfer_id
        UNION ALL SELECT username FROM transfer_history WHERE id = o.transfer_id LIMIT 1
    ) t ON true
WHERE o.id IN ({_CHOSEN}) ORDER BY o.id
"""

_EVENT = """
    INSERT INTO file_event (transfer_id, kind, from_state, to_state, subject, step_run, reason)
    SELECT c.transfer_id, 'delivery', '{start}', '{end}', s.name, %(step_run)s,
        {id} || ' ' || c.to_state || coalesce(': ' || nullif(%(comment)s, ''), '')
    FROM {changed} c JOIN subscription s ON s.id = c.subscription ORDER BY c.id
"""

_REPLAY = f"""
WITH chosen AS MATERIALIZED (
    SELECT id FROM outbox WHERE id IN ({_CHOSEN}) ORDER BY id FOR UPDATE
), changed AS (
    UPDATE outbox o SET dead_at = NULL, tries = 0, due_at = now()
    FROM chosen c WHERE o.id = c.id AND o.dead_at IS NOT NULL RETURNING o.*
), event AS ({_EVENT.format(start=Delivery.DEAD, end=Delivery.PENDING, id=ID.format("c"), changed="changed")})
SELECT count(*) FROM changed
"""

_DISCARD = f"""
WITH chosen AS MATERIALIZED (
    SELECT id FROM outbox WHERE id IN ({_CHOSEN}) ORDER BY id FOR UPDATE
), gone AS (
    DELETE FROM outbox o USING chosen c WHERE o.id = c.id AND o.dead_at IS NOT NULL RETURNING o.*
), free AS (
    UPDATE outbox o SET due_at = now() FROM gone g
    WHERE o.subscription = g.subscription AND o.transfer_id = g.transfer_id AND o.id > g.id
        AND o.id NOT IN (SELECT id FROM chosen)
), event AS ({_EVENT.format(start=Delivery.DEAD, end=Delivery.DISCARDED, id=ID.format("c"), changed="gone")})
SELECT count(*) FROM gone
"""


def backlogs(conn: Connection, name: str | None = None) -> list[Backlog]:
    """Return what each subscriber, or the one of this name, still has to hear."""
    return [Backlog(*row) for row in conn.execute(_BACKLOGS, {"name": name})]


def dead_letters(conn: Connection, chosen: Chosen, *, limit: int) -> list[Letter]:
    """Return dead letters, the oldest message first."""
    return [Letter(*row) for row in conn.execute(_LETTERS, _values(chosen, limit))]


def count_dead(conn: Connection, chosen: Chosen) -> int:
    """Return how many :func:`replay` or :func:`discard` would change in one call."""
    row = conn.execute(f"SELECT count(*) FROM ({_CHOSEN}) c", _values(chosen, MAX_MESSAGES)).fetchone()
    return int(row[0]) if row else 0


def replay(conn: Connection, chosen: Chosen, *, comment: str, step_run: int) -> int:
    """Send dead letters again, with all their tries; return how many."""
    return _count(conn, _REPLAY, chosen, comment, step_run)


def discard(conn: Connection, chosen: Chosen, *, comment: str, step_run: int) -> int:
    """Take dead letters out of the outbox for ever, so that the later messages of their files go out."""
    return _count(conn, _DISCARD, chosen, comment, step_run)


def _count(conn: Connection, statement: str, chosen: Chosen, comment: str, step_run: int) -> int:
    values = _values(chosen, MAX_MESSAGES) | {"comment": comment, "step_run": step_run}
    row = conn.execute(statement, values).fetchone()
    return int(row[0]) if row else 0


def _values(chosen: Chosen, at_most: int) -> dict[str, Any]:
    numbers = None if chosen.numbers is None else list(chosen.numbers)
    return {**chosen._asdict(), "numbers": numbers, "at_most": at_most}
