"""What stops a whole server, or one identity at it, in a submit step; what becomes of the jobs behind it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

from psycopg import Connection

from asyncstageout.catalogue.bell import ring
from asyncstageout.catalogue.fts_servers import note_contact, servers
from asyncstageout.catalogue.identity_holds import hold
from asyncstageout.catalogue.jobs import JobToSubmit
from asyncstageout.catalogue.unsent_jobs import release_unsent, unmark
from asyncstageout.clients.credentials.model import CredentialProblem
from asyncstageout.clients.delegation import CannotDelegate
from asyncstageout.clients.errors import DelegationNeeded, FTSError, NotAuthorised, Transient, Untrusted
from asyncstageout.core.identities import Identity
from asyncstageout.steps.crashpoints import reached
from asyncstageout.steps.door import Way
from asyncstageout.steps.recording import files

HOLD_S = 300.0
"""For how long nothing is submitted for an identity that FTS does not let in, or without a credential."""

NOT_LET_IN = (NotAuthorised, DelegationNeeded, CannotDelegate, Untrusted)
"""FTS refuses whoever comes with this identity, and has taken nothing."""

Stop = FTSError | CredentialProblem


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the jobs that were stopped."""

    sentences: list[str]
    counts: dict[str, int]
    problem: Stop | None
    """For which the step must be red."""


@dataclass(slots=True)
class _Behind:
    """The jobs behind one stop."""

    way: Way
    problem: Stop
    jobs: list[JobToSubmit] = field(default_factory=list)
    released: int = 0
    """Files that were given back."""
    in_doubt: int = 0
    """Jobs that stay with their server: it may have them, or it is not given up yet."""

    @property
    def is_of_identity(self) -> bool:
        return isinstance(self.problem, (*NOT_LET_IN, CredentialProblem))

    @property
    def is_red(self) -> bool:
        """One user's credential is for stageout_credentials to alert about; a silence that left no doubt
        costs nothing but another cycle."""
        if isinstance(self.problem, (CredentialProblem, NotAuthorised, DelegationNeeded, CannotDelegate)):
            return Identity.read(self.way.identity).is_service
        return self.in_doubt > 0 or not isinstance(self.problem, Transient)

    @property
    def reason(self) -> str:
        """Why the files go back, for their history."""
        if self.is_of_identity:
            return str(self.problem)
        return f"FTS server {self.way.server} does not answer; goes to another"


@dataclass(slots=True)
class Stops:
    """The stops of one run of the step; threads may add to them."""

    owned: set[UUID] = field(default_factory=set)
    """Jobs that nobody told FTS about before this run."""
    _delivered: set[UUID] = field(default_factory=set)
    """Jobs of which something may have reached FTS."""
    _stops: dict[Way, Stop] = field(default_factory=dict)
    """Of a whole server: with no identity."""

    def stop(self, way: Way, problem: Stop, sid: UUID | None = None) -> None:
        """Note what stops a way; ``sid`` is the job that met it, None if nothing was sent yet."""
        if sid is not None and _may_have_arrived(problem):
            self._delivered.add(sid)
        of_identity = isinstance(problem, (*NOT_LET_IN, CredentialProblem))
        self._stops.setdefault(way if of_identity else Way(way.server, ""), problem)

    def stopped(self, way: Way) -> bool:
        return self._of(way) is not None

    def settle(self, conn: Connection, unsettled: Iterable[JobToSubmit], step_run: int) -> Outcome:
        """Hold, note and release what follows from the stops.

        Args:
            unsettled: the jobs that got no answer, or one that stops.
        """
        behind = {way: _Behind(way, problem) for way, problem in self._stops.items()}
        for job in unsettled:
            if way := self._of(Way(job.fts_server, job.identity)):
                behind[way].jobs.append(job)
        for one in behind.values():
            _keep_away(conn, one)
        failing = {server.name for server in servers(conn) if server.failing_since}
        reached("submit.before_release")
        for one in behind.values():
            self._settle(conn, one, step_run, goes=one.is_of_identity or one.way.server in failing)
        reached("submit.after_release")
        if any(one.released for one in behind.values() if not one.is_of_identity):
            ring(conn)
        return _outcome(list(behind.values()))

    def _of(self, way: Way) -> Way | None:
        return next((one for one in (way, Way(way.server, "")) if one in self._stops), None)

    def _settle(self, conn: Connection, one: _Behind, step_run: int, *, goes: bool) -> None:
        """Release what certainly was not sent, or leave it for another try while the server may recover."""
        unsent = [job.sid for job in one.jobs if job.sid in self.owned - self._delivered]
        one.in_doubt = len(one.jobs)
        if goes:
            closed, one.released = release_unsent(conn, unsent, one.reason, step_run)
            one.in_doubt -= len(closed)
        else:
            unmark(conn, unsent, step_run)


def _may_have_arrived(problem: Stop) -> bool:
    if isinstance(problem, CredentialProblem):
        return False
    if problem.after_silence:
        return True
    return getattr(problem, "maybe_delivered", not isinstance(problem, NOT_LET_IN))


def _keep_away(conn: Connection, one: _Behind) -> None:
    """Have later cycles leave this identity, or this server, alone for a while."""
    if not one.is_of_identity:
        refused = not _may_have_arrived(one.problem)
        note_contact(conn, one.way.server, str(one.problem), datetime.now(UTC), refused=refused)
        return
    server = "" if isinstance(one.problem, CredentialProblem) else one.way.server
    hold(conn, server, [one.way.identity], reason=str(one.problem), wait_s=HOLD_S)


def _outcome(behind: list[_Behind]) -> Outcome:
    parked = [one for one in behind if one.is_of_identity and one.released]
    silent = [one for one in behind if not one.is_of_identity]
    moved = sum(one.released for one in silent)
    waiting = sum(one.released for one in parked)
    in_doubt = sum(one.in_doubt for one in behind)
    sentences = []
    if waiting:
        who = sorted({one.way.identity for one in parked})
        of = who[0] if len(who) == 1 else f"{len(who)} users"
        sentences.append(f"{files(waiting)} of {of} wait for a credential")
    if silent:
        names = ", ".join(sorted(one.way.server for one in silent))
        moves = f": {files(moved)} go to another server" if moved else ""
        sentences.append(f"{names} does not answer{moves}")
    if in_doubt:
        sentences.append(f"{in_doubt} jobs wait for their server to answer")
    red = [one.problem for one in behind if one.is_red]
    # What needs a person first: trying again at once mends the others only.
    red.sort(key=lambda problem: isinstance(problem, Transient))
    counts = {"parked_files": waiting, "moved_files": moved, "jobs_in_doubt": in_doubt}
    return Outcome(
        sentences, {name: count for name, count in counts.items() if count}, red[0] if red else None
    )
