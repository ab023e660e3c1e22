"""stageout_statistics: its outline, its form, and a run as Airflow makes it."""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import DAG, Connection, CronDataIntervalTimetable
from psycopg import Connection as Catalogue
from sqlalchemy.engine import make_url

from asyncstageout.catalogue.retention import set_retention
from asyncstageout.provider import airflow_cleaning, statistics
from asyncstageout.provider.airflow_cleaning import CleaningFailed, clean_before, environment_for
from fixtures.catalogue import Add, record
from fixtures.past import happened_at

FILE = Path(__file__).parents[2] / "dags" / "stageout_statistics.py"
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture(scope="module")
def dag() -> DAG:
    bag = DagBag(dag_folder=str(FILE))
    assert bag.import_errors == {}
    return bag.dags["stageout_statistics"]


def test_a_run_has_an_hour_and_can_be_backfilled(dag: DAG) -> None:
    assert isinstance(dag.timetable, CronDataIntervalTimetable)
    assert dag.timetable.expression == "0 * * * *"
    assert dag.catchup is False


def test_a_step_goes_on_without_the_one_before_and_all_decide_on_the_colour(dag: DAG) -> None:
    order = ["roll_up", "export", "partitions", "prune", "clean_airflow"]
    for before, name in pairwise(order):
        assert before in dag.get_task(name).upstream_task_ids
    assert {dag.get_task(name).trigger_rule for name in order[2:]} == {"all_done"}
    assert dag.get_task("summarise").upstream_task_ids == set(order)
    assert dag.get_task("summarise").trigger_rule == "none_failed"


def test_the_form_is_typed_and_explained(dag: DAG) -> None:
    assert set(dag.params) == {"from", "to", "dry_run", "clean_airflow"}
    for name in dag.params:
        param = dag.params.get_param(name)
        assert param.description
        assert "type" in param.schema


def test_the_manual_names_what_there_is(dag: DAG) -> None:
    assert dag.doc_md
    for name in ("runbooks/retention.md", "docs/how-to/backfill.md"):
        assert name in dag.doc_md
        assert (FILE.parents[1] / name).is_file()


def test_what_a_person_must_see_is_not_tried_again(dag: DAG) -> None:
    policy = dag.get_task("summarise").retry_policy
    assert policy is not None
    for rule in policy.rules:
        module, _, name = str(rule.exception).rpartition(".")
        assert issubclass(getattr(__import__(module, fromlist=[name]), name), Exception)


@pytest.fixture
def in_task(conn: Catalogue, catalogue_url: str, monkeypatch: pytest.MonkeyPatch) -> Catalogue:
    monkeypatch.setenv("AIRFLOW_CONN_STAGEOUT_DB", catalogue_url)
    return conn


class TaskInstance(SimpleNamespace):
    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed = {key: value}


def context(task_id: str, run_type: str = "scheduled", **params: Any) -> dict[str, Any]:
    ti = TaskInstance(dag_id="stageout_statistics", run_id="r", task_id=task_id, map_index=-1, try_number=1)
    dag_run = SimpleNamespace(run_type=run_type, data_interval_start=NOON, data_interval_end=NOON + HOUR)
    return {
        "ti": ti, "dag_run": dag_run,
        "params": {"from": None, "to": None, "dry_run": False, "clean_airflow": False} | params,
    }  # fmt: skip


def test_a_run_as_airflow_makes_it(in_task: Catalogue, add: Add, tmp_path: Path) -> None:
    add(record(1), record(2))
    happened_at(in_task, NOON)
    set_retention(in_task, {"export_to": str(tmp_path)}, "maria")
    assert statistics.roll_up(context("roll_up"))["sentence"] == "Counted 1 hour: 2 events"
    assert statistics.export(context("export"))["days"] == 1
    assert statistics.partitions(context("partitions"))["made"] > 0
    assert statistics.partitions(context("partitions", dry_run=True))["sentence"].startswith("Would drop")
    assert statistics.prune(context("prune"))["sentence"] == "Deleted nothing"
    assert statistics.prune(context("prune", dry_run=True))["sentence"] == "Nothing is deleted by a dry run"
    assert "by the run of 04:00" in statistics.clean_airflow(context("clean_airflow"))["sentence"]
    assert statistics.summarise(context("summarise"))["arrived"] == 2
    steps = in_task.execute(
        "SELECT task_id, outcome FROM step_run WHERE dag_id = 'stageout_statistics'"
    ).fetchall()
    assert {outcome for _, outcome in steps} == {"success"}
    assert {name for name, _ in steps} == {
        "roll_up",
        "export",
        "partitions",
        "prune",
        "clean_airflow",
        "summarise",
    }


def test_a_backfill_counts_and_does_nothing_else(in_task: Catalogue, add: Add) -> None:
    add(record(1))
    happened_at(in_task, NOON)
    its = context("roll_up", "backfill")
    assert statistics.roll_up(its) == {}, "the rest is skipped"
    assert its["ti"].pushed["summary"]["events"] == 1


def test_the_hours_are_those_of_the_form_of_the_run_or_the_last() -> None:
    assert statistics.interval_of(context("roll_up")) == (NOON, NOON + HOUR)
    form = context("roll_up", **{"from": "2026-11-01T00:00:00Z", "to": "2026-11-02T00:00:00Z"})
    assert [at.day for at in statistics.interval_of(form)] == [1, 2]
    to_now = statistics.interval_of(context("roll_up", **{"from": "2026-11-01T00:00:00Z"}))
    assert to_now[1] > datetime(2026, 11, 20, tzinfo=UTC)
    by_hand = context("roll_up")
    by_hand["dag_run"].data_interval_start = by_hand["dag_run"].data_interval_end = None
    start, end = statistics.interval_of(by_hand)
    assert end - start == HOUR
    assert end.minute == 0


def test_without_a_connection_it_says_how_to_clean(in_task: Catalogue) -> None:
    said = statistics.clean_airflow(context("clean_airflow", clean_airflow=True))["sentence"]
    assert "there is no connection airflow_db (docs/how-to/history.md)" in said
    assert "airflow db clean --yes --skip-archive" in said


def airflow_db(kind: str = "postgres") -> Connection:
    return Connection(
        conn_id="airflow_db",
        conn_type=kind,
        host="h",
        port=5432,
        login="u",
        password="p@ss/w",
        schema="airflow",
    )


def test_the_command_gets_the_database_and_no_marks_of_the_task() -> None:
    environment = environment_for(airflow_db(), {"PATH": "/bin", "_AIRFLOW_PROCESS_CONTEXT": "client"})
    url = make_url(environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"])
    assert (url.drivername, url.username, url.password, url.database) == (
        "postgresql+psycopg2", "u", "p@ss/w", "airflow",
    )  # fmt: skip
    assert environment["PATH"] == "/bin"
    assert "_AIRFLOW_PROCESS_CONTEXT" not in environment
    with pytest.raises(CleaningFailed, match="airflow_db is of type http"):
        environment_for(airflow_db("http"), {})


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("import sys; print('no such table', file=sys.stderr); sys.exit(3)", "ended with 3: no such table"),
        ("import sys; print('password p@ss/w is wrong'); sys.exit(1)", "ended with 1: password *** is wrong"),
        ("import time; time.sleep(60)", "took longer than 0.2 s"),
    ],
)
def test_what_goes_wrong_is_told_without_the_password(
    monkeypatch: pytest.MonkeyPatch, program: str, said: str
) -> None:
    monkeypatch.setattr(airflow_cleaning, "_COMMAND", (sys.executable, "-c", program))
    if "sleep" in program:
        monkeypatch.setattr(airflow_cleaning, "TIMEOUT_S", 0.2)
    fields = {"conn_type": "postgres", "host": "h", "login": "u", "password": "p@ss/w", "schema": "airflow"}
    monkeypatch.setenv("AIRFLOW_CONN_AIRFLOW_DB", json.dumps(fields))
    with pytest.raises(CleaningFailed) as failed:
        clean_before(NOON)
    assert said in str(failed.value)
    assert "p@ss" not in str(failed.value)


def test_it_runs_airflows_command(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Path(os.environ["AIRFLOW_HOME"]) / "seen"
    program = f"import sys, os, pathlib; pathlib.Path({str(seen)!r}).write_text(' '.join(sys.argv[1:]))"
    monkeypatch.setattr(airflow_cleaning, "_COMMAND", (sys.executable, "-c", program))
    fields = {"conn_type": "postgres", "host": "h", "login": "u", "password": "x", "schema": "airflow"}
    monkeypatch.setenv("AIRFLOW_CONN_AIRFLOW_DB", json.dumps(fields))
    assert clean_before(NOON).counts == {"cleaned": 1}
    assert seen.read_text() == "--clean-before-timestamp 2026-11-22T12:00:00+00:00"
