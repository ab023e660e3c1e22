"""``stageout_sites``: its manual and form, and its tasks against a real catalogue."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import DAG
from psycopg import Connection

from asyncstageout.catalogue.site_sources import SiteSource, looks, put_source
from asyncstageout.catalogue.storages import current_storages
from asyncstageout.provider import running, site_tasks
from asyncstageout.steps.load_sites import SitesFail

FILE = Path(__file__).parents[2] / "dags" / "stageout_sites.py"


@pytest.fixture(scope="module")
def dag() -> DAG:
    bag = DagBag(dag_folder=str(FILE))
    assert bag.import_errors == {}
    return bag.dags["stageout_sites"]


def test_it_is_an_operators_manual(dag: DAG) -> None:
    assert dag.doc_md
    for task_id in ("load", "verdict"):
        assert f"`{task_id}`" in dag.doc_md
    assert "runbooks/site-description.md" in dag.doc_md
    assert (FILE.parents[1] / "runbooks" / "site-description.md").is_file()
    assert dag.get_task("load").downstream_task_ids == {"verdict"}
    assert {task.owner for task in dag.tasks} == {"stageout-operators"}
    assert dag.catchup is False


def test_the_form_is_typed_and_explained(dag: DAG) -> None:
    assert set(dag.params) == {"site", "source", "dry_run"}
    for name in dag.params:
        param = dag.params.get_param(name)
        assert param.description
        assert "type" in param.schema
    assert dag.params["dry_run"] is False


def test_what_a_person_must_see_is_not_tried_again(dag: DAG) -> None:
    policy = dag.get_task("verdict").retry_policy
    assert policy is not None
    rules = {rule.exception for rule in policy.rules}
    for error in (SitesFail, site_tasks.UnknownSource):
        assert f"{error.__module__}.{error.__name__}" in rules


@pytest.fixture
def in_task(conn: Connection, monkeypatch: pytest.MonkeyPatch) -> Connection:
    @contextmanager
    def catalogue(_conn_id: str = "") -> Iterator[Connection]:
        yield conn

    monkeypatch.setattr(running, "catalogue", catalogue)
    return conn


def context(**params: Any) -> dict[str, Any]:
    ti = SimpleNamespace(task_id="load", dag_id="stageout_sites", run_id="r", map_index=-1, try_number=1)
    return {"ti": ti, "params": {"site": None, "source": None, "dry_run": False} | params}


def describe(path: Path, site: str, prefix: str) -> Path:
    protocol = {"protocol": "WebDAV", "access": "global-rw", "prefix": prefix}
    path.write_text(json.dumps([{"site": site, "protocols": [protocol]}]))
    return path


def test_all_sources_are_looked_at_and_one_if_the_form_says_so(in_task: Connection, tmp_path: Path) -> None:
    paths = [
        describe(tmp_path / f"{site}.json", site, "davs://a.example.org")
        for site in ("T2_AA_One", "T2_BB_Two")
    ]
    for path in paths:
        put_source(in_task, SiteSource(str(path), "storage.json"), "tester")
    assert site_tasks.load(context())["new"] == 2
    for path, site in zip(paths, ("T2_AA_One", "T2_BB_Two"), strict=True):
        describe(path, site, "davs://b.example.org")
    assert site_tasks.load(context(source=str(paths[0]), dry_run=True))["changed"] == 1
    assert site_tasks.load(context(source=str(paths[0])))["changed"] == 1
    prefixes = {name: one.protocols[0].prefix for name, (_, one) in current_storages(in_task).items()}
    assert (prefixes["T2_AA_One"], prefixes["T2_BB_Two"]) == ("davs://b.example.org", "davs://a.example.org")
    with pytest.raises(site_tasks.UnknownSource):
        site_tasks.load(context(source="/nowhere"))


def test_the_verdict_is_red_when_a_source_failed_for_a_day(in_task: Connection, tmp_path: Path) -> None:
    path = describe(tmp_path / "one.json", "T2_AA_One", "davs://a.example.org")
    put_source(in_task, SiteSource(str(path), "storage.json"), "tester")
    site_tasks.load(context())
    assert site_tasks.verdict(context())["failing"] == 0
    path.unlink()
    assert site_tasks.load(context())["failed"] == 1
    assert site_tasks.verdict(context())["failing"] == 1
    in_task.execute("UPDATE site_load SET failing_since = %s", (datetime.now(UTC) - timedelta(days=1),))
    assert len(looks(in_task)) == 1
    with pytest.raises(SitesFail, match="T2_AA_One since"):
        site_tasks.verdict(context())
