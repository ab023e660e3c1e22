"""Credentials of whoever has files: renewed, held back, let go, and alerted about in time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import Connection

from asyncstageout.catalogue.bell import PENDING_CHANNEL
from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.credentials import credentials, delegations
from asyncstageout.catalogue.identity_holds import holds
from asyncstageout.catalogue.policies import put_policy
from asyncstageout.clients.credentials.directory import DirectoryCredentials
from asyncstageout.clients.credentials.model import Credential, CredentialSource, SourceSilent
from asyncstageout.clients.errors import NotAuthorised, Unreachable
from asyncstageout.clients.fts3 import FTS3Client
from asyncstageout.clients.http import Access, new_session
from asyncstageout.core.identities import Identity
from asyncstageout.sandbox.proxies import write_proxy
from asyncstageout.sandbox.tls import client_certificate
from asyncstageout.steps.credentials import CredentialsNeeded, renew, verdict
from fixtures.catalogue import Add, record
from fixtures.cycles import IMPATIENT, House
from sandbox.harness import DEADLINE_S

FQANS = ("/cms/uscms/Role=production/Capability=NULL",)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "credentials"
    found.mkdir(mode=0o700)
    return found


@pytest.fixture
def source(folder: Path) -> DirectoryCredentials:
    return DirectoryCredentials(folder)


Give = Callable[..., Path]


@pytest.fixture
def give(folder: Path, tls_folder: Path) -> Give:
    """Put a proxy into the folder, of the person with the identity's name."""

    def put(identity: str, **options: Any) -> Path:
        username = Identity.read(identity).username
        owner = client_certificate(tls_folder, username, f"/DC=test/DC=fts/CN={username}")
        return write_proxy(folder / f"{identity}.pem", owner, **options)

    return put


@pytest.fixture
def own_names(conn: Connection) -> None:
    put_policy(conn, None, None, {"credential": "user"}, "test")


def no_fts(server: str, _credential: Credential | None) -> FTS3Client:
    raise AssertionError(f"{server} was asked")


def at(house: House, tls_folder: Path) -> Callable[[str, Credential | None], FTS3Client]:
    """Give clients of the sandbox FTS as the provider does."""
    own = client_certificate(tls_folder, "alice", "/DC=test/DC=fts/CN=alice")

    def client_of(server: str, credential: Credential | None) -> FTS3Client:
        assert server == "fts"
        ca = str(tls_folder / "ca.pem")
        access = Access(ca=ca, cert_file=str(own.cert), key_file=str(own.key))
        if credential:
            access = Access(ca=ca, cert_file=credential.cert_file, key_file=credential.key_file)
        return FTS3Client(house.fts.url, new_session(access), patience=IMPATIENT)

    return client_of


def files_of(add: Add, *usernames: str) -> None:
    add(*(record(number, username=name) for number, name in enumerate(usernames)))


def test_where_nobodys_files_travel_in_their_own_name(conn: Connection, add: Add) -> None:
    files_of(add, "alice", "bob")
    summary = renew(conn, None, no_fts)
    assert summary.sentence == "Nobody's files travel in their own name"
    assert not any(summary.counts.values())
    assert verdict(conn).sentence.startswith("Nobody of 1 with files")
    assert credentials(conn) == []


@pytest.mark.usefixtures("own_names")
def test_only_those_with_a_policy_and_with_files_are_looked_at(
    conn: Connection, add: Add, source: CredentialSource
) -> None:
    put_policy(conn, None, None, {"credential": "user"}, "test", username="bob")
    put_policy(conn, None, None, {"credential": "service"}, "test")
    files_of(add, "alice", "bob")
    assert renew(conn, source, no_fts).counts["identities"] == 1
    assert [note.identity for note in credentials(conn)] == ["bob"]


@pytest.mark.usefixtures("own_names")
def test_who_has_none_waits_and_nobody_else(
    conn: Connection, house: House, add: Add, source: CredentialSource, give: Give
) -> None:
    files_of(add, "alice", "bob", "carol", "carol")
    give("alice")
    give("carol").chmod(0o644)
    summary = renew(conn, source, no_fts)
    assert summary.sentence == "1 of 3 users with files have a credential; 3 files wait for one"
    notes = {note.identity: note for note in credentials(conn)}
    assert (notes["alice"].subject, notes["alice"].problem) == ("/DC=test/DC=fts/CN=alice", None)
    assert "there is no" in str(notes["bob"].problem)
    assert "chmod 600" in str(notes["carol"].problem)
    assert {hold.identity: hold.reason for hold in holds(conn)} == {
        name: notes[name].problem for name in ("bob", "carol")
    }
    house.collect()
    house.group()
    taken = conn.execute("SELECT username, state::text, attempt FROM transfer ORDER BY id").fetchall()
    assert taken == [("alice", "ACQUIRED", 0), *((name, "NEW", 0) for name in ("bob", "carol", "carol"))]


@pytest.mark.usefixtures("own_names")
def test_they_go_as_soon_as_it_is_back(
    conn: Connection, catalogue_url: str, add: Add, source: CredentialSource, give: Give
) -> None:
    files_of(add, "alice", "bob")
    renew(conn, source, no_fts)
    give("bob")
    with connect(catalogue_url) as listening:
        listening.execute(f"LISTEN {PENDING_CHANNEL}")
        assert renew(conn, source, no_fts).counts["released"] == 1
        assert [note.channel for note in listening.notifies(timeout=DEADLINE_S, stop_after=1)] == [
            PENDING_CHANNEL
        ]
    assert [hold.identity for hold in holds(conn)] == ["alice"]
    assert {note.identity: note.problem for note in credentials(conn)}["bob"] is None


@pytest.mark.usefixtures("own_names")
def test_a_credential_that_vanishes_leaves_what_was_known(
    conn: Connection, add: Add, source: CredentialSource, give: Give
) -> None:
    files_of(add, "alice")
    path = give("alice")
    renew(conn, source, no_fts)
    path.unlink()
    renew(conn, source, no_fts)
    (note,) = credentials(conn)
    assert note.subject == "/DC=test/DC=fts/CN=alice"
    assert note.problem is not None
    assert note.waiting_files == 1


@pytest.mark.usefixtures("own_names")
def test_without_a_connection_everybody_waits(conn: Connection, add: Add) -> None:
    files_of(add, "alice")
    renew(conn, None, no_fts)
    with pytest.raises(
        CredentialsNeeded, match=r"alice.*no connection stageout_credentials.*runbooks/credentials.md"
    ):
        verdict(conn)


@pytest.mark.usefixtures("own_names")
@pytest.mark.parametrize(
    ("lifetime_h", "kept_h", "is_red"),
    [(24, 0, False), (24, 17, False), (24, 19, True), (240, 200, False), (240, 217, True)],
)
def test_the_alert_comes_before_the_end(
    *, conn: Connection, add: Add, folder: Path, give: Give, monkeypatch: pytest.MonkeyPatch,
    lifetime_h: int, kept_h: int, is_red: bool,
) -> None:  # fmt: skip
    """A day before, or, of a short lifetime, when a quarter is left."""
    files_of(add, "alice")
    give("alice", lifetime=timedelta(hours=lifetime_h))
    later = datetime.now(UTC) + timedelta(hours=kept_h)

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return later

    monkeypatch.setattr("asyncstageout.steps.credentials.datetime", Clock)
    summary = renew(conn, DirectoryCredentials(folder, now=lambda: later), no_fts)
    assert summary.counts["ending_soon"] == is_red
    assert holds(conn) == []
    if is_red:
        with pytest.raises(
            CredentialsNeeded, match=r"alice: ends at 20.* UTC and was not renewed \(1 file\)"
        ):
            verdict(conn)
    else:
        verdict(conn)


@pytest.mark.usefixtures("own_names")
def test_twenty_are_named(conn: Connection, add: Add, source: CredentialSource) -> None:
    files_of(add, *(f"user{number:02}" for number in range(23)))
    renew(conn, source, no_fts)
    with pytest.raises(CredentialsNeeded) as caught:
        verdict(conn)
    text = str(caught.value)
    assert "user19" in text
    assert "user20" not in text
    assert "and 3 more (aso credentials)" in text


@pytest.mark.usefixtures("own_names")
def test_whoever_has_no_files_any_more_is_no_alert(
    conn: Connection, add: Add, source: CredentialSource
) -> None:
    files_of(add, "alice")
    renew(conn, source, no_fts)
    conn.execute("DELETE FROM transfer")
    assert verdict(conn).counts == {"identities": 0}


@pytest.mark.usefixtures("own_names")
def test_fts_is_given_proxies_in_time(
    *, conn: Connection, house: House, add: Add, source: DirectoryCredentials, give: Give, tls_folder: Path
) -> None:
    """For users where they have jobs, each with his own; and no more often than needed."""
    files_of(add, "alice", "bob")
    give("alice", lifetime=timedelta(days=5))
    give("bob", lifetime=timedelta(days=5))
    client_of = at(house, tls_folder)
    for name in ("alice", "bob"):
        house.clients.by_identity[name] = client_of("fts", source.credential(Identity(name)))
    house.run_cycle()
    assert renew(conn, source, client_of).counts["delegated"] == 2
    notes = {note.identity: note for note in delegations(conn)}
    assert len({note.delegation_id for note in notes.values()}) == 2
    for note in notes.values():
        assert note.expires_at is not None
        assert note.expires_at - datetime.now(UTC) > timedelta(hours=47)
    assert renew(conn, source, client_of).counts["delegated"] == 0
    for client in house.clients.by_identity.values():
        assert isinstance(client, FTS3Client)
        client.close()


def test_the_services_own_is_looked_after(conn: Connection, house: House, add: Add, tls_folder: Path) -> None:
    files_of(add, "alice")
    house.run_cycle()
    summary = renew(conn, None, at(house, tls_folder))
    assert summary.sentence == "Nobody's files travel in their own name; 1 proxies given to FTS"
    (note,) = credentials(conn)
    assert (note.identity, note.kind, note.problem) == ("service", "x509", None)
    assert [note.identity for note in delegations(conn)] == ["service"]


@pytest.mark.usefixtures("own_names")
@pytest.mark.parametrize("silent", [False, True])
def test_what_fts_says_to_one_stops_nobody_else(
    *, conn: Connection, house: House, add: Add, source: DirectoryCredentials, give: Give, tls_folder: Path, silent: bool
) -> None:  # fmt: skip
    files_of(add, "alice", "bob")
    give("alice", lifetime=timedelta(days=5))
    give("bob", lifetime=timedelta(days=5))
    house.run_cycle()

    def client_of(server: str, credential: Credential | None) -> FTS3Client:
        if credential and credential.identity.username == "bob":
            kind = Unreachable if silent else NotAuthorised
            raise kind(server, "GET /whoami", None if silent else 403, "no")
        return at(house, tls_folder)(server, credential)

    summary = renew(conn, source, client_of)
    assert summary.counts["delegated"] == 1
    assert summary.counts["refused_delegations"] == (not silent)
    if silent:
        verdict(conn)
    else:
        with pytest.raises(CredentialsNeeded, match="fts may not act for bob"):
            verdict(conn)


@pytest.mark.usefixtures("own_names")
def test_a_source_that_is_silent(conn: Connection, add: Add) -> None:
    class Silent:
        def credential(self, identity: Identity) -> Credential:
            raise SourceSilent(identity, "MyProxy does not answer")

        def renew(self, identity: Identity, least: timedelta) -> Credential:
            return self.credential(identity)

    files_of(add, "alice")
    renew(conn, Silent(), no_fts)
    assert ["does not answer" in hold.reason for hold in holds(conn)] == [True]


@pytest.mark.usefixtures("own_names")
def test_nothing_secret_leaves_the_files(
    *, conn: Connection, house: House, add: Add, source: DirectoryCredentials, give: Give, tls_folder: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level(logging.DEBUG)
    add(record(1, vo_group="uscms", vo_role="production"), record(2, username="bob"))
    (identity,) = (
        row[0] for row in conn.execute("SELECT DISTINCT identity FROM transfer WHERE username = 'alice'")
    )
    path = give(identity, fqans=FQANS)
    house.run_cycle()
    summary = renew(conn, source, at(house, tls_folder))
    assert {note.identity: note.fqans for note in credentials(conn)}[identity] == FQANS
    said = "\n".join([caplog.text, str(summary.as_xcom()), *everything_in(conn)])
    secrets = [line for line in path.read_text().splitlines() if len(line) == 64]
    assert len(secrets) > 30
    assert "BEGIN" not in said
    assert not any(line in said for line in secrets)


def everything_in(conn: Connection) -> Iterator[str]:
    tables = conn.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
    for (table,) in tables:
        for (row,) in conn.execute(
            psycopg.sql.SQL("SELECT t::text FROM {} t").format(psycopg.sql.Identifier(table))
        ):
            yield row
