"""A grid CA with people on it, for tests: certificates with RSA keys, which is all that Globus knows."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from asyncstageout.sandbox.tls import KeyPair

POLICY = """access_id_CA   X509   '/DC=test/CN=Grid CA'
pos_rights     globus CA:sign
cond_subjects  globus '"*"'
"""


@dataclass
class Grid:
    """One CA, and a folder with what it issued."""

    folder: Path
    ca: Path
    ca_cert: x509.Certificate
    ca_key: rsa.RSAPrivateKey

    @classmethod
    def make(cls, folder: Path) -> Grid:
        key = new_key()
        builder = _builder(_name("Grid CA"), _name("Grid CA"), key, timedelta(days=30))
        cert = builder.add_extension(x509.BasicConstraints(True, None), True).sign(key, hashes.SHA256())
        ca = folder / "ca.pem"
        ca.write_bytes(cert.public_bytes(serialization.Encoding.PEM))
        return cls(folder, ca, cert, key)

    def person(
        self, common_name: str, *, ends: timedelta = timedelta(days=30), hosts: tuple[str, ...] = ()
    ) -> KeyPair:
        """Issue a certificate ``/DC=test/CN=<common_name>``."""
        key = new_key()
        builder = _builder(_name(common_name), self.ca_cert.subject, key, ends)
        if hosts:
            names = x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts])
            builder = builder.add_extension(names, False)
        pair = KeyPair(self.folder / f"{common_name}.pem", self.folder / f"{common_name}.key")
        pair.cert.write_bytes(
            builder.sign(self.ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        )
        write_key(pair.key, key)
        return pair

    def directory(self) -> Path:
        """Return the CA as a grid directory, with what Globus wants beside it."""
        folder = self.folder / "certificates"
        if not folder.exists():
            folder.mkdir()
            (folder / "ca.pem").write_bytes(self.ca.read_bytes())
            subprocess.run(["openssl", "rehash", str(folder)], check=True, capture_output=True)
            (hashed,) = folder.glob("*.0")
            hashed.with_suffix(".signing_policy").write_text(POLICY)
        return folder


def new_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def write_key(path: Path, key: rsa.RSAPrivateKey) -> None:
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
        out.write(pem)


def both(pair: KeyPair, path: Path) -> Path:
    """Write certificate and key into one closed file."""
    path.write_bytes(pair.cert.read_bytes() + pair.key.read_bytes())
    path.chmod(0o600)
    return path


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.DOMAIN_COMPONENT, "test"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: rsa.RSAPrivateKey, ends: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder(issuer, subject, key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=9))
        .not_valid_after(now + ends)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)  # VOMS wants it
    )
