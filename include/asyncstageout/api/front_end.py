"""Client certificates: a TLS front end checks them and says in signed headers who came, as CMS's do.

The signature (dmwm/WMCore, ``REST/Auth.py``): HMAC-SHA1, in hex, of all ``cms-authn-*`` and ``cms-authz-*``
headers but ``cms-authn-hmac``, sorted by lower-case name: ``h<hex length of name>v<hex length of value>`` of
each, ``#``, then name and value of each. ``cms-auth-status`` is not signed, so it can only refuse.
It is for no single request and no time: whoever sees such headers can use them until the key changes.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from pathlib import Path

from starlette.requests import Request

from asyncstageout.api.callers import SIGNED_STATUS, not_authenticated
from asyncstageout.core.callers import Caller, Role

logger = logging.getLogger(__name__)

SIGNATURE = "cms-authn-hmac"
SIGNED = ("cms-authn", "cms-authz")
NO_PERSON = frozenset({"HostIP"})
"""Values of ``cms-authn-method`` that say from which host somebody came, not who."""
LEAST_KEY_BYTES = 16
OTHERS_MAY = stat.S_IWGRP | stat.S_IRWXO
"""What nobody but a key's owner, and readers of its group, may do."""

_LOGIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,99}")


class UnsafeKey(ValueError):
    """A key of the front end is too short, or others can read or replace its file."""

    def __init__(self, place: object, why: str) -> None:
        super().__init__(f"key {place} of the front end: {why}")
        self.place = place


def read_key(path: Path) -> bytes:
    """Return the key in a file, byte by byte as the front end has it.

    Raises:
        UnsafeKey: others may read or change it, or it is too short.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        mode = path.stat().st_mode
        if mode & OTHERS_MAY:
            raise UnsafeKey(path, f"mode {stat.S_IMODE(mode):o} lets others in; chmod 400 or 440")
        return checked_key(file.read(), path)


def checked_key(key: bytes, place: object) -> bytes:
    """Return a key that is long enough.

    Raises:
        UnsafeKey: it is too short.
    """
    if len(key) < LEAST_KEY_BYTES:
        raise UnsafeKey(place, f"shorter than {LEAST_KEY_BYTES} bytes")
    return key


@dataclass(frozen=True)
class FrontEnd:
    """A front end that is trusted."""

    keys: tuple[bytes, ...]
    """Any of them may have signed: the old and the new one while keys are changed."""
    peers: tuple[IPv4Network | IPv6Network, ...]
    """From where it connects; from elsewhere its headers mean nothing."""
    operators: frozenset[str] = frozenset()
    """Who is an operator: ``role``, or ``role@group:name``, such as ``crab-operator@group:crab3``."""

    def caller(self, request: Request) -> Caller:
        """Return whom the headers of a request name.

        Raises:
            Problem: 401; they are not to be trusted, or name nobody. The log says why.
        """
        headers = _headers(request)
        peer = request.client.host if request.client else ""
        why = self._distrust(headers, peer)
        if why:
            logger.warning("headers of a front end from %s are refused: %s", peer, why)
            raise not_authenticated("The front end's word does not count here.")
        login = headers["cms-authn-login"].decode()
        is_operator = bool(self.operators & _roles(headers))
        return Caller(login, Role.OPERATOR if is_operator else Role.USER)

    def _distrust(self, headers: Mapping[str, bytes], peer: str) -> str:
        """Return why headers do not count, or nothing if they do."""
        method = headers.get("cms-authn-method", b"").decode("latin-1")
        login = headers.get("cms-authn-login", b"").decode("latin-1")
        wrong = {
            "not one of its addresses": not self._knows(peer),
            "a header came twice": "" in headers,
            "it authenticated nobody": headers.get(SIGNED_STATUS) != b"OK",
            "the signature is wrong": not self._has_signed(headers),
            "a host is no person": method in NO_PERSON,
            "the certificate belongs to no account": not _LOGIN.fullmatch(login),
        }
        return next((why for why, is_so in wrong.items() if is_so), "")

    def _knows(self, peer: str) -> bool:
        try:
            address: IPv4Address | IPv6Address = ip_address(peer)
        except ValueError:
            return False
        if isinstance(address, IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        return any(address in network for network in self.peers)

    def _has_signed(self, headers: Mapping[str, bytes]) -> bool:
        given = headers.get(SIGNATURE, b"").lower()
        # All keys are tried: how long it takes must not tell which one fits.
        fits = [hmac.compare_digest(signature(headers, key).encode(), given) for key in self.keys]
        return any(fits)


def signature(headers: Mapping[str, bytes], key: bytes) -> str:
    """Return the signature of headers with lower-case names."""
    signed = sorted(item for item in headers.items() if item[0].startswith(SIGNED) and item[0] != SIGNATURE)
    lengths = "".join(f"h{len(name):x}v{len(value):x}" for name, value in signed)
    text = b"".join(name.encode() + value for name, value in signed)
    return hmac.new(key, lengths.encode() + b"#" + text, hashlib.sha1).hexdigest()


def speaks_for(request: Request) -> bool:
    """Say whether a request claims to come from a front end that authenticated somebody."""
    return request.headers.get(SIGNED_STATUS, "NONE") != "NONE"


def _headers(request: Request) -> dict[str, bytes]:
    """Return the front end's headers; one that comes twice, so is forged, stands under the name ""."""
    found: dict[str, bytes] = {}
    for raw_name, value in request.headers.raw:
        name = raw_name.decode("latin-1").lower()
        if name.startswith("cms-auth"):
            found["" if name in found else name] = value
    return found


def _roles(headers: Mapping[str, bytes]) -> set[str]:
    """Return each role as ``role``, and as ``role@group:name`` and ``role@site:name``.

    The header is ``cms-authz-crab-operator: group:crab3 site:t2-it-bari``.
    """
    roles: set[str] = set()
    for name, value in headers.items():
        if name.startswith("cms-authz-"):
            role = name.removeprefix("cms-authz-")
            roles |= {role} | {f"{role}@{place}" for place in value.decode("latin-1").split()}
    return roles
