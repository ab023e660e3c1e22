"""Two triggers: one watches all open FTS jobs, one rings when files wait.

Both live in the triggerer's event loop, so whatever may take time runs in a thread. Both look at the
catalogue when they start, since a triggerer may die at any moment and another one start them again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from time import monotonic
from typing import Any

import psycopg
from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowNotFoundException
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
from asyncstageout.catalogue.fts_servers import servers
from asyncstageout.catalogue.lookup import next_due
from asyncstageout.catalogue.sensing import (
    failed_lately,
    servers_to_watch,
    servers_with_open_jobs,
    staged_reports,
)
from asyncstageout.catalogue.step_runs import end_step, start_step
from asyncstageout.clients.http import Patience
from asyncstageout.provider.fts_clients import open_client
from asyncstageout.provider.messages import feed_of
from asyncstageout.provider.running import actor_of
from asyncstageout.steps.recording import files
from asyncstageout.steps.sense import sentence
from asyncstageout.steps.watching import ServerWatch

logger = logging.getLogger(__name__)

PATIENCE = Patience(tries=1, read_s=30)
LONGEST_PAUSE_S = 30.0
STAGED_LOOK_S = 5.0
LISTEN_S = 30.0
"""How long a listener trusts its connection before it looks at the queue itself."""


async def catalogue_url(conn_id: str) -> str:
    """Return the libpq URL of an Airflow connection of type ``postgres``."""
    connection = await BaseHook.aget_connection(conn_id)
    return str(connection.get_uri())


class OpenFTSJobsTrigger(BaseTrigger):
    """Watches every FTS job with open files, at all servers; ends its task when there is something to apply.

    One shift lasts until news came and ``linger_s`` passed (so that news of the same moment are applied
    together), or until ``shift_s`` is over. Each server is watched in a thread of its own, which nobody waits
    for when the shift ends.

    :param catalogue_conn_id: connection of type ``postgres``.
    :param shift_s: longest time of one watch; ends a silent watch, so that a run never lasts for ever.
    :param linger_s: how long the first news wait for others.
    :param pause_s: between two looks at which jobs are due.
    """

    def __init__(
        self,
        catalogue_conn_id: str,
        shift_s: float = 120.0,
        linger_s: float = 1.0,
        pause_s: float = 0.5,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.catalogue_conn_id = catalogue_conn_id
        self.shift_s = shift_s
        self.linger_s = linger_s
        self.pause_s = pause_s

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "catalogue_conn_id": self.catalogue_conn_id,
                "shift_s": self.shift_s,
                "linger_s": self.linger_s,
                "pause_s": self.pause_s,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        url = await catalogue_url(self.catalogue_conn_id)
        conn = await asyncio.to_thread(connect, url, "stageout_sense")
        try:
            yield await self._watch(conn, url)
        finally:
            await asyncio.to_thread(conn.close)

    async def _watch(self, conn: Connection, url: str) -> TriggerEvent:
        actor = actor_of(self.task_instance)
        step_run = await asyncio.to_thread(start_step, conn, actor)
        names = await asyncio.to_thread(servers_to_watch, conn)
        said = asyncio.Event()
        watches = [await self._server_watch(name, url, said) for name in names]
        is_cut_short = await self._shift(conn, watches, said)
        rounds = [one for watch in watches for one in watch.rounds]
        silent = await asyncio.to_thread(self._silent, conn, watches, actor.task_id, is_cut_short)
        text = sentence(rounds)
        if silent:
            # An operator should see red; what the others said is applied all the same.
            text = "; ".join([*silent, text])
        counts = {"questions": sum(one.jobs for one in rounds), "news": sum(one.news for one in rounds)}
        outcome = "failed" if silent else "success"
        await asyncio.to_thread(end_step, conn, step_run, outcome=outcome, sentence=text, counts=counts)
        self.log.info("%s", text)
        xcoms: dict[str, Any] = {"return_value": {"sentence": text, **counts}}
        return TaskFailedEvent(xcoms=xcoms) if silent else TaskSuccessEvent(xcoms=xcoms)

    async def _server_watch(self, name: str, url: str, said: asyncio.Event) -> ServerWatch:
        loop = asyncio.get_running_loop()
        try:
            connection = await BaseHook.aget_connection(name)
        except AirflowNotFoundException:
            connection = None  # the watch says so
        return ServerWatch(
            name,
            lambda: connect(url, f"stageout_sense {name}"),
            # Patience is the shift's: a question that fails is asked again by the next round.
            lambda: open_client(name, connection=connection, patience=PATIENCE),
            feed=feed_of(connection) if connection else None,
            pause_s=self.pause_s,
            on_round=partial(_tell, loop, said),
        )

    async def _shift(self, conn: Connection, watches: list[ServerWatch], said: asyncio.Event) -> bool:
        """Have the servers watched until there is news (True), or nothing was new for the whole shift."""
        loop = asyncio.get_running_loop()
        # Not the loop's own threads: silent servers would hold them all, and other triggers need them.
        pool = ThreadPoolExecutor(max(1, len(watches)), thread_name_prefix="sense")
        running = [loop.run_in_executor(pool, watch.run) for watch in watches]
        try:
            return await self._until_news(conn, watches, running, said)
        finally:
            for watch in watches:
                watch.stop()
            pool.shutdown(wait=False)
            for future in running:
                # Whoever is in the middle of a question ends it, with nobody to listen.
                future.add_done_callback(_forget)

    async def _until_news(
        self,
        conn: Connection,
        watches: list[ServerWatch],
        running: list[asyncio.Future[None]],
        said: asyncio.Event,
    ) -> bool:
        # What an earlier run staged and could not apply is news too.
        has_news = bool(await asyncio.to_thread(staged_reports, conn))
        looked_at = monotonic()
        end = looked_at + (self.linger_s if has_news else self.shift_s)
        while True:
            for future in running:
                if future.done():
                    future.result()
            news = any(one.news for watch in watches for one in watch.rounds)
            if monotonic() - looked_at >= STAGED_LOOK_S:
                # A round for whose end an earlier shift did not wait.
                looked_at = monotonic()
                news = news or bool(await asyncio.to_thread(staged_reports, conn))
            if news and not has_news:
                has_news, end = True, min(end, monotonic() + self.linger_s)
            left_s = end - monotonic()
            if left_s <= 0 and (has_news or all(watch.has_reported for watch in watches)):
                return has_news
            said.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(
                    said.wait(), min(left_s, STAGED_LOOK_S) if left_s > 0 else STAGED_LOOK_S
                )

    def _silent(
        self, conn: Connection, watches: list[ServerWatch], task_id: str, is_cut_short: bool
    ) -> list[str]:
        """Name the servers that gave no answer for as long as a shift while files are at them."""
        problems = {watch.fts_server: str(watch.problem) for watch in watches if watch.is_silent}
        if is_cut_short:
            # Others had news: what was known before counts, and that is said once in a shift's time.
            if failed_lately(conn, task_id, self.shift_s):
                return []
            long_ago = datetime.now(UTC) - timedelta(seconds=self.shift_s)
            problems = {
                server.name: server.problem or ""
                for server in servers(conn)
                if server.failing_since and server.failing_since < long_ago
            }
        open_files = servers_with_open_jobs(conn)
        return [
            f"{name} gave no answer for {self.shift_s:.0f} s, {files(open_files[name])} are there: {problem}"
            for name, problem in problems.items()
            if name in open_files
        ]


def _tell(loop: asyncio.AbstractEventLoop, said: asyncio.Event, _: object) -> None:
    with suppress(RuntimeError):  # the loop has ended meanwhile
        loop.call_soon_threadsafe(said.set)


def _forget(future: asyncio.Future[None]) -> None:
    if not future.cancelled() and future.exception():
        logger.info("the end of a watch: %s", future.exception())


class PendingFilesTrigger(BaseEventTrigger):
    """Rings (for an asset's watcher) when files arrive or become due again. A ring is a doorbell, never data.

    :param catalogue_conn_id: connection of type ``postgres``.
    :param quiet_s: at least so long between two rings; arrivals in between share the second one.
    """

    channel = PENDING_CHANNEL

    def __init__(self, catalogue_conn_id: str, quiet_s: float = 3.0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.catalogue_conn_id = catalogue_conn_id
        self.quiet_s = quiet_s

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {"catalogue_conn_id": self.catalogue_conn_id, "quiet_s": self.quiet_s},
        )

    def next_due(self, url: str, after: datetime) -> datetime | None:
        """Return when, after a moment, it must ring without being rung."""
        with connect(url, "stageout_bell") as conn:
            return next_due(conn, after)

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
            await conn.execute(f"LISTEN {self.channel}")
            looked_at = datetime.now(UTC)
            while True:
                due_at = await asyncio.to_thread(self.next_due, url, looked_at)
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
