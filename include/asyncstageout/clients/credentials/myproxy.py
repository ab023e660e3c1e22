"""Credentials from a MyProxy server, kept in a folder of ours until they end soon."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path

from asyncstageout.clients.credentials.directory import DirectoryCredentials, file_name
from asyncstageout.clients.credentials.model import (
    LEAST_LIFETIME,
    Credential,
    CredentialExpired,
    CredentialMissing,
    CredentialProblem,
    CredentialUnsafe,
    CredentialWrong,
    SourceSilent,
)
from asyncstageout.clients.credentials.myproxy_protocol import (
    MyProxyRefused,
    MyProxyServer,
    MyProxySilent,
    Wanted,
)
from asyncstageout.clients.credentials.proxies import credential_of, read_proxy, utc_now, write_private
from asyncstageout.core.identities import Identity

logger = logging.getLogger(__name__)

LIFETIME = timedelta(days=7)
"""The server gives less if its owner wants less (``myproxy-init -t``)."""
HALF = 0.5
_REFUSALS: tuple[tuple[str, type[CredentialProblem]], ...] = (
    (r"[Nn]o credentials? exist|[Cc]redentials? (does|do) not exist", CredentialMissing),
    (r"expired", CredentialExpired),
    (r"", CredentialWrong),
)
"""What the server says, and what that is; the first that fits counts."""


class MyProxyCredentials:
    """Gets proxies from MyProxy as a trusted retriever, or with a passphrase that all accounts share.

    Args:
        server: where, and with which service certificate.
        cache: folder of ours for what was got; made if it is not there.
        account: the name under which users put their credentials in; ``{username}``, ``{vo}``, ``{group}``
            and ``{role}`` are filled in. Group and role also choose the credential: who asks for them gets
            the one that was put in with ``myproxy-init -k <group>+<role>``, or nothing.
        lifetime: of what is asked for; the server may give less.
        subjects: username -> DN that his certificate must have; who is not named may have any, but keeps it.
    """

    def __init__(
        self,
        server: MyProxyServer,
        cache: Path,
        *,
        passphrase: str = "",
        account: str = "{username}",
        lifetime: timedelta = LIFETIME,
        subjects: Mapping[str, str] | None = None,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._server = server
        self._cache = cache
        self._passphrase = passphrase
        self._account = account
        self._lifetime = lifetime
        self._subjects = dict(subjects or {})
        self._kept = DirectoryCredentials(cache, subjects=subjects, now=now)
        self._now = now

    def credential(self, identity: Identity) -> Credential:
        """See :class:`~asyncstageout.clients.credentials.model.CredentialSource`."""
        return self.renew(identity, LEAST_LIFETIME)

    def renew(self, identity: Identity, least: timedelta) -> Credential:
        """See :class:`~asyncstageout.clients.credentials.model.CredentialSource`."""
        kept = self._what_is_kept(identity)
        # Of what is short-lived from the start, a fresh one would not have more.
        if kept and kept.expires_at - self._now() >= kept.should_have(least, HALF):
            return kept
        try:
            return self._get(identity, kept)
        except CredentialProblem as problem:
            if kept is None or isinstance(problem, CredentialUnsafe):
                raise
            logger.warning("not renewed, and good until %s: %s", kept.expires_at, problem)
            return kept

    def _what_is_kept(self, identity: Identity) -> Credential | None:
        try:
            return self._kept.credential(identity)
        except (CredentialMissing, CredentialExpired):
            return None
        except CredentialWrong as problem:
            logger.warning("%s; it is got anew", problem)
            return None

    def _get(self, identity: Identity, kept: Credential | None) -> Credential:
        parts = self._ask(identity)
        path = self._cache / file_name(identity)
        subject = self._subjects.get(identity.username) or (kept.subject if kept else None)
        try:
            proxy = read_proxy(b"".join(parts))
        except ValueError as error:
            raise CredentialWrong(identity, f"{self._where}: {error}") from None
        credential = credential_of(proxy, identity, path, now=self._now(), subject=subject)
        try:
            self._cache.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_private(path, parts)
        except OSError as error:
            raise SourceSilent(identity, f"{path} cannot be written: {error.strerror}") from error
        logger.info("got a proxy of %s until %s", credential.subject, credential.expires_at)
        return credential

    def _ask(self, identity: Identity) -> list[bytes]:
        filled = {"username": identity.username, "vo": identity.vo,
                  "group": identity.vo_group, "role": identity.vo_role}  # fmt: skip
        wanted = Wanted(
            self._account.format_map(filled), credential_name(identity), self._lifetime, self._passphrase
        )
        try:
            return self._server.get(wanted)
        except MyProxySilent as silence:
            raise SourceSilent(identity, f"{self._where} did not give an answer: {silence}") from silence
        except MyProxyRefused as refusal:
            kind = next(kind for text, kind in _REFUSALS if re.search(text, str(refusal)))
            raise kind(identity, f"{self._where} says: {refusal}") from refusal

    @property
    def _where(self) -> str:
        return f"MyProxy {self._server.host}:{self._server.port}"


def credential_name(identity: Identity) -> str:
    """Return the name of the credential that holds an identity's group and role.

    >>> credential_name(Identity("alice", "cms", "uscms", "production"))
    'uscms+production'
    """
    return str(identity).partition("+")[2]
