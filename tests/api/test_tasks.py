"""Tasks over REST: how far they are, in one statement, and acted on as a whole."""

from __future__ import annotations

from psycopg import Connection

from api.conftest import ALICE, API, BOB, OPERATOR
from api.test_transfers import fail
from fixtures.catalogue import Add, Plan, record, states

URL = "/api/v1/tasks"
TASK = f"{URL}/261122_alice_task"


def test_a_task_says_how_far_it_is(api: API, conn: Connection, add: Add, submitted: Plan, step: int) -> None:
    add(record(0), record(1, publish=True))
    submitted()
    fail(conn, step)
    add(record(2))
    task = api(ALICE).get(TASK).json()
    assert task["states"] == {"NEW": 1, "FAILED": 2}
    assert task["bytes_by_state"] == {"NEW": 1002, "FAILED": 2001}
    assert task["publication"] == {"NOT_REQUIRED": 2, "NEW": 1}
    assert (task["files"], task["size_bytes"], task["is_final"]) == (3, 3003, False)
    assert task["oldest_waiting_at"] is not None
    assert task["failures"] == [{"state": "FAILED", "category": "refused", "files": 2, "example": "no"}]


def test_what_is_in_the_past_counts(api: API, conn: Connection, add: Add) -> None:
    add(record(0))
    api(ALICE).post(f"{TASK}/kill", json={})
    conn.execute(
        "WITH gone AS (DELETE FROM transfer RETURNING *) INSERT INTO transfer_history SELECT * FROM gone"
    )
    task = api(ALICE).get(TASK).json()
    assert (task["states"], task["is_final"]) == ({"KILLED": 1}, True)
    assert api(ALICE).get(URL).json()["tasks"][0]["states"] == {"KILLED": 1}
    again = api(ALICE).post(f"{TASK}/kill").json()
    assert again["counts"] == {"already_killed": 1}
    late = api(ALICE).post(f"{TASK}/retry", json={"killed_too": True}).json()
    assert (late["counts"], late["reasons"]) == ({"sent_again": 1}, {})


def test_tasks_are_ones_own(api: API, add: Add) -> None:
    add(record(0), record(1, username="bob"))
    add(record(2, task="261122_alice_other"))
    names = [task["task"] for task in api(ALICE).get(URL).json()["tasks"]]
    assert names == ["261122_alice_other", "261122_alice_task"]
    assert api(BOB).get(TASK).status_code == 404
    assert api(BOB).post(f"{TASK}/kill").status_code == 404
    operator = api(OPERATOR)
    page = operator.get(URL, params={"limit": 2}).json()
    rest = operator.get(URL, params={"limit": 2, "cursor": page["next_cursor"]}).json()
    assert len({task["task"] for task in page["tasks"] + rest["tasks"]}) == 3
    assert rest["next_cursor"] is None


def test_a_task_is_killed_and_sent_again(api: API, conn: Connection, add: Add) -> None:
    add(record(0), record(1))
    assert api(ALICE).post(f"{TASK}/kill", json={"dry_run": True}).json()["counts"] == {"killed": 2}
    assert api(ALICE).post(f"{TASK}/kill").json()["counts"] == {"killed": 2}
    assert api(ALICE).post(f"{TASK}/retry").json()["counts"] == {"killed": 2}
    assert api(ALICE).post(f"{TASK}/retry", json={"killed_too": True}).json()["counts"] == {"sent_again": 2}
    assert states(conn) == {"NEW": 2}
