"""Delegating a proxy to FTS: it makes a key, we sign a certificate for it, and FTS then acts in our name.

The proxy is one of RFC 3820: issued by our own certificate or proxy, its subject ours and a serial number,
and marked with ``proxyCertInfo`` (inherit all rights). FTS's side: reference of FTS 3.13, ``/delegation``.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import NameOID

from asyncstageout.clients.credentials.der import OBJECT_ID, SEQUENCE, element
from asyncstageout.clients.credentials.model import Credential
from asyncstageout.clients.credentials.proxies import (
    CLOCKS_DIFFER,
    INHERIT_ALL,
    LIMITED,
    PROXY_CERT_INFO,
    PrivateKey,
    Proxy,
    is_legacy_proxy,
    proxy_info,
    read_key,
    read_proxy,
)
from asyncstageout.clients.errors import BadAnswer, FTSError, Refused
from asyncstageout.clients.fts3 import FTS3Client

logger = logging.getLogger(__name__)

LIFETIME = timedelta(hours=48)
"""As CRAB does: a job may wait in FTS for hours, and must not lose its proxy there."""
LEAST_LIFETIME = timedelta(hours=1)
"""FTS accepts no job with a proxy that ends sooner."""


class CannotDelegate(FTSError):
    """We have no certificate that may sign a proxy, or FTS does not take what we signed."""

    advice = "Check the certificate and key of the FTS connection, and until when they are valid"


@dataclass(frozen=True, slots=True)
class Delegation:
    """Until when an FTS may act for somebody."""

    delegation_id: str
    """FTS makes it of the DN and the VOMS attributes: another role, another id. Ask for it, never keep it."""
    expires_at: datetime
    is_new: bool


def keep_delegated(
    client: FTS3Client, credential: Credential, least: timedelta, lifetime: timedelta = LIFETIME
) -> Delegation:
    """See to it that FTS may act for us for a while, and return until when.

    Args:
        client: speaks with this credential.
        least: with less than this left, FTS is given a new proxy; if the credential itself has not much
            more, what it has.

    Raises:
        CannotDelegate: see there; also where the credential is a token.
        FTSError: FTS does not answer, or does not know us.
    """
    if credential.cert_file is None:
        raise CannotDelegate(client.server, "GET /delegation", None, "a token is no certificate")
    me = client.whoami()
    if not me.delegation_id:
        raise CannotDelegate(client.server, "GET /whoami", 200, f"FTS takes us for {me.user_dn}")
    now = datetime.now(UTC)
    ends_at = _delegated_until(client, me.delegation_id)
    if ends_at is not None and ends_at - now >= min(least, credential.expires_at - now - CLOCKS_DIFFER):
        return Delegation(me.delegation_id, ends_at, is_new=False)
    ends_at = delegate(client, credential.cert_file, credential.key_file, lifetime)
    return Delegation(me.delegation_id, ends_at, is_new=True)


def _delegated_until(client: FTS3Client, delegation_id: str) -> datetime | None:
    answer = client.ask("GET", f"/delegation/{delegation_id}")
    try:
        row = answer.json()
        return datetime.fromisoformat(row["termination_time"]).replace(tzinfo=UTC) if row else None
    except (ValueError, KeyError, TypeError) as error:
        asked = "GET /delegation"
        raise BadAnswer(client.server, asked, answer.status_code, f"cannot be read: {error!r}") from error


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
        OSError, ValueError: a file or the request is not readable, or our certificate ends soon.
    """
    wanted = x509.load_pem_x509_csr(request)
    key_pem = key_file.read_bytes()
    ours = read_proxy(cert_file.read_bytes(), key_pem)
    if ours.expires_at - datetime.now(UTC) < LEAST_LIFETIME:
        raise ValueError(f"{cert_file} ends at {ours.expires_at:%Y-%m-%d %H:%M} UTC")
    proxy = issue_proxy(wanted.public_key(), ours, read_key(key_pem), lifetime)
    pem = b"".join(cert.public_bytes(serialization.Encoding.PEM) for cert in (proxy, *ours.chain))
    return pem, proxy.not_valid_after_utc


def issue_proxy(
    public_key: CertificatePublicKeyTypes,
    ours: Proxy,
    key: PrivateKey,
    lifetime: timedelta,
    *,
    extensions: Sequence[x509.UnrecognizedExtension] = (),
) -> x509.Certificate:
    """Return a proxy of ours for somebody's key; it ends with ours if that is sooner.

    Raises:
        ValueError: ours may not issue one.
    """
    _refuse_to_issue(ours)
    issuer, now, serial = ours.chain[0], datetime.now(UTC), x509.random_serial_number()
    name = x509.RelativeDistinguishedName([x509.NameAttribute(NameOID.COMMON_NAME, str(serial))])
    builder = (
        x509.CertificateBuilder()
        .issuer_name(issuer.subject)
        .subject_name(x509.Name([*issuer.subject.rdns, name]))
        .public_key(public_key)
        .serial_number(serial)
        .not_valid_before(max(now - CLOCKS_DIFFER, ours.begins_at))
        .not_valid_after(min(now + lifetime, ours.expires_at))
        .add_extension(_proxy_cert_info(issuer), critical=True)
        .add_extension(_key_usage(issuer), critical=True)
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(key, hashes.SHA256())


def _refuse_to_issue(ours: Proxy) -> None:
    for below, cert in enumerate(ours.chain, 1):
        if is_legacy_proxy(cert):
            raise ValueError("it is a proxy from before RFC 3820: make one with voms-proxy-init -rfc")
        info = proxy_info(cert)
        if info and info.path_length is not None and info.path_length < below:
            raise ValueError(f"it is a proxy that allows only {info.path_length} below it")


def _proxy_cert_info(issuer: x509.Certificate) -> x509.UnrecognizedExtension:
    info = proxy_info(issuer)
    # What is below a limited proxy stays limited; what inherits all below it would be refused.
    language = LIMITED if info and info.is_limited else INHERIT_ALL
    policy = element(SEQUENCE, element(OBJECT_ID, language))
    return x509.UnrecognizedExtension(PROXY_CERT_INFO, element(SEQUENCE, policy))


def _key_usage(issuer: x509.Certificate) -> x509.KeyUsage:
    """Return what the key may be for: never to sign certificates, and nothing that the issuer's may not."""
    try:
        enciphers = issuer.extensions.get_extension_for_class(x509.KeyUsage).value.key_encipherment
    except x509.ExtensionNotFound:
        enciphers = True
    return x509.KeyUsage(
        digital_signature=True, key_encipherment=enciphers, content_commitment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=False, crl_sign=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
