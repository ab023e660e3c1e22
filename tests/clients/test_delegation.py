"""The proxy that FTS is given is one of RFC 3820, signed by our certificate."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from hashlib import sha1
from itertools import pairwise
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from asyncstageout.clients.credentials.der import OBJECT_ID, SEQUENCE, element
from asyncstageout.clients.credentials.directory import DirectoryCredentials
from asyncstageout.clients.credentials.model import Credential
from asyncstageout.clients.credentials.proxies import (
    LIMITED,
    PROXY_CERT_INFO,
    proxy_info,
    read_key,
    read_proxy,
)
from asyncstageout.clients.delegation import CannotDelegate, delegate, issue_proxy, keep_delegated, sign_proxy
from asyncstageout.clients.fts3 import FTS3Client
from asyncstageout.clients.http import Access, Patience, new_session
from asyncstageout.core.identities import Identity
from asyncstageout.sandbox.fts.service import Options
from asyncstageout.sandbox.proxies import write_proxy
from asyncstageout.sandbox.tls import KeyPair, SandboxTLS, client_certificate, sandbox_tls
from clients.answering import Asked, Reply, answering
from clients.grid import Grid, both
from sandbox.harness import Bench, Clock, bench, certificates

DN = "/DC=test/DC=fts/CN=alice"
TWELVE_HOURS = timedelta(hours=12)


@pytest.fixture(scope="module")
def alice(tmp_path_factory: pytest.TempPathFactory) -> KeyPair:
    folder = tmp_path_factory.mktemp("tls")
    sandbox_tls(folder)
    return client_certificate(folder, "alice", DN)


KEY_OF_FTS = ec.generate_private_key(ec.SECP256R1())


def request() -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Dummy")])
    signed = x509.CertificateSigningRequestBuilder().subject_name(name).sign(KEY_OF_FTS, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM)


def test_the_proxy_is_one_of_rfc_3820(alice: KeyPair) -> None:
    pem, ends_at = sign_proxy(request(), alice.cert, alice.key, TWELVE_HOURS)
    proxy, issuer = x509.load_pem_x509_certificates(pem)
    assert issuer == x509.load_pem_x509_certificate(alice.cert.read_bytes())
    proxy.verify_directly_issued_by(issuer)
    assert proxy.public_key() == KEY_OF_FTS.public_key()
    *ours, last = proxy.subject
    assert ours == list(issuer.subject)
    assert (last.oid, last.value) == (NameOID.COMMON_NAME, str(proxy.serial_number))
    info = proxy.extensions.get_extension_for_oid(x509.ObjectIdentifier("1.3.6.1.5.5.7.1.14"))
    assert info.critical
    assert proxy.not_valid_before_utc <= datetime.now(UTC)
    assert ends_at - proxy.not_valid_after_utc < timedelta(seconds=1)
    assert timedelta(hours=11.9) < ends_at - datetime.now(UTC) <= TWELVE_HOURS


def test_it_ends_with_our_own_certificate(alice: KeyPair) -> None:
    _, ends_at = sign_proxy(request(), alice.cert, alice.key, timedelta(days=10_000))
    assert ends_at == x509.load_pem_x509_certificate(alice.cert.read_bytes()).not_valid_after_utc


def test_one_file_may_hold_certificate_and_key(alice: KeyPair, tmp_path: Path) -> None:
    """As a proxy of ``voms-proxy-init`` does: certificate, key, chain."""
    both = tmp_path / "both.pem"
    both.write_bytes(alice.cert.read_bytes() + alice.key.read_bytes())
    pem, _ = sign_proxy(request(), both, both, TWELVE_HOURS)
    assert len(x509.load_pem_x509_certificates(pem)) == 2


ME = b'{"user_dn": "/CN=alice", "vos": ["cms"], "delegation_id": "abcd", "method": "certificate"}'


@pytest.mark.parametrize("put", [Reply(201), Reply(400, b'{"message": "Could not process the proxy"}')])
def test_what_is_asked_of_fts(alice: KeyPair, put: Reply) -> None:
    def respond(asked: Asked) -> Reply:
        if asked.path == "/whoami":
            return Reply(200, ME)
        return Reply(200, request()) if asked.path == "/delegation/abcd/request" else put

    with answering(respond) as server, FTS3Client(server.url, new_session()) as client:
        if put.status == 201:
            assert delegate(client, str(alice.cert), str(alice.key)) > datetime.now(UTC)
        else:
            with pytest.raises(CannotDelegate, match="Could not process the proxy"):
                delegate(client, str(alice.cert), str(alice.key))
    asked = server.asked[-1]
    assert (asked.method, asked.path) == ("PUT", "/delegation/abcd/credential")
    assert asked.body.count(b"BEGIN CERTIFICATE") == 2
    assert b"PRIVATE KEY" not in asked.body


@pytest.mark.parametrize("answer", [Reply(200, b"no request"), Reply(200)])
def test_an_answer_that_is_no_request(alice: KeyPair, answer: Reply) -> None:
    with (
        answering(lambda asked: Reply(200, ME) if asked.path == "/whoami" else answer) as server,
        FTS3Client(server.url, new_session()) as client,
        pytest.raises(CannotDelegate),
    ):
        delegate(client, str(alice.cert), str(alice.key))


@pytest.mark.parametrize("path", ["/no/such/file.pem"])
def test_a_certificate_that_is_not_there(alice: KeyPair, path: str) -> None:
    with pytest.raises(FileNotFoundError):
        sign_proxy(request(), Path(path), alice.key, TWELVE_HOURS)


# --- proxies of proxies ---

FQANS = ("/cms/uscms/Role=production/Capability=NULL", "/cms/Role=NULL/Capability=NULL")


def openssl_takes(leaf: x509.Certificate, chain: list[x509.Certificate], ca: Path, tmp_path: Path) -> str:
    """Ask OpenSSL, which is what FTS and the storages ask."""
    (tmp_path / "leaf.pem").write_bytes(leaf.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "chain.pem").write_bytes(b"".join(c.public_bytes(serialization.Encoding.PEM) for c in chain))
    asked = ["openssl", "verify", "-allow_proxy_certs", "-CAfile", str(ca),
             "-untrusted", str(tmp_path / "chain.pem"), str(tmp_path / "leaf.pem")]  # fmt: skip
    answer = subprocess.run(asked, check=False, capture_output=True, text=True)
    return "OK" if answer.returncode == 0 else answer.stderr


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Grid:
    return Grid.make(tmp_path_factory.mktemp("grid"))


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_chain_of_proxies_is_one_that_openssl_takes(grid: Grid, tmp_path: Path, depth: int) -> None:
    pair = grid.person("alice")
    for number in range(depth):
        path = write_proxy(tmp_path / f"{number}.pem", pair, fqans=FQANS if number == 0 else ())
        pair = KeyPair(path, path)
    pem, ends_at = sign_proxy(request(), pair.cert, pair.key, timedelta(days=9))
    leaf, *chain = x509.load_pem_x509_certificates(pem)
    assert len(chain) == depth + 1
    assert openssl_takes(leaf, chain, grid.ca, tmp_path) == "OK"
    for cert, issuer in pairwise([leaf, *chain]):
        cert.verify_directly_issued_by(issuer)
        assert cert.not_valid_after_utc <= issuer.not_valid_after_utc
    assert ends_at <= datetime.now(UTC) + timedelta(hours=24)


def proxy_with(grid: Grid, tmp_path: Path, info: bytes) -> KeyPair:
    """Make a proxy whose proxyCertInfo is this."""
    alice, key = grid.person("alice"), read_key(grid.person("carol").key.read_bytes())
    chain = read_proxy(alice.cert.read_bytes(), alice.key.read_bytes())
    plain = issue_proxy(key.public_key(), chain, read_key(alice.key.read_bytes()), TWELVE_HOURS)
    builder = x509.CertificateBuilder(
        plain.issuer, plain.subject, plain.public_key(), plain.serial_number,
        plain.not_valid_before_utc, plain.not_valid_after_utc,
    ).add_extension(x509.UnrecognizedExtension(PROXY_CERT_INFO, info), True)  # fmt: skip
    signed = builder.sign(read_key(alice.key.read_bytes()), hashes.SHA256())
    path = tmp_path / "special.pem"
    path.write_bytes(signed.public_bytes(serialization.Encoding.PEM) + alice.cert.read_bytes())
    return KeyPair(path, grid.folder / "carol.key")


@pytest.mark.parametrize(("length", "may"), [(0, False), (1, True)])
def test_a_path_length_is_kept_to(grid: Grid, tmp_path: Path, length: int, may: bool) -> None:
    pair = proxy_with(grid, tmp_path, bytes.fromhex(f"300f0201{length:02x}300a06082b06010505071501"))
    if not may:
        with pytest.raises(ValueError, match="allows only 0 below it"):
            sign_proxy(request(), pair.cert, pair.key, TWELVE_HOURS)
        return
    pem, _ = sign_proxy(request(), pair.cert, pair.key, TWELVE_HOURS)
    leaf, *chain = x509.load_pem_x509_certificates(pem)
    assert openssl_takes(leaf, chain, grid.ca, tmp_path) == "OK"
    (tmp_path / "below.pem").write_bytes(pem)
    below = KeyPair(tmp_path / "below.pem", tmp_path / "below.key")
    below.key.write_bytes(KEY_OF_FTS.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))  # fmt: skip
    with pytest.raises(ValueError, match="allows only 1 below it"):
        sign_proxy(request(), below.cert, below.key, TWELVE_HOURS)


def test_what_is_below_a_limited_proxy_is_limited(grid: Grid, tmp_path: Path) -> None:
    info = element(SEQUENCE, element(SEQUENCE, element(OBJECT_ID, LIMITED)))
    pair = proxy_with(grid, tmp_path, info)
    pem, _ = sign_proxy(request(), pair.cert, pair.key, TWELVE_HOURS)
    found = proxy_info(x509.load_pem_x509_certificates(pem)[0])
    assert found is not None
    assert found.is_limited


# --- with a sandbox FTS that looks at certificates ---


@pytest.fixture
def fts(tmp_path: Path, grid: Grid, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    tls = certificates(tmp_path_factory.mktemp("tls"))
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(tls.ca.read_bytes() + grid.ca.read_bytes())
    options = Options(state=tmp_path, with_bytes=False, require_delegation=True)
    now = Clock(datetime.now(UTC).timestamp())
    with bench(SandboxTLS(trusted, tls.server, tls.client), tls.ca.parent, options, now) as found:
        yield found


def credential(folder: Path, identity: str) -> Credential:
    folder.chmod(0o700)
    return DirectoryCredentials(folder).credential(Identity.read(identity))


def client(fts: Bench, tmp_path: Path, mine: Credential) -> FTS3Client:
    access = Access(ca=str(tmp_path / "trusted.pem"), cert_file=mine.cert_file)
    return FTS3Client(fts.url, new_session(access), patience=Patience(tries=1))


def test_fts_knows_who_comes_with_a_proxy(grid: Grid, tmp_path: Path, fts: Bench) -> None:
    """Its owner, what VOMS says of him, and an id of both: another role, another delegation."""
    alice = grid.person("alice")
    both(alice, tmp_path / "alice.pem")
    write_proxy(tmp_path / "alice@cms+uscms+production.pem", alice, fqans=FQANS)
    ids = set()
    for name, fqans in (("alice", ()), ("alice@cms+uscms+production", FQANS)):
        with client(fts, tmp_path, credential(tmp_path, name)) as mine:
            answer = mine.ask("GET", "/whoami").json()
            assert answer["user_dn"] == "/DC=test/CN=alice"
            assert answer["voms_cred"] == list(fqans)
            expected = sha1("".join(("/DC=test/CN=alice", *fqans)).encode()).hexdigest()[:16]
            assert answer["delegation_id"] == expected
            assert answer["vos"] == (["cms/uscms", "cms"] if fqans else ["cms"])
            assert answer["roles"] == (["production"] if fqans else [])
            ids.add(expected)
            assert (
                keep_delegated(mine, credential(tmp_path, name), timedelta(hours=4)).delegation_id == expected
            )
    assert len(ids) == 2
    other = fts.ask("alice", "GET", f"/delegation/{ids.pop()}")
    assert other.status_code == 403


def test_a_delegation_is_renewed_in_time(grid: Grid, tmp_path: Path, fts: Bench) -> None:
    alice = grid.person("alice")
    write_proxy(tmp_path / "alice.pem", alice)
    mine = credential(tmp_path, "alice")
    with client(fts, tmp_path, mine) as asking:
        first = keep_delegated(asking, mine, timedelta(hours=4), lifetime=TWELVE_HOURS)
        assert first.is_new
        second = keep_delegated(asking, mine, timedelta(hours=4))
        assert not second.is_new
        assert abs(second.expires_at - first.expires_at) < timedelta(seconds=2)
        assert keep_delegated(asking, mine, timedelta(hours=13)).is_new


def test_a_short_credential_is_not_delegated_again_and_again(grid: Grid, tmp_path: Path, fts: Bench) -> None:
    write_proxy(tmp_path / "alice.pem", grid.person("alice"), lifetime=timedelta(hours=2))
    mine = credential(tmp_path, "alice")
    with client(fts, tmp_path, mine) as asking:
        assert keep_delegated(asking, mine, timedelta(hours=4)).is_new
        assert not keep_delegated(asking, mine, timedelta(hours=4)).is_new


def test_a_token_is_not_delegated(fts: Bench, tmp_path: Path) -> None:
    token = Credential(Identity("alice"), "token", "alice", datetime.now(UTC), bearer=lambda: "secret")
    with (
        FTS3Client(fts.url, new_session(Access(ca=str(tmp_path / "trusted.pem")))) as asking,
        pytest.raises(CannotDelegate, match="no certificate"),
    ):
        keep_delegated(asking, token, timedelta(hours=4))
