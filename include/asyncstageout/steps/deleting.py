"""What one thread does to clean a storage: look, decide, delete, and say what became of each copy.

Only a plain file that is not younger than the copy that was moved is deleted, right after it was looked at. A
storage that does not answer, or refuses everything, stops; its copies stay as they were and use no try.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from posixpath import dirname
from typing import NamedTuple, Protocol, TypeVar
from urllib.parse import unquote, urlsplit

from asyncstageout.catalogue.cleaning import Word
from asyncstageout.clients.credentials.model import CredentialProblem
from asyncstageout.clients.deletion import Deleter
from asyncstageout.clients.errors import (
    AccessDenied,
    FileChanged,
    NoSuchFile,
    StorageBadAnswer,
    StorageError,
    StorageUnavailable,
    StorageUnreachable,
    StorageUntrusted,
)
from asyncstageout.clients.storage import Entry, Look
from asyncstageout.core.cleaning import Copy, Outcome, Trouble, next_try, why_left

logger = logging.getLogger(__name__)

T = TypeVar("T")

LOOK_GOOD_S = 60.0
"""A look is not older when something is deleted by it."""
LIST_FROM = 3
"""From so many copies in a directory on, it is listed as a whole."""
IN_A_ROW = 10
"""So many failures in a row are the storage's, and it is left alone."""
WITHOUT_CREDENTIAL = timedelta(hours=1)
"""How long copies wait whose owner has no credential."""

SILENT = (StorageUnreachable, StorageUntrusted)
"""Says nothing about the file, and everything about the storage."""
TROUBLES: tuple[tuple[type[StorageError], Trouble], ...] = (
    (AccessDenied, Trouble.DENIED),
    (StorageUnavailable, Trouble.UNAVAILABLE),
    (StorageError, Trouble.REFUSED),
)
"""The first that fits counts."""


class Deleters(Protocol):
    """Those who delete, made when they are first asked for. Threads may share it."""

    schemes: frozenset[str]
    """Of what they can delete."""

    def deleter(self, identity: str, url: str, lfn: str) -> Deleter:
        """Return who deletes a file and its neighbours in the name of an identity (core.identities).

        Raises:
            CredentialProblem: the identity has no credential for it.
            StorageError: there is no way to the storage.
        """
        ...


class NamedCopy(NamedTuple):
    """A claimed copy, and where it is."""

    copy: Copy
    url: str

    @property
    def folder(self) -> str:
        return f"{dirname(self.url)}/"

    def ended(self, outcome: Outcome, reason: str | None = None) -> Word:
        storage = urlsplit(self.url).hostname
        return Word(self.copy, outcome, self.copy.tries, storage=storage, reason=reason)


class Batch(NamedTuple):
    """What one thread works through, in the name of one identity."""

    identity: str
    copies: Sequence[NamedCopy]
    ends_at_s: float
    """Of the monotonic clock: well before the claim ends."""


def failed(copy: Copy, trouble: Trouble, reason: str, now: datetime, storage: str | None = None) -> Word:
    """Return the word for a copy that was not deleted."""
    tries = copy.tries + 1
    outcome, due_at = next_try(trouble, tries, now)
    return Word(copy, outcome, tries, due_at, storage, reason)


def given_back(copy: Copy, due_at: datetime, reason: str | None = None) -> Word:
    """Return the word for a copy of which nothing was tried."""
    return Word(copy, Outcome.WAITING, copy.tries, due_at, reason=reason)


class Pace:
    """Lets requests to one storage through at a rate; threads share it."""

    def __init__(
        self,
        per_s: float,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._step_s = 1 / per_s
        self._monotonic, self._sleep = monotonic, sleep
        self._next_s = monotonic()
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Return when the next request may go."""
        with self._lock:
            now = self._monotonic()
            turn = max(self._next_s, now)
            self._next_s = turn + self._step_s
        if turn > now:
            self._sleep(turn - now)


class Storage:
    """One storage as all threads of a step meet it: its pace, and whether it still answers."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._in_a_row = 0
        self.answered = False
        self.stopped: str | None = None
        """Why nothing more is asked."""

    def may_ask(self, ends_at_s: float) -> bool:
        """Wait for a turn; return whether there is still time, and the storage answers."""
        if self.stopped is None and time.monotonic() < ends_at_s:
            self._pace.wait()
        return self.stopped is None and time.monotonic() < ends_at_s

    def went_well(self) -> None:
        self._in_a_row = 0
        self.answered = True

    def went_wrong(self, error: StorageError) -> None:
        self._in_a_row += 1
        if self.stopped is None and isinstance(error, SILENT):
            self.stopped = str(error)
        elif self.stopped is None and self._in_a_row >= IN_A_ROW:
            self.stopped = f"{IN_A_ROW} failures in a row; the last: {error}"


class _NoTurn(Exception):
    """The storage is not asked any more, or time is over."""


class _Listing:
    """What a directory held, and by how much the storage's clock is ahead of ours."""

    def __init__(self, look: Look, ahead: timedelta) -> None:
        self.ahead = ahead
        self._entries = {_path(entry.url): entry for entry in look.entries}
        self._until_s = time.monotonic() + LOOK_GOOD_S

    def find(self, url: str) -> Entry | None:
        return self._entries.get(_path(url))

    @property
    def is_good(self) -> bool:
        return time.monotonic() < self._until_s


@dataclass(frozen=True, slots=True)
class Worker:
    """Deletes batches. Threads share it.

    Args:
        clock: gives the time, aware.
    """

    deleters: Deleters
    clock: Callable[[], datetime]

    def work(self, storage: Storage, batch: Batch) -> list[Word]:
        """Return what became of each copy of a batch."""
        words: list[Word] = []
        for folder, group in groupby(batch.copies, key=lambda one: one.folder):
            copies = list(group)
            try:
                deleter = self.deleters.deleter(batch.identity, copies[0].url, copies[0].copy.source_lfn)
            except CredentialProblem as problem:
                due_at = self.clock() + WITHOUT_CREDENTIAL
                words += [given_back(one.copy, due_at, str(problem)) for one in copies]
            except StorageError as error:
                words += [self._failed(storage, one, error) for one in copies]
            else:
                words += self._clean(storage, deleter, folder, copies, batch.ends_at_s)
        return words

    def _clean(
        self, storage: Storage, deleter: Deleter, folder: str, copies: Sequence[NamedCopy], ends_at_s: float
    ) -> Iterator[Word]:
        listing: _Listing | None = None
        for place, one in enumerate(copies):
            try:
                if listing is None or not listing.is_good:
                    is_worth_it = len(copies) - place >= LIST_FROM
                    listing = self._list(storage, deleter, folder, ends_at_s) if is_worth_it else None
                yield self._delete(storage, deleter, one, listing, ends_at_s)
            except _NoTurn:
                yield given_back(one.copy, self.clock())
            except StorageError as error:
                yield self._failed(storage, one, error)

    def _list(self, storage: Storage, deleter: Deleter, folder: str, ends_at_s: float) -> _Listing:
        """Look at a whole directory; where that is not possible, its files are looked at one by one."""
        try:
            look = self._asked(storage, ends_at_s, lambda: deleter.look(folder, inside=True))
        except StorageError as error:
            if isinstance(error, SILENT):
                raise
            logger.info("a directory is not listed: %s", error)
            look = Look([], None)
        return _Listing(look, self._ahead(look))

    def _delete(
        self, storage: Storage, deleter: Deleter, one: NamedCopy, listing: _Listing | None, ends_at_s: float
    ) -> Word:
        url, ahead = one.url, listing.ahead if listing else timedelta(0)
        entry = listing.find(url) if listing else None
        try:
            if entry is None:
                # Only its own absence counts: that it is not in a list may have other reasons.
                look = self._asked(storage, ends_at_s, lambda: deleter.look(url))
                entry, ahead = _only(look, url), self._ahead(look)
            left = why_left(
                one.copy,
                is_directory=entry.is_directory,
                size_bytes=entry.size_bytes,
                modified_at=entry.modified_at,
                clock_is_ahead=ahead,
            )
            if left:
                return one.ended(Outcome.LEFT, left)
            # A second more, as some storages compare with more than they tell.
            unmodified = entry.modified_at and entry.modified_at + timedelta(seconds=1)
            was_there = self._asked(
                storage, ends_at_s, lambda: deleter.delete(url, unmodified_since=unmodified)
            )
        except NoSuchFile:
            return one.ended(Outcome.GONE)
        except FileChanged:
            return one.ended(Outcome.LEFT, "it was written anew at this moment")
        return one.ended(Outcome.DELETED if was_there else Outcome.GONE)

    def _asked(self, storage: Storage, ends_at_s: float, ask: Callable[[], T]) -> T:
        """Ask when it is our turn, and note that the storage answers."""
        if not storage.may_ask(ends_at_s):
            raise _NoTurn
        try:
            answer = ask()
        except (NoSuchFile, FileChanged):
            storage.went_well()
            raise
        storage.went_well()
        return answer

    def _failed(self, storage: Storage, one: NamedCopy, error: StorageError) -> Word:
        storage.went_wrong(error)
        if isinstance(error, SILENT):
            return given_back(one.copy, self.clock())
        trouble = next(trouble for kind, trouble in TROUBLES if isinstance(error, kind))
        return failed(one.copy, trouble, str(error), self.clock(), urlsplit(one.url).hostname)

    def _ahead(self, look: Look) -> timedelta:
        return look.clock_at - self.clock() if look.clock_at else timedelta(0)


def _only(look: Look, url: str) -> Entry:
    if len(look.entries) != 1:
        raise StorageBadAnswer(
            urlsplit(url).netloc, "its answer", None, "it says nothing about the file itself"
        )
    return look.entries[0]


def _path(url: str) -> str:
    return unquote(urlsplit(url).path).rstrip("/")
