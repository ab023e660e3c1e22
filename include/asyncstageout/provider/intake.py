"""The bodies of the tasks of ``stageout_intake``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from asyncstageout.provider.running import is_backfill, run_step
from asyncstageout.provider.sources import VARIABLE, UnknownSource, configured
from asyncstageout.steps import intake
from asyncstageout.steps.intake import Interval
from asyncstageout.steps.recording import Summary

Context = Mapping[str, Any]

EVERY = timedelta(minutes=5)
"""How often the DAG runs: what a run without an interval looks back."""


def list_sources(context: Context) -> list[str]:
    """Return the names of the sources, or the one of the form.

    :raises SourcesInvalid: the variable is wrong.
    :raises UnknownSource: the form names none of them.
    """
    names: list[str] = []

    def step(_conn: object, _step_run: int) -> Summary:
        known = list(configured())
        only = context["params"]["source"]
        if only and only not in known:
            raise UnknownSource(only, known)
        names.extend([only] if only else known)
        if not names:
            return Summary(f"No sources are configured (Airflow variable {VARIABLE})", {"sources": 0})
        return Summary(f"Sources: {', '.join(names)}", {"sources": len(names)})

    run_step(context, step)
    return names


def collect(context: Context, name: str) -> dict[str, Any]:
    """Take in what one source offers.

    :raises SourceUnreadable: or what its client raises.
    """

    def step(conn: Any, step_run: int) -> Summary:
        entries = configured()
        if name not in entries:
            raise UnknownSource(name, list(entries))
        dry_run = bool(context["params"]["dry_run"])
        return intake.collect(
            conn,
            entries[name].source(dry_run=dry_run),
            interval_of(context),
            step_run,
            is_backfill=is_backfill(context),
            dry_run=dry_run,
        )

    return run_step(context, step, label="source").as_xcom()


def summarise(context: Context, names: Sequence[str]) -> dict[str, Any]:
    """Say what the run took in.

    :raises IntakeNeedsPeople: not everything.
    """
    ti, dry_run = context["ti"], bool(context["params"]["dry_run"])
    return run_step(
        context, lambda conn, _: intake.summarise(conn, ti.dag_id, ti.run_id, names, dry_run=dry_run)
    ).as_xcom()


def interval_of(context: Context) -> Interval:
    """Return the run's interval; one that was triggered by hand may have none, and the form may widen it."""
    dag_run = context["dag_run"]
    end_at = dag_run.data_interval_end or datetime.now(UTC)
    start_at = dag_run.data_interval_start or end_at - EVERY
    if since := context["params"]["since"]:
        start_at = min(start_at, datetime.fromisoformat(since))
    return Interval(start_at, end_at)
