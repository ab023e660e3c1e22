"""FTS jobs between the acceptance and the end: which to ask about, what was learnt, what it changes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from psycopg import Connection


@dataclass(frozen=True, slots=True)
class OpenJob:
    """A job that FTS accepted and that has files without an outcome."""

    sid: UUID
    job_id: UUID
    fts_server: str
    file_count: int
    submitted_at: datetime


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
    """When a job was asked about, what state it had, and when to ask again."""

    sid: UUID
    fts_state: str
    next_poll_at: datetime


class ReportedFile(NamedTuple):
    """A report joined with the file that it speaks for."""

    transfer_id: int
    sid: UUID
    attempt: int
    source: str
    destination: str
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
"""

_TAKE = """
WITH taken AS (
    DELETE FROM fts_report WHERE id IN (
        SELECT id FROM fts_report ORDER BY id LIMIT %s FOR UPDATE SKIP LOCKED
    ) RETURNING *
)
SELECT t.id, r.sid, t.attempt, t.source, t.destination, t.size_bytes, t.adler32,
    CASE WHEN t.attempt > 1 THEN t.failure_category END,
    coalesce((SELECT (j.params->>'overwrite')::boolean FROM fts_job j WHERE j.sid = r.sid), false),
    r.transfer_id, r.fts_file_id, r.job_state, r.file_state, r.reason, r.recoverable, r.finished_at,
    r.dst_size_bytes, r.dst_adler32
FROM taken r JOIN transfer t
    ON t.fts_job = r.sid AND t.state IN ('SUBMITTED', 'KILL') AND t.id = coalesce(r.transfer_id, t.id)
ORDER BY t.id
"""


def jobs_to_poll(conn: Connection, at_most: int) -> list[OpenJob]:
    """Return the open jobs that are due to be asked about, the longest due first."""
    rows = conn.execute(
        "SELECT sid, job_id, fts_server, cardinality(transfer_ids), submitted_at FROM fts_job"
        " WHERE state = 'SUBMITTED' AND next_poll_at <= now() ORDER BY next_poll_at LIMIT %s",
        (at_most,),
    )
    return [OpenJob(*row) for row in rows]


def open_job_count(conn: Connection) -> int:
    """Return how many FTS jobs have files without an outcome."""
    row = conn.execute("SELECT count(*) FROM fts_job WHERE state = 'SUBMITTED'").fetchone()
    return int(row[0]) if row else 0


def record_polls(conn: Connection, polls: Sequence[Poll]) -> None:
    """Keep what state FTS gave to jobs and when to ask again."""
    conn.execute(
        "UPDATE fts_job j SET polled_at = now(), fts_state = p.state, next_poll_at = p.next_at"
        " FROM unnest(%s::uuid[], %s::text[], %s::timestamptz[]) AS p(sid, state, next_at)"
        " WHERE j.sid = p.sid AND j.state = 'SUBMITTED'",
        (
            [poll.sid for poll in polls],
            [poll.fts_state for poll in polls],
            [poll.next_poll_at for poll in polls],
        ),
    )


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
    return [ReportedFile(*row[:_FILE_COLUMNS], Report(row[1], *row[_FILE_COLUMNS:])) for row in rows]


def staged_reports(conn: Connection) -> int:
    """Return how many reports wait to be applied."""
    row = conn.execute("SELECT count(*) FROM fts_report").fetchone()
    return int(row[0]) if row else 0
