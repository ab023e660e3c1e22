"""Connections of type ``stageout_storage``, and those who delete with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from airflow.providers_manager import ProvidersManager

from asyncstageout.clients.credentials.model import Credential, CredentialMissing
from asyncstageout.clients.storage import StorageClient
from asyncstageout.provider import get_provider_info
from asyncstageout.provider.fts_clients import HookClients
from asyncstageout.provider.storages import CLIENTS, HookDeleters, StorageConnectionMissing, StorageHook
from asyncstageout.sandbox.sites.names import site_pfn
from asyncstageout.sandbox.tls import SandboxTLS, client_certificate, sandbox_tls
from sandbox.harness import SiteBench, site_bench

SECRET = "correct.horse.battery"
LFN = "/store/temp/user/alice.0a1b/mc/out_1.root"
BARI = "T2_IT_Bari"

Put = Callable[..., StorageHook]


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> SandboxTLS:
    return sandbox_tls(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def put(monkeypatch: pytest.MonkeyPatch) -> Put:
    def connect(extra: dict[str, Any], **fields: Any) -> StorageHook:
        connection = json.dumps({"conn_type": "stageout_storage", "extra": extra, **fields})
        monkeypatch.setenv("AIRFLOW_CONN_STAGEOUT_STORAGE", connection)
        return StorageHook()

    return connect


@pytest.fixture
def sites(tls: SandboxTLS, tmp_path: Path) -> Iterator[SiteBench]:
    with site_bench(tls, tmp_path, BARI) as served:
        yield served


def url(sites: SiteBench, lfn: str = LFN) -> str:
    return site_pfn(BARI, lfn, sites.port)


def reaching(tls: SandboxTLS, sites: SiteBench) -> dict[str, Any]:
    return {"ca_file": str(tls.ca), "connect_to": {"*.sandbox.test": sites.address}}


def test_the_connection_type_has_a_form() -> None:
    (info,) = (
        one for one in get_provider_info()["connection-types"] if one["connection-type"] == "stageout_storage"
    )
    assert info["hook-class-name"] == f"{StorageHook.__module__}.{StorageHook.__name__}"
    shown = {
        name.removeprefix("extra__stageout_storage__") for name in ProvidersManager().connection_form_widgets
    }
    assert set(info["conn-fields"]) <= shown


def test_without_a_connection_it_says_what_to_do() -> None:
    with pytest.raises(
        StorageConnectionMissing, match=r"docs/how-to/cleaning\.md.*aso policy set clean=false"
    ):
        HookDeleters()


@pytest.mark.parametrize(
    ("extra", "text"),
    [
        ({"crl": "all"}, "crl is leaf, chain or empty, not 'all'"),
        ({"hosts": "no json"}, "hosts must be a JSON object of objects"),
        ({"hosts": {"se.test": "x"}}, "hosts must be a JSON object of objects"),
        ({"connect_to": ["a"]}, "connect_to must be a JSON object of texts"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_claimed(put: Put, extra: dict[str, Any], text: str) -> None:
    put(extra)
    with pytest.raises(ValueError, match=text):
        HookDeleters()


def test_a_storage_may_have_settings_of_its_own(put: Put) -> None:
    hosts = {"se.test": {"cert_file": "/other.pem", "key_file": ""}}
    hook = put({"ca_file": "/ca", "cert_file": "/c.pem", "key_file": "/k.pem", "hosts": json.dumps(hosts)})
    here, there = hook.access("elsewhere.test"), hook.access("se.test")
    assert (here.ca, here.cert_file, here.key_file) == ("/ca", "/c.pem", "/k.pem")
    assert (there.ca, there.cert_file, there.key_file) == ("/ca", "/other.pem", None)


def test_the_test_button(put: Put, tls: SandboxTLS, sites: SiteBench) -> None:
    extra = reaching(tls, sites)
    assert put(extra).test_connection() == (
        True,
        "Clients can be made; name a test_url, such as davs://se.example.org/store/temp",
    )
    place = f"t2-it-bari.sandbox.test:{sites.port}"
    extra |= {"test_url": url(sites)}
    assert put(extra).test_connection() == (True, f"{place} answers, and there is nothing at this path")
    sites.put(BARI, LFN, b"x")
    assert put(extra).test_connection() == (True, f"{place} shows us what is there")
    works, said = put(extra | {"ca_file": ""}).test_connection()
    assert not works
    assert "certificate" in said
    assert put(extra | {"ca_file": "/nowhere"}).test_connection()[0] is False


def test_the_service_deletes_with_its_token(put: Put, tls: SandboxTLS, sites: SiteBench) -> None:
    seen: list[str] = []

    class Door:
        def denied(self, token: str, *_: object, **__: object) -> None:
            seen.append(token)

    sites.storage.tokens = Door()  # type: ignore[assignment]
    sites.put(BARI, LFN, b"x")
    hook = put(reaching(tls, sites), password=SECRET)
    with HookDeleters() as deleters:
        deleter = deleters.deleter("service", url(sites), LFN)
        assert deleter.look(url(sites)).entries[0].size_bytes == 1
        assert deleter.delete(url(sites))
    assert seen == [SECRET, SECRET]
    assert SECRET not in repr(hook)


class Source:
    """Gives users certificates, or tokens."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[tuple[str, str]] = []

    def credential(self, identity: Any) -> Any:
        if identity.username == "nobody":
            raise CredentialMissing(identity, "no such file")
        pair = client_certificate(self.folder, identity.username, f"/DC=test/CN={identity.username}")
        return Credential(
            identity,
            "x509",
            "",
            datetime.max.replace(tzinfo=UTC),
            cert_file=str(pair.cert),
            key_file=str(pair.key),
        )


class TokenSource(Source):
    managed = False

    def tokens(self, *_: object) -> tuple[str, str]:
        raise AssertionError("these are for FTS")

    def deletion_token(self, identity: Any, where: str, lfn: str) -> str:
        self.asked.append((str(identity), lfn))
        return f"token-of-{identity}"


def with_source(source: Any) -> HookDeleters:
    return HookDeleters(users=HookClients({}, source=lambda: source))


def test_users_delete_with_certificates_of_their_own(
    put: Put, tls: SandboxTLS, sites: SiteBench, tmp_path: Path
) -> None:
    put(reaching(tls, sites))
    sites.put(BARI, LFN, b"x")
    with with_source(Source(tls.ca.parent)) as deleters:
        alice = deleters.deleter("alice", url(sites), LFN)
        assert alice is deleters.deleter("alice", url(sites), LFN)
        assert alice is not deleters.deleter("bob", url(sites), LFN)
        assert alice is not deleters.deleter("service", url(sites), LFN)
        assert isinstance(alice, StorageClient)
        assert "alice" in str(alice._caller.session.cert)
        assert alice.delete(url(sites))
        with pytest.raises(CredentialMissing):
            deleters.deleter("nobody", url(sites), LFN)


def test_tokens_are_for_one_area_over_the_same_connections(
    put: Put, tls: SandboxTLS, sites: SiteBench
) -> None:
    put(reaching(tls, sites))
    seen: list[str] = []

    class Door:
        def denied(self, token: str, *_: object, **__: object) -> None:
            seen.append(token)

    sites.storage.tokens = Door()  # type: ignore[assignment]
    source = TokenSource(tls.ca.parent)
    with with_source(source) as deleters:
        for who in ("alice", "bob", "service"):
            client = deleters.deleter(who, url(sites), f"/store/temp/user/{who}/x")
            assert client.delete(url(sites)) is False
    assert seen == ["token-of-alice", "token-of-bob", "token-of-service"], (
        "the service has no certificate here"
    )
    assert source.asked[0] == ("alice", "/store/temp/user/alice/x")
    put(reaching(tls, sites) | {"cert_file": str(tls.client.cert), "key_file": str(tls.client.key)})
    with with_source(source) as deleters:
        assert deleters.deleter("service", url(sites), LFN).delete(url(sites)) is False
    assert len(seen) == 3


def test_only_so_many_clients_are_open(put: Put, tls: SandboxTLS, sites: SiteBench) -> None:
    put(reaching(tls, sites))
    closed: list[object] = []

    class Closing(StorageHook):
        def get_conn(self, *rest: Any) -> StorageClient:
            client = super().get_conn(*rest)
            client.close = lambda: closed.append(client)  # type: ignore[method-assign]
            return client

    source = Source(tls.ca.parent)
    with HookDeleters(Closing(), HookClients({}, source=lambda: source)) as deleters:
        first = deleters.deleter("alice", url(sites), LFN)
        for number in range(CLIENTS):
            deleters.deleter(f"alice@vo{number}", url(sites), LFN)
        assert closed == [first]
        assert first.delete(url(sites)) is False, "who still has it goes on"
    assert len(closed) == CLIENTS + 1
