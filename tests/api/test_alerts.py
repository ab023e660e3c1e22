"""Alerts, silences and channels over REST."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from psycopg import Connection

from api.conftest import API
from asyncstageout.catalogue.fts_servers import note_contact
from asyncstageout.catalogue.partitions import ensure_partitions
from asyncstageout.core.alert_channels import read_channels
from asyncstageout.steps.alerts import look

V1 = "/api/v1/alerts"
CHANNELS, _ = read_channels('[{"name": "chat", "kind": "slack"}]')
LATER = "2099-01-01T00:00:00Z"


@pytest.fixture
def down(conn: Connection) -> None:
    now = datetime.now(UTC)
    ensure_partitions(conn, now.date())
    note_contact(conn, "fts", "refused", now, refused=True)
    for ago in (timedelta(hours=1), timedelta(0)):
        look(conn, CHANNELS, now=now - ago, step_run=1)


def test_alerts(api: API, down: None) -> None:
    (alert,) = api().get(V1).json()
    assert (alert["rule"], alert["severity"], alert["state"], alert["runbook"]) == (
        "fts-server-down", "urgent", "open", "fts-server-down.md",
    )  # fmt: skip
    assert api().get(V1, params={"state": "over"}).json() == []
    assert api().get(V1, params={"state": "lost"}).status_code == 422
    detail = api().get(f"{V1}/{alert['alert_id']}").json()
    assert [event["kind"] for event in detail["events"]] == ["open"]
    assert api().get(f"{V1}/99").status_code == 404


def test_a_silence(api: API, down: None) -> None:
    made = api().post(
        f"{V1}/silences", json={"rule": "fts-*", "subject": "fts", "reason": "up", "ends_at": LATER}
    )
    assert (made.status_code, made.json()["author"]) == (201, "olga")
    number = made.json()["silence_id"]
    assert api().get(V1).json()[0]["silence_id"] == number
    assert [one["silence_id"] for one in api().get(f"{V1}/silences").json()] == [number]
    assert api().post(f"{V1}/silences/{number}/end").json()["ended_at"]
    assert api().post(f"{V1}/silences/{number}/end").status_code == 404
    assert api().get(f"{V1}/silences").json() == []
    assert len(api().get(f"{V1}/silences", params={"over": True}).json()) == 1
    assert {one["actor"] for one in api().get("/api/v1/changes?table=alert_silence").json()} == {"olga"}


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"rule": "nonsense"}, "#/rule"),
        ({"reason": " "}, "#/reason"),
        ({"reason": ""}, "#/reason"),
        ({"ends_at": "2020-01-01T00:00:00Z"}, "#/ends_at"),
        ({"subject": "[a-"}, "#/subject"),
    ],
)
def test_what_is_wrong_with_a_silence_is_named(api: API, changes: dict[str, str], pointer: str) -> None:
    answer = api().post(f"{V1}/silences", json={"reason": "r", "ends_at": LATER} | changes)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == pointer


def test_channels_and_their_test(api: API, down: None) -> None:
    (channel,) = api().get(f"{V1}/channels").json()
    assert (channel["name"], channel["waiting"], channel["problem"]) == ("chat", 1, None)
    assert api().post(f"{V1}/test", json={}).json() == {"messages": 1}
    assert api().post(f"{V1}/test", json={"channel": "pager"}).status_code == 404
