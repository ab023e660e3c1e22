"""
### Follows files in FTS: from "accepted" to DONE, RETRY or FAILED

| step | what it does |
|---|---|
| `sense` | watches every open FTS job at once, asking in bulk: young jobs every second, old ones every minute, and never FTS more than it stands. It lives in the triggerer and needs no worker |
| `update_catalogue` | looks once more, then applies what was learnt to the catalogue, thousands of files in a few statements; each change writes its event |

**Always on.** A run ends as soon as news were applied, and the next one starts at once; without news a run
lasts two minutes. Pausing this DAG stops nothing at FTS: files go on moving and are found when it runs again.

**What counts** is each file's own state in FTS, also while its job still runs. A failure is put into a
category; one that may pass is tried again later, with growing waits (see docs/explanation/retries.md).

**A job that FTS does not know** is looked for in its archive, and is lost only when it was missing twice, 10 s
apart. Is most of what was asked about missing at once, nothing is lost for ten minutes (FTS may have come up empty),
and the log and the step's sentence say so.

**Messages of FTS**, where a broker has them, shorten the way (docs/how-to/messages.md); polling stays the truth.

**Several FTS servers** are watched side by side (docs/how-to/fts-servers.md); each is asked for its version every
15 seconds, and one that does not answer gets no new jobs.

**Red `sense`?** The FTS server that is named gave no answer for two minutes and has files (runbooks/fts-server-down.md).
No file is lost, none uses an attempt; what other servers say is applied all the same.

**Clear and re-run** any task at any time: a report is applied once, late or repeated ones change nothing.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import dag, get_current_context, task

from asyncstageout.provider.assets import FILES
from asyncstageout.provider.sensors import OpenFTSJobsSensor
from asyncstageout.provider.watched import deadline, task_failed


@dag(
    # Airflow allows a continuous DAG one active run. It may stall such a DAG for up to 30 s once in some
    # hundred runs (docs/adr/0005-sensing.md); files are only noticed later then.
    schedule="@continuous",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    tags=["stageout", "sense"],
    default_args={
        "owner": "stageout-operators",
        "retries": 3,
        "retry_delay": timedelta(seconds=10),
        "on_failure_callback": task_failed,
    },
    deadline=deadline(minutes=20),
    doc_md=__doc__,
    dag_display_name="Stage-out: sense",
)
def stageout_sense() -> None:
    # A silent server makes `sense` red; what the other servers said is applied all the same.
    @task(execution_timeout=timedelta(minutes=15), trigger_rule="all_done", outlets=[FILES])
    def update_catalogue() -> dict[str, Any]:
        from asyncstageout.provider import cycle

        return cycle.update_catalogue(get_current_context())

    OpenFTSJobsSensor(task_id="sense") >> update_catalogue()


stageout_sense()
