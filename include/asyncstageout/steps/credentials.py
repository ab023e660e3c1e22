"""Keeps credentials and delegations good for whoever has files, and says in time whose are not.

=========================  ==========================================================================
a user's credential        got anew when less than two days are left, or half of a short lifetime
what FTS may do for him    a new proxy when less than a day is left, where he has jobs
no usable credential       his files wait, with the reason, and use no attempt; they go when it is back
alert                      it ends within a day (or a quarter of its lifetime), or is missing
=========================  ==========================================================================
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from psycopg import Connection

from asyncstageout.catalogue.bell import ring
from asyncstageout.catalogue.credentials import (
    CredentialNote,
    DelegationNote,
    credentials,
    delegations,
    forget_old_notes,
    note_credentials,
    note_delegations,
    open_files,
    waiting_files,
)
from asyncstageout.catalogue.identity_holds import hold_for_want_of_credential, holds, let_go
from asyncstageout.catalogue.policies import policy_rows
from asyncstageout.clients.credentials.model import (
    Credential,
    CredentialMissing,
    CredentialProblem,
    CredentialSource,
)
from asyncstageout.clients.credentials.proxies import read_proxy
from asyncstageout.clients.delegation import CannotDelegate, keep_delegated
from asyncstageout.clients.errors import FTSError, NotAuthorised
from asyncstageout.clients.fts3 import FTS3Client
from asyncstageout.core.identities import Identity
from asyncstageout.core.policies import Policies
from asyncstageout.steps.recording import Summary, files

logger = logging.getLogger(__name__)

RENEW_AT = timedelta(hours=48)
ALERT_AT = timedelta(hours=24)
RENEW_SHARE, ALERT_SHARE = 0.5, 0.25
"""Of a lifetime that is short from the start: no renewal would give more than these hours."""
DELEGATE_AT = timedelta(hours=24)
HOLD_S = 5400.0
"""Three runs of this step. If it stops running, whoever submits looks for the credential himself."""
THREADS = 8
NAMED = 20
RUNBOOK = "runbooks/credentials.md"

ClientOf = Callable[[str, Credential | None], FTS3Client]
"""Gives the client of an FTS server with a credential; None: the service's own."""


@dataclass(slots=True)
class Work:
    """What an identity has to do."""

    waiting: int = 0
    open: Counter[str] = field(default_factory=Counter)
    """Files by FTS server."""

    @property
    def files(self) -> int:
        return self.waiting + self.open.total()


@dataclass(slots=True)
class Look:
    """What a look at one identity brought."""

    identity: Identity
    credential: Credential | None = None
    problem: str | None = None
    delegations: list[DelegationNote] = field(default_factory=list)
    delegated: int = 0

    def note(self) -> CredentialNote:
        name, found = str(self.identity), self.credential
        if found is None:
            return CredentialNote(name, problem=self.problem)
        return CredentialNote(name, found.kind, found.subject, found.fqans, found.expires_at, self.problem)


class CredentialsNeeded(Exception):
    """People with files have no credential, or one that ends soon; only they can mend it."""

    def __init__(self, needs: Sequence[str]) -> None:
        self.needs = tuple(needs)
        more = f"; and {len(needs) - NAMED} more (aso credentials)" if len(needs) > NAMED else ""
        super().__init__(f"{'; '.join(needs[:NAMED])}{more} ({RUNBOOK})")


def renew(
    conn: Connection, source: CredentialSource | None, client_of: ClientOf, *, threads: int = THREADS
) -> Summary:
    """Renew what ends soon, hold back who has nothing usable, let go who has it again.

    What is wrong with one identity, or one FTS, does not stop the others.
    """
    work = who_has_work(conn)
    look = partial(_look, source, client_of)
    with ThreadPoolExecutor(threads, thread_name_prefix="credentials") as pool:
        looks = list(pool.map(look, work, work.values()))
    note_credentials(conn, (one.note() for one in looks if one.credential or one.problem))
    note_delegations(conn, (note for one in looks for note in one.delegations))
    released = _hold_and_let_go(conn, looks)
    forget_old_notes(conn)
    return _summary(looks, work, released)


def verdict(conn: Connection) -> Summary:
    """Say whether somebody must do something.

    Raises:
        CredentialsNeeded: somebody with files has no credential, one that ends soon, or FTS refuses it.
    """
    work = {str(identity): one for identity, one in who_has_work(conn).items()}
    troubles = {note.identity: str(note.problem) for note in credentials(conn) if note.problem}
    for note in delegations(conn):
        if (
            note.problem
            and note.identity not in troubles
            and note.fts_server in _servers(work, note.identity)
        ):
            troubles[note.identity] = f"{note.fts_server} may not act for {note.identity}: {note.problem}"
    needs = [
        f"{trouble} ({files(work[identity].files)})"
        for identity, trouble in sorted(troubles.items())
        if identity in work
    ]
    if needs:
        raise CredentialsNeeded(needs)
    return Summary(f"Nobody of {len(work)} with files needs a new credential", {"identities": len(work)})


def who_has_work(conn: Connection) -> dict[Identity, Work]:
    """Return in whose name files wait or travel: users where the policy says so, else the service."""
    found: defaultdict[Identity, Work] = defaultdict(Work)
    policies = Policies(policy_rows(conn))
    for row in waiting_files(conn):
        owner = Identity.read(row.identity)
        policy = policies.of(row.source, row.destination, row.username, row.activity)
        found[owner if policy.credential == "user" else owner.of_service()].waiting += row.files
    for job in open_files(conn):
        found[Identity.read(job.identity)].open[job.fts_server] += job.files
    return dict(sorted(found.items()))


def _servers(work: dict[str, Work], identity: str) -> set[str]:
    return set(work[identity].open) if identity in work else set()


def _look(source: CredentialSource | None, client_of: ClientOf, identity: Identity, work: Work) -> Look:
    found = Look(identity)
    if not identity.is_service:
        try:
            found.credential = _renewed(source, identity)
        except CredentialProblem as problem:
            logger.warning("%s", problem)
            found.problem = str(problem)
            return found
        found.problem = _ends_soon(found.credential)
    for server in work.open:
        _see_to_delegation(found, server, client_of)
    return found


def _renewed(source: CredentialSource | None, identity: Identity) -> Credential:
    if source is None:
        raise CredentialMissing(identity, "no connection stageout_credentials says where it comes from")
    return source.renew(identity, RENEW_AT)


def _ends_soon(credential: Credential) -> str | None:
    left = credential.expires_at - datetime.now(UTC)
    # A token is made anew whenever it is needed.
    if credential.kind == "token" or left >= credential.should_have(ALERT_AT, ALERT_SHARE):
        return None
    return f"{credential.identity}: ends at {credential.expires_at:%Y-%m-%d %H:%M} UTC and was not renewed"


def _see_to_delegation(found: Look, server: str, client_of: ClientOf) -> None:
    name, credential = str(found.identity), found.credential
    if credential is not None and credential.kind == "token":
        return  # it is sent with every request
    try:
        with client_of(server, credential) as client:
            credential = credential or _own(client, found)
            if credential is None:
                return
            given = keep_delegated(client, credential, DELEGATE_AT)
    except (CannotDelegate, NotAuthorised) as error:
        found.delegations.append(DelegationNote(server, name, problem=str(error)))
    except FTSError as error:
        # A server that is away concerns whoever watches servers, and is asked again in half an hour.
        logger.warning("%s", error)
    else:
        found.delegated += given.is_new
        found.delegations.append(DelegationNote(server, name, given.delegation_id, given.expires_at))


def _own(client: FTS3Client, found: Look) -> Credential | None:
    """Return the service's own credential at one server; the one that ends first is what is noted of it."""
    if client.certificate is None:
        return None  # a token, or none at all
    cert_file, key_file = client.certificate
    try:
        proxy = read_proxy(Path(cert_file).read_bytes(), Path(key_file or cert_file).read_bytes())
    except (OSError, ValueError) as error:
        found.problem = f"{found.identity}: {cert_file} cannot be used at {client.server}: {error}"
        return None
    own = Credential(
        found.identity, "x509", proxy.subject, proxy.expires_at, proxy.fqans, cert_file, key_file,
        begins_at=proxy.begins_at,
    )  # fmt: skip
    if found.credential is None or own.expires_at < found.credential.expires_at:
        found.credential, found.problem = own, found.problem or _ends_soon(own)
    return own


def _hold_and_let_go(conn: Connection, looks: Sequence[Look]) -> list[str]:
    users = [one for one in looks if not one.identity.is_service]
    reasons = {str(one.identity): str(one.problem) for one in users if one.credential is None}
    hold_for_want_of_credential(conn, reasons, wait_s=HOLD_S)
    usable = {str(one.identity) for one in users if one.credential}
    released = sorted({held.identity for held in holds(conn) if not held.fts_server} & usable)
    if released:
        with conn.transaction():
            let_go(conn, "", released)
            ring(conn)
    return released


def _summary(looks: Sequence[Look], work: dict[Identity, Work], released: Sequence[str]) -> Summary:
    users = [one for one in looks if not one.identity.is_service]
    without = [one for one in users if one.credential is None]
    counts = {
        "identities": len(users),
        "without_credential": len(without),
        "waiting_files": sum(work[one.identity].waiting for one in without),
        "ending_soon": sum(1 for one in looks if one.credential and one.problem),
        "delegated": sum(one.delegated for one in looks),
        "refused_delegations": sum(1 for one in looks for note in one.delegations if note.problem),
        "released": len(released),
    }
    return Summary("; ".join(_parts(counts)), counts)


def _parts(counts: dict[str, int]) -> Iterator[str]:
    if counts["identities"]:
        good = counts["identities"] - counts["without_credential"]
        yield f"{good} of {counts['identities']} users with files have a credential"
    else:
        yield "Nobody's files travel in their own name"
    said = (
        ("without_credential", f"{files(counts['waiting_files'])} wait for one"),
        ("ending_soon", f"{counts['ending_soon']} end soon and were not renewed"),
        ("delegated", f"{counts['delegated']} proxies given to FTS"),
        ("refused_delegations", f"{counts['refused_delegations']} refused by FTS"),
        ("released", f"{counts['released']} have one again"),
    )
    yield from (words for name, words in said if counts[name])
