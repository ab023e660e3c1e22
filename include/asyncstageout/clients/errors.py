"""What goes wrong between us and a service, each in its own class, with its keys and what to do about it.

``FTS_RULES`` says which answer of FTS is which error. It was made from answers of a real FTS 3.13: a body may
be JSON, HTML (of the front, or of the authentication) or nothing; neither status nor body is enough alone.
"""

from __future__ import annotations

import html
import json
import re
from dataclasses import dataclass
from typing import ClassVar
from uuid import UUID

_SECRETS = re.compile(r"eyJ[\w-]{8,}(\.[\w-]+)*|-----BEGIN.*?(-----END[^-]*-----|$)", re.DOTALL)
_TAGS = re.compile(r"<head.*?</head>|<[^>]*>", re.DOTALL | re.IGNORECASE)
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_MAX_DETAIL_CHARS = 300
_MAX_PAGE_CHARS = 120
"""A page begins with its title; what follows is for somebody with a browser."""
_MAX_PATH_CHARS = 90


@dataclass(eq=False)
class ServiceError(Exception):
    """A service did not do what it was asked.

    Attributes:
        server: host and port.
        asked: method and path, shortened, without the query.
        status: of HTTP; ``None`` when nothing came back.
        detail: what the server said, shortened, without secrets.
    """

    server: str
    asked: str
    status: int | None = None
    detail: str = ""

    advice: ClassVar[str] = ""
    # Not a field: whoever repeats a request sets it.
    after_silence = False
    """An earlier try of the same request got no answer: it may have arrived, whatever this one says."""

    def __str__(self) -> str:
        said = f"answered {self.status}" if self.status else "got no answer"
        text = f"{self.server}: {self.asked} {said}" + (f": {self.detail.rstrip('.')}" if self.detail else "")
        return f"{text}. {self.advice}" if self.advice else text


class Transient(Exception):
    """The same request may succeed a little later.

    Attributes:
        retry_after_s: when the server says it can; ``None`` when it says nothing.
        maybe_delivered: the server may have done what it was asked. False only when no byte can have arrived.
    """

    retry_after_s: float | None = None
    maybe_delivered: bool = True


class FTSError(ServiceError):
    """Root of what goes wrong with FTS."""


@dataclass(eq=False)
class Unreachable(Transient, FTSError):
    """No answer: refused, reset, timed out, or no such host."""

    maybe_delivered: bool = True
    advice: ClassVar[str] = "Check that the FTS server is up and the network lets us through"


class Untrusted(FTSError):
    """The server's certificate is not one that we trust."""

    advice: ClassVar[str] = "Check the directory of certificate authorities, and the server's name"


@dataclass(eq=False)
class Unavailable(Transient, FTSError):
    """FTS, its database or its front has no room or no answer at the moment (429, 5xx, HTML 500)."""

    retry_after_s: float | None = None
    advice: ClassVar[str] = "It recovers by itself; the same request may be repeated"


class ServerFault(FTSError):
    """FTS itself failed on this request (JSON 500), perhaps for ever.

    All recorded ones remain when repeated: a submission that FTS cannot store, or a job asked for by one whom
    FTS does not know. A lost race in its database looks the same, so a later cycle may ask again.
    """

    advice: ClassVar[str] = "Repeat it later and rarely; check with whoami that the credential is still valid"


class NotAuthorised(FTSError):
    """FTS does not let us: unknown, expired (such a token is silently nobody), banned, or of another VO."""

    advice: ClassVar[str] = "Renew the credential and check with whoami whom FTS takes us for"


@dataclass(eq=False)
class StorageBanned(FTSError):
    """The whole job is refused, because FTS does not serve one storage of it. ``storage`` is scheme://host."""

    storage: str = ""
    advice: ClassVar[str] = "Hold the links of this storage back until the ban is lifted"


class DelegationNeeded(FTSError):
    """FTS holds no proxy of ours, or one that ends within the hour (419)."""

    advice: ClassVar[str] = "Delegate a proxy, then submit again"


@dataclass(eq=False)
class SidDuplicated(FTSError):
    """A job with this ``sid`` exists, so an earlier try of the same submission did arrive."""

    sid: str = ""
    job_id: UUID | None = None
    advice: ClassVar[str] = "Take the job as submitted"


@dataclass(eq=False)
class DestinationBusy(FTSError):
    """The whole job is refused: a file of it goes where another active transfer is writing.

    ``destination_hash`` is :func:`asyncstageout.core.fts.destination_hash` of that URL, when FTS says it.
    """

    destination_hash: UUID | None = None
    advice: ClassVar[str] = "Take that file out and submit the rest under a new sid"


class Refused(FTSError):
    """The request is wrong and stays wrong."""


class SubmissionRefused(Refused):
    """FTS does not take this job as it is."""

    advice: ClassVar[str] = "Find the file or parameter that is meant; the same body will not be taken"


class NotFound(FTSError):
    """There is nothing at this path."""

    advice: ClassVar[str] = "Check that the endpoint is that of an FTS REST service"


@dataclass(eq=False)
class JobNotFound(NotFound):
    """FTS does not know the job (any more)."""

    job_id: UUID | None = None
    advice: ClassVar[str] = "Ask the archive before taking it as lost"


class TooManyIds(NotFound):
    """An HTML 404 to a list of ids: the path is too long for the front of FTS. No word about the jobs."""

    advice: ClassVar[str] = "Ask for fewer ids at once"


class RequestTooLong(FTSError):
    """The request line is too long for the front of FTS (414)."""

    advice: ClassVar[str] = "Ask for fewer ids at once"


class BadAnswer(FTSError):
    """A success whose content is not what the contract says."""

    advice: ClassVar[str] = "Check the endpoint, what stands in front of it, and the version of FTS"


# --- storage ---


class StorageError(ServiceError):
    """Root of what goes wrong with a storage; ``asked`` names the file."""


class NoSuchFile(StorageError):
    """There is no such file or directory."""


class AccessDenied(StorageError):
    """The storage does not let us."""

    advice: ClassVar[str] = "Check the credential and the permissions of this path"


class NoSpace(StorageError):
    """The user's quota or the storage is full."""

    advice: ClassVar[str] = "Free space, or ask for more"


class ParentMissing(StorageError):
    """The directory that it should go into does not exist (409)."""


class StorageRefused(StorageError):
    """The request is wrong and stays wrong, or the storage cannot do it."""


class StorageUntrusted(StorageError):
    """The storage's certificate is not one that we trust."""

    advice: ClassVar[str] = "Check the directory of certificate authorities, and the storage's name"


class StorageBadAnswer(StorageError):
    """A success whose content makes no sense."""


@dataclass(eq=False)
class StorageUnreachable(Transient, StorageError):
    """No answer, or the connection broke on the way."""

    maybe_delivered: bool = True
    advice: ClassVar[str] = "Check that the storage is up and the network lets us through"


@dataclass(eq=False)
class StorageUnavailable(Transient, StorageError):
    """The storage has no room or no answer at the moment."""

    retry_after_s: float | None = None


STORAGE_RULES: dict[int, type[StorageError]] = {
    401: AccessDenied,
    403: AccessDenied,
    404: NoSuchFile,
    409: ParentMissing,
    410: NoSuchFile,
    413: NoSpace,
    507: NoSpace,
}
STORAGE_TRANSIENT = frozenset({408, 423, 425, 429, 500, 502, 503, 504})


# --- which answer is which error ---


@dataclass(frozen=True, slots=True)
class Answer:
    """What is needed of an HTTP answer to judge it."""

    status: int
    body: bytes = b""
    retry_after_s: float | None = None

    @property
    def json(self) -> object:
        """The parsed body; ``None`` when it is not JSON, whatever its content type says."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    @property
    def text(self) -> str:
        """What it says to people, on one short line: the message of a JSON error, or the text of a page."""
        row = self.json
        if isinstance(row, dict):
            return one_line(str(row.get("message") or row.get("http_message") or ""))
        page = html.unescape(_TAGS.sub(" ", self.body[:4000].decode("utf-8", "replace")))
        return one_line(page, _MAX_PAGE_CHARS)


def one_line(said: str, limit_chars: int = _MAX_DETAIL_CHARS) -> str:
    """Return what a server said on one short line, without secrets."""
    said = " ".join(_SECRETS.sub("(secret)", said).split())
    return said if len(said) <= limit_chars else said[: limit_chars - 1] + "…"


@dataclass(frozen=True, slots=True)
class Rule:
    """An answer with this status, whose text begins like this, is that error. The first that fits counts."""

    status: int
    text: str
    error: type[FTSError]


FTS_RULES = (
    Rule(401, "", NotAuthorised),
    Rule(403, r"\S+://\S+ is banned", StorageBanned),
    Rule(403, "", NotAuthorised),
    Rule(408, "", Unavailable),
    Rule(409, r"The sid provided by the user is duplicated", SidDuplicated),
    Rule(409, r"The submission is duplicated", DestinationBusy),
    Rule(414, "", RequestTooLong),
    Rule(419, "", DelegationNeeded),
    Rule(429, "", Unavailable),
)


def fts_error(server: str, method: str, path: str, answer: Answer) -> FTSError:
    """Say which error an answer of FTS is; every status from 300 on is one."""
    asked, text = shortened(method, path), answer.text
    error = _fts_class(method, path, answer, text)
    if error is Unavailable:
        return Unavailable(server, asked, answer.status, text, retry_after_s=answer.retry_after_s)
    if error is StorageBanned:
        return StorageBanned(server, asked, answer.status, text, storage=text.split(" ", 1)[0])
    if error is DestinationBusy:
        # What follows in the text is SQL.
        return DestinationBusy(server, asked, answer.status, "The submission is duplicated", _uuid_in(text))
    if error is JobNotFound:
        return JobNotFound(server, asked, answer.status, text, _uuid_in(text))
    return error(server, asked, answer.status, text)


def _fts_class(method: str, path: str, answer: Answer, text: str) -> type[FTSError]:
    for rule in FTS_RULES:
        if rule.status == answer.status and re.match(rule.text, text):
            return rule.error
    if answer.status < 400:
        # Most often the way to a login page.
        return BadAnswer
    if answer.status == 404:
        return _not_found(path, answer, text)
    if answer.status == 500 and isinstance(answer.json, dict):
        return ServerFault
    if answer.status >= 500:
        return Unavailable
    return SubmissionRefused if (method, path) == ("POST", "/jobs") else Refused


def _not_found(path: str, answer: Answer, text: str) -> type[FTSError]:
    if isinstance(answer.json, dict):
        return JobNotFound if text.startswith("No job with the id") else NotFound
    return TooManyIds if "," in path else NotFound


def _uuid_in(text: str) -> UUID | None:
    found = _UUID.search(text)
    return UUID(found[0]) if found else None


def shortened(method: str, path: str) -> str:
    """Return method and path for a message; the query stays out, since it may hold a secret.

    >>> shortened("GET", "/jobs/a?files=x")
    'GET /jobs/a'
    """
    path = path.partition("?")[0]
    if len(path) > _MAX_PATH_CHARS:
        path = f"{path[: _MAX_PATH_CHARS - 1]}… ({len(path)} characters)"
    return f"{method} {path}"
