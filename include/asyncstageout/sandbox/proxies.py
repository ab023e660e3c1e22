"""Proxies for the sandbox's users, with VOMS attributes if wanted, as ``voms-proxy-init`` makes them.

Nobody signed the attributes: like ``voms-proxy-fake``, this is for services that trust everybody.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from asyncstageout.clients.credentials import voms
from asyncstageout.clients.credentials.der import (
    INTEGER,
    NULL,
    OBJECT_ID,
    OCTETS,
    SEQUENCE,
    SET,
    TIME,
    element,
)
from asyncstageout.clients.credentials.proxies import read_key, read_proxy, write_private
from asyncstageout.clients.delegation import issue_proxy
from asyncstageout.sandbox.tls import KeyPair

LIFETIME = timedelta(hours=24)
_ECDSA_SHA256 = bytes.fromhex("2a8648ce3d040302")
_CONTEXT_0, _CONTEXT_0_PRIMITIVE, _DIRECTORY_NAME, _URI, _BITS = 0xA0, 0x80, 0xA4, 0x86, 0x03


_EXTENSIONS = (
    (bytes.fromhex("551d38"), element(NULL)),  # noRevAvail
    (bytes.fromhex("551d23"), element(SEQUENCE, element(_CONTEXT_0_PRIMITIVE, bytes(20)))),  # of no authority
)
"""Without them VOMS's own programs do not read it."""


def write_proxy(
    path: Path, owner: KeyPair, *, fqans: Sequence[str] = (), lifetime: timedelta = LIFETIME
) -> Path:
    """Write a proxy of a certificate or of another proxy: certificate, key and chain in one closed file.

    Args:
        fqans: VOMS attributes, the primary one first, such as ``/cms/uscms/Role=production``.
    """
    ours = read_proxy(owner.cert.read_bytes(), owner.key.read_bytes())
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    attributes = [voms_extension(ours.chain[0], fqans, lifetime)] if fqans else []
    signing_key = read_key(owner.key.read_bytes())
    leaf = issue_proxy(key.public_key(), ours, signing_key, lifetime, extensions=attributes)
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    chain = [cert.public_bytes(serialization.Encoding.PEM) for cert in ours.chain]
    write_private(path, [leaf.public_bytes(serialization.Encoding.PEM), key_pem, *chain])
    return path


def voms_extension(
    holder: x509.Certificate, fqans: Sequence[str], lifetime: timedelta
) -> x509.UnrecognizedExtension:
    """Return the extension with one attribute certificate (RFC 5755) that says this of somebody."""
    now = datetime.now(UTC)
    vo = fqans[0].split("/")[1]
    names = element(SEQUENCE, element(_DIRECTORY_NAME, holder.issuer.public_bytes()))
    server = element(SEQUENCE, element(_DIRECTORY_NAME, holder.issuer.public_bytes()))
    serial = holder.serial_number.to_bytes(21).lstrip(b"\0")
    algorithm = element(SEQUENCE, element(OBJECT_ID, _ECDSA_SHA256))
    attribute = element(
        SEQUENCE,
        element(OBJECT_ID, voms.FQANS),
        element(
            SET,
            element(
                SEQUENCE,
                element(_CONTEXT_0, element(_URI, f"{vo}://voms.sandbox.test:15000".encode())),
                element(SEQUENCE, *(element(OCTETS, fqan.encode()) for fqan in fqans)),
            ),
        ),
    )
    info = element(
        SEQUENCE,
        element(INTEGER, b"\1"),
        element(SEQUENCE, element(_CONTEXT_0, names, element(INTEGER, _positive(serial)))),
        element(_CONTEXT_0, server),
        algorithm,
        element(INTEGER, b"\1"),
        element(SEQUENCE, _time(now - timedelta(minutes=5)), _time(now + lifetime)),
        element(SEQUENCE, attribute),
        element(
            SEQUENCE,
            *(
                element(SEQUENCE, element(OBJECT_ID, name), element(OCTETS, value))
                for name, value in _EXTENSIONS
            ),
        ),
    )
    certificate = element(SEQUENCE, info, algorithm, element(_BITS, bytes(2)))
    return x509.UnrecognizedExtension(voms.EXTENSION, element(SEQUENCE, element(SEQUENCE, certificate)))


def _positive(number: bytes) -> bytes:
    return number if number[0] < 0x80 else b"\0" + number


def _time(at: datetime) -> bytes:
    return element(TIME, f"{at:%Y%m%d%H%M%SZ}".encode())
