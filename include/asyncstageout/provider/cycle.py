"""The bodies of the DAGs' tasks: from Airflow's context to a step, and from its summary to XCom."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any

from psycopg import Connection

from asyncstageout.catalogue.cycles import Cycle, open_cycle
from asyncstageout.clients.errors import FTSError
from asyncstageout.clients.http import Patience
from asyncstageout.core.planning import Shard
from asyncstageout.provider.assets import FILES, FTS_JOBS
from asyncstageout.provider.fts_clients import HookClients
from asyncstageout.provider.running import catalogue, cycle_params, is_backfill, run_step
from asyncstageout.steps import reconcile
from asyncstageout.steps.collect import collect as collect_step
from asyncstageout.steps.group import group as group_step
from asyncstageout.steps.recording import Summary
from asyncstageout.steps.sense import look_everywhere
from asyncstageout.steps.summarise import summarise as summarise_step
from asyncstageout.steps.update_catalogue import update_catalogue as update_catalogue_step

logger = logging.getLogger(__name__)

LAST_LOOK = Patience(tries=1, connect_s=3, read_s=5)

Context = Mapping[str, Any]
XCom = dict[str, Any]


def collect(context: Context) -> XCom:
    """Return the summary, or nothing at all when nothing waits: then the rest of the run is skipped."""

    def step(conn: Connection, step_run: int) -> Summary:
        return collect_step(
            conn,
            dag_id=context["dag_run"].dag_id,
            run_id=context["dag_run"].run_id,
            params=cycle_params(context),
            today=datetime.now(UTC).date(),
            step_run=step_run,
            is_backfill=is_backfill(context),
        )

    summary = run_step(context, step)
    return summary.as_xcom() if summary.counts.get("links", 1) or summary.counts["adopted_jobs"] else {}


def group(context: Context) -> list[XCom]:
    """Return what each submit task is given (Airflow maps over nothing else); the summary is beside it."""
    shards: list[XCom] = []

    def step(conn: Connection, step_run: int) -> Summary:
        cycle = _cycle(conn, context)
        summary, packed = group_step(conn, cycle, step_run=step_run)
        shards.extend(_shard(cycle, number, shard) for number, shard in enumerate(packed))
        return summary

    context["ti"].xcom_push("summary", run_step(context, step).as_xcom())
    return shards


def summarise(context: Context) -> XCom:
    return run_step(
        context, lambda conn, _: summarise_step(conn, _cycle(conn, context)), outlet=FTS_JOBS
    ).as_xcom()


def update_catalogue(context: Context) -> XCom:
    """Look at all servers once more and apply: what ended while this task started waits no further run."""

    def step(conn: Connection, step_run: int) -> Summary:
        _last_look(conn)
        return update_catalogue_step(conn, now=datetime.now(UTC), step_run=step_run)

    return run_step(context, step, outlet=FILES).as_xcom()


def _last_look(conn: Connection) -> None:
    with HookClients.of(conn, patience=LAST_LOOK) as clients:
        for name, said in look_everywhere(conn, clients, catalogue, now=datetime.now(UTC)).items():
            if isinstance(said, FTSError):
                logger.warning("%s: %s; what was staged before is applied", name, said)


def check(context: Context) -> XCom:
    """Return what is wrong, or nothing at all: then the rest of the run is skipped."""
    summary = _reconciled(context, reconcile.check)
    return summary.as_xcom() if any(summary.counts.values()) else {}


def repair(context: Context) -> XCom:
    dry_run = bool(context["params"]["dry_run"])
    return _reconciled(context, partial(reconcile.repair, dry_run=dry_run)).as_xcom()


def verdict(context: Context) -> XCom:
    return _reconciled(context, reconcile.verdict).as_xcom()


def _reconciled(context: Context, step: Callable[..., Summary]) -> Summary:
    def body(conn: Connection, step_run: int) -> Summary:
        with HookClients.of(conn) as clients:
            return step(conn, clients, step_run=step_run)

    return run_step(context, body)


def _cycle(conn: Connection, context: Context) -> Cycle:
    return open_cycle(conn, context["dag_run"].dag_id, context["dag_run"].run_id, cycle_params(context))


def _shard(cycle: Cycle, number: int, shard: Shard) -> XCom:
    return {
        "cycle_id": cycle.cycle_id,
        "shard": number,
        "label": shard.label,
        "largest": str(shard.sids[0]),
        "jobs": len(shard.sids),
        "files": shard.file_count,
    }
