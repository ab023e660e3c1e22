"""Connections of type ``stageout_credentials``, as Airflow gives them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from airflow.providers_manager import ProvidersManager

from asyncstageout.clients.credentials.directory import DirectoryCredentials
from asyncstageout.clients.credentials.myproxy import MyProxyCredentials
from asyncstageout.clients.credentials.oidc import OIDCCredentials
from asyncstageout.provider import get_provider_info
from asyncstageout.provider.credentials import CredentialsHook, credential_source
from asyncstageout.sandbox.proxies import write_proxy
from asyncstageout.sandbox.tls import client_certificate, sandbox_tls

PASSPHRASE = "correct horse"


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Any:
    def put(extra: dict[str, Any], **fields: Any) -> CredentialsHook:
        connection = json.dumps({"conn_type": "stageout_credentials", "extra": extra, **fields})
        monkeypatch.setenv("AIRFLOW_CONN_STAGEOUT_CREDENTIALS", connection)
        return CredentialsHook()

    return put


def test_the_connection_type_has_a_form() -> None:
    info = get_provider_info()["connection-types"][1]
    assert info["hook-class-name"] == f"{CredentialsHook.__module__}.{CredentialsHook.__name__}"
    widgets = ProvidersManager().connection_form_widgets
    shown = {name.removeprefix("extra__stageout_credentials__") for name in widgets}
    assert set(info["conn-fields"]) <= shown


def test_without_a_connection_there_is_no_source() -> None:
    assert credential_source() is None


@pytest.mark.parametrize(
    ("extra", "fields", "kind"),
    [
        ({"directory": "/x"}, {}, DirectoryCredentials),
        ({"source": "directory", "directory": "/x"}, {}, DirectoryCredentials),
        (
            {"source": "myproxy", "directory": "/x", "cert_file": "/c.pem", "key_file": "/k.pem"},
            {"host": "myproxy.example.org", "password": PASSPHRASE},
            MyProxyCredentials,
        ),
        (
            {"source": "oidc", "issuer": "https://issuer.example.org"},
            {"login": "aso", "password": PASSPHRASE},
            OIDCCredentials,
        ),
    ],
)
def test_each_source(connect: Any, extra: dict[str, Any], fields: dict[str, Any], kind: type) -> None:
    hook = connect(extra, **fields)
    source = credential_source()
    assert isinstance(source, kind)
    assert PASSPHRASE not in repr(source) + repr(hook)


@pytest.mark.parametrize(
    ("extra", "fields", "text"),
    [
        ({}, {}, "directory is missing in the extra"),
        ({"source": "vault"}, {}, "source is 'vault', not directory, myproxy, oidc"),
        ({"source": "myproxy", "directory": "/x", "cert_file": "/c"}, {}, "has no host"),
        ({"source": "myproxy", "directory": "/x"}, {"host": "h"}, "cert_file is missing"),
        (
            {"source": "myproxy", "directory": "/x", "cert_file": "/c", "crl": "all"},
            {"host": "h"},
            "crl is 'all'",
        ),
        ({"source": "oidc", "issuer": "https://i"}, {"login": "aso"}, "client id and secret"),
        ({"directory": "/x", "subjects_file": "/no/such"}, {}, "/no/such cannot be read"),
    ],
)
def test_what_is_wrong_is_named(
    connect: Any, extra: dict[str, Any], fields: dict[str, Any], text: str
) -> None:
    connect(extra, **fields)
    with pytest.raises(ValueError, match=text):
        credential_source()


def test_the_button(connect: Any, tmp_path: Path) -> None:
    folder = tmp_path / "credentials"
    folder.mkdir(mode=0o700)
    sandbox_tls(tmp_path)
    owner = client_certificate(tmp_path, "alice", "/DC=test/DC=fts/CN=alice")
    path = write_proxy(folder / "alice.pem", owner)
    subjects = tmp_path / "subjects.json"
    subjects.write_text('{"alice": "/DC=test/DC=fts/CN=alice"}')
    extra = {"directory": str(folder), "test_identity": "alice", "subjects_file": str(subjects)}
    good, said = connect(extra).test_connection()
    assert good
    assert "alice is /DC=test/DC=fts/CN=alice until" in said
    path.chmod(0o644)
    assert connect(extra).test_connection() == (
        False,
        f"no credential for alice: others have access to {path}: chmod 600 {path}",
    )
    assert connect({"source": "vault"}).test_connection()[0] is False
    assert connect({"directory": str(folder)}).test_connection()[0] is True
    assert connect(extra | {"test_identity": "a b"}).test_connection()[0] is False
