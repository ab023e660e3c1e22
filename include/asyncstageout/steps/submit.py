"""Third step of a cycle: tell FTS about planned jobs, so that each is accepted exactly once.

A job stays PLANNED until FTS is known to have it. Its id is deterministic, so the same POST may be repeated
by anybody at any time: FTS answers with the job or with "this sid exists", and both mean accepted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from uuid import UUID, uuid4

from psycopg import Connection

from asyncstageout.catalogue.jobs import (
    JobToSubmit,
    close_refused,
    jobs_to_submit,
    planned_in_shard,
    record_accepted,
    release,
    split,
)
from asyncstageout.catalogue.transitions import Move, apply_moves
from asyncstageout.clients.errors import (
    DestinationBusy,
    FTSError,
    ServerFault,
    SidDuplicated,
    StorageBanned,
    SubmissionRefused,
)
from asyncstageout.clients.fts3 import FTS3Client
from asyncstageout.core.failures import Category, own_failure
from asyncstageout.core.fts import JobParams, JobSubmission, NotSubmittable, TransferFile
from asyncstageout.core.fts_ids import deterministic_job_id
from asyncstageout.core.states import TransferState
from asyncstageout.steps.crashpoints import reached
from asyncstageout.steps.recording import Summary, files

logger = logging.getLogger(__name__)

THREADS = 4
"""POSTs under way at once; one FTS host serves 30 requests at a time, to everybody."""
BUSY_WAIT_S = 60.0
BANNED_WAIT_S = 300.0
FAULT_WAIT_S = 300.0

Problem = FTSError | NotSubmittable
ABOUT_A_FILE = (SubmissionRefused, NotSubmittable, DestinationBusy, ServerFault)
"""Refusals of a whole job that may be the fault of one file in it."""


@dataclass(slots=True)
class _Tally:
    jobs: int = 0
    files: int = 0
    failed: int = 0
    released: int = 0
    splits: int = 0
    in_doubt: list[FTSError] = field(default_factory=list)

    def summary(self) -> Summary:
        sentence = f"FTS accepted {self.jobs} jobs with {files(self.files)}"
        if self.failed:
            sentence += f"; refused {files(self.failed)} for good"
        if self.released:
            sentence += f"; {files(self.released)} wait for their storage"
        return Summary(
            sentence,
            {"jobs": self.jobs, "files": self.files, "refused_files": self.failed,
             "released_files": self.released, "splits": self.splits},
        )  # fmt: skip


def submit(
    conn: Connection,
    client: FTS3Client,
    *,
    cycle_id: int,
    shard: int,
    step_run: int,
    threads: int = THREADS,
    new_sid: Callable[[], UUID] = uuid4,
) -> Summary:
    """Submit the shard's jobs that FTS has not confirmed yet.

    Raises:
        FTSError: FTS did not answer, or does not let us. Jobs without an answer stay PLANNED, and no file has
            used an attempt: running the step again, or the next cycle, continues.
    """
    tally = _Tally()
    waiting = jobs_to_submit(conn, planned_in_shard(conn, cycle_id, shard))
    while waiting and not tally.in_doubt:
        parts: list[UUID] = []
        for answers in _post_all(client, waiting, threads):
            parts += _settle(conn, answers, tally, step_run, new_sid)
        waiting = jobs_to_submit(conn, parts)
    if tally.in_doubt:
        logger.warning("%s", tally.summary().sentence)
        raise tally.in_doubt[0]
    return tally.summary()


@dataclass(frozen=True, slots=True)
class _Answer:
    job: JobToSubmit
    job_id: UUID | None = None
    problem: Problem | None = None


def _post_all(client: FTS3Client, jobs: Sequence[JobToSubmit], threads: int) -> Iterator[list[_Answer]]:
    """Yield answers in handfuls as they come; after an answer that stops everything, POST no more."""
    with ThreadPoolExecutor(threads, thread_name_prefix="submit") as pool:
        running: set[Future[_Answer]] = {pool.submit(_post, client, job) for job in jobs}
        while running:
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            answers = [future.result() for future in ended if not future.cancelled()]
            if any(_stops(answer) for answer in answers):
                for future in running:
                    future.cancel()
            yield answers


def _post(client: FTS3Client, job: JobToSubmit) -> _Answer:
    reached("submit.before_post")
    try:
        return _Answer(job, job_id=client.submit(_submission(job)))
    except SidDuplicated:
        # Our own earlier POST arrived and its answer was lost.
        return _Answer(job, job_id=deterministic_job_id(client.vo, str(job.sid)))
    except (FTSError, NotSubmittable) as problem:
        return _Answer(job, problem=problem)


def _submission(job: JobToSubmit) -> JobSubmission:
    return JobSubmission(
        sid=str(job.sid),
        files=tuple(
            TransferFile(
                transfer_id=file.transfer_id,
                attempt=file.attempt,
                source_url=file.source_url,
                dest_url=file.destination_url,
                size_bytes=file.size_bytes,
                adler32=file.adler32,
                activity=job.activity,
            )
            for file in job.files
        ),
        params=JobParams(
            **job.params,
            priority=job.priority,
            job_metadata={"issuer": "ASO", "cycle": job.cycle_id, "identity": job.identity},
        ),
    )


def _stops(answer: _Answer) -> bool:
    """Say whether FTS as a whole did not take what it was given: no answer, or not from us."""
    return isinstance(answer.problem, FTSError) and not isinstance(
        answer.problem, (*ABOUT_A_FILE, StorageBanned)
    )


def _settle(
    conn: Connection,
    answers: Sequence[_Answer],
    tally: _Tally,
    step_run: int,
    new_sid: Callable[[], UUID],
) -> list[UUID]:
    """Write down what FTS said; return the new jobs that came out of refused ones."""
    accepted = [(answer.job.sid, answer.job_id) for answer in answers if answer.job_id]
    if accepted:
        reached("submit.after_post")
        tally.files += record_accepted(conn, accepted, step_run)
        tally.jobs += len(accepted)
        reached("submit.after_commit")
    parts: list[UUID] = []
    for answer in answers:
        if answer.problem is None:
            continue
        logger.warning("job %s (%s): %s", answer.job.sid, answer.job.link, answer.problem)
        if isinstance(answer.problem, FTSError) and _stops(answer):
            tally.in_doubt.append(answer.problem)
        elif isinstance(answer.problem, ABOUT_A_FILE) and len(answer.job.files) > 1:
            halves = (new_sid(), new_sid())
            if split(conn, answer.job.sid, halves, str(answer.problem), step_run):
                tally.splits += 1
                parts += halves
        elif isinstance(answer.problem, SubmissionRefused | NotSubmittable):
            tally.failed += _refuse(conn, answer.job, str(answer.problem), step_run)
        else:
            wait_s = _WAITS_S[type(answer.problem)]
            tally.released += release(
                conn, answer.job.sid, str(answer.problem), wait_s=wait_s, step_run=step_run
            )
    return parts


_WAITS_S: dict[type[Problem], float] = {
    StorageBanned: BANNED_WAIT_S,
    DestinationBusy: BUSY_WAIT_S,
    ServerFault: FAULT_WAIT_S,
}
"""How long the files of a job that FTS does not take now stay out of cycles; no attempt is used."""


def _refuse(conn: Connection, job: JobToSubmit, reason: str, step_run: int) -> int:
    failure = own_failure(Category.REFUSED, reason)
    moves = [Move(file.transfer_id, job.sid, TransferState.FAILED, failure) for file in job.files]
    with conn.transaction():
        moved = apply_moves(conn, moves, step_run)
        close_refused(conn, job.sid, reason)
    return sum(moved.values())
