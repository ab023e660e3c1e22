"""Two triggers of ``stageout_kill``: one rings when FTS is to stop files, one waits until they have ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from time import monotonic
from typing import Any

from airflow.triggers.base import BaseTrigger, TaskFailedEvent, TaskSuccessEvent, TriggerEvent
from psycopg import Connection

from asyncstageout.catalogue.bell import KILLS_CHANNEL
from asyncstageout.catalogue.cancels import KillRun, still_open
from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.step_runs import end_step, start_step
from asyncstageout.provider.running import actor_of
from asyncstageout.provider.triggers import PendingFilesTrigger, catalogue_url
from asyncstageout.steps.cancel import outcome


class KillsTrigger(PendingFilesTrigger):
    """Rings (for an asset's watcher) when people have killed files that FTS may have.

    It rings when it starts, too: somebody may have rung while nobody listened.

    :param catalogue_conn_id: connection of type ``postgres``.
    :param quiet_s: at least so long between two rings.
    """

    channel = KILLS_CHANNEL

    def next_due(self, url: str, after: datetime) -> datetime | None:  # noqa: ARG002
        """Never: what nobody rings for is found by the next scheduled run."""
        return None


class KilledFilesTrigger(BaseTrigger):
    """Ends its task when all files have ended of which its run told FTS to stop them, or after a while.

    :param catalogue_conn_id: connection of type ``postgres``.
    :param patience_s: how long it waits.
    :param pause_s: between two looks.
    """

    def __init__(self, catalogue_conn_id: str, patience_s: float = 600.0, pause_s: float = 1.0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.catalogue_conn_id = catalogue_conn_id
        self.patience_s = patience_s
        self.pause_s = pause_s

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "catalogue_conn_id": self.catalogue_conn_id,
                "patience_s": self.patience_s,
                "pause_s": self.pause_s,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        url = await catalogue_url(self.catalogue_conn_id)
        conn = await asyncio.to_thread(connect, url, "stageout_kill")
        try:
            yield await self._wait(conn)
        finally:
            await asyncio.to_thread(conn.close)

    async def _wait(self, conn: Connection) -> TriggerEvent:
        actor = actor_of(self.task_instance)
        run = KillRun(actor.dag_id or "", actor.run_id or "")
        step_run = await asyncio.to_thread(start_step, conn, actor)
        ends_at_s = monotonic() + self.patience_s
        while await asyncio.to_thread(still_open, conn, run) and monotonic() < ends_at_s:
            await asyncio.sleep(self.pause_s)
        said = await asyncio.to_thread(outcome, conn, run)
        is_over = not said.counts["open"]
        await asyncio.to_thread(
            end_step, conn, step_run, outcome="success" if is_over else "failed",
            sentence=said.sentence, counts=said.counts,
        )  # fmt: skip
        self.log.info("%s", said.sentence)
        event = TaskSuccessEvent if is_over else TaskFailedEvent
        return event(xcoms={"return_value": said.as_xcom()})
