"""What a credential is to the rest of the house, and why there may be none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import ClassVar, Literal, NamedTuple, Protocol

from asyncstageout.core.identities import Identity

LEAST_LIFETIME = timedelta(hours=1)
"""FTS takes no job with a delegated proxy that ends sooner; nothing starts with less."""


@dataclass(frozen=True, slots=True)
class Credential:
    """A credential that can be used now."""

    identity: Identity
    kind: Literal["x509", "token"]
    subject: str
    """DN of the person or service (without the proxy's own parts), or the token's ``sub``."""
    expires_at: datetime
    """Aware UTC: when the first of its parts ends."""
    fqans: tuple[str, ...] = ()
    """VOMS attributes, the primary one first."""
    cert_file: str | None = None
    key_file: str | None = None
    """None: the key is in ``cert_file``."""
    bearer: Callable[[], str] | None = field(default=None, repr=False)
    begins_at: datetime | None = None
    """Since when it can be used; None: not known."""

    def should_have(self, wanted: timedelta, share: float) -> timedelta:
        """Return how much time it should have left: ``wanted``, but no more than a share of its lifetime."""
        if self.begins_at is None:
            return wanted
        return min(wanted, (self.expires_at - self.begins_at) * share)


class CredentialProblem(Exception):
    """There is no usable credential for an identity; its files wait and use no attempt."""

    advice: ClassVar[str] = ""

    def __init__(self, identity: Identity, detail: str) -> None:
        self.identity, self.detail = identity, detail
        text = f"no credential for {identity}: {detail}"
        super().__init__(f"{text}. {self.advice}" if self.advice else text)


class CredentialMissing(CredentialProblem):
    """The source has none for this identity."""


class CredentialExpired(CredentialProblem):
    """It ended, or ends too soon for anything to start with it."""


class CredentialUnsafe(CredentialProblem):
    """Others could read or change its file."""


class CredentialWrong(CredentialProblem):
    """It cannot be read, or is not this identity's: another user, VO, group or role."""


class SourceSilent(CredentialProblem):
    """The service that keeps the credentials did not answer; a credential that is still good goes on."""


class CredentialSource(Protocol):
    """Where users' credentials come from."""

    def credential(self, identity: Identity) -> Credential:
        """Return a credential with at least :data:`LEAST_LIFETIME` left, from what is at hand if possible.

        Raises:
            CredentialProblem: there is none.
        """
        ...

    def renew(self, identity: Identity, least: timedelta) -> Credential:
        """Return a credential, got anew if what is at hand has less than ``least`` left.

        Raises:
            CredentialProblem: there is none; one that could not be renewed and is still good is returned.
        """
        ...


class FilePlaces(NamedTuple):
    """Where one file is read and written, for tokens."""

    source_url: str
    destination_url: str
    source_lfn: str
    destination_lfn: str


class DeletionTokens(Protocol):
    """Gives the tokens with which we ourselves look at files and delete them."""

    def deletion_token(self, identity: Identity, url: str, lfn: str) -> str:
        """Return a token for a file and all of its owner's area, good for a request that goes out now.

        Raises:
            CredentialProblem: the issuer gives none.
        """
        ...


class StorageTokens(Protocol):
    """Gives the tokens with which FTS reads and writes single files."""

    managed: bool
    """Whether FTS shall exchange and renew them; else it takes them as they are."""

    def tokens(self, identity: Identity, file: FilePlaces) -> tuple[str, str]:
        """Return (source token, destination token), with time enough for the transfer to begin.

        Raises:
            CredentialProblem: the issuer gives none.
        """
        ...
