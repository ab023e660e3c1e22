"""Channels of alerts that speak HTTP: incoming webhooks of chats, and signed webhooks of anybody."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

import requests

from asyncstageout.clients.errors import Answer
from asyncstageout.clients.http import Caller, Patience, Silence
from asyncstageout.clients.receivers import ReceiverError, ReceiverJudge
from asyncstageout.clients.webhook import check_url, signed
from asyncstageout.core.alert_texts import Links, batch, chat
from asyncstageout.core.alerts import Notice

PATIENCE = Patience(tries=1, connect_s=10, read_s=20, deadline_s=30)
"""One try: what was not taken is sent again by a later run."""


class _Discreet(ReceiverJudge):
    """Keeps the path of an incoming webhook to itself: whoever knows it may write there."""

    def no_answer(self, method: str, url: str, silence: Silence) -> ReceiverError:
        return super().no_answer(method, _without_path(url), silence)

    def refusal(self, method: str, url: str, answer: Answer) -> ReceiverError:
        return super().refusal(method, _without_path(url), answer)


def _without_path(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}/..."


class ChatWebhook:
    """An incoming webhook of Slack, Mattermost or Rocket.Chat.

    Args:
        url: with its secret.

    Raises:
        BadURL: it is not https (on loopback http will do).
    """

    def __init__(self, url: str, session: requests.Session, links: Links) -> None:
        self._url, self._links = check_url(url), links
        self._caller = Caller(session, _Discreet(), PATIENCE)

    def tell(self, notices: Sequence[Notice]) -> None:
        """Write one message for all of them; raises :class:`ReceiverError` if it was not taken."""
        self._caller.ask(
            "POST", self._url, may_repeat=False, allow_redirects=False,
            data=json.dumps({"text": chat(notices, self._links)}).encode(),
            headers={"Content-Type": "application/json"},
        )  # fmt: skip


class AlertWebhook:
    """Somebody's receiver at a URL; what it gets is signed as Standard Webhooks 1.0 says.

    Args:
        keys: the current one first (:func:`asyncstageout.clients.webhook.signed`).
        installation, channel: who sends, for the body.

    Raises:
        BadURL: the URL is not https (on loopback http will do), or holds a user or password.
    """

    def __init__(
        self,
        url: str,
        session: requests.Session,
        keys: Sequence[bytes],
        links: Links,
        *,
        installation: str,
        channel: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._url, self._keys, self._links = check_url(url), list(keys), links
        self._installation, self._channel = installation, channel
        self._caller = Caller(session, ReceiverJudge(), PATIENCE)
        self._clock = clock

    def tell(self, notices: Sequence[Notice]) -> None:
        """POST all of them; raises :class:`ReceiverError` if they were not taken."""
        said = batch(notices, self._links, installation=self._installation, channel=self._channel)
        body = said.model_dump_json().encode()
        ids = "\n".join(one.id for one in said.alerts)
        message_id = "alerts_" + hashlib.sha256(ids.encode()).hexdigest()[:32]
        self._caller.ask(
            "POST", self._url, may_repeat=False, data=body, allow_redirects=False,
            headers={
                "Content-Type": "application/json",
                **signed(self._keys, message_id, int(self._clock()), body),
            },
        )  # fmt: skip
