"""Reads what VOMS says of somebody from his proxy: groups, roles, and until when they hold.

VOMS puts an attribute certificate (RFC 5755) into an extension of the proxy. Enough of DER is read here to
find its validity and its FQANs; nobody needs more, and no library for it is well kept. Its signature is not
checked: whoever serves the proxy does that, and we only tell whether it is the one that was asked for.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from cryptography import x509

from asyncstageout.clients.credentials.der import OBJECT_ID, TIME, Element, elements
from asyncstageout.core.identities import Identity

EXTENSION = x509.ObjectIdentifier("1.3.6.1.4.1.8005.100.100.5")
FQANS = bytes.fromhex("2b06010401be45646404")
"""OID 1.3.6.1.4.1.8005.100.100.4, without tag and length."""
_VALIDITY, _ATTRIBUTES = 5, 6
"""Places in ``AttributeCertificateInfo``: version, holder, issuer, signature, serial number, then these."""


class Attributes(NamedTuple):
    """What VOMS says."""

    fqans: tuple[str, ...]
    """The primary one first, such as ``/cms/uscms/Role=production/Capability=NULL``."""
    expires_at: datetime


def attributes(chain: Sequence[x509.Certificate]) -> Attributes | None:
    """Return what VOMS says of the owner of a chain, its leaf first; None if it is not asked in there.

    Raises:
        ValueError: there is something that cannot be read.
    """
    for cert in chain:
        try:
            extension = cert.extensions.get_extension_for_oid(EXTENSION).value
        except x509.ExtensionNotFound:
            continue
        if isinstance(extension, x509.UnrecognizedExtension):
            return read_attributes(extension.value)
    return None


def read_attributes(extension: bytes) -> Attributes:
    """Read the extension's value.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        (sequence,) = elements(extension)
        certificates = [one for inner in sequence.parts() for one in inner.parts()]
        found = [_read(one.parts()[0].parts()) for one in certificates]
    except (IndexError, UnicodeDecodeError) as error:
        raise ValueError("the VOMS attributes cannot be read") from error
    if not found:
        raise ValueError("the VOMS extension holds no attribute certificate")
    fqans = tuple(fqan for one in found for fqan in one.fqans)
    return Attributes(fqans, min(one.expires_at for one in found))


def gives(fqans: Sequence[str], identity: Identity) -> bool:
    """Say whether the primary FQAN is the group and role that an identity asks for.

    Only the primary one counts: storages and FTS take it for the owner of what is written.

    >>> gives(["/cms/uscms/Role=production/Capability=NULL"], Identity("a", "cms", "uscms", "production"))
    True
    """
    primary = re.sub(r"/(Role|Capability)=NULL", "", fqans[0]) if fqans else ""
    return primary == wanted_fqan(identity, default_vo=primary.split("/")[1] if primary else "")


def wanted_fqan(identity: Identity, default_vo: str = "") -> str:
    """Return the FQAN that an identity's group and role are written as.

    >>> wanted_fqan(Identity("alice", "cms", "uscms", "production"))
    '/cms/uscms/Role=production'
    """
    vo = identity.vo or default_vo
    group = identity.vo_group.strip("/").removeprefix(f"{vo}/")
    path = f"/{vo}" if group in ("", vo) else f"/{vo}/{group}"
    return f"{path}/Role={identity.vo_role}" if identity.vo_role else path


def _read(info: list[Element]) -> Attributes:
    ends_at = info[_VALIDITY].parts()[1]
    if ends_at.tag != TIME:
        raise ValueError("the VOMS attributes have no end")
    fqans: list[str] = []
    for attribute in info[_ATTRIBUTES].parts():
        name, values = attribute.parts()[:2]
        if (name.tag, name.content) == (OBJECT_ID, FQANS):
            # SET { SEQUENCE { [0] which server says so, SEQUENCE { OCTET STRING fqan ... } } }
            fqans += (text.content.decode() for text in values.parts()[0].parts()[-1].parts())
    return Attributes(tuple(fqans), _time(ends_at.content.decode()))


def _time(text: str) -> datetime:
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
