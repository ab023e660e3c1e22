"""``stageout_kill`` and ``stageout_retry``: their forms, who goes on after whom, and their tasks on a real catalogue."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import DAG
from airflow.triggers.base import TaskFailedEvent, TaskSuccessEvent
from psycopg import Connection

from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.kills import kill
from asyncstageout.core.failures import Category
from asyncstageout.core.selections import EndedSelection, Selection
from asyncstageout.provider import acting_tasks
from asyncstageout.provider.acting_tasks import WrongForm
from asyncstageout.provider.forms import ApproveFilesOperator
from asyncstageout.provider.kill_triggers import KilledFilesTrigger, KillsTrigger
from asyncstageout.provider.sensors import KilledFilesSensor
from fixtures.catalogue import Add, assert_audited, record, states
from fixtures.cycles import House, jobs_at_fts
from provider.test_provider import connections  # noqa: F401 -- fixture

DAGS = Path(__file__).parents[2] / "dags"


@pytest.fixture(scope="module")
def dags() -> dict[str, DAG]:
    bag = DagBag(dag_folder=str(DAGS))
    assert bag.import_errors == {}
    return dict(bag.dags)


@pytest.mark.parametrize("name", ["stageout_kill", "stageout_retry"])
def test_the_form_is_typed_explained_and_starts_dry(dags: dict[str, DAG], name: str) -> None:
    dag = dags[name]
    for param in map(dag.params.get_param, dag.params):
        assert param.description
        assert "type" in param.schema
    assert dag.params["dry_run"] is True
    assert dag.params["approve_above"] == 1000
    ways = Selection.ways() if name == "stageout_kill" else EndedSelection.ways()
    assert set(dag.params) - {"killed_too"} == {*ways, "comment", "approve_above", "dry_run"}
    for page in ("runbooks/kills-that-hang.md", "docs/how-to/kill.md", "docs/how-to/retry.md"):
        assert page not in (dag.doc_md or "") or (DAGS.parent / page).is_file()


def test_every_category_can_be_chosen(dags: dict[str, DAG]) -> None:
    enum = dags["stageout_retry"].params.get_param("category").schema["enum"]
    assert enum == [None, *(category.value for category in Category)]


@pytest.mark.parametrize("name", ["stageout_kill", "stageout_retry"])
def test_a_person_is_asked_for_a_day_and_his_silence_means_no(dags: dict[str, DAG], name: str) -> None:
    approve = dags[name].get_task("approve")
    assert isinstance(approve, ApproveFilesOperator)
    assert approve.defaults == ["Reject"]
    assert approve.ignore_downstream_trigger_rules, "rejected, nothing at all happens"
    assert approve.response_timeout is not None
    assert approve.execution_timeout is None, "else Airflow takes it for the person's"
    assert {task.task_id for task in approve.upstream_list} == {"select"}


def test_who_goes_on_after_whom(dags: dict[str, DAG]) -> None:
    dag = dags["stageout_kill"]
    assert dag.get_task("select").downstream_task_ids == {"approve", "kill", "cancel"}
    assert dag.get_task("kill").upstream_task_ids == {"select", "approve"}
    assert dag.get_task("cancel").upstream_task_ids == {"select", "kill"}
    for skipped in ("kill", "cancel"):  # although what is before them was skipped
        assert dag.get_task(skipped).trigger_rule == "none_failed_min_one_success"
    assert dag.max_active_runs > 3, "runs that wait for people must not keep FTS from being told"


# --- the tasks ---


class TaskInstance(SimpleNamespace):
    """What a task sees of itself: names, and XComs shared in its run."""

    def xcom_push(self, key: str, value: Any) -> None:
        self.xcoms[self.task_id, key] = value

    def xcom_pull(self, task_id: str, key: str = "return_value") -> Any:
        return self.xcoms.get((task_id, key))


class Run:
    """One run of a DAG with a form."""

    def __init__(self, dag_id: str, run_id: str = "r", user: str | None = "olga", **form: Any) -> None:
        empty: dict[str, Any] = dict.fromkeys(EndedSelection.ways())
        careless = {"comment": "", "approve_above": 1000, "dry_run": False, "killed_too": False}
        self.dag_id, self.run_id, self.user = dag_id, run_id, user
        self.params = empty | careless | form
        self.xcoms: dict[tuple[str, str], Any] = {}

    def __call__(self, task: Any, task_id: str) -> Any:
        ti = TaskInstance(
            dag_id=self.dag_id,
            run_id=self.run_id,
            task_id=task_id,
            map_index=-1,
            try_number=1,
            xcoms=self.xcoms,
        )
        dag_run = SimpleNamespace(triggering_user_name=self.user)
        result = task({"ti": ti, "dag_run": dag_run, "params": self.params})
        ti.xcom_push("return_value", result)
        return result

    def select(self) -> str | None:
        task = acting_tasks.select_kills if self.dag_id == "stageout_kill" else acting_tasks.select_retries
        next_task: str | None = self(task, "select")
        return next_task


def test_a_kill_by_form_from_the_question_to_the_answer(connections: House, add: Add) -> None:  # noqa: F811
    house = connections
    add(*(record(number) for number in range(3)))
    house.run_cycle()
    add(record(9), record(10, username="bob"))
    dry = Run("stageout_kill", username="alice", dry_run=True)
    assert dry.select() is None
    would = "This would happen: 1 killed, 3 being killed"
    assert dry.xcoms["select", "summary"] == {"sentence": would, "files": 4}
    run = Run("stageout_kill", username="alice", comment="wrong data", approve_above=3)
    assert run.select() == "approve"
    assert run.xcoms["select", "question"] == "Kill 4 files?"
    run.xcoms["approve", "return_value"] = {"responded_by_user": {"id": "1", "name": "otto"}}
    assert states(house.conn) == {"SUBMITTED": 3, "NEW": 2}
    assert run(acting_tasks.kill, "kill")["sentence"].startswith("4 files hit: 1 killed, 3 being killed; ")
    assert states(house.conn) == {"KILL": 3, "KILLED": 1, "NEW": 1}
    reasons = house.conn.execute(
        "SELECT DISTINCT reason FROM transfer_event WHERE to_state = 'KILL'"
    ).fetchall()
    assert reasons == [("killed by olga: wrong data (approved by otto)",)]
    actors = house.conn.execute("SELECT DISTINCT actor FROM step_run WHERE task_id = 'kill'").fetchall()
    assert actors == [("olga",)]
    assert run(acting_tasks.cancel, "cancel")["sentence"] == "FTS was told to stop 3 files (1 whole jobs)"
    house.sense()
    house.update()
    assert states(house.conn) == {"KILLED": 4, "NEW": 1}
    sensor = KilledFilesSensor(task_id="confirm", deferrable=False)
    ti = SimpleNamespace(dag_id="stageout_kill", run_id="r")
    assert sensor.poke({"ti": ti}).xcom_value["sentence"] == "Of 3 files under way 3 were killed"
    assert_audited(house.conn)


def test_a_bell_goes_straight_to_fts_and_is_quiet_when_there_is_nothing(connections: House, add: Add) -> None:  # noqa: F811
    house = connections
    idle = Run("stageout_kill", user=None)
    assert idle.select() is None
    add(record(1))
    house.run_cycle()
    kill(house.conn, Selection(username="alice"), None, comment="", step_run=house.step)
    run = Run("stageout_kill", user=None, run_id="rung")
    assert run.select() == "cancel"
    assert run(acting_tasks.cancel, "cancel")["jobs"] == 1
    assert run(acting_tasks.cancel, "cancel") == {}, "nothing more: the rest is skipped"
    assert [job.job_state for job in jobs_at_fts(house)] == ["CANCELED"]


def test_not_more_is_done_than_was_counted(connections: House, add: Add) -> None:  # noqa: F811
    add(*(record(number) for number in range(3)))
    run = Run("stageout_kill", source="T2_IT_Bari", approve_above=2)
    assert run.select() == "approve"
    add(*(record(number) for number in range(3, 6)))
    assert run(acting_tasks.kill, "kill")["sentence"].startswith("3 files hit: 3 killed, 3 left over; ")
    assert states(connections.conn) == {"KILLED": 3, "NEW": 3}


@pytest.mark.parametrize(
    ("form", "says"),
    [
        ({"ids": ["1", "x"]}, "ids.1"),
        ({"username": "no such name!"}, "username: String should match"),
        ({}, "Say which files: ids, task"),
    ],
)
def test_a_wrong_form_names_the_field(form: dict[str, Any], says: str) -> None:
    with pytest.raises(WrongForm, match=says):
        Run("stageout_retry", **form).select()


def test_a_retry_by_form(connections: House, add: Add) -> None:  # noqa: F811
    conn = connections.conn
    numbers = [str(answer.position + 1) for answer in add(*(record(number) for number in range(3)))]
    kill(conn, Selection(username="alice"), None, comment="", step_run=connections.step)
    run = Run("stageout_retry", ids=numbers[:2], killed_too=True, comment="mended")
    assert run.select() == "retry"
    assert run(acting_tasks.retry, "retry")["sentence"].startswith("2 files hit: 2 sent again; ")
    assert run(acting_tasks.retry, "retry")["sentence"].startswith("0 files hit: 2 waiting already; ")
    assert states(conn) == {"NEW": 2, "KILLED": 1}
    window = Run("stageout_retry", category="quota", ended_from="2026-01-01T00:00:00Z", killed_too=True)
    assert window.select() is None


# --- the triggers ---


def test_the_bell_of_kills_rings(connections: House, add: Add, catalogue_url: str) -> None:  # noqa: F811
    add(record(1))
    connections.run_cycle()
    trigger = KillsTrigger("stageout_db", quiet_s=0.01)
    path, arguments = trigger.serialize()
    assert path == "asyncstageout.provider.kill_triggers.KillsTrigger"
    assert KillsTrigger(**arguments).serialize() == (path, arguments)

    async def two_rings() -> None:
        events = trigger.run()
        await anext(events)
        second = asyncio.create_task(anext(events))  # type: ignore[arg-type]
        while not second.done():
            # The listener may not listen yet: kill until it does.
            await asyncio.to_thread(_kill_again, catalogue_url, connections.step)
            await asyncio.wait([second], timeout=0.05)
        await events.aclose()

    asyncio.run(asyncio.wait_for(two_rings(), 20))


def _kill_again(url: str, step: int) -> None:
    with connect(url) as own:
        own.execute("UPDATE transfer SET state = 'SUBMITTED' WHERE state = 'KILL'")
        kill(own, Selection(username="alice"), None, comment="", step_run=step)


def _waiting(conn: Connection, **options: Any) -> Any:
    trigger = KilledFilesTrigger("stageout_db", pause_s=0.01, **options)
    path, arguments = trigger.serialize()
    assert KilledFilesTrigger(**arguments).serialize() == (path, arguments)
    assert KilledFilesSensor(task_id="confirm").start_trigger_args.trigger_cls == path
    trigger._task_instance = SimpleNamespace(
        dag_id="stageout_kill", run_id="r", task_id="confirm", map_index=-1, try_number=1
    )

    async def first() -> Any:
        events = trigger.run()
        try:
            return await asyncio.wait_for(anext(events), 20)
        finally:
            await events.aclose()

    return asyncio.run(first())


def test_a_run_waits_for_its_files_and_is_red_when_they_hang(connections: House, add: Add) -> None:  # noqa: F811
    house = connections
    add(record(1), record(2))
    house.run_cycle()
    run = Run("stageout_kill", username="alice")
    run.select()
    run(acting_tasks.kill, "kill")
    run(acting_tasks.cancel, "cancel")
    hanging = _waiting(house.conn, patience_s=0.05)
    assert isinstance(hanging, TaskFailedEvent)
    said = "Of 2 files under way 0 were killed, 2 have not ended (runbooks/kills-that-hang.md)"
    assert hanging.xcoms == {"return_value": {"sentence": said, "killed": 0, "too_late": 0, "open": 2}}
    house.sense()
    house.update()
    assert isinstance(_waiting(house.conn), TaskSuccessEvent)
    rows = house.conn.execute(
        "SELECT outcome, sentence FROM step_run WHERE task_id = 'confirm' ORDER BY id"
    ).fetchall()
    assert rows == [("failed", said), ("success", "Of 2 files under way 2 were killed")]
