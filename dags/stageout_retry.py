"""
### Sends files again that failed for good, or were killed: NEW, with all their attempts

| step | what it does |
|---|---|
| `select` | counts the files that the form means and says what would happen; on a dry run that is all |
| `approve` | only if more files than *approve above* would go: waits up to a day for a person to approve (*Required Actions*); rejected, nothing happens |
| `retry` | brings back what is in the history, and makes the files NEW; the next cycle of `stageout_transfer` takes them |

**Runs** only by hand. *Trigger* takes files by number, task, user, site or link, by the kind of their failure (docs/explanation/retries.md)
and by when they ended; all that is filled in holds together. Past files (finished rows leave the live table after a day, failed ones
after a month) count where numbers, a task or a start of the window are given. *Dry run* is on: look first, then trigger
again without it.

What is refused is told with its reason: another file is on its way to the same destination, or a later request has taken its place.

**Clear and re-run** any task at any time: a file that waits or travels is left alone.

**After an outage** a run of `stageout_transfer` with a window, or its backfill, does the same for files by when they *arrived*.

**Red `select`?** The text names the field of the form. **Red `retry`?** The catalogue was not reachable; clear it.
More ways, and re-injection by later retries of jobs: docs/how-to/retry.md.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import Param, dag, get_current_context, task

from asyncstageout.provider.forms import (
    HOW_THEY_ENDED,
    RETRY_POLICY,
    WHICH_FILES,
    WITH_CARE,
    ApproveFilesOperator,
)
from asyncstageout.provider.watched import task_failed

KILLED_TOO = Param(
    False, type="boolean", title="Killed ones too", description="Also files that somebody killed."
)


@dag(
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    # Many: a run may wait for an approval.
    max_active_runs=16,
    params=WHICH_FILES | HOW_THEY_ENDED | {"killed_too": KILLED_TOO} | WITH_CARE,
    tags=["stageout", "retry"],
    default_args={
        "owner": "stageout-operators",
        "retries": 3,
        "retry_delay": timedelta(seconds=10),
        "retry_policy": RETRY_POLICY,
        "execution_timeout": timedelta(minutes=15),
        "on_failure_callback": task_failed,
    },
    doc_md=__doc__,
    dag_display_name="Stage-out: retry",
)
def stageout_retry() -> None:
    @task.branch
    def select() -> str | None:
        from asyncstageout.provider import acting_tasks

        return acting_tasks.select_retries(get_current_context())

    approve = ApproveFilesOperator(task_id="approve", asker="select")

    @task(trigger_rule="none_failed_min_one_success")
    def retry() -> dict[str, Any]:
        from asyncstageout.provider import acting_tasks

        return acting_tasks.retry(get_current_context())

    sent = retry()
    select() >> [approve, sent]
    approve >> sent


stageout_retry()
