"""
### Looks what needs a person, and tells people: once, and only of what does not heal by itself

| step | what it does |
|---|---|
| `watch` | asks the catalogue every question of the rules; puts together what belongs together; opens, keeps and ends alerts; sends what channels have to hear (mail, chat, webhooks) |

**Runs** every two minutes, whatever else stands still: it needs the catalogue, a worker, and nothing else. If the catalogue is silent for four
minutes, channels are told without it. If Airflow itself stands still nobody is told from here: Prometheus does that (docs/how-to/alerts.md).

**Who is told of what?** The Airflow Variable `stageout_alert_channels` says it. The rules: docs/reference/alerts.md, `aso alerts rules`. Alerts
and silences: page *Alerts* of the Stage-out room, `aso alerts`.

**By hand.** *Trigger* looks now. `aso alerts test` sends a message through every channel.

**Clear and re-run** at any time: what was told is on record. A death between sending and recording sends once more.

**Red `watch`?** Its last line names the channel and what is wrong with it (runbooks/undelivered-alerts.md); all others were told. Or the catalogue
does not answer (runbooks/catalogue-silent.md).
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import (
    CronTriggerTimetable,
    ExceptionRetryPolicy,
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
            exception="asyncstageout.steps.alerts.ChannelsNeedAPerson",
            action=RetryAction.FAIL,
            reason="the next run tries again",
        ),
    ]
)


@dag(
    schedule=CronTriggerTimetable("*/2 * * * *", timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    # More than one, since Airflow may stall a DAG with a limit of one for 30 s; the catalogue keeps runs apart.
    max_active_runs=2,
    tags=["stageout", "alerts"],
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
    dag_display_name="Stage-out: alerts",
)
def stageout_alerts() -> None:
    @task
    def watch() -> dict[str, Any]:
        from asyncstageout.provider import alerting

        return alerting.watch(get_current_context())

    watch()


stageout_alerts()
