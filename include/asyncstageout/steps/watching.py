"""The watch over one FTS server, in a thread of its own: however silent it is, it delays no other's news."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Protocol

from psycopg import Connection

from asyncstageout.catalogue.fts_servers import last_contact
from asyncstageout.clients.errors import FTSError
from asyncstageout.clients.fts3 import FTS3Client
from asyncstageout.clients.messages import FileNotice
from asyncstageout.core.polling import Allowance
from asyncstageout.steps.notices import heed
from asyncstageout.steps.sense import Round, contact, look_at_server

logger = logging.getLogger(__name__)

CONTACT_S = 15.0
"""So often every server is asked for its version: two failures count (catalogue.fts_servers)."""
LONGEST_PAUSE_S = 30.0
FEED_WAIT_S = 1.0
"""A wait for messages sees the end of the watch that late."""


class Feed(Protocol):
    """Messages of a server; see :class:`asyncstageout.clients.messages.MessageFeed`."""

    def take(self) -> list[FileNotice]: ...

    def wait(self, timeout_s: float) -> bool: ...


class ServerWatch:
    """Asks one server about its jobs until it is stopped.

    Args:
        fts_server: name of the server.
        open_catalogue: gives a connection for this watch alone; it is closed at the end.
        open_client: gives the client; it is closed at the end.
        feed: of the server's messages, if a broker has them.
        pause_s: between two looks at which jobs are due.
        on_round: told after every round, in the watch's thread.
    """

    def __init__(
        self,
        fts_server: str,
        open_catalogue: Callable[[], Connection],
        open_client: Callable[[], FTS3Client],
        *,
        feed: Feed | None = None,
        pause_s: float = 0.5,
        on_round: Callable[[Round | FTSError], None] = lambda _: None,
    ) -> None:
        self.fts_server = fts_server
        self.rounds: list[Round] = []
        self.problem: FTSError | None = None
        """Why there was no answer the last time that one was needed."""
        self._open_catalogue = open_catalogue
        self._open_client = open_client
        self._feed = feed
        self._pause_s = pause_s
        self._on_round = on_round
        self._allowance = Allowance()
        self._stopped = threading.Event()

    @property
    def has_reported(self) -> bool:
        """Whether a round has come to its end."""
        return bool(self.rounds) or self.problem is not None

    @property
    def is_silent(self) -> bool:
        """Whether it was asked and never answered."""
        return self.problem is not None and not any(one.jobs or one.news for one in self.rounds)

    def stop(self) -> None:
        """End the watch with its present round; nobody need wait for that."""
        self._stopped.set()

    def run(self) -> None:
        """Watch.

        Raises:
            psycopg.Error: the catalogue is not there.
        """
        with self._open_catalogue() as conn:
            try:
                client = self._open_client()
            except FTSError as problem:
                self._note(problem)
                return
            with client:
                self._watch(conn, client)

    def _watch(self, conn: Connection, client: FTS3Client) -> None:
        pause_s = self._pause_s
        checked_at = last_contact(conn, self.fts_server)
        while not self._stopped.is_set():
            now = datetime.now(UTC)
            if checked_at is None or now - checked_at >= timedelta(seconds=CONTACT_S):
                contact(conn, client, fts_server=self.fts_server, now=now)
                checked_at = now
            try:
                one = self._round(conn, client, now)
            except FTSError as problem:
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
                logger.warning("%s: %s; asking again in %.0f s", self.fts_server, problem, pause_s)
                self._note(problem)
            else:
                pause_s = self._pause_s
                self._note(one)
            self._rest(pause_s)

    def _round(self, conn: Connection, client: FTS3Client, now: datetime) -> Round:
        """Take in what messages say; if that is no news, ask about what is due."""
        if self._feed and (heard := heed(conn, self._feed.take(), now=now)):
            return Round(0, heard)
        return look_at_server(conn, client, fts_server=self.fts_server, now=now, allowance=self._allowance)

    def _note(self, said: Round | FTSError) -> None:
        if isinstance(said, Round):
            self.rounds.append(said)
            self.problem = None if said.jobs else self.problem
        else:
            self.problem = said
        self._on_round(said)

    def _rest(self, seconds: float) -> None:
        """Pause until the time is over, a message comes or the watch is stopped."""
        if self._feed is None:
            self._stopped.wait(seconds)
            return
        while seconds > 0 and not self._stopped.is_set():
            if self._feed.wait(min(seconds, FEED_WAIT_S)):
                return
            seconds -= FEED_WAIT_S
