"""A real issuer, the service's tokens, an FTS and storages that look at them: from end to end."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from asyncstageout.clients.credentials.model import FilePlaces
from asyncstageout.clients.credentials.oidc import OIDCCredentials
from asyncstageout.clients.errors import NotAuthorised
from asyncstageout.clients.fts3 import FTS3Client
from asyncstageout.clients.http import Access, new_session
from asyncstageout.core.fts import FTSFileStatus, FTSJobStatus, JobParams, JobSubmission, TransferFile
from asyncstageout.core.identities import Identity
from asyncstageout.sandbox.fts.service import Options, SandboxFTS
from asyncstageout.sandbox.jwts import Verifier
from asyncstageout.sandbox.serving import running, server
from asyncstageout.sandbox.sites.names import site_pfn
from asyncstageout.sandbox.sites.tokens import TokenDoor
from asyncstageout.sandbox.tls import SandboxTLS
from oidc_provider.running import Provider, issuer
from sandbox.harness import Bench, Clock, SiteBench, certificates, site_bench

ALICE, SERVICE = Identity("alice"), Identity("service")
SECRET = "open sesame"
SOURCE, DESTINATION = "T2_IT_Bari", "T2_DE_DESY"
PATHS = ("/store/user", "/store/temp/user")
SCOPES = [
    "fts",
    "offline_access",
    *(f"storage.{do}:{p}" for do in ("read", "create", "modify") for p in PATHS),
]
CONTENT = b"x" * 300_000


@dataclass
class World:
    """All parties, with one clock."""

    tls: SandboxTLS
    provider: Provider
    clock: Clock
    sites: SiteBench
    bench: Bench

    def credentials(self, **options: Any) -> OIDCCredentials:
        def now() -> datetime:
            return datetime.fromtimestamp(self.clock.now_s, UTC)

        return OIDCCredentials(self.provider.url, "aso", SECRET, ca=str(self.tls.ca), now=now, **options)

    def client(self, credentials: OIDCCredentials) -> FTS3Client:
        bearer = credentials.credential(SERVICE).bearer
        return FTS3Client(self.bench.url, new_session(Access(ca=str(self.tls.ca), bearer=bearer)))

    def pass_time(self, seconds: int) -> None:
        self.provider.advance(seconds)
        self.bench.tick(seconds)

    def carried(self, client: FTS3Client, file: TransferFile, sid: str, **params: Any) -> FTSFileStatus:
        """Submit one file and return how it ended."""
        job_id = client.submit(JobSubmission(sid, (file,), JobParams(**params)))
        self.bench.finish(str(job_id))
        return status_of(client, job_id)


def status_of(client: FTS3Client, job_id: UUID) -> FTSFileStatus:
    job = client.job_status(job_id)
    assert isinstance(job, FTSJobStatus)
    return job.files[0]


def file_of(credentials: OIDCCredentials, user: str, identity: Identity = ALICE) -> TransferFile:
    """Return a file on its way to a user's area, with the tokens for it."""
    source_lfn, lfn = f"/store/temp/user/{user}.1a2b/out.root", f"/store/user/{user}/out.root"
    places = FilePlaces(site_pfn(SOURCE, source_lfn), site_pfn(DESTINATION, lfn), source_lfn, lfn)
    source_token, destination_token = credentials.tokens(identity, places)
    return TransferFile(
        transfer_id=1,
        attempt=1,
        source_url=places.source_url,
        dest_url=places.destination_url,
        size_bytes=len(CONTENT),
        source_token=source_token,
        destination_token=destination_token,
    )


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> SandboxTLS:
    return certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def world(tls: SandboxTLS, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[World]:
    caplog.set_level(logging.DEBUG)
    clock = Clock(time.time())
    with (
        issuer(tls, {"aso": {"secret": SECRET, "scopes": SCOPES}}) as provider,
        site_bench(tls, tmp_path / "sites", SOURCE, DESTINATION) as sites,
    ):
        access = Access(ca=str(tls.ca))
        sites.storage.tokens = TokenDoor(Verifier([provider.url], new_session(access), clock))
        for user in ("alice", "bob"):
            sites.put(SOURCE, f"/store/temp/user/{user}.1a2b/out.root", CONTENT)
        options = Options(
            state=tmp_path / "fts",
            ca=str(tls.ca),
            connect_to=sites.address,
            token_issuers=(provider.url,),
            gridmap={"aso": "cms"},
        )
        fts = SandboxFTS(options, clock)
        with running(server(fts.app, tls=tls.server, client_ca=tls.ca)) as port:
            bench = Bench(fts, clock, f"https://127.0.0.1:{port}", {})
            yield World(tls, provider, clock, sites, bench)
    assert "eyJ" not in caplog.text
    assert SECRET not in caplog.text
    for written in (tmp_path / "fts").iterdir():
        assert b"eyJ" not in written.read_bytes(), written


def test_bytes_arrive_with_tokens_alone(world: World) -> None:
    credentials = world.credentials()
    with world.client(credentials) as client:
        whoami = client.whoami()
        assert (whoami.user_dn, whoami.vos, whoami.method) == ("aso", ("cms",), "oauth2")
        file = file_of(credentials, "alice")
        job_id = client.submit(JobSubmission("1", (file,)))
        assert status_of(client, job_id).state == "TOKEN_PREP"
        world.bench.finish(str(job_id))
        ended = status_of(client, job_id)
    assert (ended.state, ended.reason) == ("FINISHED", "")
    assert world.sites.read(DESTINATION, "/store/user/alice/out.root") == CONTENT


def test_unmanaged_tokens_begin_at_once(world: World) -> None:
    credentials = world.credentials(managed=False)
    with world.client(credentials) as client:
        world.bench.hold()
        file = file_of(credentials, "alice")
        job_id = client.submit(JobSubmission("1", (file,), JobParams(unmanaged_tokens=True)))
        assert status_of(client, job_id).state == "SUBMITTED"
        world.bench.release()
        world.bench.finish(str(job_id))
        assert status_of(client, job_id).state == "FINISHED"


@pytest.mark.parametrize(
    ("borrowed", "reason"),
    [
        ("source_token", "SOURCE [1] HTTP 403 : Permission refused"),
        ("destination_token", "DESTINATION [1] HTTP 403 : Permission refused"),
    ],
)
def test_a_storage_refuses_a_token_for_another_area(world: World, borrowed: str, reason: str) -> None:
    credentials = world.credentials()
    others = file_of(credentials, "bob", SERVICE)
    file = replace(file_of(credentials, "alice"), **{borrowed: getattr(others, borrowed)})
    with world.client(credentials) as client:
        ended = world.carried(client, file, "1")
    assert (ended.state, ended.reason) == ("FAILED", reason)
    assert world.sites.read(DESTINATION, "/store/user/alice/out.root") is None


@pytest.mark.parametrize(("overwrites", "state"), [(False, "FAILED"), (True, "FINISHED")])
def test_only_modify_replaces(world: World, overwrites: bool, state: str) -> None:
    world.sites.put(DESTINATION, "/store/user/alice/out.root", b"old")
    credentials = world.credentials(overwrites=overwrites)
    with world.client(credentials) as client:
        ended = world.carried(client, file_of(credentials, "alice"), "1", overwrite=True)
    assert ended.state == state
    content = world.sites.read(DESTINATION, "/store/user/alice/out.root")
    assert content == (CONTENT if overwrites else b"old")


def test_tokens_are_renewed_when_they_end(world: World) -> None:
    credentials = world.credentials()
    with world.client(credentials) as client:
        old = credentials.credential(SERVICE).bearer
        assert old
        ended_token, ended_file = old(), file_of(credentials, "alice")
        world.pass_time(2 * 3600)
        stale = new_session(Access(ca=str(world.tls.ca), bearer=lambda: ended_token))
        with FTS3Client(world.bench.url, stale) as unrenewed:
            assert unrenewed.whoami().is_anonymous
            with pytest.raises(NotAuthorised):
                unrenewed.submit(JobSubmission("1", (ended_file,)))
        assert world.carried(client, file_of(credentials, "alice"), "2").state == "FINISHED"


def test_what_waits_shows_no_token_and_an_ended_file_keeps_none(world: World) -> None:
    credentials = world.credentials()
    file = file_of(credentials, "alice")
    assert "eyJ" not in repr(JobSubmission("1", (file,)))
    engine = world.bench.fts.engine
    with world.client(credentials) as client:
        job_id = client.submit(JobSubmission("1", (file,)))
        assert len(engine._tokens) == 1
        assert "eyJ" not in repr(engine._tokens)
        world.bench.finish(str(job_id))
    assert engine._tokens == {}
