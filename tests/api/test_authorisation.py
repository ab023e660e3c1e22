"""Who may do what: every route, each role, his own files and those of others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from psycopg import Connection

from api.conftest import ALICE, ANY_SERVICE, API, BOB, OPERATOR, SERVICE
from asyncstageout.api.callers import who_asks
from asyncstageout.core.callers import Caller, Role
from asyncstageout.core.naming import request_id
from fixtures.catalogue import Add, record
from fixtures.publication import DATASET, body

OTHER_SERVICE = Caller("cron", Role.SERVICE, frozenset({"bob"}))
"""Acts for bob alone."""
EVERYBODY = (BOB, OTHER_SERVICE, ALICE, SERVICE, ANY_SERVICE, OPERATOR)
STRANGERS = frozenset({BOB.name, OTHER_SERVICE.name})
USERS = frozenset({ALICE.name, BOB.name})
NOT_OPERATORS = frozenset(caller.name for caller in EVERYBODY if caller is not OPERATOR)
NOBODY: frozenset[str] = frozenset()

V1 = "/api/v1"
CRAB = "/crabserver/{instance}"
HERS = record(1)
TASK = HERS["task"]
ID = request_id(HERS["source_lfn"])
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@dataclass(frozen=True)
class Call:
    """How a route is asked about a file of alice's, and what who may not is told."""

    refused: frozenset[str] = STRANGERS
    """Who may not."""
    status: int = 404
    """Told to who may not; 200: that there is nothing, or nothing was done."""
    allowed: int = 200
    """Told to all others."""
    tells: str = ""
    """Stands in the answer to who may, and in no other."""
    options: dict[str, Any] = field(default_factory=dict)


def for_operators(allowed: int = 200, **options: Any) -> Call:
    return Call(NOT_OPERATORS, 403, allowed, options=options)


PAUSE = {"mode": "pause", "site": "T2_IT_Bari", "reason": "r"}
SILENCE = {"reason": "r", "ends_at": "2099-01-01T00:00:00Z"}
METADATA = [{"source_lfn": HERS["source_lfn"], "task": TASK, "username": "alice", "body": body(1)}]
CRAB_METADATA = {
    "taskname": TASK, "outtype": "EDM", "outdatasetname": DATASET, "acquisitionera": "null",
    "appver": "CMSSW_14_0_1", "publishdataname": "test-0a1b", "outlocation": "T2_CH_CERN",
    "outtmplocation": "T2_IT_Bari", "checksumadler32": "2", "checksummd5": "asda", "checksumcksum": 1,
    "outlfn": HERS["destination_lfn"], "outsize": 1, "events": 1, "outfileruns": "1", "outfilelumis": "7",
}  # fmt: skip
CRAB_FILE = {"taskname": TASK, "username": "alice"}
CRAB_NEW = CRAB_FILE | {
    "id": request_id("/store/temp/user/alice.abc/mc/out_2.root"), "source": "T2_IT_Bari",
    "destination": "T2_CH_CERN", "source_lfn": "/store/temp/user/alice.abc/mc/out_2.root",
    "destination_lfn": "/store/user/alice/mc/out_2.root", "filesize": 10, "publish": 0, "job_id": "1",
    "job_retry_count": 0, "type": "output", "start_time": 1, "transfer_state": "NEW",
    "publication_state": "NOT_REQUIRED",
}  # fmt: skip

CALLS: dict[tuple[str, str], Call] = {
    ("POST", f"{V1}/transfers"): Call(status=200, tells='"outcome":"exists"', options={"json": [HERS]}),
    ("GET", f"{V1}/transfers"): Call(status=200, tells=ID),
    ("GET", f"{V1}/transfers/{{file_id}}"): Call(tells=HERS["source_lfn"]),
    ("POST", f"{V1}/transfers/kill"): Call(
        status=200, tells='"outcome":"killed"', options={"json": {"ids": [ID], "dry_run": True}}
    ),
    ("POST", f"{V1}/transfers/retry"): Call(
        status=200, tells='"outcome":"already_waiting"', options={"json": {"ids": [ID]}}
    ),
    ("GET", f"{V1}/tasks"): Call(status=200, tells=TASK),
    ("GET", f"{V1}/tasks/{{task}}"): Call(tells='"username":"alice"'),
    ("POST", f"{V1}/tasks/{{task}}/kill"): Call(options={"json": {"dry_run": True}}),
    ("POST", f"{V1}/tasks/{{task}}/retry"): Call(options={"json": {}}),
    ("PUT", f"{V1}/file-metadata"): Call(status=200, tells='"reason":null', options={"json": METADATA}),
    ("GET", f"{V1}/file-metadata"): Call(options={"params": {"task": TASK}}),
    ("GET", f"{V1}/tasks/{{task}}/publication"): Call(tells='"username":"alice"'),
    ("PUT", f"{V1}/tasks/{{task}}/publication"): Call(
        tells='"dbs":"dbs_phys03"', options={"json": {"dbs": "dbs_phys03"}}
    ),
    ("GET", f"{V1}/tasks/{{task}}/blocks"): Call(tells='"blocks":[]'),
    ("POST", f"{V1}/tasks/{{task}}/publication/retry"): Call(options={"json": {"dry_run": True}}),
    ("GET", f"{V1}/policies"): for_operators(),
    ("PUT", f"{V1}/policies"): for_operators(json={"settings": {"max_attempts": 4}}),
    ("DELETE", f"{V1}/policies"): for_operators(404),
    ("GET", f"{V1}/restrictions"): for_operators(),
    ("POST", f"{V1}/restrictions"): for_operators(201, json=PAUSE),
    ("POST", f"{V1}/restrictions/{{restriction_id}}/lift"): for_operators(404),
    ("GET", f"{V1}/changes"): for_operators(),
    ("GET", f"{V1}/servers"): for_operators(),
    ("GET", f"{V1}/cleaning"): for_operators(),
    ("GET", f"{V1}/cleaning/failed"): for_operators(),
    ("GET", f"{V1}/cleaning/sweeps"): for_operators(),
    ("GET", f"{V1}/subscriptions"): for_operators(),
    ("PUT", f"{V1}/subscriptions"): for_operators(json={"name": "a", "kind": "crab", "conn_id": "c"}),
    ("PUT", f"{V1}/subscriptions/{{name}}/state"): for_operators(404, json={"state": "paused"}),
    ("DELETE", f"{V1}/subscriptions/{{name}}"): for_operators(404),
    ("GET", f"{V1}/alerts"): for_operators(),
    ("GET", f"{V1}/alerts/{{alert_id}}"): for_operators(404),
    ("GET", f"{V1}/alerts/channels"): for_operators(),
    ("POST", f"{V1}/alerts/test"): for_operators(404, json={}),
    ("GET", f"{V1}/alerts/silences"): for_operators(),
    ("POST", f"{V1}/alerts/silences"): for_operators(201, json=SILENCE),
    ("POST", f"{V1}/alerts/silences/{{silence_id}}/end"): for_operators(404),
    ("GET", f"{V1}/outbox"): for_operators(),
    ("GET", f"{V1}/outbox/dead"): for_operators(),
    ("POST", f"{V1}/outbox/replay"): for_operators(json={"everything": True}),
    ("POST", f"{V1}/outbox/discard"): for_operators(json={"everything": True}),
    ("GET", f"{V1}/statistics"): Call(status=200, tells='"arrived":1'),
    ("GET", f"{V1}/metrics"): Call(NOBODY),
    ("GET", f"{CRAB}/fileusertransfers"): Call(
        status=200, tells=HERS["source_lfn"], options={"params": {"subresource": "getById", "id": ID}}
    ),
    ("PUT", f"{CRAB}/fileusertransfers"): Call(status=403, options={"data": CRAB_NEW, "headers": FORM}),
    ("POST", f"{CRAB}/fileusertransfers"): Call(
        status=403, options={"data": CRAB_FILE | {"subresource": "killTransfers"}, "headers": FORM}
    ),
    ("GET", f"{CRAB}/filetransfers"): Call(
        USERS, 403, options={"params": {"subresource": "acquiredTransfers", "asoworker": "w", "grouping": 0}}
    ),
    ("PUT", f"{CRAB}/filemetadata"): Call(status=400, options={"data": CRAB_METADATA, "headers": FORM}),
    ("POST", f"{CRAB}/filemetadata"): Call(
        status=200,
        options={
            "data": {"taskname": TASK, "outlfn": HERS["destination_lfn"], "filestate": "FINISHED"},
            "headers": FORM,
        },
    ),
    ("GET", f"{CRAB}/filemetadata"): Call(
        status=200, options={"params": {"taskname": TASK, "filetype": "EDM"}}
    ),
    ("POST", f"{CRAB}/filetransfers"): Call(
        USERS, 403, options={"data": {"subresource": "acquireTransfers", "asoworker": "w"}, "headers": FORM}
    ),
}  # fmt: skip
OPEN = {("GET", f"{V1}/health")}
"""Routes for anybody."""


def routes(app: FastAPI) -> Iterator[tuple[str, APIRoute]]:
    for route in app.routes:
        if isinstance(route, APIRoute):
            yield from ((method, route) for method in sorted(route.methods))


def needs(dependant: Dependant, wanted: Callable[..., Any]) -> bool:
    return dependant.call is wanted or any(needs(one, wanted) for one in dependant.dependencies)


def test_every_route_is_in_the_table(app: FastAPI) -> None:
    assert {(method, route.path) for method, route in routes(app)} == CALLS.keys() | OPEN


def test_every_route_says_that_it_wants_to_know_who_asks(app: FastAPI) -> None:
    anonymous = {
        (method, route.path) for method, route in routes(app) if not needs(route.dependant, who_asks)
    }
    assert anonymous == OPEN


@pytest.mark.parametrize(("method", "path"), CALLS)
def test_who_may_and_who_may_not(method: str, path: str, api: API, add: Add, conn: Connection) -> None:
    add(HERS)
    call = CALLS[method, path]
    url = path.format(
        file_id=ID, task=TASK, restriction_id=1, instance="prod", name="nobody", alert_id=7, silence_id=7
    )
    if method == "GET" and path.endswith("file-metadata"):
        assert api(ALICE).put(f"{V1}/file-metadata", json=METADATA).status_code == 200
    before = conn.execute("SELECT count(*), max(id) FROM transfer_event").fetchone()

    assert api(None).request(method, url, **call.options).status_code == 401
    for caller in sorted(EVERYBODY, key=lambda one: one.name not in call.refused):
        answer = api(caller).request(method, url, **call.options)
        if caller.name in call.refused:
            assert answer.status_code == call.status, (caller, answer.text)
            assert not call.tells or call.tells not in answer.text, caller
            assert conn.execute("SELECT count(*), max(id) FROM transfer_event").fetchone() == before
        else:
            assert answer.status_code == call.allowed, (caller, answer.text)
            assert call.tells in answer.text, caller
