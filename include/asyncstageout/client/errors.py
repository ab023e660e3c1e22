"""What the API refuses, and why it does not answer: one small class each, made of its problems (RFC 9457)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar
from urllib.parse import urlsplit

import requests

from asyncstageout.clients.errors import Answer, ServiceError, Transient, shortened
from asyncstageout.clients.http import Silence


@dataclass(eq=False)
class StageoutError(ServiceError):
    """Root of what goes wrong between a client and the API.

    Attributes:
        kind: of the problem, for programs: last part of its ``type``, such as ``invalid-request``.
        flaws: what is wrong with a request, one by one, each with a pointer or a parameter.
        error_id: with it the service's operators find a defect in their log.
    """

    kind: str = ""
    flaws: list[dict[str, str]] = field(default_factory=list)
    error_id: str | None = None


class Refused(StageoutError):
    """The request is wrong and stays wrong."""


@dataclass(eq=False)
class NeedsApproval(Refused):
    """It would hit many files, and nobody said that this is meant (409 ``needs-approval``)."""

    files: int = 0
    """How many."""
    advice: ClassVar[str] = "If it is meant, say it again with expected_files="


class NotAuthenticated(StageoutError):
    """There is no token or certificate, or it is not valid any more (401)."""

    advice: ClassVar[str] = "Get a fresh token from Airflow (POST /auth/token)"


class NotAllowed(StageoutError):
    """You are known, but may not do this (403)."""


class NotFound(StageoutError):
    """There is no such thing, or it is somebody else's (404)."""


class TooLarge(StageoutError):
    """The body is over the service's limit (413)."""

    advice: ClassVar[str] = "Send smaller batches"


@dataclass(eq=False)
class Unreachable(Transient, StageoutError):
    """No answer: refused, reset, timed out, or no such host."""

    maybe_delivered: bool = True
    advice: ClassVar[str] = "Check the URL, and that the service is up"


class Untrusted(StageoutError):
    """The server's certificate is not one that we trust."""

    advice: ClassVar[str] = "Name its certificate authorities with ca="


@dataclass(eq=False)
class Busy(Transient, StageoutError):
    """The service cannot at the moment, or was asked too often (429, 5xx)."""

    retry_after_s: float | None = None


class Defect(StageoutError):
    """The service failed on this request (500), and says under which ``error_id``."""


class BadAnswer(StageoutError):
    """What came back is not what this API says: most often another service answered."""

    advice: ClassVar[str] = "Check the URL: it is Airflow's, without any path"


KINDS: dict[int, type[StageoutError]] = {
    401: NotAuthenticated,
    403: NotAllowed,
    404: NotFound,
    413: TooLarge,
    429: Busy,
    500: Defect,
    502: Busy,
    503: Busy,
    504: Busy,
}
"""Status -> error; another one from 400 on is :class:`Refused`, below it is :class:`BadAnswer`."""

NEEDS_APPROVAL = "needs-approval"
"""``kind`` of the problem."""


class ProblemJudge:
    """Makes errors of silence and of refusals."""

    def no_answer(self, method: str, url: str, silence: Silence) -> StageoutError:
        server, asked = _where(method, url)
        if silence.untrusted:
            return Untrusted(server, asked, None, silence.cause)
        return Unreachable(server, asked, None, silence.cause, maybe_delivered=silence.maybe_delivered)

    def refusal(self, method: str, url: str, answer: Answer) -> StageoutError:
        server, asked = _where(method, url)
        kind = KINDS.get(answer.status, Refused if answer.status >= 400 else BadAnswer)
        told = _told(answer)
        if told.get("kind") == NEEDS_APPROVAL and isinstance(answer.json, dict):
            return NeedsApproval(server, asked, answer.status, **told, files=int(answer.json.get("files", 0)))
        error = kind(server, asked, answer.status, **told)
        if isinstance(error, Busy):
            error.retry_after_s = answer.retry_after_s
        return error


def bad_answer(answer: requests.Response, detail: str) -> BadAnswer:
    """Return the error for a success that cannot be read."""
    return BadAnswer(*_where(answer.request.method or "", answer.url), answer.status_code, detail)


def _told(answer: Answer) -> dict[str, Any]:
    body = answer.json
    if not isinstance(body, dict) or "title" not in body:
        return {"detail": answer.text}
    flaws = [flaw for flaw in body.get("errors") or [] if isinstance(flaw, dict)]
    said = "; ".join(_flaw(flaw) for flaw in flaws[:3])
    return {
        "detail": " ".join(part for part in (str(body.get("detail") or body["title"]), said) if part),
        "kind": str(body.get("type", "")).rpartition(":")[2],
        "flaws": flaws,
        "error_id": body.get("error_id"),
    }


def _flaw(flaw: dict[str, str]) -> str:
    place = flaw.get("pointer") or flaw.get("parameter")
    return f"{place}: {flaw.get('detail')}" if place else str(flaw.get("detail"))


def _where(method: str, url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.netloc.rpartition("@")[2], shortened(method, parts.path)
