"""The bodies of the tasks of ``stageout_clean``."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from psycopg import Connection

from asyncstageout.provider.running import run_step
from asyncstageout.provider.storages import HookDeleters, StorageHook
from asyncstageout.steps import clean, clean_run
from asyncstageout.steps.recording import Summary
from asyncstageout.steps.sweep import sweep as sweep_step

Context = Mapping[str, Any]
XCom = dict[str, Any]


def by_hand(context: Context) -> bool:
    """Say whether a person has started the run: then the form's dry run counts, and nothing is left alone."""
    return str(context["dag_run"].run_type) == "manual"


def is_dry_run(context: Context) -> bool:
    return by_hand(context) and bool(context["params"]["dry_run"])


def look(context: Context) -> list[XCom]:
    """Return what each ``delete`` task cleans; nothing: the rest of the run is skipped.

    :raises StorageConnectionMissing: something is to be deleted, and nothing says how.
    """
    shards: list[clean_run.Shard] = []

    def step(conn: Connection, _: int) -> Summary:
        summary, found = clean_run.look(conn, **_chosen(context), by_hand=by_hand(context))
        shards.extend(found)
        if found and not is_dry_run(context):
            StorageHook().access()
        return summary

    run_step(context, step)
    limit = context["params"]["limit"]
    return [
        {"label": shard.label, "sites": list(shard.sites), "limit": -(-limit // len(shards))}
        for shard in shards
    ]


def delete(context: Context, shard: XCom) -> XCom:
    """Clean the sites of a shard."""

    def step(conn: Connection, step_run: int) -> Summary:
        username = _chosen(context)["username"]
        if is_dry_run(context):
            return clean_run.would_delete(
                conn, HookDeleters.schemes, shard["sites"], now=datetime.now(UTC), username=username,
                limit=shard["limit"],
            )  # fmt: skip
        with HookDeleters() as deleters:
            return clean.delete(
                conn, deleters, sites=shard["sites"], step_run=step_run, username=username,
                limit=shard["limit"],
            )  # fmt: skip

    return run_step(context, step, label="sites").as_xcom()


def summarise(context: Context) -> XCom:
    """Say what the run deleted.

    :raises CleaningNeedsPeople: something was given up, or a storage lets nothing be deleted.
    """
    ti = context["ti"]

    def step(conn: Connection, step_run: int) -> Summary:
        return clean_run.summarise(conn, ti.dag_id, ti.run_id, now=datetime.now(UTC), step_run=step_run)

    return run_step(context, step).as_xcom()


def sweep(context: Context) -> XCom:
    """Go on with the sweep of the form's site; nothing, if the form does not want one.

    :raises ValueError: the form names no site.
    """
    params = context["params"]
    if not params["sweep"]:
        return {}

    def step(conn: Connection, step_run: int) -> Summary:
        if not params["site"]:
            raise ValueError("name the site that is to be swept")
        with HookDeleters() as deleters:
            return sweep_step(
                conn,
                deleters,
                site=params["site"],
                step_run=step_run,
                older_than_days=params["older_than_days"],
                requests=params["requests"],
                delete=0 if is_dry_run(context) else params["delete_orphans"],
            )

    return run_step(context, step).as_xcom()


def _chosen(context: Context) -> dict[str, Any]:
    params = context["params"]
    return {"site": params["site"] or None, "username": params["username"] or None}
