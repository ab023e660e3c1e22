"""Delegating a proxy to FTS: it makes a key, we sign a certificate for it, and FTS then acts in our name.

The proxy is one of RFC 3820: issued by our own certificate, its subject ours and a serial number, and marked
with ``proxyCertInfo`` (inherit all rights). FTS's side of it: reference of FTS 3.13, ``/delegation``.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from asyncstageout.clients.errors import FTSError, Refused
from asyncstageout.clients.fts3 import FTS3Client

logger = logging.getLogger(__name__)

LIFETIME = timedelta(hours=12)
LEAST_LIFETIME = timedelta(hours=1)
"""FTS accepts no job with a proxy that ends sooner."""
CLOCKS_DIFFER = timedelta(minutes=5)

PROXY_CERT_INFO = x509.UnrecognizedExtension(
    x509.ObjectIdentifier("1.3.6.1.5.5.7.1.14"),
    # SEQUENCE { SEQUENCE { OBJECT IDENTIFIER 1.3.6.1.5.5.7.21.1 (inherit all) } }
    bytes.fromhex("300c300a06082b06010505071501"),
)
KEY_USAGE = x509.KeyUsage(
    digital_signature=True, key_encipherment=True, content_commitment=False, data_encipherment=False,
    key_agreement=False, key_cert_sign=False, crl_sign=False, encipher_only=False, decipher_only=False,
)  # fmt: skip


class CannotDelegate(FTSError):
    """We have no certificate that may sign a proxy, or FTS does not take what we signed."""

    advice = "Check the certificate and key of the FTS connection, and until when they are valid"


def delegate(
    client: FTS3Client, cert_file: str, key_file: str | None = None, lifetime: timedelta = LIFETIME
) -> datetime:
    """Give FTS a proxy of the client's certificate and return its end (aware UTC).

    Args:
        cert_file: certificate or proxy with its chain, PEM.
        key_file: its key; None when it is in ``cert_file``.
        lifetime: the proxy ends with our own certificate if that is sooner.

    Raises:
        CannotDelegate: see there.
        FTSError: FTS does not answer.
    """
    me = client.whoami()
    path = f"/delegation/{me.delegation_id}"
    try:
        request = client.ask("GET", f"{path}/request").content
        proxy, ends_at = sign_proxy(request, Path(cert_file), Path(key_file or cert_file), lifetime)
        client.ask("PUT", f"{path}/credential", data=proxy, headers={"Content-Type": "text/plain"})
    except Refused as error:
        raise CannotDelegate(error.server, error.asked, error.status, error.detail) from None
    except (OSError, ValueError, TypeError) as error:
        raise CannotDelegate(client.server, f"PUT {path}/credential", None, str(error)) from error
    logger.info("delegated a proxy of %s to %s until %s", me.user_dn, client.server, ends_at)
    return ends_at


def sign_proxy(
    request: bytes, cert_file: Path, key_file: Path, lifetime: timedelta
) -> tuple[bytes, datetime]:
    """Return the proxy for a certificate request (PEM), followed by its chain, and its end.

    Raises:
        OSError, ValueError, TypeError: a file or the request is not readable, or our certificate ends soon.
    """
    wanted = x509.load_pem_x509_csr(request)
    chain = x509.load_pem_x509_certificates(cert_file.read_bytes())
    key = serialization.load_pem_private_key(key_file.read_bytes(), password=None)
    if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        raise TypeError(f"{key_file} holds neither an RSA nor an EC key")
    issuer, now, serial = chain[0], datetime.now(UTC), x509.random_serial_number()
    if issuer.not_valid_after_utc - now < LEAST_LIFETIME:
        raise ValueError(f"{cert_file} ends at {issuer.not_valid_after_utc:%Y-%m-%d %H:%M} UTC")
    ends_at = min(now + lifetime, issuer.not_valid_after_utc)
    name = x509.RelativeDistinguishedName([x509.NameAttribute(NameOID.COMMON_NAME, str(serial))])
    proxy = (
        x509.CertificateBuilder()
        .issuer_name(issuer.subject)
        .subject_name(x509.Name([*issuer.subject.rdns, name]))
        .public_key(wanted.public_key())
        .serial_number(serial)
        .not_valid_before(max(now - CLOCKS_DIFFER, issuer.not_valid_before_utc))
        .not_valid_after(ends_at)
        .add_extension(PROXY_CERT_INFO, critical=True)
        .add_extension(KEY_USAGE, critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = b"".join(cert.public_bytes(serialization.Encoding.PEM) for cert in (proxy, *chain))
    return pem, ends_at
