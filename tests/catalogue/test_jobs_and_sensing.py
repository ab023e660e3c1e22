"""FTS jobs from the plan to the end: what is repeated changes nothing, what is stale is dropped."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from psycopg import Connection

from asyncstageout.catalogue.history import move_finished
from asyncstageout.catalogue.jobs import (
    _ACCEPTED,
    _RELEASE,
    adopt_orphans,
    assign_shards,
    cycle_result,
    jobs_to_submit,
    planned_in_shard,
    planned_loads,
    record_accepted,
    release,
    split,
)
from asyncstageout.catalogue.lookup import (
    FileFilter,
    delays,
    file_events,
    find_file,
    job_counts,
    list_files,
    state_counts,
)
from asyncstageout.catalogue.sensing import (
    _TAKE,
    LOST,
    Poll,
    Report,
    jobs_to_poll,
    open_job_count,
    record_polls,
    stage_reports,
    staged_reports,
    take_reports,
)
from asyncstageout.catalogue.transitions import Move, apply_moves
from asyncstageout.core.naming import request_id
from asyncstageout.core.planning import PlannedJob, pack_shards
from asyncstageout.core.states import TransferState
from fixtures.catalogue import Add, Plan, assert_audited, new_cycle, nodes, open_files, record, states

S = TransferState


def finished(sid, transfer_id: int, state: str = "FINISHED") -> Report:  # type: ignore[no-untyped-def]
    return Report(sid, transfer_id, 7, "ACTIVE", state, "", None, datetime.now(UTC))


def test_a_job_is_told_as_it_was_planned(conn: Connection, add: Add, plan: Plan) -> None:
    add(record(1), record(2, adler32=None))
    (planned,) = plan()
    (job,) = jobs_to_submit(conn, [planned.sid])
    assert [file.transfer_id for file in job.files] == list(planned.transfer_ids)
    first = job.files[0]
    assert first.source_url == "davs://t2-it-bari.sandbox.test:8443/store/temp/user/alice.abc/mc/out_1.root"
    assert first.destination_url == "davs://t2-ch-cern.sandbox.test:8443/store/user/alice/mc/out_1.root"
    assert (first.size_bytes, first.adler32, first.attempt) == (1001, "00000002", 1)
    assert job.files[1].adler32 is None


def test_acceptance_counts_once(conn: Connection, add: Add, plan: Plan, step: int) -> None:
    add(record(1), record(2))
    (job,) = plan()
    accepted = [(job.sid, uuid4())]
    assert record_accepted(conn, accepted, step) == 2
    assert record_accepted(conn, accepted, step) == 0
    assert jobs_to_submit(conn, [job.sid]) == []
    assert conn.execute("SELECT DISTINCT attempt FROM transfer").fetchall() == [(1,)]
    assert_audited(conn)


def test_a_released_job_costs_no_attempt(conn: Connection, add: Add, plan: Plan, step: int) -> None:
    """A7: the storage is banned; its files wait and lose nothing."""
    add(record(1), record(2))
    (job,) = plan()
    assert release(conn, [job.sid], "davs://x is banned", wait_s=300, step_run=step) == ({job.sid}, 2)
    assert release(conn, [job.sid], "again", wait_s=300, step_run=step) == (set(), 0)
    assert states(conn) == {"NEW": 2}
    assert plan() == []  # not due yet
    assert conn.execute("SELECT DISTINCT attempt FROM transfer").fetchall() == [(0,)]
    assert_audited(conn)


def looked_at(conn: Connection, query: str, values: Any) -> int:
    """Return how many rows of live files a statement reads or compares."""
    (plan,) = conn.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {query}", values).fetchone() or ([],)
    return sum(
        (
            node["Actual Rows"]
            + node.get("Rows Removed by Filter", 0)
            + node.get("Rows Removed by Join Filter", 0)
        )
        * node["Actual Loops"]
        for node in nodes(plan[0]["Plan"])
        if node.get("Relation Name") == "transfer" or "Rows Removed by Join Filter" in node
    )


@pytest.fixture
def in_flight(conn: Connection, add: Add, plan: Plan) -> list[PlannedJob]:
    """A thousand files in fifty jobs, of which the planner believes that they wait still."""
    add(*(record(number) for number in range(1000)))
    conn.execute("ANALYZE transfer, fts_job")
    return plan(files_per_job=20)


def test_accepting_and_releasing_a_job_reads_its_files_and_no_others(
    conn: Connection, in_flight: list[PlannedJob], step: int
) -> None:
    sids = [job.sid for job in in_flight]
    accept = {"sids": sids[:5], "job_ids": [uuid4() for _ in range(5)], "step_run": step}
    assert looked_at(conn, _ACCEPTED, accept) <= 3 * 100
    give_back = {"sids": sids[5:10], "reason": "banned", "wait_s": 1, "step_run": step, "poster": None}
    assert looked_at(conn, _RELEASE, give_back) <= 3 * 100
    assert states(conn) == {"SUBMITTED": 100, "NEW": 100, "ACQUIRED": 800}


def test_a_report_of_a_file_does_not_read_the_others_of_its_job(
    conn: Connection, in_flight: list[PlannedJob], step: int
) -> None:
    record_accepted(conn, [(job.sid, uuid4()) for job in in_flight], step)
    stage_reports(conn, [finished(job.sid, number) for job in in_flight[:5] for number in job.transfer_ids])
    assert looked_at(conn, _TAKE, (1000,)) <= 3 * 100


def test_a_split_job_keeps_every_file_once(conn: Connection, add: Add, plan: Plan, step: int) -> None:
    """A6: the file at fault is found by halving."""
    add(*(record(number) for number in range(5)))
    (job,) = plan()
    left, right = uuid4(), uuid4()
    assert split(conn, job.sid, (left, right), "400", step)
    assert not split(conn, job.sid, (uuid4(), uuid4()), "400", step)
    halves = {
        half.sid: [file.transfer_id for file in half.files] for half in jobs_to_submit(conn, [left, right])
    }
    assert halves[left] + halves[right] == list(job.transfer_ids)
    assert open_files(conn) == {job.sid: 0, left: 2, right: 3}
    assert states(conn) == {"ACQUIRED": 5}
    assert_audited(conn)


def test_orphans_are_adopted_after_a_while(conn: Connection, add: Add, plan: Plan) -> None:
    """A3: their cycle died between the plan and the POST."""
    add(record(1))
    (job,) = plan()
    cycle = new_cycle(conn)
    assert adopt_orphans(conn, cycle.cycle_id, older_than_s=3600) == 0
    assert adopt_orphans(conn, cycle.cycle_id, older_than_s=-1) == 1
    loads = planned_loads(conn, cycle.cycle_id)
    assert [load.sid for load in loads] == [job.sid]
    assign_shards(conn, pack_shards(loads, 4, 10))
    assert planned_in_shard(conn, cycle.cycle_id, 0) == [job.sid]


def test_the_result_of_a_cycle(conn: Connection, add: Add, submitted: Plan) -> None:
    add(record(1), record(2, destination="T1_DE_KIT"))
    submitted()
    (cycle_id,) = conn.execute("SELECT max(id) FROM cycle").fetchone() or (0,)
    result = cycle_result(conn, cycle_id)
    assert (result.planned_jobs, result.jobs, result.files, result.links, result.size_bytes) == (
        0,
        2,
        2,
        2,
        2003,
    )


def test_jobs_are_polled_when_due(conn: Connection, add: Add, submitted: Plan) -> None:
    add(record(1), record(2, destination="T1_DE_KIT"))
    submitted()
    now = datetime.now(UTC)
    due = jobs_to_poll(conn, now, 10)
    assert len(due) == 2
    record_polls(conn, [Poll(due[0].sid, "ACTIVE", now + timedelta(minutes=1))], now)
    assert [job.sid for job in jobs_to_poll(conn, now, 10)] == [due[1].sid]
    assert open_job_count(conn) == 2


def test_only_news_are_staged(conn: Connection, add: Add, submitted: Plan, step: int) -> None:
    add(record(1), record(2))
    (job,) = submitted()
    first, second = job.transfer_ids
    assert stage_reports(conn, [finished(job.sid, first)]) == 1
    assert stage_reports(conn, [finished(job.sid, first)]) == 0, "staged before"
    assert stage_reports(conn, [finished(uuid4(), second)]) == 0, "another job's word"
    with conn.transaction():
        (reported,) = take_reports(conn, 10)
        assert reported.transfer_id == first
        apply_moves(conn, [Move(first, job.sid, S.DONE)], step)
    assert staged_reports(conn) == 0
    assert stage_reports(conn, [finished(job.sid, first)]) == 0, "applied before"
    assert stage_reports(conn, [finished(job.sid, second)]) == 1


def test_reports_survive_a_death_while_they_are_applied(conn: Connection, add: Add, submitted: Plan) -> None:
    add(record(1))
    (job,) = submitted()
    stage_reports(conn, [finished(job.sid, job.transfer_ids[0])])
    with conn.transaction(force_rollback=True):
        assert len(take_reports(conn, 10)) == 1
    assert staged_reports(conn) == 1


def test_a_lost_job_concerns_its_open_files_only(
    conn: Connection, add: Add, submitted: Plan, step: int
) -> None:
    """A12: what had finished stays finished."""
    add(record(1), record(2), record(3))
    (job,) = submitted()
    apply_moves(conn, [Move(job.transfer_ids[0], job.sid, S.DONE)], step)
    assert stage_reports(conn, [Report(job.sid, None, None, LOST, LOST, "gone", None, None)]) == 1
    reported = take_reports(conn, 10)
    assert [file.transfer_id for file in reported] == list(job.transfer_ids[1:])
    assert {file.report.file_state for file in reported} == {LOST}


def test_history_keeps_what_is_still_wanted(conn: Connection, add: Add, submitted: Plan, step: int) -> None:
    add(record(1), record(2), record(3), record(4, publish=True))
    (job,) = submitted()
    done, failed, _, unpublished = job.transfer_ids
    apply_moves(
        conn,
        [Move(done, job.sid, S.DONE), Move(failed, job.sid, S.FAILED), Move(unpublished, job.sid, S.DONE)],
        step,
    )
    assert move_finished(conn) == 0, "ended just now"
    assert move_finished(conn, keep_done_s=-1) == 1, "FAILED stays for a retry, unpublished for publication"
    assert states(conn) == {"FAILED": 1, "SUBMITTED": 1, "DONE": 1}
    found = find_file(conn, str(done))
    assert found is not None
    assert found["state"] == "DONE"


def test_a_file_is_found_by_whatever_is_known(conn: Connection, add: Add, submitted: Plan, step: int) -> None:
    add(record(1))
    (job,) = submitted()
    apply_moves(conn, [Move(job.transfer_ids[0], job.sid, S.DONE, fts_file_id=7)], step)
    known = record(1)
    for wanted in (
        str(job.transfer_ids[0]),
        request_id(known["source_lfn"]),
        known["source_lfn"],
        known["destination_lfn"],
    ):
        found = find_file(conn, wanted)
        assert found is not None, wanted
        assert found["id"] == job.transfer_ids[0]
        assert found["task"] == known["task"]
        assert found["fts_job_id"] is not None
    for unknown in ("999999", "/store/user/nobody/x", "abc"):
        assert find_file(conn, unknown) is None
    events = file_events(conn, job.transfer_ids[0])
    assert [(event.from_state, event.to_state) for event in events] == [
        (None, "NEW"), ("NEW", "ACQUIRED"), ("ACQUIRED", "SUBMITTED"), ("SUBMITTED", "DONE"),
    ]  # fmt: skip
    assert {event.actor for event in events} == {"tester"}
    assert events[-1].sid == job.sid


def test_lists_and_counts(conn: Connection, add: Add, submitted: Plan, step: int) -> None:
    add(*(record(number) for number in range(5)))
    (job,) = submitted(limit=3)
    apply_moves(conn, [Move(job.transfer_ids[0], job.sid, S.DONE, fts_finished_at=datetime.now(UTC))], step)
    assert state_counts(conn) == {"NEW": 2, "SUBMITTED": 2, "DONE": 1}
    assert state_counts(conn, "nothing%") == {}
    assert job_counts(conn) == {"SUBMITTED": 1}
    page = list_files(conn, FileFilter(), limit=2)
    following = list_files(conn, FileFilter(), limit=10, after_id=page[-1]["id"])
    assert len(page) + len(following) == 5
    assert len(list_files(conn, FileFilter(state=S.SUBMITTED, username="alice"), limit=10)) == 2
    assert list_files(conn, FileFilter(source="T1_DE_KIT"), limit=10) == []
    measured = delays(conn)
    assert measured.accepted_p50_s is not None
    assert measured.settled_p50_s is not None
    assert 0 <= measured.accepted_p50_s < 60
