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

from fixtures.catalogue import Add, assert_audited, record, states
from fixtures.cycles import House

TESTS = Path(__file__).parents[1]
PIPELINE = "steps/test_pipeline.py"
SENSING = "steps/test_sensing.py"
OVERWRITING = "steps/test_overwriting.py"
SUBMISSION = "steps/test_submission.py"
PUBLICATION = "steps/test_publication.py"
MESSAGES = "clients/test_messages.py"
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
        f"{SUBMISSION}::test_a_busy_destination_is_taken_out_by_its_name",
    ),
    "A6 one bad URL in many: found, the others go": (
        f"{PIPELINE}::test_one_bad_name_in_many_is_taken_out",
        f"{SUBMISSION}::test_one_bad_file_in_200_costs_log_n_posts",
        f"{SUBMISSION}::test_several_bad_files_are_all_found",
    ),
    "A7 a banned storage: its files are parked": (
        f"{PIPELINE}::test_a_banned_storage_parks_its_files",
        f"{SUBMISSION}::test_a_banned_storage_is_asked_about_once",
    ),
    "A8 419: delegate again, once": (
        f"{SUBMISSION}::test_a_proxy_is_delegated_once_when_fts_wants_one",
        f"{SUBMISSION}::test_a_proxy_that_ends_within_the_hour_is_renewed",
    ),
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
    "A18 messages of others, too early, twice, out of order: no harm": (
        f"{MESSAGES}::test_a18_messages_of_others_change_nothing",
        f"{MESSAGES}::test_a18_a_message_before_the_commit_of_the_submission",
        f"{MESSAGES}::test_a18_a_message_of_an_older_attempt",
    ),
    "A19 a message of a copy that is being archived: not done": (
        f"{MESSAGES}::test_a19_a_copy_that_is_being_archived_is_not_done",
    ),
    "A20 a message is lost: asking finds it": (
        f"{MESSAGES}::test_a20_what_was_said_while_the_broker_was_down_is_found_by_polling",
    ),
    "A21 the destination exists: success if it is the same file, else once over our own left-over": (
        f"{OVERWRITING}::test_the_very_file_is_there_already",
        f"{OVERWRITING}::test_our_own_left_over_is_overwritten_once",
        f"{OVERWRITING}::test_a_strangers_file_is_not_touched",
    ),
    "A22 checksum mismatch, by side": (
        f"{OVERWRITING}::test_a_wrong_source_is_not_tried_again",
        f"{OVERWRITING}::test_what_was_spoiled_on_the_way_goes_again_with_overwrite",
    ),
    "A23 too long in FTS's queue: again, with its own code": (
        f"{HERE}::test_too_long_in_the_queue_of_fts_goes_again_later",
    ),
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
    "A28 a kill reaches FTS; what had arrived is DONE, and says that it was too late": (
        "steps/test_cancel.py::test_a_whole_task_is_cancelled_job_by_job",
        "steps/test_cancel.py::test_others_in_the_job_go_on",
        "steps/test_cancel.py::test_what_has_finished_at_fts_is_done_and_the_record_says_too_late",
        "steps/test_cancel.py::test_who_dies_while_he_tells_is_followed_by_the_next_run",
    ),
    "A29 a later attempt of the job brings the same file with another checksum: it goes again, once": (
        "catalogue/test_reinjections.py::test_what_has_ended_or_waits_goes_with_its_new_content",
        "catalogue/test_reinjections.py::test_what_is_under_way_has_to_end_first",
        "steps/test_special_files.py::test_a_later_retry_replaces_what_the_earlier_one_wrote",
    ),
    "A30 the same request twice: one row": (
        "catalogue/test_intake.py::test_the_same_request_again_changes_nothing",
    ),
    "A31 publication fails: it is tried again without a transfer, and no file is published twice": (
        f"{PUBLICATION}::test_no_answer_publishes_nothing_twice",
        f"{PUBLICATION}::test_dbs_being_down_fails_nothing_and_is_asked_once",
        f"{PUBLICATION}::test_a_file_that_is_there_already_is_published",
        "chaos/test_publishing.py::test_a_publisher_is_killed_between_two_effects",
    ),
    "A32 nothing leaks": (
        "steps/test_reconcile.py::test_a_leak_is_counted_until_it_is_mended",
        "catalogue/test_audit.py::test_what_must_not_be_is_found",
    ),
    "A34 a worker in another time zone behaves the same": (
        f"{HERE}::test_a_worker_in_another_time_zone_writes_the_same_times",
        f"{FAULTS}::test_a_process_is_killed_while_files_move",
    ),
    "A33 a source deleted too early: only when its last attempt has ended, and never a newer copy": (
        "catalogue/test_cleaning.py::test_nothing_comes_in_for_what_is_on_its_way",
        "catalogue/test_cleaning_properties.py::test_no_interleaving_takes_a_source_from_a_file",
        "steps/test_clean.py::test_a_newer_copy_of_the_same_name_stays",
    ),
    "A35 empty or short answers, unknown states: still running": (
        f"{SENSING}::test_a35_an_answer_without_files_is_waited_out",
        f"{SENSING}::test_a35_an_answer_with_fewer_files_settles_those",
        f"{SENSING}::test_a16_a35_what_two_states_mean",
    ),
}

ELSEWHERE: dict[str, str] = {}
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


def test_too_long_in_the_queue_of_fts_goes_again_later(house: House, add: Add) -> None:
    """A23: FTS cancels the file; it is not left SUBMITTED."""
    reason = "Job has been canceled because it stayed in the queue for too long (max-time-in-queue timeout)"
    house.set_faults(files=[{"path": "out_1.root", "reason": reason}])
    add(record(1), record(2))
    house.run_cycle()
    house.finish_at_fts()
    house.sense()
    house.update()
    rows = house.conn.execute(
        "SELECT state::text, failure_category, failure_code, due_at > now() + interval '10 min' FROM transfer"
        " ORDER BY id"
    ).fetchall()
    assert rows == [("RETRY", "queue-timeout", 60325, True), ("DONE", None, None, False)]
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
