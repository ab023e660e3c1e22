"""MyProxy's protocol, version 2, as far as getting a proxy goes (grid.ncsa.illinois.edu/myproxy/protocol).

Over TLS, with our service certificate: a byte "0" (no GSI delegation), the request as lines of ``NAME=value``
that end with a zero byte, and the server's answer in the same form. Then we send a certificate request (DER)
and get back a byte with the number of certificates, these in DER, and a last answer.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from asyncstageout.clients.credentials.der import size_of
from asyncstageout.clients.tls import Trust

PORT = 7512
KEY_BITS = 2048
GET = 0
_OK, _WANTS_MORE = "0", "2"
_MOST_BYTES = 1 << 20
"""More than any answer has."""


class MyProxyRefused(Exception):
    """The server answered, and gives no credential."""


class MyProxySilent(Exception):
    """No answer, or none that makes sense."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for."""

    account: str
    """Name under which the credential was put in; MyProxy's user name."""
    credential_name: str = ""
    """One of several of the account (``myproxy-init -k``)."""
    lifetime: timedelta = timedelta(hours=24)
    passphrase: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class MyProxyServer:
    """One server, as our service sees it.

    Attributes:
        server_name: the name in its certificate, where that is not ``host``.
        timeout_s: for the connection, and for each answer.
    """

    host: str
    port: int
    cert_file: str
    key_file: str | None = None
    trust: Trust = field(default_factory=Trust)
    server_name: str | None = None
    timeout_s: float = 30

    def get(self, wanted: Wanted) -> list[bytes]:
        """Return a proxy with a fresh key, as the parts of a PEM file: certificate, key, chain.

        Raises:
            MyProxyRefused, MyProxySilent: see there.
        """
        try:
            return self._get(wanted)
        except ssl.SSLCertVerificationError as error:
            raise MyProxySilent(str(self.trust.explained(error))) from None
        except TimeoutError:
            raise MyProxySilent(f"no answer within {self.timeout_s:g} s") from None
        except OSError as error:
            raise MyProxySilent(str(error.strerror or error)) from error

    def _get(self, wanted: Wanted) -> list[bytes]:
        context = self.trust.context()
        context.load_cert_chain(self.cert_file, self.key_file)
        raw = socket.create_connection((self.host, self.port), self.timeout_s)
        with context.wrap_socket(raw, server_hostname=self.server_name or self.host) as line:
            return _Talk(line).get(wanted)


class _Talk:
    def __init__(self, line: ssl.SSLSocket) -> None:
        self._line = line
        self._heard = b""

    def get(self, wanted: Wanted) -> list[bytes]:
        # Each in a TLS record of its own: the server looks at no more than one at a time.
        self._line.sendall(b"0")
        self._line.sendall(_request(wanted))
        self._answer()
        key = rsa.generate_private_key(public_exponent=65537, key_size=KEY_BITS)
        self._line.sendall(_certificate_request(key))
        leaf, *above = self._certificates()
        self._answer()
        return [_pem(leaf), _key_pem(key), *map(_pem, above)]

    def _answer(self) -> None:
        """Read an answer; what follows it is kept.

        Raises:
            MyProxyRefused: it is not yes.
        """
        text = ""
        while not text:  # with TLS 1.3, Globus sends a zero byte of its own first
            text = self._until(lambda heard: heard.find(b"\0") + 1)[:-1].decode("utf-8", "replace")
        lines = [line.partition("=")[::2] for line in text.splitlines()]
        verdict = [value for name, value in lines if name == "RESPONSE"]
        if verdict == [_OK]:
            return
        if verdict == [_WANTS_MORE]:
            raise MyProxyRefused("it wants a further proof of who we are; make us a trusted retriever there")
        said = "; ".join(value for name, value in lines if name == "ERROR")
        if verdict != ["1"]:
            raise MyProxySilent("what came is no answer of a MyProxy server")
        raise MyProxyRefused(said[:300] or "it does not say why")

    def _certificates(self) -> list[x509.Certificate]:
        number = self._until(lambda _: 1)[0]
        if number in (0, ord("V")):  # no certificates, but an answer that says what is wrong
            self._heard = bytes([number]) + self._heard
            self._answer()
            raise MyProxySilent("it sent no certificate")
        return [x509.load_der_x509_certificate(self._until(size_of)) for _ in range(number)]

    def _until(self, size: Callable[[bytes], int]) -> bytes:
        """Read until ``size`` of what was heard says how long a part is and it is all there; return it."""
        while not (wanted := size(self._heard)) or len(self._heard) < wanted:
            more = self._line.recv(16384)
            if not more or len(self._heard) > _MOST_BYTES:
                raise MyProxySilent("the answer broke off" if not more else "the answer does not end")
            self._heard += more
        part, self._heard = self._heard[:wanted], self._heard[wanted:]
        return part


def _request(wanted: Wanted) -> bytes:
    lines = {
        "VERSION": "MYPROXYv2",
        "COMMAND": str(GET),
        "USERNAME": wanted.account,
        "PASSPHRASE": wanted.passphrase,
        "LIFETIME": str(int(wanted.lifetime.total_seconds())),
    } | ({"CRED_NAME": wanted.credential_name} if wanted.credential_name else {})
    if any("\n" in value or "\0" in value for value in lines.values()):
        raise MyProxyRefused("a name or passphrase holds a line break")
    return "".join(f"{name}={value}\n" for name, value in lines.items()).encode() + b"\0"


def _certificate_request(key: rsa.RSAPrivateKey) -> bytes:
    # The server takes the subject from its own credential.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "proxy")])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.DER)


def _pem(cert: x509.Certificate) -> bytes:
    return cert.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
