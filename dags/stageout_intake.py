"""
### Collects requests from where they wait: objects in an inbox, CRAB's REST, a database

| step | what it does |
|---|---|
| `list_sources` | reads the Airflow variable `stageout_sources`; without it the run ends here, green |
| `collect` | once for each source: takes in what it offers, 10,000 records at a time, marks what is consumed, puts aside what is wrong. A request that is known already changes nothing |
| `summarise` | says what came in; red if a source was not read, or something was refused or is broken |

**Runs** every 5 minutes. Files that came in ring `stageout_transfer` at once. What was not consumed before is found
whatever its age; a source that only knows times is read from where the last run ended.

**By hand.** *Trigger* takes one source, an earlier start for sources with times, and a dry run that says what would come
in and what would be refused. Nothing is written or moved by a dry run.

**Backfill** reads each interval again from sources with times (`query`), and whatever waits from the others. Nothing is
added twice.

**Clear and re-run** any task at any time.

**Red `summarise`?** Its last line names the source, the object and the first reason; all that is good was taken in. See
runbooks/intake.md. **Red `collect`?** That source could not be read, the others went on. **Red `list_sources`?** The
variable is wrong, and the text says which entry and field (docs/how-to/intake.md).
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
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

from asyncstageout.provider.watched import deadline, task_failed

FOR_PEOPLE = {
    "asyncstageout.steps.intake.IntakeNeedsPeople": "somebody must look at what was refused",
    "asyncstageout.provider.sources.SourcesInvalid": "the list of sources is wrong and stays so",
    "asyncstageout.provider.sources.UnknownSource": "there is no such source",
}

RETRY_POLICY = ExceptionRetryPolicy(
    rules=[
        RetryRule(exception=exception, action=RetryAction.FAIL, reason=reason)
        for exception, reason in FOR_PEOPLE.items()
    ]
)

PARAMS = {
    "source": Param(
        None,
        type=["null", "string"],
        description="Only this source, by its name in `stageout_sources`.",
        title="Source",
    ),
    "since": Param(
        None,
        type=["null", "string"],
        format="date-time",
        description="Look back to this time, for sources with times.",
        title="Since",
    ),
    "dry_run": Param(False, type="boolean", description="Only say what would come in.", title="Dry run"),
}


@dag(
    schedule=CronDataIntervalTimetable("*/5 * * * *", timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    # More than one, since Airflow may stall a DAG with a limit of one for 30 s; taking in twice adds nothing twice.
    max_active_runs=2,
    params=PARAMS,
    tags=["stageout", "intake"],
    default_args={
        "owner": "stageout-operators",
        "retries": 3,
        "retry_delay": timedelta(seconds=20),
        "retry_policy": RETRY_POLICY,
        "execution_timeout": timedelta(hours=1),
        "on_failure_callback": task_failed,
    },
    deadline=deadline(minutes=60),
    doc_md=__doc__,
    dag_display_name="Stage-out: intake",
)
def stageout_intake() -> None:
    @task.short_circuit(ignore_downstream_trigger_rules=True)
    def list_sources() -> list[str]:
        from asyncstageout.provider import intake

        return intake.list_sources(get_current_context())

    @task(map_index_template="{{ source }}")
    def collect(source: str) -> dict[str, Any]:
        from asyncstageout.provider import intake

        context = get_current_context()
        context["source"] = source
        return intake.collect(context, source)

    @task(trigger_rule="all_done_min_one_success")
    def summarise(sources: list[str]) -> dict[str, Any]:
        from asyncstageout.provider import intake

        return intake.summarise(get_current_context(), sources)

    sources = list_sources()
    collect.expand(source=sources) >> summarise(sources)


stageout_intake()
