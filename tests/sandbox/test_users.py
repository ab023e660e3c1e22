"""The sandbox's users: certificates of its CA, and proxies that FTS takes for theirs."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from asyncstageout.clients.credentials.directory import DirectoryCredentials
from asyncstageout.clients.credentials.model import CredentialMissing
from asyncstageout.core.identities import Identity
from asyncstageout.sandbox.users import put_proxies, user_dn


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "credentials"
    folder.mkdir(mode=0o700)
    return folder


def test_each_user_has_a_proxy_of_his_own(tmp_path: Path, folder: Path) -> None:
    assert put_proxies(tmp_path / "tls", folder, ["alice", "bob", "alice"]) == 2
    source = DirectoryCredentials(folder)
    for name in ("alice", "bob"):
        credential = source.credential(Identity(name))
        assert credential.subject == user_dn(name)
        assert credential.cert_file == str(folder / f"{name}.pem")
    with pytest.raises(CredentialMissing):
        source.credential(Identity("carol"))


def test_a_fresh_proxy_stays_and_an_old_one_is_made_anew(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_proxies(tmp_path / "tls", folder, ["alice"])
    first = (folder / "alice.pem").read_bytes()
    assert put_proxies(tmp_path / "tls", folder, ["alice"]) == 0
    assert (folder / "alice.pem").read_bytes() == first
    monkeypatch.setattr("asyncstageout.sandbox.users.FRESH", timedelta(days=2))
    assert put_proxies(tmp_path / "tls", folder, ["alice"]) == 1
    assert (folder / "alice.pem").read_bytes() != first
