"""Tells FTS to stop the files that people killed: whole jobs where it can, else file by file.

FTS says CANCELED at once, also of a copy that runs on for some seconds. So nothing ends here: the jobs are
asked about again at once, and what FTS says of each file decides, KILLED, or DONE where it was too late. To
tell FTS twice is harmless, and who dies before he noted it is followed by the next run.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime

from psycopg import Connection

from asyncstageout.catalogue.cancels import (
    JobToCancel,
    KillRun,
    close_unsent,
    ended,
    jobs_to_cancel,
    kept,
    note_told,
    still_open,
)
from asyncstageout.catalogue.fts_servers import note_contact
from asyncstageout.clients.credentials.model import CredentialProblem
from asyncstageout.clients.errors import FTSError, JobNotFound, NotAuthorised, Transient, Untrusted
from asyncstageout.clients.fts3 import MAX_IDS_PER_REQUEST, FTS3Client
from asyncstageout.core.fts import FTSJobStatus, JobAnswer, JobForbidden, chunks
from asyncstageout.core.identities import SERVICE
from asyncstageout.core.states import FTS_FILE_FINAL
from asyncstageout.steps.asking import DIVISIBLE, FILES_PER_REQUEST, in_threads
from asyncstageout.steps.crashpoints import reached
from asyncstageout.steps.door import FTSClients, Way
from asyncstageout.steps.recording import Summary, files

logger = logging.getLogger(__name__)

THREADS = 8
"""Servers and identities at once; a silent server takes a while."""

NOTHING = "FTS has nothing to stop"
BESIDE = {
    "unsent_files": "killed that FTS never heard of",
    "planned": "to be stopped when FTS confirms the job",
    "at_away": "at FTS servers that do not answer",
    "inseparable": "in one session with files that go on, so that they end as FTS says",
    "forbidden_files": "in jobs that FTS does not let us cancel",
}
"""Files of which FTS is not told, in the words of the sentence."""


@dataclass(slots=True)
class _Told:
    """What one server was told in one identity's name."""

    way: Way
    jobs: list[JobToCancel] = field(default_factory=list)
    """Of which FTS heard, whole or in part."""
    whole: int = 0
    single_files: int = 0
    forbidden: list[JobToCancel] = field(default_factory=list)
    """FTS does not let this identity cancel them."""
    problem: FTSError | None = None
    """The last one; jobs without an answer are told again."""


def cancel(conn: Connection, clients: FTSClients, *, now: datetime, step_run: int) -> Summary:
    """Tell every FTS that answers to stop what people killed since it was told last.

    Raises:
        FTSError: a server did not take it; the others did.
    """
    unsent = close_unsent(conn, step_run)
    by_way: defaultdict[Way, list[JobToCancel]] = defaultdict(list)
    for job in jobs_to_cancel(conn, now):
        by_way[Way(job.fts_server, job.identity)].append(job)
    reached("cancel.before_telling")
    with ThreadPoolExecutor(THREADS, thread_name_prefix="cancel") as pool:
        told = list(pool.map(lambda way: _tell(clients, way, by_way[way]), by_way))
    reached("cancel.after_telling")
    note_told(conn, [job.sid for one in told for job in one.jobs], step_run, now)
    problems = [(one.way.server, one.problem) for one in told if one.problem]
    for server, problem in problems:
        if isinstance(problem, Transient | Untrusted):
            note_contact(conn, server, str(problem), now)
    summary = _summary(conn, told, unsent)
    if problems:
        logger.warning("%s", summary.sentence)
        raise problems[0][1]
    return summary


def to_cancel(conn: Connection, *, now: datetime) -> Summary:
    """Say whether FTS is to be told anything, and how much."""
    count, left = sum(len(job.transfer_ids) for job in jobs_to_cancel(conn, now)), kept(conn)
    sentence = f"FTS is to stop {files(count)}" if count else NOTHING
    # Of the planned ones FTS may never have heard.
    return Summary(_beside(sentence, left._asdict()), {"files": count + left.planned})


def outcome(conn: Connection, run: KillRun) -> Summary:
    """Say what became of the files that were under way when a run killed them, or told FTS to stop them."""
    done, left = ended(conn, run), still_open(conn, run)
    sentence = f"Of {files(sum(done) + left)} under way {done.killed:,} were killed"
    if done.too_late:
        sentence += f", for {done.too_late:,} it was too late: they are DONE"
    if left:
        sentence += f", {left:,} have not ended (runbooks/kills-that-hang.md)"
    return Summary(_beside(sentence, kept(conn)._asdict()), {**done._asdict(), "open": left})


def _tell(clients: FTSClients, way: Way, jobs: Sequence[JobToCancel]) -> _Told:
    told = _Told(way)
    try:
        client = _client(clients, way)
    except FTSError as problem:
        logger.warning("%s: %s", way.server, problem)
        told.problem = problem
    else:
        _cancel_whole(client, [job for job in jobs if job.is_whole], told)
        _cancel_files(client, [job for job in jobs if not job.is_whole], told)
    return told


def _client(clients: FTSClients, way: Way) -> FTS3Client:
    try:
        client = clients.client(*way)
        # Whom FTS does not know is told so now, not with the first job.
        logger.debug("jobs at %s are cancelled as a member of %s", way.server, client.vo)
    except (CredentialProblem, NotAuthorised) as problem:
        # As FTS is set up, members of a VO may cancel each other's jobs.
        logger.warning("%s; the service cancels its jobs at %s", problem, way.server)
        return clients.client(way.server, SERVICE)
    return client


def _cancel_whole(client: FTS3Client, jobs: Sequence[JobToCancel], told: _Told) -> None:
    def ask(part: Sequence[JobToCancel]) -> list[JobAnswer]:
        return client.cancel_jobs([job.job_id for job in part])

    for job, answer in _each(ask, jobs, told):
        if _is_ours(job, answer, told):
            told.jobs.append(job)  # also of one that FTS does not know: sensing finds out
            told.whole += 1


def _cancel_files(client: FTS3Client, jobs: Sequence[JobToCancel], told: _Told) -> None:
    """Cancel files of jobs in which others go on, or which FTS ended without ending these."""

    def ask(part: Sequence[JobToCancel]) -> list[JobAnswer]:
        return client.statuses([job.job_id for job in part])

    def cancel_running(found: tuple[JobToCancel, list[int]]) -> FTSError | None:
        job, numbers = found
        try:
            if numbers:
                client.cancel_files(job.job_id, numbers)
        except JobNotFound:
            pass  # sensing finds out
        except FTSError as problem:
            logger.warning("job %s: %s", job.job_id, problem)
            return problem
        return None

    found = [
        (job, _running(job, answer)) for job, answer in _each(ask, jobs, told) if _is_ours(job, answer, told)
    ]
    for (job, numbers), problem in zip(found, in_threads(cancel_running, found), strict=True):
        if problem is None:
            told.jobs.append(job)
            told.single_files += len(numbers)
        told.problem = problem or told.problem


def _each(
    ask: Callable[[Sequence[JobToCancel]], Sequence[JobAnswer]], jobs: Sequence[JobToCancel], told: _Told
) -> Iterator[tuple[JobToCancel, JobAnswer]]:
    """Yield what FTS says of each job; who of several is to blame for an error is found by halving."""
    parts = list(
        chunks(
            jobs,
            max_items=MAX_IDS_PER_REQUEST,
            max_weight=FILES_PER_REQUEST,
            weight=lambda job: job.file_count,
        )
    )
    while parts:
        part = parts.pop()
        try:
            answers = ask(part)
        except FTSError as problem:
            if isinstance(problem, DIVISIBLE) and len(part) > 1:
                parts += [part[: len(part) // 2], part[len(part) // 2 :]]
                continue
            logger.warning("%s: %s", told.way.server, problem)
            told.problem = problem
            if not isinstance(problem, DIVISIBLE):
                return  # it would say the same of the others
            continue
        yield from zip(part, answers, strict=True)


def _is_ours(job: JobToCancel, answer: JobAnswer, told: _Told) -> bool:
    if isinstance(answer, JobForbidden):
        logger.warning("FTS does not let us cancel job %s: %s", job.job_id, answer.message)
        told.forbidden.append(job)
        return False
    return True


def _running(job: JobToCancel, answer: JobAnswer) -> list[int]:
    """Return FTS's numbers of the files that are to stop and have not ended there."""
    if not isinstance(answer, FTSJobStatus):
        return []
    wanted = set(job.transfer_ids)
    return [
        file.file_id
        for file in answer.files
        if file.transfer_id in wanted and file.file_id is not None and file.state not in FTS_FILE_FINAL
    ]


def _summary(conn: Connection, told: Sequence[_Told], unsent: int) -> Summary:
    counts = {
        "files": sum(len(job.transfer_ids) for one in told for job in one.jobs),
        "jobs": sum(len(one.jobs) for one in told),
        "whole_jobs": sum(one.whole for one in told),
        "single_files": sum(one.single_files for one in told),
        "unsent_files": unsent,
        "forbidden_files": sum(len(job.transfer_ids) for one in told for job in one.forbidden),
        **kept(conn)._asdict(),
    }
    problems = [f"{one.way.server} did not take it: {one.problem}" for one in told if one.problem]
    return Summary("; ".join([_beside(_told_sentence(counts), counts), *problems]), counts)


def _beside(sentence: str, counts: Mapping[str, int]) -> str:
    """Add the files of which FTS is not told."""
    parts = [f"{files(counts[name])} {words}" for name, words in BESIDE.items() if counts.get(name)]
    return "; ".join([sentence, *parts])


def _told_sentence(counts: dict[str, int]) -> str:
    if not counts["jobs"]:
        return NOTHING
    ways = [f"{counts['whole_jobs']:,} whole jobs"] if counts["whole_jobs"] else []
    ways += [f"{files(counts['single_files'])} one by one"] if counts["single_files"] else []
    return f"FTS was told to stop {files(counts['files'])} ({', '.join(ways) or 'they had ended there'})"
