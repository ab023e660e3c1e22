"""Tells a webhook: messages as one JSON body, signed as Standard Webhooks 1.0 says (HMAC-SHA256, ``v1``).

The specification: https://github.com/standard-webhooks/standard-webhooks (spec/standard-webhooks.md).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import time
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

import requests

from asyncstageout.clients.http import LOOPBACK, Caller, Patience
from asyncstageout.clients.receivers import Faulty, ReceiverJudge, Refusals
from asyncstageout.core.deliveries import Batch, Message

SECRET_PREFIX = "whsec_"  # noqa: S105 - what secrets begin with
SHORTEST_SECRET_BYTES, LONGEST_SECRET_BYTES = 24, 64
"""Of the specification."""
PATIENCE = Patience(tries=1, connect_s=10, read_s=30, deadline_s=60)
"""One try: what was not taken is sent again from the outbox."""
MULTI_STATUS = 207
REASON_CHARS = 300


class BadSecret(ValueError):
    """A secret is none that Standard Webhooks allows. The text does not hold it."""


class BadURL(ValueError):
    """Messages are not sent there."""


def read_secret(text: str) -> bytes:
    """Return the key of a secret as it is handed to people: ``whsec_`` and base64.

    Raises:
        BadSecret: it is something else, or too short or long.
    """
    if not text.startswith(SECRET_PREFIX):
        raise BadSecret(f"a secret begins with {SECRET_PREFIX}")
    try:
        key = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raise BadSecret(f"what follows {SECRET_PREFIX} is no base64") from None
    if not SHORTEST_SECRET_BYTES <= len(key) <= LONGEST_SECRET_BYTES:
        raise BadSecret(f"a secret has {SHORTEST_SECRET_BYTES} to {LONGEST_SECRET_BYTES} bytes")
    return key


def signed(keys: Sequence[bytes], message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Return the headers of a body.

    Args:
        keys: the current one first; with those before it as long as receivers still know them.
        timestamp: of this attempt, epoch seconds.
    """
    said = f"{message_id}.{timestamp}.".encode() + body
    signatures = (base64.b64encode(hmac.digest(key, said, hashlib.sha256)).decode() for key in keys)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }


class Webhook:
    """Somebody's receiver at a URL.

    Args:
        keys: see :func:`signed`; at least one.
        installation, subscription: who sends, for the body.

    Raises:
        BadURL: the URL is not https (on loopback http will do), or holds a user or password.
    """

    longest_s = PATIENCE.deadline_s + PATIENCE.connect_s

    def __init__(
        self,
        url: str,
        session: requests.Session,
        keys: Sequence[bytes],
        *,
        batch: int,
        installation: str,
        subscription: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._url = check_url(url)
        self._keys = list(keys)
        self._installation = installation
        self._subscription = subscription
        self._caller = Caller(session, ReceiverJudge(), PATIENCE)
        self._clock = clock
        self.batch = batch

    def send(self, messages: Sequence[Message]) -> Refusals:
        """POST messages; 2xx takes them all, but for those that a 207 names.

        Raises:
            ReceiverError: it took nothing, as far as is known.
        """
        batch = Batch.model_construct(
            installation=self._installation, subscription=self._subscription, messages=list(messages)
        )
        body = batch.model_dump_json().encode()
        headers = signed(self._keys, _batch_id(messages), int(self._clock()), body)
        answer = self._caller.ask(
            "POST", self._url, may_repeat=False, data=body, allow_redirects=False,
            headers={"Content-Type": "application/json", **headers},
        )  # fmt: skip
        return _refusals(answer, self._url) if answer.status_code == MULTI_STATUS else {}


def check_url(url: str) -> str:
    """Return the URL if messages may be sent there; raises :class:`BadURL` if not."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadURL(f"no URL of a webhook: {parts.scheme}://{parts.hostname or ''}")
    if parts.scheme != "https" and parts.hostname not in LOOPBACK:
        raise BadURL(f"messages go to {parts.hostname} over https only")
    if parts.username or parts.password:
        raise BadURL("the URL of a webhook holds no user and no password: messages are signed")
    return url


def _batch_id(messages: Sequence[Message]) -> str:
    """Return an id that the same messages have whenever they are sent; never with a full stop in it."""
    return "batch_" + hashlib.sha256("\n".join(one.id for one in messages).encode()).hexdigest()[:32]


def _refusals(answer: requests.Response, url: str) -> Refusals:
    """Read ``{"refused": [{"id": ..., "reason": ...}]}``.

    Raises:
        Faulty: it is no such thing, so that nobody knows what was taken.
    """
    try:
        return {
            str(row["id"]): str(row.get("reason") or "refused without a reason")[:REASON_CHARS]
            for row in answer.json()["refused"]
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        parts = urlsplit(url)
        said = 'its 207 has no list "refused" of objects with an id'
        raise Faulty(parts.netloc, f"POST {parts.path}", MULTI_STATUS, said) from None
