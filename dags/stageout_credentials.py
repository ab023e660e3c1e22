"""
### Keeps users' credentials good, and says in time whose are not

| step | what it does |
|---|---|
| `renew` | for everybody with files: gets anew what ends within two days, gives FTS a new proxy where less than a day is left, holds back who has nothing usable, lets go who has it again |
| `verdict` | red if somebody with files has no credential, or one that ends within a day and could not be renewed |

**Runs** every half hour. Only those are looked at whose files travel in their own name (the policy says
`credential: user`), and the service itself. Where nobody's do, it says so and is done at once.

**By hand.** *Trigger* after somebody has renewed his proxy: his files go within seconds, not within half an hour.

**Clear and re-run** any task at any time.

**Red `verdict`?** Its last line says who (20 names at most; `aso credentials` lists all), why, and how many files
wait: runbooks/credentials.md. Files wait without using an attempt; nobody else's do.
**Red `renew`?** The catalogue was not reachable, or the connection `stageout_credentials` is incomplete. A user
without a credential, a silent FTS or a silent MyProxy do not make it red.
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
            exception="asyncstageout.steps.credentials.CredentialsNeeded",
            action=RetryAction.FAIL,
            reason="only their owners can mend it; the next run looks in half an hour",
        ),
    ]
)


@dag(
    schedule=CronTriggerTimetable("*/30 * * * *", timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=2,
    tags=["stageout", "credentials"],
    default_args={
        "owner": "stageout-operators",
        "retries": 3,
        "retry_delay": timedelta(seconds=30),
        "retry_policy": RETRY_POLICY,
        "execution_timeout": timedelta(minutes=25),
        "on_failure_callback": task_failed,
    },
    deadline=deadline(minutes=60),
    doc_md=__doc__,
    dag_display_name="Stage-out: credentials",
)
def stageout_credentials() -> None:
    @task
    def renew() -> dict[str, Any]:
        from asyncstageout.provider import credential_tasks

        return credential_tasks.renew(get_current_context())

    @task
    def verdict() -> dict[str, Any]:
        from asyncstageout.provider import credential_tasks

        return credential_tasks.verdict(get_current_context())

    renew() >> verdict()


stageout_credentials()
