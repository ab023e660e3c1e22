"""
### Publishes arrived files in DBS, each exactly once, and tells others what happened to files

| step | what it does |
|---|---|
| `assemble` | puts files that have arrived, with their metadata, into open blocks by task, dataset and site; closes blocks that are full, old enough, or whose task has ended; fails what can never be published, each with its reason |
| `publish` | tells DBS of closed blocks, in a few parallel shards named by their datasets. What is there already is looked up and counts; what is refused is searched for by halves, so that one bad file stops no other; input blocks are migrated first where the task wants its parents |
| `summarise` | says what was published; red if DBS refused something for good, or takes nothing for an hour |
| `list_subscribers` | beside those: who has something to hear now (docs/how-to/subscriptions.md) |
| `deliver` | tells each of them, at once and independent of the others, what waits for it: Rucio, CRAB, webhooks |

**Runs** every minute. With nothing due, the run ends after the first tasks. No file waits in a task: what DBS or a subscriber does not take
now is told again by a later run. What a run publishes is delivered by the next one.

**When is a block closed?** At 100 files, 100,000 lumi sections or 20 MB; when the task says that no more files come; 18,800 s after the
dataset's last block (the first one: after 10 minutes); after 3 days. The numbers belong to each DBS instance's connection
(docs/how-to/publication.md).

**By hand.** *Trigger* does what the next minute would do. `aso publication show TASK` says how far a task is and why not farther,
`aso publication complete TASK` closes its blocks, `aso publication retry TASK` publishes again what was given up.

**Clear and re-run** any task at any time: the name and list of a block are written before DBS hears of it, and DBS takes a
name, and a file, once.

**Red `publish`?** The instance does not let us in, or its connection is wrong: the last line of the log says which and what to do. **Red
`summarise`?** Its last line names blocks and reasons. See runbooks/publication.md. DBS being down makes nothing red for an
hour, and fails no file ever.

**Red `deliver`?** Its subscriber does not let us in or is gone, or messages are dead. See runbooks/dead-letters.md.
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

from asyncstageout.provider.assets import BLOCKS
from asyncstageout.provider.queues import SLOW
from asyncstageout.provider.watched import deadline, task_failed

FOR_PEOPLE = {
    "asyncstageout.steps.publish.PublishingStopped": "DBS does not let us in; the next run tries again",
    "asyncstageout.steps.publication_summary.PublicationNeedsPeople": "looking again does not help",
    "asyncstageout.steps.deliver.DeliveryNeedsAPerson": "the rest was told; a later run tries again",
}

RETRY_POLICY = ExceptionRetryPolicy(
    rules=[
        RetryRule(exception=exception, action=RetryAction.FAIL, reason=reason)
        for exception, reason in FOR_PEOPLE.items()
    ]
)


@dag(
    schedule=CronTriggerTimetable("* * * * *", timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    # More than one, since Airflow may stall a DAG with a limit of one for 30 s; the catalogue keeps runs apart.
    max_active_runs=2,
    tags=["stageout", "publish"],
    default_args={
        "owner": "stageout-operators",
        "retries": 3,
        "retry_delay": timedelta(seconds=10),
        "retry_policy": RETRY_POLICY,
        "execution_timeout": timedelta(minutes=30),
        "on_failure_callback": task_failed,
    },
    deadline=deadline(minutes=60),
    doc_md=__doc__,
    dag_display_name="Stage-out: publish",
)
def stageout_publish() -> None:
    @task
    def assemble() -> list[dict[str, Any]]:
        from asyncstageout.provider import publication

        return publication.assemble(get_current_context())

    @task(map_index_template="{{ shard_label }}", queue=SLOW)
    def publish(shard: dict[str, Any]) -> dict[str, Any]:
        from asyncstageout.provider import publication

        context = get_current_context()
        context["shard_label"] = shard["label"]
        return publication.publish(context, shard)

    # Skipped with all before it, where nothing was due.
    @task(trigger_rule="all_done_min_one_success", outlets=[BLOCKS])
    def summarise() -> dict[str, Any]:
        from asyncstageout.provider import publication

        return publication.summarise(get_current_context())

    @task
    def list_subscribers() -> list[str]:
        from asyncstageout.provider import outbox

        return outbox.list_due(get_current_context())

    @task(map_index_template="{{ subscriber }}", queue=SLOW)
    def deliver(subscription: str) -> dict[str, Any]:
        from asyncstageout.provider import outbox

        context = get_current_context()
        context["subscriber"] = subscription
        return outbox.deliver(context, subscription)

    publish.expand(shard=assemble()) >> summarise()
    deliver.expand(subscription=list_subscribers())


stageout_publish()
