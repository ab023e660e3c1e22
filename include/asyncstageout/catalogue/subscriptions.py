"""Subscriptions: set, paused, removed, and how each subscriber takes what it is sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg import Connection
from psycopg.types.json import Jsonb

from asyncstageout.catalogue.config_changes import changing
from asyncstageout.core.deliveries import Delivery
from asyncstageout.core.subscriptions import AnySubscription, State, read_subscription


@dataclass(frozen=True, slots=True)
class Health:
    """A receiver that cannot be told anything now."""

    failures: int
    """Calls in a row that it did not take."""
    failing_since: datetime
    retry_at: datetime
    problem: str
    needs_person: bool
    """Waiting does not mend it."""


@dataclass(frozen=True, slots=True)
class SubscriptionView:
    """A subscription, who set it, and how it is."""

    number: int
    wanted: AnySubscription
    state: State
    reason: str | None
    """Why it is not active, if that was said."""
    updated_at: datetime
    updated_by: str
    health: Health | None
    """None: as far as is known it takes what it is sent."""


class KindIsFixed(ValueError):
    """A subscription of one kind cannot become one of another: its messages are meant for that receiver."""

    def __init__(self, name: str, kind: str) -> None:
        self.name, self.kind = name, kind
        super().__init__(f"{name} is of kind {kind}; remove it, or take another name")


_PUT = """
INSERT INTO subscription AS s (name, kind, conn_id, events, username, source, destination, origin, settings,
    updated_by)
VALUES (%(name)s, %(kind)s, %(conn_id)s, %(events)s, %(username)s, %(source)s, %(destination)s, %(origin)s,
    %(settings)s, %(by)s)
ON CONFLICT (name) DO UPDATE SET conn_id = excluded.conn_id, events = excluded.events,
    username = excluded.username, source = excluded.source, destination = excluded.destination,
    origin = excluded.origin, settings = excluded.settings, updated_at = now(),
    updated_by = excluded.updated_by
WHERE (s.conn_id, s.events, s.username, s.source, s.destination, s.origin, s.settings) IS DISTINCT FROM
    (excluded.conn_id, excluded.events, excluded.username, excluded.source, excluded.destination,
     excluded.origin, excluded.settings)
RETURNING xmax = 0
"""

_VIEWS = """
SELECT s.id, s.name, s.kind, s.conn_id, s.events, s.username, s.source, s.destination, s.origin, s.settings,
    s.state, s.reason, s.updated_at, s.updated_by,
    h.failures, h.failing_since, h.retry_at, h.problem, h.needs_person
FROM subscription s LEFT JOIN subscription_health h ON h.subscription = s.id
WHERE %(name)s::text IS NULL OR s.name = %(name)s ORDER BY s.name
"""
_FIELDS = ("name", "kind", "conn_id", "events", "username", "source", "destination", "origin", "settings")

# Events that reckon with it are waited for; those that come later do not know it any more.
_REMOVE = "DELETE FROM subscription WHERE name = %s RETURNING id"
_DROP = f"""
WITH gone AS (
    DELETE FROM outbox WHERE subscription = %(number)s
    RETURNING transfer_id, event_kind, event_id, to_state, dead_at
), event AS (
    INSERT INTO file_event (transfer_id, kind, from_state, to_state, subject, step_run, reason)
    SELECT transfer_id, 'delivery',
        CASE WHEN dead_at IS NULL THEN '{Delivery.PENDING}' ELSE '{Delivery.DEAD}' END,
        '{Delivery.DISCARDED}', %(name)s, %(step_run)s,
        event_kind || '-' || event_id || ' ' || to_state || ': the subscription was removed'
    FROM gone
)
SELECT count(*) FROM gone
"""


def put_subscription(conn: Connection, wanted: AnySubscription, by: str) -> bool:
    """Make a subscription, or change the one of this name; return whether it is new.

    It is told of what happens from now on; what waits for it already goes out as it says now.

    Raises:
        KindIsFixed: there is one of another kind.
        UnknownSite: there is no such source or destination.
    """
    values = wanted.model_dump(mode="json") | {"by": by, "settings": Jsonb(wanted.settings.model_dump())}
    with changing(conn, by):
        found = conn.execute(
            "SELECT kind FROM subscription WHERE name = %s FOR NO KEY UPDATE", (wanted.name,)
        ).fetchone()
        if found and found[0] != wanted.kind:
            raise KindIsFixed(wanted.name, found[0])
        row = conn.execute(_PUT, values).fetchone()
    return bool(row and row[0])


def subscriptions(conn: Connection, name: str | None = None) -> list[SubscriptionView]:
    """Return all subscriptions, or the one of this name, in the order of their names."""
    return [_view(row) for row in conn.execute(_VIEWS, {"name": name})]


def set_state(conn: Connection, name: str, state: State, *, reason: str | None, by: str) -> bool:
    """Say whether a subscriber is told; False if there is no such subscription.

    What it was not able to take is tried again at once.
    """
    with changing(conn, by):
        row = conn.execute(
            "UPDATE subscription SET state = %s, reason = %s, updated_at = now(), updated_by = %s"
            " WHERE name = %s RETURNING id",
            (state, reason, by, name),
        ).fetchone()
        if row and state is State.ACTIVE:
            conn.execute("DELETE FROM subscription_health WHERE subscription = %s", row)
    return row is not None


def remove_subscription(conn: Connection, name: str, *, by: str, step_run: int) -> int | None:
    """Forget a subscription and discard what it was not told, each on record; return how many messages.

    None: there is no such subscription.
    """
    with changing(conn, by):
        removed = conn.execute(_REMOVE, (name,)).fetchone()
        if removed is None:
            return None
        row = conn.execute(_DROP, {"number": removed[0], "name": name, "step_run": step_run}).fetchone()
    return int(row[0]) if row else 0


def note_failing(
    conn: Connection, number: int, problem: str, *, wait_s: float, needs_person: bool = False
) -> None:
    """Send nothing to a receiver for so long."""
    conn.execute(
        """
        INSERT INTO subscription_health AS h (subscription, failures, retry_at, problem, needs_person)
        SELECT id, 1, now() + make_interval(secs => %(wait_s)s), %(problem)s, %(needs_person)s
        FROM subscription WHERE id = %(number)s
        ON CONFLICT (subscription) DO UPDATE SET failures = h.failures + 1, retry_at = excluded.retry_at,
            problem = excluded.problem, needs_person = excluded.needs_person
        """,
        {"number": number, "wait_s": wait_s, "problem": problem, "needs_person": needs_person},
    )


def note_well(conn: Connection, number: int) -> None:
    """Forget that a receiver was failing: it took something."""
    conn.execute("DELETE FROM subscription_health WHERE subscription = %s", (number,))


def _view(row: Sequence[Any]) -> SubscriptionView:
    number, fields, state, reason, updated_at, updated_by, *health = row[0], row[1:10], *row[10:]
    return SubscriptionView(
        number,
        read_subscription(dict(zip(_FIELDS, fields, strict=True))),
        State(state),
        reason,
        updated_at,
        updated_by,
        Health(*health) if health[0] is not None else None,
    )
