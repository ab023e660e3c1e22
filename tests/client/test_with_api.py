"""The client and the real API: what one says the other understands."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from psycopg import Connection

from asyncstageout.catalogue.transitions import Move, apply_moves
from asyncstageout.client import (
    NotAllowed,
    NotAuthenticated,
    NotFinished,
    NotFound,
    Refused,
    StageoutError,
    TransferRequest,
)
from asyncstageout.core.failures import Category, Failure, Kind
from asyncstageout.core.states import TransferState
from client.conftest import As
from fixtures.catalogue import Plan, record, states

TASK = "261122_alice_task"


def hand_in(asking_as: As, count: int = 3) -> list[str]:
    answers = list(asking_as("alice").submit(record(number) for number in range(count)))
    assert {answer.outcome for answer in answers} == {"created"}
    return [answer.request_id or "" for answer in answers]


def test_each_request_has_its_answer(conn: Connection, asking_as: As) -> None:
    requests = [
        record(0),
        record(1, size_bytes=-1),
        TransferRequest(**record(2)),
        record(0),
        record(3, username="bob"),
    ]
    answers = list(asking_as("alice").submit(iter(requests), batch=2))
    assert [answer.position for answer in answers] == [0, 1, 2, 3, 4]
    assert [answer.outcome for answer in answers] == ["created", "refused", "created", "exists", "refused"]
    assert [answer.field for answer in answers] == [None, "size_bytes", None, None, "username"]
    assert answers[0].request_id == TransferRequest(**record(0)).request_id
    assert states(conn) == {"NEW": 2}


def test_doing_it_twice_does_no_harm(conn: Connection, asking_as: As) -> None:
    hand_in(asking_as)
    again = list(asking_as("alice").submit(record(number) for number in range(3)))
    assert [answer.outcome for answer in again] == ["exists"] * 3
    assert states(conn) == {"NEW": 3}


def test_files_come_page_by_page_newest_first(asking_as: As, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = hand_in(asking_as, 7)
    monkeypatch.setattr("asyncstageout.client.stageout.PAGE", 3)
    alice = asking_as("alice")
    assert [file.request_id for file in alice.files()] == ids[::-1]
    soon = datetime.now(UTC) + timedelta(hours=1)
    assert len(list(alice.files(task=TASK, state=["NEW", "RETRY"], until=soon))) == 7
    assert list(alice.files(since=soon)) == []
    assert list(alice.files(state="DONE")) == []


def test_one_file_with_its_history(asking_as: As) -> None:
    first, *_ = hand_in(asking_as)
    file = asking_as("alice").file(first)
    assert (file.state, file.size_bytes, file.is_final) == ("NEW", 1000, False)
    assert file.created_at.utcoffset() == timedelta(0)
    assert [(event.to_state, event.actor) for event in file.events] == [("NEW", "alice")]
    assert asking_as("alice").file(file.id) == file
    assert next(asking_as("alice").files(task=TASK)).events == []


def test_what_is_others_is_not_there(asking_as: As) -> None:
    first, *_ = hand_in(asking_as)
    with pytest.raises(NotFound):
        asking_as("bob").file(first)
    with pytest.raises(NotFound):
        asking_as("bob").task(TASK)
    with pytest.raises((NotAllowed, NotFound)):
        list(asking_as("bob").files(username="alice"))
    with pytest.raises(NotAuthenticated) as nobody:
        asking_as("mallory").task(TASK)
    assert nobody.value.kind == "not-authenticated"


def test_a_wrong_question_says_what_is_wrong(asking_as: As) -> None:
    with pytest.raises(Refused) as refused:
        list(asking_as("alice").files(state="GONE"))
    assert refused.value.status == 422
    assert refused.value.flaws
    assert "GONE" not in refused.value.asked
    with pytest.raises(StageoutError):
        asking_as("alice").kill()


def test_kill_then_send_again(conn: Connection, asking_as: As) -> None:
    ids = hand_in(asking_as)
    alice = asking_as("alice")
    assert alice.kill(task=TASK, dry_run=True).counts == {"killed": 3}
    assert states(conn) == {"NEW": 3}
    acted = alice.kill(ids=[*ids[:2], "0" * 56], comment="wrong data")
    assert acted.counts == {"killed": 2, "not_yours": 1}
    assert [file.outcome for file in acted.files] == ["killed", "killed", "not_yours"]
    assert "wrong data" in (alice.file(ids[0]).events[-1].reason or "")
    assert alice.retry(task=TASK, killed_too=True).counts["sent_again"] == 2
    assert states(conn) == {"NEW": 3}


def test_a_task_until_its_end(conn: Connection, asking_as: As, submitted: Plan, step: int) -> None:
    hand_in(asking_as)
    alice = asking_as("alice")
    with pytest.raises(NotFinished) as open_still:
        alice.wait(TASK, timeout_s=0)
    assert open_still.value.task.open_files == 3
    (job,) = submitted()

    def arrive(_: float) -> None:
        done, done_too, failed = job.transfer_ids
        failure = Failure(Category.QUOTA, 60322, Kind.NEEDS_HUMAN, "DESTINATION", 122, "no room")
        apply_moves(
            conn,
            [
                Move(done, job.sid, TransferState.DONE),
                Move(done_too, job.sid, TransferState.DONE),
                Move(failed, job.sid, TransferState.FAILED, failure),
            ],
            step,
        )

    seen = list(asking_as("alice", sleep=arrive).watch(TASK))
    assert [status.open_files for status in seen] == [3, 0]
    assert alice.wait(TASK).states == {"DONE": 2, "FAILED": 1}
    assert seen[-1].files == 3
    assert seen[-1].size_bytes == 3003


def test_metadata_of_files(asking_as: As) -> None:
    first, second, _ = hand_in(asking_as)
    said = [{"request_id": one, "task": TASK, "body": {"events": 12}} for one in (first, second)]
    alice = asking_as("alice")
    assert [result["outcome"] for result in alice.put_metadata(said)] == ["stored", "stored"]
    assert [result["outcome"] for result in alice.put_metadata(said)] == ["unchanged", "unchanged"]
