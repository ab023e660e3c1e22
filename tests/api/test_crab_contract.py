"""CRAB's own clients work here: from injection to DONE and published, again by a later job retry, and killed."""

from __future__ import annotations

import pytest
from psycopg import Connection

from api.conftest import ALICE, ANY_SERVICE, API
from api.crab_clients import FTS, CrabRest, FTSScript, PostJob, Publisher, encoded
from asyncstageout.catalogue.audit import audit
from asyncstageout.catalogue.claims import links_with_work
from asyncstageout.catalogue.cycles import CycleParams
from asyncstageout.catalogue.kills import kill
from asyncstageout.core.selections import Selection
from fixtures.catalogue import Plan, assert_audited, states


def _events(conn: Connection, request_id: str) -> list[str]:
    rows = conn.execute(
        "SELECT e.to_state::text FROM transfer_event e JOIN transfer t ON t.id = e.transfer_id"
        " WHERE t.request_id = %s ORDER BY e.id",
        (request_id,),
    )
    return [state for (state,) in rows]


def _actors(conn: Connection) -> set[tuple[str, str]]:
    rows = conn.execute(
        "SELECT DISTINCT s.actor, s.task_id FROM transfer_event e JOIN step_run s ON s.id = e.step_run"
    )
    return set(rows.fetchall())


def _assert_sound(conn: Connection) -> None:
    assert_audited(conn)
    assert [result for result in audit(conn) if result.violations] == []


@pytest.fixture
def user(api: API) -> CrabRest:
    """PostJob and the scripts beside it run with the user's own proxy."""
    return CrabRest(api(ALICE))


@pytest.fixture
def service(api: API) -> CrabRest:
    return CrabRest(api(ANY_SERVICE))


def test_from_injection_to_published(conn: Connection, user: CrabRest, service: CrabRest, plan: Plan) -> None:
    post_job, script, publisher = PostJob(user), FTSScript(user), Publisher(service)
    for number in (1, 2):
        post_job.inject(number)
    ids = [post_job.id(1), post_job.id(2)]
    assert post_job.statuses() == dict.fromkeys(ids, "ACQUIRED")
    conn.execute("UPDATE transfer SET due_at = now()")
    assert links_with_work(conn, CycleParams()) == []
    assert plan() == []

    assert script.mark_submitted(ids, "5b9d7c5c-aaaa") == {"result": [{"modified": 2}]}
    doc = post_job.doc(1)
    assert doc is not None
    assert (doc["fts_id"], doc["fts_instance"], doc["aso_worker"]) == ("5b9d7c5c-aaaa", FTS, "schedd")
    script.mark_transferred(ids)
    assert post_job.statuses() == dict.fromkeys(ids, "DONE")
    assert _events(conn, ids[0]) == ["NEW", "ACQUIRED", "SUBMITTED", "DONE"]

    assert publisher.acquire() == []  # their metadata are not there yet
    post_job.set_publication_flag(1, 2)
    assert {file["id"] for file in publisher.acquire()} == set(ids)
    publisher.mark(ids[:1], "DONE")
    publisher.mark(ids[1:], "FAILED", "block 7 was refused, said DBS")
    assert post_job.publications() == {ids[0]: "DONE", ids[1]: "FAILED"}
    failed = post_job.doc(2)
    assert failed is not None
    assert failed["publication_failure_reason"] == "block 7 was refused, said DBS"
    assert failed["publication_retry_count"] == 1
    assert publisher.acquire() == []
    told = conn.execute("SELECT from_state, to_state FROM file_event ORDER BY id")
    assert sorted(told.fetchall()) == sorted(
        [("NOT_REQUIRED", "NEW"), ("NEW", "ACQUIRED")] * 2 + [("ACQUIRED", "DONE"), ("ACQUIRED", "FAILED")]
    )
    assert _actors(conn) == {("alice", "api: crab insert"), ("alice", "api: crab updateTransfers")}
    _assert_sound(conn)


def test_a_later_job_retry_sends_the_file_again(conn: Connection, user: CrabRest) -> None:
    post_job, script = PostJob(user), FTSScript(user)
    post_job.inject(1)
    script.mark_submitted([post_job.id(1)], "job-1")
    script.mark_failed([post_job.id(1)], ["DESTINATION [28] HTTP 507 : it's full, again"])
    doc = post_job.doc(1)
    assert doc is not None
    assert doc["transfer_failure_reason"] == "DESTINATION [28] HTTP 507 : it's full, again"
    row = conn.execute("SELECT failure_category, failure_errno FROM transfer").fetchone()
    assert row == ("quota", 28)

    later = PostJob(user, retry=1, started=post_job.started + 7200)
    later.inject(1, filesize=4321, adler32="1a2b")
    row = conn.execute(
        "SELECT size_bytes, adler32, attempt, job_retry_count, driver FROM transfer"
    ).fetchone()
    assert row == (4321, "00001a2b", 0, 1, "schedd")
    assert later.statuses() == {later.id(1): "ACQUIRED"}
    # The script of the first retry is late: what it says of the job before is said of this file.
    script.mark_submitted([later.id(1)], "job-2")
    script.mark_transferred([later.id(1)])
    doc = later.doc(1)
    assert doc is not None
    assert (doc["fts_id"], doc["start_time"]) == ("job-2", later.started)
    assert _events(conn, later.id(1)) == (
        ["NEW", "ACQUIRED", "SUBMITTED", "FAILED", "NEW", "ACQUIRED", "SUBMITTED", "DONE"]
    )
    later.inject(1)  # once more for the same retry: known
    _assert_sound(conn)


def test_the_size_of_the_retry_before_is_not_believed(conn: Connection, user: CrabRest) -> None:
    post_job = PostJob(user)
    post_job.inject(1)
    FTSScript(user).mark_failed([post_job.id(1)], ["no PFN"])
    PostJob(user, retry=1, started=post_job.started + 1).inject(1)
    assert conn.execute("SELECT size_bytes, adler32 FROM transfer").fetchone() == (0, None)


def test_a_file_written_straight_to_its_destination(
    conn: Connection, user: CrabRest, service: CrabRest
) -> None:
    post_job, publisher = PostJob(user), Publisher(service)
    post_job.inject(1, transfer_state="DONE", publish=1, publication_state="NEW")
    assert post_job.statuses() == {post_job.id(1): "DONE"}
    assert _events(conn, post_job.id(1)) == ["DONE"]
    assert Publisher(service, "rucio").acquire() == []  # another publisher's
    (file,) = publisher.acquire()
    assert (file["id"], file["publication_state"], file["aso_worker"]) == (post_job.id(1), 1, "schedd")
    _assert_sound(conn)


def test_a_later_retry_writes_straight_to_the_destination(conn: Connection, user: CrabRest) -> None:
    post_job = PostJob(user)
    post_job.inject(1)
    FTSScript(user).mark_failed([post_job.id(1)], ["no PFN"])
    later = PostJob(user, retry=1, started=post_job.started + 1)
    later.inject(1, transfer_state="DONE")
    assert later.statuses() == {later.id(1): "DONE"}
    assert _events(conn, later.id(1))[-4:] == ["FAILED", "NEW", "KILL", "DONE"]
    _assert_sound(conn)


def test_kills(conn: Connection, user: CrabRest, service: CrabRest) -> None:
    post_job, script = PostJob(user), FTSScript(user)
    for number in range(1, 5):
        post_job.inject(number)
    waiting, under_way, arrived, failed = (post_job.id(number) for number in range(1, 5))
    script.mark_submitted([under_way, arrived, failed], "job-1")
    script.mark_transferred([arrived])
    unknown = "0" * 56
    assert post_job.cancel(waiting, under_way, arrived, failed, unknown, "nonsense") == (
        [waiting, under_way, failed], [arrived, unknown, "nonsense"]
    )  # fmt: skip
    assert post_job.statuses()[under_way] == "KILL"
    to_kill = service.get("filetransfers", subresource="getTransfersToKill", asoworker="schedd", grouping=0)
    assert len(to_kill["result"]) == 3
    # The worker stopped one, one had arrived, one failed by itself.
    script._update([waiting], "KILLED")
    script.mark_transferred([under_way])
    script.mark_failed([failed], ["TRANSFER canceled"])
    assert post_job.statuses() == {
        waiting: "KILLED", under_way: "DONE", arrived: "DONE", failed: "KILLED"
    }  # fmt: skip
    script.mark_transferred([waiting])  # too late
    assert post_job.statuses()[waiting] == "KILLED"
    again = post_job.cancel(waiting, under_way)
    assert again == ([waiting], [under_way])
    _assert_sound(conn)


def test_a_task_is_killed_before_anybody_claims_it(conn: Connection, user: CrabRest) -> None:
    post_job = PostJob(user)
    user.ok("PUT", "fileusertransfers", _put(post_job))
    answer = user.post(
        "fileusertransfers", subresource="killTransfers", username="alice", taskname=post_job.task, publish=0
    )
    assert answer == {"result": [{"modified": 1}]}
    assert states(conn) == {"KILLED": 1}
    _assert_sound(conn)


def _put(post_job: PostJob, number: int = 1) -> str:
    return encoded(post_job.insert(number))


def test_this_service_moves_what_is_left_to_it(conn: Connection, user: CrabRest, plan: Plan) -> None:
    post_job = PostJob(user, worker="asyncstageout")
    user.ok("PUT", "fileusertransfers", _put(post_job))
    assert plan() == []  # nobody said yet who moves it
    post_job.claim(1)
    assert len(plan()) == 1
    doc = post_job.doc(1)
    assert doc is not None
    assert (doc["aso_worker"], doc["transfer_state"]) == ("asyncstageout", 1)
    assert conn.execute("SELECT driver FROM transfer").fetchone() == (None,)
    # A script that nobody turned off cannot take it away.
    assert FTSScript(user).mark_submitted([post_job.id(1)], "job") == {
        "result": [{"modified": 0, "refused": [post_job.id(1)]}]
    }
    _assert_sound(conn)


def test_a_worker_of_old_acquires_submits_and_retries(
    conn: Connection, user: CrabRest, service: CrabRest
) -> None:
    """The ASO of 2016 acquires per user, and retries by itself."""
    post_job = PostJob(user)
    for number in (1, 2, 3):
        user.ok("PUT", "fileusertransfers", _put(post_job, number))
    who = {"asoworker": "asoprod1"}
    active = service.get("filetransfers", subresource="activeUsers", grouping=0, **who)
    assert active["result"] == [["alice", "", "", 3]]
    acquire = {"subresource": "acquireTransfers", "username": "alice"}
    assert service.post("filetransfers", **acquire, **who) == {"result": [{"modified": 3}]}
    assert service.post("filetransfers", **acquire, asoworker="asoprod2") == {"result": [{"modified": 0}]}
    mine = service.get("filetransfers", subresource="acquiredTransfers", grouping=1, username="alice", **who)
    assert len(mine["result"]) == 3
    assert mine["desc"]["columns"][-2:] == ["tm_user_role", "tm_user_group"]
    limited = {"subresource": "acquiredTransfers", "grouping": 0, "limit": 2}
    assert len(service.get("filetransfers", **limited, **who)["result"]) == 2

    script = FTSScript(service, "asoprod1")
    other = FTSScript(service, "asoprod2")
    ids = [post_job.id(1)]
    assert other.mark_submitted(ids, "theirs")["result"] == [{"modified": 0, "refused": ids}]
    for attempt in range(3):
        script.mark_submitted(ids, f"job-{attempt}")
        script.mark_failed(ids, ["SOURCE [70] timeout"], "RETRY")
        later = {"subresource": "retryTransfers", "time_to": 7200}
        assert service.post("filetransfers", **later, **who) == {"result": [{"modified": 0}]}
        conn.execute("UPDATE transfer SET updated_at = now() - interval '3 h' WHERE state = 'RETRY'")
        assert service.post("filetransfers", **later, **who) == {"result": [{"modified": 1}]}
    assert post_job.statuses()[post_job.id(1)] == "FAILED"
    doc = post_job.doc(1)
    assert doc is not None
    assert (doc["transfer_retry_count"], doc["transfer_failure_reason"]) == (2, "SOURCE [70] timeout")
    _assert_sound(conn)


def test_what_rucio_moves(conn: Connection, user: CrabRest) -> None:
    post_job, script = PostJob(user, worker="rucio"), FTSScript(user, "rucio")
    post_job.inject(1)
    ids = [post_job.id(1)]
    lists = {"list_of_ids": ids, "list_of_fts_instance": [FTS], "list_of_fts_id": ["rule-1"]}
    omitted = {"list_of_failure_reason": None, "list_of_retry_value": None}
    script.rest.post("filetransfers", subresource="updateTransfers", asoworker="rucio",
        list_of_transfer_state=["DONE"], list_of_dbs_blockname=None, list_of_block_complete=None, **lists,
        **omitted)  # fmt: skip
    block = "/TestPrimary/test-dataset/USER#c9b28b96-5d16-41cd-89af-2678971132c9"
    script.rest.post("filetransfers", subresource="updateRucioInfo", asoworker="rucio",
        list_of_transfer_state=["DONE"], list_of_dbs_blockname=[block], list_of_block_complete=["OK"],
        **lists, **omitted)  # fmt: skip
    doc = post_job.doc(1)
    assert doc is not None
    assert (doc["transfer_state"], doc["dbs_blockname"], doc["block_complete"], doc["fts_id"]) == (
        3, block, "OK", "rule-1"
    )  # fmt: skip
    _assert_sound(conn)


def test_a_kill_from_elsewhere_reaches_the_worker(conn: Connection, user: CrabRest, step: int) -> None:
    post_job, script = PostJob(user), FTSScript(user)
    post_job.inject(1)
    script.mark_submitted([post_job.id(1)], "job")
    kill(conn, Selection(username="alice"), None, comment="too many", step_run=step)
    assert post_job.statuses() == {post_job.id(1): "KILL"}
    script.mark_submitted([post_job.id(1)], "job")  # changes nothing
    assert post_job.statuses() == {post_job.id(1): "KILL"}
    _assert_sound(conn)
