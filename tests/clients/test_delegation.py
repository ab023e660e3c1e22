"""The proxy that FTS is given is one of RFC 3820, signed by our certificate."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from asyncstageout.clients.delegation import CannotDelegate, delegate, sign_proxy
from asyncstageout.clients.fts3 import FTS3Client
from asyncstageout.clients.http import new_session
from asyncstageout.sandbox.tls import KeyPair, client_certificate, sandbox_tls
from clients.answering import Asked, Reply, answering

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
