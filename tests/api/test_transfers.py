"""Files over REST: handed in item by item, paged, told about, killed and sent again."""

from __future__ import annotations

import json
from typing import Any

import pytest
from psycopg import Connection
from starlette.testclient import TestClient

from api.conftest import ALICE, API, BOB, OPERATOR, SERVICE
from asyncstageout.catalogue.history import move_finished
from asyncstageout.catalogue.transitions import Move, apply_moves
from asyncstageout.core.failures import Category, own_failure
from asyncstageout.core.naming import request_id
from asyncstageout.core.states import TransferState
from fixtures.catalogue import Add, Plan, assert_audited, record, states

URL = "/api/v1/transfers"
NDJSON = {"Content-Type": "application/x-ndjson"}


def posted(client: TestClient, *records: Any) -> dict[str, Any]:
    answer = client.post(URL, json=list(records))
    assert answer.status_code == 200, answer.text
    return answer.json()


def fail(conn: Connection, step: int) -> None:
    rows = conn.execute("SELECT id, fts_job FROM transfer WHERE state = 'SUBMITTED'").fetchall()
    failure = own_failure(Category.REFUSED, "no")
    apply_moves(conn, [Move(number, sid, TransferState.FAILED, failure) for number, sid in rows], step)


def test_a_bad_item_never_stops_a_good_one(api: API, conn: Connection) -> None:
    stranger = record(2, username="bob")
    answer = posted(
        api(ALICE), record(0), {"source": "x"}, stranger, "what", record(0), record(3, source="T2_XX_No")
    )
    assert [answer[name] for name in ("created", "again", "exists", "refused")] == [1, 0, 1, 4]
    outcomes = [(one["position"], one["outcome"], one["field"]) for one in answer["results"]]
    assert outcomes == [
        (0, "created", None),
        (1, "refused", "task"),
        (2, "refused", "username"),
        (3, "refused", "request"),
        (4, "exists", None),
        (5, "refused", None),
    ]
    assert answer["results"][2]["reason"] == "alice may not submit for bob"
    assert answer["results"][0]["request_id"] == request_id(record(0)["source_lfn"])
    assert states(conn) == {"NEW": 1}
    row = conn.execute("SELECT task_id, actor, outcome FROM step_run WHERE actor = 'alice'").fetchone()
    assert row == ("api: submit", "alice", "success")


def test_a_service_submits_for_its_users_only(api: API) -> None:
    answer = posted(api(SERVICE), record(0), record(1, username="bob"))
    assert (answer["created"], answer["refused"]) == (1, 1)


def test_a_later_retry_of_the_job_sends_its_file_again(api: API, conn: Connection) -> None:
    posted(api(ALICE), record(0), record(1))
    later = [record(number, job_retry_count=1, size_bytes=7) for number in range(2)]
    answer = posted(api(ALICE), *later, record(2, already_there=True))
    assert [one["outcome"] for one in answer["results"]] == ["again", "again", "created"]
    assert (answer["created"], answer["again"]) == (1, 2)
    assert conn.execute("SELECT sum(size_bytes) FROM transfer WHERE state = 'NEW'").fetchone() == (14,)
    row = conn.execute(
        "SELECT sentence FROM step_run WHERE actor = 'alice' ORDER BY id DESC LIMIT 1"
    ).fetchone()
    assert row == ("1 file taken in, 0 known already, 0 refused, 2 sent again",)
    (there,) = api(ALICE).get(URL, params={"state": "DONE"}).json()["transfers"]
    assert (there["size_bytes"], there["already_there"]) == (1002, True)
    events = api(ALICE).get(f"{URL}/{there['id']}").json()["events"]
    assert [(event["from_state"], event["to_state"], event["reason"]) for event in events] == [
        (None, "DONE", "written straight to its destination")
    ]


def test_an_object_with_transfers_is_a_list(api: API) -> None:
    answer = api(ALICE).post(URL, json={"transfers": [record(0)]})
    assert answer.json()["created"] == 1


@pytest.mark.parametrize(
    ("body", "status"), [(b"{", 400), (b"{}", 422), (b"3", 422), (b"[" + b"1," * 10_000 + b"1]", 413)]
)
def test_what_is_no_list_is_refused(api: API, body: bytes, status: int) -> None:
    answer = api(ALICE).post(URL, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


def test_lines_are_answered_by_lines(api: API, conn: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncstageout.api.streaming.BATCH_LINES", 4)
    lines = [json.dumps(record(number)) for number in range(10)]
    lines[3] = "no json"
    text = "\n".join(lines[:5]) + "\n\n" + "\r\n".join(lines[5:])
    pieces = (text[at : at + 700].encode() for at in range(0, len(text), 700))
    answer = api(ALICE).post(URL, content=pieces, headers=NDJSON)
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    results = [json.loads(line) for line in answer.text.splitlines()]
    assert [one["position"] for one in results] == list(range(10))
    assert [one["position"] for one in results if one["outcome"] == "refused"] == [3]
    assert states(conn) == {"NEW": 9}
    batches = conn.execute("SELECT count(*) FROM step_run WHERE task_id = 'api: submit'").fetchone()
    assert batches == (3,)


def test_an_endless_line_is_refused(api: API) -> None:
    answer = api(ALICE).post(URL, content=b"x" * 100_000, headers=NDJSON)
    assert answer.status_code == 413


def page_through(client: TestClient, **query: Any) -> list[int]:
    met: list[int] = []
    while True:
        page = client.get(URL, params=query).json()
        met += [one["id"] for one in page["transfers"]]
        if page["next_cursor"] is None:
            return met
        query["cursor"] = page["next_cursor"]


def test_pages_are_newest_first_and_meet_every_file_once(api: API, add: Add) -> None:
    add(*(record(number) for number in range(7)))
    add(*(record(number, username="bob") for number in range(3)))
    everything = page_through(api(OPERATOR), limit=2)
    assert everything == sorted(everything, reverse=True)
    assert len(everything) == 10
    assert len(page_through(api(ALICE), limit=3)) == 7
    assert len(page_through(api(OPERATOR), limit=2, username="bob", state=["NEW", "DONE"])) == 3
    assert page_through(api(OPERATOR), state="DONE") == []
    assert len(page_through(api(OPERATOR), source="T2_IT_Bari", task="261122_bob_task")) == 3
    assert page_through(api(BOB), task="261122_alice_task") == []


@pytest.mark.parametrize("cursor", ["x", "dGFza3M6Nw", "dHJhbnNmZXJzOg", "dHJhbnNmZXJzOng", "\x00"])
def test_a_foreign_cursor_is_refused(api: API, cursor: str) -> None:
    answer = api(ALICE).get(URL, params={"cursor": cursor})
    assert answer.status_code == 422, answer.text


def test_the_time_of_arrival_bounds_a_list(api: API, add: Add) -> None:
    add(record(0))
    assert page_through(api(ALICE), since="2100-01-01T00:00:00Z") == []
    assert len(page_through(api(ALICE), until="2100-01-01T00:00:00Z")) == 1
    assert api(ALICE).get(URL, params={"since": "2100-01-01T00:00:00"}).status_code == 422


def test_another_users_files_are_not_there(api: API, add: Add) -> None:
    (answer,) = add(record(0))
    assert api(BOB).get(f"{URL}/{answer.request_id}").status_code == 404
    assert api(BOB).get(URL, params={"username": "alice"}).status_code == 403


def test_a_file_tells_all_about_itself(
    api: API, conn: Connection, add: Add, submitted: Plan, step: int
) -> None:
    (answer,) = add(record(0))
    waiting = api(ALICE).get(f"{URL}/{answer.request_id}").json()
    assert waiting["state"] == "NEW"
    assert waiting["waits_because"] is None
    assert waiting["what_next"].startswith("It waits for the next cycle")
    submitted()
    fail(conn, step)
    file = api(ALICE).get(f"{URL}/{waiting['id']}").json()
    assert [event["to_state"] for event in file["events"]] == ["NEW", "ACQUIRED", "SUBMITTED", "FAILED"]
    assert [job["fts_server"] for job in file["jobs"]] == ["fts"]
    assert file["fts_job_id"] == file["jobs"][0]["fts_job_id"]
    assert file["failure_meaning"] == "FTS did not take the file"
    assert file["source_url"].startswith("davs://")


def test_kill_says_what_became_of_each(api: API, conn: Connection, add: Add, submitted: Plan) -> None:
    (flying,) = add(record(0))
    submitted()
    (waiting,) = add(record(1))
    (foreign,) = add(record(2, username="bob"))
    ids = [flying.request_id, waiting.request_id, foreign.request_id, 999_999]
    alice = api(ALICE)
    would = alice.post(f"{URL}/kill", json={"ids": ids, "dry_run": True}).json()
    assert states(conn) == {"SUBMITTED": 1, "NEW": 2}
    did = alice.post(f"{URL}/kill", json={"ids": ids, "comment": "wrong dataset"}).json()
    assert [one["outcome"] for one in did["files"]] == ["being_killed", "killed", "not_yours", "not_yours"]
    assert would["counts"] == did["counts"] == {"being_killed": 1, "killed": 1, "not_yours": 2}
    assert did["sentence"] == "1 killed, 1 being killed, 2 not there or not yours"
    again = alice.post(f"{URL}/kill", json={"ids": ids}).json()
    assert again["counts"] == {"already_being_killed": 1, "already_killed": 1, "not_yours": 2}
    assert states(conn) == {"KILL": 1, "KILLED": 1, "NEW": 1}
    events = alice.get(f"{URL}/{waiting.request_id}").json()["events"]
    assert [(event["to_state"], event["reason"]) for event in events[1:]] == [
        ("KILL", "killed by alice: wrong dataset"),
        ("KILLED", "killed by alice: wrong dataset"),
    ]
    assert events[-1]["actor"] == "alice"
    assert_audited(conn)


def test_retry_sends_failed_files_again(
    api: API, conn: Connection, add: Add, submitted: Plan, step: int
) -> None:
    add(record(0), record(1))
    submitted()
    fail(conn, step)
    would = api(ALICE).post(f"{URL}/retry", json={"task": "261122_alice_task", "dry_run": True}).json()
    did = api(ALICE).post(f"{URL}/retry", json={"task": "261122_alice_task"}).json()
    assert would["counts"] == did["counts"] == {"sent_again": 2}
    assert states(conn) == {"NEW": 2}
    again = api(ALICE).post(f"{URL}/retry", json={"username": "alice"}).json()
    assert again["counts"] == {"already_waiting": 2}
    assert_audited(conn)


@pytest.mark.parametrize(
    ("wish", "status"),
    [
        ({}, 422),
        ({"ids": []}, 422),
        ({"ids": [1], "other": 1}, 422),
        ({"source": "T2_IT_Bari"}, 403),
        ({"username": "bob"}, 403),
        ({"task": "261122_bob_task"}, 404),
        ({"task": "no_such_task"}, 404),
    ],
)
@pytest.mark.parametrize("what", ["kill", "retry"])
def test_a_selection_must_be_ones_own(
    api: API, add: Add, what: str, wish: dict[str, Any], status: int
) -> None:
    add(record(0, username="bob"))
    answer = api(ALICE).post(f"{URL}/{what}", json=wish)
    assert answer.status_code == status, answer.text


def test_an_operator_kills_a_link(api: API, conn: Connection, add: Add) -> None:
    add(record(0), record(1, source="T2_US_MIT"))
    wish = {"source": "T2_US_MIT", "destination": "T2_CH_CERN"}
    assert api(OPERATOR).post(f"{URL}/kill", json=wish).json()["counts"] == {"killed": 1}
    assert states(conn) == {"NEW": 1, "KILLED": 1}


def test_the_ends_of_files_select_what_is_sent_again(
    api: API, conn: Connection, add: Add, submitted: Plan, step: int
) -> None:
    add(record(0), record(1, source="T2_US_MIT"), record(2, destination="T1_DE_KIT"))
    submitted()
    fail(conn, step)
    conn.execute("UPDATE transfer SET ended_at = now() - interval '60 d' WHERE id % 2 = 1")
    move_finished(conn)
    again = {"dry_run": True, "killed_too": True}

    def would(**wish: Any) -> dict[str, int]:
        answer = api(OPERATOR).post(f"{URL}/retry", json=wish | again)
        assert answer.status_code == 200, answer.text
        return answer.json()["counts"]

    long_ago = "2000-01-01T00:00:00Z"
    assert would(category="refused") == {"sent_again": 1}, "the past only where it is bounded"
    assert would(category="refused", ended_from=long_ago) == {"sent_again": 3}
    assert would(category="quota", ended_from=long_ago) == {}
    assert would(ended_from=long_ago, ended_to="2001-01-01T00:00:00Z") == {}
    assert would(site="T1_DE_KIT", ended_from=long_ago) == {"sent_again": 1}
    assert would(site="T2_US_MIT") == {"sent_again": 1}
    assert api(OPERATOR).post(f"{URL}/kill", json={"category": "quota"}).status_code == 422
    assert api(OPERATOR).post(f"{URL}/retry", json={"category": "bad luck"}).status_code == 422
    assert api(ALICE).post(f"{URL}/retry", json={"category": "quota"}).status_code == 403
    done = api(OPERATOR).post(f"{URL}/retry", json={"ended_from": long_ago}).json()
    assert done["counts"] == {"sent_again": 3}
    assert states(conn) == {"NEW": 3}
    assert_audited(conn)


@pytest.mark.parametrize("what", ["kill", "retry"])
def test_many_files_are_not_touched_by_mistake(
    api: API,
    *,
    conn: Connection,
    add: Add,
    submitted: Plan,
    step: int,
    what: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("asyncstageout.api.acting.APPROVE_ABOVE", 3)
    add(*(record(number) for number in range(5)))
    if what == "retry":
        submitted()
        fail(conn, step)
    before = states(conn)
    wish = {"source": "T2_IT_Bari"}
    for wishes in (wish, wish | {"expected_files": 4}):
        refused = api(OPERATOR).post(f"{URL}/{what}", json=wishes)
        assert refused.status_code == 409
        problem = refused.json()
        assert problem["type"].endswith(":needs-approval")
        assert problem["files"] == 5
        assert "expected_files: 5" in problem["detail"]
        assert states(conn) == before
    assert api(OPERATOR).post(f"{URL}/{what}", json=wish | {"dry_run": True}).status_code == 200
    done = api(OPERATOR).post(f"{URL}/{what}", json=wish | {"expected_files": 5})
    assert sum(done.json()["counts"].values()) == 5
    assert states(conn) != before


@pytest.mark.parametrize(
    "wish", [{"username": "alice"}, {"task": "261122_alice_task"}, {"ids": [1, 2, 3, 4, 5]}]
)
def test_who_says_exactly_what_he_means_is_not_bothered(
    api: API, add: Add, wish: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncstageout.api.acting.APPROVE_ABOVE", 3)
    add(*(record(number) for number in range(5)))
    assert api(ALICE).post(f"{URL}/kill", json=wish).json()["counts"] == {"killed": 5}
