"""Two triggers: one watches all open FTS jobs, one rings when files wait.

Both live in the triggerer's event loop, so whatever may take time runs in a thread. Both look at the
catalogue when they start, since a triggerer may die at any moment and another one start them again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any

import psycopg
from airflow.sdk import BaseHook
from airflow.triggers.base import (
    BaseEventTrigger,
    BaseTrigger,
    TaskFailedEvent,
    TaskSuccessEvent,
    TriggerEvent,
)
from psycopg import AsyncConnection, Connection

from asyncstageout.catalogue.bell import PENDING_CHANNEL
from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.lookup import next_due
from asyncstageout.catalogue.sensing import staged_reports
from asyncstageout.catalogue.step_runs import end_step, start_step
from asyncstageout.clients.errors import FTSError
from asyncstageout.clients.fts3 import FTS3Client
from asyncstageout.clients.http import Patience
from asyncstageout.clients.messages import MessageFeed
from asyncstageout.core.polling import Allowance
from asyncstageout.provider.hooks import FTSHook
from asyncstageout.provider.messages import feed_of
from asyncstageout.provider.running import actor_of
from asyncstageout.steps.notices import heed
from asyncstageout.steps.sense import Round, sense_once, sentence

PATIENCE = Patience(tries=1, read_s=30)
LONGEST_PAUSE_S = 30.0
LISTEN_S = 30.0
"""How long a listener trusts its connection before it looks at the queue itself."""


async def catalogue_url(conn_id: str) -> str:
    """Return the libpq URL of an Airflow connection of type ``postgres``."""
    connection = await BaseHook.aget_connection(conn_id)
    return str(connection.get_uri())


class OpenFTSJobsTrigger(BaseTrigger):
    """Watches every FTS job with open files, and ends its task when there is something to apply.

    One shift lasts until news came and ``linger_s`` passed (so that news of the same moment are applied
    together), or until ``shift_s`` is over.

    :param catalogue_conn_id: connection of type ``postgres``.
    :param fts_conn_id: connection of type ``fts3``.
    :param shift_s: longest time of one watch; ends a silent watch, so that a run never lasts for ever.
    :param linger_s: how long the first news wait for others.
    :param pause_s: between two looks at which jobs are due.
    """

    def __init__(
        self,
        catalogue_conn_id: str,
        fts_conn_id: str,
        shift_s: float = 120.0,
        linger_s: float = 1.0,
        pause_s: float = 0.5,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.catalogue_conn_id = catalogue_conn_id
        self.fts_conn_id = fts_conn_id
        self.shift_s = shift_s
        self.linger_s = linger_s
        self.pause_s = pause_s

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "catalogue_conn_id": self.catalogue_conn_id,
                "fts_conn_id": self.fts_conn_id,
                "shift_s": self.shift_s,
                "linger_s": self.linger_s,
                "pause_s": self.pause_s,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        url = await catalogue_url(self.catalogue_conn_id)
        connection = await BaseHook.aget_connection(self.fts_conn_id)
        feed = feed_of(connection)
        hook = FTSHook(self.fts_conn_id, connection=connection)
        # Patience is the shift's: a question that fails is asked again by the next round.
        with hook.get_conn(patience=PATIENCE) as client:
            conn = await asyncio.to_thread(connect, url, "stageout_sense")
            try:
                yield await self._watch(conn, client, feed)
            finally:
                await asyncio.to_thread(conn.close)

    async def _watch(self, conn: Connection, client: FTS3Client, feed: MessageFeed | None) -> TriggerEvent:
        step_run = await asyncio.to_thread(start_step, conn, actor_of(self.task_instance))
        rounds, problem = await self._shift(conn, client, feed)
        text = sentence(rounds)
        counts = {"questions": sum(one.jobs for one in rounds), "news": sum(one.news for one in rounds)}
        outcome = "success"
        if problem is not None and not any(one.jobs or one.news for one in rounds):
            # Not one answer in a whole shift: an operator should see red.
            outcome, text = "failed", f"FTS gave no answer for {self.shift_s:.0f} s: {problem}"
        await asyncio.to_thread(end_step, conn, step_run, outcome=outcome, sentence=text, counts=counts)
        self.log.info("%s", text)
        xcoms: dict[str, Any] = {"return_value": {"sentence": text, **counts}}
        return TaskSuccessEvent(xcoms=xcoms) if outcome == "success" else TaskFailedEvent(xcoms=xcoms)

    async def _shift(
        self, conn: Connection, client: FTS3Client, feed: MessageFeed | None
    ) -> tuple[list[Round], FTSError | None]:
        """Ask, rest, ask again; return the rounds with answers, and the last problem if it stayed."""
        started = monotonic()
        # What an earlier run staged and could not apply is news too.
        staged = await asyncio.to_thread(staged_reports, conn)
        end = started + (self.linger_s if staged else self.shift_s)
        rounds: list[Round] = []
        problem: FTSError | None = None
        pause_s, allowance = self.pause_s, Allowance()
        while True:
            try:
                one = await asyncio.to_thread(_round, conn, client, feed, allowance)
            except FTSError as error:
                problem, pause_s = error, min(2 * pause_s, LONGEST_PAUSE_S)
                self.log.warning("%s; asking again in %.0f s", error, pause_s)
            else:
                pause_s = self.pause_s
                problem = None if one.jobs else problem
                rounds.append(one)
                if one.news:
                    end = min(end, monotonic() + self.linger_s)
            if monotonic() >= end:
                return rounds, problem
            await _rest(feed, max(0.0, min(pause_s, end - monotonic())))


def _round(conn: Connection, client: FTS3Client, feed: MessageFeed | None, allowance: Allowance) -> Round:
    """Take in what messages say; if that is no news, ask about what is due."""
    now = datetime.now(UTC)
    if feed and (heard := heed(conn, feed.take(), now=now)):
        return Round(0, heard)
    return sense_once(conn, client, now=now, allowance=allowance)


async def _rest(feed: MessageFeed | None, seconds: float) -> None:
    """Pause until the time is over or a message comes."""
    if feed is None:
        await asyncio.sleep(seconds)
    else:
        await asyncio.to_thread(feed.wait, seconds)


class PendingFilesTrigger(BaseEventTrigger):
    """Rings (for an asset's watcher) when files arrive or become due again. A ring is a doorbell, never data.

    :param catalogue_conn_id: connection of type ``postgres``.
    :param quiet_s: at least so long between two rings; arrivals in between share the second one.
    """

    def __init__(self, catalogue_conn_id: str, quiet_s: float = 3.0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.catalogue_conn_id = catalogue_conn_id
        self.quiet_s = quiet_s

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {"catalogue_conn_id": self.catalogue_conn_id, "quiet_s": self.quiet_s},
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        url = await catalogue_url(self.catalogue_conn_id)
        pause_s = self.quiet_s
        while True:
            # Whatever arrived while nobody listened: ring once at every start of listening.
            yield TriggerEvent({"rung_at": datetime.now(UTC).isoformat()})
            try:
                async for event in self._listen(url):
                    pause_s = self.quiet_s
                    yield event
            except psycopg.OperationalError as error:
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
                self.log.warning("lost the catalogue, listening again in %.0f s: %s", pause_s, error)
                await asyncio.sleep(pause_s)

    async def _listen(self, url: str) -> AsyncIterator[TriggerEvent]:
        conn = await AsyncConnection.connect(url, autocommit=True, application_name="stageout_bell")
        async with conn:
            await conn.execute(f"LISTEN {PENDING_CHANNEL}")
            looked_at = datetime.now(UTC)
            while True:
                due_at = await asyncio.to_thread(_next_due, url, looked_at)
                if await self._rung(conn, due_at):
                    yield TriggerEvent({"rung_at": datetime.now(UTC).isoformat()})
                    await asyncio.sleep(self.quiet_s)
                    looked_at = max(looked_at, datetime.now(UTC) - timedelta(seconds=self.quiet_s))

    async def _rung(self, conn: AsyncConnection, due_at: datetime | None) -> bool:
        """Wait for a notification or a file's time; False when neither came for a while."""
        wait_s = LISTEN_S
        if due_at is not None:
            wait_s = min(wait_s, max(0.0, (due_at - datetime.now(UTC)).total_seconds()))
        async for _ in conn.notifies(timeout=wait_s, stop_after=1):
            return True
        return due_at is not None and due_at <= datetime.now(UTC)


def _next_due(url: str, after: datetime) -> datetime | None:
    with connect(url, "stageout_bell") as conn:
        return next_due(conn, after)
