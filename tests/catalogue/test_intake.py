"""Requests get in once each, with an event; bad ones are told why; the others go on."""

from __future__ import annotations

from psycopg import Connection

from asyncstageout.catalogue.bell import PENDING_CHANNEL
from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.history import move_finished
from asyncstageout.catalogue.transitions import Move, apply_moves
from asyncstageout.core.naming import request_id
from asyncstageout.core.states import TransferState
from fixtures.catalogue import Add, Plan, assert_audited, record, states


def test_a_batch_gets_in_with_its_events(conn: Connection, add: Add) -> None:
    answers = add(*(record(number) for number in range(100)))
    assert [answer.position for answer in answers] == list(range(100))
    assert {answer.outcome for answer in answers} == {"created"}
    assert states(conn) == {"NEW": 100}
    assert_audited(conn)


def test_ids_follow_the_order_of_the_batch(conn: Connection, add: Add) -> None:
    add(*(record(number) for number in range(20)))
    rows = conn.execute("SELECT size_bytes FROM transfer ORDER BY id").fetchall()
    assert [size - 1000 for (size,) in rows] == list(range(20))


def test_the_same_request_again_changes_nothing(conn: Connection, add: Add) -> None:
    first = add(record(1), record(2), record(1))
    assert [answer.outcome for answer in first] == ["created", "created", "exists"]
    again = add(record(1), record(3))
    assert [answer.outcome for answer in again] == ["exists", "created"]
    assert states(conn) == {"NEW": 3}
    assert_audited(conn)


def test_a_file_in_the_history_exists_too(conn: Connection, add: Add, submitted: Plan, step: int) -> None:
    add(record(1))
    (job,) = submitted()
    apply_moves(conn, [Move(job.transfer_ids[0], job.sid, TransferState.DONE)], step)
    assert move_finished(conn, keep_done_s=-1) == 1
    assert [answer.outcome for answer in add(record(1))] == ["exists"]
    assert states(conn) == {}


def test_what_is_new_is_asked_of_no_month_of_the_past(
    conn: Connection, add: Add, submitted: Plan, step: int
) -> None:
    add(record(1))
    (job,) = submitted()
    apply_moves(conn, [Move(job.transfer_ids[0], job.sid, TransferState.DONE)], step)
    move_finished(conn, keep_done_s=-1)
    looks = (
        "SELECT sum(pg_stat_get_xact_numscans(i.indexrelid) + pg_stat_get_xact_numscans(i.indrelid))"
        " FROM pg_partition_tree('transfer_history') p JOIN pg_index i ON i.indrelid = p.relid"
    )
    for number, outcome, is_asked in ((2, "created", False), (1, "exists", True)):
        with conn.transaction():
            before = conn.execute(looks).fetchone()
            (answer,) = add(record(number))
            assert answer.outcome == outcome
            assert (conn.execute(looks).fetchone() != before) is is_asked


def test_another_file_with_the_same_key_is_not_this_one(
    conn: Connection, add: Add, submitted: Plan, step: int
) -> None:
    add(record(1))
    (job,) = submitted()
    apply_moves(conn, [Move(job.transfer_ids[0], job.sid, TransferState.DONE)], step)
    move_finished(conn, keep_done_s=-1)
    conn.execute(
        "INSERT INTO past_request SELECT hashtextextended(%s, 0), transfer_id FROM past_request",
        (request_id(record(2)["source_lfn"]),),
    )
    assert [answer.outcome for answer in add(record(1), record(2))] == ["exists", "created"]


def test_what_is_wrong_is_told_and_the_others_go_on(conn: Connection, add: Add) -> None:
    add(record(0, username="bob"))
    answers = add(
        record(1),
        record(2, source="T2_FR_Nowhere"),
        record(3, destination="T2_FR_Nowhere"),
        record(4, task="261122_bob_task"),
        record(5),
    )
    assert [answer.outcome for answer in answers] == ["created", "refused", "refused", "refused", "created"]
    assert [answer.reason for answer in answers] == [
        None,
        "unknown source site T2_FR_Nowhere",
        "unknown destination site T2_FR_Nowhere",
        "task 261122_bob_task belongs to bob",
        None,
    ]
    assert_audited(conn)


def test_two_users_cannot_share_a_new_task(add: Add) -> None:
    answers = add(record(1, task="shared"), record(2, username="bob", task="shared"))
    assert [answer.outcome for answer in answers] == ["created", "refused"]


def test_one_writer_per_destination(conn: Connection, add: Add, submitted: Plan, step: int) -> None:
    first, second = record(1), record(2, destination_lfn=record(1)["destination_lfn"])
    answers = add(first, second)
    assert [answer.outcome for answer in answers] == ["created", "refused"]
    assert answers[1].reason == (
        "another file is on its way to /store/user/alice/mc/out_1.root at T2_CH_CERN"
    )
    assert [answer.outcome for answer in add(second | {"destination": "T1_DE_KIT"})] == ["created"]
    jobs = submitted()
    (mine,) = (job for job in jobs if job.key.destination == "T2_CH_CERN")
    apply_moves(conn, [Move(mine.transfer_ids[0], mine.sid, TransferState.DONE)], step)
    later = record(3, destination_lfn=first["destination_lfn"])
    assert [answer.outcome for answer in add(later)] == ["created"], "what has ended is in nobody's way"
    assert_audited(conn)


def test_arrivals_ring_once_per_batch(conn: Connection, add: Add, catalogue_url: str) -> None:
    with connect(catalogue_url) as listener:
        listener.execute(f"LISTEN {PENDING_CHANNEL}")
        add(*(record(number) for number in range(10)))
        add(record(1))  # nothing new: no ring
        rings = list(listener.notifies(timeout=0.2))
    assert len(rings) == 1
