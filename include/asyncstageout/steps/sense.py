"""Asks FTS about every open job that is due, in bulk, and stages what is news for ``update_catalogue``."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from psycopg import Connection

from asyncstageout.catalogue.sensing import (
    LOST,
    OpenJob,
    Poll,
    Report,
    jobs_to_poll,
    record_polls,
    stage_reports,
)
from asyncstageout.clients.fts3 import FTS3Client
from asyncstageout.core.fts import FTSJobStatus, JobAnswer, JobForbidden, JobMissing
from asyncstageout.core.outcomes import Verdict, verdict
from asyncstageout.core.polling import REFUSED_INTERVAL_S, poll_interval_s

logger = logging.getLogger(__name__)

JOBS_PER_ROUND = 1000


@dataclass(frozen=True, slots=True)
class Round:
    """What one round of asking brought."""

    jobs: int
    """Jobs asked about."""
    news: int
    """Files whose end was not known yet."""


def sense_once(
    conn: Connection, client: FTS3Client, *, now: datetime, at_most: int = JOBS_PER_ROUND
) -> Round:
    """Ask about the jobs that are due and stage every file that is final at FTS.

    Raises:
        FTSError: FTS did not answer; the jobs stay due.
    """
    jobs = jobs_to_poll(conn, at_most)
    if not jobs:
        return Round(0, 0)
    answers = client.statuses(
        [job.job_id for job in jobs], files_per_job={job.job_id: job.file_count for job in jobs}
    )
    answers = [_from_archive(client, answer) for answer in answers]
    paired = list(zip(jobs, answers, strict=True))
    # Staged before the next poll is put off: if this dies between the two, FTS is just asked again.
    news = stage_reports(conn, (report for job, answer in paired for report in _reports(job, answer)))
    record_polls(conn, [_next_poll(job, answer, now) for job, answer in paired])
    return Round(len(jobs), news)


def _from_archive(client: FTS3Client, answer: JobAnswer) -> JobAnswer:
    """FTS moves jobs to its archive 7 days after their end; a 404 alone is no proof of loss."""
    return client.archived(answer.job_id) if isinstance(answer, JobMissing) else answer


def _reports(job: OpenJob, answer: JobAnswer) -> Iterator[Report]:
    if isinstance(answer, JobMissing):
        logger.warning("FTS knows job %s neither live nor in its archive", answer.job_id)
        yield Report(job.sid, None, None, LOST, LOST, "FTS does not know the job any more", None, None)
    elif isinstance(answer, FTSJobStatus):
        for file in answer.files:
            if file.transfer_id is not None and verdict(answer.state, file.state) is not Verdict.WAIT:
                yield Report(
                    job.sid, file.transfer_id, file.file_id, answer.state, file.state,
                    file.reason, file.recoverable, file.finished_at, file.dst_size_bytes, file.dst_adler32,
                )  # fmt: skip


def _next_poll(job: OpenJob, answer: JobAnswer, now: datetime) -> Poll:
    if isinstance(answer, JobForbidden):
        logger.warning("FTS does not show us job %s: %s", answer.job_id, answer.message)
        return Poll(job.sid, "FORBIDDEN", now + timedelta(seconds=REFUSED_INTERVAL_S))
    state = answer.state if isinstance(answer, FTSJobStatus) else LOST
    interval_s = poll_interval_s((now - job.submitted_at).total_seconds(), state)
    return Poll(job.sid, state, now + timedelta(seconds=interval_s))


def sentence(rounds: Sequence[Round]) -> str:
    """Say what a shift of rounds brought."""
    asked = sum(one.jobs for one in rounds)
    return f"Asked FTS {asked:,} times about a job; {sum(one.news for one in rounds):,} files ended"
