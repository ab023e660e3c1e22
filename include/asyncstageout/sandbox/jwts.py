"""Tokens as FTS and storages check them: offline, with the published keys of the issuers they trust."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import jwt
import requests

from asyncstageout.clients.credentials.oidc import ANY_AUDIENCE

logger = logging.getLogger(__name__)

ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA")
LEEWAY_S: Final = 60
KEYS_AGAIN_S: Final = 10
"""A token with an unknown key has the keys read again, but not more often than this."""
TIMEOUT_S: Final = 5


class BadToken(Exception):
    """A token that is not taken; ``str()`` says why, without the token."""


class UnknownIssuer(BadToken):
    """Its issuer is not one of those that are trusted."""

    def __init__(self, issuer: object) -> None:
        super().__init__(f"unknown issuer: issuer={issuer}")


@dataclass(frozen=True, slots=True)
class Claims:
    """What a token says, and its issuer vouches for."""

    issuer: str
    subject: str
    scopes: frozenset[str]
    audiences: frozenset[str]

    def is_for(self, *audiences: str) -> bool:
        return not self.audiences.isdisjoint((ANY_AUDIENCE, *audiences))


class _Keys:
    """Keys of one issuer: read when they are first wanted, and again for a key that is not known."""

    def __init__(self, issuer: str, session: requests.Session) -> None:
        self._issuer = issuer
        self._session = session
        self._keys: dict[str | None, Any] = {}
        self._read_at_s: float | None = None

    def of(self, key_id: str | None) -> Any:
        if key_id not in self._keys and self._may_read():
            self._read()
        if key_id not in self._keys:
            raise BadToken("its issuer does not publish the key that it is signed with")
        return self._keys[key_id]

    def _may_read(self) -> bool:
        return self._read_at_s is None or time.monotonic() - self._read_at_s > KEYS_AGAIN_S

    def _read(self) -> None:
        self._read_at_s = time.monotonic()
        try:
            found = self._get(f"{self._issuer}/.well-known/openid-configuration")
            keys = jwt.PyJWKSet.from_dict(self._get(found["jwks_uri"]))
        except (requests.RequestException, jwt.PyJWKSetError, KeyError, ValueError) as error:
            logger.warning("The keys of %s cannot be read: %s", self._issuer, type(error).__name__)
            return
        self._keys = {key.key_id: key.key for key in keys.keys}

    def _get(self, url: str) -> Any:
        answer = self._session.get(url, timeout=TIMEOUT_S)
        answer.raise_for_status()
        return answer.json()


class Verifier:
    """Checks tokens. Reading an issuer's keys blocks its caller for a moment, once."""

    def __init__(self, issuers: Iterable[str], session: requests.Session, clock: Callable[[], float]) -> None:
        """``session`` reaches the issuers; ``clock`` gives seconds since the epoch."""
        self._keys = {issuer.rstrip("/"): _Keys(issuer.rstrip("/"), session) for issuer in issuers}
        self._clock = clock

    def verified(self, token: str) -> Claims:
        """Return what a token says.

        Raises:
            BadToken: no JWT, of an unknown issuer, badly signed, not valid yet, or not any more.
        """
        claims = self.unverified(token)
        keys = self._keys.get(str(claims.get("iss")).rstrip("/"))
        if keys is None:
            raise UnknownIssuer(claims.get("iss"))
        try:
            key = keys.of(jwt.get_unverified_header(token).get("kid"))
            # Times are compared below, with the sandbox's own clock.
            options: Any = {
                "verify_exp": False,
                "verify_nbf": False,
                "verify_iat": False,
                "verify_aud": False,
            }
            claims = jwt.decode(token, key, ALGORITHMS, options=options)
        except jwt.PyJWTError as error:
            raise BadToken(str(error)) from error
        return self._read(claims)

    def unverified(self, token: str) -> dict[str, Any]:
        """Return the claims of a token as they stand.

        Raises:
            BadToken: it is no JWT.
        """
        try:
            claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
        except jwt.PyJWTError as error:
            raise BadToken(str(error)) from error
        return claims

    def _read(self, claims: dict[str, Any]) -> Claims:
        try:
            now_s, exp, nbf = self._clock(), float(claims["exp"]), float(claims.get("nbf", 0))
            audience = claims.get("aud") or []
            audiences = frozenset([audience] if isinstance(audience, str) else audience)
            read = Claims(claims["iss"], claims["sub"], frozenset(claims["scope"].split()), audiences)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadToken(f"a claim is missing or wrong: {error}") from error
        if not nbf - LEEWAY_S <= now_s < exp:
            raise BadToken("it is not valid yet, or not any more")
        return read
