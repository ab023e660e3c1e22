"""Webhooks: signed as Standard Webhooks says, sent only where it is safe, and every answer means something."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.request import urlopen

import pytest

from asyncstageout.cli.subscriptions import schema
from asyncstageout.clients.http import new_session
from asyncstageout.clients.receivers import (
    RULES,
    ContentRefused,
    Failing,
    Faulty,
    Gone,
    NotLetIn,
    ReceiverError,
    error_of,
)
from asyncstageout.clients.webhook import BadSecret, BadURL, Webhook, check_url, read_secret, signed
from asyncstageout.core.deliveries import Batch, File, Message
from asyncstageout.sandbox.layout import free_port
from clients.answering import AnsweringServer, Reply, answering

DOCS = Path(__file__).parents[2] / "docs/reference"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OLD_SECRET = "whsec_" + base64.b64encode(b"o" * 32).decode()


def message(number: int) -> Message:
    return Message(
        id=f"transfer-{number}", type="transfer.done", timestamp=datetime(2026, 11, 27, 8, tzinfo=UTC),
        state="DONE", reason=None,
        data=File(
            number=number, request_id="a" * 56, task="t", username="alice", source="T2_IT_Bari",
            destination="T2_CH_CERN", source_lfn="/store/temp/user/alice/a.root",
            destination_lfn=f"/store/user/alice/out_{number}.root", size_bytes=1, adler32=None,
            file_type="output", job_id="1", job_retry_count=0, attempt=1, fts_job_id=None, fts_server=None,
            destination_url=None, block=None,
        ),
    )  # fmt: skip


def webhook(url: str, *secrets: str) -> Webhook:
    keys = [read_secret(secret) for secret in secrets or (SECRET,)]
    return Webhook(
        url, new_session(), keys, batch=10, installation="here", subscription="hook", clock=lambda: 7.9
    )


@pytest.fixture
def server() -> Iterator[AnsweringServer]:
    with answering(lambda _asked: Reply(204)) as server:
        yield server


def test_the_signature_is_that_of_the_specification() -> None:
    """The vector that the reference implementations of Standard Webhooks are tested with."""
    headers = signed(
        [read_secret(SECRET)], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
    )
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_a_batch_is_sent_as_one_signed_body(server: AnsweringServer) -> None:
    hook = webhook(f"{server.url}/a/path", SECRET, OLD_SECRET)
    for _ in range(2):
        assert hook.send([message(1), message(2)]) == {}
    assert hook.send([message(2)]) == {}
    first, again, other = server.asked
    assert (first.method, first.path, first.headers["content-type"]) == (
        "POST",
        "/a/path",
        "application/json",
    )
    batch = Batch.model_validate_json(first.body)
    assert batch == Batch(installation="here", subscription="hook", messages=[message(1), message(2)])
    assert first.headers["webhook-timestamp"] == "7"
    assert first.headers["webhook-id"] == again.headers["webhook-id"] != other.headers["webhook-id"]
    assert "." not in first.headers["webhook-id"]
    both = [
        signed([read_secret(secret)], first.headers["webhook-id"], 7, first.body)["webhook-signature"]
        for secret in (SECRET, OLD_SECRET)
    ]
    assert first.headers["webhook-signature"].split() == both


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Reply(301, headers={"Location": "https://elsewhere.example.org"}), NotLetIn),
        (Reply(308, headers={"Location": "/other"}), NotLetIn),
        (Reply(400), ContentRefused), (Reply(401), NotLetIn), (Reply(404), NotLetIn), (Reply(410), Gone),
        (Reply(413), ContentRefused), (Reply(422, b"no\0pe"), ContentRefused), (Reply(500), Faulty),
        (Reply(503, headers={"Retry-After": "77"}), Failing), (Reply(instead="reset"), Faulty),
        (Reply(207, b"all fine"), Faulty), (Reply(207, b'{"refused": {"a": 1}}'), Faulty),
        (Reply(207, b'{"refused": [1]}'), Faulty), (Reply(207, b"[]"), Faulty),
    ],
)  # fmt: skip
def test_an_answer_says_what_becomes_of_the_messages(reply: Reply, error: type[ReceiverError]) -> None:
    with answering(lambda _asked: reply) as server:
        with pytest.raises(error) as raised:
            webhook(f"{server.url}/x").send([message(1)])
        assert len(server.asked) == 1, "redirects are not followed, nothing is repeated"
    assert type(raised.value) is error
    if reply.status == 503:
        assert raised.value.retry_after_s == 77


def test_a_receiver_may_name_what_it_does_not_take() -> None:
    answer = {"refused": [{"id": "transfer-2", "reason": "no such task"}, {"id": "transfer-1"}, {"id": "x"}]}
    with answering(lambda _asked: Reply(207, json.dumps(answer).encode())) as server:
        assert webhook(server.url).send([message(1), message(2)]) == {
            "transfer-2": "no such task", "transfer-1": "refused without a reason", "x": "refused without a reason"
        }  # fmt: skip


def test_nobody_listens() -> None:
    with pytest.raises(Failing, match="Nothing is lost"):
        webhook(f"http://127.0.0.1:{free_port()}/").send([message(1)])


def test_every_status_means_something() -> None:
    assert {error_of(status) for status in range(300, 600)} == {rule.error for rule in RULES}


@pytest.mark.parametrize(
    "url",
    ["http://hook.example.org/", "ftp://127.0.0.1/", "https://", "https://a:b@hook.example.org/", "hook"],
)
def test_messages_go_nowhere_else(url: str) -> None:
    with pytest.raises(BadURL) as raised:
        check_url(url)
    assert "a:b" not in str(raised.value)


@pytest.mark.parametrize(
    "secret", ["MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_", "whsec_QQ==", "whsec_*", "whsec_" + "QUFB" * 30]
)
def test_a_secret_is_none_and_not_told(secret: str) -> None:
    with pytest.raises(BadSecret) as raised:
        read_secret(secret)
    assert secret == "whsec_" or secret.removeprefix("whsec_") not in str(raised.value)


# --- the reference ---


def sample() -> str:
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "webhooks.md").read_text(), re.DOTALL)
    return str(code)


@pytest.fixture
def sample_receiver(tmp_path: Path) -> Iterator[tuple[str, Callable[[], list[str]]]]:
    """The receiver of the page, in a process of its own: its URL, and what it printed."""
    port, heard = free_port(), tmp_path / "heard"
    environment = os.environ | {"WEBHOOK_SECRET": SECRET, "PORT": str(port)}
    with heard.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-c", sample()], env=environment, stdout=stream, stderr=subprocess.DEVNULL
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}", process)
        yield f"http://127.0.0.1:{port}/", lambda: heard.read_text().splitlines()
    finally:
        process.kill()
        process.wait()


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        try:
            urlopen(url)
        except OSError as error:
            if hasattr(error, "code"):  # it answers: 501, since it knows no GET
                return
    raise AssertionError("it did not start")


def test_the_sample_receiver_takes_each_message_once_and_only_ours(
    sample_receiver: tuple[str, Callable[[], list[str]]],
) -> None:
    url, heard = sample_receiver
    hook = Webhook(
        url,
        new_session(),
        [read_secret(OLD_SECRET), read_secret(SECRET)],
        batch=9,
        installation="",
        subscription="",
    )
    assert hook.send([message(1), message(2)]) == {}
    assert hook.send([message(1)]) == {}
    assert heard() == [f"transfer.done /store/user/alice/out_{number}.root" for number in (1, 2)]
    with pytest.raises(NotLetIn):
        webhook(url, OLD_SECRET).send([message(3)])
    webhook(url).send([message(3)])
    assert len(heard()) == 2, "this one was sent long ago"


def test_the_schema_is_that_of_the_model() -> None:
    kept = (DOCS / "webhooks.schema.json").read_text()
    assert kept == schema(), "aso subscriptions schema > docs/reference/webhooks.schema.json"
    message_schema = json.loads(kept)["$defs"]["Message"]
    assert set(message_schema["properties"]) == set(Message.model_fields)
