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

from asyncstageout.catalogue.cycles import CycleParams

DAGS = Path(__file__).parents[2] / "dags"
EXPECTED = {
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


def test_the_form_is_typed_and_explained(dags: dict[str, DAG]) -> None:
    params = dags["stageout_transfer"].params
    assert set(params) == {
        "username", "task", "source", "destination", "created_from", "created_to", "limit", "dry_run",
    }  # fmt: skip
    for name in params:
        param = params.get_param(name)
        assert param.description, name
        assert "type" in param.schema, name
    assert params["dry_run"] is False


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
