"""CRAB's interface: who may call what, what is refused and how, and that nothing that is sent breaks it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import Connection

from api.conftest import ALICE, ANY_SERVICE, API, BOB, OPERATOR, SERVICE
from api.crab_clients import CrabRest, FTSScript, PostJob, encoded, rows
from asyncstageout.api.crab import filetransfers, fileusertransfers
from asyncstageout.catalogue.crab_rows import COLUMNS
from asyncstageout.core.callers import Caller, Role
from fixtures.catalogue import states

CHANGES, QUESTIONS = filetransfers.CHANGES, filetransfers.QUESTIONS
MINIMAL: dict[str, dict[str, Any]] = {
    "updateTransfers": {"list_of_ids": "0" * 56, "list_of_transfer_state": "DONE"},
    "updatePublication": {"list_of_ids": "0" * 56, "list_of_publication_state": "DONE"},
    "updateRucioInfo": {"list_of_ids": "0" * 56},
    "killTransfers": {"list_of_ids": "0" * 56},
    "retryTransfers": {"time_to": 1},
    "retryPublication": {"time_to": 1},
    "getVOMSAttributesForTask": {"taskname": "a"},
}
FOR_USERS = {
    "updateTransfers", "updatePublication", "updateRucioInfo", "killTransfers", "getVOMSAttributesForTask",
    "groupedTransferStatistics", "groupedPublishStatistics",
}  # fmt: skip


@pytest.mark.parametrize("caller", [ALICE, SERVICE, ANY_SERVICE, OPERATOR], ids=lambda caller: caller.name)
@pytest.mark.usefixtures("conn")
def test_who_may_call_what(api: API, caller: Caller) -> None:
    rest, basis = CrabRest(api(caller)), {"asoworker": "schedd", "grouping": 0}
    for name in (*CHANGES, *QUESTIONS):
        asked = encoded({"subresource": name} | basis | MINIMAL.get(name, {}))
        answer = rest.call("GET" if name in QUESTIONS else "POST", "filetransfers", asked)
        allowed = caller.role is not Role.USER or name in FOR_USERS
        assert answer.status_code == (200 if allowed else 403), (name, answer.text)
        assert ("result" in answer.json()) == allowed


@pytest.fixture
def post_job(api: API) -> PostJob:
    post_job = PostJob(CrabRest(api(ALICE)))
    post_job.inject(1)
    return post_job


def test_nobody_sees_or_touches_anothers_files(conn: Connection, api: API, post_job: PostJob) -> None:
    bob, ids = CrabRest(api(BOB)), [post_job.id(1)]
    assert bob.get("fileusertransfers", subresource="getById", id=ids[0])["result"] == []
    status = encoded({"subresource": "getTransferStatus", "username": "alice", "taskname": post_job.task})
    assert bob.call("GET", "fileusertransfers", status).status_code == 403
    assert FTSScript(bob).mark_transferred(ids)["result"] == [{"modified": 0, "refused": ids}]
    assert bob.call("PUT", "fileusertransfers", encoded(post_job.insert(2))).status_code == 403
    his = {"subresource": "killTransfersById", "username": "bob", "listOfIds": ids}
    assert bob.post("fileusertransfers", repeated=("listOfIds",), **his)["result"] == [
        {"killed": [], "failedKill": ids}
    ]
    count = {"subresource": "groupedTransferStatistics", "grouping": 0}
    assert bob.get("filetransfers", **count)["result"] == []
    assert CrabRest(api(SERVICE)).get("filetransfers", **count)["result"] == [[1, "schedd", 1]]
    assert states(conn) == {"ACQUIRED": 1}
    assert api(None).get("/crabserver/prod/filetransfers").status_code == 401


def test_rows_have_the_columns_of_crab(post_job: PostJob) -> None:
    answer = post_job.rest.get("fileusertransfers", subresource="getById", id=post_job.id(1))
    assert answer["desc"]["columns"] == list(COLUMNS)
    (file,) = rows(answer)
    assert {name: file[name] for name in post_job.insert(1) if name in file} == {
        name: value
        for name, value in post_job.insert(1).items()
        if name in file
    } | {"transfer_state": 1, "publication_state": 5}  # fmt: skip
    assert file["creation_time"].startswith("20")


def test_success_is_told_as_wmcore_tells_it(post_job: PostJob) -> None:
    answer = post_job.rest.call("GET", "fileusertransfers", f"subresource=getById&id={post_job.id(1)}")
    assert answer.headers["X-REST-Status"] == "100"
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("changes", "parameter"),
    [
        ({"id": "0" * 56}, "id"),
        ({"id": "x"}, "id"),
        ({"filesize": "-1"}, "filesize"),
        ({"filesize": "1" * 30}, "filesize"),
        ({"job_retry_count": 99999}, "job_retry_count"),
        ({"transfer_state": "SUBMITTED"}, "transfer_state"),
        ({"transfer_state": "nonsense"}, "transfer_state"),
        ({"publication_state": "nonsense"}, "publication_state"),
        ({"publish": 2}, "publish"),
        ({"source": "nowhere"}, "source"),
        ({"destination_lfn": "/store/user/bob/x.root"}, "destination_lfn"),
        ({"destination_lfn": "None"}, ""),
        ({"type": "fake"}, "type"),
        ({"start_time": ""}, "start_time"),
        ({"taskname": "a\x00b"}, "taskname"),
        ({"destination": "T2_XX_None"}, ""),
    ],
)
def test_a_wrong_insert_says_what_is_wrong(
    conn: Connection, api: API, changes: dict[str, Any], parameter: str
) -> None:
    post_job = PostJob(CrabRest(api(ALICE)))
    answer = post_job.rest.call("PUT", "fileusertransfers", encoded(post_job.insert(1, **changes)))
    if changes == {"destination_lfn": "None"}:  # it follows from the source, which is temporary
        assert answer.status_code == 200
        return
    assert answer.status_code == 400, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["X-Error-HTTP"] == "400"
    assert answer.json()["detail"] == answer.headers["X-Error-Detail"]
    if parameter:
        assert answer.json()["errors"][0]["parameter"] == parameter
    assert states(conn) == {}


@pytest.mark.parametrize(
    ("parameters", "status"),
    [
        ({"subresource": "nonsense"}, 400),
        ({}, 400),
        ({"subresource": "updateTransfers", "list_of_ids": ["a", "b"], "list_of_transfer_state": ["DONE"]}, 400),
        ({"subresource": "updateTransfers", "list_of_ids": [], "list_of_transfer_state": []}, 400),
        ({"subresource": "updateTransfers", "list_of_ids": "['a'", "list_of_transfer_state": "DONE"}, 400),
        ({"subresource": "updateTransfers", "list_of_ids": ["a"], "list_of_transfer_state": ["4"]}, 400),
        ({"subresource": "updateTransfers", "list_of_ids": ["a"] * 10_001}, 400),
        ({"subresource": "retryTransfers"}, 400),
        ({"subresource": "updateTransfers", "asoworker": "a b", **MINIMAL["updateTransfers"]}, 400),
        ({"subresource": "updateTransfers", **MINIMAL["updateTransfers"]}, 200),
        ({"subresource": "updateTransfers", "list_of_ids": ["a"], "list_of_transfer_state": ["DONE"]}, 200),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("conn")
def test_wrong_words_of_workers(api: API, parameters: dict[str, Any], status: int) -> None:
    rest = CrabRest(api(OPERATOR))
    answer = rest.call("POST", "filetransfers", encoded({"asoworker": "schedd"} | parameters))
    assert answer.status_code == status, answer.text


def test_what_does_not_fit_is_a_conflict(post_job: PostJob) -> None:
    rest = post_job.rest
    other = rest.call("PUT", "fileusertransfers", encoded(post_job.insert(1, filesize=9)))
    assert other.status_code == 409
    assert "ACQUIRED" in other.headers["X-Error-Detail"]
    FTSScript(rest).mark_submitted([post_job.id(1)], "job")
    again = post_job.insert(1, start_time=post_job.started + 1) | {"subresource": "updateDoc"}
    assert rest.call("POST", "fileusertransfers", encoded(again)).status_code == 409
    unknown = post_job.insert(5) | {"subresource": "updateDoc"}
    assert rest.call("POST", "fileusertransfers", encoded(unknown)).status_code == 404


def test_users_retry_what_failed(conn: Connection, post_job: PostJob) -> None:
    FTSScript(post_job.rest).mark_failed([post_job.id(1)], ["no PFN"])
    answer = post_job.rest.post(
        "fileusertransfers", subresource="retryTransfers", username="alice", taskname=post_job.task, publish=0
    )
    assert answer == {"result": [{"modified": 1}]}
    assert states(conn) == {"NEW": 1}
    assert conn.execute("SELECT driver FROM transfer").fetchone() == (None,)


def test_a_thousand_reports_in_one_call(conn: Connection, api: API, post_job: PostJob) -> None:
    conn.execute("""
        INSERT INTO transfer (request_id, task_id, username, source, destination, source_lfn, destination_lfn,
            size_bytes, state, driver)
        SELECT lpad(n::text, 56, '0'), task_id, username, source, destination, 'x', 'x' || n, 1, 'ACQUIRED',
            'schedd' FROM transfer, generate_series(1, 1000) n
    """)
    conn.execute("INSERT INTO crab_record SELECT id FROM transfer ON CONFLICT DO NOTHING")
    ids = [f"{number:056}" for number in range(1, 1001)]
    answer = FTSScript(CrabRest(api(ANY_SERVICE))).mark_failed(ids, ["it's full, isn't it?"] * 1000)
    assert answer["result"] == [{"modified": 1000}]
    assert states(conn) == {"FAILED": 1000, "ACQUIRED": 1}
    assert post_job.doc(1) is not None


NAMES = sorted(
    {*fileusertransfers.CHANGES, *fileusertransfers.QUESTIONS, *CHANGES, *QUESTIONS}
)  # fmt: skip
WORDS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["", "None", "0", "1", "9" * 40, "-1", "NEW", "DONE", "[]", "['a']", "[[", "a,b", "\x00", "é"]
    ),
    st.lists(st.text(max_size=5), max_size=3).map(str),
)
PARAMETERS = st.dictionaries(
    st.sampled_from([*filetransfers.CHANGED_BY, *PostJob.__annotations__, "grouping", "limit", "id", "listOfIds",
        "taskname", "source", "destination", "filesize", "publish", "start_time"]),
    WORDS, max_size=8,
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    method=st.sampled_from(["GET", "POST", "PUT"]),
    entity=st.sampled_from(["filetransfers", "fileusertransfers"]),
    name=st.sampled_from(NAMES),
    parameters=PARAMETERS,
)
def test_nothing_breaks_it(
    post_job: PostJob, *, method: str, entity: str, name: str, parameters: dict[str, str]
) -> None:
    rest = CrabRest(post_job.rest.client)
    rest.client.headers["Authorization"] = f"Bearer {OPERATOR.name}"
    sound = {"asoworker": "schedd", "username": "alice", "grouping": "0", **post_job.insert(1)}
    answer = rest.call(method, entity, encoded(sound | {"subresource": name} | parameters))
    assert answer.status_code < 500, answer.text
    assert isinstance(json.loads(answer.text), dict)
