"""``stageout_intake``: its manual and form, and its tasks against a real catalogue."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import DAG, CronDataIntervalTimetable
from psycopg import Connection

from asyncstageout.provider import intake
from asyncstageout.provider.sources import SourcesInvalid, UnknownSource
from asyncstageout.steps.intake import IntakeNeedsPeople, Interval, SourceUnreadable
from fixtures.catalogue import record, states

FILE = Path(__file__).parents[2] / "dags" / "stageout_intake.py"
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def dag() -> DAG:
    bag = DagBag(dag_folder=str(FILE))
    assert bag.import_errors == {}
    return bag.dags["stageout_intake"]


def test_it_is_an_operators_manual(dag: DAG) -> None:
    assert dag.doc_md
    for task_id in ("list_sources", "collect", "summarise"):
        assert f"`{task_id}`" in dag.doc_md
    assert "Red" in dag.doc_md
    for name in ("runbooks/intake.md", "docs/how-to/intake.md"):
        assert name in dag.doc_md
        assert (FILE.parents[1] / name).is_file()
    assert {task.owner for task in dag.tasks} == {"stageout-operators"}


def test_a_run_has_an_interval_and_can_be_backfilled(dag: DAG) -> None:
    assert isinstance(dag.timetable, CronDataIntervalTimetable)
    assert dag.timetable.expression == f"*/{intake.EVERY // timedelta(minutes=1)} * * * *"
    assert dag.catchup is False


def test_one_mapped_task_for_each_source_and_the_verdict_comes_in_any_case(dag: DAG) -> None:
    collect = dag.get_task("collect")
    assert collect.is_mapped
    assert collect.upstream_task_ids == {"list_sources"}
    assert collect.map_index_template == "{{ source }}"
    assert dag.get_task("summarise").upstream_task_ids == {"list_sources", "collect"}
    assert dag.get_task("summarise").trigger_rule == "all_done_min_one_success"


def test_the_form_is_typed_and_explained(dag: DAG) -> None:
    assert set(dag.params) == {"source", "since", "dry_run"}
    for name in dag.params:
        param = dag.params.get_param(name)
        assert param.description
        assert "type" in param.schema
    assert dag.params["dry_run"] is False


def test_what_a_person_must_see_is_not_tried_again(dag: DAG) -> None:
    policy = dag.get_task("summarise").retry_policy
    assert policy is not None
    rules = {rule.exception for rule in policy.rules}
    assert rules == {
        f"{error.__module__}.{error.__name__}" for error in (IntakeNeedsPeople, SourcesInvalid, UnknownSource)
    }


@pytest.fixture
def in_task(conn: Connection, catalogue_url: str, monkeypatch: pytest.MonkeyPatch) -> Connection:
    monkeypatch.setenv("AIRFLOW_CONN_STAGEOUT_DB", catalogue_url)
    return conn


def context(task_id: str, map_index: int = -1, run_type: str = "scheduled", **params: Any) -> dict[str, Any]:
    ti = SimpleNamespace(
        dag_id="stageout_intake", run_id="r", task_id=task_id, map_index=map_index, try_number=1
    )
    dag_run = SimpleNamespace(
        run_type=run_type, data_interval_start=NOON, data_interval_end=NOON + intake.EVERY
    )
    return {
        "ti": ti,
        "dag_run": dag_run,
        "params": {"source": None, "since": None, "dry_run": False} | params,
    }


def configure(monkeypatch: pytest.MonkeyPatch, *entries: dict[str, Any]) -> None:
    monkeypatch.setenv("AIRFLOW_VAR_STAGEOUT_SOURCES", json.dumps(entries))


def test_a_run_as_airflow_makes_it(
    in_task: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(
        monkeypatch,
        {"name": "first", "kind": "inbox", "path": str(tmp_path)},
        {"name": "away", "kind": "inbox", "path": str(tmp_path / "nowhere")},
    )
    (tmp_path / "inbox").mkdir()
    (tmp_path / "inbox/a.ndjson").write_text(json.dumps(record(1)) + "\n")
    names = intake.list_sources(context("list_sources"))
    assert names == ["first", "away"]
    assert intake.collect(context("collect", 0, dry_run=True), "first")["created"] == 1
    assert states(in_task) == {}
    said = intake.summarise(context("summarise", dry_run=True), names[:1])["sentence"]
    assert said == "1 file would be taken in from 1 source, 0 were there already, 0 would be refused"
    assert intake.collect(context("collect", 0), "first")["created"] == 1
    with pytest.raises(SourceUnreadable, match="source away: there is no folder"):
        intake.collect(context("collect", 1), "away")
    with pytest.raises(IntakeNeedsPeople, match="away was not read"):
        intake.summarise(context("summarise"), names)
    (tmp_path / "nowhere/inbox").mkdir(parents=True)
    intake.collect(context("collect", 1), "away")
    assert intake.summarise(context("summarise"), names)["created"] == 1
    outcomes = in_task.execute("SELECT task_id, outcome FROM step_run ORDER BY id DESC LIMIT 1").fetchone()
    assert outcomes == ("summarise", "success")


def test_without_sources_it_says_so_and_ends(in_task: Connection) -> None:
    assert intake.list_sources(context("list_sources")) == []
    said = in_task.execute("SELECT outcome, sentence FROM step_run").fetchone()
    assert said == ("success", "No sources are configured (Airflow variable stageout_sources)")


def test_the_form_takes_one_source_by_its_name(in_task: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(monkeypatch, *({"name": name, "kind": "inbox", "path": "/x"} for name in "ab"))
    assert intake.list_sources(context("list_sources", source="b")) == ["b"]
    with pytest.raises(UnknownSource, match="no source 'c'; the Airflow variable stageout_sources has a, b"):
        intake.list_sources(context("list_sources", source="c"))
    with pytest.raises(UnknownSource):
        intake.collect(context("collect"), "c")


def test_the_interval_is_the_runs_or_what_the_form_says() -> None:
    assert intake.interval_of(context("collect")) == Interval(NOON, NOON + intake.EVERY)
    since = context("collect", since="2026-11-01T00:00:00Z")
    assert intake.interval_of(since).start_at == datetime(2026, 11, 1, tzinfo=UTC)
    by_hand = context("collect")
    by_hand["dag_run"].data_interval_start = by_hand["dag_run"].data_interval_end = None
    interval = intake.interval_of(by_hand)
    assert interval.end_at - interval.start_at == intake.EVERY
