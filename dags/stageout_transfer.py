"""
### Moves waiting files: from "waiting" to "accepted by FTS"

| step | what it does |
|---|---|
| `collect` | opens the cycle, takes over jobs of a dead cycle, notes which links have work and which are held back, and why |
| `group` | turns waiting files into FTS jobs, users of a link taking turns; the exact file lists are written before FTS hears of them |
| `submit` | tells the FTS servers, in a few parallel shards; every job is accepted exactly once, whatever dies. What a server that does not answer certainly never got goes to another one |
| `summarise` | says what became of the cycle; red if FTS did not confirm a job |

**Runs** when files arrive or become due for another attempt (a doorbell on the catalogue), and every minute
in any case. A run takes whatever waits, so cycles grow with load and their number does not. It ends when FTS
has its jobs; `stageout_sense` follows them from there.

**By hand.** *Trigger* takes a user, task or link, a limit, a window over the arrival of files, and a dry run
that only says what would go. With a window, files in it that FAILED are driven again.

**Backfill** over an outage takes what arrived in each interval and is NEW, RETRY or FAILED. For a long
outage one triggered run with a window does the same in one cycle.

**Clear and re-run** any task at any time: a finished cycle changes nothing, an interrupted one continues.

**Red?** Open the failed task's log: its last line says what FTS answered and what to do. `aso doctor` checks
everything that a cycle needs, `aso servers` shows the FTS servers. Files keep their attempts; the next cycle takes
over. Files of a user without a credential wait, and make nothing red here.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import (
    Asset,
    AssetOrTimeSchedule,
    AssetWatcher,
    CronTriggerTimetable,
    ExceptionRetryPolicy,
    Param,
    RetryAction,
    RetryRule,
    dag,
    get_current_context,
    task,
)

from asyncstageout.provider.assets import FTS_JOBS
from asyncstageout.provider.operators import SubmitFTSJobsOperator
from asyncstageout.provider.triggers import PendingFilesTrigger
from asyncstageout.provider.watched import deadline, task_failed

PENDING = Asset(
    name="stageout_pending",
    uri="x-stageout://catalogue/pending",
    group="stageout",
    watchers=[AssetWatcher(name="stageout_bell", trigger=PendingFilesTrigger("stageout_db"))],
)

# Worth trying again at once: somebody else is down for a moment. Anything else is for a person to see.
RETRY_POLICY = ExceptionRetryPolicy(
    rules=[
        RetryRule(
            exception="asyncstageout.clients.errors.Transient",
            action=RetryAction.RETRY,
            retry_delay=timedelta(seconds=10),
            reason="FTS gave no answer; repeating a submission is safe",
        ),
        RetryRule(
            exception="psycopg.OperationalError",
            action=RetryAction.RETRY,
            retry_delay=timedelta(seconds=5),
            reason="the catalogue was not reachable",
        ),
        RetryRule(
            exception="asyncstageout.clients.credentials.model.CredentialProblem",
            action=RetryAction.FAIL,
            reason="the service has no credential; somebody must renew it",
        ),
        RetryRule(
            exception="asyncstageout.clients.errors.ServiceError",
            action=RetryAction.FAIL,
            reason="FTS refused us; the same request would be refused again",
        ),
    ]
)


def _only(description: str, **schema: str) -> Param:
    return Param(None, type=["null", "string"], description=description, section="Only these", **schema)


SITE_NAME = r"^T[0-3]_[A-Z]{2}_\w+$"

PARAMS = {
    "username": _only("Files of one user (CERN account).", title="User"),
    "task": _only("Files of one task (CRAB workflow name).", title="Task"),
    "source": _only("Files at one site, such as T2_IT_Bari.", pattern=SITE_NAME, title="Source"),
    "destination": _only("Files for one site, such as T2_CH_CERN.", pattern=SITE_NAME, title="Destination"),
    "created_from": Param(
        None,
        type=["null", "string"],
        format="date-time",
        section="Arrived in a window",
        description="Files that arrived at or after this time. With a window, FAILED files go again.",
        title="Arrived from",
    ),
    "created_to": Param(
        None,
        type=["null", "string"],
        format="date-time",
        section="Arrived in a window",
        description="Files that arrived before this time. Needed when the window has a start.",
        title="Arrived before",
    ),
    "limit": Param(
        20_000,
        type="integer",
        minimum=1,
        maximum=1_000_000,
        description="Files to take at most.",
        title="Files at most",
    ),
    "dry_run": Param(False, type="boolean", description="Only say what would be submitted.", title="Dry run"),
}


@dag(
    schedule=AssetOrTimeSchedule(
        timetable=CronTriggerTimetable("* * * * *", timezone="UTC", interval=timedelta(minutes=1)),
        assets=[PENDING],
    ),
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    # More than one, since Airflow may stall a DAG with a limit of one for 30 s; the catalogue keeps cycles apart.
    max_active_runs=3,
    params=PARAMS,
    tags=["stageout", "transfer"],
    default_args={
        "owner": "stageout-operators",
        "retries": 5,
        "retry_delay": timedelta(seconds=10),
        "retry_policy": RETRY_POLICY,
        "execution_timeout": timedelta(minutes=15),
        "on_failure_callback": task_failed,
    },
    deadline=deadline(minutes=30),
    doc_md=__doc__,
    dag_display_name="Stage-out: transfer",
)
def stageout_transfer() -> None:
    @task.short_circuit(ignore_downstream_trigger_rules=True)
    def collect() -> dict[str, Any]:
        from asyncstageout.provider import cycle

        return cycle.collect(get_current_context())

    @task
    def group() -> list[dict[str, Any]]:
        from asyncstageout.provider import cycle

        return cycle.group(get_current_context())

    @task(trigger_rule="none_failed", outlets=[FTS_JOBS])
    def summarise() -> dict[str, Any]:
        from asyncstageout.provider import cycle

        return cycle.summarise(get_current_context())

    planned = group()
    submit = SubmitFTSJobsOperator.partial(task_id="submit", map_index_template="{{ shard_label }}").expand(
        shard=planned
    )
    collect() >> planned
    submit >> summarise()


stageout_transfer()
