"""Alerts as the catalogue keeps them: found, opened, over. One look is one transaction, and only one at once.

What is decided and what each channel is to be told of it is written together: a death before the commit
decides nothing, after it ``catalogue.alert_messages`` still sends everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from psycopg import Connection
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from asyncstageout.core.alerts import (
    About,
    Alert,
    Attention,
    Ending,
    Key,
    Kind,
    Opening,
    Seeing,
    Severity,
    State,
    Told,
)

_LOCK = 0x5A70
"""Who looks, looks alone."""

_KNOWN = """
SELECT id, rule, subject, state, severity, first_seen_at, last_seen_at FROM alert WHERE state <> 'over'
"""

_OPEN = """
WITH found AS (
    SELECT * FROM unnest(%(rules)s::text[], %(subjects)s::text[], %(states)s::text[],
        %(severities)s::smallint[],
        %(sentences)s::text[], %(remedies)s::text[], %(abouts)s::jsonb[], %(sinces)s::timestamptz[],
        %(first_seen)s::timestamptz[])
        AS f(rule, subject, state, severity, sentence, remedy, about, since, first_seen_at)
), made AS (
    INSERT INTO alert (rule, subject, state, severity, sentence, remedy, about, since, first_seen_at,
        last_seen_at,
        opened_at)
    SELECT rule, subject, state, severity, sentence, remedy, about, since, first_seen_at, %(now)s,
        CASE WHEN state = 'open' THEN %(now)s::timestamptz END
    FROM found ON CONFLICT DO NOTHING RETURNING *
), event AS (
    INSERT INTO alert_event (alert, kind, sentence, step_run)
    SELECT id, 'open', sentence, %(step_run)s FROM made WHERE state = 'open' ORDER BY id
)
SELECT id, rule, subject, state, severity, first_seen_at, last_seen_at FROM made
"""

# Compare and set: an alert that is over stays so, one that is open never becomes pending.
_SEE = """
WITH found AS (
    SELECT * FROM unnest(%(ids)s::bigint[], %(states)s::text[], %(severities)s::smallint[],
        %(sentences)s::text[],
        %(remedies)s::text[], %(abouts)s::jsonb[], %(sinces)s::timestamptz[])
        AS f(id, state, severity, sentence, remedy, about, since)
), old AS (
    SELECT a.id, a.state, a.severity FROM alert a JOIN found f USING (id) WHERE a.state <> 'over' FOR
        UPDATE OF a
), changed AS (
    UPDATE alert a SET severity = f.severity, sentence = f.sentence, remedy = f.remedy, about = f.about,
        since = f.since, last_seen_at = %(now)s,
        state = CASE WHEN a.state = 'open' THEN 'open' ELSE f.state END,
        opened_at = coalesce(a.opened_at, CASE WHEN f.state = 'open' THEN %(now)s::timestamptz END)
    FROM found f WHERE a.id = f.id AND a.id IN (SELECT id FROM old) RETURNING a.*
)
INSERT INTO alert_event (alert, kind, sentence, step_run)
SELECT c.id, CASE WHEN o.state = 'pending' THEN 'open' ELSE 'worse' END, c.sentence, %(step_run)s
FROM changed c JOIN old o USING (id)
WHERE c.state = 'open' AND (o.state = 'pending' OR c.severity > o.severity) ORDER BY c.id
"""

_END = """
WITH healed AS (DELETE FROM alert WHERE id = ANY(%(ids)s) AND state = 'pending'
), ended AS (
    UPDATE alert SET state = 'over', over_at = %(now)s WHERE id = ANY(%(ids)s) AND state = 'open' RETURNING *
), event AS (
    INSERT INTO alert_event (alert, kind, sentence, step_run)
    SELECT id, 'over', sentence, %(step_run)s FROM ended ORDER BY id
), message AS (
    -- Whoever was told, or was about to be, hears of the end; what nobody got is dropped before it is sent.
    INSERT INTO alert_message (alert, channel, kind, severity, sentence, made_at)
    SELECT DISTINCT e.id, m.channel, 'over', e.severity, e.sentence, %(now)s::timestamptz
    FROM ended e JOIN alert_message m ON m.alert = e.id
    WHERE m.dropped_at IS NULL AND m.channel = ANY(%(hear_the_end)s)
    ON CONFLICT DO NOTHING
)
SELECT id FROM ended
"""

# Also of alerts before: the quiet time belongs to the subject.
_TOLD = """
SELECT DISTINCT ON (a.rule, a.subject, m.channel) a.rule, a.subject, m.channel, m.alert, m.severity, m.made_at
FROM alert o JOIN alert a ON a.rule = o.rule AND a.subject = o.subject
    JOIN alert_message m ON m.alert = a.id
WHERE o.state = 'open' AND m.kind <> 'over' AND m.dropped_at IS NULL
    AND (a.id = o.id OR m.made_at > %(since)s)
ORDER BY a.rule, a.subject, m.channel, m.id DESC
"""

_MAKE = """
INSERT INTO alert_message (alert, channel, kind, severity, sentence, made_at)
SELECT a.id, m.channel, m.kind, a.severity, a.sentence, %(now)s
FROM unnest(%(alerts)s::bigint[], %(channels)s::text[], %(kinds)s::text[]) AS m(alert, channel, kind)
    JOIN alert a ON a.id = m.alert AND a.state = 'open'
-- What is on its way yet says as much.
WHERE NOT EXISTS (SELECT FROM alert_message w WHERE w.alert = m.alert AND w.channel = m.channel
    AND w.told_at IS NULL AND w.dropped_at IS NULL AND w.severity >= a.severity)
ON CONFLICT DO NOTHING
"""

_SHOWN = """
SELECT a.id AS alert_id, a.rule, a.subject, a.state, a.severity, a.sentence, a.remedy, a.about, a.since,
    a.first_seen_at, a.last_seen_at, a.opened_at, a.over_at,
    (SELECT max(told_at) FROM alert_message m WHERE m.alert = a.id) AS told_at,
    (SELECT coalesce(array_agg(DISTINCT channel ORDER BY channel), '{}') FROM alert_message m
        WHERE m.alert = a.id AND told_at IS NOT NULL) AS channels
FROM alert a
"""


class Wish(NamedTuple):
    """A message that a channel is to get."""

    alert_id: int
    channel: str
    kind: Kind


@dataclass(frozen=True, slots=True)
class AlertView:
    """An alert as people see it."""

    alert_id: int
    rule: str
    subject: str
    state: str
    severity: int
    sentence: str
    remedy: str
    about: dict[str, Any]
    since: datetime | None
    first_seen_at: datetime
    last_seen_at: datetime
    opened_at: datetime | None
    over_at: datetime | None
    told_at: datetime | None
    channels: list[str]
    """Those that were told."""

    @property
    def key(self) -> Key:
        return Key(self.rule, self.subject)

    @property
    def place(self) -> About:
        return About(self.about["kind"], tuple(self.about["names"]))


class AlertEvent(NamedTuple):
    """One thing that became of an alert."""

    at: datetime
    kind: str
    channel: str | None
    sentence: str
    step_run: int


def looks_alone(conn: Connection) -> bool:
    """Return whether nobody else looks at this moment; holds until the end of the transaction."""
    row = conn.execute("SELECT pg_try_advisory_xact_lock(%s)", (_LOCK,)).fetchone()
    return bool(row and row[0])


def known_alerts(conn: Connection) -> list[Alert]:
    """Return those that are pending or open."""
    return [_alert(row) for row in conn.execute(_KNOWN)]


def open_alerts(conn: Connection, found: Sequence[Opening], *, now: datetime, step_run: int) -> list[Alert]:
    """Write alerts that are new; return them."""
    values = _columns([one.finding for one in found]) | {
        "rules": [one.finding.rule for one in found],
        "subjects": [one.finding.subject for one in found],
        "states": [one.state.value for one in found],
        "first_seen": [one.first_seen_at for one in found],
        "now": now,
        "step_run": step_run,
    }
    return [_alert(row) for row in conn.execute(_OPEN, values)] if found else []


def see_alerts(conn: Connection, found: Sequence[Seeing], *, now: datetime, step_run: int) -> None:
    """Note that alerts are there still, and how they are now."""
    if found:
        values = _columns([one.finding for one in found]) | {
            "ids": [one.alert.alert_id for one in found],
            "states": [one.state.value for one in found],
            "now": now,
            "step_run": step_run,
        }
        conn.execute(_SEE, values)


def end_alerts(
    conn: Connection, found: Sequence[Ending], hear_the_end: Sequence[str], *, now: datetime, step_run: int
) -> int:
    """End alerts, forget those that were pending; return how many were open.

    Args:
        hear_the_end: names of the channels that are told so, if they were told of the alert.
    """
    if not found:
        return 0
    values = {
        "ids": [one.alert.alert_id for one in found],
        "hear_the_end": list(hear_the_end),
        "now": now,
        "step_run": step_run,
    }
    return len(conn.execute(_END, values).fetchall())


def last_told(conn: Connection, since: datetime) -> dict[tuple[Key, str], Told]:
    """Return what each channel was last told of the subjects of open alerts, or is about to be told."""
    return {
        (Key(rule, subject), channel): Told(alert_id, Severity(severity), at)
        for rule, subject, channel, alert_id, severity, at in conn.execute(_TOLD, {"since": since})
    }


def make_messages(conn: Connection, wishes: Sequence[Wish], *, now: datetime) -> int:
    """Write what channels are to be told of open alerts; each alert is opened once to each channel."""
    if not wishes:
        return 0
    ids, channels, kinds = zip(*wishes, strict=True)
    values = {
        "alerts": list(ids),
        "channels": list(channels),
        "kinds": [kind.value for kind in kinds],
        "now": now,
    }
    return conn.execute(_MAKE, values).rowcount


def open_views(conn: Connection, *, pending: bool = False) -> list[AlertView]:
    """Return open alerts, the gravest first; with ``pending`` also those that nobody is told of yet."""
    states = ["open", "pending"] if pending else ["open"]
    return _views(
        conn, "WHERE state = ANY(%s) AND state <> 'over' ORDER BY severity DESC, first_seen_at, id", states
    )


def over_views(conn: Connection, limit: int = 50) -> list[AlertView]:
    """Return alerts that are over, the last first."""
    return _views(conn, "WHERE state = 'over' ORDER BY over_at DESC, id DESC LIMIT %s", limit)


def alert_view(conn: Connection, alert_id: int) -> AlertView | None:
    found = _views(conn, "WHERE id = %s", alert_id)
    return found[0] if found else None


def alert_events(conn: Connection, alert_id: int) -> list[AlertEvent]:
    """Return what became of an alert, in its order."""
    rows = conn.execute(
        "SELECT at, kind, channel, sentence, step_run FROM alert_event WHERE alert = %s ORDER BY id",
        (alert_id,),
    )
    return [AlertEvent(*row) for row in rows]


def _views(conn: Connection, condition: str, value: object) -> list[AlertView]:
    with conn.cursor(row_factory=class_row(AlertView)) as cursor:
        return cursor.execute(_SHOWN + condition, (value,)).fetchall()


def _columns(findings: Sequence[Attention]) -> dict[str, Any]:
    return {
        "severities": [one.severity.value for one in findings],
        "sentences": [one.sentence for one in findings],
        "remedies": [one.remedy for one in findings],
        "abouts": [Jsonb({"kind": one.about.kind, "names": list(one.about.names)}) for one in findings],
        "sinces": [one.since for one in findings],
    }


def _alert(row: tuple[Any, ...]) -> Alert:
    alert_id, rule, subject, state, severity, first_seen_at, last_seen_at = row
    return Alert(alert_id, Key(rule, subject), State(state), Severity(severity), first_seen_at, last_seen_at)
