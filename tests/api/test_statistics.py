"""Statistics over REST: operators see all, everybody his own, and every time that is asked for is a time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from psycopg import Connection

from api.conftest import ALICE, ANY_SERVICE, API, BOB, OPERATOR, SERVICE
from asyncstageout.catalogue.rollups import roll_up_hour
from asyncstageout.catalogue.transitions import Move, apply_moves
from asyncstageout.core.callers import Caller
from asyncstageout.core.failures import classify
from asyncstageout.core.states import TransferState
from fixtures.catalogue import Add, Plan, record
from fixtures.past import happened_at

URL = "/api/v1/statistics"
S = TransferState
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
TIMES = {"since": "2026-11-22T00:00:00Z", "until": "2026-11-23T00:00:00Z"}


@pytest.fixture
def lived(conn: Connection, add: Add, submitted: Plan, step: int) -> Connection:
    """12:00: of alice's two files one is done and one failed, bob's is done."""
    add(record(1), record(2), record(3, username="bob", source="T2_US_MIT"))
    moves = [
        Move(number, job.sid, S.DONE, fts_finished_at=datetime.now(UTC))
        for job in submitted() for number in job.transfer_ids
    ]  # fmt: skip
    moves[0] = Move(moves[0].transfer_id, moves[0].fts_job, S.FAILED, classify("HTTP 507"))
    apply_moves(conn, moves, step)
    happened_at(conn, NOON, spread_s=60)
    roll_up_hour(conn, NOON, step_run=step)
    return conn


def rows(api: API, caller: Caller = OPERATOR, **asked: Any) -> list[dict[str, Any]]:
    answer = api(caller).get(URL, params=TIMES | asked)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["rows"])


def test_all_that_happened(api: API, lived: Connection) -> None:
    answer = api(OPERATOR).get(URL, params=TIMES | {"delays": True}).json()
    assert answer["counted_until"] == "2026-11-22T13:00:00Z"
    (row,) = answer["rows"]
    assert (row["arrived"], row["done"], row["failed"], row["done_bytes"]) == (3, 2, 1, 2005)
    assert row["failures"] == {"quota": 1}
    assert row["efficiency"] == pytest.approx(2 / 3)
    assert set(row["done_after"]) == {"p50_s", "p95_s", "p99_s"}
    (row,) = rows(api)
    assert row["done_after"] is None, "they were not asked for"


def test_by_what_it_happened_to(api: API, lived: Connection) -> None:
    links = [(row["source"], row["destination"], row["done"]) for row in rows(api, by="link", order="name")]
    assert links == [("T2_IT_Bari", "T2_CH_CERN", 1), ("T2_US_MIT", "T2_CH_CERN", 1)]
    assert [row["source"] for row in rows(api, by="link", order="failures", limit=1)] == ["T2_IT_Bari"]
    assert [row["source"] for row in rows(api, by="link", source="T2_US_MIT", destination="T2_CH_CERN")] == [
        "T2_US_MIT"
    ]
    assert [row["destination"] for row in rows(api, by="destination")] == ["T2_CH_CERN"]
    (task,) = rows(api, by="task", username="bob")
    assert (task["task"], task["username"], task["source"]) == ("261122_bob_task", "bob", None)


def test_over_time(api: API, lived: Connection) -> None:
    minutes = rows(api, every_s=300)
    assert sum(row["done"] for row in minutes) == 2
    assert {row["at"] for row in minutes} <= {f"2026-11-22T12:{minute:02}:00Z" for minute in (0, 5, 10)}
    hours = rows(api, by="user", username="alice", every_s=3600)
    assert [(row["at"], row["done"]) for row in hours] == [("2026-11-22T12:00:00Z", 1)]


@pytest.mark.parametrize(
    ("caller", "arrived"), [(ALICE, 2), (BOB, 1), (SERVICE, 2), (ANY_SERVICE, 3), (OPERATOR, 3)], ids=str
)
def test_one_sees_ones_own(api: API, lived: Connection, caller: Caller, arrived: int) -> None:
    (row,) = rows(api, caller)
    assert row["arrived"] == arrived
    assert sum(row["arrived"] for row in rows(api, caller, by="user")) == arrived
    assert sum(row["arrived"] for row in rows(api, caller, by="task")) == arrived
    assert sum(row["arrived"] for row in rows(api, caller, every_s=900)) == arrived


@pytest.mark.parametrize(
    ("asked", "status", "kind"),
    [
        ({"by": "link"}, 403, "operators-only"),
        ({"by": "source"}, 403, "operators-only"),
        ({"by": "user", "username": "bob"}, 403, "not-yours"),
        ({"by": "user", "source": "T2_US_MIT"}, 422, "not-counted"),
        ({"source": "T2_US_MIT"}, 422, "not-counted"),
        ({"since": "2026-11-24T00:00:00Z"}, 422, "no-such-time"),
        ({"since": "2001-01-01T00:00:00Z"}, 422, "no-such-time"),
        ({"every_s": 90}, 422, "no-such-pieces"),
        ({"every_s": 5400}, 422, "no-such-pieces"),
        ({"every_s": 60}, 422, "too-many-rows"),
    ],
)
def test_what_cannot_be_asked(
    api: API, lived: Connection, asked: dict[str, Any], status: int, kind: str
) -> None:
    answer = api(ALICE).get(URL, params=TIMES | asked)
    assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (status, kind), answer.text


def test_what_happens_now_is_counted_live(api: API, add: Add) -> None:
    add(record(1))
    (row,) = api(ALICE).get(URL).json()["rows"]
    assert row["arrived"] == 1
    now = datetime.now(UTC) - timedelta(minutes=10)
    minutes = api(OPERATOR).get(URL, params={"since": now.isoformat(), "every_s": 60}).json()["rows"]
    assert sum(row["arrived"] for row in minutes) == 1
