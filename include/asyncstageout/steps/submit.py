"""Third step of a cycle: tell FTS about planned jobs, so that each is accepted exactly once.

A job stays PLANNED until FTS is known to have it. Its id is deterministic, so the same POST may be repeated
by anybody at any time: FTS answers with the job or with "this sid exists", and both mean accepted.

A job stays with its server. Only one of which certainly no byte has left (catalogue.unsent_jobs) is given
back, when its server does not answer, or when there is no credential for it: its files are planned anew.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from uuid import UUID, uuid4

from psycopg import Connection

from asyncstageout.catalogue.fts_servers import installation_id
from asyncstageout.catalogue.identity_holds import let_go
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
from asyncstageout.catalogue.unsent_jobs import mark
from asyncstageout.clients.credentials.model import CredentialProblem
from asyncstageout.clients.errors import (
    DestinationBusy,
    FTSError,
    ServerFault,
    StorageBanned,
    SubmissionRefused,
)
from asyncstageout.core.failures import Category, own_failure
from asyncstageout.core.fts import NotSubmittable
from asyncstageout.core.states import TransferState
from asyncstageout.steps.crashpoints import reached
from asyncstageout.steps.door import Door, FTSClients, Way
from asyncstageout.steps.recording import Summary, files
from asyncstageout.steps.refusals import JobRefusal, JobSearch, Problem, culprit_of
from asyncstageout.steps.stops import Stops

logger = logging.getLogger(__name__)

THREADS = 4
"""POSTs under way at once; one FTS host serves 30 requests at a time, to everybody."""
HANDFUL_S = 0.25
"""So long an answer may wait for others; whoever is killed meanwhile leaves jobs that are POSTed again."""
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
ABOUT_A_JOB = (*ABOUT_A_FILE, StorageBanned)
"""What does not concern the other jobs; everything else stops a server or an identity."""


@dataclass(slots=True)
class _Tally:
    jobs: int = 0
    files: int = 0
    failed: int = 0
    released: int = 0
    splits: int = 0

    def sentence(self) -> str:
        sentence = f"FTS accepted {self.jobs} jobs with {files(self.files)}"
        if self.failed:
            sentence += f"; refused {files(self.failed)} for good"
        if self.released:
            sentence += f"; {files(self.released)} wait, each with its reason"
        return sentence

    def counts(self) -> dict[str, int]:
        return {
            "jobs": self.jobs, "files": self.files, "refused_files": self.failed,
            "released_files": self.released, "splits": self.splits,
        }  # fmt: skip


def submit(
    conn: Connection,
    clients: FTSClients,
    *,
    cycle_id: int,
    shard: int,
    step_run: int,
    threads: int = THREADS,
    new_sid: Callable[[], UUID] = uuid4,
) -> Summary:
    """Submit the shard's jobs that FTS has not confirmed yet, at all servers and for all identities of it.

    What stops one server or one identity does not stop the others.

    Raises:
        FTSError, CredentialProblem: a server did not answer and may have jobs, or a person must help. Jobs in
            doubt stay PLANNED, and no file has used an attempt: running the step again, or a later cycle,
            continues.
    """
    step = _Submission(conn, clients, step_run, new_sid)
    waiting = step.begin(planned_in_shard(conn, cycle_id, shard), threads)
    step.search_in(waiting)
    while waiting:
        for answers in step.post(waiting, threads):
            step.settle(answers)
        waiting = step.begin(step.next_jobs(), threads)
    outcome = step.stops.settle(conn, step.unsettled.values(), step_run)
    sentence = "; ".join([step.tally.sentence(), *outcome.sentences])
    if outcome.problem:
        logger.warning("%s", sentence)
        raise outcome.problem
    return Summary(sentence, step.tally.counts() | outcome.counts)


@dataclass(frozen=True, slots=True)
class _Answer:
    """What became of one POST; with neither id nor problem there was none, or one that stops its way."""

    job: JobToSubmit
    job_id: UUID | None = None
    problem: Problem | None = None


def _way(job: JobToSubmit) -> Way:
    return Way(job.fts_server, job.identity)


def _in_turn(jobs: Sequence[JobToSubmit]) -> list[JobToSubmit]:
    """Order jobs so that servers take turns: one that is slow to answer does not hold all threads first."""
    turns: dict[str, int] = {}
    placed = []
    for job in jobs:
        turns[job.fts_server] = turns.get(job.fts_server, 0) + 1
        placed.append((turns[job.fts_server], job))
    return [job for _, job in sorted(placed, key=lambda pair: pair[0])]


class _Submission:
    """One run of the step: what was answered, and what follows from it."""

    def __init__(
        self, conn: Connection, clients: FTSClients, step_run: int, new_sid: Callable[[], UUID]
    ) -> None:
        self.tally = _Tally()
        self.stops = Stops()
        self.unsettled: dict[UUID, JobToSubmit] = {}
        """Marked by this run, and without an answer that decides."""
        self._conn = conn
        self._clients = clients
        self._installation = installation_id(conn)
        self._step_run = step_run
        self._new_sid = new_sid
        self._doors: dict[Way, Door] = {}
        self._searches: dict[UUID, JobSearch] = {}
        """By sid: the search that a job belongs to, of no length if FTS takes it at once."""
        self._parts: list[UUID] = []
        self._let_in: set[Way] = set()

    def begin(self, sids: Sequence[UUID], threads: int) -> list[JobToSubmit]:
        """Mark jobs as ours, and return those whose door is open."""
        owned = mark(self._conn, sids, self._step_run) if sids else {}
        reached("submit.after_mark")
        jobs = jobs_to_submit(self._conn, list(owned)) if owned else []
        self.unsettled |= {job.sid: job for job in jobs}
        self.stops.owned |= {sid for sid, is_first in owned.items() if is_first}
        self._open({_way(job) for job in jobs} - self._doors.keys(), threads)
        return _in_turn([job for job in jobs if not self.stops.stopped(_way(job))])

    def post(self, jobs: Sequence[JobToSubmit], threads: int) -> Iterator[list[_Answer]]:
        """Yield answers in handfuls as they come, so that many are written down by one commit."""
        with ThreadPoolExecutor(threads, thread_name_prefix="submit") as pool:
            running = {pool.submit(self._post, job) for job in jobs}
            while running:
                ended, running = wait(running, timeout=HANDFUL_S)
                yield [future.result() for future in ended]

    def search_in(self, jobs: Sequence[JobToSubmit]) -> None:
        for job in jobs:
            self._searches[job.sid] = JobSearch()

    def settle(self, answers: Sequence[_Answer]) -> None:
        """Write down what FTS said, as far as it needs no other answer to be understood."""
        self._accept([answer for answer in answers if answer.job_id])
        for answer in answers:
            job, problem = answer.job, answer.problem
            if problem is None:
                continue
            refusal = JobRefusal(job, problem)
            if (culprit := culprit_of(refusal)) is not None:
                self._take_out(refusal, culprit)
            elif isinstance(problem, ABOUT_A_FILE):
                self._searches[job.sid].refused.append(refusal)
            else:
                self._release(refusal, str(problem))

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

    def _post(self, job: JobToSubmit) -> _Answer:
        """POST a job, in a thread, unless its way is stopped."""
        way = _way(job)
        if self.stops.stopped(way):
            return _Answer(job)
        reached("submit.before_post")
        try:
            return _Answer(job, job_id=self._doors[way].submit(job))
        except (FTSError, NotSubmittable, CredentialProblem) as problem:
            logger.warning("job %s (%s): %s", job.sid, job.link, problem)
            if isinstance(problem, ABOUT_A_JOB):
                return _Answer(job, problem=problem)
            # At once, and not by who waits for the answers: the next thread must not try the same.
            self.stops.stop(way, problem, job.sid)
            return _Answer(job)

    def _open(self, ways: set[Way], threads: int) -> None:
        """Open doors; a way that has none is stopped before anything is sent."""

        def door(way: Way) -> Door | FTSError | CredentialProblem:
            try:
                return Door(self._clients, way, self._installation)
            except (FTSError, CredentialProblem) as problem:
                return problem

        if not ways:
            return
        with ThreadPoolExecutor(threads, thread_name_prefix="door") as pool:
            for way, opened in zip(ways, pool.map(door, ways), strict=True):
                if isinstance(opened, Door):
                    self._doors[way] = opened
                else:
                    logger.warning("%s at %s: %s", way.identity, way.server, opened)
                    self.stops.stop(way, opened)

    def _accept(self, answers: Sequence[_Answer]) -> None:
        accepted = [(answer.job.sid, answer.job_id) for answer in answers if answer.job_id]
        if not accepted:
            return
        reached("submit.after_post")
        self.tally.files += record_accepted(self._conn, accepted, self._step_run)
        self.tally.jobs += len(accepted)
        reached("submit.after_commit")
        for answer in answers:
            del self.unsettled[answer.job.sid]
            self._searches[answer.job.sid].accepted = True
            if (way := _way(answer.job)) not in self._let_in:
                self._let_in.add(way)
                let_go(self._conn, way.server, [way.identity])

    def _split(self, refusal: JobRefusal, first: Sequence[int] | None = None) -> tuple[UUID, UUID]:
        """Split a job in halves, or into these files, which are not submitted again, and the rest."""
        old = refusal.job.sid
        self.unsettled.pop(old, None)
        parts = (self._new_sid(), self._new_sid())
        if split(self._conn, old, parts, str(refusal.problem), self._step_run, first=first):
            self.tally.splits += 1
            self._parts += parts if first is None else parts[1:]
        for part in parts:
            self._searches[part] = self._searches[old]
        return parts

    def _take_out(self, refusal: JobRefusal, culprit: int) -> None:
        """Settle the one file that FTS named; the rest goes on."""
        job = refusal.job
        if len(job.files) > 1:
            sid, _ = self._split(refusal, [culprit])
            alone = tuple(file for file in job.files if file.transfer_id == culprit)
            refusal = JobRefusal(replace(job, sid=sid, files=alone), refusal.problem)
        self._settle_single(refusal)

    def _settle_single(self, refusal: JobRefusal) -> None:
        """Decide on a file that is at fault."""
        self.unsettled.pop(refusal.job.sid, None)
        if isinstance(refusal.problem, FOR_GOOD):
            self.tally.failed += _refuse(self._conn, refusal, self._step_run)
        elif isinstance(refusal.problem, DestinationBusy):
            self._release(refusal, self._doors[_way(refusal.job)].why_busy(refusal.job, refusal.problem))
        else:
            self._release(refusal, str(refusal.problem))

    def _settle_unexplained(self, refusals: Sequence[JobRefusal]) -> None:
        """Let files wait that FTS refuses like all others, until somebody has mended the parameters."""
        alone = len(refusals) == 1
        for refusal in refusals:
            single = len(refusal.job.files) == 1
            final = isinstance(refusal.problem, FOR_GOOD)
            if single and (not final or blames_file(self._conn, refusal.job.sid, alone=alone)):
                self._settle_single(refusal)
            else:
                self._release(refusal, f"FTS refuses every job on this link: {refusal.problem}")

    def _release(self, refusal: JobRefusal, reason: str) -> None:
        self.unsettled.pop(refusal.job.sid, None)
        wait_s = WAITS_S.get(type(refusal.problem), UNEXPLAINED_WAIT_S)
        _, count = release(self._conn, [refusal.job.sid], reason, wait_s=wait_s, step_run=self._step_run)
        self.tally.released += count


def _refuse(conn: Connection, refusal: JobRefusal, step_run: int) -> int:
    job, reason = refusal.job, str(refusal.problem)
    failure = own_failure(Category.REFUSED, reason)
    moves = [Move(file.transfer_id, job.sid, TransferState.FAILED, failure) for file in job.files]
    with conn.transaction():
        moved = apply_moves(conn, moves, step_run)
        close_refused(conn, job.sid, reason)
    return sum(moved.values())
