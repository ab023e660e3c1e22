"""How links fare, minute by minute, and the breakers of those on which nothing starts but probes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from psycopg import Connection

from asyncstageout.catalogue.identity_holds import holds
from asyncstageout.catalogue.policies import policy_rows
from asyncstageout.catalogue.restrictions import restrictions_in_force
from asyncstageout.core.breaker import WINDOW_S, Breaker, BreakerState, Score
from asyncstageout.core.failures import SPEAKS_OF_LINK
from asyncstageout.core.identities import Identity
from asyncstageout.core.planning import Link
from asyncstageout.core.policies import Policies
from asyncstageout.core.restrictions import Restrictions

_BREAKER_LOCK = 0x5A53
KEPT_S = 3600
"""Older minutes of a link go when it is counted again."""

# In one order, so that two updates at once never wait for each other.
_COUNT = """
WITH seen AS (
    SELECT * FROM unnest(
        %(sources)s::text[], %(destinations)s::text[], %(succeeded)s::integer[], %(failed)s::integer[]
    ) AS s(source, destination, succeeded, failed)
), old AS (
    DELETE FROM link_window w USING seen s
    WHERE w.source = s.source AND w.destination = s.destination
        AND w.minute < now() - make_interval(secs => %(kept_s)s)
)
INSERT INTO link_window AS w (source, destination, minute, succeeded, failed)
SELECT source, destination, date_trunc('minute', now()), succeeded, failed FROM seen
ORDER BY source, destination
ON CONFLICT (source, destination, minute) DO UPDATE
    SET succeeded = w.succeeded + excluded.succeeded, failed = w.failed + excluded.failed
"""

# The files of a probe are those of the jobs planned since it began: nothing else starts meanwhile.
_HEALTH = """
WITH link AS (
    SELECT * FROM unnest(%(sources)s::text[], %(destinations)s::text[]) AS l(source, destination)
    UNION SELECT source, destination FROM link_breaker
)
SELECT l.source, l.destination, b.state, b.reason, b.openings, b.opened_at, b.probe_at,
    recent.succeeded, recent.failed, probe.succeeded, probe.failed, probe.pending
FROM link l LEFT JOIN link_breaker b USING (source, destination)
CROSS JOIN LATERAL (
    SELECT coalesce(sum(w.succeeded), 0)::integer AS succeeded, coalesce(sum(w.failed), 0)::integer AS failed
    FROM link_window w WHERE w.source = l.source AND w.destination = l.destination
        AND w.minute >= now() - make_interval(secs => %(window_s)s)
        AND w.minute >= coalesce(b.opened_at, '-infinity')
) recent
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE t.state = 'DONE') AS succeeded,
        count(*) FILTER (WHERE t.state IN ('RETRY', 'FAILED') AND t.failure_category = ANY(%(speaking)s))
            AS failed,
        count(*) FILTER (WHERE t.state IN ('ACQUIRED', 'SUBMITTED') AND t.fts_job = j.sid) AS pending
    FROM fts_job j CROSS JOIN LATERAL unnest(j.transfer_ids) AS u(id) JOIN transfer t ON t.id = u.id
    WHERE b.state = 'probing' AND j.source = l.source AND j.destination = l.destination
        AND j.planned_at >= b.probe_at AND j.state <> 'REFUSED'
) probe
"""


@dataclass(frozen=True, slots=True)
class LinkHealth:
    """What a decision on a link's breaker needs."""

    link: Link
    breaker: Breaker | None
    recent: Score
    probe: Score


def lock_breakers(conn: Connection) -> None:
    """Let one update at a time decide on breakers; released at the end of the open transaction."""
    conn.execute("SELECT pg_advisory_xact_lock(%s)", (_BREAKER_LOCK,))


def count_ended(conn: Connection, ended: Mapping[Link, Score]) -> None:
    """Add attempts that ended now to the minutes of their links."""
    conn.execute(
        _COUNT,
        {
            **_columns(ended),
            "succeeded": [score.succeeded for score in ended.values()],
            "failed": [score.failed for score in ended.values()],
            "kept_s": KEPT_S,
        },
    )


def health_of(conn: Connection, links: Collection[Link]) -> list[LinkHealth]:
    """Return the health of these links, and of all that have a breaker."""
    speaking = [category.value for category in SPEAKS_OF_LINK]
    rows = conn.execute(_HEALTH, {**_columns(links), "window_s": WINDOW_S, "speaking": speaking})
    return [
        LinkHealth(
            Link(source, destination),
            Breaker(BreakerState(breaker[0]), *breaker[1:]) if breaker[0] else None,
            Score(*scores[:2]),
            Score(*scores[2:]),
        )
        for source, destination, *columns in rows
        for breaker, scores in [(columns[:5], columns[5:])]
    ]


def breakers(conn: Connection) -> dict[Link, Breaker]:
    """Return the breakers of all links that have one."""
    rows = conn.execute(
        "SELECT source, destination, state, reason, openings, opened_at, probe_at FROM link_breaker"
    )
    return {
        Link(source, destination): Breaker(BreakerState(state), *rest)
        for source, destination, state, *rest in rows
    }


def why_waiting(
    conn: Connection, link: Link, identity: str, now: datetime, activity: str = "default"
) -> str | None:
    """Return why no cycle takes a file of this link, owner and activity, or None if one does.

    Args:
        identity: whose file it is; the policy says in whose name it travels.
    """
    owner = Identity.read(identity)
    if stop := Restrictions(restrictions_in_force(conn), now).stops(*link, owner.username, activity):
        return stop.sentence()
    if breaker := breakers(conn).get(link):
        return breaker.sentence(now)
    policy = Policies(policy_rows(conn)).of(*link, owner.username, activity)
    actor = str(owner if policy.credential == "user" else owner.of_service())
    return next((hold.sentence() for hold in holds(conn) if hold.identity == actor), None)


def open_breaker(conn: Connection, link: Link, *, reason: str, openings: int, wait_s: float) -> None:
    """Open a link's breaker, or open it again after a probe; nothing starts for ``wait_s``."""
    conn.execute(
        """
        INSERT INTO link_breaker AS b (source, destination, state, reason, openings, probe_at)
        VALUES (%s, %s, 'open', %s, %s, now() + make_interval(secs => %s))
        ON CONFLICT (source, destination) DO UPDATE
            SET state = 'open', reason = excluded.reason, openings = excluded.openings,
                probe_at = excluded.probe_at
        """,
        (*link, reason, openings, wait_s),
    )


def start_probes(conn: Connection, links: Sequence[Link]) -> None:
    """Record that probes of these links start now, in the transaction that plans their files."""
    conn.execute(
        "UPDATE link_breaker b SET state = 'probing', probe_at = now()"
        " FROM unnest(%(sources)s::text[], %(destinations)s::text[]) AS l(source, destination)"
        " WHERE b.source = l.source AND b.destination = l.destination AND b.state = 'open'",
        _columns(links),
    )


def close_breaker(conn: Connection, link: Link) -> None:
    """Let a link go again; what was counted before says nothing about it any more."""
    conn.execute("DELETE FROM link_breaker WHERE source = %s AND destination = %s", link)
    conn.execute("DELETE FROM link_window WHERE source = %s AND destination = %s", link)


def _columns(links: Collection[Link]) -> dict[str, list[str]]:
    return {
        "sources": [link.source for link in links],
        "destinations": [link.destination for link in links],
    }
