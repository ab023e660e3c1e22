"""Sensing against an FTS that answers everything it can answer: nothing is lost, nothing counts twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg import Connection

from asyncstageout.catalogue.policies import put_policy
from asyncstageout.catalogue.sensing import LOST, OpenJob, open_job_count, staged_reports
from asyncstageout.clients.errors import BadAnswer, RequestTooLong, ServerFault, TooManyIds, Unreachable
from asyncstageout.core.fts import FTSFileStatus, FTSJobStatus, JobAnswer, JobMissing
from asyncstageout.core.planning import PlannedJob
from asyncstageout.core.polling import Allowance
from asyncstageout.steps.asking import ask_about
from asyncstageout.steps.sense import Round, sense_once, sentence
from asyncstageout.steps.update_catalogue import update_catalogue
from fixtures.catalogue import SITES, Add, Plan, assert_audited, record, states
from fixtures.cycles import House, jobs_at_fts

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


# --- a house with a real FTS contract ---


def sense_at(house: House, after_s: float, **options: Any) -> Round:
    """Ask about everything, so many seconds after now."""
    house.conn.execute("UPDATE fts_job SET next_poll_at = '-infinity' WHERE state = 'SUBMITTED'")
    house.conn.execute("UPDATE fts_job SET next_poll_at = coalesce(polled_at, submitted_at)")
    return sense_once(house.conn, house.client, now=datetime.now(UTC) + timedelta(seconds=after_s), **options)


def forget(house: House, keep: int = 0) -> dict[str, Any]:
    """Let FTS forget its jobs but the first few; return what it forgot."""

    def act() -> dict[str, Any]:
        jobs = house.fts.fts.engine.jobs
        return {job_id: jobs.pop(job_id) for job_id in list(jobs)[keep:]}

    return house.fts.fts.call(act)


def remember(house: House, forgotten: dict[str, Any]) -> None:
    house.fts.fts.call(lambda: house.fts.fts.engine.jobs.update(forgotten))


def many_jobs(house: House, add: Add, count: int) -> None:
    """Submit jobs of one file each."""
    put_policy(house.conn, None, None, {"files_per_job": 1}, "test")
    add(*(record(number) for number in range(count)))
    house.run_cycle()
    assert open_job_count(house.conn) == count


def test_a10_one_missing_job_of_several_does_not_disturb_the_others(house: House, add: Add) -> None:
    many_jobs(house, add, 3)
    house.finish_at_fts()
    forgotten = forget(house, keep=2)
    assert sense_at(house, 0) == Round(3, 2, 1)
    house.update()
    assert states(house.conn) == {"DONE": 2, "SUBMITTED": 1}
    remember(house, forgotten)
    assert sense_at(house, 60).news == 1, "it was away for a moment"
    house.update()
    assert states(house.conn) == {"DONE": 3}
    assert_audited(house.conn)


def test_a10_lost_only_when_missing_twice_ten_seconds_apart(house: House, add: Add) -> None:
    add(record(1), record(2))
    house.run_cycle()
    forget(house)
    assert sense_at(house, 0) == Round(1, 0, 1)
    assert sense_at(house, 9) == Round(1, 0, 1)
    assert states(house.conn) == {"SUBMITTED": 2}
    assert sense_at(house, 11) == Round(1, 1, 0)
    house.update()
    assert states(house.conn) == {"RETRY": 2}
    assert house.conn.execute("SELECT DISTINCT failure_category FROM transfer").fetchall() == [("lost",)]
    assert_audited(house.conn)


def test_a10_an_fts_that_comes_up_empty_for_a_moment_loses_nothing(
    house: House, add: Add, caplog: pytest.LogCaptureFixture
) -> None:
    many_jobs(house, add, 6)
    house.finish_at_fts()
    forgotten = forget(house)
    sense_at(house, 0)
    for after_s in (15, 25, 39):
        assert sense_at(house, after_s) == Round(6, 0, 6)
        assert "does not know 6 of 6 jobs: none counts as lost before 40 s" in caplog.text
    remember(house, forgotten)
    assert sense_at(house, 45).news == 6
    house.update()
    assert states(house.conn) == {"DONE": 6}


def test_a10_an_fts_that_stays_empty_loses_its_jobs_after_a_while(house: House, add: Add) -> None:
    many_jobs(house, add, 6)
    forget(house)
    assert [sense_at(house, after_s).news for after_s in (0, 20, 39, 41)] == [0, 0, 0, 6]
    house.update()
    assert states(house.conn) == {"RETRY": 6}


def test_a10_jobs_that_answered_before_the_restart_are_no_excuse(house: House, add: Add) -> None:
    """Only questions since the jobs went missing tell whether FTS as a whole forgot."""
    many_jobs(house, add, 8)
    sense_at(house, 0)
    house.conn.execute("UPDATE fts_job SET next_poll_at = 'infinity'")
    house.conn.execute(
        "UPDATE fts_job SET next_poll_at = now() WHERE sid IN (SELECT sid FROM fts_job ORDER BY sid LIMIT 3)"
    )
    forget(house)
    now = datetime.now(UTC)
    for after_s in (20, 40):
        assert sense_once(house.conn, house.client, now=now + timedelta(seconds=after_s)).news == 0
        house.conn.execute("UPDATE fts_job SET next_poll_at = now() WHERE missing_at IS NOT NULL")


def test_a11_a_job_in_the_archive_gives_its_outcome_from_there(house: House, add: Add) -> None:
    add(record(1), record(2))
    house.run_cycle()
    house.finish_at_fts()
    house.fts.tick(8 * 86400)
    assert jobs_at_fts(house) == []
    assert sense_at(house, 0) == Round(1, 0, 1)
    assert sense_at(house, 15) == Round(1, 2, 0)
    house.update()
    assert states(house.conn) == {"DONE": 2}
    assert_audited(house.conn)


def test_a10_an_fts_that_forgot_hundreds_of_jobs_is_known_to_within_two_minutes(
    house: House, add: Add
) -> None:
    """No file waits longer than that for its next step, however many jobs were forgotten at once."""
    many_jobs(house, add, 500)
    forget(house)
    begun_at = datetime.now(UTC)
    for after_s in range(0, 116, 5):
        if sense_once(house.conn, house.client, now=begun_at + timedelta(seconds=after_s)).news:
            house.update()
    assert states(house.conn) == {"RETRY": 500}
    assert_audited(house.conn)


def test_a11_a_job_is_not_lost_while_the_archive_is_silent(house: House, add: Add) -> None:
    add(record(1))
    house.run_cycle()
    forget(house)
    house.set_faults(api=[{"action": "status", "status": 503, "body": "<html>", "path": "/archive/.*"}])
    assert [sense_at(house, after_s).news for after_s in (0, 15, 30)] == [0, 0, 0]
    house.set_faults(api=[])
    assert sense_at(house, 45).news == 1


def test_a12_a_lost_job_takes_back_only_what_had_not_finished(house: House, add: Add) -> None:
    add(record(1), record(2), record(3))
    house.run_cycle()
    (job,) = jobs_at_fts(house)
    house.finish_at_fts()
    set_states(house, "ACTIVE", "FINISHED", "ACTIVE", "ACTIVE")
    sense_at(house, 0)
    forget(house)
    sense_at(house, 1)
    sense_at(house, 15)
    assert staged_reports(house.conn) == 2, "the file that finished, and the loss of the job, in one batch"
    house.update()
    assert states(house.conn) == {"DONE": 1, "RETRY": 2}
    assert job is not None
    assert_audited(house.conn)


def set_states(house: House, job_state: str, *file_states: str) -> None:
    """Have FTS say this of its only job."""
    (job,) = jobs_at_fts(house)

    def act() -> None:
        job.job_state = job_state
        for file, state in zip(job.files, file_states, strict=True):
            file.file_state = state

    house.fts.fts.call(act)


def test_a13_finished_dirty_is_judged_file_by_file(house: House, add: Add) -> None:
    house.set_faults(files=[{"path": "out_2.root", "reason": "SOURCE [112] Result curl error (56): Failure"}])
    add(record(1), record(2))
    house.run_cycle()
    house.finish_at_fts()
    assert [job.job_state for job in jobs_at_fts(house)] == ["FINISHEDDIRTY"]
    assert sense_at(house, 0).news == 2
    house.update()
    assert states(house.conn) == {"DONE": 1, "RETRY": 1}


def test_a15_a_file_left_active_by_a_final_job_is_waited_for_an_hour(house: House, add: Add) -> None:
    add(record(1), record(2))
    house.run_cycle()
    house.finish_at_fts()
    set_states(house, "FINISHED", "FINISHED", "ACTIVE")
    assert [sense_at(house, after_s).news for after_s in (0, 600, 3599)] == [1, 0, 0]
    house.update()
    assert states(house.conn) == {"DONE": 1, "SUBMITTED": 1}
    assert sense_at(house, 3601).news == 1
    house.update()
    assert states(house.conn) == {"DONE": 1, "RETRY": 1}
    row = house.conn.execute("SELECT failure_reason FROM transfer WHERE state = 'RETRY'").fetchone()
    assert row == ("FTS ended the job (FINISHED) over an hour ago and left this file unfinished",)
    assert_audited(house.conn)


def test_a15_fts_repairs_the_file_within_the_hour(house: House, add: Add) -> None:
    add(record(1))
    house.run_cycle()
    house.finish_at_fts()
    set_states(house, "FINISHED", "ACTIVE")
    sense_at(house, 0)
    set_states(house, "FINISHED", "FINISHED")
    assert sense_at(house, 3700).news == 2, "the file's own word, and that the hour is over"
    house.update()
    assert states(house.conn) == {"DONE": 1}, "the file's own word counts"


@pytest.mark.parametrize(
    ("job_state", "file_state", "becomes"),
    [
        ("CANCELED", "CANCELED", "RETRY"),
        ("CANCELED", "FAILED", "RETRY"),
        ("FAILED", "NOT_USED", "RETRY"),
        ("FINISHED", "NOT_USED", "DONE"),
        ("FINISHEDDIRTY", "FINISHED", "DONE"),
        ("ACTIVE", "NOT_USED", "SUBMITTED"),
        ("SUBMITTED", "TOKEN_PREP", "SUBMITTED"),
        ("ACTIVE", "ON_HOLD", "SUBMITTED"),
        ("CANCELED", "ON_HOLD", "SUBMITTED"),
        ("ACTIVE", "FORCE_START", "SUBMITTED"),
        ("A_STATE_OF_FTS_4", "ANOTHER_ONE", "SUBMITTED"),
        ("A_STATE_OF_FTS_4", "FINISHED", "DONE"),
    ],
)
def test_a16_a35_what_two_states_mean(
    house: House, add: Add, job_state: str, file_state: str, becomes: str
) -> None:
    add(record(1))
    house.run_cycle()
    set_states(house, job_state, file_state)
    sense_at(house, 0)
    house.update()
    assert states(house.conn) == {becomes: 1}


def test_a_job_that_is_not_shown_to_us_is_asked_for_rarely(house: House, add: Add) -> None:
    add(record(1))
    house.run_cycle()
    (job,) = jobs_at_fts(house)
    job.vo_name = "othervo"
    job.user_dn = "/CN=somebody"
    sense_at(house, 0)
    row = house.conn.execute("SELECT fts_state, next_poll_at - now() > '4 min' FROM fts_job").fetchone()
    assert row == ("FORBIDDEN", True)
    assert states(house.conn) == {"SUBMITTED": 1}


# --- an FTS that answers what it should not ---


@dataclass
class OddFTS:
    """Answers as it is told, and remembers what it was asked."""

    answer: Callable[[UUID], JobAnswer]
    refuse: Callable[[list[UUID]], Exception | None] = lambda _: None
    archive: dict[UUID, FTSJobStatus] = field(default_factory=dict)
    asked: list[tuple[int, bool]] = field(default_factory=list)

    def statuses(self, ids: list[UUID], *, with_files: bool = True, **_: Any) -> list[JobAnswer]:
        self.asked.append((len(ids), with_files))
        if error := self.refuse(ids):
            raise error
        found = [self.answer(job_id) for job_id in ids]
        bare = [replace(one, files=()) if isinstance(one, FTSJobStatus) else one for one in found]
        return found if with_files else bare

    def archived(self, job_id: UUID) -> JobAnswer:
        return self.archive.get(job_id) or JobMissing(job_id)


def file(transfer_id: int | None, state: str = "FINISHED", **changes: Any) -> FTSFileStatus:
    return FTSFileStatus(file_id=1, state=state, transfer_id=transfer_id, finished_at=NOON, **changes)


def job_of(*files: FTSFileStatus, state: str = "ACTIVE") -> Callable[[UUID], JobAnswer]:
    return lambda job_id: FTSJobStatus(job_id, state, None, NOON, None, files)


def settle(conn: Connection, fts: OddFTS, step: int, after_s: float = 0) -> Round:
    """One round and what it changes."""
    conn.execute("UPDATE fts_job SET next_poll_at = submitted_at WHERE state = 'SUBMITTED'")
    now = datetime.now(UTC) + timedelta(seconds=after_s)
    one = sense_once(conn, fts, now=now)  # type: ignore[arg-type]
    update_catalogue(conn, now=now, step_run=step)
    return one


@pytest.fixture
def job(add: Add, submitted: Plan) -> PlannedJob:
    """A submitted job of three files."""
    add(record(1), record(2), record(3))
    (planned,) = submitted()
    return planned


def url(number: int) -> str:
    return SITES["T2_CH_CERN"] + record(number)["destination_lfn"]


def test_a35_an_answer_without_files_is_waited_out(conn: Connection, step: int, job: PlannedJob) -> None:
    fts = OddFTS(job_of())
    assert settle(conn, fts, step).news == 0
    fts.answer = job_of(state="FINISHED")
    assert settle(conn, fts, step).news == 0
    assert states(conn) == {"SUBMITTED": 3}
    settle(conn, fts, step, after_s=3700)
    assert states(conn) == {"RETRY": 3}
    assert_audited(conn)


def test_a35_an_answer_with_fewer_files_settles_those(conn: Connection, step: int, job: PlannedJob) -> None:
    first, *_ = job.transfer_ids
    settle(conn, OddFTS(job_of(file(first), state="FINISHED")), step)
    assert states(conn) == {"DONE": 1, "SUBMITTED": 2}


def test_files_without_our_number_are_known_by_their_destination(
    conn: Connection, step: int, job: PlannedJob
) -> None:
    fts = OddFTS(job_of(file(None, dest_url=url(1)), file(None, dest_url="davs://elsewhere.test/x")))
    settle(conn, fts, step)
    assert states(conn) == {"DONE": 1, "SUBMITTED": 2}
    row = conn.execute("SELECT id FROM transfer WHERE state = 'DONE'").fetchone()
    assert row == (job.transfer_ids[0],)


def test_a_file_with_a_foreign_number_changes_nothing(conn: Connection, step: int, job: PlannedJob) -> None:
    assert settle(conn, OddFTS(job_of(file(10**9), file(-1))), step).news == 0
    assert states(conn) == {"SUBMITTED": 3}


def test_what_postgres_cannot_hold_does_not_stop_the_others(
    conn: Connection, step: int, job: PlannedJob
) -> None:
    first, second, _ = job.transfer_ids
    odd = replace(file(first, "FAILED", reason="nul \0, half a pair \ud800"), file_id=10**30)
    settle(conn, OddFTS(job_of(odd, file(10**30), file(second), state="ODD\0")), step)
    assert states(conn) == {"DONE": 1, "RETRY": 1, "SUBMITTED": 1}


@pytest.mark.parametrize(
    ("lines", "becomes"),
    [
        (("FINISHED", "FINISHED"), "DONE"),
        (("FAILED", "FINISHED"), "DONE"),
        (("FINISHED", "FAILED"), "DONE"),
        (("FAILED", "ACTIVE"), "SUBMITTED"),
        (("FAILED", "FAILED"), "RETRY"),
    ],
)
def test_duplicates_in_one_answer(
    conn: Connection, step: int, job: PlannedJob, lines: tuple[str, ...], becomes: str
) -> None:
    first, *_ = job.transfer_ids
    news = settle(conn, OddFTS(job_of(*(file(first, state) for state in lines))), step).news
    assert news == (becomes != "SUBMITTED")
    assert states(conn).get(becomes, 0) == (3 if becomes == "SUBMITTED" else 1)
    assert_audited(conn)


def test_a17_a_late_answer_of_an_older_attempt_changes_nothing(
    conn: Connection, step: int, job: PlannedJob, submitted: Plan
) -> None:
    gone = OddFTS(JobMissing)
    settle(conn, gone, step)
    settle(conn, gone, step, after_s=15)
    assert states(conn) == {"RETRY": 3}
    conn.execute("UPDATE transfer SET due_at = now() - interval '1 s'")
    submitted()
    # FTS remembers the old job: it may even be watched again.
    conn.execute("UPDATE fts_job SET state = 'SUBMITTED' WHERE sid = %s", (job.sid,))
    (old_id,) = conn.execute("SELECT job_id FROM fts_job WHERE sid = %s", (job.sid,)).fetchone() or ()
    everything = job_of(*(file(number, "FAILED") for number in job.transfer_ids))
    nothing = job_of()
    fts = OddFTS(lambda job_id: everything(job_id) if job_id == old_id else nothing(job_id))
    assert settle(conn, fts, step).news == 0
    assert states(conn) == {"SUBMITTED": 3}


def open_jobs(count: int, **changes: Any) -> list[OpenJob]:
    return [OpenJob(uuid4(), uuid4(), 10, NOON - timedelta(minutes=5), **changes) for _ in range(count)]


def ask(fts: OddFTS, jobs: list[OpenJob]) -> Any:
    return ask_about(fts, jobs, NOON)  # type: ignore[arg-type]


@pytest.mark.parametrize("error", [TooManyIds, RequestTooLong])
def test_too_many_ids_are_halved(error: type[Exception]) -> None:
    fts = OddFTS(job_of(), lambda ids: error("fts", "GET", 404) if len(ids) > 30 else None)
    answers = ask(fts, open_jobs(100))
    assert len(answers.found) == 100
    assert answers.problem is None
    assert sorted(size for size, _ in fts.asked) == [25, 25, 25, 25, 50, 50, 100]


@pytest.mark.parametrize("error", [BadAnswer, ServerFault])
def test_one_poison_job_does_not_stop_the_others(error: type[Exception]) -> None:
    jobs = open_jobs(100)
    poison = {jobs[17].job_id, jobs[63].job_id}
    fts = OddFTS(job_of(), lambda ids: error("fts", "GET", 500) if poison & set(ids) else None)
    answers = ask(fts, jobs)
    assert answers.unreadable == poison
    assert len(answers.found) == 98
    assert len(fts.asked) <= 40


def test_an_fts_that_fails_on_everything_is_not_asked_for_ever() -> None:
    fts = OddFTS(job_of(), lambda _: ServerFault("fts", "GET", 500))
    answers = ask(fts, open_jobs(100))
    assert len(answers.unreadable) == 100
    assert len(fts.asked) < 60


def test_a_poison_job_is_put_off_and_the_round_goes_on(
    conn: Connection, add: Add, submitted: Plan, step: int
) -> None:
    add(record(1), record(2, destination="T1_DE_KIT"))
    poisoned, good = submitted()
    (poison,) = conn.execute("SELECT job_id FROM fts_job WHERE sid = %s", (poisoned.sid,)).fetchone() or ()
    fts = OddFTS(
        job_of(file(good.transfer_ids[0])), lambda ids: BadAnswer("fts", "GET") if poison in ids else None
    )
    assert settle(conn, fts, step).news == 1
    rows = conn.execute(
        "SELECT next_poll_at > now() + interval '30 s' FROM fts_job WHERE sid = %s", (poisoned.sid,)
    )
    assert rows.fetchone() == (True,)


def test_a_request_without_an_answer_leaves_its_jobs_due() -> None:
    jobs = open_jobs(250)
    first = jobs[0].job_id
    fts = OddFTS(job_of(), lambda ids: Unreachable("fts", "GET") if first in ids else None)
    answers = ask(fts, jobs)
    assert len(answers.found) == 150
    assert not answers.unreadable
    assert isinstance(answers.problem, Unreachable)


def test_silence_is_raised_and_the_jobs_stay_due(conn: Connection, job: PlannedJob, step: int) -> None:
    with pytest.raises(Unreachable):
        settle(conn, OddFTS(job_of(), lambda _: Unreachable("fts", "GET")), step)
    row = conn.execute("SELECT polled_at, next_poll_at <= now() FROM fts_job").fetchone()
    assert row == (None, True)


# --- how often, how much ---


def test_queued_jobs_are_asked_for_their_state_alone_until_they_begin() -> None:
    known = open_jobs(3, fts_state="SUBMITTED", polled_at=NOON - timedelta(minutes=1))
    fts = OddFTS(job_of(state="SUBMITTED"))
    ask(fts, known)
    assert fts.asked == [(3, False)]
    begun = OddFTS(job_of(file(7)))
    answers = ask(begun, known)
    assert begun.asked == [(3, False), (3, True)]
    assert all(answer.files for answer in answers.found.values())
    new = OddFTS(job_of(state="SUBMITTED"))
    ask(new, open_jobs(1))
    assert new.asked == [(1, True)], "the first look is whole"
    old = OddFTS(job_of(state="SUBMITTED"))
    ask(old, open_jobs(1, fts_state="SUBMITTED", polled_at=NOON - timedelta(minutes=11)))
    assert old.asked == [(1, True)], "and one every ten minutes"


def test_no_request_is_for_more_than_a_hundred_jobs_or_two_thousand_files() -> None:
    fts = OddFTS(job_of())
    ask(fts, open_jobs(350))
    assert max(size for size, _ in fts.asked) == 100
    large = [replace(job, file_count=700) for job in open_jobs(5)]
    fts = OddFTS(job_of())
    ask(fts, large)
    assert sorted(size for size, _ in fts.asked) == [1, 2, 2]


def test_an_overloaded_round_asks_for_what_it_may_and_the_most_overdue_first(
    conn: Connection, add: Add, submitted: Plan
) -> None:
    """Measured in its own interval, a young job waits no longer than an old one."""
    add(*(record(number) for number in range(3)))
    old, young, new = (planned.sid for planned in submitted(files_per_job=1))
    now = datetime.now(UTC)
    for sid, ago_s, interval_s in ((old, 90, 60), (young, 4, 2)):
        conn.execute(
            "UPDATE fts_job SET polled_at = %s, next_poll_at = %s WHERE sid = %s",
            (now - timedelta(seconds=ago_s), now - timedelta(seconds=ago_s - interval_s), sid),
        )
    conn.execute("UPDATE fts_job SET next_poll_at = %s WHERE sid = %s", (now, new))
    order = []
    for _ in range(3):
        seen = []
        fts = OddFTS(lambda job_id, seen=seen: seen.append(job_id) or job_of()(job_id))  # type: ignore[misc]
        assert sense_once(conn, fts, now=now, allowance=Allowance(per_second=0.5)).jobs == 1  # type: ignore[arg-type]
        order += seen
    ids = dict(conn.execute("SELECT job_id, sid FROM fts_job").fetchall())
    assert [ids[job_id] for job_id in order] == [new, young, old]


def test_an_empty_allowance_asks_nothing(conn: Connection, job: PlannedJob) -> None:
    allowance = Allowance(per_second=100)
    now = datetime.now(UTC)
    fts = OddFTS(job_of())
    assert sense_once(conn, fts, now=now, allowance=allowance).jobs == 1  # type: ignore[arg-type]
    conn.execute("UPDATE fts_job SET next_poll_at = submitted_at")
    allowance.spend(1000)
    assert sense_once(conn, fts, now=now, allowance=allowance) == Round(0, 0)  # type: ignore[arg-type]
    assert sense_once(conn, fts, now=now + timedelta(seconds=20), allowance=allowance).jobs == 1  # type: ignore[arg-type]


def test_the_sentence_says_what_fts_does_not_know() -> None:
    assert sentence([Round(5, 2), Round(1, 0)]) == "Asked FTS 6 times about a job; 2 files ended"
    assert sentence([Round(5, 0, 3)]).endswith("; FTS does not know 3 jobs just now")
    assert LOST == "LOST"
