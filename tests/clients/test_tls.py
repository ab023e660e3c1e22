"""Whom clients trust, against real TLS servers: grid directories, revocation lists, CAs as they are."""

from __future__ import annotations

import ipaddress
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from asyncstageout.clients.errors import FTSError, Unreachable, Untrusted
from asyncstageout.clients.fts3 import FTS3Client
from asyncstageout.clients.http import Access, Patience, new_session
from asyncstageout.clients.tls import Revocation, Trust, UnreadableCAs
from clients.answering import AnsweringServer, Reply, answering

ANON = Reply(200, b'{"user_dn": "anon", "vos": [], "delegation_id": null, "method": "unauthenticated"}')
ONCE = Patience(tries=1, connect_s=10, read_s=10)
NOW = datetime.now(UTC)


def name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Grid"),
                      x509.NameAttribute(NameOID.COMMON_NAME, common)])  # fmt: skip


@dataclass
class Authority:
    """A CA as grid CAs were made for years: without key identifiers, its constraints not critical."""

    cert: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def make(cls, common: str, issuer: Authority | None = None) -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = builder_of(common, key, issuer).add_extension(x509.BasicConstraints(True, None), False)
        return cls(builder.sign(issuer.key if issuer else key, hashes.SHA256()), key)

    def server(self, folder: Path, *, ends: timedelta = timedelta(days=1)) -> tuple[Path, x509.Certificate]:
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        cert = (
            builder_of("server", key, self, ends).add_extension(names, False).sign(self.key, hashes.SHA256())
        )
        path = folder / "server.pem"
        path.write_bytes(pem(cert) + pem_key(key))
        return path, cert

    def revocation_list(self, *revoked: x509.Certificate, ends: timedelta = timedelta(days=1)) -> bytes:
        builder = x509.CertificateRevocationListBuilder(
            self.cert.subject, NOW - timedelta(days=3), NOW + ends
        )
        for cert in revoked:
            one = x509.RevokedCertificateBuilder(cert.serial_number, NOW - timedelta(days=2)).build()
            builder = builder.add_revoked_certificate(one)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def builder_of(
    common: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: Authority | None,
    ends: timedelta = timedelta(days=9),
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder(
            issuer.cert.subject if issuer else name(common), name(common), key.public_key()
        )
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(days=9))
        .not_valid_after(NOW + ends)
    )


def pem(*certs: x509.Certificate) -> bytes:
    return b"".join(cert.public_bytes(serialization.Encoding.PEM) for cert in certs)


def pem_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                             serialization.NoEncryption())  # fmt: skip


def rehash(folder: Path) -> str:
    subprocess.run(["openssl", "rehash", str(folder)], check=True, capture_output=True)
    return str(folder)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.make("Old Grid CA")


@pytest.fixture
def folder(tmp_path: Path, authority: Authority) -> Path:
    """A grid directory with one CA."""
    found = tmp_path / "certificates"
    found.mkdir()
    (found / "old.pem").write_bytes(pem(authority.cert))
    rehash(found)
    return found


@contextmanager
def tls_server(path: Path) -> Iterator[AnsweringServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    with answering(lambda _: ANON, context) as server:
        yield server


def ask(url: str, ca: str | None, crl: Revocation = "") -> FTSError | None:
    with FTS3Client(url, new_session(Access(ca=ca, crl=crl)), patience=ONCE) as client:
        try:
            client.whoami()
        except FTSError as error:
            return error
    return None


def test_a_grid_directory_is_trusted(folder: Path, authority: Authority, tmp_path: Path) -> None:
    """With a CA that has no key identifiers, which Python 3.13 would refuse by itself."""
    path, _ = authority.server(tmp_path)
    with tls_server(path) as server:
        assert ask(server.url, str(folder)) is None


def test_a_bundle_is_trusted_as_it_is(authority: Authority, tmp_path: Path) -> None:
    path, _ = authority.server(tmp_path)
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(pem(Authority.make("Another CA").cert, authority.cert))
    with tls_server(path) as server:
        assert ask(server.url, str(bundle)) is None


def test_named_authorities_are_trusted_alone(folder: Path) -> None:
    """Those of certifi are not added to them."""
    session = new_session(Access(ca=str(folder)))
    adapter = session.get_adapter("https://example.org")
    pool = adapter.poolmanager.connection_from_host("example.org", 443, "https")  # type: ignore[attr-defined]
    adapter.cert_verify(pool, "https://example.org", True, None)  # type: ignore[attr-defined]
    assert (pool.ca_certs, pool.ca_cert_dir, pool.cert_reqs) == (None, None, "CERT_REQUIRED")
    assert Trust(str(folder)).context().get_ca_certs() == []  # found by hash, when needed
    session.close()


def test_without_a_name_those_of_certifi_count(authority: Authority, tmp_path: Path) -> None:
    path, _ = authority.server(tmp_path)
    with tls_server(path) as server:
        assert isinstance(ask(server.url, None), Untrusted)


@pytest.mark.parametrize(
    ("trouble", "text"),
    [
        ("unknown", "a CA that is not among ours"),
        ("expired", "has expired"),
        ("name", "not valid for 'localhost'"),
    ],
)
def test_what_is_not_trusted(
    trouble: str, text: str, folder: Path, authority: Authority, tmp_path: Path
) -> None:
    signer = Authority.make("Nobody's CA") if trouble == "unknown" else authority
    path, _ = signer.server(tmp_path, ends=timedelta(days=-1 if trouble == "expired" else 1))
    with tls_server(path) as server:
        url = server.url.replace("127.0.0.1", "localhost") if trouble == "name" else server.url
        error = ask(url, str(folder))
    assert isinstance(error, Untrusted)
    assert text in str(error)
    assert "maybe" not in str(error)


@pytest.mark.parametrize("crl", ["leaf", "chain"])
def test_revocation_lists(crl: Revocation, folder: Path, authority: Authority, tmp_path: Path) -> None:
    path, cert = authority.server(tmp_path)
    with tls_server(path) as server:
        missing = ask(server.url, str(folder), crl)
        (folder / "old.crl").write_bytes(authority.revocation_list())
        rehash(folder)
        good = ask(server.url, str(folder), crl)
        (folder / "old.crl").write_bytes(authority.revocation_list(cert))
        revoked = ask(server.url, str(folder), crl)
        not_asked = ask(server.url, str(folder))
        (folder / "old.crl").write_bytes(authority.revocation_list(ends=timedelta(days=-1)))
        old = ask(server.url, str(folder), crl)
    assert isinstance(missing, Untrusted)
    assert "no revocation list" in str(missing)
    assert "CN=Old Grid CA,O=Grid" in str(missing)
    assert good is None
    assert isinstance(revoked, Untrusted)
    assert "revoked" in str(revoked)
    assert not_asked is None
    assert isinstance(old, Untrusted)
    assert "revocation list of the server's CA has expired" in str(old)


def test_a_revoked_ca_counts_where_the_chain_is_looked_at(authority: Authority, tmp_path: Path) -> None:
    below = Authority.make("CA below", authority)
    path, _ = below.server(tmp_path)
    path.write_bytes(path.read_bytes() + pem(below.cert))
    lists = authority.revocation_list(below.cert) + below.revocation_list()
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(pem(authority.cert) + lists)
    with tls_server(path) as server:
        assert ask(server.url, str(bundle), "leaf") is None
        assert "revoked" in str(ask(server.url, str(bundle), "chain"))


def test_a_new_list_counts_from_the_next_connection_on(
    folder: Path, authority: Authority, tmp_path: Path
) -> None:
    path, cert = authority.server(tmp_path)
    (folder / "old.crl").write_bytes(authority.revocation_list())
    rehash(folder)
    session = new_session(Access(ca=str(folder), crl="leaf"))
    with tls_server(path) as server, FTS3Client(server.url, session, patience=ONCE) as client:
        client.whoami()
        (folder / "old.crl").write_bytes(authority.revocation_list(cert))
        session.get_adapter(server.url).poolmanager.clear()  # type: ignore[attr-defined]
        with pytest.raises(Untrusted, match="revoked"):
            client.whoami()


@pytest.mark.parametrize("trouble", ["absent", "empty directory", "no PEM", "broken PEM"])
def test_authorities_that_cannot_be_read_are_named(trouble: str, tmp_path: Path) -> None:
    path = tmp_path / "authorities"
    if trouble == "empty directory":
        path.mkdir()
    elif trouble != "absent":
        path.write_text("nothing" if trouble == "no PEM" else "-----BEGIN CERTIFICATE-----\nAAAA\n")
    with pytest.raises(UnreadableCAs, match=str(path)):
        Trust(str(path)).context()
    if trouble != "broken PEM":
        with pytest.raises(UnreadableCAs, match=str(path)):
            new_session(Access(ca=str(path)))


def test_no_server_is_not_a_matter_of_trust(folder: Path) -> None:
    assert isinstance(ask("https://127.0.0.1:1", str(folder)), Unreachable)
