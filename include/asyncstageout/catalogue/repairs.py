"""What steps left undone because something died: found and mended, in one statement for each kind.

Every repair compares what it changes with what it saw, so that two reconciles and any number of cycles may
run at once. No exact file list is ever changed, and no file leaves a job that FTS may still be running.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from uuid import UUID

from psycopg import Connection

from asyncstageout.core.failures import Category, own_failure
from asyncstageout.core.states import TransferState

S = TransferState

_REPAIR_LOCK = 0x5A52
"""Two reconciles at the same moment mend one after the other."""

WITHOUT_A_JOB: dict[TransferState, TransferState] = {
    # FTS never had it: no attempt was used.
    S.ACQUIRED: S.NEW,
    # FTS had it once and no job answers for it now: as if FTS had lost it.
    S.SUBMITTED: S.RETRY,
    # Nobody copies it, which is what was asked for.
    S.KILL: S.KILLED,
}
"""Where a file goes that is under way in no living job."""

UNREPORTED_S = 3600.0
"""A task's longest time is 15 minutes (the DAGs' ``execution_timeout``)."""
UNREPORTED_COMMAND_S = 86_400.0
UNPOLLED_S = 600.0
"""Ten times the longest interval of ``core.polling``."""
LEAK_S = 120.0
"""What this service promises: no file is without a next step for longer."""
FARTHEST_DUE_S = 86_400.0
"""Far beyond the longest wait that ``core.retries`` gives."""


class InDoubt(NamedTuple):
    """A planned job that FTS should have confirmed by now."""

    sid: UUID
    open_files: int
    identity: str


_IN_DOUBT = """
SELECT sid, open_files, identity FROM fts_job
WHERE state = 'PLANNED' AND fts_server = %(fts_server)s
    AND planned_at < now() - make_interval(secs => %(older_than_s)s)
ORDER BY planned_at LIMIT %(at_most)s
"""

_KNOWN = "SELECT job_id FROM fts_job WHERE job_id = ANY(%(job_ids)s)"

_OPEN = "('ACQUIRED', 'SUBMITTED', 'KILL')"

# Compared with state and job as they were seen: a file that has moved on since belongs to somebody else.
_FREE = f"""
WITH way AS (
    SELECT * FROM unnest(%(open)s::transfer_state[], %(next)s::transfer_state[]) AS w(state, next_state)
), stray AS (
    SELECT t.id, t.state, w.next_state, t.fts_job, 'reconciled: ' || CASE
            WHEN t.fts_job IS NULL THEN 'it was under way in no FTS job'
            WHEN j.sid IS NULL THEN 'there is no record of its FTS job'
            WHEN j.state = 'REFUSED' THEN 'FTS had refused its job'
            ELSE 'its FTS job does not list it' END AS why
    FROM transfer t JOIN way w USING (state) LEFT JOIN fts_job j ON j.sid = t.fts_job
    WHERE t.state IN {_OPEN} AND t.driver IS NULL
        AND (j.sid IS NULL OR j.state = 'REFUSED' OR NOT t.id = ANY(j.transfer_ids))
    ORDER BY t.id LIMIT %(at_most)s
), changed AS (
    UPDATE transfer t SET state = s.next_state, due_at = now(), updated_at = now(),
        ended_at = CASE WHEN s.next_state = 'KILLED' THEN now() END,
        failure_category = CASE WHEN s.next_state = 'RETRY' THEN %(category)s ELSE t.failure_category END,
        failure_code = CASE WHEN s.next_state = 'RETRY' THEN %(code)s ELSE t.failure_code END,
        failure_reason = CASE WHEN s.next_state = 'RETRY' THEN s.why ELSE t.failure_reason END
    FROM stray s
    WHERE t.id = s.id AND t.state = s.state AND t.fts_job IS NOT DISTINCT FROM s.fts_job
    RETURNING t.id, s.state AS from_state, t.state, t.attempt, t.fts_job, s.why
), event AS (
    INSERT INTO transfer_event (transfer_id, from_state, to_state, attempt, fts_job, step_run, reason,
        failure_category)
    SELECT id, from_state, state, attempt, fts_job, %(step_run)s, why,
        CASE state WHEN 'RETRY' THEN %(category)s END FROM changed
)
SELECT count(*) FROM changed
"""

# Closed while a file of it is under way: only FTS knows what became of the file, so FTS is asked again.
_WATCH_AGAIN = f"""
WITH early AS (
    SELECT j.sid, count(*)::integer AS files
    FROM transfer t JOIN fts_job j ON j.sid = t.fts_job AND t.id = ANY(j.transfer_ids)
    WHERE t.state IN {_OPEN} AND j.state = 'ENDED'
    GROUP BY j.sid
)
UPDATE fts_job j SET state = 'SUBMITTED', open_files = e.files, ended_at = NULL, next_poll_at = now()
FROM early e WHERE j.sid = e.sid AND j.state = 'ENDED'
"""

# FTS has the job and the file was not told so.
_CATCH_UP = """
WITH behind AS (
    SELECT t.id, t.fts_job FROM transfer t
    JOIN fts_job j ON j.sid = t.fts_job AND t.id = ANY(j.transfer_ids)
    WHERE t.state = 'ACQUIRED' AND j.state = 'SUBMITTED'
    ORDER BY t.id LIMIT %(at_most)s
), changed AS (
    UPDATE transfer t SET state = 'SUBMITTED', attempt = t.attempt + 1, updated_at = now()
    FROM behind b WHERE t.id = b.id AND t.state = 'ACQUIRED' AND t.fts_job = b.fts_job
    RETURNING t.id, t.attempt, t.fts_job
), event AS (
    INSERT INTO transfer_event (transfer_id, from_state, to_state, attempt, fts_job, step_run, reason)
    SELECT id, 'ACQUIRED', 'SUBMITTED', attempt, fts_job, %(step_run)s, 'reconciled: FTS has its job'
    FROM changed
)
SELECT count(*) FROM changed
"""

# A count that moved since it was seen is left for the next reconcile.
_RECOUNT = f"""
WITH actual AS (
    SELECT fts_job AS sid, count(*)::integer AS files FROM transfer
    WHERE state IN {_OPEN} AND fts_job IS NOT NULL GROUP BY fts_job
), wrong AS (
    SELECT j.sid, j.open_files AS seen, coalesce(a.files, 0) AS files
    FROM fts_job j LEFT JOIN actual a USING (sid)
    WHERE (j.state IN ('PLANNED', 'SUBMITTED') AND j.open_files <> coalesce(a.files, 0))
        OR (j.state = 'SUBMITTED' AND a.files IS NULL)
)
UPDATE fts_job j SET open_files = w.files,
    state = CASE WHEN w.files = 0 AND j.state = 'SUBMITTED' THEN 'ENDED' ELSE j.state END,
    ended_at = CASE WHEN w.files = 0 AND j.state = 'SUBMITTED' THEN now() ELSE j.ended_at END
FROM wrong w
WHERE j.sid = w.sid AND j.open_files = w.seen AND j.state IN ('PLANNED', 'SUBMITTED')
"""

_CLOSE_STEPS = """
UPDATE step_run SET ended_at = clock_timestamp(), outcome = 'failed', sentence = 'never reported back'
WHERE ended_at IS NULL AND started_at < now() - make_interval(secs =>
    CASE WHEN dag_id IS NULL THEN %(command_s)s ELSE %(task_s)s END::double precision)
"""

_UNPOLLED = """
SELECT count(*) FROM fts_job WHERE state = 'SUBMITTED'
    AND greatest(polled_at, submitted_at) < now() - make_interval(secs => %(unpolled_s)s)
"""

# Taking a job over makes it young again; its files tell how long they have really been waiting.
_UNCONFIRMED = """
SELECT count(*) FROM fts_job j WHERE j.state = 'PLANNED' AND EXISTS (
    SELECT FROM transfer t WHERE t.fts_job = j.sid AND t.state = 'ACQUIRED'
        AND t.updated_at < now() - make_interval(secs => %(unconfirmed_s)s))
"""

LEAKS = f"""
SELECT t.id, 'it waits until ' || t.due_at AS detail FROM transfer t
WHERE t.state IN ('NEW', 'RETRY') AND t.driver IS NULL
    AND t.due_at > now() + make_interval(secs => {FARTHEST_DUE_S})
UNION ALL
SELECT t.id, t.state || ' in ' || coalesce('a job that is ' || j.state, 'no job')
FROM transfer t LEFT JOIN fts_job j ON j.sid = t.fts_job
WHERE t.state IN {_OPEN} AND t.driver IS NULL
    AND t.updated_at < now() - make_interval(secs => %(leak_s)s)
    AND NOT coalesce(
        t.id = ANY(j.transfer_ids)
        AND ((t.state IN ('ACQUIRED', 'KILL') AND j.state = 'PLANNED')
            OR (t.state IN ('SUBMITTED', 'KILL') AND j.state = 'SUBMITTED')), false)
"""
"""Files whose next step nobody will take: under way in no job that is alive, or waiting for ever."""


def lock_repairs(conn: Connection) -> None:
    """Wait for a concurrent reconcile to finish mending; released at the end of the open transaction."""
    conn.execute("SELECT pg_advisory_xact_lock(%s)", (_REPAIR_LOCK,))


def jobs_in_doubt(
    conn: Connection, fts_server: str, older_than_s: float, at_most: int = 1000
) -> list[InDoubt]:
    """Return an FTS server's jobs that have been PLANNED for longer, the oldest first."""
    rows = conn.execute(
        _IN_DOUBT, {"fts_server": fts_server, "older_than_s": older_than_s, "at_most": at_most}
    )
    return [InDoubt(*row) for row in rows]


def planned_sids(conn: Connection) -> list[UUID]:
    """Return all jobs that FTS has not confirmed: it may have them all the same."""
    return [sid for (sid,) in conn.execute("SELECT sid FROM fts_job WHERE state = 'PLANNED'")]


def planned(conn: Connection, fts_server: str) -> list[tuple[UUID, str]]:
    """Return a server's jobs that it has not confirmed, and in whose name they are submitted."""
    rows = conn.execute(
        "SELECT sid, identity FROM fts_job WHERE state = 'PLANNED' AND fts_server = %s", (fts_server,)
    )
    return rows.fetchall()


def servers_in_use(conn: Connection) -> list[str]:
    """Return the FTS servers that may have jobs of ours and may be asked, in or out of the configuration."""
    rows = conn.execute(
        "SELECT name FROM fts_server WHERE state <> 'down' UNION"
        " SELECT fts_server FROM fts_job j WHERE state = 'PLANNED'"
        " AND NOT EXISTS (SELECT FROM fts_server s WHERE s.name = j.fts_server) ORDER BY 1"
    )
    return [name for (name,) in rows]


def known_jobs(conn: Connection, job_ids: Sequence[UUID]) -> set[UUID]:
    """Return those of the FTS jobs that the catalogue has as accepted."""
    return {job_id for (job_id,) in conn.execute(_KNOWN, {"job_ids": list(job_ids)})}


def free_stray_files(conn: Connection, step_run: int, at_most: int = 10_000) -> int:
    """Give files under way in no living job their next step (:data:`WITHOUT_A_JOB`); return how many."""
    lost = own_failure(Category.LOST, "")
    return _count(
        conn,
        _FREE,
        {
            "open": list(WITHOUT_A_JOB),
            "next": list(WITHOUT_A_JOB.values()),
            "category": lost.category.value,
            "code": lost.code,
            "step_run": step_run,
            "at_most": at_most,
        },
    )


def watch_again(conn: Connection) -> int:
    """Watch jobs again that were closed while a file of theirs was under way; return how many."""
    return conn.execute(_WATCH_AGAIN).rowcount


def catch_up(conn: Connection, step_run: int, at_most: int = 10_000) -> int:
    """Make files SUBMITTED that are behind their accepted job; return how many."""
    return _count(conn, _CATCH_UP, {"step_run": step_run, "at_most": at_most})


def recount(conn: Connection) -> int:
    """Correct the counts of open files, and end jobs without any; return how many jobs were wrong."""
    return conn.execute(_RECOUNT).rowcount


def close_unreported_steps(conn: Connection) -> int:
    """Close the records of tasks and commands that must have died long ago; return how many.

    One that ends after all overwrites this with the truth.
    """
    return conn.execute(_CLOSE_STEPS, {"task_s": UNREPORTED_S, "command_s": UNREPORTED_COMMAND_S}).rowcount


def unpolled_jobs(conn: Connection, unpolled_s: float = UNPOLLED_S) -> int:
    """Count accepted jobs that nobody has asked FTS about for so long: sensing is dead."""
    return _count(conn, _UNPOLLED, {"unpolled_s": unpolled_s})


def unconfirmed_jobs(conn: Connection, unconfirmed_s: float = UNPOLLED_S) -> int:
    """Count planned jobs whose files have waited so long for FTS to confirm them."""
    return _count(conn, _UNCONFIRMED, {"unconfirmed_s": unconfirmed_s})


def leaked_files(conn: Connection, leak_s: float = LEAK_S) -> int:
    """Count files that have had no next step for so long; zero in a healthy system."""
    return _count(conn, f"SELECT count(*) FROM ({LEAKS}) leak", {"leak_s": leak_s})


def _count(conn: Connection, query: str, params: dict[str, Any]) -> int:
    row = conn.execute(query, params).fetchone()
    return int(row[0]) if row else 0
