"""``stageout_publish``: its manual, and its tasks against a real catalogue and a DBS on the network."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import DAG
from psycopg import Connection

from asyncstageout.provider import publication
from asyncstageout.provider.crab_tasks import ENDED, end_crab_tasks, status_in
from asyncstageout.sandbox.tls import client_certificate
from asyncstageout.steps.deliver import DeliveryNeedsAPerson
from asyncstageout.steps.publication_summary import PublicationNeedsPeople
from asyncstageout.steps.publish import PublishingStopped
from clients.answering import Asked, Reply, answering
from fixtures.publication import Press
from sandbox.harness import HOST, certificates

FILE = Path(__file__).parents[2] / "dags" / "stageout_publish.py"
TASK = "261122_alice_task"


@pytest.fixture(scope="module")
def dag() -> DAG:
    bag = DagBag(dag_folder=str(FILE))
    assert bag.import_errors == {}
    return bag.dags["stageout_publish"]


def test_it_is_an_operators_manual(dag: DAG) -> None:
    assert dag.doc_md
    for name in (
        "runbooks/publication.md", "runbooks/dead-letters.md",
        "docs/how-to/publication.md", "docs/how-to/subscriptions.md",
    ):  # fmt: skip
        assert name in dag.doc_md
        assert (FILE.parents[1] / name).is_file()
    assert dag.max_active_runs == 2


def test_shards_are_labelled_and_the_verdict_comes_after_them(dag: DAG) -> None:
    publish = dag.get_task("publish")
    assert publish.is_mapped
    assert publish.map_index_template == "{{ shard_label }}"
    assert dag.get_task("summarise").upstream_task_ids == {"publish"}
    assert dag.get_task("summarise").trigger_rule == "all_done_min_one_success"


def test_subscribers_wait_for_no_publication_and_not_for_each_other(dag: DAG) -> None:
    deliver = dag.get_task("deliver")
    assert deliver.is_mapped
    assert deliver.map_index_template == "{{ subscriber }}"
    assert deliver.upstream_task_ids == {"list_subscribers"}
    assert dag.get_task("list_subscribers").upstream_task_ids == set()


def test_what_a_person_must_see_is_not_tried_again(dag: DAG) -> None:
    policy = dag.get_task("publish").retry_policy
    assert policy is not None
    assert {rule.exception for rule in policy.rules} == {
        f"{error.__module__}.{error.__name__}"
        for error in (PublishingStopped, PublicationNeedsPeople, DeliveryNeedsAPerson)
    }


class Instance:
    """A running task, as far as the bodies of tasks look."""

    def __init__(self, task_id: str, map_index: int = -1) -> None:
        self.pushed: dict[str, Any] = {}
        for name, value in {
            "dag_id": "stageout_publish", "run_id": "r", "task_id": task_id, "map_index": map_index,
            "try_number": 1, "xcom_push": self.pushed.__setitem__,
        }.items():  # fmt: skip
            setattr(self, name, value)


def context(task_id: str, map_index: int = -1) -> dict[str, Any]:
    return {"ti": Instance(task_id, map_index), "dag_run": SimpleNamespace(run_type="scheduled")}


@pytest.fixture
def in_task(press: Press, catalogue_url: str, tls_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Press:
    """Airflow's connections lead to the catalogue and to the DBS of the press."""
    where = urlsplit(press.instances.client("dbs_default").writer_url)
    pair = client_certificate(tls_folder, "host", HOST)
    extra = {
        "writer": where.path, "global_reader": "/dbs/prod/global/DBSReader",
        "ca_file": str(certificates(tls_folder).ca), "cert_file": str(pair.cert), "key_file": str(pair.key),
        "first_after_s": 0, "close_after_s": 0, "block_files": 2,
    }  # fmt: skip
    conn = {"conn_type": "dbs", "host": where.hostname, "port": where.port, "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_STAGEOUT_DB", catalogue_url)
    monkeypatch.setenv("AIRFLOW_CONN_DBS_DEFAULT", json.dumps(conn))
    return press


def test_a_run_as_airflow_makes_it(in_task: Press, dag: DAG) -> None:
    in_task.ready(0, 1, 2)
    first = context("assemble")
    (shard,) = publication.assemble(first)
    assert (shard["files"], len(shard["blocks"])) == (2, 1)
    assert first["ti"].pushed["summary"]["ready_files"] == 3
    done = publication.publish(context("publish", 0), shard)
    assert done["published_files"] == 2
    said = publication.summarise(context("summarise"))["sentence"]
    assert said == "2 files in 1 blocks are published"
    outcomes = in_task.conn.execute(
        "SELECT task_id, outcome FROM step_run WHERE dag_id IS NOT NULL ORDER BY id"
    )
    assert outcomes.fetchall() == [("assemble", "success"), ("publish", "success"), ("summarise", "success")]
    (rest,) = publication.assemble(context("assemble"))
    publication.publish(context("publish", 0), rest)
    assert in_task.publications() == {"DONE": 3}


def test_an_instance_without_a_connection_needs_a_person(
    in_task: Press, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AIRFLOW_CONN_DBS_DEFAULT")
    in_task.ready(0)
    in_task.conn.execute("UPDATE task SET complete_at = now()")
    in_task.assemble()
    (shard,) = publication.assemble(context("assemble"))
    with pytest.raises(PublishingStopped, match="Make or mend the Airflow connection"):
        publication.publish(context("publish", 0), shard)
    assert in_task.publications() == {"ACQUIRED": 1}


# --- the ends of CRAB's tasks ---


@pytest.fixture
def crab_task(in_task: Press) -> Connection:
    """A task of CRAB's with an open block."""
    in_task.instances.rules = publication.PublicationSettings()
    (request_id,) = in_task.arrive(0)
    in_task.conn.execute("INSERT INTO crab_record (transfer_id, publish) SELECT id, 1 FROM transfer")
    in_task.describe(0)
    in_task.assemble()
    assert request_id
    assert in_task.blocks() == {"OPEN": 1}
    return in_task.conn


@pytest.mark.parametrize(("status", "ended"), [("COMPLETED", 1), ("SUBMITTED", 0)])
def test_crab_says_which_tasks_have_ended(
    crab_task: Connection, monkeypatch: pytest.MonkeyPatch, status: str, ended: int
) -> None:
    def answer(asked: Asked) -> Reply:
        assert asked.path.startswith("/crabserver/dev/task?")
        query = parse_qs(urlsplit(asked.path).query)
        assert query == {"subresource": ["search"], "workflow": [TASK]}
        rows = {"desc": {"columns": ["tm_taskname", "tm_task_status"]}, "result": [TASK, status]}
        return Reply(200, json.dumps(rows).encode())

    with answering(answer) as server:
        url = urlsplit(server.url)
        conn = {"conn_type": "http", "host": url.hostname, "port": url.port, "schema": "http"}
        monkeypatch.setenv("AIRFLOW_CONN_STAGEOUT_CRAB", json.dumps(conn | {"extra": {"instance": "dev"}}))
        assert end_crab_tasks(crab_task) == ended
        assert end_crab_tasks(crab_task) == 0
    assert len(server.asked) == 1  # not again so soon
    row = crab_task.execute("SELECT complete_at IS NOT NULL FROM task").fetchone()
    assert row == (ended == 1,)


@pytest.mark.parametrize("reply", [Reply(500), Reply(403), Reply(200, b"<html>")])
def test_a_crab_that_does_not_answer_stops_nothing(
    crab_task: Connection, monkeypatch: pytest.MonkeyPatch, reply: Reply
) -> None:
    with answering(lambda _: reply) as server:
        url = urlsplit(server.url)
        conn = {"conn_type": "http", "host": url.hostname, "port": url.port, "schema": "http"}
        monkeypatch.setenv("AIRFLOW_CONN_STAGEOUT_CRAB", json.dumps(conn))
        assert end_crab_tasks(crab_task) == 0


def test_without_a_connection_nobody_is_asked(crab_task: Connection) -> None:
    assert end_crab_tasks(crab_task) == 0
    assert crab_task.execute("SELECT end_asked_at FROM task").fetchone() == (None,)


def test_both_shapes_of_crabs_answer_are_read() -> None:
    columns = {"desc": {"columns": ["tm_taskname", "tm_task_status"]}}
    assert status_in(columns | {"result": ["t", "KILLED"]}) in ENDED
    assert status_in(columns | {"result": [["t", "KILLED"]]}) in ENDED
    assert status_in(columns | {"result": []}) is None
