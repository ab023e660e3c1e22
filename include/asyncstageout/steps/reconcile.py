"""Compares the catalogue with itself and with FTS, mends what a death left behind, and says who must help.

To look is to mend and to take everything back, so that what is found and what is mended cannot differ.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple
from uuid import UUID

import psycopg
from psycopg import Connection

from asyncstageout.catalogue import repairs
from asyncstageout.catalogue.bell import ring
from asyncstageout.catalogue.fts_servers import installation_id, servers
from asyncstageout.catalogue.jobs import close_refused, record_accepted
from asyncstageout.catalogue.repairs import InDoubt
from asyncstageout.clients.credentials.model import CredentialProblem
from asyncstageout.clients.errors import FTSError
from asyncstageout.clients.fts3 import FTS3Client
from asyncstageout.core.fts import JobMissing
from asyncstageout.core.fts_ids import deterministic_job_id
from asyncstageout.core.identities import SERVICE, Identity
from asyncstageout.steps.crashpoints import reached
from asyncstageout.steps.door import ISSUER, FTSClients
from asyncstageout.steps.recording import Summary

logger = logging.getLogger(__name__)

IN_DOUBT_S = 60.0
"""As long as ``collect`` leaves a planned job to its own cycle."""
NEWEST_AT_FTS = 500
"""FTS lists no more; the oldest of more unfinished jobs are looked at when there are fewer."""
NAMED = 20
THREADS = 8
"""Servers asked at once; a silent one takes a while."""


@dataclass(slots=True)
class Sightings:
    """What FTS servers say about jobs in doubt, and which jobs of ours they have that the catalogue lacks."""

    there: list[tuple[UUID, UUID]] = field(default_factory=list)
    """(sid, FTS job id) of jobs in doubt that FTS has."""
    absent: list[InDoubt] = field(default_factory=list)
    unknown: list[UUID] = field(default_factory=list)
    silences: list[str] = field(default_factory=list)
    """Why a server gave no answer; then nothing is known of its jobs."""


@dataclass(frozen=True, slots=True)
class _Heard:
    """What one server says."""

    server: str
    vo_of: Mapping[str, str]
    """The VO that it sees in each identity, on which its job ids hang; not of one without a credential."""
    there: list[tuple[UUID, UUID]]
    absent: list[InDoubt]
    ours: list[UUID]
    """Jobs that somebody submitted for this installation."""


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
    Kind("unblocked_files", "files without a living block are published anew"),
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
    unknown: Sequence[UUID] = ()
    silences: Sequence[str] = ()

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


def check(conn: Connection, clients: FTSClients, *, step_run: int) -> Summary:
    """Say what is wrong, and change nothing. The counts are all zero in a healthy system."""
    findings = _reconcile(conn, clients, step_run=step_run, dry_run=True)
    found = "; ".join(filter(None, (findings.say(MENDED), findings.say(FOR_A_PERSON))))
    return _summary(f"Found: {found}" if found else "Everything has its next step", findings)


def repair(conn: Connection, clients: FTSClients, *, step_run: int, dry_run: bool = False) -> Summary:
    """Mend what can be mended; each file's move has its event, the rest is counted here.

    On a dry run everything is taken back.
    """
    reached("reconcile.before_repair")
    findings = _reconcile(conn, clients, step_run=step_run, dry_run=dry_run)
    reached("reconcile.after_repair")
    did = findings.say(MENDED) or "nothing to mend"
    return _summary(f"Would mend: {did}" if dry_run else f"Mended: {did}", findings)


def verdict(conn: Connection, clients: FTSClients, *, step_run: int) -> Summary:
    """Look once more.

    Raises:
        NeedsAPerson: what is left cannot be mended here.
    """
    findings = _reconcile(conn, clients, step_run=step_run, dry_run=True)
    if findings.has(FOR_A_PERSON):
        raise NeedsAPerson(findings)
    return _summary("Nothing needs a person", findings)


def _summary(sentence: str, findings: Findings) -> Summary:
    if findings.silences:
        sentence += f"; FTS was not heard: {'; '.join(findings.silences)}"
    return Summary(sentence, dict(findings.counts))


def _reconcile(conn: Connection, clients: FTSClients, *, step_run: int, dry_run: bool) -> Findings:
    # FTS is asked first: no transaction is open while somebody else thinks, and a job is in the catalogue
    # before it is at FTS, so what FTS shows and the catalogue then does not know is none of its.
    seen = _ask(conn, clients)
    with conn.transaction():
        repairs.lock_repairs(conn)
        counts = _for_a_person(conn, seen) | _mend(conn, seen, step_run)
        if dry_run:
            raise psycopg.Rollback
    for job_id in seen.unknown:
        logger.warning("FTS has job %s of ours, which the catalogue does not know", job_id)
    return Findings(counts, seen.unknown, seen.silences)


def _ask(conn: Connection, clients: FTSClients) -> Sightings:
    failing = {server.name: server for server in servers(conn) if server.failing_since}
    installation = str(installation_id(conn))
    seen = Sightings(silences=[server.sentence() for server in failing.values()])
    to_ask = [
        (name, repairs.jobs_in_doubt(conn, name, IN_DOUBT_S), {who for _, who in repairs.planned(conn, name)})
        for name in repairs.servers_in_use(conn)
        if name not in failing
    ]
    with ThreadPoolExecutor(THREADS, thread_name_prefix="reconcile") as pool:
        answers = list(pool.map(lambda one: _ask_one(clients, *one, installation=installation), to_ask))
    for heard in answers:
        if isinstance(heard, FTSError):
            seen.silences.append(str(heard))
            continue
        seen.there += heard.there
        seen.absent += heard.absent
        seen.unknown += _not_planned(heard, repairs.planned(conn, heard.server))
    known = repairs.known_jobs(conn, seen.unknown)
    seen.unknown = [job_id for job_id in seen.unknown if job_id not in known]
    return seen


def _ask_one(
    clients: FTSClients, server: str, doubts: Sequence[InDoubt], identities: set[str], *, installation: str
) -> _Heard | FTSError:
    try:
        client = clients.client(server, SERVICE)
        vo_of = _vos(clients, server, identities)
        there, absent = _look_for(client, doubts, vo_of)
        ours = [
            job.job_id
            for job in client.list_jobs(limit=NEWEST_AT_FTS)
            # Another installation of the same VO has jobs that are none of our business.
            if (job.metadata.get("issuer"), job.metadata.get("installation")) == (ISSUER, installation)
        ]
    except FTSError as error:
        # Not red here: the steps that need FTS say so, and nothing is mended on a guess.
        logger.warning("%s was not heard: %s", server, error)
        return error
    return _Heard(server, vo_of, there, absent, ours)


def _not_planned(heard: _Heard, planned: Sequence[tuple[UUID, str]]) -> list[UUID]:
    """Return which of the jobs are none that this server has not confirmed yet."""
    if any(identity not in heard.vo_of for _, identity in planned):
        return []  # the id of one in doubt is not known: any of the jobs may be that one
    may_be_there = {deterministic_job_id(heard.vo_of[identity], str(sid)) for sid, identity in planned}
    return [job_id for job_id in heard.ours if job_id not in may_be_there]


def _vos(clients: FTSClients, server: str, identities: set[str]) -> dict[str, str]:
    vos: dict[str, str] = {}
    for identity in identities:
        try:
            vos[identity] = Identity.read(identity).vo or clients.client(server, identity).vo
        except CredentialProblem as problem:
            logger.warning("%s", problem)
    return vos


def _look_for(
    client: FTS3Client, doubts: Sequence[InDoubt], vo_of: Mapping[str, str]
) -> tuple[list[tuple[UUID, UUID]], list[InDoubt]]:
    ids = {
        deterministic_job_id(vo_of[job.identity], str(job.sid)): job
        for job in doubts
        if job.identity in vo_of
    }
    answers = client.statuses(list(ids), with_files=False) if ids else []
    # FORBIDDEN is there too: nobody else can have this id.
    missing = {
        answer.job_id
        for answer in answers
        if isinstance(answer, JobMissing) and isinstance(client.archived(answer.job_id), JobMissing)
    }
    there = [(job.sid, job_id) for job_id, job in ids.items() if job_id not in missing]
    return there, [ids[job_id] for job_id in missing]


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
        ("unblocked_files", lambda: repairs.publish_anew(conn, step_run)),
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
