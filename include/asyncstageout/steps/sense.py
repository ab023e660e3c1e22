"""Finds out which files are final at FTS, and stages what is news for ``update_catalogue``.

A job that FTS does not know is looked for in its archive, and counts as lost only when it was missing twice.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from psycopg import Connection

from asyncstageout.catalogue.fts_servers import note_contact, servers
from asyncstageout.catalogue.sensing import (
    LOST,
    OpenJob,
    Poll,
    Report,
    files_by_destination,
    jobs_to_poll,
    missing_jobs,
    record_polls,
    servers_with_open_jobs,
    stage_reports,
)
from asyncstageout.clients.errors import FTSError, NotAuthorised, Transient, Untrusted
from asyncstageout.clients.fts3 import FTS3Client
from asyncstageout.core.fts import FTSFileStatus, FTSJobStatus, JobForbidden, JobMissing
from asyncstageout.core.identities import SERVICE
from asyncstageout.core.outcomes import LOST_AFTER_S, Verdict, is_stuck, lost_after_s, said_most, verdict
from asyncstageout.core.polling import (
    MISSING_INTERVAL_S,
    REFUSED_INTERVAL_S,
    UNREADABLE_INTERVAL_S,
    Allowance,
    is_lively,
    poll_interval_s,
    wants_files,
    work,
)
from asyncstageout.core.states import FTS_JOB_FINAL
from asyncstageout.steps import collector
from asyncstageout.steps.asking import Answers, ask_about, in_threads
from asyncstageout.steps.crashpoints import reached
from asyncstageout.steps.door import FTSClients

logger = logging.getLogger(__name__)

JOBS_PER_ROUND = 1000
ARCHIVE_LOOKS_PER_ROUND = 200
"""About a second of questions: an FTS that forgot 1,000 jobs is known to within two minutes."""

FileNumbers = Mapping[tuple[UUID, str], int]
"""Our number of a file by (sid, destination URL)."""


@dataclass(frozen=True, slots=True)
class Round:
    """What one round of asking brought."""

    jobs: int
    """Jobs asked about."""
    news: int
    """Files whose end was not known yet."""
    missing: int = 0
    """Jobs that FTS does not know and that do not count as lost yet."""


@collector.waits()
def sense_once(
    conn: Connection,
    client: FTS3Client,
    *,
    now: datetime,
    at_most: int = JOBS_PER_ROUND,
    allowance: Allowance | None = None,
    fts_server: str | None = None,
) -> Round:
    """Ask about jobs that are due, as far as the allowance goes, and stage every file that is final at FTS.

    Args:
        fts_server: whose jobs; None: all are at this one.

    Raises:
        FTSError: FTS said nothing that can be used.
    """
    allowance = allowance or Allowance()
    jobs = list(_affordable(jobs_to_poll(conn, now, at_most, fts_server), allowance.room(now), now))
    if not jobs:
        return Round(0, 0)
    answers = ask_about(client, jobs, now)
    missing = [job for job in jobs if isinstance(answers.found.get(job.job_id), JobMissing)]
    lost = _lost(conn, client, missing, answers, now=now, fts_server=fts_server)
    allowance.spend(answers.work)
    reached("sense.after_fetch")
    # Staged before the next poll is put off: if this dies between the two, FTS is just asked again.
    news = stage_reports(conn, [*_lost_reports(lost), *_reports(conn, jobs, answers, now)])
    reached("sense.after_stage")
    record_polls(conn, [poll for job in jobs if (poll := _next_poll(job, answers, now))], now)
    if answers.problem and not answers.found:
        raise answers.problem
    still = sum(isinstance(answers.found[job.job_id], JobMissing) for job in missing) - len(lost)
    return Round(len(jobs), news, still)


def look_at_server(
    conn: Connection,
    client: FTS3Client,
    *,
    fts_server: str,
    now: datetime,
    allowance: Allowance | None = None,
) -> Round:
    """Ask one server about its jobs, and note its silence.

    Raises:
        FTSError: it said nothing that can be used.
    """
    try:
        return sense_once(conn, client, now=now, allowance=allowance, fts_server=fts_server)
    except (Transient, Untrusted) as silence:
        note_contact(conn, fts_server, str(silence), now)
        raise


def look_everywhere(
    conn: Connection,
    clients: FTSClients,
    open_catalogue: Callable[[], AbstractContextManager[Connection]],
    *,
    now: datetime,
) -> dict[str, Round | FTSError]:
    """Ask all servers at once about what is due there; those that are down or failing are left out.

    Args:
        open_catalogue: gives each server's thread a connection of its own.
    """

    def look(name: str) -> Round | FTSError:
        try:
            client = clients.client(name, SERVICE)
            with open_catalogue() as own:
                return look_at_server(own, client, fts_server=name, now=now)
        except FTSError as problem:
            return problem

    away = {server.name for server in servers(conn) if server.failing_since or server.state == "down"}
    names = [name for name in servers_with_open_jobs(conn) if name not in away]
    return dict(zip(names, in_threads(look, names), strict=True))


def contact(conn: Connection, client: FTS3Client, *, fts_server: str, now: datetime) -> None:
    """Ask a server for its version, the cheapest thing to ask for, and note whether it answered."""
    problem = version = None
    try:
        version = client.version().api
    except NotAuthorised:
        # It is there; whom it lets in is for the submission to say.
        pass
    except FTSError as error:
        problem = str(error)
        logger.warning("%s does not answer: %s", fts_server, error)
    note_contact(conn, fts_server, problem, now, version)


def _affordable(jobs: Iterable[OpenJob], room: float, now: datetime) -> Iterator[OpenJob]:
    """Give jobs while there is room; the last may overdraw it, or a large one would never have its turn."""
    for job in jobs:
        if room <= 0:
            return
        whole = wants_files(job.fts_state, submitted_at=job.submitted_at, polled_at=job.polled_at, now=now)
        room -= work([job.file_count], with_files=whole, requests=0)
        yield job


# --- jobs that FTS does not know ---


def _lost(
    conn: Connection,
    client: FTS3Client,
    missing: Sequence[OpenJob],
    answers: Answers,
    *,
    now: datetime,
    fts_server: str | None,
) -> list[OpenJob]:
    """Return the jobs that are lost for good; what the archive knows of others becomes their answer."""
    enough = timedelta(seconds=LOST_AFTER_S)
    again = [job for job in missing if job.missing_at and now - job.missing_at >= enough]
    if not again:
        return []
    gone = _not_in_archive(client, again[:ARCHIVE_LOOKS_PER_ROUND], answers)
    # Only questions since the youngest of these went missing tell whether FTS as a whole forgot.
    since = max(job.missing_at for job in again if job.missing_at)
    unknown, asked = missing_jobs(conn, since, fts_server)
    patience = timedelta(seconds=lost_after_s(unknown, asked))
    lost = [job for job in gone if job.missing_at and now - job.missing_at >= patience]
    if len(lost) < len(gone):
        logger.warning(
            "FTS does not know %d of %d jobs: none counts as lost before %.0f s",
            unknown, asked, patience.total_seconds(),
        )  # fmt: skip
    return lost


def _not_in_archive(client: FTS3Client, jobs: Sequence[OpenJob], answers: Answers) -> list[OpenJob]:
    """FTS moves jobs to its archive 7 days after their end; a 404 alone is no proof of loss."""

    def look(job: OpenJob) -> FTSJobStatus | JobMissing | None:
        try:
            return client.archived(job.job_id)
        except FTSError as error:
            logger.warning("%s", error)
            return None

    gone = []
    for job, found in zip(jobs, in_threads(look, jobs), strict=True):
        if isinstance(found, FTSJobStatus):
            answers.found[job.job_id] = found
        elif found:
            gone.append(job)
    answers.work += work([job.file_count for job in jobs], requests=len(jobs))
    return gone


def _lost_reports(jobs: Iterable[OpenJob]) -> Iterator[Report]:
    for job in jobs:
        logger.warning("FTS knows job %s neither live nor in its archive", job.job_id)
        yield Report(job.sid, None, None, LOST, LOST, "FTS does not know the job any more", None, None)


# --- files that are final ---


def _reports(conn: Connection, jobs: Sequence[OpenJob], answers: Answers, now: datetime) -> Iterator[Report]:
    answered = [
        (job, found) for job in jobs if isinstance(found := answers.found.get(job.job_id), FTSJobStatus)
    ]
    numbers = _numbers_of_nameless(conn, answered)
    for job, answer in answered:
        yield from _file_reports(job, answer, numbers)
        if answer.state in FTS_JOB_FINAL and is_stuck(job.final_at, now):
            reason = f"FTS ended the job ({answer.state}) over an hour ago and left this file unfinished"
            yield Report(job.sid, None, None, answer.state, "FAILED", reason, True, answer.finished_at)


def _numbers_of_nameless(conn: Connection, answered: Iterable[tuple[OpenJob, FTSJobStatus]]) -> FileNumbers:
    """Look up the files that FTS gave back without the number that we had sent along."""
    sids = [job.sid for job, answer in answered if any(file.transfer_id is None for file in answer.files)]
    return files_by_destination(conn, sids) if sids else {}


def _file_reports(job: OpenJob, answer: FTSJobStatus, numbers: FileNumbers) -> Iterator[Report]:
    if all(verdict(answer.state, file.state) is Verdict.WAIT for file in answer.files):
        return
    lines: defaultdict[int | None, list[FTSFileStatus]] = defaultdict(list)
    for file in answer.files:
        number = _number(file.transfer_id) or numbers.get((job.sid, file.dest_url))
        lines[number].append(file)
    for transfer_id, files in lines.items():
        if transfer_id is not None and (said := said_most(answer.state, files)):
            yield Report(
                job.sid, transfer_id, _number(said.file_id), _storable(answer.state), said.state,
                _storable(said.reason), bool(said.recoverable) if said.recoverable is not None else None,
                said.finished_at, _size(said.dst_size_bytes), said.dst_adler32,
            )  # fmt: skip


def _number(value: object) -> int | None:
    """Return what the catalogue can hold as a number: metadata are whatever somebody sent."""
    return value if isinstance(value, int) and 0 < value < 2**63 else None


def _size(value: object) -> int | None:
    """The same of a size, which may be nothing."""
    return 0 if value == 0 else _number(value)


def _storable(text: object) -> str:
    """Return a text of FTS without what Postgres refuses, or one word would stop all others."""
    return str(text).encode("utf-8", "replace").decode().replace("\0", "")


# --- the next question ---


def _next_poll(job: OpenJob, answers: Answers, now: datetime) -> Poll | None:
    """Return when to ask again; None for a job without an answer, which stays due."""

    def after(seconds: float) -> datetime:
        return now + timedelta(seconds=seconds)

    if job.job_id in answers.unreadable:
        return Poll(job.sid, None, after(UNREADABLE_INTERVAL_S))
    match answers.found.get(job.job_id):
        case FTSJobStatus() as answer:
            age_s = (now - job.submitted_at).total_seconds()
            interval_s = poll_interval_s(age_s, answer.state, lively=is_lively(answer, now))
            return Poll(
                job.sid, _storable(answer.state), after(interval_s), is_final=answer.state in FTS_JOB_FINAL
            )
        case JobMissing():
            return Poll(job.sid, None, after(MISSING_INTERVAL_S), is_missing=True)
        case JobForbidden(message=message):
            logger.warning("FTS does not show us job %s: %s", job.job_id, message)
            return Poll(job.sid, "FORBIDDEN", after(REFUSED_INTERVAL_S))
    return None


def sentence(rounds: Sequence[Round]) -> str:
    """Say what a shift of rounds brought."""
    asked = sum(one.jobs for one in rounds)
    text = f"Asked FTS {asked:,} times about a job; {sum(one.news for one in rounds):,} files ended"
    missing = max((one.missing for one in rounds), default=0)
    return f"{text}; FTS does not know {missing:,} jobs just now" if missing else text
