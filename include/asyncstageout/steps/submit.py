"""Third step of a cycle: tell FTS about planned jobs, so that each is accepted exactly once.

A job stays PLANNED until FTS is known to have it. Its id is deterministic, so the same POST may be repeated
by anybody at any time: FTS answers with the job or with "this sid exists", and both mean accepted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from uuid import UUID, uuid4

from psycopg import Connection

from asyncstageout.catalogue.identity_holds import hold, let_go
from asyncstageout.catalogue.jobs import (
    JobToSubmit,
    blames_file,
    close_refused,
    jobs_to_submit,
    planned_in_shard,
    record_accepted,
    release,
    split,
)
from asyncstageout.catalogue.transitions import Move, apply_moves
from asyncstageout.clients.delegation import CannotDelegate
from asyncstageout.clients.errors import (
    DelegationNeeded,
    DestinationBusy,
    FTSError,
    NotAuthorised,
    ServerFault,
    StorageBanned,
    SubmissionRefused,
    Untrusted,
)
from asyncstageout.clients.fts3 import FTS3Client
from asyncstageout.core.failures import Category, own_failure
from asyncstageout.core.fts import NotSubmittable
from asyncstageout.core.states import TransferState
from asyncstageout.steps.crashpoints import reached
from asyncstageout.steps.door import Door
from asyncstageout.steps.recording import Summary, files
from asyncstageout.steps.refusals import Problem, Refusal, Search, culprit_of

logger = logging.getLogger(__name__)

THREADS = 4
"""POSTs under way at once; one FTS host serves 30 requests at a time, to everybody."""
HOLD_S = 300.0
"""For how long nothing is submitted for an identity that FTS does not let in."""
UNEXPLAINED_WAIT_S = 300.0
WAITS_S: dict[type[Problem], float] = {
    StorageBanned: 300.0,
    DestinationBusy: 60.0,
    ServerFault: 300.0,
}
"""How long the files of a job that FTS does not take now stay out of cycles; no attempt is used."""

ABOUT_A_FILE = (SubmissionRefused, NotSubmittable, DestinationBusy, ServerFault)
"""Refusals of a whole job that may be the fault of one file in it."""
FOR_GOOD = (SubmissionRefused, NotSubmittable)
"""Of these, the ones that no waiting mends."""
NOT_LET_IN = (NotAuthorised, DelegationNeeded, CannotDelegate, Untrusted)
"""Not about this job: every other one of the same identity would meet the same."""


@dataclass(slots=True)
class _Tally:
    jobs: int = 0
    files: int = 0
    failed: int = 0
    released: int = 0
    splits: int = 0
    in_doubt: list[tuple[JobToSubmit, FTSError]] = field(default_factory=list)

    def summary(self) -> Summary:
        sentence = f"FTS accepted {self.jobs} jobs with {files(self.files)}"
        if self.failed:
            sentence += f"; refused {files(self.failed)} for good"
        if self.released:
            sentence += f"; {files(self.released)} wait, each with its reason"
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
            used an attempt: running the step again, or a later cycle, continues. For :data:`HOLD_S`, cycles
            leave an identity alone that was not let in.
    """
    step = _Submission(conn, client, step_run, new_sid)
    waiting = jobs_to_submit(conn, planned_in_shard(conn, cycle_id, shard))
    step.search_in(waiting)
    while waiting and not step.tally.in_doubt:
        for answers in _post_all(step.door, waiting, threads):
            step.settle(answers)
        waiting = jobs_to_submit(conn, step.next_jobs())
    if step.tally.in_doubt:
        logger.warning("%s", step.tally.summary().sentence)
        step.hold_identities()
        raise step.tally.in_doubt[0][1]
    return step.tally.summary()


@dataclass(frozen=True, slots=True)
class _Answer:
    job: JobToSubmit
    job_id: UUID | None = None
    problem: Problem | None = None

    @property
    def stops(self) -> bool:
        """Whether FTS as a whole did not take what it was given: no answer, or not from us."""
        return isinstance(self.problem, FTSError) and not isinstance(
            self.problem, (*ABOUT_A_FILE, StorageBanned)
        )


def _post_all(door: Door, jobs: Sequence[JobToSubmit], threads: int) -> Iterator[list[_Answer]]:
    """Yield answers in handfuls as they come; after an answer that stops everything, POST no more."""
    with ThreadPoolExecutor(threads, thread_name_prefix="submit") as pool:
        running: set[Future[_Answer]] = {pool.submit(_post, door, job) for job in jobs}
        while running:
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            answers = [future.result() for future in ended if not future.cancelled()]
            if any(answer.stops for answer in answers):
                for future in running:
                    future.cancel()
            yield answers


def _post(door: Door, job: JobToSubmit) -> _Answer:
    reached("submit.before_post")
    try:
        return _Answer(job, job_id=door.submit(job))
    except (FTSError, NotSubmittable) as problem:
        return _Answer(job, problem=problem)


class _Submission:
    """One run of the step: what was answered, and what follows from it."""

    def __init__(
        self, conn: Connection, client: FTS3Client, step_run: int, new_sid: Callable[[], UUID]
    ) -> None:
        self.door = Door(client)
        self.tally = _Tally()
        self._conn = conn
        self._step_run = step_run
        self._new_sid = new_sid
        self._searches: dict[UUID, Search] = {}
        """By sid: the search that a job belongs to, of no length if FTS takes it at once."""
        self._parts: list[UUID] = []
        self._let_in: set[str] = set()

    def search_in(self, jobs: Sequence[JobToSubmit]) -> None:
        for job in jobs:
            self._searches[job.sid] = Search()

    def settle(self, answers: Sequence[_Answer]) -> None:
        """Write down what FTS said, as far as it needs no other answer to be understood."""
        self._accept([answer for answer in answers if answer.job_id])
        for answer in answers:
            if answer.problem is None:
                continue
            logger.warning("job %s (%s): %s", answer.job.sid, answer.job.link, answer.problem)
            refusal = Refusal(answer.job, answer.problem)
            if isinstance(answer.problem, FTSError) and answer.stops:
                self.tally.in_doubt.append((answer.job, answer.problem))
            elif (culprit := culprit_of(refusal)) is not None:
                self._take_out(refusal, culprit)
            elif isinstance(answer.problem, ABOUT_A_FILE):
                self._searches[answer.job.sid].refused.append(refusal)
            else:
                self._release(refusal, str(answer.problem))

    def next_jobs(self) -> list[UUID]:
        """Decide on what was refused, and return the jobs that came out of it."""
        for search in set(self._searches.values()):
            verdict = search.judge()
            for refusal in verdict.halve:
                self._split(refusal)
            for refusal in verdict.blamed:
                self._settle_single(refusal)
            self._settle_unexplained(verdict.unexplained)
        parts, self._parts = self._parts, []
        return parts

    def hold_identities(self) -> None:
        """If FTS does not let us in, have later cycles leave these identities alone for a while."""
        barred = [(job, problem) for job, problem in self.tally.in_doubt if isinstance(problem, NOT_LET_IN)]
        if barred:
            job, problem = barred[0]
            identities = {job.identity for job, _ in barred}
            hold(self._conn, job.fts_server, identities, reason=str(problem), wait_s=HOLD_S)

    def _accept(self, answers: Sequence[_Answer]) -> None:
        accepted = [(answer.job.sid, answer.job_id) for answer in answers if answer.job_id]
        if not accepted:
            return
        reached("submit.after_post")
        self.tally.files += record_accepted(self._conn, accepted, self._step_run)
        self.tally.jobs += len(accepted)
        reached("submit.after_commit")
        for answer in answers:
            self._searches[answer.job.sid].accepted = True
            if answer.job.identity not in self._let_in:
                self._let_in.add(answer.job.identity)
                let_go(self._conn, answer.job.fts_server, [answer.job.identity])

    def _split(self, refusal: Refusal, first: Sequence[int] | None = None) -> tuple[UUID, UUID]:
        """Split a job in halves, or into these files, which are not submitted again, and the rest."""
        old = refusal.job.sid
        parts = (self._new_sid(), self._new_sid())
        if split(self._conn, old, parts, str(refusal.problem), self._step_run, first=first):
            self.tally.splits += 1
            self._parts += parts if first is None else parts[1:]
        for part in parts:
            self._searches[part] = self._searches[old]
        return parts

    def _take_out(self, refusal: Refusal, culprit: int) -> None:
        """Settle the one file that FTS named; the rest goes on."""
        job = refusal.job
        if len(job.files) > 1:
            sid, _ = self._split(refusal, [culprit])
            alone = tuple(file for file in job.files if file.transfer_id == culprit)
            refusal = Refusal(replace(job, sid=sid, files=alone), refusal.problem)
        self._settle_single(refusal)

    def _settle_single(self, refusal: Refusal) -> None:
        """Decide on a file that is at fault."""
        if isinstance(refusal.problem, FOR_GOOD):
            self.tally.failed += _refuse(self._conn, refusal, self._step_run)
        elif isinstance(refusal.problem, DestinationBusy):
            self._release(refusal, self.door.why_busy(refusal.job, refusal.problem))
        else:
            self._release(refusal, str(refusal.problem))

    def _settle_unexplained(self, refusals: Sequence[Refusal]) -> None:
        """Let files wait that FTS refuses like all others, until somebody has mended the parameters."""
        alone = len(refusals) == 1
        for refusal in refusals:
            single = len(refusal.job.files) == 1
            final = isinstance(refusal.problem, FOR_GOOD)
            if single and (not final or blames_file(self._conn, refusal.job.sid, alone=alone)):
                self._settle_single(refusal)
            else:
                self._release(refusal, f"FTS refuses every job on this link: {refusal.problem}")

    def _release(self, refusal: Refusal, reason: str) -> None:
        wait_s = WAITS_S.get(type(refusal.problem), UNEXPLAINED_WAIT_S)
        self.tally.released += release(
            self._conn, refusal.job.sid, reason, wait_s=wait_s, step_run=self._step_run
        )


def _refuse(conn: Connection, refusal: Refusal, step_run: int) -> int:
    job, reason = refusal.job, str(refusal.problem)
    failure = own_failure(Category.REFUSED, reason)
    moves = [Move(file.transfer_id, job.sid, TransferState.FAILED, failure) for file in job.files]
    with conn.transaction():
        moved = apply_moves(conn, moves, step_run)
        close_refused(conn, job.sid, reason)
    return sum(moved.values())
