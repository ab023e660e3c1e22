"""Patience, timeouts, TLS and names, against a real socket."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from asyncstageout.clients.errors import (
    BadAnswer,
    JobNotFound,
    NotAuthorised,
    NotFound,
    ServerFault,
    Unavailable,
    Unreachable,
    Untrusted,
)
from asyncstageout.clients.fts3 import FTS3Client
from asyncstageout.clients.http import Access, Caller, InsecureToken, Patience, Silence, new_session
from clients.answering import Reply, Respond, answering, in_turn

HTML_500 = Reply(500, b"<html><head><title>500 Internal</title></head><h1>Internal Server Error</h1></html>")
JSON_500 = Reply(500, b'{"status": "500 Internal Server Error", "message": "internal error"}')
ANON = b'{"user_dn": "anon", "vos": [], "delegation_id": null, "method": "unauthenticated"}'
OK = Reply(200, ANON)
BRISK = Patience(tries=3, deadline_s=600)
"""Waits for what will come, however busy the machine is; nothing here sleeps."""


def _client(
    url: str, slept: list[float] | None = None, access: Access | None = None, patience: Patience = BRISK
) -> FTS3Client:
    waits = [] if slept is None else slept
    return FTS3Client(url, new_session(access), vo="testvo", patience=patience, sleep=waits.append)


def _free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.parametrize(
    "trouble",
    [
        HTML_500,
        Reply(502, b"<h1>Bad Gateway</h1>"),
        Reply(503, b'{"message": "pool exhausted"}'),
        Reply(504),
        Reply(429),
        Reply(instead="reset"),
        Reply(200, ANON, instead="cut"),
    ],
    ids=["html-500", "502", "503-json", "504-empty", "429", "reset", "cut"],
)
def test_what_passes_is_tried_again(trouble: Reply) -> None:
    slept: list[float] = []
    with answering(in_turn(trouble, trouble, OK)) as server, _client(server.url, slept) as client:
        assert client.whoami().is_anonymous
    assert len(server.asked) == 3
    assert len(slept) == 2


@pytest.mark.parametrize(
    ("trouble", "error"),
    [
        (JSON_500, ServerFault),
        (
            Reply(401, b"<h1>Unauthorized</h1><p>A valid X509 certificate is needed</p>"),
            NotAuthorised,
        ),
        (Reply(403, b"<h1>Forbidden</h1><p>The user has been banned</p>"), NotAuthorised),
        (Reply(404, b"<h1>Not Found</h1>"), NotFound),
        (Reply(302, headers={"Location": "https://login.example.org/"}), BadAnswer),
        (Reply(200, b"<html>welcome</html>"), BadAnswer),
        (Reply(200, b""), BadAnswer),
        (Reply(200, b"[1, 2]"), BadAnswer),
        (Reply(200, b'{"user_dn": "x"}'), BadAnswer),
    ],
    ids=["json-500", "401", "banned", "404", "login", "html", "empty", "list", "keys"],
)
def test_what_stays_is_said_at_once(trouble: Reply, error: type[Exception]) -> None:
    with answering(in_turn(trouble)) as server, _client(server.url) as client, pytest.raises(error) as caught:
        client.whoami()
    assert type(caught.value) is error
    assert len(server.asked) == 1
    assert server.address in str(caught.value)
    assert "GET /whoami" in str(caught.value)


def test_patience_ends_after_some_tries_and_with_the_last_error() -> None:
    with (
        answering(in_turn(HTML_500)) as server,
        _client(server.url) as client,
        pytest.raises(Unavailable) as caught,
    ):
        client.whoami()
    assert len(server.asked) == BRISK.tries
    assert caught.value.status == 500
    assert "Internal Server Error" in caught.value.detail


def test_patience_ends_at_its_deadline() -> None:
    patience = Patience(tries=10, deadline_s=5, longest_wait_s=30)
    busy = Reply(503, headers={"Retry-After": "6"})
    with (
        answering(in_turn(busy)) as server,
        _client(server.url, patience=patience) as client,
        pytest.raises(Unavailable) as caught,
    ):
        client.whoami()
    assert len(server.asked) == 1
    assert caught.value.retry_after_s == 6


SLOW = [
    pytest.param(Reply(instead="trickle headers"), id="headers"),
    pytest.param(Reply(headers={"Content-Length": "100000"}, instead="trickle"), id="body"),
    pytest.param(Reply(instead="trickle"), id="body that ends with the connection"),
]
"""Slow loris: each byte comes in time, the answer never does."""
SHORT = Patience(tries=10, deadline_s=0.3, read_s=30)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("slow", SLOW)
def test_an_answer_that_trickles_in_is_cut_off(slow: Reply) -> None:
    with (
        answering(in_turn(slow)) as server,
        _client(server.url, patience=SHORT) as client,
        pytest.raises(Unreachable, match="not complete when its time was over") as caught,
    ):
        client.whoami()
    assert caught.value.maybe_delivered
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("header", "at_least_s", "at_most_s"),
    [
        ("7", 7, 7),
        ("3600", 20, 20),
        (format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True), 20, 20),
        (format_datetime(datetime.now(UTC) - timedelta(hours=1), usegmt=True), 0, 0.5),
        ("soon", 0, 0.5),
    ],
    ids=["seconds", "many seconds", "a date", "a date gone by", "no date"],  # the same in every process
)
def test_retry_after_is_honoured_and_capped(header: str, at_least_s: float, at_most_s: float) -> None:
    slept: list[float] = []
    busy = Reply(429, headers={"Retry-After": header})
    with answering(in_turn(busy, OK)) as server, _client(server.url, slept) as client:
        client.whoami()
    assert at_least_s <= slept[0] <= at_most_s


@pytest.mark.parametrize(
    ("lost", "patience"),
    [
        (Reply(instead="reset"), BRISK),
        (Reply(200, ANON, instead="cut"), BRISK),
        (Reply(instead="silence"), Patience(read_s=0.05, tries=3)),
    ],
    ids=["reset", "cut", "silence"],
)
def test_a_lost_answer_may_have_been_delivered(lost: Reply, patience: Patience) -> None:
    slept: list[float] = []
    with (
        answering(in_turn(lost)) as server,
        _client(server.url, slept, patience=patience) as client,
        pytest.raises(Unreachable) as caught,
    ):
        client.whoami()
    assert caught.value.maybe_delivered
    assert len(slept) == 2


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
def test_what_never_connected_was_not_delivered(host: str) -> None:
    with _client(f"http://{host}:{_free_port()}") as client, pytest.raises(Unreachable) as caught:
        client.whoami()
    assert not caught.value.maybe_delivered
    assert "Check that the FTS server is up" in str(caught.value)


class _AnyJudge:
    def no_answer(self, method: str, url: str, silence: Silence) -> Exception:
        return Unreachable("server", method, maybe_delivered=silence.maybe_delivered)

    def refusal(self, method: str, url: str, answer: object) -> Exception:
        return Unavailable("server", method, 503)


@pytest.mark.parametrize("trouble", [HTML_500, Reply(instead="reset")], ids=["refused", "reset"])
def test_what_may_not_be_repeated_is_not(trouble: Reply) -> None:
    with answering(in_turn(trouble)) as server, new_session() as session:
        caller = Caller(session, _AnyJudge(), BRISK, lambda _s: None)
        with pytest.raises((Unreachable, Unavailable)):
            caller.ask("POST", server.url, may_repeat=False)
    assert len(server.asked) == 1


def test_what_cannot_have_arrived_is_repeated_whatever_it_is() -> None:
    slept: list[float] = []
    with new_session() as session, pytest.raises(Unreachable):
        Caller(session, _AnyJudge(), BRISK, slept.append).ask(
            "POST", f"http://127.0.0.1:{_free_port()}", may_repeat=False
        )
    assert len(slept) == BRISK.tries - 1


def test_every_request_says_who_asks_and_keeps_no_cookie() -> None:
    reply = Reply(200, ANON, {"Set-Cookie": "node=7; Path=/"})
    with answering(in_turn(reply)) as server, _client(server.url) as client:
        client.whoami()
        client.whoami()
    assert server.asked[1].headers["user-agent"].startswith("asyncstageout/")
    assert "cookie" not in server.asked[1].headers


def test_the_environment_changes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{_free_port()}")
    with answering(in_turn(OK)) as server, _client(server.url) as client:
        client.whoami()
    assert "authorization" not in server.asked[0].headers


def test_the_token_is_asked_for_every_request() -> None:
    tokens = iter(["first", "second"])
    access = Access(bearer=lambda: next(tokens))
    with answering(in_turn(OK)) as server, _client(server.url, access=access) as client:
        client.whoami()
        client.whoami()
    assert [asked.headers["authorization"] for asked in server.asked] == ["Bearer first", "Bearer second"]


def test_a_token_does_not_leave_the_machine_in_the_clear() -> None:
    access = Access(bearer=lambda: "secret-token", connect_to={"fts.example.org": "127.0.0.1:9"})
    with _client("http://fts.example.org", access=access) as client, pytest.raises(InsecureToken) as caught:
        client.whoami()
    assert "secret-token" not in f"{caught.value} {access!r}"


def test_secrets_do_not_get_into_messages() -> None:
    token = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl"
    said = f'{{"message": "bad token {token} and -----BEGIN PRIVATE KEY-----\\nMIIE"}}'.encode()
    with (
        answering(in_turn(Reply(403, said))) as server,
        _client(server.url) as client,
        pytest.raises(NotAuthorised) as caught,
    ):
        client.ask("GET", "/whoami", query={"authz": "hidden"})
    assert "eyJ" not in str(caught.value)
    assert "MIIE" not in str(caught.value)
    assert "hidden" not in str(caught.value)


def test_a_job_that_is_unknown_carries_its_id() -> None:
    said = b'{"status": "404 Not Found", "message": "No job with the id \\"%s\\" has been found"}'
    job_id = "dd0b1a74-e64f-11f1-ae8a-02fc00000001"
    with (
        answering(in_turn(Reply(404, said % job_id.encode()))) as server,
        _client(server.url) as client,
        pytest.raises(JobNotFound) as caught,
    ):
        client.ask("GET", f"/jobs/{job_id}/files")
    assert str(caught.value.job_id) == job_id


# --- TLS ---


@dataclass(frozen=True)
class Authority:
    ca_file: Path
    server: ssl.SSLContext
    client_file: Path
    """Certificate and key."""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    folder = tmp_path_factory.mktemp("tls")
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca = _certificate("Test CA", ca_key, None, None)
    (folder / "ca.pem").write_bytes(_pem(ca))
    for name in ("fts.example.org", "alice"):
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _certificate(name, key, ca, ca_key)
        (folder / f"{name}.pem").write_bytes(_pem(certificate) + _key_pem(key))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "fts.example.org.pem")
    context.load_verify_locations(folder / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    return Authority(folder / "ca.pem", context, folder / "alice.pem")


Key = ec.EllipticCurvePrivateKey


def _certificate(
    name: str, key: Key, issuer: x509.Certificate | None, issuer_key: Key | None
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    names = [x509.DNSName(name)] if "." in name else [x509.IPAddress(ipaddress.ip_address("192.0.2.1"))]
    start = datetime.now(UTC) - timedelta(hours=1)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        # From Python 3.13 on, certificates are checked as strictly as RFC 5280 words it.
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key((issuer_key or key).public_key()),
            critical=False,
        )
        .add_extension(_usage(is_ca=issuer is None), critical=True)
        .sign(issuer_key or key, hashes.SHA256())
    )


def _usage(*, is_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: Key) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@pytest.fixture
def sni(authority: Authority) -> Iterator[list[str | None]]:
    seen: list[str | None] = []
    authority.server.sni_callback = lambda _socket, name, _context: seen.append(name)
    yield seen
    authority.server.sni_callback = None


def test_connect_to_may_mean_all_names_of_a_domain() -> None:
    with answering(lambda _: Reply()) as server:
        session = new_session(Access(connect_to={"*.sandbox.test": server.address}))
        for name in ("a.sandbox.test", "B.sandbox.test"):
            assert session.get(f"http://{name}:8080/x", timeout=5).status_code == 200
    assert [asked.headers["host"] for asked in server.asked] == ["a.sandbox.test:8080", "b.sandbox.test:8080"]


def test_connect_to_leaves_the_name_everywhere_else(authority: Authority, sni: list[str | None]) -> None:
    with answering(in_turn(OK), authority.server) as server:
        access = Access(
            ca=str(authority.ca_file),
            cert_file=str(authority.client_file),
            connect_to={"FTS.example.org": server.address},
        )
        with _client("https://fts.example.org:8446/base", access=access) as client:
            assert client.whoami().is_anonymous
    assert server.asked[0].headers["host"] == "fts.example.org:8446"
    assert server.asked[0].path == "/base/whoami"
    assert sni == ["fts.example.org"]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("slow", SLOW)
def test_an_answer_that_trickles_in_over_tls_is_cut_off(
    authority: Authority, sni: list[str | None], slow: Reply
) -> None:
    with answering(in_turn(slow), authority.server) as server:
        access = Access(
            ca=str(authority.ca_file),
            cert_file=str(authority.client_file),
            connect_to={"fts.example.org": server.address},
        )
        with (
            _client("https://fts.example.org", access=access, patience=SHORT) as client,
            pytest.raises(Unreachable, match="not complete when its time was over"),
        ):
            client.whoami()


def test_a_connection_is_used_again(authority: Authority, sni: list[str | None]) -> None:
    with answering(in_turn(OK), authority.server) as server:
        access = Access(
            ca=str(authority.ca_file),
            cert_file=str(authority.client_file),
            connect_to={"fts.example.org": server.address},
        )
        with _client("https://fts.example.org", access=access) as client:
            client.whoami()
            client.whoami()
    assert len(sni) == 1


@pytest.mark.parametrize("wrong", ["authority", "name"])
def test_a_server_that_cannot_be_trusted_is_not_asked(authority: Authority, wrong: str) -> None:
    name = "other.example.org" if wrong == "name" else "fts.example.org"
    slept: list[float] = []
    with answering(in_turn(OK), authority.server) as server:
        access = Access(
            ca=str(authority.ca_file) if wrong == "name" else None, connect_to={name: server.address}
        )
        with _client(f"https://{name}", slept, access) as client, pytest.raises(Untrusted) as caught:
            client.whoami()
    assert not server.asked
    assert not slept
    assert "certificate" in str(caught.value)


def test_names_that_share_a_server_share_no_connection() -> None:
    names = {"one.example.org": "", "two.example.org": ""}
    respond: Respond = in_turn(OK)
    with answering(respond) as server:
        access = Access(connect_to=dict.fromkeys(names, server.address))
        with new_session(access) as session:
            for name in names:
                session.get(f"http://{name}:1234/", timeout=5)
    assert [asked.headers["host"] for asked in server.asked] == [f"{name}:1234" for name in names]
