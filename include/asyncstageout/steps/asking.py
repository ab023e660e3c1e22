"""Asks one FTS about many jobs: several requests at a time, files only where they can have changed.

One job that cannot be read, or too many at once, is found by halving and does not stop the others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar
from uuid import UUID

from asyncstageout.catalogue.sensing import OpenJob
from asyncstageout.clients.errors import BadAnswer, FTSError, RequestTooLong, ServerFault, TooManyIds
from asyncstageout.clients.fts3 import MAX_IDS_PER_REQUEST, FTS3Client
from asyncstageout.core.fts import FTSJobStatus, JobAnswer, chunks
from asyncstageout.core.polling import QUEUED, wants_files, work

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

THREADS = 3
FILES_PER_REQUEST = 2000
"""Some 10 ms of JSON, in which nothing else runs in this process."""
MAX_TRIES_PER_REQUEST = 40
"""Enough to find two or three bad jobs among a hundred by halving."""

DIVISIBLE = (TooManyIds, RequestTooLong, BadAnswer, ServerFault)
"""What may be the fault of one job among several, or of their number."""


@dataclass(slots=True)
class Answers:
    """What FTS said about jobs. A job that is in neither collection got no answer."""

    found: dict[UUID, JobAnswer] = field(default_factory=dict)
    unreadable: set[UUID] = field(default_factory=set)
    problem: FTSError | None = None
    """The last one that left a job without an answer."""
    work: int = 0
    """What it cost FTS, see :func:`asyncstageout.core.polling.work`."""

    def __ior__(self, other: Answers) -> Answers:
        self.found |= other.found
        self.unreadable |= other.unreadable
        self.problem = other.problem or self.problem
        self.work += other.work
        return self


@dataclass(frozen=True, slots=True)
class _Question:
    jobs: Sequence[OpenJob]
    with_files: bool


def ask_about(client: FTS3Client, jobs: Sequence[OpenJob], now: datetime) -> Answers:
    """Return what FTS says about the jobs; an error of it is part of the answers, never raised."""
    whole = [job for job in jobs if _wants_files(job, now)]
    states = [job for job in jobs if not _wants_files(job, now)]
    answers = _ask_all(client, [*_questions(whole, with_files=True), *_questions(states, with_files=False)])
    begun = [job for job in states if _has_begun(answers.found.get(job.job_id))]
    answers |= _ask_all(client, _questions(begun, with_files=True))
    return answers


def in_threads(ask: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Return ``ask`` of each, in order, a few at a time."""
    if len(items) < 2:
        return [ask(item) for item in items]
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(ask, items))


def _wants_files(job: OpenJob, now: datetime) -> bool:
    return wants_files(job.fts_state, submitted_at=job.submitted_at, polled_at=job.polled_at, now=now)


def _has_begun(answer: JobAnswer | None) -> bool:
    return isinstance(answer, FTSJobStatus) and answer.state not in QUEUED


def _questions(jobs: Sequence[OpenJob], *, with_files: bool) -> list[_Question]:
    parts = chunks(
        jobs,
        max_items=MAX_IDS_PER_REQUEST,
        max_weight=FILES_PER_REQUEST,
        weight=lambda job: job.file_count if with_files else 0,
    )
    return [_Question(part, with_files) for part in parts]


def _ask_all(client: FTS3Client, questions: Sequence[_Question]) -> Answers:
    together = Answers()
    for answers in in_threads(lambda question: _ask(client, question), questions):
        together |= answers
    return together


def _ask(client: FTS3Client, question: _Question) -> Answers:
    answers = Answers()
    to_ask, tries = [question.jobs], 0
    while to_ask:
        part = to_ask.pop()
        tries += 1
        try:
            answers.found |= _statuses(client, part, with_files=question.with_files)
        except DIVISIBLE as error:
            if len(part) > 1 and tries < MAX_TRIES_PER_REQUEST:
                to_ask += [part[len(part) // 2 :], part[: len(part) // 2]]
            else:
                _give_up(answers, part, error)
        except FTSError as error:
            answers.problem = error
            break
    counts = [job.file_count for job in question.jobs]
    answers.work = work(counts, with_files=question.with_files, requests=tries)
    return answers


def _statuses(client: FTS3Client, jobs: Sequence[OpenJob], *, with_files: bool) -> dict[UUID, JobAnswer]:
    ids = [job.job_id for job in jobs]
    sizes = {job.job_id: job.file_count for job in jobs}
    return dict(zip(ids, client.statuses(ids, with_files=with_files, files_per_job=sizes), strict=True))


def _give_up(answers: Answers, jobs: Iterable[OpenJob], error: FTSError) -> None:
    ids = {job.job_id for job in jobs}
    logger.warning("cannot read what FTS says about %s: %s", ", ".join(map(str, sorted(ids))), error)
    answers.unreadable |= ids
    answers.problem = error
