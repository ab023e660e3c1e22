"""``aso files``: pages of files, and the whole story of one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import pytest
from click.testing import Result
from psycopg import Connection

from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.cycles import CycleParams, open_cycle
from asyncstageout.catalogue.intake import add_transfers
from asyncstageout.catalogue.jobs import record_accepted
from asyncstageout.catalogue.partitions import ensure_partitions
from asyncstageout.catalogue.sensing import Report, stage_reports
from asyncstageout.catalogue.step_runs import Actor, start_step
from asyncstageout.catalogue.storages import put_sites
from asyncstageout.core.failures import Category
from asyncstageout.core.prospects import REMEDIES, what_next
from asyncstageout.core.requests import read_requests
from asyncstageout.core.states import TransferState
from asyncstageout.steps.collect import collect
from asyncstageout.steps.group import group
from asyncstageout.steps.update_catalogue import update_catalogue

Aso: TypeAlias = Callable[..., Result]

FTS_JOB = UUID("12345678-1234-5678-1234-567812345678")
RUN_ID = "asset_triggered__2026-11-23T00:13:54.108353+00:00_8nozI2qz"
NO_ROOM = (
    "TRANSFER [5] TRANSFER ERROR: Copy failed (3rd pull). Last attempt: copy HTTP 507 : Insufficient Storage"
)
REFUSED_CONNECTION = "DESTINATION [112] Result Could not connect to server after 1 attempts"


@pytest.fixture
def conn(catalogue_url: str) -> Iterator[Connection]:
    with connect(catalogue_url) as connection:
        put_sites(
            connection,
            {site: f"davs://{site.lower()}.sandbox.test:8443" for site in ("T2_IT_Bari", "T2_CH_CERN")},
            "test",
        )
        ensure_partitions(connection, datetime.now(UTC).date())
        yield connection


def add(conn: Connection, *users: str) -> None:
    """Load one file for each user named, by hand."""
    step = start_step(conn, Actor(task_id="load", name="maria"))
    records = [
        {
            "task": f"261122_103015_{user}_analysis",
            "username": user,
            "source": "T2_IT_Bari",
            "destination": "T2_CH_CERN",
            "source_lfn": f"/store/temp/user/{user}.abc/out_{number}.root",
            "destination_lfn": f"/store/user/{user}/out_{number}.root",
            "size_bytes": 123_456_789,
            "adler32": "abc",
            "job_id": str(number),
        }
        for number, user in enumerate(users, start=1)
    ]
    good, bad = read_requests(records)
    assert not bad
    add_transfers(conn, good, step)


def dag_step(conn: Connection, task: str, *, dag: str = "stageout_transfer", index: int = -1) -> int:
    return start_step(conn, Actor(task, "airflow", dag, RUN_ID, index))


def submit_all(conn: Connection) -> UUID:
    """Take everything that waits to FTS, as one cycle does; return the sid of its one job."""
    now = datetime.now(UTC)
    step = dag_step(conn, "collect")
    collect(
        conn, dag_id="stageout_transfer", run_id=RUN_ID, params=CycleParams(), today=now.date(), step_run=step
    )
    cycle = open_cycle(conn, "stageout_transfer", RUN_ID, CycleParams())
    sid = uuid4()
    group(conn, cycle, step_run=dag_step(conn, "group"), new_sid=lambda: sid)
    record_accepted(conn, [(sid, FTS_JOB)], dag_step(conn, "submit", index=2))
    return sid


def end(conn: Connection, sid: UUID, transfer_id: int, state: str, reason: str = "") -> None:
    """Let FTS end one file, and the catalogue know it."""
    now = datetime.now(UTC)
    stage_reports(conn, [Report(sid, transfer_id, transfer_id, "ACTIVE", state, reason, None, now)])
    step = dag_step(conn, "update_catalogue", dag="stageout_sense")
    update_catalogue(conn, now=now, step_run=step)


@pytest.fixture
def story(conn: Connection) -> None:
    """File 1 arrived, 2 is at FTS, 3 DONE, 4 waits for another attempt, 5 FAILED."""
    add(conn, "anna", "bela", "carl", "dora", "emil")
    sid = submit_all(conn)
    end(conn, sid, 3, "FINISHED")
    end(conn, sid, 4, "FAILED", REFUSED_CONNECTION)
    end(conn, sid, 5, "FAILED", NO_ROOM)


@pytest.mark.usefixtures("story")
def test_a_list_is_filtered_and_comes_in_pages(aso: Aso) -> None:
    def ids(*options: str) -> list[int]:
        return [file["id"] for file in json.loads(aso("files", "list", "--json", *options).stdout)["files"]]

    assert ids() == [1, 2, 3, 4, 5]
    assert ids("--state", "done") == [3]
    assert ids("--user", "dora") == [4]
    assert ids("--task", "261122_103015_emil_analysis") == [5]
    assert ids("--source", "T2_CH_CERN") == []
    assert ids("--destination", "T2_CH_CERN", "--limit", "2", "--after", "1") == [2, 3]
    assert json.loads(aso("files", "list", "--json", "--limit", "2").stdout)["next_after"] == 2
    assert json.loads(aso("files", "list", "--json", "--limit", "5").stdout)["next_after"] is None


@pytest.mark.usefixtures("story")
def test_a_page_fits_a_terminal(aso: Aso) -> None:
    output = aso("files", "list", "--limit", "4").stdout
    assert max(map(len, output.splitlines())) <= 80
    assert "RETRY destination" in output
    assert "T2_IT_Bari → T2_CH_CERN" in output
    assert "out_4.root" in output
    assert "More: --after 4" in output
    assert "No such files." in aso("files", "list", "--user", "nobody").stdout


@pytest.mark.usefixtures("story")
@pytest.mark.parametrize(
    "wanted",
    ["5", "/store/temp/user/emil.abc/out_5.root", "/store/user/emil/out_5.root", "request id"],
)
def test_a_file_is_found_by_whatever_one_knows_of_it(aso: Aso, conn: Connection, wanted: str) -> None:
    if wanted == "request id":
        row = conn.execute("SELECT request_id FROM transfer WHERE id = 5").fetchone()
        assert row is not None
        wanted = row[0]
    assert json.loads(aso("files", "show", wanted, "--json").stdout)["id"] == 5


@pytest.mark.usefixtures("story")
def test_the_whole_story_of_a_file(aso: Aso) -> None:
    result = aso("files", "show", "5")
    assert result.exit_code == 0, result.output
    said = " ".join(result.stdout.split())
    for fact in (
        "File 5 FAILED",
        "261122_103015_emil_analysis, job 5",
        "output, 123.5 MB, adler32 00000abc",
        "davs://t2_it_bari.sandbox.test:8443/store/temp/user/emil.abc/out_5.root",
        f"{FTS_JOB} at fts3_default",
        "quota (60323)",
        "load, by maria",
        "stageout_transfer.group, try 1",
        "stageout_transfer.submit[2], try 1",
        "stageout_sense.update_catalogue, try 1",
        f"FTS job {FTS_JOB}, attempt 1",
        "the destination has no room",
    ):
        assert fact in said, fact
    assert NO_ROOM in said
    assert RUN_ID in said
    history = result.stdout[result.stdout.index("UTC   ") :]
    states = [line.split()[1] for line in history.splitlines() if line[:2].isdigit() and line[2] == ":"]
    assert states == ["NEW", "ACQUIRED", "SUBMITTED", "FAILED"]
    assert max(map(len, history.splitlines())) <= 80


@pytest.mark.usefixtures("story")
def test_the_story_for_programs(aso: Aso) -> None:
    file = json.loads(aso("files", "show", "4", "--json").stdout)
    assert file["state"] == "RETRY"
    assert file["next"].startswith("Its next attempt starts after ")
    assert [event["to_state"] for event in file["events"]] == ["NEW", "ACQUIRED", "SUBMITTED", "RETRY"]
    last = file["events"][-1]
    assert (last["dag_id"], last["run_id"], last["task_id"]) == ("stageout_sense", RUN_ID, "update_catalogue")
    assert last["reason"] == REFUSED_CONNECTION
    assert datetime.fromisoformat(last["at"]).tzinfo is not None


def test_no_such_file_is_a_sentence(aso: Aso) -> None:
    for wanted in ("17", "/store/user/nobody/[x].root", "99999999999999999999", "abc"):
        result = aso("files", "show", wanted)
        assert (result.exit_code, result.stdout) == (1, f"There is no file {wanted}.\n")


NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


def row(state: TransferState, **changes: Any) -> dict[str, Any]:
    return {
        "id": 7,
        "state": state.value,
        "due_at": NOW,
        "created_at": NOW,
        "fts_job_id": None,
        "publication": "NOT_REQUIRED",
        "failure_category": None,
    } | changes


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (row(TransferState.NEW), "next cycle"),
        (row(TransferState.ACQUIRED), "being submitted"),
        (row(TransferState.SUBMITTED, fts_job_id=FTS_JOB), str(FTS_JOB)),
        (row(TransferState.RETRY, due_at=NOW + timedelta(minutes=1)), "after 2026-11-22 12:01:00 UTC"),
        (row(TransferState.RETRY), "is due"),
        (row(TransferState.DONE), "at its destination."),
        (row(TransferState.DONE, publication="NEW"), "waits to be published (NEW)"),
        (row(TransferState.FAILED, failure_category="a word of tomorrow"), "read the reason"),
        (row(TransferState.FAILED), "read the reason"),
        (row(TransferState.KILL), "being stopped"),
        (row(TransferState.KILLED), "somebody stopped it"),
    ],
)
def test_what_comes_next(file: dict[str, Any], words: str) -> None:
    assert words in what_next(file, NOW)


def test_a_file_on_a_held_link_says_why() -> None:
    held = "breaker open since 12:03: 34 of 40 attempts failed, lately SOURCE [112]; next probe 12:08"
    for state in (TransferState.NEW, TransferState.RETRY):
        assert what_next(row(state), NOW, held).startswith(f"It waits, and uses no attempt: {held}")
    assert "breaker" not in what_next(row(TransferState.SUBMITTED), NOW, held)


def test_every_state_has_a_prospect_and_every_failure_a_remedy() -> None:
    for state in TransferState:
        assert what_next(row(state), NOW)
    assert set(REMEDIES) == set(Category)
    for category in Category:
        said = what_next(row(TransferState.FAILED, failure_category=category.value), NOW)
        assert f"({category})" in said
        assert said.endswith("aso retry 7.")
