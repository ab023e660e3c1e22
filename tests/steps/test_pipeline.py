"""A file's way through the steps, with a real catalogue and an FTS that speaks the real contract."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from asyncstageout.catalogue.policies import put_policy
from asyncstageout.catalogue.restrictions import Area, lift, restrict
from asyncstageout.catalogue.sensing import staged_reports
from asyncstageout.catalogue.step_runs import Actor
from asyncstageout.catalogue.storages import put_sites
from asyncstageout.clients.errors import NotAuthorised, Unavailable, Unreachable
from asyncstageout.core.restrictions import Mode
from asyncstageout.steps.recording import recorded
from asyncstageout.steps.summarise import CycleIncomplete
from fixtures.catalogue import Add, assert_audited, record, states
from fixtures.cycles import House, jobs_at_fts


def test_from_arrival_to_done(house: House, add: Add) -> None:
    add(*(record(number) for number in range(5)), record(9, destination="T1_DE_KIT"))
    assert house.collect().sentence == "2 links have waiting files"
    summary, shards = house.group()
    assert summary.sentence == "Planned 2 FTS jobs, 6 files, 6.0 kB on 2 links"
    assert [shard.label for shard in shards] == ["T2_IT_Bari → T2_CH_CERN and 1 more link"]
    assert house.submit().sentence == "FTS accepted 2 jobs with 6 files"
    assert house.summarise().sentence == "Submitted 2 FTS jobs, 6 files, 6.0 kB on 2 links"
    assert house.sense().news == 0
    house.finish_at_fts()
    assert house.sense().news == 6
    assert house.update().sentence == "6 files done, 0 go again later, 0 failed for good"
    assert states(house.conn) == {"DONE": 6}
    assert_audited(house.conn)


def test_every_step_of_a_finished_run_can_run_again_and_changes_nothing(house: House, add: Add) -> None:
    add(*(record(number) for number in range(5)))
    house.run_cycle()
    house.finish_at_fts()
    house.sense()
    house.update()
    add(record(50))  # waits for the next cycle: the old run must not touch it
    before = house.conn.execute("SELECT * FROM transfer ORDER BY id").fetchall()
    events = house.conn.execute("SELECT count(*) FROM transfer_event").fetchone()
    assert "nothing changed" in house.collect().sentence
    _, shards = house.group()
    assert shards == []
    assert house.submit().counts["jobs"] == 0
    house.summarise()
    assert house.sense().news == 0
    house.update()
    assert house.conn.execute("SELECT * FROM transfer ORDER BY id").fetchall() == before
    assert house.conn.execute("SELECT count(*) FROM transfer_event").fetchone() == events
    assert len(jobs_at_fts(house)) == 1


@pytest.mark.parametrize("stage", ["collect", "group", "submit"])
def test_a_run_that_died_goes_on_where_it_stopped(house: House, add: Add, stage: str) -> None:
    add(*(record(number) for number in range(3)))
    house.collect()
    if stage != "collect":
        house.group()
    if stage == "submit":
        house.submit()
    house.run_cycle()
    assert states(house.conn) == {"SUBMITTED": 3}
    assert len(jobs_at_fts(house)) == 1
    assert_audited(house.conn)


def test_a_lost_reply_makes_no_second_job(house: House, add: Add) -> None:
    """A1 and A4: FTS took the job and the answer never came; the repeat meets "sid duplicated"."""
    add(*(record(number) for number in range(3)))
    house.collect()
    house.group()
    house.set_faults(api=[{"action": "lost_reply", "method": "POST", "path": "/jobs", "count": 1}])
    with pytest.raises(Unreachable):
        house.submit()
    assert states(house.conn) == {"ACQUIRED": 3}
    with pytest.raises(CycleIncomplete, match="the next cycle"):
        house.summarise()
    assert house.submit().counts["files"] == 3
    assert len(jobs_at_fts(house)) == 1
    assert house.conn.execute("SELECT DISTINCT attempt FROM transfer").fetchall() == [(1,)]
    assert_audited(house.conn)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_an_fts_that_is_down_costs_no_attempt(house: House, add: Add, status: int) -> None:
    """A9."""
    add(record(1))
    house.collect()
    house.group()
    house.set_faults(
        api=[{"action": "status", "status": status, "body": "<html>no</html>", "path": "/jobs", "count": 1}]
    )
    with pytest.raises(Unavailable):
        house.submit()
    assert house.conn.execute("SELECT state::text, attempt FROM transfer").fetchall() == [("ACQUIRED", 0)]
    house.submit()
    assert states(house.conn) == {"SUBMITTED": 1}


def test_the_next_cycle_takes_over_what_a_dead_one_planned(house: House, add: Add) -> None:
    """A2 and A3, when the whole run is gone."""
    add(record(1), record(2))
    house.collect("dead")
    house.group("dead")
    house.conn.execute("UPDATE fts_job SET planned_at = now() - interval '2 minutes'")
    assert "took over 1 FTS jobs" in house.collect("next").sentence
    house.group("next")
    house.submit("next")
    assert states(house.conn) == {"SUBMITTED": 2}
    assert len(jobs_at_fts(house)) == 1


def test_nobody_is_let_in_without_a_credential(house: House, add: Add) -> None:
    add(record(1))
    house.collect()
    house.group()
    house.client._caller.session.cert = None
    with pytest.raises(NotAuthorised):
        house.submit()
    assert house.conn.execute("SELECT state::text, attempt FROM transfer").fetchall() == [("NEW", 0)]


def test_one_bad_name_in_many_is_taken_out(house: House, add: Add) -> None:
    """A6: our own check names the file; it fails with the reason, the others go in one job."""
    put_sites(house.conn, {"T2_CH_CERN": f"davs://t2-ch-cern.sandbox.test:8443/{'deep/' * 130}"}, "ops")
    long_name = {"destination_lfn": f"/store/user/alice/{'x' * 480}"}
    add(*(record(number) | (long_name if number == 9 else {}) for number in range(32)))
    house.collect()
    house.group()
    house.submit()
    assert states(house.conn) == {"SUBMITTED": 31, "FAILED": 1}
    rows = house.conn.execute(
        "SELECT size_bytes, failure_category, failure_reason FROM transfer WHERE state = 'FAILED'"
    ).fetchall()
    assert rows[0][:2] == (1009, "refused")
    assert "FTS keeps 1100" in rows[0][2]
    # The whole job, and that of the one at fault.
    assert house.conn.execute("SELECT count(*) FROM fts_job WHERE state = 'REFUSED'").fetchone() == (2,)
    assert_audited(house.conn)


def test_a_refusal_that_names_nobody_is_halved_too(house: House, add: Add) -> None:
    add(*(record(number) for number in range(8)))
    house.collect()
    house.group()
    refusal = '{"status": "400 Bad Request", "message": "Invalid value within the request: Missing host"}'
    house.set_faults(
        api=[
            {
                "action": "status",
                "status": 400,
                "body": refusal,
                "method": "POST",
                "path": "/jobs",
                "count": 1,
            }
        ]
    )
    assert house.submit().counts == {
        "jobs": 2, "files": 8, "refused_files": 0, "released_files": 0, "splits": 1,
    }  # fmt: skip
    assert states(house.conn) == {"SUBMITTED": 8}
    assert_audited(house.conn)


def test_a_banned_storage_parks_its_files(house: House, add: Add) -> None:
    """A7."""
    add(record(1), record(2, destination="T1_DE_KIT"))
    house.fts.ask("host", "POST", "/ban/se", {"storage": "davs://t1-de-kit.sandbox.test", "status": "cancel"})
    house.run_cycle()
    assert states(house.conn) == {"SUBMITTED": 1, "NEW": 1}
    attempts = house.conn.execute("SELECT attempt FROM transfer WHERE state = 'NEW'").fetchall()
    assert attempts == [(0,)]
    house.fts.ask("host", "DELETE", "/ban/se?storage=davs://t1-de-kit.sandbox.test")
    house.make_due()
    house.run_cycle("later")
    assert states(house.conn) == {"SUBMITTED": 2}
    assert_audited(house.conn)


def test_a_user_may_have_attempts_of_his_own(house: House, add: Add) -> None:
    put_policy(house.conn, None, None, {"max_attempts": 1}, "test", username="alice")
    house.set_faults(files=[{"path": "mc", "reason": "SOURCE [112] Result curl error (56): Failure"}])
    add(record(1), record(2, username="bob"))
    house.run_cycle()
    house.finish_at_fts()
    house.sense()
    house.update()
    rows = house.conn.execute("SELECT username, state::text FROM transfer ORDER BY id").fetchall()
    assert rows == [("alice", "FAILED"), ("bob", "RETRY")]


def test_a_failure_that_may_pass_is_tried_again_and_then_given_up(house: House, add: Add) -> None:
    put_policy(house.conn, None, None, {"max_attempts": 2}, "test")
    house.set_faults(
        files=[
            {"path": "out_1.root", "reason": "SOURCE [112] Result curl error (56): Failure"},
            {"path": "out_2.root", "reason": "SOURCE [112] Result curl error (56): Failure", "tries": 1},
            {"path": "out_3.root", "reason": "TRANSFER [5] copy HTTP 507 : Insufficient Storage"},
        ]
    )
    add(record(1), record(2), record(3), record(4))
    house.run_cycle()
    house.finish_at_fts()
    house.sense()
    summary = house.update()
    assert summary.sentence == "1 file done, 2 go again later, 1 failed for good"
    (due_at,) = house.conn.execute("SELECT min(due_at) FROM transfer WHERE state = 'RETRY'").fetchone() or (
        None,
    )
    assert timedelta(seconds=40) < due_at - datetime.now(UTC) < timedelta(seconds=80)
    house.make_due()
    house.run_cycle("second")
    house.finish_at_fts()
    house.sense()
    house.update()
    assert states(house.conn) == {"DONE": 2, "FAILED": 2}
    rows = house.conn.execute(
        "SELECT size_bytes, failure_category, attempt FROM transfer WHERE state = 'FAILED' ORDER BY 1"
    ).fetchall()
    assert rows == [(1001, "source", 2), (1003, "quota", 1)]
    assert_audited(house.conn)


def test_files_of_a_running_job_are_done_at_once(house: House, add: Add) -> None:
    """A14: the job is ACTIVE, most of its files are not."""
    add(*(record(number) for number in range(4)))
    house.run_cycle()
    (job,) = jobs_at_fts(house)
    slow = job.files[-1]
    house.finish_at_fts()

    def revive() -> None:
        slow.file_state = "ACTIVE"
        job.job_state = "ACTIVE"

    house.fts.fts.call(revive)
    assert house.sense().news == 3
    house.update()
    assert states(house.conn) == {"DONE": 3, "SUBMITTED": 1}
    assert house.sense().news == 0
    assert_audited(house.conn)


def test_a_job_that_fts_lost_goes_again(house: House, add: Add) -> None:
    add(record(1), record(2))
    house.run_cycle()
    house.fts.fts.call(house.fts.fts.engine.jobs.clear)
    assert house.sense().news == 0, "once is no proof"
    house.conn.execute("UPDATE fts_job SET missing_at = missing_at - interval '10 s'")
    assert house.sense().news == 1
    assert staged_reports(house.conn) == 1
    house.update()
    assert states(house.conn) == {"RETRY": 2}
    assert house.conn.execute("SELECT DISTINCT failure_category FROM transfer").fetchall() == [("lost",)]
    assert_audited(house.conn)


def test_a_paused_link_is_held_and_says_why(house: House, add: Add) -> None:
    add(record(1), record(2, destination="T1_DE_KIT"))
    pause = restrict(house.conn, Mode.PAUSE, Area(destination="T1_DE_KIT"), reason="disk full", by="ops")
    assert house.collect().sentence == "2 links have waiting files; 1 of them held back with 1 file"
    summary = house.run_cycle()
    assert summary.sentence == (
        "Submitted 1 FTS jobs, 1 file, 1.0 kB on 1 links; held back: 1 paused by ops: disk full"
    )
    assert states(house.conn) == {"SUBMITTED": 1, "NEW": 1}
    lift(house.conn, [pause.restriction_id], "ops")
    house.run_cycle("two")
    assert states(house.conn) == {"SUBMITTED": 2}


def test_a_full_link_takes_no_more(house: House, add: Add) -> None:
    put_policy(house.conn, None, None, {"max_files_in_flight": 3}, "ops")
    add(*(record(number) for number in range(5)))
    house.run_cycle("one")
    assert states(house.conn) == {"SUBMITTED": 3, "NEW": 2}
    house.run_cycle("two")
    assert states(house.conn) == {"SUBMITTED": 3, "NEW": 2}
    house.finish_at_fts()
    house.sense()
    house.update()
    house.run_cycle("three")
    assert states(house.conn) == {"SUBMITTED": 2, "DONE": 3}


def test_fts_is_told_what_the_policy_says(house: House, add: Add) -> None:
    put_policy(
        house.conn,
        None,
        None,
        {"verify_checksum": "target", "overwrite": False, "max_time_in_queue_h": 2},
        "o",
    )
    add(record(1, priority=5, activity="Analysis"))
    house.run_cycle()
    (job,) = jobs_at_fts(house)
    answer = house.fts.ask("alice", "GET", f"/jobs/{job.job_id}?files=activity,file_metadata,checksum").json()
    assert (answer["verify_checksum"], answer["overwrite_flag"], answer["priority"]) == ("t", None, 5)
    assert answer["max_time_in_queue"] is not None
    assert answer["files"][0]["activity"] == "Analysis"
    assert answer["files"][0]["checksum"] == "ADLER32:00000002"


def test_a_step_that_fails_is_on_record(house: House) -> None:
    def broken(_: int) -> None:
        raise ValueError("no such thing")

    with pytest.raises(ValueError, match="no such thing"):
        recorded(house.conn, Actor(task_id="broken", name="tester"), broken)  # type: ignore[arg-type]
    row = house.conn.execute(
        "SELECT outcome, sentence, ended_at IS NOT NULL FROM step_run WHERE task_id = 'broken'"
    ).fetchone()
    assert row == ("failed", "ValueError: no such thing", True)
