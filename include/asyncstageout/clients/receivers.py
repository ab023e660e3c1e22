"""What receivers of messages have in common: what they are asked, and what their refusals mean.

:data:`RULES` says what an answer means for the messages that were sent with it:

==================  ===========================================  =========================================
class               whose fault                                  what follows
==================  ===========================================  =========================================
Failing             nobody's: down, busy, no answer              nothing is sent for a while
Faulty              the receiver's, or one message's             half of them is tried, to find out
ContentRefused      a message's                                  half of them is tried, to find it
NotLetIn            ours: address, credential, certificate       nothing is sent until a person looks
Gone                nobody's: it is not interested any more      nothing is kept for it any more
==================  ===========================================  =========================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol, TypeAlias
from urllib.parse import urlsplit

from asyncstageout.clients.errors import Answer, ServiceError, Transient
from asyncstageout.clients.http import Silence
from asyncstageout.core.deliveries import Message

Refusals: TypeAlias = Mapping[str, str]
"""Id of a message -> why it was not taken; the receiver took all others."""


class Receiver(Protocol):
    """Somebody who is told."""

    @property
    def batch(self) -> int:
        """Messages that it is sent at once, at most."""
        ...

    @property
    def longest_s(self) -> float:
        """How long one :meth:`send` may take."""
        ...

    def send(self, messages: Sequence[Message]) -> Refusals:
        """Tell it; to be told twice must not harm. No two messages are about one file.

        Raises:
            ReceiverError: it took nothing, as far as is known.
        """
        ...


class ReceiverError(ServiceError):
    """Root of what goes wrong with a receiver of messages."""

    @property
    def said(self) -> str:
        """What happened, without what to do."""
        said = f"answered {self.status}" if self.status else "failed"
        return f"{self.server}: {self.asked} {said}" + (f": {self.detail.rstrip('.')}" if self.detail else "")

    def __str__(self) -> str:
        return f"{self.said}. {self.advice}"


@dataclass(eq=False)
class Failing(Transient, ReceiverError):
    """It is down, or has no room at the moment."""

    retry_after_s: float | None = None
    maybe_delivered: bool = True
    advice: ClassVar[str] = "Nothing is lost: it is told when it is up again"


@dataclass(eq=False)
class Faulty(ReceiverError):
    """It failed on what it was sent, or gave no answer to it."""

    advice: ClassVar[str] = "Look into the receiver's own log"


class ContentRefused(ReceiverError):
    """It does not take what it was sent."""

    advice: ClassVar[str] = "Ask whoever runs the receiver what is wrong with this message"


class NotLetIn(ReceiverError):
    """It does not let us in, or is not there: the connection is wrong."""

    advice: ClassVar[str] = "Mend the connection of the subscription, then resume it"


class Gone(ReceiverError):
    """It says that it does not want to hear of us any more (410)."""

    advice: ClassVar[str] = "The subscription is off; remove it, or resume it if that was a mistake"


class Rule(NamedTuple):
    """An answer with a status from ``first`` to ``last`` is that error. The first that fits counts."""

    first: int
    last: int
    error: type[ReceiverError]


RULES = (
    # To follow one would hand the messages to an address that nobody has configured.
    Rule(300, 399, NotLetIn),
    Rule(401, 401, NotLetIn),
    Rule(403, 405, NotLetIn),
    Rule(407, 407, NotLetIn),
    Rule(408, 408, Failing),
    Rule(410, 410, Gone),
    Rule(425, 425, Failing),
    Rule(429, 429, Failing),
    # 400, 413, 415, 422 and the rest.
    Rule(400, 499, ContentRefused),
    Rule(502, 504, Failing),
    Rule(500, 599, Faulty),
)


def error_of(status: int) -> type[ReceiverError]:
    """Return what a status from 300 on means."""
    return next((rule.error for rule in RULES if rule.first <= status <= rule.last), Faulty)


class ReceiverJudge:
    """Turns answers and silence into the errors above."""

    def no_answer(self, method: str, url: str, silence: Silence) -> ReceiverError:
        where = _where(method, url)
        if silence.untrusted:
            return NotLetIn(*where, None, silence.cause)
        if not silence.maybe_delivered:
            return Failing(*where, None, silence.cause, maybe_delivered=False)
        return Faulty(*where, None, silence.cause)

    def refusal(self, method: str, url: str, answer: Answer) -> ReceiverError:
        error, where = error_of(answer.status), _where(method, url)
        if error is Failing:
            return Failing(*where, answer.status, answer.text, retry_after_s=answer.retry_after_s)
        return error(*where, answer.status, answer.text)


def _where(method: str, url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.netloc.rpartition("@")[2], f"{method} {parts.path}"
