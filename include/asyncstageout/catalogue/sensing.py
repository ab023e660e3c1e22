"""FTS jobs between the acceptance and the end: which to ask about, what was learnt, what it changes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from psycopg import Connection

from asyncstageout.catalogue.storages import Naming
from asyncstageout.core.planning import FileNames


@dataclass(frozen=True, slots=True)
class OpenJob:
    """A job that FTS accepted and that has files without an outcome."""

    sid: UUID
    job_id: UUID
    file_count: int
    submitted_at: datetime
    fts_state: str | None = None
    """What FTS last said; None before the first answer."""
    polled_at: datetime | None = None
    final_at: datetime | None = None
    """When its end was first seen."""
    missing_at: datetime | None = None
    """Since when FTS does not know it."""


class Report(NamedTuple):
    """What FTS said about one file that is final there; ``transfer_id`` None means the whole job."""

    sid: UUID
    transfer_id: int | None
    fts_file_id: int | None
    job_state: str
    file_state: str
    reason: str
    recoverable: bool | None
    finished_at: datetime | None
    dst_size_bytes: int | None = None
    """Of the file that was in the way at the destination."""
    dst_adler32: str | None = None


LOST = "LOST"
"""File state of our own for a job that FTS neither runs nor has in its archive."""


class Poll(NamedTuple):
    """What a question about a job brought, and when to ask again."""

    sid: UUID
    fts_state: str | None
    """None: FTS said nothing about it; what it said before stays."""
    next_poll_at: datetime
    is_final: bool = False
    is_missing: bool = False


class ReportedFile(NamedTuple):
    """A report joined with the file that it speaks for."""

    transfer_id: int
    sid: UUID
    attempt: int
    source: str
    destination: str
    username: str
    activity: str
    size_bytes: int
    adler32: str | None
    previous: str | None
    """Category of the failure of the attempt before, if there was one."""
    overwrote: bool
    """Whether this attempt was allowed to overwrite."""
    report: Report


_FILE_COLUMNS = len(ReportedFile._fields) - 1

# Only what is news: a file whose report was applied before, or that has moved on to another job, is dropped.
_STAGE = """
INSERT INTO fts_report
    (sid, transfer_id, fts_file_id, job_state, file_state, reason, recoverable, finished_at,
    dst_size_bytes, dst_adler32)
SELECT s.* FROM seen s
WHERE (s.transfer_id IS NULL
        OR EXISTS (SELECT FROM transfer t
                   WHERE t.id = s.transfer_id AND t.fts_job = s.sid AND t.state IN ('SUBMITTED', 'KILL')))
    AND NOT EXISTS (SELECT FROM fts_report r
                    WHERE r.sid = s.sid AND r.transfer_id IS NOT DISTINCT FROM s.transfer_id)
-- A word about one file is taken before one about its whole job.
ORDER BY s.transfer_id NULLS LAST
"""

_TAKE = """
WITH taken AS (
    DELETE FROM fts_report WHERE id IN (
        SELECT id FROM fts_report ORDER BY id LIMIT %s FOR UPDATE SKIP LOCKED
    ) RETURNING *
), file AS (
    -- By id: through the index of files in jobs, each report would read all files of its job.
    SELECT t.transfer_id AS file, t.* FROM taken t WHERE t.transfer_id IS NOT NULL
    UNION ALL
    SELECT unnest(j.transfer_ids), t.* FROM taken t JOIN fts_job j USING (sid) WHERE t.transfer_id IS NULL
)
SELECT t.id, r.sid, t.attempt, t.source, t.destination, t.username, t.activity, t.size_bytes, t.adler32,
    CASE WHEN t.attempt > 1 THEN t.failure_category END,
    coalesce((j.params->>'overwrite')::boolean, false),
    r.transfer_id, r.fts_file_id, r.job_state, r.file_state, r.reason, r.recoverable, r.finished_at,
    r.dst_size_bytes, r.dst_adler32
FROM file r JOIN fts_job j ON j.sid = r.sid
    JOIN transfer t ON t.id = r.file AND t.fts_job = r.sid AND t.state::text IN ('SUBMITTED', 'KILL')
ORDER BY t.id, r.transfer_id NULLS LAST, r.id
"""

# Who waited longest, measured in its own intervals, goes first: when FTS may not be asked as often as all
# jobs would like, their intervals stretch alike. A job that was never asked about is first of all.
_TO_POLL = """
SELECT sid, job_id, cardinality(transfer_ids), submitted_at, fts_state, polled_at, final_at, missing_at
FROM fts_job WHERE state = 'SUBMITTED' AND next_poll_at <= %(now)s
    AND (%(fts_server)s::text IS NULL OR fts_server = %(fts_server)s)
ORDER BY extract(epoch FROM %(now)s - polled_at)
    / greatest(extract(epoch FROM next_poll_at - polled_at), 0.1) DESC NULLS FIRST, next_poll_at
LIMIT %(at_most)s
"""

# Who holds a job's row is changing it: it is passed over, stays due, and nobody waits for anybody. So is one
# that FTS was told to stop after it was asked: what it said before is no reason to ask less often.
_RECORD = """
WITH poll AS (
    SELECT * FROM unnest(%(sids)s::uuid[], %(states)s::text[], %(next)s::timestamptz[], %(final)s::boolean[],
        %(missing)s::boolean[]) AS p(sid, state, next_at, is_final, is_missing)
), job AS (
    SELECT sid FROM fts_job WHERE sid = ANY(%(sids)s) AND state = 'SUBMITTED'
        AND coalesce(cancelled_at <= %(now)s, true)
    FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE fts_job j SET
    polled_at = %(now)s, next_poll_at = p.next_at, fts_state = coalesce(p.state, j.fts_state),
    final_at = CASE WHEN p.is_final THEN coalesce(j.final_at, %(now)s)
        WHEN p.state IS NULL THEN j.final_at END,
    missing_at = CASE WHEN p.is_missing THEN coalesce(j.missing_at, %(now)s)
        WHEN p.state IS NULL THEN j.missing_at END
FROM poll p JOIN job USING (sid) WHERE j.sid = p.sid
"""

# Not while FTS does not know the job, and not over and over for a job whose files end one after the other.
_MAKE_DUE = """
UPDATE fts_job j SET next_poll_at = due.at
FROM (
    SELECT sid, greatest(%(now)s, polled_at + make_interval(secs => %(gap_s)s)) AS at FROM fts_job
    WHERE state = 'SUBMITTED' AND sid = ANY(%(sids)s) AND missing_at IS NULL
    FOR NO KEY UPDATE SKIP LOCKED
) due WHERE j.sid = due.sid AND j.next_poll_at > due.at
"""


def jobs_to_poll(
    conn: Connection, now: datetime, at_most: int, fts_server: str | None = None
) -> list[OpenJob]:
    """Return the open jobs (of one server, or all) that are due to be asked about, the most overdue first."""
    rows = conn.execute(_TO_POLL, {"now": now, "at_most": at_most, "fts_server": fts_server})
    return [OpenJob(*row) for row in rows]


def servers_with_open_jobs(conn: Connection) -> dict[str, int]:
    """Return how many files are without an outcome in the jobs that each FTS server has accepted."""
    rows = conn.execute(
        "SELECT fts_server, sum(open_files)::integer FROM fts_job WHERE state = 'SUBMITTED'"
        " GROUP BY fts_server"
    )
    return dict(rows.fetchall())


def servers_to_watch(conn: Connection) -> list[str]:
    """Return the servers that are contacted: all but those that are down, and whoever else has open jobs."""
    rows = conn.execute(
        "SELECT name FROM fts_server WHERE state <> 'down' UNION"
        " SELECT fts_server FROM fts_job j WHERE state = 'SUBMITTED'"
        " AND NOT EXISTS (SELECT FROM fts_server s WHERE s.name = j.fts_server) ORDER BY 1"
    )
    return [name for (name,) in rows]


def failed_lately(conn: Connection, task_id: str, within_s: float) -> bool:
    """Say whether a task of this name has ended red within this time."""
    row = conn.execute(
        "SELECT EXISTS (SELECT FROM step_run WHERE task_id = %s AND outcome = 'failed'"
        " AND started_at > now() - make_interval(secs => %s))",
        (task_id, within_s),
    ).fetchone()
    return bool(row and row[0])


def missing_jobs(conn: Connection, asked_since: datetime, fts_server: str | None = None) -> tuple[int, int]:
    """Return of a server's open jobs asked about since: how many it does not know, and how many they are."""
    row = conn.execute(
        "SELECT count(*) FILTER (WHERE missing_at IS NOT NULL), count(*) FROM fts_job"
        " WHERE state = 'SUBMITTED' AND polled_at >= %(since)s"
        " AND (%(fts_server)s::text IS NULL OR fts_server = %(fts_server)s)",
        {"since": asked_since, "fts_server": fts_server},
    ).fetchone()
    return (int(row[0]), int(row[1])) if row else (0, 0)


def open_sids(conn: Connection, job_ids: Sequence[UUID]) -> dict[UUID, UUID]:
    """Return the sids of those of these FTS jobs that are ours and open."""
    rows = conn.execute(
        "SELECT job_id, sid FROM fts_job WHERE state = 'SUBMITTED' AND job_id = ANY(%s)", (list(job_ids),)
    )
    return dict(rows.fetchall())


def files_by_destination(conn: Connection, sids: Sequence[UUID]) -> dict[tuple[UUID, str], int]:
    """Return the open files of jobs, by (sid, destination URL)."""
    rows = conn.execute(
        "SELECT t.fts_job, t.id, t.destination_lfn, t.username, t.destination, j.source_storage,"
        " j.source_protocol, j.destination_storage, j.destination_protocol"
        " FROM transfer t JOIN fts_job j ON j.sid = t.fts_job"
        " WHERE t.fts_job = ANY(%s) AND t.state IN ('SUBMITTED', 'KILL')",
        (list(sids),),
    ).fetchall()
    naming = Naming(conn, {FileNames(*row[5:]) for row in rows})
    return {
        (sid, naming.destination(FileNames(*names), lfn, username, destination)): transfer_id
        for sid, transfer_id, lfn, username, destination, *names in rows
    }


def largest_accepted(conn: Connection, cycle_id: int, shard: int) -> tuple[str, UUID] | None:
    """Return the server and FTS job id of the largest job of a shard; None if FTS has none of it."""
    return conn.execute(
        "SELECT fts_server, job_id FROM fts_job WHERE cycle_id = %s AND shard = %s AND job_id IS NOT NULL"
        " ORDER BY cardinality(transfer_ids) DESC, sid LIMIT 1",
        (cycle_id, shard),
    ).fetchone()


def open_job_count(conn: Connection) -> int:
    """Return how many FTS jobs have files without an outcome."""
    row = conn.execute("SELECT count(*) FROM fts_job WHERE state = 'SUBMITTED'").fetchone()
    return int(row[0]) if row else 0


def record_polls(conn: Connection, polls: Sequence[Poll], now: datetime) -> None:
    """Keep what was learnt about jobs, since when they are final or missing, and when to ask again."""
    conn.execute(
        _RECORD,
        {
            "now": now,
            "sids": [poll.sid for poll in polls],
            "states": [poll.fts_state for poll in polls],
            "next": [poll.next_poll_at for poll in polls],
            "final": [poll.is_final for poll in polls],
            "missing": [poll.is_missing for poll in polls],
        },
    )


def make_due(conn: Connection, sids: Sequence[UUID], now: datetime, gap_s: float = 2.0) -> int:
    """Have jobs asked about at the next round, at least ``gap_s`` after the last; return how many."""
    return conn.execute(_MAKE_DUE, {"sids": list(sids), "now": now, "gap_s": gap_s}).rowcount


def stage_reports(conn: Connection, reports: Iterable[Report]) -> int:
    """Keep the reports that are news until they are applied; return how many are."""
    with conn.transaction():
        conn.execute(
            "CREATE TEMP TABLE seen (sid uuid, transfer_id bigint, fts_file_id bigint, job_state text,"
            " file_state text, reason text, recoverable boolean, finished_at timestamptz,"
            " dst_size_bytes bigint, dst_adler32 text) ON COMMIT DROP"
        )
        with conn.cursor().copy("COPY seen FROM STDIN") as copy:
            for report in reports:
                copy.write_row(report)
        return conn.execute(_STAGE).rowcount


def take_reports(conn: Connection, at_most: int) -> list[ReportedFile]:
    """Take reports out of the stage, with the files that they still concern.

    Call it in the transaction that applies them: if that fails, they are still there.
    """
    rows = conn.execute(_TAKE, (at_most,))
    return [
        ReportedFile._make((*row[:_FILE_COLUMNS], Report(row[1], *row[_FILE_COLUMNS:])))
        for row in rows.fetchall()
    ]


def staged_reports(conn: Connection) -> int:
    """Return how many reports wait to be applied."""
    row = conn.execute("SELECT count(*) FROM fts_report").fetchone()
    return int(row[0]) if row else 0
