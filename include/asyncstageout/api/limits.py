"""How much one caller may ask: requests per second, and bytes per request.

Buckets are in memory, so each process of a server counts by itself: n processes let n times as much through.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from threading import Lock
from time import monotonic
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, AwareDatetime
from starlette.types import Message, Receive

from asyncstageout.api.problems import Problem
from asyncstageout.core.callers import Caller, Role

MIB = 1024 * 1024
NDJSON = "application/x-ndjson"
FORM = "application/x-www-form-urlencoded"
JSON_LIKE = frozenset({"application/json", NDJSON})

BODY_BYTES: Mapping[tuple[str, str], int] = {
    ("/transfers", NDJSON): 256 * MIB,  # read and answered piece by piece
    ("/transfers", "application/json"): 64 * MIB,  # 10,000 requests with room to spare
    ("/file-metadata", "application/json"): 64 * MIB,
    ("/filetransfers", FORM): 16 * MIB,
    ("/fileusertransfers", FORM): 16 * MIB,
}
"""(end of the path, media type) -> bytes of the largest body."""
OTHER_BODY_BYTES = MIB
PAGE_ROWS = 1000
"""Rows of a page, at most."""


FIRST_AT, LAST_AT = datetime(2000, 1, 1, tzinfo=UTC), datetime(3000, 1, 1, tzinfo=UTC)


def _in_our_time(moment: datetime) -> datetime:
    if not FIRST_AT <= moment < LAST_AT:
        raise ValueError(f"must be from {FIRST_AT:%Y-%m-%d} on and before {LAST_AT:%Y-%m-%d}")
    return moment.astimezone(UTC)


Moment = Annotated[AwareDatetime, AfterValidator(_in_our_time)]
"""A time with its zone; Postgres can write some that Python cannot read."""


class Rate(NamedTuple):
    """A bucket: what flows in each second, and how much it holds."""

    per_second: float
    burst: float


RATES: Mapping[Role, Rate] = {
    Role.USER: Rate(20, 200),
    Role.SERVICE: Rate(200, 2000),  # one account speaks for thousands of users
    Role.OPERATOR: Rate(100, 1000),
}


@dataclass(frozen=True, slots=True)
class Limits:
    """What is let through."""

    rates: Mapping[Role, Rate] = field(default_factory=lambda: RATES)
    body_bytes: Mapping[tuple[str, str], int] = field(default_factory=lambda: BODY_BYTES)
    other_body_bytes: int = OTHER_BODY_BYTES

    def of_body(self, path: str, media_type: str) -> int:
        """Return how many bytes the body of a request may have.

        >>> Limits().of_body("/stageout/api/v1/transfers", NDJSON) // MIB
        256
        """
        found = self.body_bytes.get(("/" + path.rstrip("/").rpartition("/")[2], media_type))
        return self.other_body_bytes if found is None else found


class Buckets:
    """A token bucket per caller; callers not seen for longest are forgotten, which fills theirs."""

    def __init__(
        self,
        rates: Mapping[Role, Rate],
        clock: Callable[[], float] = monotonic,
        callers: int = 10_000,
    ) -> None:
        self._rates, self._clock, self._callers = rates, clock, callers
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = Lock()

    def take(self, caller: Caller) -> None:
        """Take one from the caller's bucket.

        Raises:
            Problem: 429; it is empty.
        """
        rate = self._rates[caller.role]
        with self._lock:
            now = self._clock()
            level, then = self._levels.pop(caller.name, (rate.burst, now))
            level = min(rate.burst, level + (now - then) * rate.per_second)
            self._levels[caller.name] = (level - 1 if level >= 1 else level, now)
            if len(self._levels) > self._callers:
                self._levels.popitem(last=False)
        if level < 1:
            wait_s = int((1 - level) / rate.per_second) + 1
            raise Problem(
                429, f"{caller.name} asks too often; go on in {wait_s} s.", kind="too-many-requests",
                headers={"Retry-After": str(wait_s)},
            )  # fmt: skip


def limited(receive: Receive, most_bytes: int) -> Receive:
    """Return what receives a body piece by piece and stops it when it is too large, whatever it said before.

    Raises:
        Problem: 413, from the receiver.
    """
    received = 0

    async def receive_limited() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > most_bytes:
            raise too_large(most_bytes)
        return message

    return receive_limited


def too_large(most_bytes: int) -> Problem:
    return Problem(
        413, f"The body is too large: at most {most_bytes:,} bytes here; send it in parts.", kind="too-large",
        headers={"Connection": "close"},
    )  # fmt: skip
