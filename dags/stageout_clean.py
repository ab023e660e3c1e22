"""
### Deletes the temporary copies of files that have ended, and shows what else lies in the temporary areas

| step | what it does |
|---|---|
| `look` | finds the sites with copies that are due, and shares them out over a few tasks. Nothing due: the rest is skipped |
| `delete` | at each of its sites: claims copies, looks at what lies there, deletes what is the copy that was moved, and writes down what became of it. A copy that is gone already is a success, a newer one stays |
| `summarise` | says what was deleted; red if a deletion was given up, or a storage has let nothing be deleted for a day |
| `sweep` | only when the form says so: walks the temporary area of a site and counts what no file of ours needs; deletes it only when told to |

**When.** A copy goes when its file is DONE and, where asked for, published (well or not); 7 days after it FAILED and a day after
it was KILLED, as it can be sent again until then. Policies say otherwise for sites, links, users and activities
(`clean`, `clean_waits_for_publication`, `clean_failed_after_h`, `clean_killed_after_h`, `deletes_per_s`).

**Runs** every 15 minutes, and deletes. A storage that does not answer is left alone for 15 minutes to 4 hours, and holds
nobody up; no try is used. What is refused is tried again with growing pauses, then given up, and tried every week.

**By hand.** *Trigger* is a dry run unless that is taken off: it says what would be deleted, and asks no storage. Policies are
asked anew for copies that wait for their time, and storages that are left alone are tried. With *sweep*, name a site.

**Clear and re-run** any task at any time: who claims a copy has it alone, and what was deleted is found gone.

**Red `summarise`?** Its last line names the sites and the first reason: runbooks/cleaning.md. `aso clean status` and
`aso clean failed` show all of it. **Red `look` or `delete`?** The connection `stageout_storage` is missing or wrong, or the
catalogue was not reachable. **Red `sweep`?** The site has no description, or its storage does not answer; it goes on where it
stopped when it is triggered again.
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

FOR_PEOPLE = {
    "asyncstageout.steps.clean_run.CleaningNeedsPeople": "trying again does not help; somebody must look",
    "asyncstageout.provider.storages.StorageConnectionMissing": "somebody must make the connection",
    "asyncstageout.core.temporary_names.NotTemporary": "the site's description must be mended",
}

RETRY_POLICY = ExceptionRetryPolicy(
    rules=[
        RetryRule(exception=exception, action=RetryAction.FAIL, reason=reason)
        for exception, reason in FOR_PEOPLE.items()
    ]
)

SWEEP = "Sweep"

PARAMS = {
    "site": Param(
        None, type=["null", "string"], description="Only at this site, such as T2_IT_Bari.", title="Site"
    ),
    "username": Param(None, type=["null", "string"], description="Only copies of this user.", title="User"),
    "limit": Param(
        100_000,
        type="integer",
        minimum=1,
        maximum=1_000_000,
        description="Copies to delete at most.",
        title="Copies at most",
    ),
    "dry_run": Param(
        True,
        type="boolean",
        description="Only say what would be deleted. Counts for runs by hand: those on time delete.",
        title="Dry run",
    ),
    "sweep": Param(
        False,
        type="boolean",
        section=SWEEP,
        description="Walk the temporary area of the site, and count orphans.",
        title="Sweep",
    ),
    "older_than_days": Param(
        30,
        type="integer",
        minimum=7,
        maximum=3650,
        section=SWEEP,
        description="A file that no file of ours needs is an orphan from this age on.",
        title="Age of orphans, in days",
    ),
    "requests": Param(
        2000,
        type="integer",
        minimum=1,
        maximum=100_000,
        section=SWEEP,
        description="Directories to look at in this run; the next one goes on from there.",
        title="Directories at most",
    ),
    "delete_orphans": Param(
        0,
        type="integer",
        minimum=0,
        maximum=100_000,
        section=SWEEP,
        description="So many orphans are deleted at most; 0: none. Only without a dry run.",
        title="Orphans to delete at most",
    ),
}


@dag(
    schedule=CronTriggerTimetable("*/15 * * * *", timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    # More than one, since Airflow may stall a DAG with a limit of one for 30 s; the catalogue keeps them apart.
    max_active_runs=2,
    params=PARAMS,
    tags=["stageout", "clean"],
    default_args={
        "owner": "stageout-operators",
        "retries": 3,
        "retry_delay": timedelta(seconds=30),
        "retry_policy": RETRY_POLICY,
        "execution_timeout": timedelta(minutes=30),
        "on_failure_callback": task_failed,
    },
    deadline=deadline(minutes=180),
    doc_md=__doc__,
    dag_display_name="Stage-out: clean",
)
def stageout_clean() -> None:
    @task.short_circuit(ignore_downstream_trigger_rules=True)
    def look() -> list[dict[str, Any]]:
        from asyncstageout.provider import clean_tasks

        return clean_tasks.look(get_current_context())

    @task(map_index_template="{{ sites }}", queue=SLOW)
    def delete(shard: dict[str, Any]) -> dict[str, Any]:
        from asyncstageout.provider import clean_tasks

        context = get_current_context()
        context["sites"] = shard["label"]
        return clean_tasks.delete(context, shard)

    @task(trigger_rule="all_done_min_one_success")
    def summarise() -> dict[str, Any]:
        from asyncstageout.provider import clean_tasks

        return clean_tasks.summarise(get_current_context())

    @task.short_circuit(queue=SLOW)
    def sweep() -> dict[str, Any]:
        from asyncstageout.provider import clean_tasks

        return clean_tasks.sweep(get_current_context())

    shards = look()
    delete.expand(shard=shards) >> summarise()
    sweep()


stageout_clean()
