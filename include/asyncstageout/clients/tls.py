"""Whom we trust: certificate authorities in a file or a grid directory, with or without revocation lists.

Python 3.13 refuses certificates that are not formed exactly as RFC 5280 wants (``VERIFY_X509_STRICT``), such
as those of a CA without key identifiers. That holds where nothing is named: the public CAs of ``certifi``
are formed so. CAs that an operator names are taken as they are, file or directory: he has decided whom to
trust, some of the grid's CAs are older than the rule, and Globus, curl and gfal2 do not ask for it either.
Signatures, dates, names, constraints and (if wanted) revocation are checked in every case.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from cryptography import x509
from requests.utils import DEFAULT_CA_BUNDLE_PATH

Revocation = Literal["", "leaf", "chain"]
REVOCATIONS: tuple[Revocation, ...] = get_args(Revocation)

_CHECKED: dict[Revocation, ssl.VerifyFlags] = {
    "": ssl.VerifyFlags.VERIFY_DEFAULT,
    "leaf": ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF,
    "chain": ssl.VerifyFlags.VERIFY_CRL_CHECK_CHAIN,
}
_HASHED = re.compile(r"(?P<hash>[0-9a-f]{8})\.(?P<number>\d+)")
_NO_CRL, _REVOKED, _CRL_ENDED = 3, 23, 12
_WORDS = {
    9: "the server's certificate, or one above it, is not valid yet",
    10: "the server's certificate, or one above it, has expired",
    _CRL_ENDED: "the revocation list of the server's CA has expired: run fetch-crl",
    18: "the server's certificate is self-signed",
    19: "the server's certificate comes from a CA that is not among ours",
    20: "the server's certificate comes from a CA that is not among ours",
    _REVOKED: "the server's certificate, or one above it, has been revoked",
}
"""By the error codes of OpenSSL's ``X509_verify_cert``; others speak for themselves."""
NAMED = 5


class UnreadableCAs(OSError):
    """The certificate authorities cannot be read."""

    def __init__(self, ca: str, detail: str) -> None:
        self.ca = ca
        super().__init__(f"certificate authorities {ca}: {detail}")


class Distrusted(ssl.SSLCertVerificationError):
    """A server's certificate is not one that we trust, and why, in words."""

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True, slots=True)
class Trust:
    """Certificate authorities, and how far revocation is looked at.

    Attributes:
        ca: PEM file, or directory with hashed names (``c_rehash``); None: those of ``certifi``.
        crl: ``leaf`` looks for the server's own certificate in its CA's revocation list, ``chain`` for every
            certificate above it too. The lists are files ``<hash>.r0`` of the directory, or in the PEM file.
    """

    ca: str | None = None
    crl: Revocation = ""

    def check(self) -> None:
        """Look whether there is something to trust.

        Raises:
            UnreadableCAs: there is not.
        """
        if self.ca is None:
            return
        path = Path(self.ca)
        try:
            if path.is_dir():
                if not any(_HASHED.fullmatch(entry.name) for entry in path.iterdir()):
                    raise UnreadableCAs(self.ca, f"no hashed names (12345678.0); make them: c_rehash {path}")
            elif b"-----BEGIN" not in path.read_bytes():
                raise UnreadableCAs(self.ca, "no certificate in PEM form is in it")
        except UnreadableCAs:
            raise
        except OSError as error:
            raise UnreadableCAs(self.ca, error.strerror or str(error)) from error

    def context(self) -> ssl.SSLContext:
        """Return a fresh context for a client; the lists of today are read with it.

        Raises:
            UnreadableCAs: see :meth:`check`.
        """
        if self.ca is None:
            context = ssl.create_default_context(cafile=DEFAULT_CA_BUNDLE_PATH)
        else:
            self.check()
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            place = "capath" if Path(self.ca).is_dir() else "cafile"
            try:
                context.load_verify_locations(**{place: self.ca})
            except ssl.SSLError as error:
                raise UnreadableCAs(self.ca, str(error.reason)) from error
        context.hostname_checks_common_name = False
        context.verify_flags |= _CHECKED[self.crl]
        return context

    def explained(self, error: ssl.SSLCertVerificationError) -> Distrusted:
        """Return OpenSSL's verdict in words that help."""
        words = _WORDS.get(error.verify_code, error.verify_message)
        if error.verify_code == _NO_CRL:
            words = f"there is no revocation list of the server's CA: {self._without_list()}"
        return Distrusted(words)

    def _without_list(self) -> str:
        if self.ca is None or not Path(self.ca).is_dir():
            return f"{self.ca or 'certifi'} holds none for it"
        names = list(_without_list(Path(self.ca)))
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        return f"in {self.ca} none is there for {', '.join(names[:NAMED])}{more}; run fetch-crl"


def _without_list(folder: Path) -> Iterator[str]:
    for path in sorted(folder.iterdir()):
        found = _HASHED.fullmatch(path.name)
        if found and not (folder / f"{found['hash']}.r{found['number']}").exists():
            yield _subject(path)


def _subject(path: Path) -> str:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes()).subject.rfc4514_string()
    except (OSError, ValueError):
        return path.name
