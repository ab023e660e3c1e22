"""A later retry of a job sends its files again, through our own doors: once, on record, with its new content."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier
from typing import Any

import pytest
from psycopg import Connection

from asyncstageout.catalogue.audit import audit
from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.history import move_finished
from asyncstageout.catalogue.intake import Answer, add_transfers
from asyncstageout.catalogue.kills import kill
from asyncstageout.catalogue.restrictions import Area, restrict
from asyncstageout.catalogue.transitions import Move, apply_moves
from asyncstageout.core.failures import classify
from asyncstageout.core.requests import read_requests
from asyncstageout.core.restrictions import Mode
from asyncstageout.core.retries import CANCELLED_COPY_S
from asyncstageout.core.selections import Selection
from asyncstageout.core.states import TransferState
from fixtures.catalogue import Add, Plan, assert_audited, record, states

S = TransferState
BROKEN = classify("TRANSFER [5] HTTP 507 : Insufficient Storage")
ALL = Selection(username="alice")


def later(number: int, retry: int = 1, **changes: Any) -> dict[str, Any]:
    """The file as a later retry of its job leaves it: elsewhere, larger, with another checksum."""
    new = {"source": "T2_US_MIT", "size_bytes": 5000 + number, "adler32": f"{0xABC0 + number:x}"}
    return record(number, job_retry_count=retry, job_id=f"{number}-{retry}") | new | changes


def end(conn: Connection, step: int, to_state: TransferState) -> None:
    rows = conn.execute("SELECT id, fts_job FROM transfer WHERE state IN ('SUBMITTED', 'KILL')").fetchall()
    failure = None if to_state is S.DONE else BROKEN
    apply_moves(conn, [Move(number, sid, to_state, failure) for number, sid in rows], step)


def outcomes(answers: list[Answer]) -> list[tuple[str, str | None]]:
    return [(answer.outcome, answer.reason) for answer in answers]


def assert_sound(conn: Connection) -> None:
    assert_audited(conn)
    assert [result for result in audit(conn) if result.violations] == []


CONTENT = "SELECT state::text, source, size_bytes, adler32, job_id, job_retry_count, attempt FROM transfer"


@pytest.mark.parametrize("ended", [S.DONE, S.FAILED, S.RETRY])
def test_what_has_ended_or_waits_goes_with_its_new_content(
    conn: Connection, *, add: Add, submitted: Plan, step: int, ended: TransferState
) -> None:
    add(record(1))
    submitted()
    end(conn, step, ended)
    assert outcomes(add(later(1))) == [("again", None)]
    state, attempt = ("RETRY", 1) if ended is S.RETRY else ("NEW", 0)
    content = (state, "T2_US_MIT", 5001, "0000abc1", "1-1", 1, attempt)
    assert conn.execute(CONTENT).fetchall() == [content]
    failure = conn.execute("SELECT failure_reason, already_there FROM transfer").fetchall()
    assert failure == [(None, False)]
    assert outcomes(add(later(1), record(1), later(1, retry=0))) == [("exists", None)] * 3
    assert conn.execute(CONTENT).fetchall() == [content]
    request = conn.execute(
        "SELECT from_state, to_state, subject, reason FROM file_event WHERE kind = 'request'"
    ).fetchall()
    what = "before at T2_IT_Bari; before 1001 bytes, adler32 00000002"
    assert request == [("retry 0", "retry 1", "T2_US_MIT", what)]
    (job,) = submitted()
    assert job.key.source == "T2_US_MIT"
    end(conn, step, S.DONE)
    assert_sound(conn)


def test_a_file_that_waits_is_changed_in_place(conn: Connection, add: Add) -> None:
    add(record(1))
    assert outcomes(add(later(1))) == [("again", None)]
    assert conn.execute(CONTENT).fetchone() == ("NEW", "T2_US_MIT", 5001, "0000abc1", "1-1", 1, 0)
    assert conn.execute("SELECT count(*) FROM transfer_event").fetchone() == (1,)
    assert_sound(conn)


def test_what_is_under_way_has_to_end_first(
    conn: Connection, add: Add, submitted: Plan, plan: Plan, step: int
) -> None:
    add(record(1))
    submitted()
    add(record(2))
    plan()
    before = conn.execute(f"{CONTENT} ORDER BY id").fetchall()
    why = "its transfer has to end first; kill it, or wait"
    assert outcomes(add(later(1), later(2))) == [
        ("refused", f"it is SUBMITTED: {why}"),
        ("refused", f"it is ACQUIRED: {why}"),
    ]
    kill(conn, ALL, None, comment="", step_run=step)
    assert outcomes(add(later(1))) == [("refused", f"it is KILL: {why}")]
    after = conn.execute(f"{CONTENT} ORDER BY id").fetchall()
    assert [row[1:] for row in after] == [row[1:] for row in before]
    end(conn, step, S.FAILED)
    assert outcomes(add(later(1))) == [("again", None)]
    assert_sound(conn)


def test_nothing_is_sent_where_a_cancelled_copy_may_still_be_dying(
    conn: Connection, add: Add, submitted: Plan, step: int
) -> None:
    """FTS says CANCELED at once; the copy lives on for up to 10 s, and removes what it finds when it dies."""
    add(record(1), record(2))
    submitted()
    kill(conn, ALL, None, comment="", step_run=step)
    end(conn, step, S.FAILED)
    add(later(1), record(9, destination_lfn=record(2)["destination_lfn"]), record(3))
    rows = conn.execute("SELECT due_at - now() FROM transfer WHERE state = 'NEW' ORDER BY id").fetchall()
    waits = [row[0].total_seconds() > CANCELLED_COPY_S - 5 for row in rows]
    assert waits == [True, True, False]
    conn.execute("UPDATE transfer SET due_at = now()")
    kill(conn, ALL, None, comment="", step_run=step)
    add(later(1, retry=2))
    (wait,) = conn.execute("SELECT due_at - now() FROM transfer WHERE state = 'NEW'").fetchone() or (None,)
    assert wait <= timedelta(0), "it was killed while it waited: nobody copies it"
    assert_sound(conn)


def test_another_file_at_its_destination(conn: Connection, add: Add, submitted: Plan, step: int) -> None:
    same = record(1)["destination_lfn"]
    add(record(1))
    submitted()
    end(conn, step, S.FAILED)
    add(record(2, destination_lfn=same))
    taken = ("refused", "another file is on its way to its destination")
    assert outcomes(add(later(1))) == [taken]
    submitted()
    end(conn, step, S.FAILED)
    both = later(1), later(2, destination_lfn=same)
    assert outcomes(add(*both)) == [("again", None), taken]
    assert states(conn) == {"NEW": 1, "FAILED": 1}
    assert_sound(conn)


def test_it_has_to_be_the_same_file(conn: Connection, add: Add) -> None:
    add(record(1))
    answers = add(
        later(1, task="261122_alice_other"), later(1, retry=2, destination_lfn="/store/user/alice/elsewhere")
    )
    task, place = record(1)["task"], record(1)["destination_lfn"]
    # Of two in one batch the later retry's counts.
    assert outcomes(answers) == [("exists", None), ("refused", f"it belongs at T2_CH_CERN, as {place}")]
    assert outcomes(add(later(1, task="261122_alice_other"))) == [
        ("refused", f"it is a file of task {task} of alice")
    ]
    assert conn.execute("SELECT size_bytes FROM transfer").fetchall() == [(1001,)]


def test_in_one_batch_the_latest_retry_counts(conn: Connection, add: Add) -> None:
    answers = add(record(1), later(1, retry=2), later(1, retry=1), record(2), later(1, retry=2))
    assert [answer.outcome for answer in answers] == ["exists", "created", "exists", "created", "exists"]
    assert conn.execute("SELECT size_bytes FROM transfer ORDER BY id").fetchall() == [(5001,), (1002,)]
    assert outcomes(add(later(1, retry=2), later(1, retry=4), later(1, retry=3))) == [
        ("exists", None), ("again", None), ("exists", None),
    ]  # fmt: skip
    assert_sound(conn)


def test_a_drained_site_takes_no_later_retry(conn: Connection, add: Add) -> None:
    add(record(1), record(2))
    restrict(conn, Mode.DRAIN, Area(site="T2_US_MIT"), reason="moving", by="ops")
    answers = add(later(1), later(2, source="T2_IT_Bari"), later(2, source="T2_XX_None", retry=2))
    assert [answer.outcome for answer in answers] == ["refused", "again", "refused"]
    assert "moving" in (answers[0].reason or "")
    assert answers[2].reason == "unknown source site T2_XX_None"


def test_files_come_back_from_the_history(conn: Connection, add: Add, submitted: Plan, step: int) -> None:
    add(*(record(number) for number in range(4)))
    submitted()
    end(conn, step, S.DONE)
    assert move_finished(conn, keep_done_s=-1) == 4
    assert outcomes(add(record(0), later(1), later(2))) == [
        ("exists", None),
        ("again", None),
        ("again", None),
    ]
    assert states(conn) == {"NEW": 2}
    assert conn.execute("SELECT count(*) FROM transfer_history").fetchone() == (2,)
    assert_sound(conn)


@pytest.mark.parametrize(
    ("was", "wanted", "then"),
    [
        ("DONE", True, "DONE"), ("DONE", False, "DONE"), ("NEW", False, "NOT_REQUIRED"), ("FAILED", True, "NEW"),
        ("NOT_REQUIRED", True, "NEW"), ("ACQUIRED", True, "ACQUIRED"),
    ],
)  # fmt: skip
def test_nothing_is_published_twice(
    conn: Connection, *, add: Add, submitted: Plan, step: int, was: str, wanted: bool, then: str
) -> None:
    add(record(1))
    submitted()
    end(conn, step, S.DONE)
    conn.execute("UPDATE transfer SET publication = %s", (was,))
    answer = outcomes(add(later(1, publish=wanted)))
    row = conn.execute("SELECT state::text, publication::text FROM transfer").fetchone()
    if was == "ACQUIRED":
        assert answer == [("refused", "it is being published: send it again when that has ended")]
        assert row == ("DONE", then)
        return
    assert row == ("NEW", then)
    events = conn.execute("SELECT kind, to_state, reason FROM file_event ORDER BY id").fetchall()
    assert ("stays published" in events[0][2]) == (was == "DONE")
    moved = [(kind, to_state) for kind, to_state, _ in events[1:]]
    assert moved == ([("publication", then)] if then != was else [])


@pytest.mark.parametrize("ended", [None, S.DONE, S.FAILED, S.RETRY])
def test_a_later_retry_may_write_straight_to_the_destination(
    conn: Connection, *, add: Add, submitted: Plan, step: int, ended: TransferState | None
) -> None:
    add(record(1))
    if ended:
        submitted()
        end(conn, step, ended)
    assert outcomes(add(later(1, already_there=True))) == [("again", None)]
    row = conn.execute("SELECT state::text, already_there, size_bytes FROM transfer").fetchone()
    assert row == ("DONE", True, 5001)
    assert_sound(conn)
    assert outcomes(add(later(1, retry=2))) == [("again", None)]
    assert conn.execute("SELECT state::text, already_there FROM transfer").fetchone() == ("NEW", False)
    assert_sound(conn)


def test_two_at_once_send_each_file_again_once(
    conn: Connection, catalogue_url: str, add: Add, submitted: Plan, step: int
) -> None:
    add(*(record(number) for number in range(40)))
    submitted()
    end(conn, step, S.DONE)
    conn.execute("UPDATE transfer SET ended_at = now() - interval '2 days' WHERE id % 2 = 0")
    move_finished(conn)
    good, _ = read_requests([later(number) for number in range(40)])
    ready = Barrier(3)

    def hand_over(requests: list[Any]) -> list[str]:
        with connect(catalogue_url) as own:
            ready.wait(20)
            return [answer.outcome for answer in add_transfers(own, requests, step)]

    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(hand_over, [good, good[::-1], good]))
    assert sorted(chain for answer in answers for chain in answer) == ["again"] * 40 + ["exists"] * 80
    assert states(conn) == {"NEW": 40}
    assert conn.execute("SELECT count(*) FROM transfer_event WHERE from_state = 'DONE'").fetchone() == (40,)
    assert_sound(conn)


def test_a_thousand_files_go_again_in_a_handful_of_statements(
    conn: Connection, add: Add, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(*(record(number) for number in range(1000)))
    statements: list[object] = []
    execute = Connection.execute
    monkeypatch.setattr(
        Connection, "execute", lambda self, query, *rest, **options: (
            statements.append(query), execute(self, query, *rest, **options))[1]
    )  # fmt: skip
    answers = add(*(later(number) for number in range(1000)))
    assert {answer.outcome for answer in answers} == {"again"}
    assert len(statements) <= 15
