"""Credentials in a folder: one PEM file for each identity, put there by whoever renews them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import quote

from asyncstageout.clients.credentials.model import Credential, CredentialWrong
from asyncstageout.clients.credentials.proxies import credential_of, read_private, read_proxy, utc_now
from asyncstageout.core.identities import Identity


def file_name(identity: Identity) -> str:
    """Return the name of an identity's file; what a name cannot hold is written as in a URL.

    >>> file_name(Identity("alice", "cms", "uscms", "production"))
    'alice@cms+uscms+production.pem'
    """
    return f"{quote(str(identity), safe='@+')}.pem"


class DirectoryCredentials:
    """Reads ``<folder>/alice@cms+uscms+production.pem``: proxy or certificate, its key, its chain.

    There is no falling back to a file with fewer names: who asks for a role gets it, or nothing.

    Args:
        folder: only we may write there; its files must be ours and closed to others.
        subjects: username -> DN that his certificate must have; who is not named may have any.
    """

    def __init__(
        self,
        folder: Path,
        *,
        subjects: Mapping[str, str] | None = None,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._folder = folder
        self._subjects = dict(subjects or {})
        self._now = now

    def credential(self, identity: Identity) -> Credential:
        """See :class:`~asyncstageout.clients.credentials.model.CredentialSource`."""
        path = self._folder / file_name(identity)
        pem = read_private(path, identity)
        try:
            proxy = read_proxy(pem)
        except ValueError as error:
            raise CredentialWrong(identity, f"{path}: {error}") from None
        subject = self._subjects.get(identity.username)
        return credential_of(proxy, identity, path, now=self._now(), subject=subject)

    def renew(self, identity: Identity, least: timedelta) -> Credential:  # noqa: ARG002 - of the protocol
        """Return what is there: somebody else puts a newer one in its place."""
        return self.credential(identity)
