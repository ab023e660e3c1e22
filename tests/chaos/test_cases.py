"""Cases A1 to A35: what is known to go wrong in services like this one, and which tests show that it does not here.

They come from the issue trackers and the sources of Rucio's conveyor, DIRAC and CRAB.
"""

from __future__ import annotations

import ast
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import pytest
from psycopg import Connection

from asyncstageout.clients.fts3 import FTS3Client
from asyncstageout.sandbox.fts.service import Options
from asyncstageout.sandbox.fts.submission import Rules
from asyncstageout.sandbox.tls import client_certificate
from fixtures.catalogue import SITES, Add, assert_audited, record, states
from fixtures.cycles import IMPATIENT, House
from sandbox.harness import ALICE, bench, caller, certificates

TESTS = Path(__file__).parents[1]
PIPELINE = "steps/test_pipeline.py"
SENSING = "steps/test_sensing.py"
FAULTS = "chaos/test_faults.py"
HERE = "chaos/test_cases.py"

CASES: dict[str, tuple[str, ...]] = {
    "A1 a POST is accepted and its reply lost: one job, SUBMITTED": (
        f"{PIPELINE}::test_a_lost_reply_makes_no_second_job",
        f"{FAULTS}::test_the_network_is_bad",
    ),
    "A2 killed between POST and commit: the job is adopted, no second one": (
        "steps/test_reconcile.py::test_a_job_that_fts_has_is_noted",
        f"{FAULTS}::test_a_worker_is_killed_between_two_effects",
    ),
    "A3 killed between intent and POST: submitted once, at once": (
        f"{PIPELINE}::test_the_next_cycle_takes_over_what_a_dead_one_planned",
        "steps/test_reconcile.py::test_a_job_that_fts_never_got_goes_into_the_next_cycle",
        f"{FAULTS}::test_a_worker_is_killed_between_two_effects",
    ),
    "A4 409, the sid is duplicated: success of the same job": (
        f"{PIPELINE}::test_a_lost_reply_makes_no_second_job",
        "clients/test_fts3_client.py::test_submit_after_a_lost_answer_meets_its_own_job",
    ),
    "A5 409 for one destination of many: the others go, that one waits": (
        f"{HERE}::test_a_busy_destination_holds_back_only_its_file",
    ),
    "A6 one bad URL in many: found, the others go": (
        f"{PIPELINE}::test_one_bad_name_in_many_is_taken_out",
        "catalogue/test_jobs_and_sensing.py::test_a_split_job_keeps_every_file_once",
    ),
    "A7 a banned storage: its files are parked": (f"{PIPELINE}::test_a_banned_storage_parks_its_files",),
    "A8 419: delegate again": ("contract/test_sandbox_fts.py::test_delegation_from_request_to_submission",),
    "A9 503, HTML, resets: nothing changes, no attempt is used": (
        f"{PIPELINE}::test_an_fts_that_is_down_costs_no_attempt",
        f"{FAULTS}::test_the_network_is_bad",
    ),
    "A10 one job of several is missing: only that one, and the archive first": (
        f"{SENSING}::test_a10_one_missing_job_of_several_does_not_disturb_the_others",
        f"{SENSING}::test_a10_lost_only_when_missing_twice_ten_seconds_apart",
    ),
    "A11 a job in the archive gives its outcome from there": (
        f"{SENSING}::test_a11_a_job_in_the_archive_gives_its_outcome_from_there",
    ),
    "A12 lost after some files finished: those stay finished": (
        f"{SENSING}::test_a12_a_lost_job_takes_back_only_what_had_not_finished",
    ),
    "A13 FINISHEDDIRTY: file by file": (f"{SENSING}::test_a13_finished_dirty_is_judged_file_by_file",),
    "A14 files of a running job count at once": (
        f"{PIPELINE}::test_files_of_a_running_job_are_done_at_once",
    ),
    "A15 a final job with a running file: wait": (
        f"{SENSING}::test_a15_a_file_left_active_by_a_final_job_is_waited_for_an_hour",
    ),
    "A16 CANCELED, NOT_USED": (f"{SENSING}::test_a16_a35_what_two_states_mean",),
    "A17 a late answer of an older attempt is ignored": (
        f"{SENSING}::test_a17_a_late_answer_of_an_older_attempt_changes_nothing",
        "catalogue/test_transitions.py::test_a_late_answer_of_another_job_changes_nothing",
    ),
    "A21 the destination exists": ("core/test_failures.py::test_texts_of_fts",),
    "A22 checksum mismatch, by side": ("core/test_failures.py::test_texts_of_fts",),
    "A23 too long in FTS's queue: again, with its own code": ("core/test_failures.py::test_texts_of_fts",),
    "A24 many at once on the same rows: each file in one job": (
        "catalogue/test_claims.py::test_cycles_at_the_same_moment_never_take_the_same_file",
        "steps/test_reconcile.py::test_two_at_once_mend_everything_once",
        f"{FAULTS}::test_a_process_is_killed_while_files_move",
    ),
    "A25 poison at the head of the queue: the others flow": (
        f"{HERE}::test_poison_at_the_head_of_the_queue_stops_nobody",
    ),
    "A26 a blocked destination with a long queue slows no other link": (
        "catalogue/test_claims.py::test_taking_costs_the_same_however_long_the_queue",
        f"{PIPELINE}::test_a_paused_link_is_held_and_says_why",
    ),
    "A27 first come, first served inside a link; priority counts": (
        "catalogue/test_claims.py::test_a_users_own_files_go_by_priority_then_age",
        "catalogue/test_claims.py::test_priority_gives_a_larger_share_and_starves_nobody",
    ),
    "A30 the same request twice: one row": (
        "catalogue/test_intake.py::test_the_same_request_again_changes_nothing",
    ),
    "A32 nothing leaks": (
        "steps/test_reconcile.py::test_a_leak_is_counted_until_it_is_mended",
        "catalogue/test_audit.py::test_what_must_not_be_is_found",
    ),
    "A34 a worker in another time zone behaves the same": (
        f"{HERE}::test_a_worker_in_another_time_zone_writes_the_same_times",
        f"{FAULTS}::test_a_process_is_killed_while_files_move",
    ),
    "A35 empty or short answers, unknown states: still running": (
        f"{SENSING}::test_a35_an_answer_without_files_is_waited_out",
        f"{SENSING}::test_a35_an_answer_with_fewer_files_settles_those",
        f"{SENSING}::test_a16_a35_what_two_states_mean",
    ),
}

ELSEWHERE: dict[str, str] = {
    "A18": "messages of FTS are not listened to",
    "A19": "messages of FTS are not listened to",
    "A20": "messages of FTS are not listened to: asking is the only source of truth",
    "A28": "the states are there (test_transitions); nothing asks FTS to cancel for a user yet",
    "A29": "a file is known by its source LFN; a later job attempt that reuses it is answered `exists`",
    "A31": "nothing is published yet; the end of a transfer does not hang on it",
    "A33": "nothing deletes sources yet",
}
"""Why a case has no test."""


@cache
def _tests_in(path: Path) -> frozenset[str]:
    tree = ast.parse(path.read_text())
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


@pytest.mark.parametrize("case", CASES)
def test_the_tests_of_a_case_exist(case: str) -> None:
    for test in CASES[case]:
        path, _, name = test.partition("::")
        assert name in _tests_in(TESTS / path), test


def test_every_case_has_tests_or_a_reason() -> None:
    covered = [case.split()[0] for case in CASES]
    assert sorted([*covered, *ELSEWHERE]) == sorted(f"A{number}" for number in range(1, 36))


@pytest.fixture
def strict_house(conn: Connection, step: int, tls_folder: Path, tmp_path: Path) -> Iterator[House]:
    """A house whose FTS takes one unfinished file for a destination, as production does."""
    tls = certificates(tls_folder)
    options = Options(state=tmp_path, with_bytes=False, rules=Rules(check_duplicates=True))
    with bench(tls, tls_folder, options) as fts:
        session = caller(tls, client_certificate(tls_folder, "alice", ALICE))
        with FTS3Client(fts.url, session, patience=IMPATIENT) as client:
            yield House(conn, client, fts, step)


def test_a_busy_destination_holds_back_only_its_file(strict_house: House, add: Add) -> None:
    """A5: somebody else's transfer to one of 20 destinations is under way."""
    house = strict_house
    records = [record(number) for number in range(20)]
    busy = {
        "sources": [SITES["T1_DE_KIT"] + "/store/other.root"],
        "destinations": [SITES["T2_CH_CERN"] + records[7]["destination_lfn"]],
    }
    other = house.fts.submit({"files": [busy]})
    add(*records)
    house.run_cycle()
    assert states(house.conn) == {"SUBMITTED": 19, "NEW": 1}
    waiting = house.conn.execute("SELECT size_bytes, attempt FROM transfer WHERE state = 'NEW'").fetchall()
    assert waiting == [(1007, 0)]
    house.fts.finish(other)
    house.make_due()
    house.run_cycle("later")
    assert states(house.conn) == {"SUBMITTED": 20}
    assert_audited(house.conn)


def test_poison_at_the_head_of_the_queue_stops_nobody(house: House, add: Add) -> None:
    """A25: 1,001 files that can never go came first, and a cycle takes only 100."""
    add(*(record(number, source="T2_US_MIT") for number in range(1001)))
    add(*(record(number, source="T2_ES_IFCA", username="bob") for number in range(3)))
    house.conn.execute("UPDATE transfer SET due_at = due_at - interval '1 h' WHERE source = 'T2_US_MIT'")
    house.conn.execute("DELETE FROM site WHERE name = 'T2_US_MIT'")
    house.collect(limit=100)
    _, shards = house.group()
    for shard in range(len(shards)):
        house.submit(shard=shard)
    rows = house.conn.execute("SELECT source FROM transfer WHERE state = 'SUBMITTED'").fetchall()
    assert rows == [("T2_ES_IFCA",)] * 3


@pytest.fixture(params=["Asia/Kolkata", "America/St_Johns"])
def far_away(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let this process live in another time zone."""
    with monkeypatch.context() as patched:
        patched.setenv("TZ", request.param)
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("far_away")
def test_a_worker_in_another_time_zone_writes_the_same_times(house: House, add: Add) -> None:
    """A34: what one worker writes, another one compares with its own now."""
    house.set_faults(files=[{"path": "out_1.root", "reason": "SOURCE [112] Result curl error (56): Failure"}])
    add(record(1), record(2))
    house.run_cycle()
    house.finish_at_fts()
    house.sense()
    house.update()
    assert states(house.conn) == {"DONE": 1, "RETRY": 1}
    now = datetime.now(UTC)
    row = house.conn.execute(
        "SELECT submitted_at, next_poll_at, (SELECT due_at FROM transfer WHERE state = 'RETRY'),"
        " (SELECT max(at) FROM transfer_event) FROM fts_job"
    ).fetchone()
    assert row is not None
    submitted_at, next_poll_at, due_at, event_at = row
    minute = timedelta(minutes=1)
    assert now - minute < submitted_at <= now
    assert now - minute < next_poll_at < now + minute
    assert now < due_at < now + 2 * minute
    assert now - minute < event_at <= now
