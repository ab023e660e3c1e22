"""What subscribers still have to hear: claimed, told, put off. In order per file, each by one at a time.

Triggers fill the outbox with the events themselves (migration 0006). A claim is a short transaction: it names
the step run that sends, and ``due_at`` becomes the end of its lease, so that nothing is open while a receiver
thinks, and a death gives everything back by itself. Of a file only the first message is ever claimed; the
next one stays until that has left the outbox.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from psycopg import Connection
from psycopg.rows import dict_row

from asyncstageout.catalogue.storages import Naming
from asyncstageout.core.deliveries import Delivery, File, Message, message_type
from asyncstageout.core.planning import FileNames
from asyncstageout.core.storages.model import Unresolvable

BLOCKED_S = 30.0
"""A message behind another one is looked at again so late, at most: it is set free with that one."""
BLOCKED_BY_DEAD_S = 600.0


@dataclass(frozen=True, slots=True)
class Claimed:
    """A message that is ours to send until the lease ends."""

    number: int
    tries: int
    """How often it was refused before."""
    message: Message


class Claim(NamedTuple):
    """What a claim brought."""

    messages: list[Claimed]
    blocked: int
    """Messages that were due and have to wait for an earlier one of their file."""


class Refusal(NamedTuple):
    """A message that the receiver did not take while it took others."""

    number: int
    problem: str
    wait_s: float | None
    """Until it goes again; None: it is dead."""


ID = "{0}.event_kind || '-' || {0}.event_id"
"""Id of a message, which its event of delivery carries too."""

_CLAIM = f"""
WITH due AS MATERIALIZED (
    SELECT id, transfer_id FROM outbox
    WHERE subscription = %(subscription)s AND dead_at IS NULL AND due_at <= now()
        AND EXISTS (SELECT FROM subscription WHERE id = %(subscription)s AND state = 'active')
    ORDER BY due_at, id LIMIT %(at_most)s FOR UPDATE SKIP LOCKED
), judged AS MATERIALIZED (
    SELECT d.id, e.id IS NOT NULL AS is_blocked, e.dead_at IS NOT NULL AS by_dead
    FROM due d LEFT JOIN LATERAL (
        SELECT o.id, o.dead_at FROM outbox o
        WHERE o.subscription = %(subscription)s AND o.transfer_id = d.transfer_id AND o.id < d.id
        ORDER BY o.id LIMIT 1
    ) e ON true
), claimed AS (
    UPDATE outbox o SET claimed_by = %(step_run)s, due_at = now() + make_interval(secs => %(lease_s)s)
    FROM judged j WHERE o.id = j.id AND NOT j.is_blocked RETURNING o.*
), blocked AS (
    UPDATE outbox o SET due_at = now()
        + make_interval(secs => CASE WHEN j.by_dead THEN {BLOCKED_BY_DEAD_S} ELSE {BLOCKED_S} END)
    FROM judged j WHERE o.id = j.id AND j.is_blocked RETURNING o.id
)
SELECT (SELECT count(*) FROM blocked) AS blocked, c.id AS outbox_id, c.tries,
    {ID.format("c")} AS id, c.event_kind, c.to_state AS state, c.at, c.reason, c.attempt, c.block,
    t.id AS number, t.request_id, k.name AS task, t.username, t.source, t.destination, t.source_lfn,
    t.destination_lfn, t.size_bytes, t.adler32, t.type::text AS file_type, t.job_id, t.job_retry_count,
    j.job_id::text AS fts_job_id, coalesce(s.endpoint, j.fts_server) AS fts_server,
    j.source_storage, j.source_protocol, j.destination_storage, j.destination_protocol
FROM (SELECT true) one LEFT JOIN claimed c ON true
    -- By its key, and in the history only if it is not live.
    LEFT JOIN LATERAL (
        SELECT * FROM transfer WHERE id = c.transfer_id
        UNION ALL SELECT * FROM transfer_history WHERE id = c.transfer_id LIMIT 1
    ) t ON true
    LEFT JOIN task k ON k.id = t.task_id
    LEFT JOIN fts_job j ON j.sid = coalesce(c.fts_job, t.fts_job)
    LEFT JOIN fts_server s ON s.name = j.fts_server
ORDER BY c.id
"""

_HOLD = """
UPDATE outbox SET due_at = now() + make_interval(secs => %(lease_s)s)
WHERE id = ANY(%(numbers)s) AND claimed_by = %(step_run)s RETURNING id
"""

# The next message of a file is due with the end of this one, whenever it was to be looked at again.
_FREE = """
    UPDATE outbox o SET due_at = now() FROM gone g
    WHERE o.subscription = g.subscription AND o.transfer_id = g.transfer_id AND o.id > g.id
"""

_TOLD = f"""
WITH gone AS (
    DELETE FROM outbox WHERE id = ANY(%(numbers)s) AND claimed_by = %(step_run)s RETURNING *
), free AS ({_FREE}), event AS (
    INSERT INTO file_event (transfer_id, kind, from_state, to_state, subject, step_run, reason)
    SELECT g.transfer_id, 'delivery', '{Delivery.PENDING}', '{Delivery.DELIVERED}', s.name, %(step_run)s,
        {ID.format("g")} || ' ' || g.to_state
    FROM gone g JOIN subscription s ON s.id = g.subscription ORDER BY g.id
)
SELECT count(*) FROM gone
"""

_REFUSED = f"""
WITH refusal AS (
    SELECT * FROM unnest(%(numbers)s::bigint[], %(problems)s::text[], %(waits)s::float8[])
        AS r(id, problem, wait_s)
), put_off AS (
    UPDATE outbox o SET tries = o.tries + 1, problem = r.problem, claimed_by = NULL,
        due_at = now() + make_interval(secs => coalesce(r.wait_s, 0)),
        dead_at = CASE WHEN r.wait_s IS NULL THEN now() END
    FROM refusal r WHERE o.id = r.id AND o.claimed_by = %(step_run)s
    RETURNING o.*
), event AS (
    INSERT INTO file_event (transfer_id, kind, from_state, to_state, subject, step_run, reason)
    SELECT p.transfer_id, 'delivery', '{Delivery.PENDING}', '{Delivery.DEAD}', s.name, %(step_run)s,
        {ID.format("p")} || ' ' || p.to_state || ': ' || p.problem
    FROM put_off p JOIN subscription s ON s.id = p.subscription WHERE p.dead_at IS NOT NULL ORDER BY p.id
)
SELECT count(*) FILTER (WHERE dead_at IS NULL), count(*) FILTER (WHERE dead_at IS NOT NULL) FROM put_off
"""

_GIVE_BACK = """
UPDATE outbox SET claimed_by = NULL, due_at = now() + make_interval(secs => %(wait_s)s)
WHERE id = ANY(%(numbers)s) AND claimed_by = %(step_run)s
"""

DUE = """
SELECT s.name FROM subscription s
WHERE s.state = 'active'
    AND NOT EXISTS (SELECT FROM subscription_health h WHERE h.subscription = s.id AND h.retry_at > now())
    AND EXISTS (SELECT FROM outbox o
        WHERE o.subscription = s.id AND o.dead_at IS NULL AND o.due_at <= now())
ORDER BY s.name
"""


def due_subscriptions(conn: Connection) -> list[str]:
    """Return the names of the subscribers to whom something can be told now."""
    return [name for (name,) in conn.execute(DUE)]


def claim(conn: Connection, subscription: int, *, at_most: int, lease_s: float, step_run: int) -> Claim:
    """Take messages that are due, the one due the longest first, at most one of each file."""
    with conn.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(
            _CLAIM,
            {"subscription": subscription, "at_most": at_most, "lease_s": lease_s, "step_run": step_run},
        ).fetchall()
    claimed = [row | {"names": _names(row)} for row in rows if row["outbox_id"] is not None]
    naming = Naming(conn, {row["names"] for row in claimed if row["names"]})
    messages = [Claimed(row["outbox_id"], row["tries"], _message(row, naming)) for row in claimed]
    return Claim(messages, rows[0]["blocked"])


def hold(conn: Connection, numbers: Collection[int], *, lease_s: float, step_run: int) -> set[int]:
    """Begin the lease anew, and return which of the messages are still ours to send."""
    rows = conn.execute(_HOLD, {"numbers": list(numbers), "lease_s": lease_s, "step_run": step_run})
    return {number for (number,) in rows}


def told(conn: Connection, numbers: Collection[int], *, step_run: int) -> int:
    """Take what the receiver took out of the outbox, each with its event; return how many."""
    row = conn.execute(_TOLD, {"numbers": list(numbers), "step_run": step_run}).fetchone()
    return int(row[0]) if row else 0


def refused(conn: Connection, refusals: Sequence[Refusal], *, step_run: int) -> tuple[int, int]:
    """Put off what the receiver refused; return how many go again later, and how many are dead now."""
    row = conn.execute(
        _REFUSED,
        {
            "numbers": [one.number for one in refusals],
            "problems": [one.problem for one in refusals],
            "waits": [one.wait_s for one in refusals],
            "step_run": step_run,
        },
    ).fetchone()
    return (int(row[0]), int(row[1])) if row else (0, 0)


def give_back(conn: Connection, numbers: Collection[int], *, wait_s: float = 0.0, step_run: int) -> None:
    """Let anybody send these messages (again) after so long; no try is used."""
    conn.execute(_GIVE_BACK, {"numbers": list(numbers), "wait_s": wait_s, "step_run": step_run})


def _names(row: Mapping[str, Any]) -> FileNames | None:
    names = [row[name] for name in FileNames._fields]
    return FileNames(*names) if names[0] is not None else None


def _message(row: Mapping[str, Any], naming: Naming) -> Message:
    file: dict[str, Any] = {name: row.get(name) for name in File.model_fields}
    if row["names"]:
        with suppress(Unresolvable):  # the message is none the worse for it
            file["destination_url"] = naming.destination(
                row["names"], row["destination_lfn"], row["username"], row["destination"]
            )
    return Message.model_construct(
        id=row["id"],
        type=message_type(row["event_kind"], row["state"]),
        timestamp=row["at"],
        state=row["state"],
        reason=row["reason"],
        data=File.model_construct(None, **file),
    )
