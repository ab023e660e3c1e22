"""FTS jobs, cycles and audit: what their pages say of a small catalogue whose numbers can be counted by hand."""

from __future__ import annotations

import csv
import doctest
import io
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import ModuleType
from uuid import uuid4

import pytest
from fastapi import FastAPI
from psycopg import Connection
from starlette.testclient import TestClient

from asyncstageout.api.callers import APIHouse
from asyncstageout.catalogue.jobs import record_accepted, release
from asyncstageout.catalogue.policies import put_policy
from asyncstageout.catalogue.step_runs import Actor, end_step, start_step
from asyncstageout.core import slow_jobs
from asyncstageout.core.planning import PlannedJob
from asyncstageout.ui import audit, jobs, runs
from fixtures.catalogue import Add, Plan, record
from ui.conftest import UI, Room
from ui.reading import Element, read
from ui.test_pages import page_of, tile


def column(table: Element, number: int = 0) -> list[str]:
    return [row[number] for row in table.rows()]


def a_step(
    conn: Connection, task_id: str, *, dag_id: str | None = "stageout_transfer", run_id: str | None = "r1",
    name: str = "airflow", outcome: str = "success", sentence: str = "Done", **counts: int,
) -> int:  # fmt: skip
    step = start_step(conn, Actor(task_id, name, dag_id, run_id))
    end_step(conn, step, outcome=outcome, sentence=sentence, counts=counts)
    return step


def age(conn: Connection, job: PlannedJob, seconds: int) -> None:
    """Let a job have been at FTS for so long, with everything that belongs to it."""
    conn.execute(
        "UPDATE fts_job SET planned_at = planned_at - make_interval(secs => %(s)s),"
        " submitted_at = submitted_at - make_interval(secs => %(s)s) WHERE sid = %(sid)s",
        {"s": seconds, "sid": job.sid},
    )


# --- FTS jobs ---


def test_open_jobs_and_those_in_doubt(room: Room, conn: Connection, add: Add, plan: Plan, step: int) -> None:
    add(record(1), record(2), record(3, source="T2_US_MIT"))
    bari, boston = sorted(plan(), key=lambda job: job.link.source)
    record_accepted(conn, [(bari.sid, job_id := uuid4())], step)
    conn.execute("UPDATE transfer SET updated_at = now() - interval '11 min' WHERE state = 'ACQUIRED'")

    page = page_of(room(), "/jobs")
    assert [tile(page, label).split(" ")[0] for label in ("Open", "In doubt", "Slow")] == ["2", "1", "0"]
    table = page.one(id="jobs")
    assert sorted(column(table, 1)) == ["T2_IT_Bari → T2_CH_CERN", "T2_US_MIT → T2_CH_CERN"]
    assert sorted(column(table)) == sorted([str(job_id), str(boston.sid)]), "before FTS has it, by our id"

    doubt = page_of(room(), "/jobs?show=doubt").one(id="jobs")
    assert [row[1:5] for row in doubt.rows()] == [
        ["T2_US_MIT → T2_CH_CERN", "not confirmed", "PLANNED", "fts"]
    ]
    assert "for 11 min" in doubt.one("span", **{"class": "mark t-warning"}).attributes["title"]

    conn.execute("UPDATE fts_job SET submitted_at = now() - interval '11 min' WHERE sid = %s", (bari.sid,))
    assert column(page_of(room(), "/jobs?show=doubt&source=T2_IT_Bari").one(id="jobs"), 2) == ["nobody asks"]
    assert not page_of(room(), "/jobs?server=other").one(id="jobs").all("table")


def test_a_job_is_slow_against_the_last_ones_of_its_link(
    room: Room, conn: Connection, add: Add, submitted: Plan
) -> None:
    for number in range(slow_jobs.LEAST):
        add(record(number))
        (job,) = submitted()
        conn.execute(
            "UPDATE fts_job SET state = 'ENDED', open_files = 0, ended_at = submitted_at + interval '300 s'"
            " WHERE sid = %s", (job.sid,),
        )  # fmt: skip
    add(record(90), record(91, source="T2_US_MIT"))
    for job in submitted():
        age(conn, job, 1150)
        conn.execute("UPDATE fts_job SET polled_at = now() WHERE sid = %s", (job.sid,))
    assert not page_of(room(), "/jobs?show=slow").one(id="jobs").all("table"), "less than four times 300 s"
    conn.execute(
        "UPDATE fts_job SET submitted_at = submitted_at - interval '1 min' WHERE state = 'SUBMITTED'"
    )
    page = page_of(room(), "/jobs?show=slow")
    assert column(page.one(id="jobs"), 1) == ["T2_IT_Bari → T2_CH_CERN"], "of the other nothing is known"
    assert slow_jobs.RULE in page.text
    link = page_of(room(), page.one(id="jobs").one("tbody").all("a")[0].attributes["href"].removeprefix(UI))
    assert "on its link 5 min are usual" in link.one("main").text


def test_jobs_that_ended_go_back_page_by_page(
    room: Room, conn: Connection, add: Add, plan: Plan, step: int
) -> None:
    add(*(record(number) for number in range(60)))
    planned = plan(files_per_job=1)
    release(conn, [job.sid for job in planned], "no way", wait_s=60, step_run=step)
    first = page_of(room(), "/jobs?show=ended")
    assert len(first.one(id="jobs").rows()) == 50
    assert {row[2] for row in first.one(id="jobs").rows()} == {"refused"}
    onward = first.one("a", rel="next").attributes["href"].removeprefix(UI)
    last = page_of(room(), onward)
    assert len(last.one(id="jobs").rows()) == 10
    everything = room().get(f"{UI}/jobs?show=ended&format=csv")
    rows = list(csv.DictReader(io.StringIO(everything.text)))
    assert sorted(row["job"] for row in rows) == sorted(str(job.sid) for job in planned)
    assert {row["job"] for row in rows} == {*column(first.one(id="jobs")), *column(last.one(id="jobs"))}
    conn.execute("UPDATE fts_job SET ended_at = now() - interval '2 h'")
    assert "No job ended" in page_of(room(), "/jobs?show=ended&range=1h").text
    for cursor in ("x", "am9iczp5"):
        assert page_of(room(), f"/jobs?show=ended&jobs.cursor={cursor}", 422)


def test_the_page_of_a_job(room: Room, conn: Connection, add: Add, plan: Plan, step: int) -> None:
    add(record(1), record(2))
    (job,) = plan()
    record_accepted(conn, [(job.sid, job_id := uuid4())], step)
    # One has moved on to another job.
    conn.execute("UPDATE transfer SET fts_job = gen_random_uuid() WHERE id = %s", (job.transfer_ids[0],))
    page = page_of(room(), f"/jobs/{job.sid}")
    assert page.one("h1").text.startswith(f"FTS job {job_id}")
    files = page.one(id="files")
    assert [row[1:3] for row in files.rows()] == [["SUBMITTED", "SUBMITTED"]] * 2
    assert [row[8] != "–" for row in files.rows()] == [True, False]
    numbers = [str(number) for number in job.transfer_ids]
    assert column(files) == numbers
    assert files.one("tbody").all("a")[0].attributes["href"] == f"{UI}/files/{numbers[0]}"
    assert column(page.one(id="steps")) == ["planned it, recorded that FTS took it"], (
        "one step of the test did both"
    )
    assert page.one("h1").text == page_of(room(), f"/jobs/{job_id}").one("h1").text
    assert not page.one(**{"class": "tools"}).all("a"), "nobody knows of a monitor"
    page_of(room(), "/jobs/nonsense", 422)


def test_a_job_leads_to_the_fts_monitor(house: APIHouse, pages: FastAPI, add: Add, submitted: Plan) -> None:
    add(record(1))
    (job,) = submitted()

    def tools(base: str) -> list[Element]:
        pages.state.house = replace(house, fts_monitor=lambda *of: f"{base}{len(of[1])}")
        page = read(TestClient(pages, cookies={"who": "olga"}).get(f"/jobs/{job.sid}").text)
        return page.one(**{"class": "tools"}).all("a")

    (monitor,) = tools("https://fts.test/#/job/")
    assert monitor.attributes["href"] == "https://fts.test/#/job/36"
    assert (monitor.attributes["target"], monitor.attributes["rel"]) == ("_blank", "noopener noreferrer")
    assert tools("javascript:") == [], "a browser is not sent anywhere"


# --- cycles, runs, steps ---


def test_what_a_cycle_did(room: Room, conn: Connection, add: Add, submitted: Plan) -> None:
    add(record(1), record(2), record(3, source="T2_US_MIT"))
    made = submitted(username="alice")
    ((number, run_id),) = conn.execute("SELECT id, run_id FROM cycle").fetchall()
    conn.execute(
        "INSERT INTO cycle_link VALUES (%(id)s, 'T2_IT_Bari', 'T2_CH_CERN', 1, 0, 500, NULL),"
        " (%(id)s, 'T1_DE_KIT', 'T2_CH_CERN', 2, 7, 0, 'paused by olga: tape')", {"id": number},
    )  # fmt: skip
    a_step(conn, "collect", run_id=run_id, sentence="2 links have waiting files", links=2, held_links=1)
    a_step(conn, "group", run_id=run_id, outcome="failed", sentence="OperationalError: gone")
    page = page_of(room(), "/cycles")
    (row,) = page.one(id="cycles").rows()
    assert row[0] == str(number)
    assert row[2:8] == ["by hand", "failed", "2", "1", "3", str(len(made))]
    airflow = page.one(id="cycles").all("a", target="_blank")
    assert [one.attributes["href"] for one in airflow] == [f"/dags/stageout_transfer/runs/{run_id}"]
    conn.execute("UPDATE step_run SET outcome = 'success' WHERE task_id = 'group'")
    assert not page_of(room(), "/cycles?which=trouble").one(id="cycles").all("table")

    answer = room().get(f"{UI}/runs/stageout_transfer/{run_id}")
    assert answer.status_code == 303
    assert answer.headers["location"] == f"{UI}/cycles/{number}"
    cycle = page_of(room(), f"/cycles/{number}")
    assert "username=alice" in cycle.text
    assert column(cycle.one(id="steps")) == ["collect", "group"]
    assert column(cycle.one(id="steps"), 4)[0] == "links: 2 held links: 1"
    log = cycle.one(id="steps").all("a", target="_blank")[0].attributes["href"]
    assert log == f"/dags/stageout_transfer/runs/{run_id}/tasks/collect?try_number=1"
    assert cycle.one(id="links").rows()[0] == [
        "T1_DE_KIT → T2_CH_CERN",
        "2",
        "7",
        "0",
        "paused by olga: tape",
    ]
    assert len(cycle.one(id="jobs").rows()) == len(made)


def test_a_cycle_without_work_is_only_listed_among_all(room: Room, conn: Connection) -> None:
    conn.execute("INSERT INTO cycle (dag_id, run_id) VALUES ('stageout_transfer', 'scheduled__1')")
    assert not page_of(room(), "/cycles").one(id="cycles").all("table")
    assert column(page_of(room(), "/cycles?which=all").one(id="cycles"), 2) == ["every minute"]
    conn.execute("INSERT INTO cycle (dag_id, run_id, round) VALUES ('stageout_transfer', 'scheduled__1', 1)")
    again = page_of(room(), "/runs/stageout_transfer/scheduled__1")
    assert "It ran more than once" in again.text


def test_the_last_run_of_each_dag_and_its_steps(room: Room, conn: Connection) -> None:
    a_step(conn, "look", dag_id="stageout_clean", run_id="old", sentence="Nothing is due")
    a_step(conn, "look", dag_id="stageout_clean", run_id="new", sentence="7 copies are due")
    a_step(conn, "delete", dag_id="stageout_clean", run_id="new", outcome="failed", sentence="DCacheDown: no")
    start_step(conn, Actor("load", "airflow", "stageout_sites", "r"))
    runs_of = page_of(room(), "/cycles").one(id="runs")
    assert [row[0] for row in runs_of.rows()] == ["clean", "sites"]
    assert runs_of.rows()[0][2:5] == ["failed", "DCacheDown: no", "2"]
    assert runs_of.rows()[1][2] == "not ended"
    run = page_of(room(), "/runs/stageout_clean/new")
    assert column(run.one(id="steps")) == ["look", "delete"]

    steps = page_of(room(), "/steps")
    assert column(steps.one(id="steps"))[:2] == ["stageout_sites.load", "stageout_clean.delete"]
    assert column(page_of(room(), "/steps?outcome=failed").one(id="steps")) == ["stageout_clean.delete"]
    assert column(page_of(room(), "/steps?outcome=running").one(id="steps")) == ["stageout_sites.load"]
    assert len(page_of(room(), "/steps?dag=stageout_clean").one(id="steps").rows()) == 3
    conn.execute("UPDATE step_run SET started_at = now() - interval '2 h' WHERE run_id = 'old'")
    assert len(page_of(room(), "/steps?dag=stageout_clean&range=1h").one(id="steps").rows()) == 2


def test_a_failed_step_leads_from_the_overview_to_its_run(room: Room, conn: Connection) -> None:
    a_step(conn, "look", dag_id="stageout_clean", run_id="r 1", outcome="failed", sentence="no")
    (item,) = [one for one in page_of(room(), "/").all("li") if "stageout_clean.look failed" in one.text]
    assert item.all("a")[0].attributes["href"] == f"{UI}/runs/stageout_clean/r%201"
    assert "no" in page_of(room(), "/runs/stageout_clean/r%201").one(id="steps").text


def test_lists_go_back_in_time(room: Room, conn: Connection) -> None:
    for number in range(120):
        a_step(conn, "x", sentence=f"step {number}")
    found: list[str] = []
    place: str | None = "/steps"
    while place:
        page = page_of(room(), place)
        found += column(page.one(id="steps"), 3)
        onward = page.all("a", rel="next")
        place = onward[0].attributes["href"].removeprefix(UI) if onward else None
    assert found == [f"step {number}" for number in range(119, -1, -1)]
    assert len(list(csv.reader(io.StringIO(room().get(f"{UI}/steps?format=csv").text)))) == 121


# --- audit ---


def test_who_changed_what_and_who_did_what(room: Room, conn: Connection) -> None:
    put_policy(conn, None, None, {"max_attempts": 5}, "olga")
    put_policy(conn, None, None, {"max_attempts": 3}, "pietro")
    a_step(
        conn,
        "api: kill",
        dag_id=None,
        run_id=None,
        name="olga",
        sentence="2 killed; killed by olga: bad",
        killed=2,
    )
    a_step(conn, "api: submit", dag_id=None, run_id=None, name="crab", sentence="9 new")
    a_step(conn, "retry", dag_id="stageout_retry", run_id="m", name="pietro", sentence="1 file hit")
    a_step(conn, "select", dag_id="stageout_retry", run_id="m", name="pietro", sentence="This would happen")
    a_step(conn, "cancel", dag_id="stageout_kill", run_id="m")
    page = page_of(room(), "/audit")
    assert [[row[0], *row[2:5]] for row in page.one(id="acts").rows()] == [
        ["stageout_retry.retry", "1 file hit", "–", "pietro"],
        ["api: kill", "2 killed; killed by olga: bad", "killed: 2", "olga"],
    ]
    changes = page_of(room(), "/audit?kind=policy").one(id="changes")
    assert [row[:4] for row in changes.rows()] == [
        ["policy of everything", "changed", "max attempts: 5 → 3", "pietro"],
        ["policy of everything", "set", "max attempts: 5", "olga"],
    ]
    hers = page_of(room(), "/audit?who=olga&kind=KILL")
    assert column(hers.one(id="acts")) == ["api: kill"]
    assert not hers.one(id="changes").all("table")
    rows = list(csv.DictReader(io.StringIO(room().get(f"{UI}/audit?format=csv&table=changes&who=olga").text)))
    assert [(row["subject"], row["differences"]) for row in rows] == [
        ("policy of everything", "max attempts: 5")
    ]
    conn.execute("UPDATE step_run SET started_at = %s", (datetime.now(UTC) - timedelta(days=2),))
    assert not page_of(room(), "/audit").one(id="acts").all("table")


@pytest.mark.parametrize("module", [audit, jobs, runs, slow_jobs])
def test_examples(module: ModuleType) -> None:
    assert doctest.testmod(module).failed == 0
