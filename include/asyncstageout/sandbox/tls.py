"""Certificates of the sandbox: its own CA, servers' and clients' certificates, made once and found again.

They prove nothing to anyone outside: they exist so that the sandbox speaks TLS with client certificates, as
the grid does.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

SERVER_NAMES = ("localhost", "127.0.0.1", "*.sandbox.test")
CA_DN = "/DC=test/DC=sandbox/CN=Sandbox CA"
SERVER_DN = "/DC=test/DC=sandbox/CN=server"
CLIENT_DN = "/DC=test/DC=sandbox/CN=aso"
LIFETIME = timedelta(days=825)
"""The longest that TLS clients of today accept for a server's certificate."""

_OID = {
    "DC": NameOID.DOMAIN_COMPONENT,
    "CN": NameOID.COMMON_NAME,
    "O": NameOID.ORGANIZATION_NAME,
    "OU": NameOID.ORGANIZATIONAL_UNIT_NAME,
    "C": NameOID.COUNTRY_NAME,
}


@dataclass(frozen=True, slots=True)
class KeyPair:
    """Where a certificate and its private key are (PEM; the key's file is 0600)."""

    cert: Path
    key: Path


@dataclass(frozen=True, slots=True)
class SandboxTLS:
    """PEM files of one sandbox."""

    ca: Path
    server: KeyPair
    client: KeyPair


def sandbox_tls(directory: Path, *, server_names: Sequence[str] = SERVER_NAMES) -> SandboxTLS:
    """Return the CA, a server's and a client's certificate in ``directory``; make those that are missing."""
    return SandboxTLS(
        ca=_ca(directory).cert,
        server=server_certificate(directory, "server", SERVER_DN, server_names),
        client=client_certificate(directory, "client", CLIENT_DN),
    )


def server_certificate(directory: Path, name: str, dn: str, names: Sequence[str] = SERVER_NAMES) -> KeyPair:
    """Return the certificate ``name`` of a server that is called ``names`` (DNS, wildcards, addresses)."""
    general = [x509.IPAddress(ip_address(n)) if _is_address(n) else x509.DNSName(n) for n in names]
    return _issued(directory, name, dn, ExtendedKeyUsageOID.SERVER_AUTH, x509.SubjectAlternativeName(general))


def client_certificate(directory: Path, name: str, dn: str, *, ca: Path | None = None) -> KeyPair:
    """Return the certificate ``name`` of the person or service ``dn`` (``/DC=test/DC=sandbox/CN=aso``).

    Args:
        ca: folder of the CA; None: the same.
    """
    return _issued(directory, name, dn, ExtendedKeyUsageOID.CLIENT_AUTH, None, ca_directory=ca)


def _is_address(name: str) -> bool:
    return name.replace(".", "").isdigit() or ":" in name


def _pair(directory: Path, name: str) -> KeyPair:
    return KeyPair(cert=directory / f"{name}.pem", key=directory / f"{name}.key")


def _ca(directory: Path) -> KeyPair:
    pair = _pair(directory, "ca")
    if not pair.cert.exists():
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name(CA_DN)
        builder = _builder(name, name, key).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), True
        )
        usage = x509.KeyUsage(
            digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False,
            key_encipherment=False, data_encipherment=False, key_agreement=False,
            encipher_only=False, decipher_only=False,
        )  # fmt: skip
        _write(pair, builder.add_extension(usage, True).sign(key, hashes.SHA256()), key)
    return pair


def _issued(
    directory: Path,
    name: str,
    dn: str,
    usage: ObjectIdentifier,
    alternative: x509.SubjectAlternativeName | None,
    *,
    ca_directory: Path | None = None,
) -> KeyPair:
    ca, pair = _ca(ca_directory or directory), _pair(directory, name)
    if pair.cert.exists():
        return pair
    ca_cert = x509.load_pem_x509_certificate(ca.cert.read_bytes())
    ca_key = serialization.load_pem_private_key(ca.key.read_bytes(), password=None)
    assert isinstance(ca_key, ec.EllipticCurvePrivateKey)  # noqa: S101 - we wrote it
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        _builder(_name(dn), ca_cert.subject, key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
        .add_extension(x509.ExtendedKeyUsage([usage]), False)
        # Python 3.13 and later refuse a chain without it (VERIFY_X509_STRICT).
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), False)
    )
    if alternative is not None:
        builder = builder.add_extension(alternative, False)
    _write(pair, builder.sign(ca_key, hashes.SHA256()), key)
    return pair


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))  # clocks of containers differ
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
    )


def _name(dn: str) -> x509.Name:
    pairs = (part.split("=", 1) for part in dn.strip("/").split("/"))
    return x509.Name([x509.NameAttribute(_OID[key], value) for key, value in pairs])


def _write(pair: KeyPair, cert: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    """Write the key first: a certificate that is there always has its key beside it."""
    pair.key.parent.mkdir(parents=True, exist_ok=True)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with os.fdopen(os.open(pair.key, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
        out.write(pem)
    pair.cert.write_bytes(cert.public_bytes(serialization.Encoding.PEM))


def subject_dn(cert: Path) -> str:
    """Return the subject of a certificate (PEM) in the form ``/DC=test/CN=alice``."""
    short = {oid: key for key, oid in _OID.items()}
    subject = x509.load_pem_x509_certificate(cert.read_bytes()).subject
    return "".join(f"/{short.get(a.oid, a.rfc4514_attribute_name)}={a.value!s}" for a in subject)
