"""``stageout_clean``: its form, and its tasks against a real catalogue and real sites."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import DAG, CronTriggerTimetable
from psycopg import Connection

from asyncstageout.core.states import TransferState
from asyncstageout.provider import clean_tasks
from asyncstageout.provider.storages import StorageConnectionMissing
from asyncstageout.sandbox.faults import FaultPlan, SiteFault
from asyncstageout.steps.clean_run import CleaningNeedsPeople
from fixtures.catalogue import record
from fixtures.cleaning import Temp, queue

FILE = Path(__file__).parents[2] / "dags" / "stageout_clean.py"
BARI = "T2_IT_Bari"


@pytest.fixture(scope="module")
def dag() -> DAG:
    bag = DagBag(dag_folder=str(FILE))
    assert bag.import_errors == {}
    return bag.dags["stageout_clean"]


def test_it_runs_on_time_and_names_its_runbook(dag: DAG) -> None:
    assert isinstance(dag.timetable, CronTriggerTimetable)
    assert dag.max_active_runs == 2
    for name in ("runbooks/cleaning.md",):
        assert name in (dag.doc_md or "")
        assert (FILE.parents[1] / name).is_file()


def test_the_form_begins_as_a_dry_run(dag: DAG) -> None:
    for name in dag.params:
        param = dag.params.get_param(name)
        assert param.description
        assert "type" in param.schema
    assert {name: dag.params[name] for name in ("dry_run", "sweep", "delete_orphans", "older_than_days")} == {
        "dry_run": True, "sweep": False, "delete_orphans": 0, "older_than_days": 30,
    }  # fmt: skip


def test_one_mapped_task_for_each_share_and_the_verdict_comes_in_any_case(dag: DAG) -> None:
    delete = dag.get_task("delete")
    assert delete.is_mapped
    assert delete.upstream_task_ids == {"look"}
    assert dag.get_task("summarise").upstream_task_ids == {"delete"}
    assert dag.get_task("summarise").trigger_rule == "all_done_min_one_success"
    assert dag.get_task("sweep").upstream_task_ids == set()


def test_what_a_person_must_see_is_not_tried_again(dag: DAG) -> None:
    policy = dag.get_task("summarise").retry_policy
    assert policy is not None
    names = {
        f"{error.__module__}.{error.__name__}" for error in (CleaningNeedsPeople, StorageConnectionMissing)
    }
    assert names < {rule.exception for rule in policy.rules}


@pytest.fixture
def in_task(temp: Temp, catalogue_url: str, monkeypatch: pytest.MonkeyPatch) -> Temp:
    monkeypatch.setenv("AIRFLOW_CONN_STAGEOUT_DB", catalogue_url)
    extra = {"ca_file": temp.deleting.ca, "connect_to": {"*.sandbox.test": temp.sites.address}}
    connection = json.dumps({"conn_type": "stageout_storage", "extra": extra})
    monkeypatch.setenv("AIRFLOW_CONN_STAGEOUT_STORAGE", connection)
    return temp


def context(
    task_id: str, *, run: str = "r", run_type: str = "scheduled", map_index: int = -1, **params: Any
) -> dict[str, Any]:
    ti = SimpleNamespace(
        dag_id="stageout_clean", run_id=run, task_id=task_id, map_index=map_index, try_number=1
    )
    form = {
        "site": None, "username": None, "limit": 100, "dry_run": True, "sweep": False, "older_than_days": 30,
        "requests": 100, "delete_orphans": 0,
    }  # fmt: skip
    return {"ti": ti, "dag_run": SimpleNamespace(run_type=run_type), "params": form | params}


def run(temp: Temp, name: str = "r", **options: Any) -> list[dict[str, Any]]:
    """Run the DAG as Airflow does; return what its tasks said, the summary last."""
    shards = clean_tasks.look(context("look", run=name, **options))
    said = [
        clean_tasks.delete(context("delete", run=name, map_index=place, **options), shard)
        for place, shard in enumerate(shards)
    ]
    return [*said, clean_tasks.summarise(context("summarise", run=name, **options))] if shards else []


def test_a_run_on_time_deletes_whatever_the_form_says(in_task: Temp) -> None:
    assert run(in_task, "idle") == []
    paths = in_task.finished(record(1), record(2, source="T1_DE_KIT"))
    *_, summary = run(in_task)
    assert summary["sentence"] == "Deleted 2 temporary copies, 2.0 kB"
    assert not any(path.exists() for path in paths)
    steps = in_task.conn.execute(
        "SELECT task_id, outcome FROM step_run WHERE run_id = 'r' ORDER BY id"
    ).fetchall()
    assert steps == [("look", "success"), ("delete", "success"), ("summarise", "success")]


def test_a_run_by_hand_only_says_what_it_would_do_until_told_otherwise(in_task: Temp) -> None:
    (path,) = in_task.finished(record(1))
    in_task.finished(record(2), state=TransferState.FAILED)
    before = queue(in_task.conn)
    said, _ = run(in_task, run_type="manual")
    assert said["sentence"] == "Would delete 1 temporary copies, 1.0 kB, at 1 sites; 1 must wait longer"
    assert (path.exists(), queue(in_task.conn)) == (True, before)
    run(in_task, "real", run_type="manual", dry_run=False, site="T1_DE_KIT")
    assert path.exists()
    run(in_task, "real", run_type="manual", dry_run=False, site=BARI, username="bob")
    assert path.exists()
    run(in_task, "real", run_type="manual", dry_run=False, site=BARI, username="alice")
    assert not path.exists()


def test_it_is_red_once_for_what_was_given_up(in_task: Temp, conn: Connection) -> None:
    in_task.finished(record(1))
    in_task.sites.storage.faults.replace(FaultPlan(sites=(SiteFault(method="DELETE", status=405),)))
    for number in range(2):
        run(in_task, f"r{number}")
        in_task.make_due()
    with pytest.raises(
        CleaningNeedsPeople, match=rf"runbooks/cleaning\.md.*{BARI}: 1 given up, such as.*405"
    ):
        run(in_task, "r3")
    in_task.make_due()
    assert run(in_task, "r4")[-1]["failed"] == 1, "tried again, given up again, and said before"
    in_task.sites.storage.faults.replace(FaultPlan())
    in_task.make_due()
    assert run(in_task, "r5")[-1]["deleted"] == 1


def test_it_is_red_once_a_day_for_a_storage_that_does_not_answer(in_task: Temp, conn: Connection) -> None:
    in_task.finished(record(1))
    in_task.finished(record(2, source="T1_DE_KIT"))
    in_task.sites.storage.faults.replace(FaultPlan(sites=(SiteFault(site=BARI, status=0),)))
    summary = run(in_task, "r1")[-1]["sentence"]
    assert summary == f"Deleted 1 temporary copies, 1.0 kB; 1 are tried again; left alone: {BARI}"
    assert run(in_task, "r2") == [], "it is left alone"
    for day, is_red in ((0.9, False), (1.1, True), (1.2, False), (2.1, True)):
        since = datetime.now(UTC) - timedelta(days=day)
        conn.execute("UPDATE cleaning_site SET failing_since = %s WHERE failing_since IS NOT NULL", (since,))
        conn.execute(
            "UPDATE step_run SET started_at = %s WHERE task_id = 'summarise'",
            (since + timedelta(days=day - 0.15),),
        )
        in_task.make_due()
        if is_red:
            with pytest.raises(CleaningNeedsPeople, match=f"{BARI} since .*: t2-it-bari"):
                run(in_task, f"r{day}")
        else:
            run(in_task, f"r{day}")


def test_without_a_connection_it_is_red_when_there_is_something_to_do(
    in_task: Temp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AIRFLOW_CONN_STAGEOUT_STORAGE")
    assert run(in_task) == []
    in_task.finished(record(1))
    with pytest.raises(StorageConnectionMissing):
        run(in_task)


def test_a_sweep_is_run_when_the_form_wants_one(in_task: Temp) -> None:
    path = in_task.put(record(1), age=timedelta(days=40))
    assert clean_tasks.sweep(context("sweep")) == {}
    with pytest.raises(ValueError, match="name the site"):
        clean_tasks.sweep(context("sweep", run_type="manual", sweep=True))
    wanted = {"run_type": "manual", "sweep": True, "site": BARI, "delete_orphans": 5}
    assert clean_tasks.sweep(context("sweep", **wanted))["orphans"] == 1
    assert path.exists(), "a dry run"
    assert clean_tasks.sweep(context("sweep", **wanted, dry_run=False))["deleted"] == 1
    assert not path.exists()
