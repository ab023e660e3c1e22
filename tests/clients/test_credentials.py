"""Proxies in a folder: whose they are, until when, and which files are not taken."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from asyncstageout.clients.credentials import voms
from asyncstageout.clients.credentials.der import OCTETS, element, elements
from asyncstageout.clients.credentials.directory import DirectoryCredentials, file_name
from asyncstageout.clients.credentials.model import (
    CredentialExpired,
    CredentialMissing,
    CredentialProblem,
    CredentialUnsafe,
    CredentialWrong,
)
from asyncstageout.clients.credentials.proxies import read_proxy, write_private
from asyncstageout.core.identities import Identity
from asyncstageout.sandbox.proxies import write_proxy
from asyncstageout.sandbox.tls import KeyPair
from clients.grid import Grid, both

ALICE = Identity("alice", "cms")
PRODUCTION = Identity("alice", "cms", "uscms", "production")
FQANS = ("/cms/uscms/Role=production/Capability=NULL", "/cms/Role=NULL/Capability=NULL")


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Grid:
    return Grid.make(tmp_path_factory.mktemp("grid"))


@pytest.fixture(scope="module")
def alice(grid: Grid) -> KeyPair:
    return grid.person("alice")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "credentials"
    found.mkdir(mode=0o700)
    return found


def problem(folder: Path, identity: Identity, **options: object) -> CredentialProblem:
    with pytest.raises(CredentialProblem) as caught:
        DirectoryCredentials(folder, **options).credential(identity)  # type: ignore[arg-type]
    assert caught.value.identity == identity
    assert "BEGIN" not in str(caught.value)
    return caught.value


def test_a_proxy_is_its_owners(folder: Path, alice: KeyPair) -> None:
    path = write_proxy(folder / "alice@cms.pem", alice, lifetime=timedelta(hours=5))
    found = DirectoryCredentials(folder).credential(ALICE)
    assert (found.kind, found.subject, found.fqans) == ("x509", "/DC=test/CN=alice", ())
    assert (found.cert_file, found.key_file) == (str(path), None)
    assert timedelta(hours=4.9) < found.expires_at - datetime.now(UTC) <= timedelta(hours=5)
    assert DirectoryCredentials(folder).renew(ALICE, timedelta(days=9)) == found


def test_a_certificate_serves_as_well(folder: Path, alice: KeyPair) -> None:
    both(alice, folder / "alice@cms.pem")
    assert DirectoryCredentials(folder).credential(ALICE).subject == "/DC=test/CN=alice"


def test_group_and_role_are_kept(folder: Path, alice: KeyPair) -> None:
    write_proxy(folder / "alice@cms+uscms+production.pem", alice, fqans=FQANS)
    assert DirectoryCredentials(folder).credential(PRODUCTION).fqans == FQANS


def test_there_is_no_falling_back(folder: Path, alice: KeyPair) -> None:
    """Whoever asks for a role gets it or nothing: the plain proxy would write as somebody else."""
    write_proxy(folder / "alice@cms.pem", alice, fqans=FQANS[1:])
    found = problem(folder, PRODUCTION)
    assert isinstance(found, CredentialMissing)
    assert "alice@cms+uscms+production.pem" in str(found)


@pytest.mark.parametrize(
    "fqans", [(), FQANS[1:], FQANS[::-1], ("/cms/uscms/Role=other",), ("/atlas/uscms/Role=production",)]
)
def test_another_group_or_role_is_wrong(folder: Path, alice: KeyPair, fqans: tuple[str, ...]) -> None:
    write_proxy(folder / "alice@cms+uscms+production.pem", alice, fqans=fqans)
    found = problem(folder, PRODUCTION)
    assert isinstance(found, CredentialWrong)
    assert "not /cms/uscms/Role=production" in str(found)


def test_a_proxy_of_another_vo_is_wrong(folder: Path, alice: KeyPair) -> None:
    write_proxy(folder / "alice@cms.pem", alice, fqans=("/atlas",))
    assert "is of VO atlas" in str(problem(folder, ALICE))


def test_somebody_elses_proxy_is_wrong(folder: Path, alice: KeyPair) -> None:
    write_proxy(folder / "alice@cms.pem", alice)
    found = problem(folder, ALICE, subjects={"alice": "/DC=test/CN=another alice"})
    assert isinstance(found, CredentialWrong)
    assert "/DC=test/CN=alice" in str(found)


@pytest.mark.parametrize(
    ("mode", "text"), [(0o640, "chmod 600"), (0o604, "chmod 600"), (0o660, "chmod 600"), (0o601, "chmod 600")]
)
def test_a_file_that_others_can_use(folder: Path, alice: KeyPair, mode: int, text: str) -> None:
    path = write_proxy(folder / "alice@cms.pem", alice)
    path.chmod(mode)
    found = problem(folder, ALICE)
    assert isinstance(found, CredentialUnsafe)
    assert f"{text} {path}" in str(found)


def test_a_folder_in_which_others_can_put_files(folder: Path, alice: KeyPair) -> None:
    write_proxy(folder / "alice@cms.pem", alice)
    folder.chmod(0o777)
    assert f"chmod go-w {folder}" in str(problem(folder, ALICE))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_of_somebody_else(folder: Path, alice: KeyPair) -> None:
    path = write_proxy(folder / "alice@cms.pem", alice)
    os.chown(path, 12345, -1)
    assert isinstance(problem(folder, ALICE), CredentialUnsafe)


@pytest.mark.parametrize(
    ("later_h", "kind"), [(22, None), (23.5, CredentialExpired), (30, CredentialExpired)]
)
def test_until_when(
    folder: Path, alice: KeyPair, later_h: float, kind: type[CredentialProblem] | None
) -> None:
    write_proxy(folder / "alice@cms.pem", alice)
    now = datetime.now(UTC) + timedelta(hours=later_h)
    source = DirectoryCredentials(folder, now=lambda: now)
    if kind is None:
        source.credential(ALICE)
        return
    with pytest.raises(kind, match="ended at" if later_h == 30 else "within the hour"):
        source.credential(ALICE)


def test_the_first_end_in_the_chain_counts(folder: Path, grid: Grid, tmp_path: Path) -> None:
    """A proxy may claim more than the certificate below it has."""
    short = grid.person("bob", ends=timedelta(hours=2))
    write_proxy(folder / "bob.pem", short, lifetime=timedelta(days=9))
    found = DirectoryCredentials(folder).credential(Identity("bob"))
    assert found.expires_at - datetime.now(UTC) <= timedelta(hours=2)


def test_voms_attributes_may_end_first(folder: Path, alice: KeyPair, tmp_path: Path) -> None:
    attributed = write_proxy(tmp_path / "voms.pem", alice, fqans=FQANS, lifetime=timedelta(hours=3))
    chain = x509.load_pem_x509_certificates(attributed.read_bytes())
    said = voms.attributes(chain)
    assert said is not None
    assert timedelta(hours=2.9) < said.expires_at - datetime.now(UTC) <= timedelta(hours=3)


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda pem: b"nothing", "holds no certificate"),
        (lambda pem: pem.replace(b"PRIVATE", b"PUBLIC"), "holds no private key"),
        (lambda pem: pem[:200] + b"AAAA" + pem[204:], ""),
        (
            lambda pem: pem.replace(b"BEGIN PRIVATE KEY-----\nMII", b"BEGIN PRIVATE KEY-----\nAII"),
            "cannot be read",
        ),
    ],
)
def test_a_spoilt_file(folder: Path, alice: KeyPair, spoil: object, text: str) -> None:
    path = write_proxy(folder / "alice@cms.pem", alice)
    secret = path.read_bytes().split(b"PRIVATE KEY-----")[1][40:80]
    path.write_bytes(spoil(path.read_bytes()))  # type: ignore[operator]
    found = problem(folder, ALICE)
    assert isinstance(found, CredentialWrong)
    assert text in str(found)
    assert secret.decode() not in str(found)


def test_the_key_of_another(folder: Path, alice: KeyPair, grid: Grid) -> None:
    both(KeyPair(alice.cert, grid.person("eve").key), folder / "alice@cms.pem")
    assert "not that of its certificate" in str(problem(folder, ALICE))


def test_a_broken_chain(folder: Path, alice: KeyPair, grid: Grid) -> None:
    path = write_proxy(folder / "alice@cms.pem", alice)
    path.write_bytes(path.read_bytes().replace(alice.cert.read_bytes(), grid.person("eve").cert.read_bytes()))
    assert "chain is broken" in str(problem(folder, ALICE))


@pytest.mark.parametrize("name", ["..", "alice@../x", "alice@cms+../../etc/x", "a@b+c\0d"])
def test_a_name_leads_out_of_no_folder(name: str) -> None:
    found = file_name(Identity.read(name))
    assert "/" not in found
    assert "\0" not in found
    assert found not in ("..", ".")


def test_a_file_is_written_whole_and_closed(tmp_path: Path) -> None:
    path = tmp_path / "x.pem"
    write_private(path, [b"a", b"b"])
    write_private(path, [b"c"])
    assert path.read_bytes() == b"c"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_secret_is_logged_or_shown(
    folder: Path, alice: KeyPair, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    write_proxy(folder / "alice@cms.pem", alice)
    found = DirectoryCredentials(folder).credential(ALICE)
    assert "BEGIN" not in caplog.text + repr(found)


@given(st.binary(max_size=60))
def test_der_that_is_none(data: bytes) -> None:
    """Whatever a stranger's certificate holds: read, or refused as no DER."""
    try:
        found = list(elements(data))
    except ValueError:
        return
    assert sum(len(one.content) + 2 for one in found) <= len(data)
    with suppress(ValueError):
        voms.read_attributes(data)


@pytest.mark.parametrize("size", [0, 1, 127, 128, 255, 256, 70_000])
def test_der_lengths(size: int) -> None:
    (found,) = elements(element(OCTETS, b"x" * size))
    assert found == (OCTETS, b"x" * size)


# --- what VOMS's own programs make, and see ---


def needs(program: str) -> str:
    found = shutil.which(program)
    if found is None and not os.environ.get("CI"):
        pytest.skip(f"{program} is not installed (Debian package voms-clients)")
    assert found, "apt-get install voms-clients"
    return found


def test_a_proxy_that_voms_made(grid: Grid, alice: KeyPair, tmp_path: Path) -> None:
    server = grid.person("voms.example.org")
    path = tmp_path / "proxy.pem"
    subprocess.run(
        [needs("voms-proxy-fake"), "-rfc", "-cert", str(alice.cert), "-key", str(alice.key), "-out", str(path),
         "-hours", "9", "-vomslife", "9", "-hostcert", str(server.cert), "-hostkey", str(server.key), "-voms", "cms",
         "-uri", "voms.example.org:15000", "-certdir", str(grid.directory()),
         *(part for fqan in FQANS for part in ("-fqan", fqan))],
        check=True, capture_output=True, env={**os.environ, "HOME": str(tmp_path)},
    )  # fmt: skip
    proxy = read_proxy(path.read_bytes())
    assert proxy.subject == "/DC=test/CN=alice"
    assert proxy.fqans == FQANS
    assert timedelta(hours=8.9) < proxy.expires_at - datetime.now(UTC) <= timedelta(hours=9)


def test_voms_reads_the_sandboxs_proxies(grid: Grid, alice: KeyPair, tmp_path: Path) -> None:
    path = write_proxy(tmp_path / "proxy.pem", alice, fqans=FQANS)
    shown = subprocess.run(
        [needs("voms-proxy-info"), "-file", str(path), "-all", "-dont-verify-ac"],
        check=False, capture_output=True, text=True,
        env={**os.environ, "HOME": str(tmp_path), "X509_CERT_DIR": str(grid.directory())},
    ).stdout  # fmt: skip
    assert "RFC" in shown
    assert [
        line.split(":", 1)[1].strip() for line in shown.splitlines() if line.startswith("attribute")
    ] == list(FQANS)
