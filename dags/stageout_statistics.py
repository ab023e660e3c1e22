"""
### Counts what happened, hour by hour, and keeps the past as long as it is wanted

| step | what it does |
|---|---|
| `roll_up` | counts the hours of the run from their events, by link, site, user and task; each hour is replaced as a whole. Hours before it that were missed, or to which events came late, are counted too |
| `export` | writes yesterday, and days that are about to be dropped, to Parquet files, if it is set where to |
| `partitions` | makes the partitions of the week that comes; drops those whose time is over and that are exported. Files under way keep their events |
| `prune` | deletes rows that nobody needs any more: records of steps, FTS jobs and cycles of files that are gone, metadata of published files, and the like |
| `clean_airflow` | once a day: deletes old runs from Airflow's own database |
| `summarise` | says what happened; red if something should have been dropped days ago |

**Runs** every hour, for the hour that is over. For how long everything is kept: `aso retention show`; what is gone is shown there too.

**By hand.** *Trigger* counts all hours from one time to another in one run: after an upgrade, or when a defect was mended. *Dry run* says
which partitions would be dropped.

**Backfill** counts the hours of the window again, and does nothing else. It gives the same numbers unless the events, or this code, are others
by now. Hours whose events are gone stay as they are. For a window of weeks one triggered run does the same
(docs/how-to/backfill.md).

**Clear and re-run** any task at any time.

**Red?** runbooks/retention.md. `export`: the place was not reachable; nothing is dropped meanwhile. `partitions`: the catalogue was not reachable.
`clean_airflow`: the text says what Airflow's own command said. `summarise`: partitions wait for days.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

from airflow.sdk import (
    CronDataIntervalTimetable,
    ExceptionRetryPolicy,
    Param,
    RetryAction,
    RetryRule,
    dag,
    get_current_context,
    task,
)

from asyncstageout.provider.queues import SLOW
from asyncstageout.provider.watched import deadline, task_failed

FOR_PEOPLE = {
    "asyncstageout.steps.statistics.EventsGone": "what was dropped cannot be counted again",
    "asyncstageout.steps.retention.DropsOverdue": "the next run tries again",
    "asyncstageout.steps.export.ParquetMissing": "somebody must install it",
    "asyncstageout.provider.airflow_cleaning.CleaningFailed": "the next day's run tries again",
}

RETRY_POLICY = ExceptionRetryPolicy(
    rules=[
        RetryRule(exception=exception, action=RetryAction.FAIL, reason=reason)
        for exception, reason in FOR_PEOPLE.items()
    ]
)


def _time(description: str, title: str) -> Param:
    return Param(
        None,
        type=["null", "string"],
        format="date-time",
        section="Hours",
        title=title,
        description=description,
    )


PARAMS = {
    "from": _time("Count all hours from this one on, in place of the last one.", title="From"),
    "to": _time("Up to this time; without it, to now.", title="To"),
    "dry_run": Param(
        False, type="boolean", description="Only say what would be dropped; delete nothing.", title="Dry run"
    ),
    "clean_airflow": Param(
        False, type="boolean", description="Clean Airflow's own database now.", title="Clean Airflow"
    ),
}


@dag(
    schedule=CronDataIntervalTimetable("0 * * * *", timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    # More than one, since Airflow may stall a DAG with a limit of one for 30 s; who counts waits for who counts.
    max_active_runs=2,
    params=PARAMS,
    tags=["stageout", "statistics"],
    default_args={
        "owner": "stageout-operators",
        "queue": SLOW,
        "retries": 3,
        "retry_delay": timedelta(minutes=1),
        "retry_policy": RETRY_POLICY,
        "execution_timeout": timedelta(hours=3),
        "on_failure_callback": task_failed,
    },
    deadline=deadline(minutes=240),
    doc_md=__doc__,
    dag_display_name="Stage-out: statistics",
)
def stageout_statistics() -> None:
    @task.short_circuit(ignore_downstream_trigger_rules=True)
    def roll_up() -> dict[str, Any]:
        from asyncstageout.provider import statistics

        return statistics.roll_up(get_current_context())

    @task
    def export() -> dict[str, Any]:
        from asyncstageout.provider import statistics

        return statistics.export(get_current_context())

    # What does not depend on the step before goes on without it.
    @task(trigger_rule="all_done")
    def partitions() -> dict[str, Any]:
        from asyncstageout.provider import statistics

        return statistics.partitions(get_current_context())

    @task(trigger_rule="all_done")
    def prune() -> dict[str, Any]:
        from asyncstageout.provider import statistics

        return statistics.prune(get_current_context())

    @task(trigger_rule="all_done")
    def clean_airflow() -> dict[str, Any]:
        from asyncstageout.provider import statistics

        return statistics.clean_airflow(get_current_context())

    @task(trigger_rule="none_failed")
    def summarise() -> dict[str, Any]:
        from asyncstageout.provider import statistics

        return statistics.summarise(get_current_context())

    steps = [roll_up(), export(), partitions(), prune(), clean_airflow()]
    for step, following in pairwise(steps):
        step >> following
    steps >> summarise()


stageout_statistics()
