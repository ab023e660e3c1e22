"""Compares the catalogue with itself and with FTS, mends what a death left behind, and says who must help.

To look is to mend and to take everything back, so that what is found and what is mended cannot differ.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

import psycopg
from psycopg import Connection

from asyncstageout.catalogue import repairs
from asyncstageout.catalogue.bell import ring
from asyncstageout.catalogue.jobs import close_refused, record_accepted
from asyncstageout.catalogue.repairs import InDoubt
from asyncstageout.clients.errors import FTSError
from asyncstageout.clients.fts3 import FTS3Client
from asyncstageout.core.fts import JobMissing
from asyncstageout.core.fts_ids import deterministic_job_id
from asyncstageout.steps.crashpoints import reached
from asyncstageout.steps.recording import Summary

logger = logging.getLogger(__name__)

IN_DOUBT_S = 60.0
"""As long as ``collect`` leaves a planned job to its own cycle."""
NEWEST_AT_FTS = 500
"""FTS lists no more; the oldest of more unfinished jobs are looked at when there are fewer."""
ISSUER = "ASO"
NAMED = 20


@dataclass(frozen=True, slots=True)
class Sightings:
    """What FTS says about jobs in doubt, and which jobs of ours it has that the catalogue does not know."""

    there: tuple[tuple[UUID, UUID], ...] = ()
    """(sid, FTS job id) of jobs in doubt that FTS has."""
    absent: tuple[InDoubt, ...] = ()
    unknown: tuple[UUID, ...] = ()
    silence: str | None = None
    """Why FTS gave no answer; then nothing is known of the others."""


class Kind(NamedTuple):
    """One kind of finding: for the sentence, and for the counts."""

    name: str
    words: str


MENDED = (
    Kind("accepted_jobs", "jobs that FTS has were noted as accepted"),
    Kind("returned_jobs", "jobs that FTS never got go into the next cycle"),
    Kind("unwanted_jobs", "jobs that FTS never got and no file needs were closed"),
    Kind("freed_files", "files without a living job go on"),
    Kind("watched_jobs", "jobs closed too early are watched again"),
    Kind("late_files", "files caught up with their job"),
    Kind("recounted_jobs", "jobs had a wrong count of open files"),
    Kind("closed_steps", "steps that never reported back were closed"),
)
FOR_A_PERSON = (
    Kind("unpolled_jobs", "jobs at FTS that nobody asks about (runbooks/unpolled-jobs.md)"),
    Kind("unconfirmed_jobs", "jobs that FTS does not confirm for 10 minutes (runbooks/unconfirmed-jobs.md)"),
    Kind("unknown_jobs", "jobs at FTS that the catalogue does not know (runbooks/unknown-fts-jobs.md)"),
    Kind("leaked_files", "files without a next step for 2 minutes (runbooks/leaked-files.md)"),
)


@dataclass(frozen=True, slots=True)
class Findings:
    """How much of each kind there was, and what of it cannot be counted."""

    counts: Mapping[str, int]
    unknown: tuple[UUID, ...] = ()
    silence: str | None = None

    def say(self, kinds: tuple[Kind, ...]) -> str:
        return "; ".join(
            f"{self.counts[kind.name]:,} {kind.words}" for kind in kinds if self.counts[kind.name]
        )

    def has(self, kinds: tuple[Kind, ...]) -> bool:
        return any(self.counts[kind.name] for kind in kinds)


class NeedsAPerson(Exception):
    """Something is wrong that this service must not, or cannot, put right by itself."""

    def __init__(self, findings: Findings) -> None:
        self.findings = findings
        named = ", ".join(str(job_id) for job_id in findings.unknown[:NAMED])
        super().__init__(findings.say(FOR_A_PERSON) + (f": FTS jobs {named}" if named else ""))


def check(conn: Connection, client: FTS3Client, *, fts_server: str, step_run: int) -> Summary:
    """Say what is wrong, and change nothing. The counts are all zero in a healthy system."""
    findings = _reconcile(conn, client, fts_server=fts_server, step_run=step_run, dry_run=True)
    found = "; ".join(filter(None, (findings.say(MENDED), findings.say(FOR_A_PERSON))))
    return _summary(f"Found: {found}" if found else "Everything has its next step", findings)


def repair(
    conn: Connection, client: FTS3Client, *, fts_server: str, step_run: int, dry_run: bool = False
) -> Summary:
    """Mend what can be mended; each file's move has its event, the rest is counted here.

    On a dry run everything is taken back.
    """
    reached("reconcile.before_repair")
    findings = _reconcile(conn, client, fts_server=fts_server, step_run=step_run, dry_run=dry_run)
    reached("reconcile.after_repair")
    did = findings.say(MENDED) or "nothing to mend"
    return _summary(f"Would mend: {did}" if dry_run else f"Mended: {did}", findings)


def verdict(conn: Connection, client: FTS3Client, *, fts_server: str, step_run: int) -> Summary:
    """Look once more.

    Raises:
        NeedsAPerson: what is left cannot be mended here.
    """
    findings = _reconcile(conn, client, fts_server=fts_server, step_run=step_run, dry_run=True)
    if findings.has(FOR_A_PERSON):
        raise NeedsAPerson(findings)
    return _summary("Nothing needs a person", findings)


def _summary(sentence: str, findings: Findings) -> Summary:
    if findings.silence:
        sentence += f"; FTS was not heard: {findings.silence}"
    return Summary(sentence, dict(findings.counts))


def _reconcile(
    conn: Connection, client: FTS3Client, *, fts_server: str, step_run: int, dry_run: bool
) -> Findings:
    # FTS is asked first: no transaction is open while somebody else thinks, and a job is in the catalogue
    # before it is at FTS, so what FTS shows and the catalogue then does not know is none of its.
    seen = _ask(conn, client, fts_server)
    with conn.transaction():
        repairs.lock_repairs(conn)
        counts = _for_a_person(conn, seen) | _mend(conn, seen, step_run)
        if dry_run:
            raise psycopg.Rollback
    for job_id in seen.unknown:
        logger.warning("FTS has job %s of ours, which the catalogue does not know", job_id)
    return Findings(counts, seen.unknown, seen.silence)


def _ask(conn: Connection, client: FTS3Client, fts_server: str) -> Sightings:
    doubts = repairs.jobs_in_doubt(conn, fts_server, IN_DOUBT_S)
    try:
        there, absent = _look_for(client, doubts)
        ours = [
            job.job_id
            for job in client.list_jobs(limit=NEWEST_AT_FTS)
            if job.metadata.get("issuer") == ISSUER
        ]
        may_be_there = {deterministic_job_id(client.vo, str(sid)) for sid in repairs.planned_sids(conn)}
    except FTSError as error:
        # Not red here: the steps that need FTS say so, and nothing is mended on a guess.
        logger.warning("FTS was not heard: %s", error)
        return Sightings(silence=str(error))
    known = repairs.known_jobs(conn, ours)
    unknown = (job_id for job_id in ours if job_id not in may_be_there and job_id not in known)
    return Sightings(there, absent, tuple(unknown))


def _look_for(
    client: FTS3Client, doubts: list[InDoubt]
) -> tuple[tuple[tuple[UUID, UUID], ...], tuple[InDoubt, ...]]:
    ids = {deterministic_job_id(client.vo, str(job.sid)): job for job in doubts} if doubts else {}
    answers = client.statuses(list(ids), with_files=False) if ids else []
    # FORBIDDEN is there too: nobody else can have this id.
    missing = {
        answer.job_id
        for answer in answers
        if isinstance(answer, JobMissing) and isinstance(client.archived(answer.job_id), JobMissing)
    }
    there = tuple((job.sid, job_id) for job_id, job in ids.items() if job_id not in missing)
    return there, tuple(ids[job_id] for job_id in missing)


def _for_a_person(conn: Connection, seen: Sightings) -> dict[str, int]:
    """Count before anything is mended: a leak that was there too long broke a promise, mended or not."""
    return {
        "unpolled_jobs": repairs.unpolled_jobs(conn),
        "unconfirmed_jobs": repairs.unconfirmed_jobs(conn),
        "unknown_jobs": len(seen.unknown),
        "leaked_files": repairs.leaked_files(conn),
    }


def _mend(conn: Connection, seen: Sightings, step_run: int) -> dict[str, int]:
    # FTS was asked some time ago: a cycle, or another reconcile, may have settled a job since.
    planned = set(repairs.planned_sids(conn))
    there = [job for job in seen.there if job[0] in planned]
    absent = [job for job in seen.absent if job.sid in planned]
    unwanted = [job for job in absent if not job.open_files]
    record_accepted(conn, there, step_run)
    for job in unwanted:
        close_refused(conn, job.sid, "reconciled: no file needs it any more")
    # The order matters: a job is opened before its files catch up, and counted when they have moved.
    mends: tuple[tuple[str, Callable[[], int]], ...] = (
        ("freed_files", lambda: repairs.free_stray_files(conn, step_run)),
        ("watched_jobs", lambda: repairs.watch_again(conn)),
        ("late_files", lambda: repairs.catch_up(conn, step_run)),
        ("recounted_jobs", lambda: repairs.recount(conn)),
        ("closed_steps", lambda: repairs.close_unreported_steps(conn)),
    )
    counts = {
        "accepted_jobs": len(there),
        "returned_jobs": len(absent) - len(unwanted),
        "unwanted_jobs": len(unwanted),
    } | {name: mend() for name, mend in mends}
    if counts["returned_jobs"] or counts["freed_files"]:
        ring(conn)
    return counts
