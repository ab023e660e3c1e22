"""Delegated credentials: the certificate request, the proxy that is put, and whether it lives long enough."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import NameOID

from asyncstageout.sandbox.fts.identity import Identity
from asyncstageout.sandbox.fts.journal import Journal
from asyncstageout.sandbox.fts.records import wire_time
from asyncstageout.sandbox.fts.refusals import Refused

LEAST_LIFETIME_S = 3600
ASSUMED_LIFETIME_S = 12 * 3600
"""What is shown of a delegation that nobody asked for."""


class Delegations:
    """The delegated credentials of all users. No proxy is kept, only when it ends: nothing here needs it."""

    def __init__(self, journal: Journal, *, required: bool) -> None:
        """If not ``required``, every certificate counts as delegated until its owner delegates really."""
        self._journal = journal
        self._required = required
        self._ends: dict[str, float] = dict(journal.memos("delegation"))
        self._keys: dict[str, rsa.RSAPrivateKey] = {}

    def check(self, user: Identity, now_s: float) -> None:
        """Raise FTS's 419 unless the user has a delegated credential for an hour or more."""
        if not self._required:
            return
        end_s = self._ends.get(user.delegation_id or "")
        if end_s is None:
            raise Refused(419, f'No delegation found for "{user.user_dn}"')
        if end_s <= now_s:
            ago = int(now_s - end_s)
            raise Refused(419, f"The delegated credentials expired {ago} seconds ago ({user.delegation_id})")
        if end_s - now_s < LEAST_LIFETIME_S:
            raise Refused(
                419, f"The delegated credentials has less than one hour left ({user.delegation_id})"
            )

    def view(self, user: Identity, now_s: float) -> dict[str, Any] | None:
        """Return when the user's delegated credential ends, also if it has; None without one."""
        end_s = self._ends.get(user.delegation_id or "")
        if end_s is None:
            if self._required:
                return None
            end_s = now_s + ASSUMED_LIFETIME_S
        return {"termination_time": wire_time(end_s), "voms_attrs": list(user.fqans) or [""]}

    def request(self, user: Identity) -> bytes:
        """Return the certificate request (PEM) that the user shall sign; the same one until he has."""
        dlg_id = user.delegation_id or ""
        if dlg_id not in self._keys:
            self._keys[dlg_id] = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Dummy")])
        builder = x509.CertificateSigningRequestBuilder().subject_name(name)
        return builder.sign(self._keys[dlg_id], hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def put(self, user: Identity, pem: bytes) -> None:
        """Take the proxy that the user signed.

        Raises:
            Refused: 400, with FTS's text.
        """
        key = self._keys.get(user.delegation_id or "")
        if key is None:
            raise Refused(400, "No credential cache found")
        ends_at = _proxy_end(pem, key)
        self.set_end(user, ends_at)

    def set_end(self, user: Identity, ends_at: datetime) -> None:
        """Keep when a credential ends."""
        dlg_id = user.delegation_id or ""
        self._ends[dlg_id] = ends_at.timestamp()
        self._journal.note_memo("delegation", dlg_id, ends_at.timestamp())
        self._journal.flush()

    def delete(self, user: Identity) -> None:
        """Forget a credential; 404 if there is none."""
        dlg_id = user.delegation_id or ""
        if self._ends.pop(dlg_id, None) is None:
            raise Refused(404, "Delegated credentials not found")
        self._journal.note_memo("delegation", dlg_id, None)
        self._journal.flush()


def _proxy_end(pem: bytes, key: rsa.RSAPrivateKey) -> datetime:
    """Return when the proxy ends, if it is one for ``key``, signed by the certificate that follows it."""
    try:
        proxy, issuer = x509.load_pem_x509_certificates(pem)[:2]
    except ValueError as error:  # not PEM, or fewer than two certificates
        raise Refused(400, "Could not process the proxy: Malformed proxy") from error
    if proxy.public_key() != key.public_key():
        raise Refused(
            400, "Could not process the proxy: The proxy does not match the stored associated private key"
        )
    if not _is_signed_by(proxy, issuer):
        raise Refused(
            400,
            "Could not process the proxy: "
            "Failed to verify the proxy, maybe signed with the wrong private key?",
        )
    return proxy.not_valid_after_utc


def _is_signed_by(proxy: x509.Certificate, issuer: x509.Certificate) -> bool:
    signer, algorithm = issuer.public_key(), proxy.signature_hash_algorithm
    signed = (proxy.signature, proxy.tbs_certificate_bytes)
    try:
        if isinstance(signer, rsa.RSAPublicKey) and algorithm:
            signer.verify(*signed, padding.PKCS1v15(), algorithm)
        elif isinstance(signer, ec.EllipticCurvePublicKey) and algorithm:
            signer.verify(*signed, ec.ECDSA(algorithm))
        else:
            return False
    except InvalidSignature:
        return False
    return True
