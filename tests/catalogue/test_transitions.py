"""A move happens if it is legal and speaks for the job that owns the file, and leaves its event; else nothing."""

from __future__ import annotations

from itertools import product
from uuid import uuid4

import pytest
from psycopg import Connection

from asyncstageout.catalogue.transitions import Move, apply_moves
from asyncstageout.core.failures import classify
from asyncstageout.core.states import FINAL_STATES, TRANSITIONS, TransferState
from fixtures.catalogue import Add, Plan, assert_audited, open_files, record, states

S = TransferState
QUOTA = classify("TRANSFER [5] HTTP 507 : Insufficient Storage")


def put_in_state(conn: Connection, transfer_id: int, state: TransferState) -> None:
    conn.execute(
        "UPDATE transfer SET state = %s, ended_at = CASE WHEN %s THEN now() END WHERE id = %s",
        (state.value, state in FINAL_STATES, transfer_id),
    )


def test_the_table_decides_for_every_pair(conn: Connection, add: Add, submitted: Plan, step: int) -> None:
    pairs = list(product(TransferState, TransferState))
    add(*(record(number) for number in range(len(pairs))))
    (job,) = submitted(files_per_job=len(pairs))
    for transfer_id, (start, _) in zip(job.transfer_ids, pairs, strict=True):
        put_in_state(conn, transfer_id, start)
    moves = [
        Move(transfer_id, job.sid, end, QUOTA if end in (S.RETRY, S.FAILED) else None)
        for transfer_id, (_, end) in zip(job.transfer_ids, pairs, strict=True)
    ]
    apply_moves(conn, moves, step)
    after = dict(conn.execute("SELECT id, state::text FROM transfer").fetchall())
    for transfer_id, (start, end) in zip(job.transfer_ids, pairs, strict=True):
        # What fails while it is being killed is killed.
        wanted = S.KILLED if start is S.KILL and end in (S.RETRY, S.FAILED) else end
        expected = wanted if wanted in TRANSITIONS[start] else start
        assert after[transfer_id] == expected, (start, end)


def test_a_late_answer_of_another_job_changes_nothing(
    conn: Connection, add: Add, submitted: Plan, step: int
) -> None:
    """A17."""
    add(record(1))
    (job,) = submitted()
    (transfer_id,) = job.transfer_ids
    assert apply_moves(conn, [Move(transfer_id, uuid4(), S.DONE)], step) == {}
    assert apply_moves(conn, [Move(transfer_id, None, S.DONE)], step) == {}
    assert states(conn) == {"SUBMITTED": 1}
    assert apply_moves(conn, [Move(transfer_id, job.sid, S.DONE)], step) == {"DONE": 1}
    assert apply_moves(conn, [Move(transfer_id, job.sid, S.DONE)], step) == {}
    assert_audited(conn)


def test_the_last_file_ends_its_job(conn: Connection, add: Add, submitted: Plan, step: int) -> None:
    add(*(record(number) for number in range(3)))
    (job,) = submitted()
    first, second, third = job.transfer_ids
    apply_moves(conn, [Move(first, job.sid, S.DONE)], step)
    assert open_files(conn) == {job.sid: 2}
    apply_moves(conn, [Move(second, job.sid, S.RETRY, QUOTA), Move(third, job.sid, S.FAILED, QUOTA)], step)
    assert open_files(conn) == {job.sid: 0}
    row = conn.execute("SELECT state::text, ended_at IS NOT NULL FROM fts_job").fetchone()
    assert row == ("ENDED", True)
    assert_audited(conn)


def test_the_failure_is_kept_and_goes_with_success(
    conn: Connection, add: Add, submitted: Plan, step: int
) -> None:
    add(record(1))
    (job,) = submitted()
    (transfer_id,) = job.transfer_ids
    apply_moves(conn, [Move(transfer_id, job.sid, S.RETRY, QUOTA)], step)
    kept = conn.execute(
        "SELECT failure_category, failure_code, failure_scope, failure_errno, failure_reason FROM transfer"
    ).fetchone()
    assert kept == ("quota", 60323, "TRANSFER", 5, QUOTA.reason)
    (again,) = submitted()
    apply_moves(conn, [Move(transfer_id, again.sid, S.DONE)], step)
    row = conn.execute("SELECT failure_category, failure_reason, attempt FROM transfer").fetchone()
    assert row == (None, None, 2)
    reasons = conn.execute("SELECT reason FROM transfer_event WHERE to_state = 'RETRY'").fetchall()
    assert reasons == [(QUOTA.reason,)]
    assert_audited(conn)


def test_nothing_to_move() -> None:
    assert apply_moves(None, [], 1) == {}  # type: ignore[arg-type]


@pytest.mark.parametrize("state", sorted(FINAL_STATES))
def test_final_files_have_their_end(
    conn: Connection, add: Add, submitted: Plan, step: int, state: TransferState
) -> None:
    add(record(1))
    (job,) = submitted()
    if state is S.KILLED:
        put_in_state(conn, job.transfer_ids[0], S.KILL)
    apply_moves(conn, [Move(job.transfer_ids[0], job.sid, state)], step)
    assert conn.execute("SELECT state::text, ended_at IS NOT NULL FROM transfer").fetchone() == (state, True)
