"""The queue of temporary copies: what is due at which site, who deletes it now, and what became of it.

Triggers keep it (migration 0007): a copy comes in when its file ends, and leaves when the file goes on its
way again. A claim says of the file, in the same statement, that its copy is being deleted (``cleaned_at``):
from then on nobody sends the file again. Everywhere, files are locked before their copies.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import NamedTuple

from psycopg import Connection

from asyncstageout.core.cleaning import Copy, Outcome
from asyncstageout.core.states import TransferState

COUNTED_UP_TO = 10_000
"""Due copies of a site are counted up to here: enough to share the work out."""


class SiteDue(NamedTuple):
    """A site with copies that are due."""

    site: str
    copies: int
    """At most :data:`COUNTED_UP_TO`."""


class Word(NamedTuple):
    """What became of one copy that was claimed."""

    copy: Copy
    outcome: Outcome
    tries: int
    due_at: datetime | None = None
    """When it may be looked at again, if it is."""
    storage: str | None = None
    """Host, for the event."""
    reason: str | None = None


# One index probe per site, however many copies wait.
SITES_WITH_COPIES = """
copy_site AS (
    (SELECT source AS site FROM cleaning ORDER BY source LIMIT 1)
    UNION ALL
    SELECT (SELECT c.source FROM cleaning c WHERE c.source > s.site ORDER BY c.source LIMIT 1)
    FROM copy_site s WHERE s.site IS NOT NULL
)
"""

_DUE_SITES = f"""
WITH RECURSIVE {SITES_WITH_COPIES}
SELECT s.site, d.copies FROM copy_site s CROSS JOIN LATERAL (
    SELECT count(*) AS copies FROM (
        SELECT FROM cleaning c WHERE c.source = s.site AND c.due_at <= now()
            AND (%(username)s::text IS NULL OR c.username = %(username)s)
        LIMIT %(at_most)s
    ) due
) d LEFT JOIN cleaning_site p ON p.site = s.site
WHERE d.copies > 0 AND (%(site)s::text IS NULL OR s.site = %(site)s)
    AND (%(paused_too)s OR p.paused_until IS NULL OR p.paused_until <= now())
ORDER BY d.copies DESC, s.site
"""

_DUE_COPIES = """
SELECT c.transfer_id, c.source, c.source_lfn, c.destination, c.username, c.identity, c.activity, c.size_bytes,
    c.known_at, c.ended_as::text, c.ended_at, c.awaits_publication, c.tries,
    EXISTS (SELECT FROM transfer o WHERE o.destination_lfn = c.source_lfn AND o.destination = c.source
            AND o.state NOT IN ('FAILED', 'KILLED'))
        OR EXISTS (SELECT FROM transfer_history o WHERE o.destination_lfn = c.source_lfn
            AND o.destination = c.source AND o.state = 'DONE')
FROM cleaning c
WHERE c.source = %(site)s AND c.due_at <= now()
    AND (%(username)s::text IS NULL OR c.username = %(username)s)
ORDER BY c.due_at LIMIT %(at_most)s
"""

_TAKE_SITE = """
INSERT INTO cleaning_site AS s (site, step_run, busy_until)
VALUES (%(site)s, %(step_run)s, now() + make_interval(secs => %(lease_s)s))
ON CONFLICT (site) DO UPDATE SET step_run = excluded.step_run, busy_until = excluded.busy_until
    WHERE s.step_run = excluded.step_run OR s.busy_until IS NULL OR s.busy_until < now()
"""

# What somebody else is busy with is passed over, so that nobody waits for anybody.
_LOOK_AGAIN = """
UPDATE cleaning c SET due_at = now() FROM (
    SELECT transfer_id, source FROM cleaning
    WHERE state = 'WAITING' AND tries = 0 AND due_at > now()
        AND (%(site)s::text IS NULL OR source = %(site)s)
        AND (%(username)s::text IS NULL OR username = %(username)s)
    FOR UPDATE SKIP LOCKED
) w WHERE c.transfer_id = w.transfer_id AND c.source = w.source
"""

_POSTPONE = """
UPDATE cleaning c SET due_at = w.due_at
FROM unnest(%(ids)s::bigint[], %(sites)s::text[], %(ended)s::timestamptz[], %(dues)s::timestamptz[])
    AS w(id, site, ended_at, due_at)
WHERE c.transfer_id = w.id AND c.source = w.site AND c.ended_at = w.ended_at AND c.due_at <= now()
"""

# A file that is nowhere was forgotten with its history: nobody can send it again.
_CLAIM = """
WITH wanted AS (
    SELECT * FROM unnest(%(ids)s::bigint[], %(sites)s::text[], %(ended)s::timestamptz[])
        AS w(id, site, ended_at)
), live AS MATERIALIZED (
    SELECT id FROM transfer WHERE id = ANY(%(ids)s) AND ended_at IS NOT NULL
    ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
), past AS MATERIALIZED (
    SELECT id FROM transfer_history WHERE id = ANY(%(ids)s) ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
), ended AS (
    SELECT id FROM live UNION SELECT id FROM past UNION
    SELECT w.id FROM wanted w WHERE NOT EXISTS (SELECT FROM transfer t WHERE t.id = w.id)
        AND NOT EXISTS (SELECT FROM transfer_history h WHERE h.id = w.id)
), claimed AS (
    UPDATE cleaning c SET state = 'DELETING', step_run = %(step_run)s,
        due_at = now() + make_interval(secs => %(lease_s)s)
    FROM wanted w JOIN ended USING (id)
    WHERE c.transfer_id = w.id AND c.source = w.site AND c.ended_at = w.ended_at AND c.due_at <= now()
    RETURNING c.transfer_id, c.source
), marked AS (
    UPDATE transfer t SET cleaned_at = clock_timestamp()
    FROM claimed c WHERE t.id = c.transfer_id AND t.source = c.source
), marked_past AS (
    UPDATE transfer_history h SET cleaned_at = clock_timestamp()
    FROM claimed c WHERE h.id = c.transfer_id AND h.source = c.source
)
SELECT transfer_id, source FROM claimed
"""

# What was done is put on record also if somebody else has the copy now, or its file is on its way again.
_SETTLE = """
WITH word AS (
    SELECT * FROM unnest(%(ids)s::bigint[], %(sites)s::text[], %(outcomes)s::text[], %(tries)s::smallint[],
        %(dues)s::timestamptz[], %(storages)s::text[], %(reasons)s::text[])
        AS w(id, site, outcome, tries, due_at, storage, reason)
), live AS MATERIALIZED (
    SELECT id FROM transfer WHERE id = ANY(%(ids)s) ORDER BY id FOR NO KEY UPDATE
), past AS MATERIALIZED (
    SELECT id FROM transfer_history WHERE id = ANY(%(ids)s) ORDER BY id FOR NO KEY UPDATE
), mine AS MATERIALIZED (
    SELECT w.*, c.failed_at FROM word w JOIN cleaning c ON c.transfer_id = w.id AND c.source = w.site
    WHERE c.step_run = %(step_run)s
        AND (SELECT count(*) FROM live) + (SELECT count(*) FROM past) >= 0  -- they are locked first
    ORDER BY c.transfer_id FOR UPDATE OF c
), over AS (
    DELETE FROM cleaning c USING mine m
    WHERE c.transfer_id = m.id AND c.source = m.site AND m.outcome IN ('DELETED', 'GONE', 'LEFT')
), kept AS (
    UPDATE cleaning c SET step_run = NULL, tries = m.tries, due_at = m.due_at,
        reason = coalesce(m.reason, c.reason),
        state = CASE WHEN m.outcome = 'FAILED' OR c.failed_at IS NOT NULL THEN 'FAILED' ELSE 'WAITING' END,
        failed_at = CASE WHEN m.outcome = 'FAILED' THEN coalesce(c.failed_at, now()) ELSE c.failed_at END
    FROM mine m WHERE c.transfer_id = m.id AND c.source = m.site AND m.outcome IN ('FAILED', 'WAITING')
), there AS (
    UPDATE transfer t SET cleaned_at = NULL
    FROM mine m WHERE t.id = m.id AND t.source = m.site AND m.outcome NOT IN ('DELETED', 'GONE')
), there_past AS (
    UPDATE transfer_history h SET cleaned_at = NULL
    FROM mine m WHERE h.id = m.id AND h.source = m.site AND m.outcome NOT IN ('DELETED', 'GONE')
)
INSERT INTO file_event (transfer_id, kind, from_state, to_state, subject, step_run, reason)
SELECT w.id, 'cleaning', 'DELETING', w.outcome, coalesce(w.storage, w.site), %(step_run)s, w.reason
FROM word w LEFT JOIN mine m USING (id, site)
WHERE w.outcome IN ('DELETED', 'GONE', 'LEFT')
    OR (w.outcome = 'FAILED' AND m.id IS NOT NULL AND m.failed_at IS NULL)
ORDER BY w.id
"""

_PAUSE_SITE = """
UPDATE cleaning_site SET paused_until = %(until)s, failing_since = coalesce(failing_since, now()),
    pauses = pauses + 1, reason = %(reason)s
WHERE site = %(site)s
"""


def due_sites(
    conn: Connection, *, site: str | None = None, username: str | None = None, paused_too: bool = False
) -> list[SiteDue]:
    """Return the sites with copies that are due, the one with most first."""
    values = {"site": site, "username": username, "paused_too": paused_too, "at_most": COUNTED_UP_TO}
    return [SiteDue(*row) for row in conn.execute(_DUE_SITES, values)]


def due_copies(conn: Connection, site: str, *, at_most: int, username: str | None = None) -> list[Copy]:
    """Return the copies at a site that are due the longest."""
    rows = conn.execute(_DUE_COPIES, {"site": site, "username": username, "at_most": at_most})
    return [Copy._make((*row[:9], TransferState(row[9]), *row[10:])) for row in rows]


def take_site(conn: Connection, site: str, *, step_run: int, lease_s: float) -> bool:
    """Take or keep a site to delete there; return whether it is ours: one step at a time works at a site."""
    values = {"site": site, "step_run": step_run, "lease_s": lease_s}
    return conn.execute(_TAKE_SITE, values).rowcount > 0


def leave_sites(conn: Connection, step_run: int) -> None:
    """Give the sites back that a step took."""
    conn.execute(
        "UPDATE cleaning_site SET step_run = NULL, busy_until = NULL WHERE step_run = %s", (step_run,)
    )


def pause_site(conn: Connection, site: str, *, until: datetime, reason: str) -> None:
    """Leave a storage alone that does not answer, or refuses everything."""
    conn.execute(_PAUSE_SITE, {"site": site, "until": until, "reason": reason})


def pauses_of(conn: Connection, site: str) -> int:
    """Return how many pauses a site has had since it last answered."""
    row = conn.execute("SELECT pauses FROM cleaning_site WHERE site = %s", (site,)).fetchone()
    return int(row[0]) if row else 0


def site_answers(conn: Connection, site: str) -> None:
    """Note that a storage answers."""
    conn.execute(
        "UPDATE cleaning_site SET paused_until = NULL, failing_since = NULL, pauses = 0, reason = NULL"
        " WHERE site = %s AND failing_since IS NOT NULL",
        (site,),
    )


def look_again(conn: Connection, *, site: str | None, username: str | None) -> int:
    """Make the copies due that wait for their time, so that the policy is asked anew; return how many."""
    return conn.execute(_LOOK_AGAIN, {"site": site, "username": username}).rowcount


def postpone(conn: Connection, copies: Sequence[tuple[Copy, datetime]]) -> None:
    """Look at copies again at these times."""
    if copies:
        conn.execute(
            _POSTPONE, _these([copy for copy, _ in copies]) | {"dues": [due_at for _, due_at in copies]}
        )


def claim(conn: Connection, copies: Sequence[Copy], *, step_run: int, lease_s: float) -> list[Copy]:
    """Claim copies for deletion; return those that are this step's: still due, and of files that have ended.

    A claim ends after ``lease_s``: if its step died, another one goes on.
    """
    if not copies:
        return []
    values = {"step_run": step_run, "lease_s": lease_s}
    claimed = set(conn.execute(_CLAIM, _these(copies) | values).fetchall())
    return [copy for copy in copies if (copy.transfer_id, copy.source) in claimed]


def settle(conn: Connection, words: Collection[Word], step_run: int) -> None:
    """Write down what became of claimed copies, with an event for each that has come to an end."""
    if not words:
        return
    conn.execute(
        _SETTLE,
        {
            **_these([word.copy for word in words]),
            "outcomes": [word.outcome.value for word in words],
            "tries": [word.tries for word in words],
            "dues": [word.due_at for word in words],
            "storages": [word.storage for word in words],
            "reasons": [word.reason for word in words],
            "step_run": step_run,
        },
    )


def _these(copies: Sequence[Copy]) -> dict[str, object]:
    return {
        "ids": [copy.transfer_id for copy in copies],
        "sites": [copy.source for copy in copies],
        "ended": [copy.ended_at for copy in copies],
    }
