"""What must not start, or is not taken in, and until when: pause, drain and ban.

=====  =====================  ===================  ========================================
mode   files that wait        new requests         meant for
=====  =====================  ===================  ========================================
pause  wait on                are taken            trouble that passes; site downtimes
drain  go on                  are refused          a storage that is emptied or retired
ban    wait on                are refused          what must stop altogether
=====  =====================  ===================  ========================================

What FTS already has goes on in all of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from asyncstageout.core.scopes import ByScope, Scope

FOR_EVER = datetime.max.replace(tzinfo=UTC)


class Mode(StrEnum):
    PAUSE = "pause"
    DRAIN = "drain"
    BAN = "ban"


PARTICIPLES = {Mode.PAUSE: "paused", Mode.DRAIN: "drained", Mode.BAN: "banned"}
STOPPING = frozenset({Mode.PAUSE, Mode.BAN})
"""Nothing starts."""
REFUSING = frozenset({Mode.DRAIN, Mode.BAN})
"""Nothing new is taken in."""


@dataclass(frozen=True, slots=True)
class Restriction:
    """One restriction: what it is for, why, by whom, and when it is in force."""

    restriction_id: int
    mode: Mode
    site: str | None
    """At either end; then ``source`` and ``destination`` are None."""
    source: str | None
    destination: str | None
    username: str | None
    activity: str | None
    reason: str
    author: str
    starts_at: datetime
    ends_at: datetime | None = None
    """From then on it is in force no more; None: until it is lifted."""
    lifted_at: datetime | None = None
    is_downtime: bool = False
    """Announced by the site."""

    def is_in_force(self, now: datetime) -> bool:
        return self.lifted_at is None and self.starts_at <= now < (self.ends_at or FOR_EVER)

    def is_over(self, now: datetime) -> bool:
        return self.lifted_at is not None or (self.ends_at or FOR_EVER) <= now

    def scopes(self) -> list[Scope]:
        """Return the one or two scopes that it covers."""
        if self.site is None:
            return [Scope(self.source, self.destination, self.username, self.activity)]
        return [
            Scope(self.site, None, self.username, self.activity),
            Scope(None, self.site, self.username, self.activity),
        ]

    def covers(self, source: str, destination: str, username: str, activity: str) -> bool:
        """Say whether it is for these files, whenever it is in force."""
        file = (source, destination, username, activity)
        return any(
            all(name in (None, wanted) for name, wanted in zip(scope, file, strict=True))
            for scope in self.scopes()
        )

    def what(self) -> str:
        """Return what it is for: ``site T2_IT_Bari, user alice``."""
        rest = Scope(self.source, self.destination, self.username, self.activity)
        if self.site is None:
            return str(rest)
        return f"site {self.site}" + (f", {rest}" if any(rest) else "")

    def sentence(self) -> str:
        """Say who stopped it, until when, and why."""
        until = f" until {self.ends_at:%Y-%m-%d %H:%M} UTC" if self.ends_at else ""
        if self.is_downtime:
            return f"downtime of {self.what()}{until}: {self.reason}"
        return f"{PARTICIPLES[self.mode]} by {self.author}{until}: {self.reason}"


class Restrictions:
    """The restrictions in force at one moment.

    Where several cover a file, the one that ends last is told: before that, the file does not go.
    """

    def __init__(self, rows: Iterable[Restriction], now: datetime) -> None:
        in_force = [row for row in rows if row.is_in_force(now)]
        self._stopping = _index(row for row in in_force if row.mode in STOPPING)
        self._refusing = _index(row for row in in_force if row.mode in REFUSING)
        self._ends = [row.ends_at for row in in_force if row.mode in STOPPING and row.ends_at]

    def stops(
        self, source: str, destination: str, username: str | None = None, activity: str | None = None
    ) -> Restriction | None:
        """Return why a file must not start now, or None if it may.

        Without a user or an activity: what stops the files of every one.
        """
        return _last(self._stopping, (source, destination, username or "", activity or ""))

    def refuses(
        self, source: str, destination: str, username: str | None = None, activity: str | None = None
    ) -> Restriction | None:
        """Return why a new request is not taken, or None if it is."""
        return _last(self._refusing, (source, destination, username or "", activity or ""))

    def ends_next(self) -> datetime | None:
        """Return when the next one ends that keeps files from starting, or None."""
        return min(self._ends, default=None)


def _index(rows: Iterable[Restriction]) -> ByScope[Restriction]:
    by_scope: defaultdict[Scope, list[Restriction]] = defaultdict(list)
    for row in rows:
        for scope in row.scopes():
            by_scope[scope].append(row)
    return ByScope((scope, max(same, key=_end)) for scope, same in by_scope.items())


def _last(rows: ByScope[Restriction], file: tuple[str, str, str, str]) -> Restriction | None:
    return max(rows.covering(file), key=_end, default=None)


def _end(row: Restriction) -> datetime:
    return row.ends_at or FOR_EVER
