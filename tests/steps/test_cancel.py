"""What people kill is cancelled at FTS: whole jobs, or file by file; what FTS says of each file ends it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from psycopg import Connection

from asyncstageout.catalogue.audit import audit
from asyncstageout.catalogue.cancels import TOLD_AGAIN_S, KillRun, jobs_to_cancel
from asyncstageout.catalogue.fts_servers import add_server, note_contact
from asyncstageout.catalogue.jobs import record_accepted
from asyncstageout.catalogue.kills import kill
from asyncstageout.catalogue.policies import put_policy
from asyncstageout.catalogue.sensing import Poll, record_polls
from asyncstageout.catalogue.step_runs import Actor, start_step
from asyncstageout.catalogue.transitions import TOO_LATE
from asyncstageout.clients.credentials.model import CredentialMissing
from asyncstageout.clients.errors import ServerFault, Unreachable
from asyncstageout.clients.fts3 import FTS3Client
from asyncstageout.core.identities import Identity
from asyncstageout.core.selections import Selection
from asyncstageout.steps.cancel import cancel, outcome, to_cancel
from asyncstageout.steps.recording import Summary
from fixtures.catalogue import Add, Plan, assert_audited, file_ids, record, states
from fixtures.cycles import IMPATIENT, House, jobs_at_fts

ALL = Selection(source="T2_IT_Bari")


def stop(house: House, selection: Selection = ALL) -> dict[str, int]:
    return kill(house.conn, selection, None, comment="killed by olga", step_run=house.step).counts


def tell(house: House, now: datetime | None = None) -> Summary:
    return cancel(house.conn, house.clients, now=now or datetime.now(UTC), step_run=house.step)


def settle(house: House) -> Summary:
    house.sense()
    return house.update()


def at_fts(house: House) -> list[str]:
    return sorted(file.file_state for job in jobs_at_fts(house) for file in job.files)


def assert_sound(conn: Connection) -> None:
    assert_audited(conn)
    assert [result for result in audit(conn) if result.violations] == []


def test_a_whole_task_is_cancelled_job_by_job(house: House, add: Add) -> None:
    put_policy(house.conn, None, None, {"files_per_job": 3}, "test")
    add(*(record(number) for number in range(8)))
    house.run_cycle()
    assert stop(house) == {"being_killed": 8}
    assert tell(house).sentence == "FTS was told to stop 8 files (3 whole jobs)"
    assert {job.job_state for job in jobs_at_fts(house)} == {"CANCELED"}
    assert states(house.conn) == {"KILL": 8}, "only what sensing reads ends a file"
    assert tell(house).sentence == "FTS has nothing to stop"
    assert settle(house).sentence == "0 files done, 0 go again later, 0 failed for good, 8 killed"
    assert states(house.conn) == {"KILLED": 8}
    assert_sound(house.conn)


def test_others_in_the_job_go_on(house: House, add: Add) -> None:
    add(*(record(number) for number in range(3)), *(record(number, username="bob") for number in range(2)))
    house.run_cycle()
    assert len(jobs_at_fts(house)) == 1
    assert stop(house, Selection(username="alice")) == {"being_killed": 3}
    assert tell(house).sentence == "FTS was told to stop 3 files (3 files one by one)"
    assert at_fts(house).count("CANCELED") == 3
    settle(house)
    assert states(house.conn) == {"KILLED": 3, "SUBMITTED": 2}
    reasons = house.conn.execute(
        "SELECT DISTINCT failure_category, failure_reason FROM transfer WHERE state = 'KILLED'"
    )
    assert reasons.fetchall() == [("canceled", "it was cancelled alone in FTS")]
    house.finish_at_fts()
    settle(house)
    assert states(house.conn) == {"KILLED": 3, "DONE": 2}
    assert_sound(house.conn)


def test_what_has_finished_at_fts_is_done_and_the_record_says_too_late(house: House, add: Add) -> None:
    add(*(record(number) for number in range(3)))
    house.run_cycle()
    (job,) = jobs_at_fts(house)
    house.finish_at_fts()

    def revive() -> None:
        for file in job.files[1:]:
            file.file_state = "ACTIVE"
        job.job_state = "ACTIVE"

    house.fts.fts.call(revive)
    stop(house)
    tell(house)
    settle(house)
    assert states(house.conn) == {"DONE": 1, "KILLED": 2}
    (file_id,) = house.conn.execute("SELECT id FROM transfer WHERE state = 'DONE'").fetchone() or (0,)
    events = house.conn.execute(
        "SELECT to_state::text, reason FROM transfer_event WHERE transfer_id = %s ORDER BY id DESC LIMIT 2",
        (file_id,),
    )
    assert events.fetchall() == [("DONE", TOO_LATE), ("KILL", "killed by olga")]
    assert_sound(house.conn)


def test_files_that_share_a_session_only_stop_together(house: House, add: Add) -> None:
    put_policy(house.conn, None, None, {"reuse": True}, "test")
    add(*(record(number) for number in range(3)))
    house.run_cycle()
    one, *others = file_ids(house.conn)
    stop(house, Selection(ids=(one,)))
    said = tell(house)
    assert said.sentence == (
        "FTS has nothing to stop; 1 file in one session with files that go on, so that they end as FTS says"
    )
    assert "CANCELED" not in at_fts(house)
    stop(house, Selection(ids=tuple(others)))
    assert tell(house).counts["whole_jobs"] == 1
    settle(house)
    assert states(house.conn) == {"KILLED": 3}
    assert_sound(house.conn)


def test_a_planned_job_is_cancelled_as_soon_as_fts_has_it(house: House, add: Add, catalogue_url: str) -> None:
    add(record(1), record(2))
    house.collect()
    house.group()
    house.set_faults(api=[{"action": "lost_reply", "method": "POST", "path": "/jobs", "count": 1}])
    with pytest.raises(Unreachable):
        house.submit()
    stop(house)
    assert tell(house).sentence == "FTS has nothing to stop; 2 files to be stopped when FTS confirms the job"
    house.conn.execute("LISTEN stageout_kills")
    house.submit()
    assert list(house.conn.notifies(timeout=5, stop_after=1)), "the bell of kills was not rung"
    assert tell(house).counts["whole_jobs"] == 1
    settle(house)
    assert states(house.conn) == {"KILLED": 2}
    assert_sound(house.conn)


def test_what_fts_never_heard_of_is_killed_here(house: House, add: Add) -> None:
    add(record(1), record(2), record(3, destination="T1_DE_KIT"))
    house.collect()
    house.group()
    stop(house, Selection(destination="T2_CH_CERN"))
    assert tell(house).sentence == "FTS has nothing to stop; 2 files killed that FTS never heard of"
    house.submit()
    assert states(house.conn) == {"KILLED": 2, "SUBMITTED": 1}
    assert len(jobs_at_fts(house)) == 1
    assert_sound(house.conn)


def test_a_job_that_somebody_may_be_sending_is_not_closed(
    conn: Connection, add: Add, plan: Plan, step: int
) -> None:
    add(record(1))
    (job,) = plan()
    conn.execute("UPDATE fts_job SET poster = %s", (step,))
    kill(conn, ALL, None, comment="", step_run=step)
    assert cancel(conn, None, now=datetime.now(UTC), step_run=step).counts["planned"] == 1  # type: ignore[arg-type]
    record_accepted(conn, [(job.sid, job.sid)], step)
    assert [one.is_whole for one in jobs_to_cancel(conn, datetime.now(UTC))] == [True]


def test_one_silent_server_does_not_stop_the_others(house: House, add: Add) -> None:
    add(record(1), record(2, destination="T1_DE_KIT"))
    house.run_cycle()
    add_server(house.conn, "dead", by="test")
    house.conn.execute("UPDATE fts_job SET fts_server = 'dead' WHERE destination = 'T1_DE_KIT'")
    session = house.client._caller.session
    house.clients.by_server["dead"] = FTS3Client(
        "https://127.0.0.1:1", session, vo="testvo", patience=IMPATIENT
    )
    stop(house)
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:1"):
        tell(house)
    settle(house)
    assert states(house.conn) == {"KILLED": 1, "KILL": 1}
    # Once it is known to be silent it is not asked, and nothing is red.
    long_ago = datetime.now(UTC) - timedelta(seconds=60)
    house.conn.execute("UPDATE fts_server_health SET failing_since = %s WHERE name = 'dead'", (long_ago,))
    assert tell(house).sentence == ("FTS has nothing to stop; 1 file at FTS servers that do not answer")
    note_contact(house.conn, "dead", None, datetime.now(UTC))
    house.clients.by_server["dead"] = house.client
    tell(house)
    settle(house)
    assert states(house.conn) == {"KILLED": 2}
    assert_sound(house.conn)


def test_what_fails_for_one_job_does_not_fail_for_its_neighbours(house: House, add: Add) -> None:
    put_policy(house.conn, None, None, {"files_per_job": 1}, "test")
    add(*(record(number) for number in range(4)))
    house.run_cycle()
    bad = str(jobs_at_fts(house)[1].job_id)
    fault = {"action": "status", "status": 500, "body": '{"status": "500", "message": "broken"}'}
    house.set_faults(api=[fault | {"method": "DELETE", "path": f"/jobs/.*{bad}.*"}])
    stop(house)
    with pytest.raises(ServerFault, match="broken"):
        tell(house)
    settle(house)
    assert states(house.conn) == {"KILLED": 3, "KILL": 1}
    house.set_faults(api=[])
    tell(house)
    settle(house)
    assert states(house.conn) == {"KILLED": 4}
    assert_sound(house.conn)


def test_a_user_without_a_credential_is_stopped_by_the_service(house: House, add: Add) -> None:
    add(record(1))
    house.run_cycle()
    whose = str(Identity("alice"))
    house.conn.execute("UPDATE fts_job SET identity = %s", (whose,))
    house.clients.by_identity[whose] = CredentialMissing(Identity("alice"), "gone")
    stop(house)
    assert tell(house).counts["whole_jobs"] == 1


def test_jobs_that_are_not_ours_to_cancel_go_on_and_are_named(house: House, add: Add) -> None:
    add(record(1))
    house.run_cycle()
    (job,) = jobs_at_fts(house)
    house.fts.fts.call(lambda: setattr(job, "vo_name", "othervo"))
    stop(house)
    assert "1 file in jobs that FTS does not let us cancel" in tell(house).sentence
    assert jobs_to_cancel(house.conn, datetime.now(UTC)), "it is tried again"


def test_a_job_that_fts_does_not_know_any_more_is_left_to_sensing(house: House, add: Add) -> None:
    add(record(1), record(2), record(3, username="bob"))
    house.run_cycle()
    house.fts.fts.call(house.fts.fts.engine.jobs.clear)
    stop(house, Selection(username="alice"))
    assert tell(house).counts["single_files"] == 0
    stop(house)
    assert tell(house).counts["whole_jobs"] == 1
    house.sense()
    house.conn.execute("UPDATE fts_job SET missing_at = missing_at - interval '10 s'")
    settle(house)
    assert states(house.conn) == {"KILLED": 3}


def test_fts_is_told_again_of_what_is_still_open_after_a_while(house: House, add: Add) -> None:
    add(record(1), record(2))
    house.run_cycle()
    one, other = file_ids(house.conn)
    stop(house, Selection(ids=(one,)))
    now = datetime.now(UTC)
    tell(house, now)
    assert jobs_to_cancel(house.conn, now + timedelta(seconds=TOLD_AGAIN_S - 1)) == []
    assert len(jobs_to_cancel(house.conn, now + timedelta(seconds=TOLD_AGAIN_S + 1))) == 1
    stop(house, Selection(ids=(other,)))
    assert len(jobs_to_cancel(house.conn, datetime.now(UTC))) == 1, "another file of it is to stop now"


def test_files_that_fts_left_open_in_a_job_that_it_ended_are_cancelled_alone(house: House, add: Add) -> None:
    """FTS keeps files in TOKEN_PREP and ON_HOLD when it cancels their job, and may start them some day."""
    add(record(1), record(2))
    house.run_cycle()
    (job,) = jobs_at_fts(house)
    house.fts.fts.call(lambda: setattr(job.files[0], "file_state", "ON_HOLD"))
    stop(house)
    tell(house)
    settle(house)
    assert states(house.conn) == {"KILL": 1, "KILLED": 1}
    house.fts.fts.call(lambda: setattr(job.files[0], "file_state", "SUBMITTED"))
    said = tell(house, datetime.now(UTC) + timedelta(seconds=TOLD_AGAIN_S + 1))
    assert said.counts["single_files"] == 1
    settle(house)
    assert states(house.conn) == {"KILLED": 2}


def test_what_fts_said_before_it_was_told_delays_nothing(house: House, add: Add) -> None:
    """A question that was under way when FTS was told must not put the next one off."""
    add(record(1), record(2))
    house.run_cycle()
    asked_at = datetime.now(UTC)
    (sid,) = house.conn.execute("SELECT sid FROM fts_job").fetchone() or (None,)
    stop(house, Selection(ids=(file_ids(house.conn)[0],)))
    tell(house)
    record_polls(house.conn, [Poll(sid, "SUBMITTED", asked_at + timedelta(minutes=10))], asked_at)
    row = house.conn.execute("SELECT fts_state, next_poll_at <= now() FROM fts_job").fetchone()
    assert row == (None, True)


@pytest.mark.parametrize("point", ["before", "after"])
def test_who_dies_while_he_tells_is_followed_by_the_next_run(
    house: House, *, add: Add, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(record(1), record(2))
    house.run_cycle()
    stop(house)

    def die(name: str) -> None:
        if name == f"cancel.{point}_telling":
            raise KeyboardInterrupt

    monkeypatch.setattr("asyncstageout.steps.cancel.reached", die)
    with pytest.raises(KeyboardInterrupt):
        tell(house)
    monkeypatch.undo()
    assert tell(house).counts["files"] == 2
    settle(house)
    assert states(house.conn) == {"KILLED": 2}
    assert_sound(house.conn)


def test_a_run_knows_how_its_files_ended(house: House, add: Add) -> None:
    def runs(run_id: str, task_id: str) -> None:
        actor = Actor(task_id=task_id, name="airflow", dag_id="stageout_kill", run_id=run_id)
        house.step = start_step(house.conn, actor)

    def how(run_id: str) -> str:
        return outcome(house.conn, KillRun("stageout_kill", run_id)).sentence

    add(record(1), record(2, destination="T1_DE_KIT"), record(3, destination="T1_DE_KIT"))
    house.run_cycle()
    assert how("by bell") == "Of 0 files under way 0 were killed"
    stop(house, Selection(destination="T1_DE_KIT"))
    runs("by bell", "cancel")
    tell(house)
    hanging = "2 have not ended (runbooks/kills-that-hang.md)"
    assert how("by bell") == f"Of 2 files under way 0 were killed, {hanging}"
    house.fts.finish(*(job.job_id for job in jobs_at_fts(house) if job.job_state != "CANCELED"))
    runs("by form", "kill")
    stop(house)
    assert to_cancel(house.conn, now=datetime.now(UTC)).sentence == "FTS is to stop 1 file"
    settle(house)  # before anybody tells FTS
    runs("by form", "cancel")
    assert tell(house).counts["jobs"] == 0
    assert how("by bell") == "Of 2 files under way 2 were killed"
    assert how("by form") == "Of 1 file under way 0 were killed, for 1 it was too late: they are DONE"
    assert to_cancel(house.conn, now=datetime.now(UTC)).counts == {"files": 0}
