"""Certificates and proxies in PEM files: whose they are, until when, and whether a file may be trusted."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from asyncstageout.clients.credentials import voms
from asyncstageout.clients.credentials.der import elements
from asyncstageout.clients.credentials.model import (
    LEAST_LIFETIME,
    Credential,
    CredentialExpired,
    CredentialMissing,
    CredentialUnsafe,
    CredentialWrong,
    SourceSilent,
)
from asyncstageout.core.identities import Identity

PROXY_CERT_INFO = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.14")
INHERIT_ALL = bytes.fromhex("2b06010505071501")
LIMITED = bytes.fromhex("2b060104019b5001010109")
"""Policy languages 1.3.6.1.5.5.7.21.1 and, of Globus, 1.3.6.1.4.1.3536.1.1.1.9; without tag and length."""
CLOCKS_DIFFER = timedelta(minutes=5)
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey

_LEGACY = ("proxy", "limited proxy")
"""Last common name of a proxy from before RFC 3820, which has no extension to be known by."""
_SHORT = {
    NameOID.COMMON_NAME: "CN",
    NameOID.ORGANIZATION_NAME: "O",
    NameOID.ORGANIZATIONAL_UNIT_NAME: "OU",
    NameOID.COUNTRY_NAME: "C",
    NameOID.STATE_OR_PROVINCE_NAME: "ST",
    NameOID.LOCALITY_NAME: "L",
    NameOID.DOMAIN_COMPONENT: "DC",
    NameOID.EMAIL_ADDRESS: "emailAddress",
    NameOID.USER_ID: "UID",
}


@dataclass(frozen=True, slots=True)
class Proxy:
    """What a PEM file of a certificate or proxy holds, without its key."""

    chain: tuple[x509.Certificate, ...]
    """The leaf first, then who issued it."""
    attributes: voms.Attributes | None

    @property
    def subject(self) -> str:
        """DN of the person or service, without the proxies' own parts."""
        owner = next((cert for cert in self.chain if not is_proxy(cert)), None)
        if owner is not None:
            return slash_dn(owner.subject)
        last = self.chain[-1]
        return slash_dn(last.issuer)

    @property
    def begins_at(self) -> datetime:
        return max(cert.not_valid_before_utc for cert in self.chain)

    @property
    def expires_at(self) -> datetime:
        """When the first of its parts ends, what VOMS says among them."""
        ends = [cert.not_valid_after_utc for cert in self.chain]
        return min([*ends, self.attributes.expires_at] if self.attributes else ends)

    @property
    def fqans(self) -> tuple[str, ...]:
        return self.attributes.fqans if self.attributes else ()


def slash_dn(name: x509.Name) -> str:
    """Return a name as the grid writes it: ``/DC=ch/DC=cern/CN=alice``."""
    return "".join(f"/{_SHORT.get(part.oid, part.oid.dotted_string)}={part.value!s}" for part in name)


class ProxyInfo(NamedTuple):
    """What a proxy's ``proxyCertInfo`` says (RFC 3820, 3.8)."""

    path_length: int | None
    """How many proxies may follow below it; None: any number."""
    is_limited: bool
    """It may not start jobs, and nothing below it may (Globus)."""


def proxy_info(cert: x509.Certificate) -> ProxyInfo | None:
    """Return what makes a certificate a proxy of RFC 3820, or None.

    Raises:
        ValueError: it cannot be read.
    """
    found = [one.value for one in cert.extensions if one.oid == PROXY_CERT_INFO]
    if not found or not isinstance(found[0], x509.UnrecognizedExtension):
        return None
    try:
        (info,) = elements(found[0].value)
        *length, policy = info.parts()
        language = policy.parts()[0].content
    except (ValueError, IndexError) as error:
        raise ValueError("its proxyCertInfo cannot be read") from error
    return ProxyInfo(int.from_bytes(length[0].content) if length else None, language == LIMITED)


def is_legacy_proxy(cert: x509.Certificate) -> bool:
    """Say whether it is a proxy from before RFC 3820."""
    *owner, last = cert.subject
    return list(cert.issuer) == owner and last.oid == NameOID.COMMON_NAME and last.value in _LEGACY


def is_proxy(cert: x509.Certificate) -> bool:
    """Say whether it is a proxy, of RFC 3820 or from before it."""
    return proxy_info(cert) is not None or is_legacy_proxy(cert)


def read_proxy(pem: bytes, key_pem: bytes | None = None) -> Proxy:
    """Read certificate, chain and key.

    Args:
        key_pem: the key, where it is in another file.

    Raises:
        ValueError: something is missing, unreadable, or does not belong together; never with its content.
    """
    chain = tuple(x509.load_pem_x509_certificates(pem)) if b"-----BEGIN CERTIFICATE" in pem else ()
    if not chain:
        raise ValueError("it holds no certificate")
    if read_key(key_pem if key_pem is not None else pem).public_key() != chain[0].public_key():
        raise ValueError("its key is not that of its certificate")
    for cert, issuer in pairwise(chain):
        if cert.issuer != issuer.subject:
            raise ValueError(f"its chain is broken: {slash_dn(cert.subject)} was not issued by what follows")
    return Proxy(chain, voms.attributes(chain))


def read_key(pem: bytes) -> PrivateKey:
    """Return the first private key of a PEM text.

    Raises:
        ValueError: there is none, it has a passphrase, or is of no kind that proxies have.
    """
    if b"PRIVATE KEY" not in pem:
        raise ValueError("it holds no private key")
    try:
        # Proving that its primes are primes takes 40 ms, which matters with a thousand users. It protects
        # from strangers' keys; this one lies in a file that only we can write, and must fit its certificate.
        key = serialization.load_pem_private_key(pem, password=None, unsafe_skip_rsa_key_validation=True)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        # Not "from": the text of such an error may quote what it could not read.
        asked = "has a passphrase" if isinstance(error, TypeError) else "cannot be read"
        raise ValueError(f"its private key {asked}") from None
    if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        raise ValueError("its private key is neither RSA nor EC")
    return key


def credential_of(
    proxy: Proxy, identity: Identity, path: Path, *, now: datetime, subject: str | None = None
) -> Credential:
    """Return a proxy as the credential of an identity.

    Args:
        subject: the DN that it must have; None: any.

    Raises:
        CredentialWrong: it is somebody else's, or of another VO, group or role.
        CredentialExpired: it has less than :data:`LEAST_LIFETIME` left.
    """
    if subject is not None and proxy.subject != subject:
        raise CredentialWrong(identity, f"{path} is of {proxy.subject}, not of {subject}")
    if trouble := _wrong_attributes(proxy, identity):
        raise CredentialWrong(identity, f"{path} {trouble}")
    if proxy.begins_at > now + CLOCKS_DIFFER:
        raise CredentialWrong(identity, f"{path} is valid only from {proxy.begins_at:%Y-%m-%d %H:%M} UTC on")
    if proxy.expires_at - now < LEAST_LIFETIME:
        verb = "ended" if proxy.expires_at <= now else "ends within the hour,"
        raise CredentialExpired(identity, f"{path} {verb} at {proxy.expires_at:%Y-%m-%d %H:%M} UTC")
    return Credential(
        identity, "x509", proxy.subject, proxy.expires_at, proxy.fqans, str(path), begins_at=proxy.begins_at
    )


def _wrong_attributes(proxy: Proxy, identity: Identity) -> str | None:
    primary = proxy.fqans[0] if proxy.fqans else ""
    if identity.vo_group or identity.vo_role:
        # A group or role that was asked for and silently left out would write files with the wrong owner.
        if voms.gives(proxy.fqans, identity):
            return None
        return f"gives {primary or 'no VOMS attributes'}, not {voms.wanted_fqan(identity)}"
    if primary and identity.vo and primary.split("/")[1] != identity.vo:
        return f"is of VO {primary.split('/')[1]}"
    return None


def read_private(path: Path, identity: Identity) -> bytes:
    """Return the content of a file that nobody else can read or change.

    Raises:
        CredentialMissing: it is not there.
        CredentialUnsafe: others can read it, or could put another one in its place.
        SourceSilent: it cannot be read at the moment.
    """
    try:
        _refuse_open_folder(path.parent, identity)
        with path.open("rb") as file:
            _refuse_open_file(path, os.fstat(file.fileno()), identity)
            return file.read()
    except FileNotFoundError:
        raise CredentialMissing(identity, f"there is no {path}") from None
    except PermissionError:
        raise CredentialUnsafe(identity, f"{path} is not ours to read: chown {_us()} {path}") from None
    except OSError as error:
        raise SourceSilent(identity, f"{path} cannot be read: {error.strerror}") from error


def _refuse_open_folder(folder: Path, identity: Identity) -> None:
    found = folder.stat()
    # In a sticky folder (/tmp) nobody replaces what is not his.
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not found.st_mode & stat.S_ISVTX:
        raise CredentialUnsafe(identity, f"others can change what is in {folder}: chmod go-w {folder}")


def _refuse_open_file(path: Path, found: os.stat_result, identity: Identity) -> None:
    if found.st_uid != os.geteuid():
        raise CredentialUnsafe(identity, f"{path} belongs to uid {found.st_uid}: chown {_us()} {path}")
    if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise CredentialUnsafe(identity, f"others have access to {path}: chmod 600 {path}")


def _us() -> int:
    return os.geteuid()


def write_private(path: Path, parts: Sequence[bytes]) -> None:
    """Write a file that only we can read, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            out.write(b"".join(parts))
            out.flush()
            os.fsync(out.fileno())
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def utc_now() -> datetime:
    return datetime.now(UTC)
