"""What the client does when the service is silent, busy, or another one."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from asyncstageout.client import BadAnswer, Busy, Defect, NotAllowed, Stageout, Unreachable
from asyncstageout.client.errors import KINDS, StageoutError
from asyncstageout.clients.http import InsecureToken, Patience
from clients.answering import Asked, Reply, answering, in_turn
from fixtures.catalogue import record

Respond = Callable[[Asked], Reply]
NO_PAUSE = Patience(tries=3, first_wait_s=0, longest_wait_s=0, deadline_s=20)


def created(asked: Asked) -> Reply:
    count = len(asked.body.splitlines())
    rows = ({"position": place, "request_id": "a" * 56, "outcome": "created"} for place in range(count))
    return Reply(200, b"".join(json.dumps(row).encode() + b"\n" for row in rows))


def problem(status: int, **more: object) -> Reply:
    body = {
        "type": "urn:asyncstageout:problem:some-kind",
        "title": "Title",
        "status": status,
        "detail": "Why.",
    } | more
    return Reply(status, json.dumps(body).encode(), {"Content-Type": "application/problem+json"})


def client(url: str) -> Stageout:
    return Stageout(url, token="t", patience=NO_PAUSE, sleep=lambda _: None)


@pytest.mark.parametrize(
    "trouble", [Reply(instead="reset"), problem(503), problem(429), Reply(502, b"<html>")]
)
def test_a_batch_is_sent_again_after_trouble(trouble: Reply) -> None:
    replies = iter([trouble])
    with answering(lambda asked: next(replies, None) or created(asked)) as service:
        answers = list(client(service.url).submit([record(0), record(1)]))
    assert [answer.outcome for answer in answers] == ["created", "created"]
    assert len({asked.body for asked in service.asked}) == 1
    assert len(service.asked) == 2


def test_batches_go_one_by_one_as_they_are_wanted() -> None:
    taken = []

    def requests() -> object:
        for number in range(5):
            taken.append(number)
            yield record(number)

    with answering(created) as service:
        answers = client(service.url).submit(requests(), batch=2)  # type: ignore[arg-type]
        assert service.asked == []
        assert next(answers).position == 0
        assert taken == [0, 1]
        assert [answer.position for answer in answers] == [1, 2, 3, 4]
    assert len(service.asked) == 3
    assert {asked.headers["content-type"] for asked in service.asked} == {"application/x-ndjson"}
    assert {asked.path for asked in service.asked} == {"/stageout/api/v1/transfers"}


def test_an_answer_that_was_cut_is_no_success() -> None:
    cut = answering(lambda asked: Reply(200, created(asked).body.splitlines()[0]))
    with cut as service, pytest.raises(BadAnswer, match="1 answers to 2 requests"):
        list(client(service.url).submit([record(0), record(1)]))


@pytest.mark.parametrize(("status", "kind"), KINDS.items())
def test_each_problem_is_its_own_error(status: int, kind: type[StageoutError]) -> None:
    flaws = [{"detail": "is wrong", "pointer": "#/0"}]
    refusing = answering(lambda _: problem(status, errors=flaws, error_id="4711"))
    with refusing as service, pytest.raises(kind) as raised:
        client(service.url).task("t")
    error = raised.value
    assert (error.status, error.kind, error.flaws, error.error_id) == (status, "some-kind", flaws, "4711")
    assert "Why. #/0: is wrong" in str(error)
    assert len(service.asked) == (3 if kind is Busy else 1)


def test_silence_ends_after_all_tries() -> None:
    with answering(in_turn(*[Reply(instead="reset")] * 3)) as service, pytest.raises(Unreachable):
        client(service.url).task("t")


def test_another_service_is_noticed() -> None:
    other = answering(lambda _: Reply(200, b"<html>a login page</html>"))
    with other as service, pytest.raises(BadAnswer, match="Check the URL"):
        client(service.url).task("t")


def test_names_cannot_leave_their_place() -> None:
    with answering(lambda _: problem(403)) as service, pytest.raises(NotAllowed):
        client(service.url).task("../x?y=1#z")
    assert service.asked[0].path == "/stageout/api/v1/tasks/..%2Fx%3Fy%3D1%23z"


def test_no_token_in_the_clear_and_none_in_errors() -> None:
    with pytest.raises(InsecureToken):
        Stageout("http://stageout.example.org", token="secret-token").task("t")
    with answering(lambda _: problem(500)) as service, pytest.raises(Defect) as raised:
        Stageout(service.url, token="secret-token").task("t")
    assert "secret-token" not in str(raised.value)
