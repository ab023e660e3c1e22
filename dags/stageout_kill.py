"""
### Stops files: those that a form names, and at FTS what people have killed in whatever way

| step | what it does |
|---|---|
| `select` | after a form: counts the files that it means and says what would happen; on a dry run that is all. Without one: looks whether FTS is to stop anything, else the rest is skipped |
| `approve` | only if more files than *approve above* would be hit: waits up to a day for a person to approve (*Required Actions*); rejected, nothing happens |
| `kill` | what waits is KILLED; what FTS may have is KILL from now on |
| `cancel` | tells the FTS servers to stop it: whole jobs where no other file is in them, else file by file. What FTS never heard of is KILLED here |
| `confirm` | waits until those files have ended, and says how many were killed, for how many it was too late (they are DONE), and what is still open. It lives in the triggerer |

**Runs** when somebody kills files over the API or with `aso kill` (a doorbell on the catalogue), and every ten minutes in
any case. Such a run goes straight to `cancel`; mostly there is nothing to stop, and everything is skipped.

**By hand.** *Trigger* takes files by number, task, user, site or link; all that is filled in holds together. *Dry run* is on: look
first, then trigger again without it. With an empty form FTS is told at once what is to stop already.

**Clear and re-run** any task at any time: who is killed stays so, and telling FTS twice does no harm.

**Too late?** FTS says CANCELED at once, though a copy may run on for some seconds. What counts is what FTS says of each file
afterwards: a file that had arrived is DONE, and its history says that the kill came too late.

**Red `cancel`?** The last line of its log says which FTS server did not take it; the others did. The next run tells it again. **Red
`confirm`?** Files have not ended ten minutes after FTS was told: runbooks/kills-that-hang.md. **Red `select`?** The text names the
field of the form. More ways, and what each outcome means: docs/how-to/kill.md.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import (
    Asset,
    AssetOrTimeSchedule,
    AssetWatcher,
    CronTriggerTimetable,
    dag,
    get_current_context,
    task,
)

from asyncstageout.provider.forms import RETRY_POLICY, WHICH_FILES, WITH_CARE, ApproveFilesOperator
from asyncstageout.provider.kill_triggers import KillsTrigger
from asyncstageout.provider.sensors import KilledFilesSensor
from asyncstageout.provider.watched import task_failed

KILLS = Asset(
    name="stageout_kills",
    uri="x-stageout://catalogue/kills",
    group="stageout",
    watchers=[AssetWatcher(name="stageout_kill_bell", trigger=KillsTrigger("stageout_db", quiet_s=1.0))],
)


@dag(
    schedule=AssetOrTimeSchedule(
        timetable=CronTriggerTimetable("*/10 * * * *", timezone="UTC"), assets=[KILLS]
    ),
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    # Many: a run that waits for an approval must not keep others from telling FTS.
    max_active_runs=16,
    params=WHICH_FILES | WITH_CARE,
    tags=["stageout", "kill"],
    default_args={
        "owner": "stageout-operators",
        "retries": 3,
        "retry_delay": timedelta(seconds=10),
        "retry_policy": RETRY_POLICY,
        "execution_timeout": timedelta(minutes=15),
        "on_failure_callback": task_failed,
    },
    doc_md=__doc__,
    dag_display_name="Stage-out: kill",
)
def stageout_kill() -> None:
    @task.branch
    def select() -> str | None:
        from asyncstageout.provider import acting_tasks

        return acting_tasks.select_kills(get_current_context())

    approve = ApproveFilesOperator(task_id="approve", asker="select")

    @task(trigger_rule="none_failed_min_one_success")
    def kill() -> dict[str, Any]:
        from asyncstageout.provider import acting_tasks

        return acting_tasks.kill(get_current_context())

    @task.short_circuit(trigger_rule="none_failed_min_one_success")
    def cancel() -> dict[str, Any]:
        from asyncstageout.provider import acting_tasks

        return acting_tasks.cancel(get_current_context())

    selected, killed, cancelled = select(), kill(), cancel()
    selected >> [approve, killed, cancelled]
    approve >> killed >> cancelled >> KilledFilesSensor(task_id="confirm")


stageout_kill()
