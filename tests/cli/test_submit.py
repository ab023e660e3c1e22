"""``aso submit``, ``watch``, ``kill``, ``retry`` and ``login``, through the real API."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from psycopg import Connection

from api.conftest import app, house, pool  # noqa: F401 -- fixtures
from asyncstageout.catalogue import kills, retries_by_people
from asyncstageout.catalogue.transitions import Move, apply_moves
from asyncstageout.cli import Advice, watch
from asyncstageout.cli.act import WORDS
from asyncstageout.client import Task
from asyncstageout.core.failures import Category, Failure, Kind
from asyncstageout.core.states import TransferState
from cli.conftest import Aso
from client.conftest import service_url  # noqa: F401 -- fixture
from clients.answering import Reply, answering
from fixtures.catalogue import Plan, record, states

TASK = "261122_alice_task"


@pytest.fixture(autouse=True)
def _as_alice(service_url: str, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setenv("ASO_API_URL", service_url)
    monkeypatch.setenv("ASO_API_TOKEN", "alice")


def ndjson(*records: Any) -> str:
    return "".join(f"{json.dumps(one)}\n" for one in records)


def test_a_list_gets_in_and_refusals_are_shown(conn: Connection, aso: Aso, tmp_path: Path) -> None:
    file = tmp_path / "requests.ndjson"
    file.write_text(ndjson(record(0), record(1, size_bytes=-1)) + "no JSON\n\n" + ndjson(record(2)))
    done = aso("submit", str(file))
    assert done.exit_code == 1
    assert "2 files taken in, 0 were there already, 2 refused." in done.output
    assert "size_bytes: Input should be greater than or equal to 0" in " ".join(done.output.split())
    assert states(conn) == {"NEW": 2}
    again = aso("submit", "--json", "-", typed=ndjson(record(0), record(2)))
    assert (again.exit_code, json.loads(again.stdout)["exists"]) == (0, 2)


def test_a_json_list_too(conn: Connection, aso: Aso, tmp_path: Path) -> None:
    file = tmp_path / "requests.json"
    file.write_text("\n " + json.dumps([record(0), record(1, username="bob")], indent=1))
    done = aso("submit", "--json", str(file))
    assert done.exit_code == 1
    assert json.loads(done.stdout)["refusals"][0]["line"] == 2
    assert states(conn) == {"NEW": 1}
    file.write_text("[{")
    assert isinstance(aso("submit", str(file)).exception, Advice)


def test_watching_ends_with_the_task(
    conn: Connection, aso: Aso, submitted: Plan, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    aso("submit", "-", typed=ndjson(record(0), record(1)))
    assert aso("watch", TASK, "--timeout", "0").exit_code == watch.TIME_OVER
    (job,) = submitted()
    first, second = job.transfer_ids
    apply_moves(conn, [Move(first, job.sid, TransferState.DONE)], step)
    failure = Failure(Category.QUOTA, 60322, Kind.NEEDS_HUMAN, "DESTINATION", 122, "no room")
    apply_moves(conn, [Move(second, job.sid, TransferState.FAILED, failure)], step)
    done = aso("watch", TASK)
    assert done.exit_code == 1
    assert done.output == "2 files: 1 DONE, 1 FAILED\n"
    again = aso("watch", TASK, "--json")
    assert (again.exit_code, again.stderr) == (1, "")
    assert json.loads(again.stdout)["states"] == {"DONE": 1, "FAILED": 1}


@pytest.mark.parametrize(
    ("states", "code"),
    [({"DONE": 2}, 0), ({"DONE": 1, "FAILED": 1, "KILLED": 1}, 1), ({"DONE": 1, "KILLED": 1}, 2)],
)
def test_the_exit_code_says_how_it_ended(states: dict[str, int], code: int) -> None:
    assert watch.exit_code(Task(TASK, "alice", states)) == code


def test_kill_asks_first(conn: Connection, aso: Aso) -> None:
    aso("submit", "-", typed=ndjson(*map(record, range(3))))
    assert aso("kill", "--task", TASK, "--dry-run").exit_code == 0
    refused = aso("kill", "--task", TASK, typed="n\n")
    assert "3  stopped" in refused.output
    assert refused.exit_code == 1
    assert states(conn) == {"NEW": 3}
    done = aso("kill", "--task", TASK, "--comment", "wrong data", typed="y\n")
    assert done.exit_code == 0
    assert states(conn) == {"KILLED": 3}
    assert "3  had been stopped before" in aso("kill", "--task", TASK, "--yes").output


def test_retry_sends_again(conn: Connection, aso: Aso) -> None:
    aso("submit", "-", typed=ndjson(*map(record, range(3))))
    aso("kill", "--task", TASK, "--yes")
    assert json.loads(aso("retry", "--task", TASK, "--yes", "--json").stdout)["counts"] == {"killed": 3}
    number = conn.execute("SELECT min(id) FROM transfer").fetchone()
    assert number is not None
    done = aso("retry", str(number[0]), "--killed-too", "--yes", "--json")
    assert json.loads(done.stdout)["files"] == [{"id": number[0], "outcome": "sent_again", "reason": None}]
    assert states(conn) == {"NEW": 1, "KILLED": 2}


def test_many_files_are_only_touched_by_who_says_how_many(
    conn: Connection, aso: Aso, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncstageout.api.acting.APPROVE_ABOVE", 2)
    monkeypatch.setenv("ASO_API_TOKEN", "olga")
    aso("submit", "-", typed=ndjson(*map(record, range(4))))
    refused = aso("kill", "--user", "alice", "--yes").exception
    assert str(refused) == "This is about 4 files; none was touched."
    assert getattr(refused, "remedy", "") == "If it is meant, say --yes-to 4."
    assert isinstance(aso("kill", "--site", "T2_IT_Bari", "--yes-to", "3").exception, Advice)
    assert states(conn) == {"NEW": 4}
    asked = aso("kill", "--site", "T2_IT_Bari", typed="y\n")
    assert "4  stopped" in asked.output
    assert states(conn) == {"KILLED": 4}
    again = ("retry", "--user", "alice", "--killed-too", "--ended-from", "2026-01-01", "--json")
    assert json.loads(aso(*again, "--category", "quota", "--yes-to", "9").stdout)["counts"] == {}
    assert json.loads(aso(*again, "--yes-to", "4").stdout)["counts"] == {"sent_again": 4}


def test_a_later_retry_of_a_job_is_told_apart(aso: Aso) -> None:
    aso("submit", "-", typed=ndjson(record(0)))
    done = aso("submit", "-", typed=ndjson(record(0, job_retry_count=1), record(1)))
    # As wide as whoever looks has it.
    assert " ".join(done.output.split()) == "1 files taken in, 1 sent again, 0 were there already, 0 refused."


def test_every_outcome_has_words() -> None:
    assert {*kills.OUTCOMES.values(), *retries_by_people.OUTCOMES.values()} <= set(WORDS)


def test_what_is_wrong_is_advice(aso: Aso, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert str(aso("watch", "no_such_task").exception).startswith("There is no task no_such_task")
    assert isinstance(aso("kill").exception, Advice)
    monkeypatch.setenv("ASO_API_TOKEN", "mallory")
    assert "aso login" in str(getattr(aso("watch", TASK).exception, "remedy", ""))
    monkeypatch.delenv("ASO_API_TOKEN")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert str(aso("watch", TASK).exception).startswith("No token:")
    monkeypatch.delenv("ASO_API_URL")
    assert str(aso("watch", TASK).exception) == "There is no service to ask."


def test_login_keeps_the_token_for_its_owner(
    aso: Aso, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("ASO_API_TOKEN")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    replies = {"right": Reply(201, b'{"access_token": "alice"}'), "wrong": Reply(401, b"{}")}
    with answering(lambda asked: replies[json.loads(asked.body)["password"]]) as airflow:
        wrong = aso("login", "--user", "alice", "--api-url", airflow.url, typed="wrong\n")
        assert "HTTP 401" in str(wrong.exception)
        done = aso("login", "--user", "alice", "--api-url", airflow.url, typed="right\n")
    assert done.exit_code == 0
    token = tmp_path / "asyncstageout" / "token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert "right" not in done.output
    assert str(aso("watch", "no_such_task").exception).startswith("There is no task")
