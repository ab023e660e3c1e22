"""Subscriptions and dead letters over REST."""

from __future__ import annotations

import pytest
from psycopg import Connection

from api.conftest import API
from asyncstageout.catalogue import outbox
from asyncstageout.catalogue.outbox import Refusal
from asyncstageout.catalogue.subscriptions import note_failing
from fixtures.catalogue import Add, record
from fixtures.receivers import subscribe

V1 = "/api/v1"
WANTED = {
    "name": "cms",
    "kind": "rucio",
    "conn_id": "rucio",
    "source": "T2_IT_Bari",
    "settings": {"logs": True},
}


def test_a_subscription_is_made_changed_paused_and_removed(api: API) -> None:
    client = api()
    made = client.put(f"{V1}/subscriptions", json=WANTED).json()
    assert made["subscription"]["events"] == ["transfer:DONE", "publication:DONE"]
    assert made["subscription"]["settings"]["rse"] == "{site}"
    assert (made["state"], made["health"], made["updated_by"]) == ("active", None, "olga")
    changed = client.put(
        f"{V1}/subscriptions", json=WANTED | {"source": None, "events": ["transfer:DONE"]}
    ).json()
    assert (changed["subscription"]["source"], changed["subscription"]["events"]) == (None, ["transfer:DONE"])
    paused = client.put(f"{V1}/subscriptions/cms/state", json={"state": "paused", "reason": "moves"}).json()
    assert (paused["state"], paused["reason"]) == ("paused", "moves")
    assert client.get(f"{V1}/subscriptions").json() == [paused]
    assert [one["actor"] for one in client.get(f"{V1}/changes?table=subscription").json()] == ["olga"] * 3
    assert client.delete(f"{V1}/subscriptions/cms").json() == {"discarded": 0}
    assert client.get(f"{V1}/subscriptions").json() == []


@pytest.mark.parametrize(
    ("changes", "status", "pointer"),
    [
        ({"kind": "mail"}, 422, "#"),
        ({"events": ["transfer:FAILED"]}, 422, "#/events"),
        ({"settings": {"rse": "{who}"}}, 422, "#/settings/rse"),
        ({"settings": {"password": "x"}}, 422, "#/settings/password"),
        ({"name": "No Name"}, 422, "#/name"),
        ({"source": "T2_FR_No"}, 422, None),
        ({"kind": "crab", "settings": {}}, 409, "#/kind"),
    ],
)
def test_what_is_wrong_is_named(
    api: API, changes: dict[str, object], status: int, pointer: str | None
) -> None:
    client = api()
    client.put(f"{V1}/subscriptions", json=WANTED)
    answer = client.put(f"{V1}/subscriptions", json=WANTED | changes)
    assert answer.status_code == status, answer.text
    if pointer:
        assert [one["pointer"] for one in answer.json()["errors"]] == [pointer], answer.text


def test_dead_letters_are_seen_replayed_and_discarded(
    conn: Connection, api: API, add: Add, step: int
) -> None:
    number = subscribe(conn, events=["transfer:NEW"])
    add(record(0), record(1, username="bob"))
    claimed = outbox.claim(conn, number, at_most=9, lease_s=9, step_run=step).messages
    outbox.refused(conn, [Refusal(one.number, "no scope", None) for one in claimed], step_run=step)
    note_failing(conn, number, "down", wait_s=60)
    client = api()
    (backlog,) = client.get(f"{V1}/outbox").json()
    assert (backlog["pending"], backlog["dead"], backlog["problem"]) == (0, 2, "down")
    (letter,) = client.get(f"{V1}/outbox/dead", params={"username": "bob", "limit": 5}).json()
    assert (letter["username"], letter["problem"], letter["holds_back"]) == ("bob", "no scope", 0)
    wish = {"numbers": [letter["number"]], "comment": "mended"}
    assert client.post(f"{V1}/outbox/replay", json=wish | {"dry_run": True}).json() == {
        "letters": 1,
        "dry_run": True,
    }
    assert client.post(f"{V1}/outbox/replay", json=wish).json() == {"letters": 1, "dry_run": False}
    assert client.post(f"{V1}/outbox/replay", json=wish).json()["letters"] == 0
    for body in ({}, {"everything": True, "subscription": "hook"}):
        assert client.post(f"{V1}/outbox/discard", json=body).status_code == 422
    assert client.post(f"{V1}/outbox/discard", json={"everything": True}).json()["letters"] == 1
    row = conn.execute(
        "SELECT reason FROM file_event WHERE kind = 'delivery' ORDER BY id DESC LIMIT 1"
    ).fetchone()
    assert row
    assert row[0].endswith("NEW: by olga")


def test_the_numbers_are_told(conn: Connection, api: API, add: Add) -> None:
    subscribe(conn, events=["transfer:NEW"])
    add(record(0))
    conn.execute("UPDATE outbox SET due_at = now() - interval '1 h'")
    text = api().get(f"{V1}/metrics").text
    assert 'stageout_outbox_messages{subscription="hook",state="pending"} 1' in text
    assert 'stageout_outbox_messages{subscription="hook",state="dead"} 0' in text
    assert 'stageout_subscription_well{subscription="hook"} 1' in text
    assert 'stageout_outbox_wait_seconds{subscription="hook"} 36' in text
