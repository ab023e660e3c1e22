"""Publication of tasks over REST: what is wrong is named, pages go on, and what is done is on record."""

from __future__ import annotations

from typing import Any

import pytest

from api.conftest import ALICE, API, SERVICE
from fixtures.publication import AT_ONCE, Press

URL = "/api/v1/tasks/261122_alice_task"


@pytest.mark.parametrize(
    ("wish", "field"),
    [
        ({"dbs": "fts3_default"}, "dbs"),
        ({"input_dataset": "/one/two"}, "input_dataset"),
        ({"is_complete": "perhaps"}, "is_complete"),
        ({"speed": 1}, "speed"),
    ],
)
def test_a_wish_that_cannot_be_is_named(press: Press, api: API, wish: dict[str, Any], field: str) -> None:
    press.arrive(0)
    answer = api(ALICE).put(f"{URL}/publication", json=wish)
    assert answer.status_code == 422
    assert field in answer.text


def test_what_is_not_said_stays(press: Press, api: API) -> None:
    press.arrive(0)
    service = api(SERVICE)
    service.put(f"{URL}/publication", json={"dbs": "dbs_a", "input_dataset": "/Mc/x-v1/AODSIM"})
    found = service.put(f"{URL}/publication", json={"with_parents": True}).json()
    assert (found["dbs"], found["input_dataset"], found["with_parents"]) == ("dbs_a", "/Mc/x-v1/AODSIM", True)
    found = service.put(f"{URL}/publication", json={"input_dataset": ""}).json()
    assert found["input_dataset"] is None
    said = press.conn.execute("SELECT actor, sentence FROM step_run ORDER BY id DESC LIMIT 1").fetchone()
    assert said == ("crab", "261122_alice_task: input_dataset ")


def test_blocks_come_page_by_page_the_newest_first(press: Press, api: API) -> None:
    for number in range(3):
        press.ready(number)
        press.run()
    page = api(ALICE).get(f"{URL}/blocks", params={"limit": 2}).json()
    rest = api(ALICE).get(f"{URL}/blocks", params={"limit": 2, "cursor": page["next_cursor"]}).json()
    ids = [one["id"] for one in page["blocks"] + rest["blocks"]]
    assert ids == sorted(ids, reverse=True)
    assert (len(ids), rest["next_cursor"]) == (3, None)
    assert {one["state"] for one in page["blocks"]} == {"PUBLISHED"}


def test_a_file_tells_what_happened_around_it(press: Press, api: API) -> None:
    (file,) = press.arrive(0)
    press.describe(0)
    press.run()
    beside = api(ALICE).get(f"/api/v1/transfers/{file}").json()["side_events"]
    assert [(one["kind"], one["to_state"]) for one in beside] == [
        ("publication", "ACQUIRED"), ("publication", "DONE"),
    ]  # fmt: skip
    assert beside[0]["subject"] == beside[1]["subject"]


def test_failed_files_go_again(press: Press, api: API) -> None:
    press.ready(0, outdataset="/no")
    press.assemble()
    url = f"{URL}/publication/retry"
    assert api(ALICE).post(url, json={"dry_run": True}).json()["files"] == 1
    answer = api(ALICE).post(url, json={"comment": "mended"}).json()
    assert answer == {"sentence": "1 file will go to DBS again", "dry_run": False, "files": 1}
    assert press.instances.rules is AT_ONCE
    assert press.publications() == {"NEW": 1}
