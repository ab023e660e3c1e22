"""Operators that speak to FTS."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from airflow.sdk import BaseOperator
from psycopg import Connection

from asyncstageout.catalogue.sensing import largest_accepted
from asyncstageout.provider.fts_clients import HookClients
from asyncstageout.provider.hooks import FTSHook
from asyncstageout.provider.links import FTSJobLink, FTSMonitorLink
from asyncstageout.provider.running import CATALOGUE_CONN_ID, run_step
from asyncstageout.steps.recording import Summary
from asyncstageout.steps.submit import THREADS, submit


class SubmitFTSJobsOperator(BaseOperator):
    """Submit a shard of a cycle's planned FTS jobs, each accepted exactly once.

    Running it again, clearing it, or running it twice at the same moment submits nothing twice.

    :param shard: ``{"cycle_id", "shard", "label", "largest"}`` as the task ``group`` gives it.
    Each job goes to its own FTS server, by the Airflow connection of the server's name.

    :param catalogue_conn_id: connection of type ``postgres``.
    :param threads: POSTs under way at once, at all servers.
    """

    template_fields = ("shard",)
    operator_extra_links = (FTSJobLink(), FTSMonitorLink())
    ui_color = "#d6eaf0"

    def __init__(
        self,
        *,
        shard: dict[str, Any],
        catalogue_conn_id: str = CATALOGUE_CONN_ID,
        threads: int = THREADS,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.shard = shard
        self.catalogue_conn_id = catalogue_conn_id
        self.threads = threads
        self.fts_monitor_url: str | None = None
        self.fts_job_id: str | None = None

    def execute(self, context: Any) -> dict[str, Any]:
        context["shard_label"] = self.shard["label"]
        largest: tuple[str, UUID] | None = None

        def step(conn: Connection, step_run: int) -> Summary:
            nonlocal largest
            with HookClients.of(conn, pool_size=self.threads) as clients:
                summary = submit(
                    conn,
                    clients,
                    cycle_id=self.shard["cycle_id"],
                    shard=self.shard["shard"],
                    step_run=step_run,
                    threads=self.threads,
                )
            largest = largest_accepted(conn, self.shard["cycle_id"], self.shard["shard"])
            return summary

        summary = run_step(context, step, self.catalogue_conn_id, label="shard_label")
        if largest is not None:
            server, job_id = largest
            self.fts_job_id = str(job_id)
            self.fts_monitor_url = FTSHook(server).monitor_url(job_id)
        return summary.as_xcom()


class CancelFTSJobsOperator(BaseOperator):
    """Cancel FTS jobs by their ids. Jobs that ended before are left as they are, and said so.

    The answers are FTS's at once; a running copy stops up to 10 s later.

    :param job_ids: ids of FTS jobs.
    :param fts_conn_id: connection of type ``fts3``.
    """

    template_fields = ("job_ids",)
    ui_color = "#f0d6d6"

    def __init__(
        self, *, job_ids: Sequence[str], fts_conn_id: str = FTSHook.default_conn_name, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.job_ids = job_ids
        self.fts_conn_id = fts_conn_id

    def execute(self, context: Any) -> dict[str, str]:  # noqa: ARG002 - Airflow's signature
        with FTSHook(self.fts_conn_id).get_conn() as client:
            answers = client.cancel_jobs([UUID(job_id) for job_id in self.job_ids])
        states = {str(answer.job_id): getattr(answer, "state", type(answer).__name__) for answer in answers}
        for job_id, state in states.items():
            self.log.info("FTS job %s: %s", job_id, state)
        return states
