"""Proves from the catalogue alone that nothing is lost, doubled or forgotten: one query for each invariant.

Reads only, in one snapshot, so it may run at any time beside everything else. What is under way is always
looked at whole; what has ended only as far as ``since`` asks for. Of a file that arrived before the days of
which there are events (``horizon``) the first may be gone; from the first that is left on its line must hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from time import monotonic
from typing import NamedTuple

from psycopg import Connection, IsolationLevel

from asyncstageout.catalogue.outbox import ID
from asyncstageout.catalogue.repairs import LEAK_S, LEAKS, UNBLOCKED
from asyncstageout.catalogue.retention import gone_until
from asyncstageout.catalogue.transitions import LEGAL_MOVES
from asyncstageout.core.crab import OWN_WORKER
from asyncstageout.core.states import (
    PUBLICATION_ARRIVALS,
    PUBLICATION_TRANSITIONS,
    TransferState,
    is_legal,
)

ARRIVALS = sorted(state.value for state in TransferState if is_legal(None, state))
PUBLICATION_MOVES = sorted(
    f"{start}>{end}" for start, ends in PUBLICATION_TRANSITIONS.items() for end in ends
)
OPEN = "('ACQUIRED', 'SUBMITTED', 'KILL')"
FINAL = "('DONE', 'FAILED', 'KILLED')"
LIVING = "('PLANNED', 'SUBMITTED')"


class Invariant(NamedTuple):
    """What must always be true, and the query for where it is not: (file or job, what is wrong).

    What somebody outside moves (``transfer.driver``) is in no FTS job of ours.
    """

    name: str
    proves: str
    query: str


# Every file wherever it is, and every file's events in their order.
_FILE = """
file AS (
    SELECT id, request_id, state, attempt, fts_job, driver, created_at, ended_at, publication,
        already_there, false AS archived
    FROM transfer WHERE {id}
    UNION ALL
    SELECT id, request_id, state, attempt, fts_job, driver, created_at, ended_at, publication,
        already_there, true
    FROM transfer_history WHERE {id}
)
"""
_LINE = """
line AS (
    SELECT e.*, lag(to_state) OVER events AS before, lead(id) OVER events IS NULL AS is_last
    FROM transfer_event e WHERE {transfer_id} WINDOW events AS (PARTITION BY transfer_id ORDER BY id)
)
"""

INVARIANTS = (
    Invariant(
        "one place",
        "every file, and every request, is in the live table or in the history, once",
        f"""
        WITH {_FILE}
        SELECT id::text, 'is in ' || count(*) || ' places' FROM file GROUP BY id HAVING count(*) > 1
        UNION ALL
        SELECT min(id)::text, 'has the same request as ' || max(id) FROM file
        GROUP BY request_id HAVING min(id) <> max(id)
        """,
    ),
    Invariant(
        "known in the past",
        "no file of the history would be taken in as new",
        """
        SELECT h.id::text, 'is in the history, and its request is not known there' FROM transfer_history h
        WHERE {id} AND NOT EXISTS (SELECT FROM past_request p
            WHERE p.key = hashtextextended(h.request_id, 0) AND p.transfer_id = h.id)
        """,
    ),
    Invariant(
        "nothing vanished",
        "every file that ever had an event is still there",
        """
        SELECT DISTINCT e.transfer_id::text, 'has events and no row' FROM transfer_event e
        WHERE {transfer_id} AND NOT EXISTS (SELECT FROM transfer t WHERE t.id = e.transfer_id)
            AND NOT EXISTS (SELECT FROM transfer_history h WHERE h.id = e.transfer_id)
        """,
    ),
    Invariant(
        "states agree",
        "a file's state, its end, its job and its place do not contradict each other",
        f"""
        WITH {_FILE}
        SELECT id::text, state || CASE
            WHEN (ended_at IS NOT NULL) <> (state IN {FINAL}) THEN ' and its end do not agree'
            WHEN archived AND state NOT IN {FINAL} THEN ' in the history'
            WHEN already_there AND state <> 'DONE' THEN ' although it was written to its destination'
            ELSE ' without ever having been in a job' END
        FROM file
        WHERE (ended_at IS NOT NULL) <> (state IN {FINAL}) OR (archived AND state NOT IN {FINAL})
            OR (state IN ('ACQUIRED', 'SUBMITTED') AND fts_job IS NULL AND driver IS NULL)
            OR (state = 'SUBMITTED' AND attempt = 0) OR (already_there AND state <> 'DONE')
        """,
    ),
    Invariant(
        "jobs agree",
        "an FTS job's state, its id and its times do not contradict each other",
        """
        SELECT sid::text, state || ' with id ' || coalesce(job_id::text, 'none') FROM fts_job
        WHERE (job_id IS NOT NULL) <> (state IN ('SUBMITTED', 'ENDED'))
            OR (submitted_at IS NOT NULL) <> (state IN ('SUBMITTED', 'ENDED'))
            OR (ended_at IS NOT NULL) <> (state IN ('ENDED', 'REFUSED'))
        """,
    ),
    Invariant(
        "every move on record",
        "a file's events form an unbroken line of legal moves that ends in what its row says",
        f"""
        WITH {_FILE}, {_LINE}
        SELECT f.id::text, CASE
            WHEN l.id IS NULL THEN 'has no event'
            WHEN l.before IS DISTINCT FROM l.from_state
                THEN 'event ' || l.id || ' starts at ' || coalesce(l.from_state::text, 'nothing')
                    || ' after ' || coalesce(l.before::text, 'nothing')
            WHEN l.is_last AND l.to_state <> f.state
                THEN 'is ' || f.state || ', its last event says ' || l.to_state
            WHEN l.is_last AND l.attempt <> f.attempt THEN 'has another attempt than its last event'
            WHEN l.is_last AND l.fts_job IS DISTINCT FROM f.fts_job
                THEN 'has another job than its last event'
            ELSE 'event ' || l.id || ' is no legal move: ' || coalesce(l.from_state || '>', '') || l.to_state
            END
        FROM file f LEFT JOIN line l ON l.transfer_id = f.id
        WHERE (l.id IS NULL AND f.created_at >= %(horizon)s)
            OR (l.before IS DISTINCT FROM l.from_state
                AND (l.before IS NOT NULL OR f.created_at >= %(horizon)s))
            OR (l.is_last AND (l.to_state <> f.state OR l.attempt <> f.attempt
                OR l.fts_job IS DISTINCT FROM f.fts_job))
            OR NOT CASE WHEN l.from_state IS NULL THEN l.to_state::text = ANY(%(arrivals)s)
                ELSE l.from_state || '>' || l.to_state = ANY(%(legal)s) END
        """,
    ),
    Invariant(
        "every move signed",
        "every event names the step that made it",
        """
        SELECT e.transfer_id::text, 'event ' || e.id || ' names step ' || e.step_run || ', which never was'
        FROM transfer_event e LEFT JOIN step_run s ON s.id = e.step_run WHERE s.id IS NULL AND {transfer_id}
        """,
    ),
    Invariant(
        "attempts",
        "a file's attempts are as many as FTS accepted since it arrived, or was driven anew",
        f"""
        WITH {_FILE}, counted AS (
            SELECT transfer_id, count(*) FILTER (WHERE to_state = 'SUBMITTED' AND id > started) AS accepted
            FROM (
                SELECT transfer_id, id, to_state,
                    max(id) FILTER (WHERE from_state IS NULL OR from_state IN {FINAL})
                        OVER (PARTITION BY transfer_id) AS started
                FROM transfer_event WHERE {{transfer_id}}
            ) e WHERE started IS NOT NULL GROUP BY transfer_id
        )
        SELECT f.id::text, 'counts ' || f.attempt || ' attempts, was accepted ' || c.accepted || ' times'
        FROM file f JOIN counted c ON c.transfer_id = f.id WHERE f.attempt <> c.accepted
        """,
    ),
    Invariant(
        "once in a job",
        "no file was taken, or accepted, twice in one FTS job",
        """
        SELECT transfer_id::text, to_state || ' ' || count(*) || ' times in job ' || fts_job
        FROM transfer_event
        WHERE to_state IN ('ACQUIRED', 'SUBMITTED') AND fts_job IS NOT NULL AND {transfer_id}
        GROUP BY transfer_id, fts_job, to_state HAVING count(*) > 1
        """,
    ),
    Invariant(
        "exact lists",
        "every FTS job lists exactly the files that were ever taken for it",
        """
        WITH taken AS (
            SELECT DISTINCT fts_job AS sid, transfer_id AS id FROM transfer_event
            WHERE to_state = 'ACQUIRED' AND fts_job IS NOT NULL AND {transfer_id}
        ), listed AS (
            SELECT j.sid, u.id FROM fts_job j CROSS JOIN LATERAL unnest(j.transfer_ids) AS u(id)
            WHERE {sid} AND {u_id}
        )
        SELECT id::text, CASE WHEN t.sid IS NULL THEN 'was never taken for job ' || sid || ', which lists it'
            ELSE 'is not listed by job ' || sid || ', for which it was taken' END
        FROM taken t FULL JOIN listed l USING (sid, id) LEFT JOIN fts_job j USING (sid)
        WHERE (t.sid IS NULL OR l.sid IS NULL) AND (j.planned_at < %(horizon)s) IS NOT TRUE
        """,
    ),
    Invariant(
        "in a living job",
        "every file under way is in the list of a job that is alive, and both agree on how far they are",
        f"""
        SELECT t.id::text,
            t.state || ' in ' || coalesce('job ' || j.sid || ', which is ' || j.state, 'no job')
        FROM transfer t LEFT JOIN fts_job j ON j.sid = t.fts_job AND t.id = ANY(j.transfer_ids)
        WHERE t.state IN {OPEN} AND t.driver IS NULL AND (t.state <> 'KILL' OR t.fts_job IS NOT NULL)
            AND NOT coalesce(
            (t.state IN ('ACQUIRED', 'KILL') AND j.state = 'PLANNED')
            OR (t.state IN ('SUBMITTED', 'KILL') AND j.state = 'SUBMITTED'), false)
        """,
    ),
    Invariant(
        "one job at a time",
        "a living job lists no file but its own and those that have ended in it",
        f"""
        SELECT u.id::text, 'is listed by living job ' || j.sid || ', which it never was done with'
        FROM fts_job j CROSS JOIN LATERAL unnest(j.transfer_ids) AS u(id)
            LEFT JOIN transfer t ON t.id = u.id AND t.fts_job = j.sid
        WHERE j.state IN {LIVING} AND t.id IS NULL AND NOT EXISTS (
            SELECT FROM transfer_event e WHERE e.transfer_id = u.id AND e.fts_job = j.sid
                AND e.from_state IN {OPEN} AND e.to_state NOT IN {OPEN})
        """,
    ),
    Invariant(
        "open files",
        "every job counts its files without an outcome right, and has ended with the last of them",
        f"""
        SELECT j.sid::text,
            j.state || ' with ' || j.open_files || ' open files, counted ' || coalesce(a.files, 0)
        FROM fts_job j LEFT JOIN (
            SELECT fts_job AS sid, count(*) AS files FROM transfer WHERE state IN {OPEN} GROUP BY fts_job
        ) a USING (sid)
        WHERE (j.state IN {LIVING} AND j.open_files <> coalesce(a.files, 0))
            OR (j.state NOT IN {LIVING} AND j.open_files <> 0) OR (j.state = 'SUBMITTED' AND a.files IS NULL)
        """,
    ),
    Invariant(
        "one writer",
        "no destination is being written by two files",
        f"""
        SELECT min(id)::text, 'and ' || max(id) || ' write ' || destination_lfn || ' at ' || destination
        FROM transfer WHERE state IN {OPEN} GROUP BY destination, destination_lfn HAVING count(*) > 1
        """,
    ),
    Invariant(
        "publication on record",
        "a file's publication is an unbroken line of legal moves that ends in what its row says",
        f"""
        WITH {_FILE}, line AS (
            SELECT e.*, lag(to_state) OVER events AS before, lead(id) OVER events IS NULL AS is_last
            FROM file_event e WHERE kind = 'publication' AND {{transfer_id}}
            WINDOW events AS (PARTITION BY transfer_id ORDER BY id)
        )
        SELECT f.id::text, CASE
            WHEN l.id IS NULL THEN 'is ' || f.publication || ' without any event of its publication'
            WHEN l.before <> l.from_state
                THEN 'publication event ' || l.id || ' starts at ' || l.from_state || ' after ' || l.before
            WHEN l.is_last AND l.to_state <> f.publication::text
                THEN 'is ' || f.publication || ', its last event says ' || l.to_state
            ELSE 'publication event ' || l.id || ' is no legal move: ' || l.from_state || '>' || l.to_state
            END
        FROM file f LEFT JOIN line l ON l.transfer_id = f.id
        WHERE (l.id IS NULL AND f.publication::text <> ALL(%(publication_arrivals)s))
            OR l.before <> l.from_state OR (l.is_last AND l.to_state <> f.publication::text)
            OR NOT l.from_state || '>' || l.to_state = ANY(%(publication_moves)s)
            OR (l.id IS NOT NULL AND l.before IS NULL AND l.from_state <> ALL(%(publication_arrivals)s))
        """,
    ),
    Invariant(
        "in a living block",
        "every file that is being published is in the list of a block that is, or with a publisher outside",
        f"SELECT id::text, why FROM ({UNBLOCKED}) stray",
    ),
    Invariant(
        "blocks agree",
        "a block that is under way lists exactly the files that are in it",
        """
        SELECT u.id::text, 'is listed by block ' || b.name || ', which is ' || b.state || ', and not in it'
        FROM block b CROSS JOIN LATERAL unnest(b.transfer_ids) AS u(id) LEFT JOIN transfer t
            ON t.id = u.id AND t.block_id = b.id AND t.publication = 'ACQUIRED' AND t.state = 'DONE'
        WHERE b.state IN ('OPEN', 'CLOSED') AND t.id IS NULL
        """,
    ),
    Invariant(
        "known to be in DBS",
        "of every file that we published it is on record in which block DBS has it",
        f"""
        WITH {_FILE}
        SELECT f.id::text, 'is published, and nobody knows in which block' FROM file f
            LEFT JOIN crab_record c ON c.transfer_id = f.id
        WHERE f.publication = 'DONE' AND coalesce(c.publisher, %(own)s) = %(own)s AND NOT EXISTS (
            SELECT FROM file_event e WHERE e.transfer_id = f.id AND e.kind = 'publication'
                AND e.to_state = 'DONE' AND e.subject IS NOT NULL)
        """,
    ),
    Invariant(
        "messages known",
        "every message of the outbox is of an event, for a subscription that there is, and there once",
        """
        SELECT min(o.transfer_id)::text, 'message ' || min(o.id) || CASE
            WHEN min(s.id) IS NULL THEN ' is for subscription ' || o.subscription || ', which is not there'
            WHEN count(*) > 1 THEN ' is there ' || count(*) || ' times'
            ELSE ' tells of event ' || o.event_kind || ' ' || o.event_id || ', which never was' END
        FROM outbox o LEFT JOIN subscription s ON s.id = o.subscription
        WHERE {transfer_id} GROUP BY o.subscription, o.event_kind, o.event_id
        HAVING min(s.id) IS NULL OR count(*) > 1 OR NOT CASE o.event_kind
            WHEN 'transfer' THEN EXISTS (SELECT FROM transfer_event e WHERE e.transfer_id = min(o.transfer_id)
                AND e.id = o.event_id AND e.to_state::text = min(o.to_state))
            ELSE EXISTS (SELECT FROM file_event e WHERE e.transfer_id = min(o.transfer_id)
                AND e.id = o.event_id AND e.kind = o.event_kind AND e.to_state = min(o.to_state)) END
        """,
    ),
    Invariant(
        "deliveries agree",
        "what was delivered or discarded has left the outbox, and what is dead there was said to be dead",
        f"""
        WITH said AS (
            SELECT DISTINCT ON (transfer_id, subject, split_part(reason, ' ', 1))
                transfer_id, subject, split_part(reason, ' ', 1) AS message, to_state
            FROM file_event WHERE kind = 'delivery' AND {{transfer_id}}
            ORDER BY transfer_id, subject, split_part(reason, ' ', 1), id DESC
        ), waiting AS (
            SELECT o.transfer_id, s.name AS subject, {ID.format("o")} AS message,
                CASE WHEN o.dead_at IS NULL THEN 'PENDING' ELSE 'DEAD' END AS state
            FROM outbox o JOIN subscription s ON s.id = o.subscription WHERE {{o_transfer_id}}
        )
        SELECT w.transfer_id::text, w.subject || ': ' || message || ' is ' || w.state || ', last said to be '
            || coalesce(d.to_state, 'nothing')
        FROM waiting w LEFT JOIN said d USING (transfer_id, subject, message)
        WHERE coalesce(d.to_state, 'PENDING') <> w.state
        """,
    ),
    Invariant(
        "deliveries in order",
        "no subscriber was told of an event before all earlier ones of the same file",
        """
        SELECT o.transfer_id::text, s.name || ' was told of a later event than ' || o.event_kind || ' '
            || o.event_id || ', which it still has to hear of'
        FROM outbox o JOIN subscription s ON s.id = o.subscription
        WHERE {o_transfer_id} AND EXISTS (
            SELECT FROM file_event e WHERE e.transfer_id = o.transfer_id AND e.kind = 'delivery'
                AND e.subject = s.name AND e.to_state = 'DELIVERED'
                AND split_part(e.reason, '-', 1) = o.event_kind
                AND split_part(split_part(e.reason, '-', 2), ' ', 1)::bigint > o.event_id)
        """,
    ),
    Invariant(
        "temporary copies",
        "of every file that has ended, the temporary copy waits to be deleted, or its end is on record",
        """
        WITH file AS (
            SELECT id, state, attempt, driver, source, source_lfn, destination, destination_lfn, ended_at,
                cleaned_at, already_there FROM transfer WHERE {id}
            UNION ALL
            SELECT id, state, attempt, driver, source, source_lfn, destination, destination_lfn, ended_at,
                cleaned_at, already_there FROM transfer_history WHERE {id}
        )
        SELECT f.id::text, 'is ' || f.state || ', and nobody deletes its temporary copy at ' || f.source
        FROM file f
        WHERE f.ended_at IS NOT NULL AND NOT f.already_there AND has_temporary_copy(
                f.state, f.attempt, f.driver, f.source, f.source_lfn, f.destination, f.destination_lfn)
            AND NOT EXISTS (SELECT FROM cleaning c WHERE c.transfer_id = f.id AND c.source = f.source)
            AND NOT EXISTS (SELECT FROM file_event e
                WHERE e.transfer_id = f.id AND e.kind = 'cleaning' AND e.at >= f.ended_at)
        UNION ALL
        SELECT f.id::text, 'counts as cleaned since ' || f.cleaned_at || ', and nobody did it' FROM file f
        WHERE f.cleaned_at >= f.ended_at
            AND NOT EXISTS (SELECT FROM cleaning c WHERE c.transfer_id = f.id AND c.state = 'DELETING')
            AND NOT EXISTS (SELECT FROM file_event e WHERE e.transfer_id = f.id AND e.kind = 'cleaning'
                AND e.to_state IN ('DELETED', 'GONE') AND e.at >= f.ended_at)
        """,
    ),
    Invariant(
        "sources of live files",
        "no temporary copy is to be deleted while its file is on its way",
        """
        SELECT c.transfer_id::text, 'is ' || t.state || ', and its copy at ' || c.source || ' is ' || c.state
        FROM cleaning c JOIN transfer t ON t.id = c.transfer_id
        WHERE t.ended_at IS NULL AND (c.source = t.source OR c.due_at IS NOT NULL)
        """,
    ),
    Invariant(
        "no leak",
        "no file has been without a next step for two minutes",
        f"SELECT id::text, detail FROM ({LEAKS}) leak",
    ),
)

# What was touched since then; the whole of it when no time is given.
_EVERYTHING = dict.fromkeys(("id", "transfer_id", "o_transfer_id", "u_id", "sid"), "true")
_TOUCHED = (
    "(SELECT transfer_id FROM transfer_event WHERE at >= %(since)s"
    " UNION SELECT transfer_id FROM file_event WHERE at >= %(since)s"
    " UNION SELECT id FROM transfer WHERE updated_at >= %(since)s)"
)
_SINCE = {
    "id": f"id IN {_TOUCHED}",
    "transfer_id": f"transfer_id IN {_TOUCHED}",
    "o_transfer_id": f"o.transfer_id IN {_TOUCHED}",
    "u_id": f"u.id IN {_TOUCHED}",
    "sid": "j.sid IN (SELECT sid FROM taken)",
}

SAMPLES = 5


@dataclass(frozen=True, slots=True)
class Result:
    """One invariant: how often it does not hold, and where, for example."""

    name: str
    proves: str
    violations: int
    samples: tuple[tuple[str, str], ...]
    """(id of a file or sid of a job, what is wrong with it)."""
    took_s: float


def audit(conn: Connection, since: datetime | None = None) -> Iterator[Result]:
    """Yield what became of each invariant, in one snapshot of the catalogue.

    Args:
        since: aware; look only at files that were touched since then. What is under way is always looked at.
    """
    before = conn.isolation_level, conn.read_only
    conn.isolation_level, conn.read_only = IsolationLevel.REPEATABLE_READ, True
    try:
        with conn.transaction():
            for invariant in INVARIANTS:
                yield _look(conn, invariant, since)
    finally:
        conn.isolation_level, conn.read_only = before


def _look(conn: Connection, invariant: Invariant, since: datetime | None) -> Result:
    started = monotonic()
    query = invariant.query.format(**(_SINCE if since else _EVERYTHING))
    rows = conn.execute(
        f"SELECT *, count(*) OVER () FROM ({query}) violation(id, what) ORDER BY id LIMIT {SAMPLES}",
        {
            "since": since, "legal": LEGAL_MOVES, "arrivals": ARRIVALS, "leak_s": LEAK_S, "own": OWN_WORKER,
            "publication_moves": PUBLICATION_MOVES, "publication_arrivals": list(PUBLICATION_ARRIVALS),
            "horizon": gone_until(conn, "transfer_event") or "-infinity",
        },
    ).fetchall()  # fmt: skip
    return Result(
        invariant.name,
        invariant.proves,
        violations=int(rows[0][2]) if rows else 0,
        samples=tuple((str(where), str(what)) for where, what, _ in rows),
        took_s=monotonic() - started,
    )
