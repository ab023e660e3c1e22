"""Every DAG parses, and has what an operator expects of a DAG of this house."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import DAG
from airflow.serialization.serialized_objects import DagSerialization

from asyncstageout.catalogue.cycles import CycleParams
from asyncstageout.provider.watched import task_failed

DAGS = Path(__file__).parents[2] / "dags"
EXPECTED = {
    "stageout_alerts": ["watch"],
    "stageout_transfer": ["collect", "group", "submit", "summarise"],
    "stageout_sense": ["sense", "update_catalogue"],
    "stageout_reconcile": ["check", "repair", "verdict"],
    "stageout_intake": ["collect", "list_sources", "summarise"],
    "stageout_publish": ["assemble", "deliver", "list_subscribers", "publish", "summarise"],
    "stageout_sites": ["load", "verdict"],
    "stageout_credentials": ["renew", "verdict"],
    "stageout_clean": ["delete", "look", "summarise", "sweep"],
    "stageout_kill": ["approve", "cancel", "confirm", "kill", "select"],
    "stageout_retry": ["approve", "retry", "select"],
    "stageout_statistics": ["clean_airflow", "export", "partitions", "prune", "roll_up", "summarise"],
}


@pytest.fixture(scope="module")
def dags() -> dict[str, DAG]:
    bag = DagBag(dag_folder=str(DAGS))
    assert bag.import_errors == {}
    return dict(bag.dags)


def test_the_bag_is_what_we_think(dags: dict[str, DAG]) -> None:
    assert {name: sorted(dag.task_ids) for name, dag in dags.items()} == EXPECTED


def test_no_file_is_left_out(dags: dict[str, DAG]) -> None:
    assert {path.stem for path in DAGS.glob("*.py")} == set(dags)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_dag_is_an_operators_manual(dags: dict[str, DAG], name: str) -> None:
    dag = dags[name]
    assert dag.doc_md
    for task_id in dag.task_ids:
        assert f"`{task_id}`" in dag.doc_md, f"the manual does not explain {task_id}"
    assert "Red" in dag.doc_md, "the manual does not say what to do when it is red"
    assert "stageout" in dag.tags
    assert dag.catchup is False
    assert dag.dag_display_name.startswith("Stage-out")
    for task in dag.tasks:
        assert task.owner == "stageout-operators"
        assert task.retries >= 3
    assert sum(1 for _ in (DAGS / f"{name}.py").open()) <= 200, "a DAG file is an outline"


@pytest.mark.parametrize("name", EXPECTED)
def test_every_form_is_typed_and_explained(dags: dict[str, DAG], name: str) -> None:
    params = dags[name].params
    for field in params:
        param = params.get_param(field)
        assert param.description, field
        assert param.schema["title"], field
        assert "type" in param.schema, field
        param.resolve()  # the form can be sent as it is
    assert "dry_run" in params or not params


def test_the_catalogue_is_named_by_assets(dags: dict[str, DAG]) -> None:
    """Each event of them says what the run did."""
    made = {
        asset.name: (name, task.task_id)
        for name, dag in dags.items()
        for task in dag.tasks
        for asset in task.outlets
    }
    assert made == {
        "stageout_fts_jobs": ("stageout_transfer", "summarise"),
        "stageout_files": ("stageout_sense", "update_catalogue"),
        "stageout_blocks": ("stageout_publish", "summarise"),
    }


def test_airflow_calls_back_when_a_task_of_any_dag_fails(dags: dict[str, DAG]) -> None:
    for dag in dags.values():
        for one in dag.tasks:
            # Of a mapped task it is as it was given.
            assert one.on_failure_callback in (task_failed, [task_failed]), one


def test_every_run_has_a_deadline_unless_it_waits_for_people(dags: dict[str, DAG]) -> None:
    without = {name for name, dag in dags.items() if not dag.deadline}
    assert without == {"stageout_kill", "stageout_retry"}
    for name in dags.keys() - without:
        (alert,) = dags[name].deadline
        assert alert.callback.path == "asyncstageout.provider.watched.run_is_late"
        longest = max(
            (one.execution_timeout for one in dags[name].tasks if one.execution_timeout), default=None
        )
        assert longest is None or alert.interval >= longest, name


def test_a_dag_survives_serialization_with_its_deadline(dags: dict[str, DAG]) -> None:
    for name, dag in dags.items():
        kept = DagSerialization.from_dict(DagSerialization.to_dict(dag))
        assert bool(kept.deadline) == bool(dag.deadline), name
        assert all(one.has_on_failure_callback for one in kept.tasks)


def test_the_form_is_what_a_cycle_takes(dags: dict[str, DAG]) -> None:
    assert set(dags["stageout_transfer"].params) == set(CycleParams.model_fields)


def test_more_than_one_cycle_may_run(dags: dict[str, DAG]) -> None:
    """Airflow can stall a DAG with a limit of one for half a minute."""
    assert dags["stageout_transfer"].max_active_runs == 3


QUEUES = """
import json, sys
from airflow.dag_processing.dagbag import DagBag
dags = DagBag(dag_folder=sys.argv[1]).dags
print(json.dumps({f"{name}.{task.task_id}": task.queue for name, dag in dags.items() for task in dag.tasks}))
"""
SLOW = {
    "stageout_clean.delete", "stageout_clean.sweep", "stageout_publish.publish", "stageout_publish.deliver",
    "stageout_sites.load",
}  # fmt: skip


def test_all_tasks_wait_in_one_queue_as_long_as_nobody_says_otherwise(dags: dict[str, DAG]) -> None:
    assert {task.queue for dag in dags.values() for task in dag.tasks} == {"default"}


def test_slow_tasks_have_a_queue_of_their_own_where_it_is_set() -> None:
    done = subprocess.run(
        [sys.executable, "-c", QUEUES, str(DAGS)],
        env=os.environ | {"AIRFLOW__STAGEOUT__SLOW_QUEUE": "slow"},
        capture_output=True,
        text=True,
        check=True,
    )
    queues: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    assert set(queues.values()) == {"default", "slow"}
    slow = {name for name, queue in queues.items() if queue == "slow"}
    assert slow == SLOW | {name for name in queues if name.startswith("stageout_statistics.")}


def test_shards_are_labelled(dags: dict[str, DAG]) -> None:
    assert dags["stageout_transfer"].get_task("submit").map_index_template == "{{ shard_label }}"


def test_dag_files_do_nothing_heavy_when_they_are_parsed() -> None:
    """They are parsed again and again: no network, no database, no client at import."""
    for path in DAGS.glob("*.py"):
        tree = ast.parse(path.read_text())
        names = {
            node.module if isinstance(node, ast.ImportFrom) else alias.name
            for node in tree.body
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        assert not {name for name in names if name and name.split(".")[0] in ("psycopg", "requests")}, path


def test_dags_do_not_import_each_other() -> None:
    for path in DAGS.glob("*.py"):
        others = {other.stem for other in DAGS.glob("*.py")} - {path.stem}
        text = path.read_text()
        assert not any(f"import {other}" in text or f"from {other}" in text for other in others)


def test_importing_the_package_does_not_read_airflows_configuration() -> None:
    """The CLI answers --help quickly: nothing below provider imports Airflow."""
    code = (
        "import sys, asyncstageout.steps.submit, asyncstageout.steps.sense, asyncstageout.catalogue.intake;"
        "sys.exit('airflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
