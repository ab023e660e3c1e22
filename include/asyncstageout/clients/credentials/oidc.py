"""Tokens instead of certificates: one for FTS, and for each file those with which FTS reads and writes it.

Storage tokens follow the WLCG token profile: a scope names an action and a path. They are asked for per
directory, never per file: a token for the owner's area serves all his files at a storage, so 100,000 files of
500 users take some thousand requests to the issuer and not 200,000, which no issuer would bear. It is never
wider than the owner's area, so a stolen one reaches one user's files at one storage, for as long as it lasts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from types import MappingProxyType
from typing import Final
from urllib.parse import urlsplit

from asyncstageout.clients.credentials.model import (
    LEAST_LIFETIME,
    Credential,
    CredentialMissing,
    CredentialWrong,
    FilePlaces,
    SourceSilent,
)
from asyncstageout.clients.credentials.oidc_tokens import (
    PATIENCE,
    AudienceParameter,
    Client,
    Issuer,
    IssuerError,
    IssuerSilent,
    IssuerUntrusted,
    Token,
    TokenPurse,
)
from asyncstageout.clients.http import Access, Patience
from asyncstageout.core.identities import Identity
from asyncstageout.core.naming import BadName, check_lfn

ANY_AUDIENCE: Final = "https://wlcg.cern.ch/jwt/v1/any"
"""Every service takes a token with it (WLCG token profile)."""
REQUEST_MARGIN: Final = timedelta(minutes=5)
"""What a bearer has left, at least, when a request goes out with it."""
QUEUE_MARGIN: Final = timedelta(minutes=40)
"""What a storage token has left when it is submitted: the file waits in FTS's queue before it is used."""

READ: Final = ("storage.read",)
CREATE: Final = ("storage.create", "storage.read")
MODIFY: Final = ("storage.modify", "storage.read")
"""FTS also looks at size and checksum of what it wrote; only ``modify`` lets it replace or remove a file."""
MANAGED: Final = ("offline_access",)
"""Lets FTS exchange and refresh a token, so that it may wait in a queue for longer than the token lasts."""

_OWNED = re.compile(r"(?P<area>/store/(?:user(?:/rucio)?|(?P<temp>temp)/user)/(?P<owner>(?!rucio/)[^/]+))/.")
_SHARED = re.compile(r"/store(/[^/]+|/[^/]+/rucio|/temp/(user|group))?\Z")
"""Directories that hold the areas of many."""


class OIDCCredentials:
    """The service's tokens from one issuer: a credential source, and a giver of storage tokens.

    All identities of a VO share the service's client: what tells users apart is the path in the scopes.
    Threads may share it; close it at the end.

    Args:
        issuer: URL, as in its tokens' ``iss``.
        client_secret: the secret, or what returns it whenever a token is asked for.
        ca: file or directory of certificate authorities; None takes those of ``certifi``.
        connect_to: host name -> ``ip:port`` (:class:`asyncstageout.clients.http.Access`).
        fts_scope: what the bearer may do at FTS.
        fts_audience: for whom it is: FTS's own name, or :data:`ANY_AUDIENCE`.
        managed: FTS shall refresh the storage tokens; goes with ``JobParams.unmanaged_tokens`` being False.
        overwrites: storage tokens may also replace what is at the destination.
        audiences: host of a storage -> its audience, where that is not ``https://host[:port]``.
        audience_parameter: how this issuer is told the audience.
        now: aware UTC.
    """

    def __init__(
        self,
        issuer: str,
        client_id: str,
        client_secret: str | Callable[[], str],
        *,
        ca: str | None = None,
        connect_to: Mapping[str, str] = MappingProxyType({}),
        fts_scope: str = "fts",
        fts_audience: str = ANY_AUDIENCE,
        managed: bool = True,
        overwrites: bool = False,
        audiences: Mapping[str, str] = MappingProxyType({}),
        audience_parameter: AudienceParameter = "audience",
        patience: Patience = PATIENCE,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._secret = client_secret if callable(client_secret) else lambda: client_secret
        self._client_id = client_id
        client, access = Client(client_id, self._secret), Access(ca=ca, connect_to=connect_to)
        self._issuer = Issuer(
            issuer, client, access=access, patience=patience, audience_parameter=audience_parameter, now=now
        )
        self._purse = TokenPurse(self._issuer, now)
        self._fts_scope, self._fts_audience = fts_scope, fts_audience
        self.managed = managed
        """Else jobs want ``unmanaged_tokens``, or FTS tries to exchange what it may not."""
        self._reading, self._writing = READ, MODIFY if overwrites else CREATE
        self._also = MANAGED if managed else ()
        self._audiences = dict(audiences)

    def __repr__(self) -> str:
        return f"OIDCCredentials({self._issuer.url!r}, {self._client_id!r})"

    def close(self) -> None:
        self._issuer.close()

    # -- for FTS ---------------------------------------------------------------------------------------

    def credential(self, identity: Identity) -> Credential:
        """Return the credential for FTS, as :meth:`renew` does.

        ``expires_at`` is that of the present token; ``bearer`` gives its successors too. Many issuers give
        less than :data:`LEAST_LIFETIME`; FTS asks no more of a bearer than that it is valid.

        Raises:
            CredentialProblem: there is none.
        """
        return self.renew(identity, LEAST_LIFETIME)

    def renew(self, identity: Identity, least: timedelta) -> Credential:
        """Return the credential, with a token got anew if there is less than ``least`` left.

        Of a token that never has so much left, it is got anew after a quarter of its life.

        Raises:
            CredentialProblem: there is none at all.
        """
        token = self._token(identity, self._fts_scope, self._fts_audience, least)
        bearer = partial(self._bearer, identity)
        return Credential(identity, "token", token.subject, token.expires_at, bearer=bearer)

    def _bearer(self, identity: Identity) -> str:
        return self._token(identity, self._fts_scope, self._fts_audience, REQUEST_MARGIN).text

    # -- for storages ----------------------------------------------------------------------------------

    def tokens(self, identity: Identity, file: FilePlaces) -> tuple[str, str]:
        """Return (source token, destination token) of one file.

        Raises:
            CredentialWrong: a path is another user's, or the issuer gives none for it.
            CredentialProblem: the issuer gives none.
        """
        return (
            self._storage_token(identity, self._reading, file.source_lfn, file.source_url),
            self._storage_token(identity, self._writing, file.destination_lfn, file.destination_url),
        )

    def deletion_token(self, identity: Identity, url: str, lfn: str) -> str:
        """Return a token with which the files of an LFN's area can be looked at and deleted.

        Raises:
            CredentialWrong: the path is another user's, or the issuer gives none for it.
            CredentialProblem: the issuer gives none.
        """
        area = area_of(identity, lfn)
        scope = " ".join(f"{action}:{area}" for action in MODIFY)
        return self._token(identity, scope, self._audience(url), REQUEST_MARGIN).text

    def _storage_token(self, identity: Identity, actions: tuple[str, ...], lfn: str, url: str) -> str:
        area = area_of(identity, lfn)
        scope = " ".join([*(f"{action}:{area}" for action in actions), *self._also])
        return self._token(identity, scope, self._audience(url), QUEUE_MARGIN).text

    def _audience(self, url: str) -> str:
        """One for all protocols of a storage (root, davs): sites configure it per storage, not per door."""
        parts = urlsplit(url)
        host = parts.hostname or ""
        return self._audiences.get(host) or f"https://{host}" + (f":{parts.port}" if parts.port else "")

    def _token(self, identity: Identity, scope: str, audience: str, least: timedelta) -> Token:
        if not self._client_id or not self._secret():
            raise CredentialMissing(identity, f"no client is configured for {self._issuer.url}")
        with _told_of(identity):
            return self._purse.token(scope, audience, least)


@contextmanager
def _told_of(identity: Identity) -> Iterator[None]:
    try:
        yield
    except (IssuerSilent, IssuerUntrusted) as error:
        raise SourceSilent(identity, str(error)) from None
    except IssuerError as error:
        raise CredentialWrong(identity, str(error)) from None


def area_of(identity: Identity, lfn: str) -> str:
    """Return the directory that a token for this file covers: its owner's area, or else its own directory.

    >>> area_of(Identity("alice"), "/store/temp/user/alice.1a2b/run/out_1.root")
    '/store/temp/user/alice.1a2b'
    >>> area_of(Identity("alice"), "/store/group/phys_higgs/run/out_1.root")
    '/store/group/phys_higgs/run'

    Raises:
        CredentialWrong: the area is another user's, or there would be no bound.
    """
    try:
        check_lfn(lfn)
    except BadName as error:
        raise CredentialWrong(identity, f"no token for such a path: {error}") from None
    if owned := _OWNED.match(lfn):
        if not identity.is_service and not _is_owner(identity.username, owned["owner"], bool(owned["temp"])):
            raise CredentialWrong(identity, f"{owned['area']} is another user's")
        return owned["area"]
    directory = lfn.rpartition("/")[0]
    if _SHARED.match(directory):
        raise CredentialWrong(identity, f"a token for {directory} would reach other users' files")
    return directory


def _is_owner(username: str, name: str, is_temporary: bool) -> bool:
    """CRAB adds a hash to a user's name where files are temporary."""
    return name == username or (is_temporary and name.startswith(f"{username}."))
