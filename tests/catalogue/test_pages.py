"""What pages ask beside: queues of users, what is around a file, what a name may mean."""

from __future__ import annotations

from uuid import uuid4

import pytest
from psycopg import Connection

from asyncstageout.catalogue import queues_of_users as module
from asyncstageout.catalogue.around_file import block_of, copies_of, crab_record_of, messages_of
from asyncstageout.catalogue.finding import has_tasks, job_called, own_file_in
from asyncstageout.catalogue.queues_of_users import UserQueue, queues_of_users
from asyncstageout.catalogue.transitions import Move, apply_moves
from asyncstageout.core.states import TransferState
from fixtures.catalogue import Add, Plan, file_ids, record


def test_what_waits_and_flies_of_each_user(conn: Connection, add: Add, submitted: Plan) -> None:
    add(record(1), record(2), record(3, username="bob"))
    submitted()
    add(record(4), record(5, username="carol"))
    conn.execute("UPDATE transfer SET due_at = now() + interval '1 h' WHERE username = 'carol'")
    found = queues_of_users(conn)
    assert (found.is_estimate, found.is_capped) == (False, False)
    alice = found.by_user["alice"]
    assert (alice.waiting, alice.in_flight, alice.in_flight_bytes) == (1, 2, 1001 + 1002)
    assert alice.oldest_due_at is not None
    assert found.by_user["bob"] == UserQueue(in_flight=1, in_flight_bytes=1003)
    assert found.by_user["carol"] == UserQueue(waiting=1)


def test_long_queues_of_users_are_estimated(
    conn: Connection, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(*(record(number, username=("alice", "bob")[number % 3 == 0]) for number in range(60)))
    conn.execute("VACUUM ANALYZE transfer")
    monkeypatch.setattr(module, "COUNTED_UP_TO", 30)
    found = queues_of_users(conn)
    assert found.is_estimate
    assert {name: queue.waiting for name, queue in found.by_user.items()} == {"alice": 40, "bob": 20}


def test_what_is_around_a_file(conn: Connection, add: Add, submitted: Plan, step: int) -> None:
    add(record(1))
    (job,) = submitted()
    (number,) = job.transfer_ids
    assert (copies_of(conn, number), messages_of(conn, number), crab_record_of(conn, number)) == (
        [],
        [],
        None,
    )
    assert block_of(conn, None) is None
    conn.execute(
        "INSERT INTO subscription (name, kind, conn_id, events, updated_by)"
        " VALUES ('mine', 'webhook', 'hook', '{transfer:DONE}', 'test')"
    )
    conn.execute("INSERT INTO crab_record (transfer_id, publisher) VALUES (%s, 'worker')", (number,))
    apply_moves(conn, [Move(number, job.sid, TransferState.DONE)], step)
    (copy,) = copies_of(conn, number)
    assert (copy["site"], copy["state"]) == ("T2_IT_Bari", "WAITING")
    (message,) = messages_of(conn, number)
    assert (message["subscription"], message["to_state"]) == ("mine", "DONE")
    crab = crab_record_of(conn, number)
    assert crab is not None
    assert crab["publisher"] == "worker"


def test_what_a_name_may_mean(conn: Connection, add: Add, submitted: Plan) -> None:
    add(record(1), record(2, username="bob"))
    (job,) = submitted()
    (job_id,) = conn.execute("SELECT job_id FROM fts_job").fetchone() or (None,)
    assert job_called(conn, str(job_id)) == job_called(conn, str(job.sid)) == str(job.sid)
    assert job_called(conn, str(uuid4())) is None
    assert own_file_in(conn, str(job.sid), ["bob"]) == file_ids(conn)[1]
    assert own_file_in(conn, str(job.sid), ["carol"]) is None
    assert has_tasks(conn, "bob")
    assert not has_tasks(conn, "carol")
