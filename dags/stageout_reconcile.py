"""
### Finds what a death left behind, and puts it right: no file is without a next step for two minutes

| step | what it does |
|---|---|
| `check` | compares the catalogue with itself and with all FTS servers, and changes nothing. All well: the rest is skipped |
| `repair` | mends: what FTS has is noted, what FTS never got goes into the next cycle, files without a living job go on, wrong counts are corrected. Each file's move has an event that begins with "reconciled:" |
| `verdict` | looks once more; red only if something needs a person, with the runbook's name |

**Runs** every two minutes. A healthy system shows green `check` and two skipped tasks, and every count is zero.
Repairs that come again and again are a sign of something that dies again and again: see which steps failed.

**By hand.** *Trigger* with *dry run* says what would be mended.

**Clear and re-run** any task at any time; two at once mend nothing twice.

**Red `verdict`?** Its last line says what, and which runbook: jobs at FTS that nobody asks about, jobs that FTS does
not confirm, jobs at FTS that the catalogue does not know, files without a next step. **Red `check` or `repair`?**
The catalogue was not reachable; a silent FTS does not make them red. `aso audit` proves the catalogue as a whole.
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

from asyncstageout.provider.watched import deadline, task_failed

RETRY_POLICY = ExceptionRetryPolicy(
    rules=[
        RetryRule(
            exception="asyncstageout.steps.reconcile.NeedsAPerson",
            action=RetryAction.FAIL,
            reason="looking again does not help; the next run looks in two minutes",
        ),
    ]
)


@dag(
    schedule=CronTriggerTimetable("*/2 * * * *", timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    # More than one, since Airflow may stall a DAG with a limit of one for 30 s; the catalogue keeps them apart.
    max_active_runs=2,
    params={
        "dry_run": Param(False, type="boolean", description="Only say what would be mended.", title="Dry run")
    },
    tags=["stageout", "reconcile"],
    default_args={
        "owner": "stageout-operators",
        "retries": 3,
        "retry_delay": timedelta(seconds=10),
        "retry_policy": RETRY_POLICY,
        "execution_timeout": timedelta(minutes=15),
        "on_failure_callback": task_failed,
    },
    deadline=deadline(minutes=20),
    doc_md=__doc__,
    dag_display_name="Stage-out: reconcile",
)
def stageout_reconcile() -> None:
    @task.short_circuit
    def check() -> dict[str, Any]:
        from asyncstageout.provider import cycle

        return cycle.check(get_current_context())

    @task
    def repair() -> dict[str, Any]:
        from asyncstageout.provider import cycle

        return cycle.repair(get_current_context())

    @task
    def verdict() -> dict[str, Any]:
        from asyncstageout.provider import cycle

        return cycle.verdict(get_current_context())

    check() >> repair() >> verdict()


stageout_reconcile()
