"""What channels still have to hear of alerts: claimed, told, put off. Each message at least once, in order.

A claim is a short transaction that names the step run which sends, and moves ``due_at`` to the end of its
lease: nothing is open while a mail server thinks, and a death gives everything back by itself. A message that
was sent and not recorded is sent again, with the same id.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from psycopg import Connection

from asyncstageout.core.alerts import About, Kind, Notice, Severity

MOST_AT_ONCE = 50
"""In one mail."""
FIRST_WAIT_S, LONGEST_WAIT_S = 60.0, 1800.0
_LOCK = 0x5A71

_FATE = """
UPDATE alert_message m SET dropped_at = now()
FROM alert_message o LEFT JOIN alert a ON a.id = o.alert
WHERE m.id = o.id AND m.told_at IS NULL AND m.dropped_at IS NULL
    AND (m.claimed_by IS NULL OR m.due_at <= now()) AND (
        -- What is over is not told as news; its end is told to those who may have heard of it.
        (a.state = 'over' AND m.kind <> 'over')
        OR (m.kind = 'over' AND NOT EXISTS (
            SELECT FROM alert_message b WHERE b.alert = m.alert AND b.channel = m.channel AND b.kind <> 'over'
                AND (b.told_at IS NOT NULL OR b.maybe_told)))
        OR (m.kind = 'test' AND m.made_at < now() - interval '1 hour')
        OR (m.channel <> ALL(%(channels)s) AND m.made_at < now() - interval '1 day'))
RETURNING m.alert, m.channel, m.kind
"""

_DROP = f"""
WITH dropped AS ({_FATE})
INSERT INTO alert_event (alert, kind, channel, sentence, step_run)
SELECT alert, 'dropped', channel, kind, %(step_run)s FROM dropped WHERE alert IS NOT NULL ORDER BY alert
"""

_DUE = """
SELECT DISTINCT channel FROM alert_message
WHERE told_at IS NULL AND dropped_at IS NULL AND due_at <= now() AND channel = ANY(%s)
"""

# Who sends to a channel sends alone, or an end could overtake its beginning.
_CLAIM = """
WITH due AS (
    SELECT id FROM alert_message
    WHERE channel = %(channel)s AND told_at IS NULL AND dropped_at IS NULL AND due_at <= now()
        AND NOT EXISTS (SELECT FROM alert_message b WHERE b.channel = %(channel)s AND b.told_at IS NULL
            AND b.dropped_at IS NULL AND b.claimed_by IS NOT NULL AND b.due_at > now())
    ORDER BY id LIMIT %(at_most)s
), claimed AS (
    UPDATE alert_message SET claimed_by = %(step_run)s, maybe_told = true,
        due_at = now() + make_interval(secs => %(lease_s)s)
    WHERE id IN (SELECT id FROM due) RETURNING *
)
SELECT m.id, m.alert, m.kind, m.severity, m.sentence, a.rule, a.subject, a.remedy, a.about,
    coalesce(a.since, a.first_seen_at, m.made_at), a.over_at
FROM claimed m LEFT JOIN alert a ON a.id = m.alert ORDER BY m.id
"""

_TOLD = """
WITH told AS (
    UPDATE alert_message SET told_at = now(), problem = NULL
    WHERE id = ANY(%(ids)s) AND claimed_by = %(step_run)s AND told_at IS NULL RETURNING *
), event AS (
    INSERT INTO alert_event (alert, kind, channel, sentence, step_run)
    SELECT alert, 'told', channel, kind, %(step_run)s FROM told WHERE alert IS NOT NULL ORDER BY id
)
SELECT count(*) FROM told
"""

_REFUSED = f"""
WITH refused AS (
    UPDATE alert_message SET claimed_by = NULL, tries = tries + 1, problem = %(problem)s,
        maybe_told = %(maybe_told)s,
        due_at = now() + make_interval(secs => least({FIRST_WAIT_S} * 2 ^ least(tries, 10), {LONGEST_WAIT_S}))
    WHERE id = ANY(%(ids)s) AND claimed_by = %(step_run)s AND told_at IS NULL RETURNING *
), event AS (
    INSERT INTO alert_event (alert, kind, channel, sentence, step_run)
    SELECT alert, 'refused', channel, %(problem)s, %(step_run)s FROM refused
    WHERE alert IS NOT NULL AND tries = 1 ORDER BY id
)
SELECT coalesce(max(tries), 0) FROM refused
"""

_OUTCOME = """
SELECT channel, told_at, problem, dropped_at FROM alert_message WHERE id = ANY(%s) ORDER BY channel
"""


class Outcome(NamedTuple):
    """What became of a test message."""

    channel: str
    told_at: datetime | None
    problem: str | None
    dropped_at: datetime | None


def drop_stale(conn: Connection, channels: Collection[str], *, step_run: int) -> None:
    """Drop messages that nobody needs any more.

    Args:
        channels: names of those there are; what waits for others waits a day, should they come back.
    """
    conn.execute(_DROP, {"channels": list(channels), "step_run": step_run})


def due_channels(conn: Connection, channels: Collection[str]) -> set[str]:
    """Return for which channels something is due."""
    return {name for (name,) in conn.execute(_DUE, (list(channels),))}


def claim(conn: Connection, channel: str, *, lease_s: float, step_run: int) -> list[Notice]:
    """Return what is due for a channel, in order, ours to send for a while; nothing if another sends."""
    values = {"channel": channel, "at_most": MOST_AT_ONCE, "lease_s": lease_s, "step_run": step_run}
    with conn.transaction():
        conn.execute("SELECT pg_advisory_xact_lock(%s, hashtext(%s))", (_LOCK, channel))
        return [_notice(row) for row in conn.execute(_CLAIM, values)]


def told(conn: Connection, ids: Sequence[int], *, step_run: int) -> int:
    """Record that a channel took messages; return how many were still ours."""
    row = conn.execute(_TOLD, {"ids": list(ids), "step_run": step_run}).fetchone()
    return int(row[0]) if row else 0


def refused(conn: Connection, ids: Sequence[int], *, problem: str, maybe_told: bool, step_run: int) -> int:
    """Record that a channel took nothing, as far as is known, and send again later; return the most tries."""
    values = {"ids": list(ids), "problem": problem, "maybe_told": maybe_told, "step_run": step_run}
    row = conn.execute(_REFUSED, values).fetchone()
    return int(row[0]) if row else 0


def make_test(conn: Connection, sentence: str, channel: str | None = None) -> list[int]:
    """Have a channel, or all of them, be told something; return the numbers of the messages."""
    rows = conn.execute(
        "INSERT INTO alert_message (channel, kind, severity, sentence, made_at)"
        " SELECT name, 'test', %(severity)s, %(sentence)s, now() FROM alert_channel"
        " WHERE %(channel)s::text IS NULL OR name = %(channel)s ORDER BY name RETURNING id",
        {"severity": Severity.NOTE.value, "sentence": sentence, "channel": channel},
    )
    return [number for (number,) in rows]


def outcomes(conn: Connection, ids: Sequence[int]) -> list[Outcome]:
    """Return what became of messages."""
    return [Outcome(*row) for row in conn.execute(_OUTCOME, (list(ids),))]


def _notice(row: tuple[Any, ...]) -> Notice:
    message_id, alert_id, kind, severity, sentence, rule, subject, remedy, about, since, over_at = row
    place = About(about["kind"], tuple(about["names"])) if about else About("nothing")
    return Notice(
        message_id, alert_id, Kind(kind), Severity(severity), sentence, rule or "test", subject or "",
        remedy or "", place, since, over_at,
    )  # fmt: skip
