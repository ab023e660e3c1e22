"""``stageout_credentials``: its manual, and its tasks against a real catalogue."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import DAG
from psycopg import Connection

from asyncstageout.catalogue.policies import put_policy
from asyncstageout.provider import credential_tasks
from asyncstageout.sandbox.proxies import write_proxy
from asyncstageout.sandbox.tls import client_certificate
from asyncstageout.steps.credentials import CredentialsNeeded
from fixtures.catalogue import Add, record

FILE = Path(__file__).parents[2] / "dags" / "stageout_credentials.py"


@pytest.fixture(scope="module")
def dag() -> DAG:
    bag = DagBag(dag_folder=str(FILE))
    assert bag.import_errors == {}
    return bag.dags["stageout_credentials"]


def test_it_is_an_operators_manual(dag: DAG) -> None:
    assert dag.doc_md
    for task_id in ("renew", "verdict"):
        assert f"`{task_id}`" in dag.doc_md
    assert "runbooks/credentials.md" in dag.doc_md
    assert (FILE.parents[1] / "runbooks" / "credentials.md").is_file()
    assert dag.get_task("renew").downstream_task_ids == {"verdict"}
    assert {task.owner for task in dag.tasks} == {"stageout-operators"}
    assert dag.catchup is False


def test_what_a_person_must_see_is_not_tried_again(dag: DAG) -> None:
    policy = dag.get_task("verdict").retry_policy
    assert policy is not None
    name = f"{CredentialsNeeded.__module__}.{CredentialsNeeded.__name__}"
    assert name in {rule.exception for rule in policy.rules}


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, catalogue_url: str, tmp_path: Path) -> Iterator[Path]:
    """A folder of credentials, and the connections that a deployment would have."""
    found = tmp_path / "credentials"
    found.mkdir(mode=0o700)
    extra = {"source": "directory", "directory": str(found)}
    connection = json.dumps({"conn_type": "stageout_credentials", "extra": extra})
    monkeypatch.setenv("AIRFLOW_CONN_STAGEOUT_CREDENTIALS", connection)
    monkeypatch.setenv("AIRFLOW_CONN_STAGEOUT_DB", catalogue_url)
    return found


def context(task_id: str) -> dict[str, Any]:
    return {"ti": SimpleNamespace(dag_id="d", run_id="r", task_id=task_id, map_index=-1, try_number=1)}


def test_both_tasks_as_airflow_runs_them(conn: Connection, add: Add, folder: Path, tls_folder: Path) -> None:
    put_policy(conn, None, None, {"credential": "user"}, "test")
    add(record())
    assert credential_tasks.renew(context("renew"))["without_credential"] == 1
    with pytest.raises(CredentialsNeeded, match="alice"):
        credential_tasks.verdict(context("verdict"))
    owner = client_certificate(tls_folder, "alice", "/DC=test/DC=fts/CN=alice")
    write_proxy(folder / "alice.pem", owner)
    summary = credential_tasks.renew(context("renew"))
    assert summary["sentence"] == "1 of 1 users with files have a credential; 1 have one again"
    credential_tasks.verdict(context("verdict"))
    outcomes = conn.execute("SELECT task_id, outcome FROM step_run WHERE dag_id = 'd' ORDER BY id").fetchall()
    assert outcomes == [
        ("renew", "success"),
        ("verdict", "failed"),
        ("renew", "success"),
        ("verdict", "success"),
    ]


def test_without_the_connection_it_is_done_at_once(
    conn: Connection, add: Add, monkeypatch: pytest.MonkeyPatch, catalogue_url: str
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_STAGEOUT_DB", catalogue_url)
    add(record())
    assert credential_tasks.renew(context("renew"))["sentence"] == "Nobody's files travel in their own name"
