"""CRAB's REST (CRABServer, ``RESTFileTransfers``): asked for files, and told what became of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar
from urllib.parse import urlsplit

import requests

from asyncstageout.clients.errors import Answer, ServiceError, Transient
from asyncstageout.clients.http import Caller, Patience, Silence
from asyncstageout.clients.receivers import ReceiverJudge, Refusals
from asyncstageout.core.crab import Call, call_for, lists_of
from asyncstageout.core.deliveries import Message

PATIENCE = Patience(deadline_s=180)
TRANSIENT = frozenset({429, 502, 503, 504})


class CRABError(ServiceError):
    """CRAB's REST did not do what it was asked."""

    advice: ClassVar[str] = "Check host, instance and certificate of the connection"


class CRABSilent(Transient, CRABError):
    """No answer, or none at the moment."""

    advice: ClassVar[str] = "Check that CRAB's REST is up and the network lets us through"


class CRABBadAnswer(CRABError):
    """It answered something else than rows."""


class CRABJudge:
    """Turns answers and silence into the errors above."""

    def no_answer(self, method: str, url: str, silence: Silence) -> CRABError:
        kind = CRABError if silence.untrusted else CRABSilent
        return kind(*_where(method, url), None, silence.cause)

    def refusal(self, method: str, url: str, answer: Answer) -> CRABError:
        kind = CRABSilent if answer.status in TRANSIENT else CRABError
        return kind(*_where(method, url), answer.status, answer.text)


class CRABClient:
    """``filetransfers`` of one instance, for one worker.

    Args:
        base: ``https://HOST/crabserver/INSTANCE``.
        worker: our name there (``tm_aso_worker``).
    """

    def __init__(self, base: str, caller: Caller, worker: str) -> None:
        self._url = f"{base}/filetransfers"
        self._caller = caller
        self._worker = worker

    def rows(self, subresource: str, grouping: int = 0, **params: str | int) -> list[dict[str, Any]]:
        """Return what a question is answered, by column.

        Raises:
            CRABError: it is not answered.
        """
        asked = {"subresource": subresource, "asoworker": self._worker, "grouping": grouping, **params}
        response = self._caller.ask("GET", self._url, may_repeat=True, params=asked)
        try:
            body = response.json()
            columns = [str(column).lower() for column in body["desc"]["columns"]]
            return [dict(zip(columns, row, strict=True)) for row in body["result"]]
        except (ValueError, KeyError, TypeError) as error:
            said = f"{subresource}: not an answer of CRAB's REST"
            raise CRABBadAnswer(*_where("GET", self._url), response.status_code, said) from error

    def change(self, subresource: str, **fields: str) -> list[str]:
        """Have something changed, and return the ids that it was refused for, where the server says so.

        Repeated at will: acquiring twice and saying a state twice is as good as once.

        Raises:
            CRABError: it was not done.
        """
        data = {"subresource": subresource, "asoworker": self._worker, **fields}
        response = self._caller.ask("POST", self._url, may_repeat=True, data=data, allow_redirects=False)
        try:
            # CRAB itself says nothing of use; this service names what it did not change (how-to/crab.md).
            (result,) = response.json()["result"]
            return [str(one) for one in result.get("refused", ())]
        except (ValueError, KeyError, TypeError, AttributeError):
            return []


class CRABReports:
    """CRAB's REST as a receiver of messages: states of transfers and of publications.

    Args:
        batch: files in one call, at most.
    """

    longest_s = 600.0
    """Of at most five calls (:class:`~asyncstageout.core.crab.Call`), each of two minutes."""

    def __init__(self, base: str, session: requests.Session, worker: str, *, batch: int) -> None:
        # One try: what was not taken is sent again from the outbox.
        caller = Caller(session, ReceiverJudge(), replace(PATIENCE, tries=1, deadline_s=120))
        self._client = CRABClient(base, caller, worker)
        self.batch = batch

    def send(self, messages: Sequence[Message]) -> Refusals:
        """Report each file's state; to say one twice changes nothing.

        Raises:
            ReceiverError: it took nothing, or only a part, which it may be told again.
        """
        refused: dict[str, str] = {}
        calls: defaultdict[Call, list[Message]] = defaultdict(list)
        for message in messages:
            calls[call_for(message)].append(message)
        for call, told in calls.items():
            ids = {message.data.request_id: message.id for message in told}
            for request_id in self._client.change(call.subresource, **lists_of(call, told)):
                if request_id in ids:
                    refused[ids[request_id]] = f"{call.subresource}: not this worker's file, or not so now"
        return refused


def _where(method: str, url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.netloc, f"{method} {parts.path}"
