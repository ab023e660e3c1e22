"""The bodies of the tasks of ``stageout_publish``, and DBS instances by the names of their connections."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from airflow.sdk.exceptions import AirflowNotFoundException
from psycopg import Connection

from asyncstageout.clients.dbs import DBSClient, DBSReader
from asyncstageout.clients.dbs_errors import DBSError
from asyncstageout.core.blocks import PublicationSettings
from asyncstageout.provider.assets import BLOCKS
from asyncstageout.provider.crab_tasks import end_crab_tasks
from asyncstageout.provider.dbs import DBSHook
from asyncstageout.provider.running import run_step
from asyncstageout.steps.assemble import Shard
from asyncstageout.steps.assemble import assemble as assemble_step
from asyncstageout.steps.publication_summary import summarise as summarise_step
from asyncstageout.steps.publish import publish as publish_step
from asyncstageout.steps.recording import Summary

logger = logging.getLogger(__name__)

Context = Mapping[str, Any]
XCom = dict[str, Any]


class DBSNotConfigured(DBSError):
    """There is no usable Airflow connection for a DBS instance."""

    advice = "Make or mend the Airflow connection of this name (docs/reference/connections.md)"


class HookInstances:
    """Implements ``steps.parents.DBSInstances`` for several threads; a context manager closes all clients."""

    def __init__(self) -> None:
        self._hooks: dict[str, DBSHook] = {}
        self._settings: dict[str, PublicationSettings] = {}
        self._clients: dict[str, DBSClient] = {}
        self._readers: dict[str, DBSReader | None] = {}
        self._lock = threading.RLock()
        self._open = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def settings(self, dbs: str) -> PublicationSettings:
        """Return the settings of an instance; the defaults, where its connection cannot be read."""
        with self._lock:
            if dbs not in self._settings:
                try:
                    self._settings[dbs] = self._hook(dbs).settings
                except (AirflowNotFoundException, ValueError) as error:
                    logger.warning("settings of %s: %s", dbs, error)
                    self._settings[dbs] = PublicationSettings()
            return self._settings[dbs]

    def client(self, dbs: str) -> DBSClient:
        """Return the client of an instance.

        :raises DBSNotConfigured: it has no usable connection.
        """
        with self._lock:
            if dbs not in self._clients:
                try:
                    self._clients[dbs] = self._open.enter_context(self._hook(dbs).get_conn())
                except (AirflowNotFoundException, ValueError, OSError) as error:
                    raise DBSNotConfigured(dbs, "its connection", detail=str(error)) from error
            return self._clients[dbs]

    def global_reader(self, dbs: str) -> DBSReader | None:
        """Return where parents are looked for last; None: the connection names nothing.

        :raises DBSNotConfigured: it has no usable connection.
        """
        with self._lock:
            if dbs not in self._readers:
                try:
                    reader = self._hook(dbs).get_global_reader()
                except (AirflowNotFoundException, ValueError, OSError) as error:
                    raise DBSNotConfigured(dbs, "its connection", detail=str(error)) from error
                self._readers[dbs] = reader and self._open.enter_context(reader)
            return self._readers[dbs]

    def _hook(self, dbs: str) -> DBSHook:
        return self._hooks.setdefault(dbs, DBSHook(dbs))


def assemble(context: Context) -> list[XCom]:
    """Return what each publish task is given (Airflow maps over nothing else); the summary is beside it."""
    shards: list[Shard] = []

    def step(conn: Connection, step_run: int) -> Summary:
        ended = end_crab_tasks(conn)
        with HookInstances() as dbs:
            summary, found = assemble_step(conn, dbs.settings, now=datetime.now(UTC), step_run=step_run)
        shards.extend(found)
        return Summary(summary.sentence, summary.counts | {"ended_tasks": ended})

    context["ti"].xcom_push("summary", run_step(context, step).as_xcom())
    return [{"blocks": list(shard.block_ids), "label": shard.label, "files": shard.files} for shard in shards]


def publish(context: Context, shard: Mapping[str, Any]) -> XCom:
    """Tell DBS of a shard's blocks.

    :raises PublishingStopped: an instance needs a person.
    """

    def step(conn: Connection, step_run: int) -> Summary:
        with HookInstances() as dbs:
            return publish_step(conn, dbs, shard["blocks"], step_run=step_run)

    return run_step(context, step, label="shard_label").as_xcom()


def summarise(context: Context) -> XCom:
    """Say what the run published.

    :raises PublicationNeedsPeople: not everything.
    """
    ti = context["ti"]
    return run_step(
        context, lambda conn, _: summarise_step(conn, dag_id=ti.dag_id, run_id=ti.run_id), outlet=BLOCKS
    ).as_xcom()
