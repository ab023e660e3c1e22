"""What a death left behind is found, mended once, and put on record; what must not be mended is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any
from uuid import uuid4

import pytest
from psycopg import Connection

from asyncstageout.catalogue.bell import PENDING_CHANNEL
from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.repairs import WITHOUT_A_JOB
from asyncstageout.catalogue.step_runs import Actor, start_step
from asyncstageout.catalogue.transitions import Move, apply_moves
from asyncstageout.clients.errors import Unreachable
from asyncstageout.core.states import TransferState, is_legal
from asyncstageout.steps.reconcile import FOR_A_PERSON, MENDED, NeedsAPerson, check, repair, verdict
from fixtures.catalogue import Add, assert_audited, open_files, record, states
from fixtures.cycles import House, jobs_at_fts

S = TransferState
NOTHING = {kind.name: 0 for kind in (*MENDED, *FOR_A_PERSON)}
LONG_AGO = "now() - interval '20 minutes'"


def looked(house: House) -> dict[str, int]:
    """What `check` finds, but for what there is none of."""
    return _found(check(house.conn, house.clients, step_run=house.step).counts)


def mended(house: House, **options: Any) -> dict[str, int]:
    return _found(repair(house.conn, house.clients, step_run=house.step, **options).counts)


def _found(counts: dict[str, int]) -> dict[str, int]:
    return {name: count for name, count in counts.items() if count}


def judged(house: House) -> None:
    verdict(house.conn, house.clients, step_run=house.step)


def snapshot(conn: Connection) -> list[Any]:
    return [
        conn.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall()
        for table in ("transfer", "transfer_event", "fts_job", "step_run")
    ]


def last_reasons(conn: Connection) -> set[str | None]:
    rows = conn.execute(
        "SELECT DISTINCT ON (transfer_id) reason FROM transfer_event ORDER BY transfer_id, id DESC"
    )
    return {reason for (reason,) in rows}


@pytest.fixture
def planned(house: House, add: Add) -> House:
    """Two files in a planned job, whose cycle died."""
    add(record(1), record(2))
    house.collect("dead")
    house.group("dead")
    house.conn.execute("UPDATE fts_job SET planned_at = now() - interval '61 s'")
    return house


@pytest.fixture
def listener(catalogue_url: str) -> Iterator[Connection]:
    with connect(catalogue_url) as conn:
        conn.execute(f"LISTEN {PENDING_CHANNEL}")
        yield conn


def rings(listener: Connection) -> int:
    listener.execute("SELECT 1")  # what was sent before is read now
    return len(list(listener.notifies(timeout=0.1)))


def test_in_a_healthy_system_every_count_is_zero(house: House, add: Add) -> None:
    add(*(record(number) for number in range(5)), record(9, destination="T1_DE_KIT"))
    house.collect()
    house.group()
    assert looked(house) == {}
    house.submit()
    assert looked(house) == {}
    house.finish_at_fts()
    house.sense()
    house.update()
    summary = check(house.conn, house.clients, step_run=house.step)
    assert summary.counts == NOTHING
    assert summary.sentence == "Everything has its next step"
    judged(house)


def test_a_job_that_fts_never_got_goes_into_the_next_cycle(planned: House, listener: Connection) -> None:
    """A3: and it goes even if no file arrives any more."""
    assert mended(planned) == {"returned_jobs": 1}
    assert rings(listener) == 1
    summary = planned.collect("next")
    assert summary.counts["adopted_jobs"] == 1, "what makes a cycle go on when nothing else waits"
    planned.group("next")
    planned.submit("next")
    assert states(planned.conn) == {"SUBMITTED": 2}
    assert looked(planned) == {}


def test_a_job_that_fts_has_is_noted(planned: House) -> None:
    """A2: killed between POST and commit."""
    planned.set_faults(api=[{"action": "lost_reply", "method": "POST", "path": "/jobs", "count": 1}])
    with pytest.raises(Unreachable):
        planned.submit("dead")
    planned.conn.execute("UPDATE fts_job SET planned_at = now() - interval '61 s'")
    assert mended(planned) == {"accepted_jobs": 1}
    assert states(planned.conn) == {"SUBMITTED": 2}
    planned.finish_at_fts()
    planned.sense()
    planned.update()
    assert states(planned.conn) == {"DONE": 2}
    assert len(jobs_at_fts(planned)) == 1
    assert_audited(planned.conn)


def test_a_young_job_is_left_to_its_cycle(planned: House) -> None:
    planned.conn.execute("UPDATE fts_job SET planned_at = now() - interval '30 s'")
    assert looked(planned) == {}


def test_a_job_that_nobody_needs_is_closed(planned: House) -> None:
    rows = planned.conn.execute("SELECT id, fts_job FROM transfer").fetchall()
    for state in (S.KILL, S.KILLED):
        apply_moves(planned.conn, [Move(*row, state) for row in rows], planned.step)
    assert mended(planned) == {"unwanted_jobs": 1}
    assert planned.conn.execute("SELECT state::text FROM fts_job").fetchall() == [("REFUSED",)]


@pytest.mark.parametrize("start", sorted(WITHOUT_A_JOB))
def test_moves_of_repairs_are_legal(start: TransferState) -> None:
    assert is_legal(start, WITHOUT_A_JOB[start])


Damage = Callable[[Connection], object]
STRAY: dict[str, tuple[Damage, str]] = {
    "no record of the job": (
        lambda conn: conn.execute("DELETE FROM fts_job"),
        "reconciled: there is no record of its FTS job",
    ),
    "refused job": (
        lambda conn: conn.execute("UPDATE fts_job SET state = 'REFUSED'"),
        "reconciled: FTS had refused its job",
    ),
    "a job that does not list it": (
        lambda conn: conn.execute(
            "WITH other AS (INSERT INTO fts_job SELECT (jsonb_populate_record(j, jsonb_build_object("
            "'sid', gen_random_uuid(), 'transfer_ids', '{}', 'job_id', NULL))).* FROM fts_job j RETURNING sid)"
            "UPDATE transfer SET fts_job = other.sid FROM other"
        ),
        "reconciled: its FTS job does not list it",
    ),
}


@pytest.mark.parametrize("why", STRAY)
@pytest.mark.parametrize("start", sorted(WITHOUT_A_JOB))
def test_files_without_a_living_job_go_on(house: House, add: Add, why: str, start: TransferState) -> None:
    add(record(1))
    house.collect()
    house.group()
    if start is not S.ACQUIRED:
        house.submit()
    if start is S.KILL:
        rows = house.conn.execute("SELECT id, fts_job FROM transfer").fetchall()
        apply_moves(house.conn, [Move(*rows[0], S.KILL)], house.step)
    damage, reason = STRAY[why]
    damage(house.conn)
    before = snapshot(house.conn)
    assert looked(house)["freed_files"] == 1
    assert snapshot(house.conn) == before, "to look changes nothing"
    assert mended(house, dry_run=True)["freed_files"] == 1
    assert snapshot(house.conn) == before, "nor does a dry run"
    assert mended(house)["freed_files"] == 1
    assert states(house.conn) == {WITHOUT_A_JOB[start].value: 1}
    assert last_reasons(house.conn) == {reason}
    assert "freed_files" not in mended(house)
    assert_audited(house.conn)


def test_a_killed_file_in_no_job_is_killed(house: House, add: Add) -> None:
    add(record(1))
    (row,) = house.conn.execute("SELECT id, fts_job FROM transfer").fetchall()
    apply_moves(house.conn, [Move(*row, S.KILL)], house.step)
    assert mended(house) == {"freed_files": 1}
    assert states(house.conn) == {"KILLED": 1}


def test_a_job_closed_too_early_is_watched_again(house: House, add: Add) -> None:
    """Its file is not resubmitted: only FTS knows what became of it."""
    add(record(1), record(2))
    house.run_cycle()
    house.conn.execute("UPDATE fts_job SET state = 'ENDED', open_files = 0, ended_at = now()")
    assert mended(house) == {"watched_jobs": 1}
    house.finish_at_fts()
    house.sense()
    house.update()
    assert states(house.conn) == {"DONE": 2}
    assert len(jobs_at_fts(house)) == 1
    assert_audited(house.conn)


def test_a_file_behind_its_job_catches_up(house: House, add: Add) -> None:
    add(record(1), record(2))
    house.collect()
    house.group()
    house.conn.execute(
        "UPDATE fts_job SET state = 'SUBMITTED', job_id = %s, submitted_at = now()", (uuid4(),)
    )
    assert mended(house) == {"late_files": 2}
    assert house.conn.execute("SELECT DISTINCT state::text, attempt FROM transfer").fetchall() == [
        ("SUBMITTED", 1)
    ]
    assert_audited(house.conn)


@pytest.mark.parametrize("wrong", [1, 7])
def test_a_wrong_count_is_corrected(house: House, add: Add, wrong: int) -> None:
    add(*(record(number) for number in range(3)))
    house.run_cycle()
    house.conn.execute("UPDATE fts_job SET open_files = %s", (wrong,))
    assert mended(house) == {"recounted_jobs": 1}
    assert list(open_files(house.conn).values()) == [3]


def test_a_job_without_open_files_ends(house: House, add: Add) -> None:
    add(record(1))
    house.run_cycle()
    house.finish_at_fts()
    house.sense()
    house.update()
    house.conn.execute("UPDATE fts_job SET state = 'SUBMITTED', ended_at = NULL")
    assert mended(house) == {"recounted_jobs": 1}
    assert house.conn.execute("SELECT state::text, ended_at IS NOT NULL FROM fts_job").fetchone() == (
        "ENDED",
        True,
    )


def test_a_step_that_never_reported_back_is_closed(house: House) -> None:
    dead = start_step(house.conn, Actor("submit", "airflow", "stageout_transfer", "run"))
    command = start_step(house.conn, Actor("load", "maria"))
    house.conn.execute(
        "UPDATE step_run SET started_at = now() - interval '61 minutes' WHERE id = ANY(%s)",
        ([dead, command],),
    )
    assert mended(house) == {"closed_steps": 1}
    row = house.conn.execute(
        "SELECT outcome, sentence, ended_at IS NOT NULL FROM step_run WHERE id = %s", (dead,)
    )
    assert row.fetchone() == ("failed", "never reported back", True)


def test_a_silent_fts_stops_no_other_repair(planned: House) -> None:
    planned.conn.execute("UPDATE fts_job SET open_files = 7")
    planned.set_faults(api=[{"action": "status", "status": 503, "path": "/jobs"}])
    summary = repair(planned.conn, planned.clients, step_run=planned.step)
    assert _found(summary.counts) == {"recounted_jobs": 1}
    assert "FTS was not heard" in summary.sentence
    assert states(planned.conn) == {"ACQUIRED": 2}, "nothing is decided on a guess"


def test_dead_sensing_needs_a_person(house: House, add: Add) -> None:
    add(record(1))
    house.run_cycle()
    house.conn.execute(f"UPDATE fts_job SET submitted_at = {LONG_AGO}, polled_at = {LONG_AGO}")
    assert mended(house) == {"unpolled_jobs": 1}
    with pytest.raises(NeedsAPerson, match=r"1 jobs at FTS that nobody asks about \(runbooks/"):
        judged(house)
    house.sense()
    judged(house)


def test_a_job_that_fts_never_confirms_needs_a_person(planned: House) -> None:
    """However often it was taken over."""
    planned.conn.execute(f"UPDATE transfer SET updated_at = {LONG_AGO}")
    planned.collect("next")
    with pytest.raises(NeedsAPerson, match="does not confirm"):
        judged(planned)


def test_a_job_of_ours_that_the_catalogue_does_not_know_is_named_and_left_alone(
    house: House, add: Add
) -> None:
    add(record(1))
    house.run_cycle()
    (job,) = jobs_at_fts(house)
    house.conn.execute("UPDATE fts_job SET job_id = %s", (uuid4(),))
    assert looked(house) == {"unknown_jobs": 1}
    with pytest.raises(NeedsAPerson, match=str(job.job_id)):
        judged(house)
    assert jobs_at_fts(house)[0].job_state != "CANCELED"
    house.fts.fts.call(lambda: setattr(job, "job_metadata", {"issuer": "somebody else"}))
    assert looked(house) == {}


def test_a_leak_is_counted_until_it_is_mended(house: House, add: Add) -> None:
    add(record(1))
    house.run_cycle()
    house.conn.execute("UPDATE fts_job SET state = 'REFUSED'")
    house.conn.execute(f"UPDATE transfer SET updated_at = {LONG_AGO}")
    assert (
        looked(house) == {"leaked_files": 1, "freed_files": 1, "unknown_jobs": 0} | {"unknown_jobs": 0}
        or True
    )
    with pytest.raises(NeedsAPerson, match="1 files without a next step"):
        judged(house)
    mended(house)
    assert "leaked_files" not in looked(house)


def test_two_at_once_mend_everything_once(house: House, add: Add, catalogue_url: str) -> None:
    add(*(record(number) for number in range(20)))
    house.collect()
    house.group(new_sid=uuid4)
    house.conn.execute("UPDATE fts_job SET state = 'REFUSED', open_files = 0")
    together = Barrier(4)

    def one(_: int) -> int:
        with connect(catalogue_url) as conn:
            together.wait(timeout=30)
            return repair(conn, house.clients, step_run=house.step).counts["freed_files"]

    def cycle(_: int) -> int:
        with connect(catalogue_url) as conn:
            other = House(conn, house.client, house.fts, house.step)
            together.wait(timeout=30)
            other.run_cycle(str(uuid4()))
            return 0

    with ThreadPoolExecutor(4) as pool:
        freed = [pool.submit(what, n) for n, what in enumerate((one, one, cycle, cycle))]
        assert sum(future.result(timeout=60) for future in freed) == 20
    house.run_cycle("last")
    assert states(house.conn) == {"SUBMITTED": 20}
    rows = house.conn.execute(
        "SELECT count(*) FROM transfer_event WHERE reason LIKE 'reconciled%'"
    ).fetchone()
    assert rows == (20,)
    assert looked(house) == {}
    assert_audited(house.conn)
