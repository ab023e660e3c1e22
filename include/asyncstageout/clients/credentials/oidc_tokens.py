"""Access tokens of an OpenID issuer by client_credentials (RFC 6749, 4.4): asked for, kept, renewed."""

from __future__ import annotations

import base64
import json
import logging
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Literal
from urllib.parse import quote_plus, urlsplit

import requests

from asyncstageout.clients.errors import Answer, ServiceError, Transient, shortened
from asyncstageout.clients.http import LOOPBACK, Access, Caller, Patience, Silence, new_session

logger = logging.getLogger(__name__)

AudienceParameter = Literal["audience", "resource"]
"""How an issuer is told the audience: INDIGO IAM's word, or that of RFC 8707."""
DISCOVERY = "/.well-known/openid-configuration"
DISCOVERED_FOR = timedelta(hours=1)
QUIET = timedelta(seconds=30)
"""After a failure the issuer is left alone for so long: a cycle asks for hundreds of directories."""
BASIC = ("client_secret_basic",)
"""How a client says its secret where the issuer does not say how (OpenID Connect Discovery, 3)."""
MAX_TOKENS = 20_000
"""Kept at once; a token has about 1 kB."""
MAX_SKEW = timedelta(seconds=60)
PATIENCE = Patience(connect_s=5, read_s=15, tries=3, longest_wait_s=5, deadline_s=30)
_JWT = re.compile(r"eyJ[\w.\-]+")
_MAX_DETAIL_CHARS = 300
_TRANSIENT = frozenset({408, 425, 429})


class IssuerError(ServiceError):
    """Root of what goes wrong with an issuer of tokens."""


@dataclass(eq=False)
class IssuerSilent(Transient, IssuerError):
    """No answer, or one that says "later"."""

    retry_after_s: float | None = None
    advice: ClassVar[str] = "Check that the issuer is up and the network lets us through"


class IssuerUntrusted(IssuerError):
    """The issuer's certificate is not one that we trust, or it leads to a place without TLS."""

    advice: ClassVar[str] = "Check the certificate authorities, and the issuer's URL"


@dataclass(eq=False)
class IssuerRefused(IssuerError):
    """It gives no token. ``reason`` is its error code (RFC 6749, 5.2), such as ``invalid_client``."""

    reason: str = ""
    advice: ClassVar[str] = "Check the client's id and secret, and which scopes and audiences it may ask for"

    @property
    def is_about_one_token(self) -> bool:
        return self.reason in ("invalid_scope", "invalid_target")


class IssuerBadAnswer(IssuerError):
    """What it answers is not what the standards say."""

    advice: ClassVar[str] = "Check the issuer's URL and what stands in front of it"


@dataclass(frozen=True, slots=True)
class Token:
    """An access token, and how long it is good by our own clock."""

    text: str = field(repr=False)
    subject: str
    fetched_at: datetime
    expires_at: datetime

    def is_good(self, now: datetime, least: timedelta) -> bool:
        """Return whether it lasts.

        Args:
            least: time that shall be left; as no token is younger than a new one, at most 3/4 of its life.
        """
        return self.expires_at - now >= min(least, (self.expires_at - self.fetched_at) * 3 / 4)


@dataclass(frozen=True, slots=True)
class Client:
    """Who we are to an issuer."""

    client_id: str
    secret: Callable[[], str] = field(repr=False)
    """Asked for every token, so that it may be changed."""


class Issuer:
    """An OpenID issuer. Threads may share it; close it at the end.

    Args:
        url: as in its tokens' ``iss``.
        now: aware UTC.

    Raises:
        IssuerError: every call; its subclasses say what happened.
    """

    def __init__(
        self,
        url: str,
        client: Client,
        *,
        access: Access | None = None,
        patience: Patience = PATIENCE,
        audience_parameter: AudienceParameter = "audience",
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.url = url
        self._client = client
        self._judge = _IssuerJudge(urlsplit(url).netloc, self._without_secrets)
        self._caller = Caller(new_session(access), self._judge, patience)
        self._audience_parameter = audience_parameter
        self._now = now
        self._lock = threading.Lock()
        self._found: dict[str, Any] = {}
        self._found_at: datetime | None = None
        self._skew_said = False

    def close(self) -> None:
        self._caller.session.close()

    def token(self, scope: str, audience: str) -> Token:
        """Return a new token with all of these scopes (separated by blanks).

        Raises:
            IssuerRefused: it gives none, or one that may do less.
        """
        found = self._discovered()
        form = {"grant_type": "client_credentials", "scope": scope, self._audience_parameter: audience}
        client_id, secret = self._client.client_id, self._client.secret()
        auth: tuple[str, str] | None = None
        if "client_secret_basic" in (found.get("token_endpoint_auth_methods_supported") or BASIC):
            auth = (quote_plus(client_id), quote_plus(secret))
        else:
            form |= {"client_id": client_id, "client_secret": secret}
        asked_at = self._now()
        # No redirect is followed: it would take the secret elsewhere.
        answer = self._caller.ask(
            "POST", found["token_endpoint"], may_repeat=True, data=form, auth=auth, allow_redirects=False
        )
        with self._reading(answer):
            return self._read(answer.json(), scope, audience, asked_at)

    def _read(self, row: dict[str, Any], scope: str, audience: str, asked_at: datetime) -> Token:
        claims = unverified_claims(row["access_token"])
        self._mind_the_clock(claims, asked_at)
        lifetime_s = float(row.get("expires_in") or claims["exp"] - claims["iat"])
        if lifetime_s <= 0:
            raise ValueError(f"a token that lasts {lifetime_s:.0f} s")
        missing = sorted(set(scope.split()) - scopes_of(claims) - {"openid"})
        if missing:
            why = f"its token for {audience} may not {' '.join(missing)}"
            raise IssuerRefused(self._judge.server, "POST token", 200, why, reason="invalid_scope")
        return Token(
            row["access_token"], str(claims["sub"]), asked_at, asked_at + timedelta(seconds=lifetime_s)
        )

    def _mind_the_clock(self, claims: dict[str, Any], asked_at: datetime) -> None:
        """Warn once: our own clock is enough for us, but FTS and storages judge by ``nbf`` and ``exp``."""
        issued_s = claims.get("iat", claims.get("nbf"))
        if issued_s is None or self._skew_said:
            return
        skew_s = issued_s - asked_at.timestamp()
        if abs(skew_s) > MAX_SKEW.total_seconds():
            self._skew_said = True
            logger.warning("The clock of %s and ours differ by %.0f s", self._judge.server, skew_s)

    def _discovered(self) -> dict[str, Any]:
        with self._lock:
            now = self._now()
            if self._found_at is None or now - self._found_at > DISCOVERED_FOR:
                self._found, self._found_at = self._discover(), now
            return self._found

    def _discover(self) -> dict[str, Any]:
        url = self.url.rstrip("/") + DISCOVERY
        self._check_tls(url)
        answer = self._caller.ask("GET", url, may_repeat=True, allow_redirects=False)
        with self._reading(answer):
            found: dict[str, Any] = answer.json()
            if found["issuer"].rstrip("/") != self.url.rstrip("/"):
                raise ValueError(f"it calls itself {found['issuer']!r}")
            self._check_tls(found["token_endpoint"])
        return found

    def _check_tls(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme != "https" and parts.hostname not in LOOPBACK:
            raise IssuerUntrusted(self._judge.server, "GET", detail=f"no secret is sent to {url} without TLS")

    @contextmanager
    def _reading(self, answer: requests.Response) -> Iterator[None]:
        try:
            yield
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            asked = shortened(answer.request.method or "", urlsplit(answer.url).path)
            why = self._without_secrets(f"{type(error).__name__}: {error}")
            # Not "from": an error of parsing may hold what was parsed.
            raise IssuerBadAnswer(self._judge.server, asked, answer.status_code, why) from None

    def _without_secrets(self, text: str) -> str:
        text = " ".join(_JWT.sub("(secret)", text).split())
        secret = self._client.secret()
        return (text.replace(secret, "(secret)") if secret else text)[:_MAX_DETAIL_CHARS]


class _IssuerJudge:
    def __init__(self, server: str, without_secrets: Callable[[str], str]) -> None:
        self.server = server
        self._without_secrets = without_secrets

    def no_answer(self, method: str, url: str, silence: Silence) -> IssuerError:
        asked = shortened(method, urlsplit(url).path)
        if silence.untrusted:
            return IssuerUntrusted(self.server, asked, detail=silence.cause)
        return IssuerSilent(self.server, asked, detail=silence.cause)

    def refusal(self, method: str, url: str, answer: Answer) -> IssuerError:
        asked, status = shortened(method, urlsplit(url).path), answer.status
        row = answer.json
        if status >= 500 or status in _TRANSIENT:
            return IssuerSilent(self.server, asked, status, retry_after_s=answer.retry_after_s)
        if isinstance(row, dict) and isinstance(row.get("error"), str):
            why = self._without_secrets(f"{row['error']}: {row.get('error_description') or ''}".rstrip(": "))
            return IssuerRefused(self.server, asked, status, why, reason=row["error"])
        return IssuerBadAnswer(self.server, asked, status, self._without_secrets(answer.text))


def unverified_claims(token: str) -> dict[str, Any]:
    """Return what a JWT says; who has it from its issuer over TLS need not check the signature.

    Raises:
        ValueError: it is no JWT, and FTS and storages take nothing else.
    """
    parts = token.split(".")
    if len(parts) != 3:
        raise ValueError("its tokens are no JWTs")
    claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    if not isinstance(claims, dict):
        raise ValueError("its tokens are no JWTs")
    return claims


def scopes_of(claims: dict[str, Any]) -> set[str]:
    """Return the scopes of a token; some issuers write a list where RFC 9068 has one text."""
    scope = claims.get("scope", "")
    return set(scope.split() if isinstance(scope, str) else scope)


@dataclass(frozen=True, slots=True)
class _Failure:
    error: IssuerError
    until: datetime
    """When the issuer may be asked again."""


class _Slot:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.token: Token | None = None
        self.failure: _Failure | None = None


class TokenPurse:
    """Tokens by scope and audience: each is asked for once, also by many threads, and anew before it ends."""

    def __init__(self, issuer: Issuer, now: Callable[[], datetime], max_tokens: int = MAX_TOKENS) -> None:
        self._issuer = issuer
        self._now = now
        self._max_tokens = max_tokens
        self._lock = threading.Lock()
        self._slots: dict[tuple[str, str], _Slot] = {}
        self._failure: _Failure | None = None
        """Of the issuer or of our client, whatever token was wanted."""

    def token(self, scope: str, audience: str, least: timedelta) -> Token:
        """Return a token with ``least`` left if that can be had, and else one that is good at all.

        Raises:
            IssuerError: there is none.
        """
        key = (scope, audience)
        slot = self._slot(key)
        with slot.lock:  # others who want the same token wait for this one
            token = slot.token
            if token and token.is_good(self._now(), least):
                return token
            try:
                slot.token = self._ask(slot, scope, audience)
            except IssuerError as error:
                if token is None or token.expires_at <= self._now():
                    raise
                logger.warning(
                    "A token is not renewed, the old one goes on until %s: %s", token.expires_at, error
                )
                return token
            return slot.token

    def _slot(self, key: tuple[str, str]) -> _Slot:
        with self._lock:
            slot = self._slots.setdefault(key, _Slot())
            if len(self._slots) > self._max_tokens:
                self._drop_some(key)
            return slot

    def _drop_some(self, kept: tuple[str, str]) -> None:
        """Drop what has ended, and if that is nothing, the oldest tenth."""
        now = self._now()
        ended = [key for key, slot in self._slots.items() if slot.token and slot.token.expires_at <= now]
        for key in ended or list(self._slots)[: self._max_tokens // 10 + 1]:
            if key != kept:
                del self._slots[key]

    def _ask(self, slot: _Slot, scope: str, audience: str) -> Token:
        for failure in (self._failure, slot.failure):
            if failure and self._now() < failure.until:
                raise failure.error.with_traceback(None)
        try:
            token = self._issuer.token(scope, audience)
        except IssuerError as error:
            failure = _Failure(error, self._now() + QUIET)
            if isinstance(error, IssuerRefused) and error.is_about_one_token:
                slot.failure = failure
            else:
                self._failure = failure
            raise
        self._failure = slot.failure = None
        return token
