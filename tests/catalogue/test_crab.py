"""CRAB's statements: one for a thousand files, only the mover's word counts, and what has ended stays so."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from threading import Thread
from typing import Any

import pytest
from psycopg import Connection

from asyncstageout.catalogue import crab, crab_rows
from asyncstageout.catalogue.audit import audit
from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.crab import (
    BlockWord,
    Conflict,
    NoSuchFile,
    PublicationWord,
    Refused,
    Said,
    Word,
)
from asyncstageout.catalogue.history import LIVE_COLUMNS, move_finished
from asyncstageout.catalogue.repairs import free_stray_files, leaked_files
from asyncstageout.catalogue.retries_by_people import retry_files
from asyncstageout.core.crab import Reinjection
from asyncstageout.core.requests import TransferRequest
from asyncstageout.core.selections import Selection
from asyncstageout.core.states import PublicationState, TransferState
from fixtures.catalogue import Add, Plan, assert_audited, record, states

S = TransferState
P = PublicationState
START = 1_763_869_000

Insert = Callable[..., list[str]]


@pytest.fixture
def insert(conn: Connection, step: int) -> Insert:
    """Insert files as PostJob does; return their ids."""

    def insert_files(*numbers: int, worker: str | None = "schedd", **said: Any) -> list[str]:
        ids = []
        for number in numbers:
            request = TransferRequest.model_validate(record(number))
            insert_said = Said(START, **said)
            crab.insert_file(conn, request, insert_said, worker=worker, step_run=step)
            ids.append(request.request_id)
        return ids

    return insert_files


@pytest.fixture
def many(conn: Connection, add: Add) -> list[str]:
    """A thousand files that CRAB inserted and nobody has claimed."""
    ids = [answer.request_id for answer in add(*(record(number) for number in range(1000)))]
    conn.execute("INSERT INTO crab_record (transfer_id, start_time, publish) SELECT id, 1, 1 FROM transfer")
    return ids


class Counted:
    """A connection that counts what is sent over it."""

    def __init__(self, conn: Connection) -> None:
        self._conn, self.statements = conn, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._conn, name)

    def execute(self, *args: Any, **named: Any) -> Any:
        self.statements += 1
        return self._conn.execute(*args, **named)


def _told(conn: Connection, ids: list[str], state: TransferState, step: int, worker: str = "schedd") -> int:
    return len(crab.tell_transfers(conn, worker, [Word(one, state) for one in ids], None, step))


def _sound(conn: Connection) -> None:
    assert_audited(conn)
    assert [result for result in audit(conn) if result.violations] == []


def test_a_thousand_files_are_one_statement(conn: Connection, many: list[str], step: int) -> None:
    counted: Any = Counted(conn)
    sent: list[int] = []

    def once(change: Callable[[], int]) -> None:
        before = counted.statements
        assert change() == 1000
        sent.append(counted.statements - before)

    once(lambda: crab.acquire_transfers(counted, "schedd", "alice", None, step))
    for state in (S.SUBMITTED, S.RETRY):
        once(lambda state=state: _told(counted, many, state, step))
    conn.execute("UPDATE transfer SET updated_at = now() - interval '1 h'")
    once(lambda: crab.retry_transfers(counted, "schedd", 60, None, step))
    for state in (S.SUBMITTED, S.DONE):
        once(lambda state=state: _told(counted, many, state, step))
    conn.execute("UPDATE transfer SET publication = 'NEW'")
    once(lambda: crab.acquire_publication(counted, "schedd", None, step))
    once(
        lambda: len(
            crab.tell_blocks(counted, "schedd", [BlockWord(one, "/a/b/USER#1") for one in many], None)
        )
    )
    assert sent == [1] * len(sent)
    done = [PublicationWord(one, P.DONE) for one in many]
    once(lambda: len(crab.tell_publication(counted, "schedd", done, None, step)))
    assert sent[-1] == 3  # a lock, and a look into the history
    _sound(conn)


def test_every_word_of_a_worker_in_every_state(conn: Connection, insert: Insert, step: int) -> None:
    """What the table does not know changes nothing; what it knows is on record, move by move."""
    for number, said in enumerate(S):
        ids = insert(number)
        for then in S:
            before = conn.execute("SELECT state FROM transfer WHERE request_id = ANY(%s)", (ids,)).fetchone()
            done = _told(conn, ids, then, step)
            after = conn.execute("SELECT state FROM transfer WHERE request_id = ANY(%s)", (ids,)).fetchone()
            assert before is not None
            assert after is not None
            path = crab.WORKER_PATHS.get((S(before[0]), then))
            assert done == (path is not None)
            assert after[0] == (path[-1] if path else before[0])
        _told(conn, ids, said, step)
    _sound(conn)


def test_only_the_mover_speaks_of_a_file(conn: Connection, insert: Insert, step: int) -> None:
    ids = insert(1)
    for state in S:
        assert _told(conn, ids, state, step, worker="rucio") == 0
    assert crab.acquire_transfers(conn, "rucio", None, None, step) == 0
    words = [Word(ids[0], S.DONE)]
    assert crab.tell_transfers(conn, "schedd", words, ["bob"], step) == []
    assert states(conn) == {"ACQUIRED": 1}


def test_two_workers_claim_at_once(conn: Connection, catalogue_url: str, many: list[str], step: int) -> None:
    counts: dict[str, int] = {}

    def acquire(worker: str) -> None:
        with connect(catalogue_url) as other:
            counts[worker] = crab.acquire_transfers(other, worker, None, None, step)
            counts[worker] += crab.acquire_transfers(other, worker, None, None, step)
            counts[worker] += _told(other, many, S.SUBMITTED, step, worker) * 0

    threads = [Thread(target=acquire, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert sum(counts.values()) == 1000
    assert states(conn) == {"SUBMITTED": 1000}
    _sound(conn)


def test_what_somebody_outside_moves_is_left_alone(
    conn: Connection, insert: Insert, plan: Plan, step: int
) -> None:
    waiting, sent, stopped, resting = insert(1), insert(2), insert(3), insert(4)
    _told(conn, [*sent, *stopped, *resting], S.SUBMITTED, step)
    _told(conn, resting, S.RETRY, step)
    conn.execute("UPDATE transfer SET state = 'KILL' WHERE request_id = ANY(%s)", (stopped,))
    conn.execute("UPDATE transfer SET updated_at = now() - interval '3 d', due_at = now()")
    assert plan() == []
    assert free_stray_files(conn, step) == 0
    assert leaked_files(conn) == 0
    assert states(conn) == {"ACQUIRED": 1, "SUBMITTED": 1, "KILL": 1, "RETRY": 1}
    assert waiting


def test_who_is_sent_again_by_a_person_goes_with_us(
    conn: Connection, insert: Insert, plan: Plan, step: int
) -> None:
    ids = insert(1)
    _told(conn, ids, S.FAILED, step)
    retry_files(conn, Selection(username="alice"), None, comment="again", step_run=step)
    assert len(plan()) == 1
    assert _told(conn, ids, S.DONE, step) == 0


def test_the_same_insert_twice_and_another_one(conn: Connection, insert: Insert, step: int) -> None:
    insert(1)
    insert(1)
    assert states(conn) == {"ACQUIRED": 1}
    other = TransferRequest.model_validate(record(1, size_bytes=7))
    with pytest.raises(Conflict, match="updateDoc"):
        crab.insert_file(conn, other, Said(START), worker=None, step_run=step)
    unknown = TransferRequest.model_validate(record(2, source="T2_XX_None"))
    with pytest.raises(Refused, match="unknown source site"):
        crab.insert_file(conn, unknown, Said(START), worker=None, step_run=step)
    theirs = TransferRequest.model_validate(record(3, username="bob", task=record(1)["task"]))
    with pytest.raises(Refused, match="belongs to"):
        crab.insert_file(conn, theirs, Said(START, S.DONE), worker=None, step_run=step)


def _again(number: int, **changes: Any) -> Reinjection:
    return Reinjection.model_validate(record(number, job_retry_count=1) | changes)


def test_nothing_under_way_is_sent_again(conn: Connection, insert: Insert, plan: Plan, step: int) -> None:
    ids, later = insert(1), Said(START + 1)
    _told(conn, ids, S.SUBMITTED, step)
    with pytest.raises(Conflict, match="SUBMITTED"):
        crab.send_again(conn, _again(1), later, step_run=step)
    insert(2, worker="asyncstageout")
    plan()
    with pytest.raises(Conflict, match="ACQUIRED"):
        crab.send_again(conn, _again(2), later, step_run=step)
    with pytest.raises(NoSuchFile):
        crab.send_again(conn, _again(3), later, step_run=step)
    with pytest.raises(NoSuchFile):
        crab.send_again(conn, _again(1, task="other"), later, step_run=step)
    _told(conn, ids, S.FAILED, step)
    with pytest.raises(Refused, match="unknown source site"):
        crab.send_again(conn, _again(1, source="T2_XX_None"), later, step_run=step)
    assert crab.send_again(conn, _again(1), later, step_run=step)
    assert not crab.send_again(conn, _again(1), later, step_run=step)  # the call was repeated
    _sound(conn)


def test_another_file_has_taken_its_destination(
    conn: Connection, insert: Insert, add: Add, step: int
) -> None:
    ids = insert(1)
    _told(conn, ids, S.FAILED, step)
    add(record(9, destination_lfn=record(1)["destination_lfn"]))
    with pytest.raises(Conflict, match="another file"):
        crab.send_again(conn, _again(1), Said(START + 1), step_run=step)
    assert states(conn) == {"FAILED": 1, "NEW": 1}


def test_files_come_back_from_the_history(conn: Connection, insert: Insert, step: int) -> None:
    again, flagged = insert(1), insert(2)
    _told(conn, [*again, *flagged], S.DONE, step)
    assert move_finished(conn, keep_done_s=-1) == 2
    assert len(crab_rows.file_by_id(conn, again[0], None).rows) == 1
    assert crab.send_again(conn, _again(1), Said(START + 1), step_run=step)
    words = [PublicationWord(flagged[0], P.NEW)]
    assert crab.tell_publication(conn, "schedd", words, None, step, publish=True) == flagged
    assert states(conn) == {"NEW": 1, "DONE": 1}
    assert crab.acquire_publication(conn, "schedd", None, step) == 1
    assert move_finished(conn, keep_done_s=-1) == 0
    _sound(conn)


def test_all_columns_come_back(conn: Connection) -> None:
    rows = conn.execute(
        "SELECT column_name FROM information_schema.columns WHERE table_name = 'transfer'"
        " AND is_generated = 'NEVER' ORDER BY ordinal_position"
    )
    assert [name for (name,) in rows] == LIVE_COLUMNS.split(", ")


def test_every_word_of_a_publisher(conn: Connection, insert: Insert, step: int) -> None:
    ids = insert(1)
    _told(conn, ids, S.DONE, step)
    events = 0
    for state, said in itertools.product(P, P):
        conn.execute("UPDATE transfer SET publication = %s", (state,))
        words = [PublicationWord(ids[0], said, "why", 1)]
        assert crab.tell_publication(conn, "other", words, None, step) == []
        done = crab.tell_publication(conn, "schedd", words, None, step)
        assert bool(done) == (state in crab.PUBLICATION_MOVES[said])
        events += bool(done) and said != state
        row = conn.execute("SELECT publication, (SELECT count(*) FROM file_event) FROM transfer").fetchone()
        assert row == (said if done else state, events)


def test_what_has_not_arrived_is_not_published(conn: Connection, insert: Insert, step: int) -> None:
    ids = insert(1, publish=True)
    assert crab.acquire_publication(conn, "schedd", None, step) == 0
    words = [PublicationWord(ids[0], P.DONE)]
    assert crab.tell_publication(conn, "schedd", words, None, step) == []


def test_publications_are_retried(conn: Connection, insert: Insert, step: int) -> None:
    ids = insert(1, publish=True)
    _told(conn, ids, S.DONE, step)
    ended = []
    for _ in range(3):
        crab.acquire_publication(conn, "schedd", None, step)
        crab.tell_publication(conn, "schedd", [PublicationWord(ids[0], P.RETRY)], None, step)
        assert crab.retry_publication(conn, "schedd", 60, None, step) == 0
        conn.execute("UPDATE crab_record SET updated_at = now() - interval '1 h'")
        assert crab.retry_publication(conn, "schedd", 60, None, step) == 1
        ended += conn.execute("SELECT publication::text FROM transfer").fetchone() or ()
    assert ended == ["NEW", "NEW", "NEW"]
    crab.acquire_publication(conn, "schedd", None, step)
    crab.tell_publication(conn, "schedd", [PublicationWord(ids[0], P.RETRY)], None, step)
    conn.execute("UPDATE crab_record SET updated_at = now() - interval '1 h'")
    crab.retry_publication(conn, "schedd", 60, None, step)
    assert conn.execute("SELECT publication::text FROM transfer").fetchone() == ("FAILED",)


@pytest.fixture
def of_bob(conn: Connection, step: int) -> None:
    request = TransferRequest.model_validate(record(7, username="bob"))
    crab.insert_file(conn, request, Said(START), worker="schedd", step_run=step)


@pytest.mark.usefixtures("of_bob")
def test_statistics(conn: Connection, insert: Insert, add: Add, step: int) -> None:
    _told(conn, insert(1, 2), S.SUBMITTED, step)
    insert(3, worker=None)
    add(record(8))  # not through CRAB
    found = crab_rows.statistics(conn, "tm_transfer_state", ("tm_aso_worker",), None, {})
    assert found.columns == ("count", "tm_aso_worker", "tm_transfer_state")
    assert found.rows == ['[1, "schedd", 1]', '[2, "schedd", 5]', "[1, null, 0]"]
    mine = crab_rows.statistics(
        conn, "tm_publication_state", ("tm_username",), ["alice"], {"username": "alice", "task": None}
    )
    assert mine.rows == ['[3, "alice", 5]']
