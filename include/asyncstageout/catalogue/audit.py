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

from asyncstageout.catalogue.repairs import LEAK_S, LEAKS
from asyncstageout.catalogue.retention import gone_until
from asyncstageout.catalogue.transitions import LEGAL_MOVES
from asyncstageout.core.states import TransferState, is_legal

ARRIVALS = sorted(state.value for state in TransferState if is_legal(None, state))
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
    SELECT id, request_id, state, attempt, fts_job, driver, created_at, ended_at, false AS archived
    FROM transfer WHERE {id}
    UNION ALL
    SELECT id, request_id, state, attempt, fts_job, driver, created_at, ended_at, true
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
            ELSE ' without ever having been in a job' END
        FROM file
        WHERE (ended_at IS NOT NULL) <> (state IN {FINAL}) OR (archived AND state NOT IN {FINAL})
            OR (state IN ('ACQUIRED', 'SUBMITTED') AND fts_job IS NULL AND driver IS NULL)
            OR (state = 'SUBMITTED' AND attempt = 0)
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
        "no leak",
        "no file has been without a next step for two minutes",
        f"SELECT id::text, detail FROM ({LEAKS}) leak",
    ),
)

# What was touched since then; the whole of it when no time is given.
_EVERYTHING = {"id": "true", "transfer_id": "true", "u_id": "true", "sid": "true"}
_TOUCHED = (
    "(SELECT transfer_id FROM transfer_event WHERE at >= %(since)s"
    " UNION SELECT id FROM transfer WHERE updated_at >= %(since)s)"
)
_SINCE = {
    "id": f"id IN {_TOUCHED}",
    "transfer_id": f"transfer_id IN {_TOUCHED}",
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
            "since": since,
            "legal": LEGAL_MOVES,
            "arrivals": ARRIVALS,
            "leak_s": LEAK_S,
            "horizon": gone_until(conn, "transfer_event") or "-infinity",
        },
    ).fetchall()
    return Result(
        invariant.name,
        invariant.proves,
        violations=int(rows[0][2]) if rows else 0,
        samples=tuple((str(where), str(what)) for where, what, _ in rows),
        took_s=monotonic() - started,
    )
