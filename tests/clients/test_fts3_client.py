"""What the FTS client asks, and what it makes of answers that no recording holds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID, uuid5

import pytest

from asyncstageout.clients.errors import BadAnswer, JobNotFound, NotAuthorised, NotFound, SidDuplicated
from asyncstageout.clients.fts3 import FTS3Client
from asyncstageout.clients.http import Patience, new_session
from asyncstageout.core.fts import (
    FILE_FIELDS,
    BannedStorage,
    FTSJobStatus,
    JobMissing,
    JobSubmission,
    NotSubmittable,
    TransferFile,
)
from asyncstageout.core.fts_ids import BASE_ID, deterministic_job_id
from clients.answering import AnsweringServer, Asked, Reply, answering, in_turn

FILE = TransferFile(7, 2, "davs://a.example.org/x", "davs://b.example.org/y", 1000, "1a2b3c")
JOB = JobSubmission("sid", (FILE,))
JOB_ID = deterministic_job_id("cms", "sid")
ALICE = {"user_dn": "/CN=alice", "vos": ["cms", "atlas"], "delegation_id": "0", "method": "certificate"}
TRIES = Patience(tries=3)


def job_ids(count: int) -> list[UUID]:
    return [uuid5(BASE_ID, str(n)) for n in range(count)]


@contextmanager
def client_of(
    respond: Callable[[Asked], Reply], vo: str | None = "cms", **options: Any
) -> Iterator[tuple[FTS3Client, AnsweringServer]]:
    with (
        answering(respond) as server,
        FTS3Client(
            server.url, new_session(), vo=vo, patience=TRIES, sleep=lambda _s: None, **options
        ) as client,
    ):
        yield client, server


def as_json(value: object, status: int = 200) -> Reply:
    return Reply(status, json.dumps(value).encode())


def asked_ids(asked: Asked) -> list[str]:
    return urlsplit(asked.path).path.rpartition("/")[2].split(",")


def jobs(asked: Asked) -> Reply:
    """Every job is there and has one file."""
    rows = [
        {"job_id": job_id, "job_state": "ACTIVE", "files": [{"file_state": "ACTIVE"}]}
        for job_id in asked_ids(asked)
    ]
    return as_json(rows if len(rows) > 1 else rows[0])


# --- submission ---


def test_submit_sends_a_deterministic_job() -> None:
    with client_of(in_turn(as_json({"job_id": str(JOB_ID)}))) as (client, server):
        assert client.submit(JOB) == JOB_ID
    (asked,) = server.asked
    assert (asked.method, asked.path) == ("POST", "/jobs")
    assert asked.headers["content-type"] == "application/json"
    body = json.loads(asked.body)
    assert body["params"]["id_generator"] == "deterministic"
    assert body["params"]["sid"] == "sid"


def test_submit_after_a_lost_answer_meets_its_own_job() -> None:
    duplicated = as_json({"message": "The sid provided by the user is duplicated"}, 409)
    with (
        client_of(in_turn(Reply(instead="reset"), duplicated)) as (client, server),
        pytest.raises(SidDuplicated) as caught,
    ):
        client.submit(JOB)
    assert (caught.value.sid, caught.value.job_id) == ("sid", JOB_ID)
    first, second = server.asked
    assert first.body == second.body


def test_submit_does_not_take_another_job_for_its_own() -> None:
    other = "00000000-0000-0000-0000-000000000001"
    with (
        client_of(in_turn(as_json({"job_id": other}))) as (client, _),
        pytest.raises(BadAnswer, match=f"the job got id {other}, not {JOB_ID}"),
    ):
        client.submit(JOB)


@pytest.mark.parametrize("answer", [[], {}, {"job_id": None}, "x"], ids=str)
def test_submit_wants_an_id(answer: object) -> None:
    with client_of(in_turn(as_json(answer))) as (client, _), pytest.raises(BadAnswer):
        client.submit(JOB)


def test_submit_sends_nothing_that_it_should_not() -> None:
    with client_of(jobs) as (client, server), pytest.raises(NotSubmittable):
        client.submit(JobSubmission("sid", (FILE, FILE)))
    assert not server.asked


def test_the_vo_is_asked_once() -> None:
    def respond(asked: Asked) -> Reply:
        return as_json(ALICE if asked.path == "/whoami" else {"job_id": str(JOB_ID)})

    with client_of(respond, vo=None) as (client, server):
        client.submit(JOB)
        client.submit(JOB)
    assert [asked.path for asked in server.asked] == ["/whoami", "/jobs", "/jobs"]


def test_nobody_submits_nothing() -> None:
    anon: dict[str, object] = {
        "user_dn": "anon",
        "vos": [],
        "delegation_id": None,
        "method": "unauthenticated",
    }
    with client_of(in_turn(as_json(anon)), vo=None) as (client, server), pytest.raises(NotAuthorised):
        client.submit(JOB)
    assert [asked.path for asked in server.asked] == ["/whoami"]


# --- statuses ---


def test_statuses_come_in_the_order_asked_and_in_pieces() -> None:
    wanted = job_ids(250)[::-1]
    with client_of(jobs) as (client, server):
        found = client.statuses([*wanted, wanted[0]])
    assert [answer.job_id for answer in found] == [*wanted, wanted[0]]
    assert [len(asked_ids(asked)) for asked in server.asked] == [100, 100, 50]
    for asked in server.asked:
        assert len(urlsplit(asked.path).path) < 4000
        assert parse_qs(urlsplit(asked.path).query) == {"files": [FILE_FIELDS]}


def test_statuses_of_large_jobs_come_in_more_pieces() -> None:
    wanted = job_ids(10)
    sizes = dict.fromkeys(wanted, 2000) | {wanted[0]: 50_000}
    with client_of(jobs) as (client, server):
        client.statuses(wanted, files_per_job=sizes)
    assert [len(asked_ids(asked)) for asked in server.asked] == [1, 2, 2, 2, 2, 1]


def test_statuses_without_files_do_not_ask_for_them() -> None:
    with client_of(jobs) as (client, server):
        client.statuses(job_ids(2), with_files=False, files_per_job=dict.fromkeys(job_ids(2), 9999))
        assert client.statuses([]) == []
    assert [urlsplit(asked.path).query for asked in server.asked] == [""]


def test_the_limit_of_ids_can_be_lowered_but_not_raised() -> None:
    for limit, pieces in ((30, 4), (1000, 2)):
        with client_of(jobs, ids_per_request=limit) as (client, server):
            client.statuses(job_ids(110), with_files=False)
        assert len(server.asked) == pieces


@pytest.mark.parametrize(
    "respond",
    [
        lambda asked: as_json([json.loads(jobs(asked).body)[0]]),
        lambda _asked: as_json([]),
        lambda _asked: as_json(None),
        lambda _asked: as_json([{"job_id": str(n), "job_state": "ACTIVE"} for n in job_ids(9)[7:]]),
    ],
    ids=["one missing", "none", "null", "others"],
)
def test_statuses_miss_no_job_silently(respond: Callable[[Asked], Reply]) -> None:
    with client_of(respond) as (client, _), pytest.raises(BadAnswer):
        client.statuses(job_ids(2))


def test_an_html_404_for_one_job_does_not_mean_that_it_is_missing() -> None:
    with client_of(in_turn(Reply(404, b"<h1>Not Found</h1>"))) as (client, _), pytest.raises(NotFound):
        client.job_status(JOB_ID)


def test_a_403_without_a_job_is_about_us() -> None:
    refused = as_json({"status": "403 Forbidden", "message": "Not enough permissions"}, 403)
    with client_of(in_turn(refused)) as (client, _), pytest.raises(NotAuthorised):
        client.job_status(JOB_ID)


def test_threads_may_share_a_client() -> None:
    with client_of(jobs) as (client, _), ThreadPoolExecutor(4) as pool:
        pieces = [job_ids(20)[n : n + 2] for n in range(0, 20, 2)]
        found = list(pool.map(client.statuses, pieces))
    assert [[answer.job_id for answer in answers] for answers in found] == pieces


# --- what no recording holds ---


def test_archived() -> None:
    row = {"job_id": str(JOB_ID), "job_state": "FINISHED", "files": [{"file_state": "FINISHED"}]}
    with client_of(in_turn(as_json(row))) as (client, server):
        found = client.archived(JOB_ID)
    assert isinstance(found, FTSJobStatus)
    assert found.files[0].state == "FINISHED"
    assert server.asked[0].path == f"/archive/{JOB_ID}"


def test_not_archived_either() -> None:
    missing = as_json({"message": f'No job with the id "{JOB_ID}" has been found in the archive'}, 404)
    with client_of(in_turn(missing)) as (client, _):
        assert client.archived(JOB_ID) == JobMissing(JOB_ID)


@pytest.mark.parametrize("body", [b"<h1>Not Found</h1>", b'{"message": "The requested URL was not found"}'])
def test_no_archive_is_not_no_job(body: bytes) -> None:
    with client_of(in_turn(Reply(404, body))) as (client, _), pytest.raises(NotFound) as caught:
        client.archived(JOB_ID)
    assert not isinstance(caught.value, JobNotFound)


def test_cancel_jobs_in_pieces() -> None:
    with client_of(jobs) as (client, server):
        assert len(client.cancel_jobs(job_ids(150))) == 150
    assert [(asked.method, len(asked_ids(asked))) for asked in server.asked] == [
        ("DELETE", 100),
        ("DELETE", 50),
    ]


def test_cancel_files_says_which_are_not_of_this_job() -> None:
    states = as_json(["CANCELED", "File does not belong to the job", "FINISHED"])
    with client_of(in_turn(states)) as (client, server):
        assert client.cancel_files(JOB_ID, [1, 2, 3]) == {1: "CANCELED", 2: None, 3: "FINISHED"}
    assert server.asked[0].path == f"/jobs/{JOB_ID}/files/1,2,3"


@pytest.mark.parametrize("answer", [["CANCELED"], {"x": 1}, None], ids=str)
def test_cancel_files_wants_a_state_for_each(answer: object) -> None:
    with client_of(in_turn(as_json(answer))) as (client, _), pytest.raises(BadAnswer):
        client.cancel_files(JOB_ID, [1, 2])


def test_set_priority() -> None:
    with client_of(jobs) as (client, server):
        client.set_priority([JOB_ID], 5)
        with pytest.raises(ValueError, match="priority 6"):
            client.set_priority([JOB_ID], 6)
    (asked,) = server.asked
    assert (asked.method, json.loads(asked.body)) == ("POST", {"params": {"priority": 5}})


def test_list_jobs_asks_only_what_was_said() -> None:
    with client_of(in_turn(as_json([]))) as (client, server):
        client.list_jobs()
        client.list_jobs(states=["FAILED", "CANCELED"], vo="cms", limit=5, time_window_h=2)
    assert [parse_qs(urlsplit(asked.path).query) for asked in server.asked] == [
        {},
        {"state_in": ["FAILED,CANCELED"], "vo_name": ["cms"], "limit": ["5"], "time_window": ["2"]},
    ]


def test_banned_storages() -> None:
    rows = [{"se": "davs://a.example.org", "status": "WAIT", "message": None, "vo": "cms"}]
    with client_of(in_turn(as_json(rows))) as (client, _):
        assert client.banned_storages() == [BannedStorage("davs://a.example.org", "WAIT", "")]


def test_active_file_by_destination() -> None:
    row = {"job_id": str(JOB_ID), "file_id": 3, "file_state": "ACTIVE", "dest_surl": FILE.dest_url}
    with client_of(in_turn(as_json([row]), as_json([]))) as (client, server):
        found = client.active_file_by_destination(FILE.dest_url)
        assert client.active_file_by_destination(FILE.dest_url) is None
    assert found is not None
    assert (found[0], found[1].file_id) == (JOB_ID, 3)
    assert parse_qs(urlsplit(server.asked[0].path).query) == {"dest_surl": [FILE.dest_url]}
