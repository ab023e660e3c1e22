"""Rules as this installation wants them, silences, and the channels that were last seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from psycopg import Connection
from psycopg.types.json import Jsonb

from asyncstageout.catalogue.config_changes import changing
from asyncstageout.core.alert_channels import AnyChannel
from asyncstageout.core.alert_rules import Rule, check_settings, matching, tuned
from asyncstageout.core.alerts import Silence

_PUT = """
INSERT INTO alert_rule (name, settings, updated_by) VALUES (%(rule)s, %(settings)s, %(by)s)
ON CONFLICT (name) DO UPDATE SET settings = excluded.settings, updated_by = excluded.updated_by,
    updated_at = now()
"""

_SILENCE = "id, rule, subject, reason, set_by, starts_at, ends_at, ended_at"

_ADD = f"""
INSERT INTO alert_silence (rule, subject, reason, set_by, updated_by, ends_at)
SELECT %(rule)s, %(subject)s, %(reason)s, %(by)s, %(by)s, %(ends_at)s WHERE %(ends_at)s::timestamptz > now()
RETURNING {_SILENCE}
"""

_END = f"""
UPDATE alert_silence SET ended_at = now(), updated_at = now(), updated_by = %(by)s
WHERE id = %(id)s AND ended_at IS NULL AND ends_at > now() RETURNING {_SILENCE}
"""

# Written only if something is different, which it hardly ever is.
_CHANNELS = """
WITH wanted AS (SELECT * FROM unnest(%(names)s::text[], %(settings)s::jsonb[]) AS w(name, settings)
), gone AS (DELETE FROM alert_channel WHERE name <> ALL(%(names)s::text[]))
INSERT INTO alert_channel AS c (name, settings) SELECT name, settings FROM wanted
ON CONFLICT (name) DO UPDATE SET settings = excluded.settings, seen_at = now()
WHERE c.settings IS DISTINCT FROM excluded.settings
"""


class SilenceInvalid(ValueError):
    """A silence cannot be set so."""

    def __init__(self, field: str, problem: str) -> None:
        self.field = field
        super().__init__(problem)


class SeenChannel(NamedTuple):
    """A channel as stageout_alerts last read it, and how it takes what it is told."""

    name: str
    settings: dict[str, Any]
    told_at: datetime | None
    """When it last took something."""
    waiting: int
    problem: str | None
    """Why it did not take what waits."""


def rules_in_force(conn: Connection) -> dict[str, Rule]:
    """Return all rules as they are wanted here."""
    return tuned(dict(conn.execute("SELECT name, settings FROM alert_rule").fetchall()))


def put_rule(conn: Connection, rule: str, changes: Mapping[str, Any], by: str) -> None:
    """Change settings of a rule; None takes one back to its default.

    Raises:
        RuleInvalid: there is no such rule, or it cannot be set so.
    """
    with changing(conn, by):
        row = conn.execute("SELECT settings FROM alert_rule WHERE name = %s FOR UPDATE", (rule,)).fetchone()
        settings = check_settings(rule, (row[0] if row else {}) | dict(changes))
        if settings:
            conn.execute(_PUT, {"rule": rule, "settings": Jsonb(settings), "by": by})
        else:
            conn.execute("DELETE FROM alert_rule WHERE name = %s", (rule,))


def add_silence(
    conn: Connection, rule: str, subject: str, *, reason: str, ends_at: datetime, by: str
) -> Silence:
    """Tell nobody of these alerts until then.

    Args:
        rule, subject: patterns with ``*``.

    Raises:
        SilenceInvalid: no rule fits, there is no reason, or it would have ended already.
    """
    if not matching(rule):
        raise SilenceInvalid("rule", f"no rule is called {rule}; `aso alerts rules` lists them")
    if not reason.strip():
        raise SilenceInvalid("reason", "a silence needs a reason: others will wonder")
    with changing(conn, by):
        values = {"rule": rule, "subject": subject, "reason": reason, "ends_at": ends_at, "by": by}
        row = conn.execute(_ADD, values).fetchone()
    if row is None:
        raise SilenceInvalid("ends_at", f"it would have ended already: {ends_at:%Y-%m-%d %H:%M} UTC")
    return Silence(*row)


def end_silence(conn: Connection, silence_id: int, by: str) -> Silence | None:
    """End a silence now; None: there is none in force."""
    with changing(conn, by):
        row = conn.execute(_END, {"id": silence_id, "by": by}).fetchone()
    return Silence(*row) if row else None


def silences_in_force(conn: Connection) -> list[Silence]:
    """Return the silences in force, those first that end first."""
    rows = conn.execute(
        f"SELECT {_SILENCE} FROM alert_silence WHERE ended_at IS NULL AND ends_at > now()"
        " ORDER BY ends_at, id"
    )
    return [Silence(*row) for row in rows]


def all_silences(conn: Connection, limit: int = 100) -> list[Silence]:
    """Return the last silences, also those that are over, the newest first."""
    rows = conn.execute(f"SELECT {_SILENCE} FROM alert_silence ORDER BY id DESC LIMIT %s", (limit,))
    return [Silence(*row) for row in rows]


def note_channels(conn: Connection, channels: Sequence[AnyChannel]) -> None:
    """Keep which channels there are, for the page and the commands."""
    settings = [Jsonb(channel.model_dump(mode="json")) for channel in channels]
    conn.execute(_CHANNELS, {"names": [channel.name for channel in channels], "settings": settings})


def seen_channels(conn: Connection) -> list[SeenChannel]:
    """Return the channels as stageout_alerts last read them."""
    rows = conn.execute("""
        SELECT c.name, c.settings,
            (SELECT max(told_at) FROM alert_message m WHERE m.channel = c.name), count(w.id),
            (array_agg(w.problem ORDER BY w.id) FILTER (WHERE w.problem IS NOT NULL))[1]
        FROM alert_channel c
            LEFT JOIN alert_message w ON w.channel = c.name AND w.told_at IS NULL AND w.dropped_at IS NULL
        GROUP BY c.name ORDER BY c.name
    """)
    return [SeenChannel(*row) for row in rows]
