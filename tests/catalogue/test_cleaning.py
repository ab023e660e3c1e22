"""The queue of temporary copies follows the files, and a claim keeps everybody else off."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from psycopg import Connection

from asyncstageout.catalogue.audit import audit
from asyncstageout.catalogue.claims import cleaned_failed, redrive_failed
from asyncstageout.catalogue.cleaning import (
    SiteDue,
    Word,
    claim,
    due_copies,
    due_sites,
    leave_sites,
    look_again,
    pause_site,
    postpone,
    settle,
    site_answers,
    take_site,
)
from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.crab import (
    PublicationWord,
    Said,
    insert_file,
    send_again,
    tell_publication,
    tell_transfers,
)
from asyncstageout.catalogue.crab import Word as CrabWord
from asyncstageout.catalogue.cycles import CycleParams
from asyncstageout.catalogue.history import move_finished
from asyncstageout.catalogue.kills import kill
from asyncstageout.catalogue.migrate import downgrade, upgrade
from asyncstageout.catalogue.partitions import ensure_partitions
from asyncstageout.catalogue.retries_by_people import retry_files, would_retry
from asyncstageout.core.cleaning import Copy, Outcome
from asyncstageout.core.crab import OWN_WORKER, Reinjection
from asyncstageout.core.requests import TransferRequest
from asyncstageout.core.selections import Selection
from asyncstageout.core.states import PublicationState, TransferState
from fixtures.catalogue import Add, Plan, file_ids, record
from fixtures.cleaning import end, outcomes, publication_becomes, queue

S, P = TransferState, PublicationState
BARI, KIT = "T2_IT_Bari", "T1_DE_KIT"
ALICES = Selection(username="alice")


@pytest.fixture
def ended(conn: Connection, add: Add, submitted: Plan, step: int) -> Callable[..., list[int]]:
    """Have files travel to their end; return their numbers."""

    def travel(*requests: dict[str, Any], state: TransferState = S.DONE) -> list[int]:
        before = set(file_ids(conn))
        add(*requests)
        submitted()
        ids = sorted(set(file_ids(conn)) - before)
        end(conn, step, state, ids=ids)
        return ids

    return travel


def claim_all(conn: Connection, step: int, site: str = BARI) -> list[Copy]:
    return claim(conn, due_copies(conn, site, at_most=100), step_run=step, lease_s=60)


def end_all(
    conn: Connection, copies: list[Copy], outcome: Outcome, step: int, reason: str | None = None
) -> None:
    due_at = datetime.now(UTC) if outcome in (Outcome.WAITING, Outcome.FAILED) else None
    settle(conn, [Word(copy, outcome, copy.tries + 1, due_at, "se.test", reason) for copy in copies], step)


def assert_sound(conn: Connection) -> None:
    assert {one.name: one.samples for one in audit(conn) if one.violations} == {}


# --- the queue follows the files ---


@pytest.mark.parametrize("state", [S.DONE, S.FAILED])
def test_a_copy_comes_in_when_its_file_ends(conn: Connection, ended: Any, state: TransferState) -> None:
    (number,) = ended(record(1), state=state)
    assert queue(conn) == [(number, BARI, "WAITING", state.value, True)]
    (copy,) = due_copies(conn, BARI, at_most=10)
    assert (copy.source_lfn, copy.destination, copy.username, copy.identity, copy.size_bytes) == (
        record(1)["source_lfn"], "T2_CH_CERN", "alice", "alice", 1001,
    )  # fmt: skip
    submitted_at = conn.execute("SELECT submitted_at FROM fts_job").fetchone()
    assert (copy.known_at,) == submitted_at, "what was written later is not what FTS was told to copy"
    assert not copy.awaits_publication
    assert_sound(conn)


def test_one_that_never_travelled_is_known_when_it_ends(conn: Connection, add: Add, step: int) -> None:
    add(record(1))
    kill(conn, ALICES, None, comment="", step_run=step)
    (copy,) = due_copies(conn, BARI, at_most=10)
    assert copy.ended_as is S.KILLED
    assert copy.known_at == copy.ended_at
    assert_sound(conn)


def test_nothing_comes_in_for_what_is_on_its_way(
    conn: Connection, add: Add, submitted: Plan, step: int
) -> None:
    add(record(1), record(2))
    submitted()
    end(conn, step, S.RETRY, ids=file_ids(conn)[:1])
    assert queue(conn) == []
    assert_sound(conn)


@pytest.mark.parametrize(
    "request_",
    [
        record(
            1, source_lfn="/store/user/alice/mc/out_1.root", destination_lfn="/store/user/alice/x/out_1.root"
        ),
        record(
            1, source_lfn="/store/group/higgs/out_1.root", destination_lfn="/store/group/higgs/b/out_1.root"
        ),
    ],
)
def test_only_temporary_sources_are_cleaned(conn: Connection, ended: Any, request_: dict[str, Any]) -> None:
    ended(request_)
    assert queue(conn) == []
    assert_sound(conn)


def test_a_retry_takes_a_copy_out_and_its_next_end_brings_it_back(
    conn: Connection, ended: Any, submitted: Plan, step: int
) -> None:
    (number,) = ended(record(1), state=S.FAILED)
    retry_files(conn, ALICES, None, comment="", step_run=step)
    assert queue(conn) == []
    assert_sound(conn)
    submitted()
    end(conn, step, S.DONE)
    assert queue(conn) == [(number, BARI, "WAITING", "DONE", True)]
    assert_sound(conn)


def test_events_that_only_move_to_another_partition_are_no_news(
    conn: Connection, ended: Any, step: int
) -> None:
    ended(record(1))
    copies = claim_all(conn, step)
    end_all(conn, copies, Outcome.DELETED, step)
    assert ensure_partitions(conn, datetime.now(UTC).date())
    assert queue(conn) == []


# --- whose file it is to clean ---


def crab_file(number: int = 1, **changes: Any) -> TransferRequest:
    return TransferRequest.model_validate(record(number, **changes))


def test_who_moves_a_file_cleans_up_behind_it(conn: Connection, step: int) -> None:
    request = crab_file()
    insert_file(conn, request, Said(1), worker="schedd", step_run=step)
    tell_transfers(conn, "schedd", [CrabWord(request.request_id, S.DONE)], None, step)
    assert queue(conn) == []
    assert_sound(conn)


def test_a_file_of_ours_that_failed_with_a_worker_outside_is_ours_again(
    conn: Connection, submitted: Plan, step: int
) -> None:
    request = crab_file()
    insert_file(conn, request, Said(1), worker="schedd", step_run=step)
    tell_transfers(conn, "schedd", [CrabWord(request.request_id, S.FAILED, "no room")], None, step)
    retry_files(conn, ALICES, None, comment="", step_run=step)
    submitted()
    end(conn, step, S.DONE)
    assert [row[2:4] for row in queue(conn)] == [("WAITING", "DONE")]


def test_what_was_written_straight_to_its_destination_has_no_copy(conn: Connection, step: int) -> None:
    insert_file(conn, crab_file(), Said(1, S.DONE), worker=None, step_run=step)
    assert queue(conn) == []
    assert_sound(conn)


# --- a job that runs anew at another site ---


def again(source: str, retry: int = 1, number: int = 1) -> Reinjection:
    fields = record(number, source=source) | {"size_bytes": 77, "adler32": "5", "job_retry_count": retry}
    return Reinjection.model_validate(fields)


def test_the_copy_at_the_first_site_rests_until_the_file_has_ended(
    conn: Connection, add: Add, submitted: Plan, step: int
) -> None:
    request = crab_file()
    insert_file(conn, request, Said(1), worker=OWN_WORKER, step_run=step)
    submitted()
    end(conn, step, S.FAILED)
    (number,) = file_ids(conn)
    assert send_again(conn, again(KIT), Said(2), step_run=step)
    assert queue(conn) == [(number, BARI, "WAITING", None, None)]
    assert_sound(conn)
    conn.execute("UPDATE transfer SET due_at = now()")
    submitted()
    end(conn, step, S.DONE)
    assert queue(conn) == [(number, site, "WAITING", "DONE", True) for site in (KIT, BARI)]
    assert_sound(conn)
    (at_bari,) = due_copies(conn, BARI, at_most=10)
    (at_kit,) = due_copies(conn, KIT, at_most=10)
    assert (at_bari.size_bytes, at_kit.size_bytes) == (1001, 77)


def test_a_file_that_waits_may_change_its_site_too(conn: Connection, submitted: Plan, step: int) -> None:
    insert_file(conn, crab_file(), Said(1), worker=OWN_WORKER, step_run=step)
    submitted()
    end(conn, step, S.RETRY)
    send_again(conn, again(KIT), Said(2), step_run=step)
    assert [row[1:] for row in queue(conn)] == [(BARI, "WAITING", None, None)]
    kill(conn, ALICES, None, comment="", step_run=step)
    assert [row[1:] for row in queue(conn)] == [
        (KIT, "WAITING", "KILLED", True),
        (BARI, "WAITING", "KILLED", True),
    ]
    assert_sound(conn)


def test_a_deletion_under_way_elsewhere_rests_when_the_file_goes_again(
    conn: Connection, submitted: Plan, step: int
) -> None:
    insert_file(conn, crab_file(), Said(1), worker=OWN_WORKER, step_run=step)
    submitted()
    end(conn, step, S.FAILED)
    copies = claim_all(conn, step)
    send_again(conn, again(KIT), Said(2), step_run=step)
    assert [row[1:] for row in queue(conn)] == [(BARI, "WAITING", None, None)]
    end_all(conn, copies, Outcome.DELETED, step)
    assert [row[1:] for row in queue(conn)] == [(BARI, "WAITING", None, None)]
    assert outcomes(conn) == {"DELETED": 1}, "what was done is on record"
    assert_sound(conn)


# --- publication ---


def test_a_copy_knows_whether_its_file_is_being_published(
    conn: Connection, submitted: Plan, step: int
) -> None:
    request = crab_file()
    insert_file(conn, request, Said(1, publish=True), worker=OWN_WORKER, step_run=step)
    submitted()
    end(conn, step, S.DONE)
    (copy,) = due_copies(conn, BARI, at_most=10)
    assert copy.awaits_publication
    postpone(conn, [(copy, datetime.now(UTC) + timedelta(hours=6))])
    for state, waits in ((P.ACQUIRED, True), (P.DONE, False)):
        publication_becomes(conn, state, step)
        assert queue(conn)[0][4] is (not waits)
    (copy,) = due_copies(conn, BARI, at_most=10)
    assert not copy.awaits_publication


def test_a_publication_that_ends_wakes_no_copy_that_rests(
    conn: Connection, submitted: Plan, step: int
) -> None:
    request = crab_file()
    insert_file(conn, request, Said(1, publish=True), worker=OWN_WORKER, step_run=step)
    submitted()
    end(conn, step, S.DONE)
    send_again(conn, again(KIT), Said(2, publish=True), step_run=step)
    for state in (P.ACQUIRED, P.FAILED):
        publication_becomes(conn, state, step)
    assert [row[1:] for row in queue(conn)] == [(BARI, "WAITING", None, None)]
    assert conn.execute("SELECT awaits_publication FROM cleaning").fetchone() == (False,)


def test_a_publication_that_is_wanted_late_is_waited_for(
    conn: Connection, submitted: Plan, step: int
) -> None:
    """PostJob asks for it when the file has arrived and its metadata are there."""
    request = crab_file()
    insert_file(conn, request, Said(1), worker=OWN_WORKER, step_run=step)
    submitted()
    end(conn, step, S.DONE)
    assert not due_copies(conn, BARI, at_most=10)[0].awaits_publication
    tell_publication(conn, OWN_WORKER, [PublicationWord(request.request_id, P.NEW)], None, step)
    assert due_copies(conn, BARI, at_most=10)[0].awaits_publication


# --- claims ---


def test_a_claim_is_one_steps_until_it_ends(conn: Connection, ended: Any, step: int) -> None:
    ended(*(record(number) for number in range(5)))
    due = due_copies(conn, BARI, at_most=100)
    assert claim(conn, due[:3], step_run=step, lease_s=60) == due[:3]
    assert claim(conn, due, step_run=step + 1, lease_s=60) == due[3:]
    assert due_copies(conn, BARI, at_most=100) == []
    conn.execute("UPDATE cleaning SET due_at = now() WHERE step_run = %s", (step,))  # its step died
    assert claim(conn, due, step_run=step + 1, lease_s=60) == due[:3]
    end_all(conn, due[:3], Outcome.FAILED, step, "of the dead")
    assert {row[2] for row in queue(conn)} == {"DELETING"}
    assert_sound(conn)


def test_two_cleaners_at_once_share_what_is_due(
    conn: Connection, catalogue_url: str, ended: Any, step: int
) -> None:
    ended(*(record(number) for number in range(60)))
    due = due_copies(conn, BARI, at_most=100)

    def clean(number: int) -> list[Copy]:
        with connect(catalogue_url) as own:
            mine = claim(own, due[number % 7 :] + due[: number % 7], step_run=step + number, lease_s=60)
            settle(own, [Word(copy, Outcome.DELETED, 0, storage="se.test") for copy in mine], step + number)
            return mine

    with ThreadPoolExecutor(4) as pool:
        shares = list(pool.map(clean, range(4)))
    assert sorted(copy.transfer_id for share in shares for copy in share) == sorted(
        one.transfer_id for one in due
    )
    assert queue(conn) == []
    assert outcomes(conn) == {"DELETED": 60}


def test_what_changed_since_it_was_read_is_not_claimed(
    conn: Connection, ended: Any, submitted: Plan, step: int
) -> None:
    ended(record(1), state=S.FAILED)
    before = due_copies(conn, BARI, at_most=100)
    retry_files(conn, ALICES, None, comment="", step_run=step)
    assert claim(conn, before, step_run=step, lease_s=60) == []
    submitted()
    end(conn, step, S.FAILED)
    assert claim(conn, before, step_run=step, lease_s=60) == [], "it is another end, with another time"


@pytest.mark.parametrize(
    ("outcome", "state"),
    [(Outcome.WAITING, "WAITING"), (Outcome.FAILED, "FAILED")],
)
def test_a_failure_keeps_the_copy_with_its_reason(
    conn: Connection, *, ended: Any, step: int, outcome: Outcome, state: str
) -> None:
    ended(record(1), state=S.FAILED)
    end_all(conn, claim_all(conn, step), outcome, step, "no way")
    row = conn.execute("SELECT state, tries, reason, failed_at IS NOT NULL FROM cleaning").fetchone()
    assert row == (state, 1, "no way", state == "FAILED")
    assert conn.execute("SELECT cleaned_at FROM transfer").fetchone() == (None,)
    end_all(conn, claim_all(conn, step), outcome, step, "still no way")
    assert outcomes(conn) == ({"FAILED": 1} if state == "FAILED" else {}), "said once"
    assert would_retry(conn, ALICES, None).counts == {"sent_again": 1}
    assert_sound(conn)


def test_an_event_says_what_was_done_where_by_whom(conn: Connection, ended: Any, step: int) -> None:
    ended(record(1))
    end_all(conn, claim_all(conn, step), Outcome.LEFT, step, "it was written later")
    row = conn.execute("SELECT from_state, to_state, subject, step_run, reason FROM file_event").fetchone()
    assert row == ("DELETING", "LEFT", "se.test", step, "it was written later")


def test_copies_of_the_history_are_deleted_as_well(conn: Connection, ended: Any, step: int) -> None:
    ended(record(1), record(2))
    conn.execute("UPDATE transfer SET ended_at = ended_at - interval '2 days'")
    conn.execute("UPDATE cleaning SET ended_at = ended_at - interval '2 days'")
    assert move_finished(conn) == 2
    copies = claim_all(conn, step)
    assert len(copies) == 2
    end_all(conn, copies[:1], Outcome.DELETED, step)
    end_all(conn, copies[1:], Outcome.WAITING, step, "busy")
    rows = conn.execute("SELECT cleaned_at IS NULL FROM transfer_history ORDER BY id").fetchall()
    assert rows == [(False,), (True,)]
    assert_sound(conn)


def test_a_file_that_is_forgotten_is_cleaned_too(conn: Connection, ended: Any, step: int) -> None:
    ended(record(1))
    conn.execute("DELETE FROM transfer")
    end_all(conn, claim_all(conn, step), Outcome.DELETED, step)
    assert queue(conn) == []


def test_the_destination_of_another_file_is_known_as_such(conn: Connection, ended: Any) -> None:
    """No door takes such a request; if one ever did, its file must not be deleted."""
    (number, other) = ended(record(1), record(2))
    lfn = record(1)["source_lfn"]
    conn.execute(
        "UPDATE transfer SET destination = %s, destination_lfn = %s WHERE id = %s", (BARI, lfn, other)
    )
    found = {copy.transfer_id: copy.is_destination for copy in due_copies(conn, BARI, at_most=10)}
    assert found == {number: True, other: False}
    conn.execute("UPDATE transfer SET ended_at = now() - interval '2 days'")
    move_finished(conn)
    assert {copy.is_destination for copy in due_copies(conn, BARI, at_most=10)} == {True, False}


# --- retries beside deletions ---


def test_a_file_whose_copy_is_gone_is_not_sent_again(conn: Connection, ended: Any, step: int) -> None:
    ended(record(1), state=S.FAILED)
    window = CycleParams(
        created_from=datetime(2020, 1, 1, tzinfo=UTC), created_to=datetime(2100, 1, 1, tzinfo=UTC)
    )
    copies = claim_all(conn, step)
    asked = retry_files(conn, ALICES, None, comment="", step_run=step)
    assert asked.reasons == {"its temporary copy is being deleted": 1}
    assert (redrive_failed(conn, window, step), cleaned_failed(conn, window)) == (0, 1)
    end_all(conn, copies, Outcome.DELETED, step)
    asked = retry_files(conn, ALICES, None, comment="", step_run=step)
    today = datetime.now(UTC).date()
    assert asked.reasons == {f"its temporary copy was deleted on {today}; its job has to write it again": 1}
    assert asked == would_retry(conn, ALICES, None)
    assert (redrive_failed(conn, window, step), cleaned_failed(conn, window)) == (0, 1)
    assert_sound(conn)


def test_a_later_attempt_of_its_job_may_fail_and_be_sent_again(
    conn: Connection, submitted: Plan, step: int
) -> None:
    insert_file(conn, crab_file(), Said(1), worker=OWN_WORKER, step_run=step)
    submitted()
    end(conn, step, S.FAILED)
    end_all(conn, claim_all(conn, step), Outcome.DELETED, step)
    assert send_again(conn, again(BARI), Said(2), step_run=step)
    conn.execute("UPDATE transfer SET due_at = now()")
    submitted()
    end(conn, step, S.FAILED)
    assert would_retry(conn, ALICES, None).counts == {"sent_again": 1}
    assert_sound(conn)


def test_of_a_retry_and_a_claim_at_one_moment_one_wins(
    conn: Connection, catalogue_url: str, ended: Any, step: int
) -> None:
    """The retry begins while the claim has not committed: it waits, and then sees the claim."""
    ended(record(1), state=S.FAILED)
    with ThreadPoolExecutor(1) as pool, connect(catalogue_url) as other, connect(catalogue_url) as observer:
        with conn.transaction():
            claim_all(conn, step)
            retrying = pool.submit(retry_files, other, ALICES, None, comment="", step_run=step)
            waits = "SELECT cardinality(pg_blocking_pids(%s)) > 0"
            while not retrying.done() and observer.execute(waits, (other.info.backend_pid,)).fetchone() != (
                True,
            ):
                pass
        assert retrying.result(timeout=20).counts == {"refused": 1}
    with connect(catalogue_url) as other:
        end_all(conn, claim_expired(conn, step), Outcome.WAITING, step)
        due = due_copies(conn, BARI, at_most=10)
        with conn.transaction():
            retry_files(conn, ALICES, None, comment="", step_run=step)
            assert claim(other, due, step_run=step, lease_s=60) == [], "it does not wait for the retry"
        assert claim(other, due, step_run=step, lease_s=60) == []
    assert queue(conn) == []


def claim_expired(conn: Connection, step: int) -> list[Copy]:
    conn.execute("UPDATE cleaning SET due_at = now() WHERE state = 'DELETING'")
    return claim_all(conn, step)


# --- sites ---


def test_due_sites_are_counted_and_ordered(conn: Connection, ended: Any) -> None:
    ended(*(record(number, source=KIT) for number in range(2)), *(record(10 + number) for number in range(3)))
    ended(record(30, username="bob"))
    assert due_sites(conn) == [SiteDue(BARI, 4), SiteDue(KIT, 2)]
    assert due_sites(conn, site=KIT) == [SiteDue(KIT, 2)]
    assert due_sites(conn, username="bob") == [SiteDue(BARI, 1)]
    conn.execute("UPDATE cleaning SET due_at = now() + interval '1 h' WHERE source = %s", (KIT,))
    assert due_sites(conn) == [SiteDue(BARI, 4)]
    assert look_again(conn, site=KIT, username=None) == 2
    assert due_sites(conn, site=KIT) == [SiteDue(KIT, 2)]


def test_one_step_works_at_a_site(conn: Connection, step: int) -> None:
    assert take_site(conn, BARI, step_run=1, lease_s=60)
    assert take_site(conn, BARI, step_run=1, lease_s=60)
    assert not take_site(conn, BARI, step_run=2, lease_s=60)
    assert take_site(conn, KIT, step_run=2, lease_s=60)
    leave_sites(conn, 1)
    assert take_site(conn, BARI, step_run=2, lease_s=-1)
    assert take_site(conn, BARI, step_run=3, lease_s=60), "the lease of the other one is over"


def test_a_site_that_does_not_answer_is_left_alone(conn: Connection, ended: Any) -> None:
    ended(record(1))
    take_site(conn, BARI, step_run=1, lease_s=60)
    later = datetime.now(UTC) + timedelta(minutes=15)
    pause_site(conn, BARI, until=later, reason="silent")
    assert due_sites(conn) == []
    assert due_sites(conn, paused_too=True) == [SiteDue(BARI, 1)]
    site_answers(conn, BARI)
    assert due_sites(conn) == [SiteDue(BARI, 1)]
    assert conn.execute("SELECT failing_since, pauses FROM cleaning_site").fetchone() == (None, 0)


# --- coming from an older catalogue ---


def test_an_older_catalogue_queues_what_has_ended(
    conn: Connection, catalogue_url: str, ended: Any, add: Add, step: int
) -> None:
    ended(record(1), record(2))
    ended(record(3), state=S.FAILED)
    add(record(4))
    conn.execute("UPDATE transfer SET ended_at = now() - interval '2 days' WHERE state = 'DONE'")
    move_finished(conn)
    before = [row[:4] for row in queue(conn)]
    downgrade(catalogue_url, "0006")
    upgrade(catalogue_url)
    assert [row[:4] for row in queue(conn)] == before
    assert len(before) == 3
    assert_sound(conn)
