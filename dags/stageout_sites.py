"""
### Keeps the sites' own descriptions of their storages up to date: which name a file has where

| step | what it does |
|---|---|
| `load` | reads every source that `aso sites load` was given (files, folders in SITECONF form, URLs, Rucio) and keeps what is new as another version; nothing is written for what is as it was |
| `verdict` | red only if a description could not be read for over a day |

**Runs** every day at 4:17 UTC. New FTS jobs take the new version; those under way go on with the version that they
were planned with. A broken file changes nothing for its site, and nothing for the others.

**By hand.** *Trigger* takes one site, one source, and a dry run that only says what would change.

**Clear and re-run** any task at any time.

**Red `verdict`?** Its last line names the sites, since when, and what is wrong with file, line and field: tell the
site (runbooks/site-description.md). Its files go on with the version before. **Red `load`?** The catalogue was not
reachable, or the form names a source that there is not. The hosts that run tasks must see the files and folders.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import (
    CronTriggerTimetable,
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

RETRY_POLICY = ExceptionRetryPolicy(
    rules=[
        RetryRule(
            exception="asyncstageout.steps.load_sites.SitesFail",
            action=RetryAction.FAIL,
            reason="looking again does not help; somebody must tell the site",
        ),
        RetryRule(
            exception="asyncstageout.provider.site_tasks.UnknownSource",
            action=RetryAction.FAIL,
            reason="the form names a source that is not there",
        ),
    ]
)

PARAMS = {
    "site": Param(
        None, type=["null", "string"], description="Only this site or RSE, such as T2_IT_Bari.", title="Site"
    ),
    "source": Param(
        None,
        type=["null", "string"],
        description="Only this source, as `aso sites list` shows it.",
        title="Source",
    ),
    "dry_run": Param(False, type="boolean", description="Only say what would change.", title="Dry run"),
}


@dag(
    schedule=CronTriggerTimetable("17 4 * * *", timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    # More than one, since Airflow may stall a DAG with a limit of one for 30 s; loading twice changes nothing.
    max_active_runs=2,
    params=PARAMS,
    tags=["stageout", "sites"],
    default_args={
        "owner": "stageout-operators",
        "retries": 3,
        "retry_delay": timedelta(minutes=1),
        "retry_policy": RETRY_POLICY,
        "execution_timeout": timedelta(minutes=30),
        "on_failure_callback": task_failed,
    },
    deadline=deadline(minutes=60),
    doc_md=__doc__,
    dag_display_name="Stage-out: sites",
)
def stageout_sites() -> None:
    @task(queue=SLOW)
    def load() -> dict[str, Any]:
        from asyncstageout.provider import site_tasks

        return site_tasks.load(get_current_context())

    @task
    def verdict() -> dict[str, Any]:
        from asyncstageout.provider import site_tasks

        return site_tasks.verdict(get_current_context())

    load() >> verdict()


stageout_sites()
