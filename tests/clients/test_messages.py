"""FTS's messages: recorded ones are read right, odd ones do no harm, and a real broker carries them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg import Connection

from asyncstageout.catalogue.sensing import staged_reports
from asyncstageout.clients.messages import COMPLETE, STATE, Broker, FileNotice, MessageFeed, read_message
from asyncstageout.core.planning import PlannedJob
from asyncstageout.sandbox.fts.messages import Publisher, complete_message, state_message
from asyncstageout.sandbox.fts.service import Options
from asyncstageout.sandbox.layout import free_port
from asyncstageout.steps.notices import heed
from asyncstageout.steps.update_catalogue import update_catalogue
from fixtures.catalogue import Add, Plan, assert_audited, record, states
from fixtures.cycles import House, jobs_at_fts

RECORDINGS = Path(__file__).parents[1] / "contract" / "messages"
DEADLINE_S = 30


def recorded(name: str) -> list[dict[str, Any]]:
    lines = (RECORDINGS / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def read(message: dict[str, Any], **changes: Any) -> FileNotice | None:
    return read_message(message["destination"], json.dumps(message["body"] | changes) + "\x04")


def first(name: str, topic: str, **fields: Any) -> dict[str, Any]:
    return next(
        message
        for message in recorded(name)
        if message["destination"] == topic and fields.items() <= message["body"].items()
    )


# --- recorded from a real FTS ---


def test_recorded_messages_of_a_normal_run() -> None:
    said = [notice for message in recorded("monitoring-messages") if (notice := read(message))]
    assert [notice.file_state for notice in said] == ["FAILED", "FAILED", "FINISHED", "FINISHED"]
    assert {notice.job_id for notice in said} == {UUID("8069e1b6-e653-11f1-8666-02fc00000001")}
    assert {notice.transfer_id for notice in said} == {None}, "not submitted by us"
    assert said[-1].file_id == 8872519857
    assert said[-1].said_at == datetime(2026, 11, 22, 9, 2, 56, 344000, UTC)


def test_recorded_messages_of_a_cancel() -> None:
    said = [notice.file_state for message in recorded("monitoring-cancel") if (notice := read(message))]
    assert said == ["FAILED", "CANCELED"], "the abort of the copy, then the state"


@pytest.mark.parametrize("end", ["\x04", " ", "", "\x00\n"])
def test_the_byte_too_many_is_taken_off(end: str) -> None:
    message = first("monitoring-messages", STATE, file_state="FINISHED")
    text = json.dumps(message["body"])
    assert read_message(STATE, text + end) == read_message(STATE, (text + end).encode())
    assert read_message(STATE, text + end) is not None


def test_our_number_is_in_the_metadata() -> None:
    message = first("monitoring-messages", COMPLETE, t_final_transfer_state="Ok")
    notice = read(message, file_metadata={"id": 7, "attempt": 1})
    assert notice is not None
    assert (notice.transfer_id, notice.file_state) == (7, "FINISHED")
    for foreign in ("", None, [], {"id": "7"}, {"id": True}, {"other": 7}, "text"):
        notice = read(message, file_metadata=foreign)
        assert notice is not None
        assert notice.transfer_id is None


def test_a19_a_copy_that_is_being_archived_is_not_done() -> None:
    assert (
        read(first("monitoring-messages", COMPLETE, t_final_transfer_state="Ok"), is_archiving=True) is None
    )


def test_a_try_that_fts_repeats_is_not_the_end() -> None:
    failed = first("monitoring-messages", COMPLETE, t_final_transfer_state="Error")
    assert read(failed, is_recoverable=True, retry=0, retry_max=2) is None
    for final in ({"is_recoverable": False}, {"is_recoverable": True, "retry": 2, "retry_max": 2}):
        notice = read(failed, **final)
        assert notice is not None
        assert notice.file_state == "FAILED"
    assert read(failed, job_multihop=True) is None
    assert read(failed, job_m_replica=True) is None


@pytest.mark.parametrize(
    "body",
    ["", "\x04", "{", "[]", "null", "7", '"x"', "{}", '{"file_state": "FINISHED"}', b"\xff\xfe", "<html>"],
)
def test_a18_nonsense_is_no_notice(body: str | bytes) -> None:
    assert read_message(STATE, body) is None
    assert read_message(COMPLETE, body) is None
    assert read_message("/topic/other", body) is None


@pytest.mark.parametrize("topic", [STATE, COMPLETE])
def test_a18_every_field_may_be_missing_or_odd(topic: str) -> None:
    message = first("monitoring-messages", topic, **({"file_state": "FINISHED"} if topic == STATE else {}))
    for name in message["body"]:
        without = {key: value for key, value in message["body"].items() if key != name}
        for body in (without, *(message["body"] | {name: odd} for odd in (None, [], "x", 10**400, -1))):
            read_message(topic, json.dumps(body))  # raises nothing


def test_brokers() -> None:
    broker = Broker.of("stomp+ssl://aso@broker.test:61123", password="secret")
    assert (broker.host, broker.port, broker.tls, broker.user) == ("broker.test", 61123, True, "aso")
    assert "secret" not in repr(broker)
    assert str(broker) == "broker.test:61123"
    assert Broker.of("stomp://127.0.0.1").port == 61613
    for wrong in ("https://broker.test", "broker.test:61613", "stomp://", ""):
        with pytest.raises(ValueError, match="not stomp"):
            Broker.of(wrong)


# --- what they change ---


@pytest.fixture
def job(add: Add, submitted: Plan, conn: Connection) -> PlannedJob:
    add(record(1), record(2), record(3))
    (planned,) = submitted()
    conn.execute(
        "UPDATE fts_job SET polled_at = now() - interval '1 min', next_poll_at = now() + interval '1 min'"
    )
    return planned


def fts_id(conn: Connection) -> UUID:
    row = conn.execute("SELECT job_id FROM fts_job ORDER BY planned_at DESC LIMIT 1").fetchone()
    assert row is not None
    return UUID(str(row[0]))


def notice_of(job_id: UUID, transfer_id: int | None, file_state: str = "FINISHED") -> FileNotice:
    return FileNotice(job_id, file_state, "ACTIVE", transfer_id, 1, datetime.now(UTC))


def is_due(conn: Connection) -> bool:
    row = conn.execute("SELECT next_poll_at <= now() FROM fts_job").fetchone()
    return bool(row and row[0])


def settle(conn: Connection, notices: list[FileNotice], step: int) -> int:
    now = datetime.now(UTC)
    heard = heed(conn, notices, now=now)
    update_catalogue(conn, now=now, step_run=step)
    return heard


def test_a_file_that_arrived_is_done_without_a_poll(conn: Connection, job: PlannedJob, step: int) -> None:
    one = notice_of(fts_id(conn), job.transfer_ids[0])
    assert settle(conn, [one, one], step) == 1, "CO and SS say the same"
    assert settle(conn, [one], step) == 0, "A18: a duplicate later"
    assert states(conn) == {"DONE": 1, "SUBMITTED": 2}
    assert not is_due(conn)
    assert_audited(conn)


@pytest.mark.parametrize("file_state", ["FAILED", "CANCELED"])
def test_a_file_that_failed_has_its_job_polled(
    conn: Connection, job: PlannedJob, step: int, file_state: str
) -> None:
    assert settle(conn, [notice_of(fts_id(conn), job.transfer_ids[0], file_state)], step) == 0
    assert states(conn) == {"SUBMITTED": 3}
    assert is_due(conn)


def test_a_file_without_our_number_has_its_job_polled(conn: Connection, job: PlannedJob, step: int) -> None:
    assert settle(conn, [notice_of(fts_id(conn), None)], step) == 0
    assert is_due(conn)


def test_a_job_is_not_polled_over_and_over(conn: Connection, job: PlannedJob) -> None:
    now = datetime.now(UTC)
    conn.execute("UPDATE fts_job SET polled_at = %s", (now,))
    heed(conn, [notice_of(fts_id(conn), None, "FAILED")], now=now)
    row = conn.execute("SELECT next_poll_at - %s FROM fts_job", (now,)).fetchone()
    assert row == (timedelta(seconds=2),)


def test_a18_messages_of_others_change_nothing(conn: Connection, job: PlannedJob, step: int) -> None:
    """Of another's job; of our job and another's file; of a file that does not exist."""
    foreign = [notice_of(uuid4(), job.transfer_ids[0]), notice_of(fts_id(conn), 10**9)]
    assert settle(conn, foreign, step) == 0
    assert settle(conn, [], step) == 0
    assert states(conn) == {"SUBMITTED": 3}


def test_a18_a_message_before_the_commit_of_the_submission(
    conn: Connection, add: Add, plan: Plan, step: int
) -> None:
    add(record(1))
    (planned,) = plan()
    assert settle(conn, [notice_of(uuid4(), planned.transfer_ids[0])], step) == 0
    assert states(conn) == {"ACQUIRED": 1}


def test_a18_a_message_of_an_older_attempt(
    conn: Connection, job: PlannedJob, submitted: Plan, step: int
) -> None:
    old = fts_id(conn)
    settle(conn, [notice_of(old, job.transfer_ids[0])], step)
    conn.execute("UPDATE transfer SET fts_job = NULL, state = 'NEW', due_at = now() - interval '1 s'"
                 " WHERE state = 'SUBMITTED'")  # fmt: skip
    submitted()
    assert settle(conn, [notice_of(old, job.transfer_ids[1])], step) == 0
    assert states(conn) == {"DONE": 1, "SUBMITTED": 2}


# --- the sandbox sends what a real FTS sends ---


def test_the_sandbox_sends_the_same_fields(house: House, add: Add) -> None:
    add(record(1))
    house.run_cycle()
    house.finish_at_fts()
    (job,) = jobs_at_fts(house)
    now_s = datetime.now(UTC).timestamp()
    state = first("monitoring-messages", STATE, file_state="FINISHED")["body"]
    complete = first("monitoring-messages", COMPLETE, t_final_transfer_state="Ok")["body"]
    for made, real in (
        (state_message(job, job.files[0], now_s), state), (complete_message(job, job.files[0], now_s), complete),
    ):  # fmt: skip
        assert made.keys() == real.keys()
        for name in real.keys() - {"file_metadata", "job_metadata"}:
            assert isinstance(
                made[name], type(real[name]) | (int if type(real[name]) is float else type(None))
            ), name


def test_a_failed_try_says_its_reason_in_parts(house: House, add: Add) -> None:
    house.set_faults(files=[{"path": "out_1.root", "reason": "SOURCE [2] No such file or directory"}])
    add(record(1))
    house.run_cycle()
    house.finish_at_fts()
    (job,) = jobs_at_fts(house)
    body = complete_message(job, job.files[0], 0)
    real = first("monitoring-messages", COMPLETE, t_final_transfer_state="Error")["body"]
    for name in ("tr_error_scope", "t_error_code", "t__error_message", "t_final_transfer_state",
                 "t_final_transfer_state_flag", "is_recoverable", "retry", "retry_max"):  # fmt: skip
        assert body[name] == real[name], name


# --- a real broker ---

ACTIVEMQ = Path("/usr/share/activemq/bin/activemq.jar")
CONFIGURATION = """<beans xmlns="http://www.springframework.org/schema/beans"
  xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"
  xsi:schemaLocation="http://www.springframework.org/schema/beans
  http://www.springframework.org/schema/beans/spring-beans-2.0.xsd
  http://activemq.apache.org/schema/core http://activemq.apache.org/schema/core/activemq-core.xsd">
  <broker xmlns="http://activemq.apache.org/schema/core" useJmx="false" persistent="false" brokerName="test">
    <plugins><simpleAuthenticationPlugin anonymousAccessAllowed="true"><users>
      <authenticationUser username="aso" password="secret" groups="users"/>
    </users></simpleAuthenticationPlugin></plugins>
    <transportConnectors><transportConnector name="stomp" uri="stomp://127.0.0.1:{port}"/></transportConnectors>
  </broker>
</beans>
"""


class ActiveMQ:
    """A broker of Debian's package, on a loopback port, in a directory of its own."""

    def __init__(self, folder: Path, port: int) -> None:
        self.port = port
        self._folder = folder
        self._configuration = folder / "activemq.xml"
        self._configuration.write_text(CONFIGURATION.format(port=port))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        home = ACTIVEMQ.parents[1]
        places = {"home": home, "base": self._folder, "conf": self._folder, "data": self._folder / "data"}
        with (self._folder / "activemq.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["java", "-Xmx128m", *(f"-Dactivemq.{name}={path}" for name, path in places.items()),
                 "-jar", str(ACTIVEMQ), "start", f"xbean:file:{self._configuration}"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait(DEADLINE_S)
            self._process = None

    @property
    def url(self) -> str:
        return f"stomp://aso@127.0.0.1:{self.port}"


@pytest.fixture
def activemq(tmp_path: Path) -> Iterator[ActiveMQ]:
    if not (ACTIVEMQ.exists() and shutil.which("java")) and not os.environ.get("CI"):
        pytest.skip("ActiveMQ is not installed (Debian package activemq)")
    broker = ActiveMQ(tmp_path, free_port())
    broker.start()
    yield broker
    broker.kill()


@pytest.fixture
def feed(activemq: ActiveMQ) -> Iterator[MessageFeed]:
    heard = MessageFeed(Broker.of(activemq.url, password="secret"), first_wait_s=0.2)
    assert heard.wait_subscribed(DEADLINE_S)
    yield heard
    heard.close()
    assert not heard.is_open


def heard_at_least(feed: MessageFeed, count: int) -> list[FileNotice]:
    taken: list[FileNotice] = []
    while len(taken) < count:
        assert feed.wait(DEADLINE_S), f"heard {taken} and no more"
        taken += feed.take()
    return taken


def publish(house: House, activemq: ActiveMQ) -> Publisher:
    """Have the house's FTS send messages."""
    publisher = Publisher(replace(Broker.of(activemq.url), user=None), lambda: datetime.now(UTC).timestamp())
    house.fts.fts.engine.on_change = publisher.changed
    return publisher


@pytest.mark.activemq
def test_a_real_broker_carries_files_from_fts_to_done(
    house: House, add: Add, activemq: ActiveMQ, feed: MessageFeed
) -> None:
    house.set_faults(files=[{"path": "out_2.root", "reason": "SOURCE [2] No such file or directory"}])
    add(record(1), record(2), record(3))
    publisher = publish(house, activemq)
    house.run_cycle()
    house.conn.execute("UPDATE fts_job SET next_poll_at = now() + interval '1 hour'")
    finish(house)
    notices = heard_at_least(feed, 6)
    publisher.close()
    assert heed(house.conn, notices, now=datetime.now(UTC)) == 2
    house.update()
    assert states(house.conn) == {"DONE": 2, "SUBMITTED": 1}
    assert is_due(house.conn), "the failed one"
    assert house.sense().news == 1
    house.update()
    assert states(house.conn) == {"DONE": 2, "FAILED": 1}
    assert_audited(house.conn)


def finish(house: House) -> None:
    """Let time pass at FTS until nothing is under way; its publisher goes on watching."""
    for _ in range(100):
        house.fts.tick(1)
        if house.fts.fts.call(house.fts.fts.engine.stats)["jobs"]["open"] == 0:
            return
    raise AssertionError("FTS does not come to an end")


@pytest.mark.activemq
def test_a20_what_was_said_while_the_broker_was_down_is_found_by_polling(
    house: House, add: Add, activemq: ActiveMQ, feed: MessageFeed, caplog: pytest.LogCaptureFixture
) -> None:
    add(record(1))
    publisher = publish(house, activemq)
    activemq.kill()
    house.run_cycle()
    finish(house)
    publisher.close()
    assert feed.take() == []
    assert house.sense().news == 1
    house.update()
    assert states(house.conn) == {"DONE": 1}
    assert feed.wait_lost(DEADLINE_S), "it noticed"
    activemq.start()
    assert feed.wait_subscribed(DEADLINE_S), "it listens again by itself"
    assert staged_reports(house.conn) == 0


@pytest.mark.activemq
def test_a_wrong_password_is_logged_and_tried_again(
    activemq: ActiveMQ, caplog: pytest.LogCaptureFixture
) -> None:
    right = MessageFeed(Broker.of(activemq.url, password="secret"), first_wait_s=0.2)
    assert right.wait_subscribed(DEADLINE_S), "the broker is up"
    right.close()
    feed = MessageFeed(Broker.of(activemq.url, password="wrong"), first_wait_s=0.2)
    assert not feed.wait_subscribed(1.0)
    assert feed.is_open
    feed.close()
    assert "polling goes on" in caplog.text
    assert "wrong" not in caplog.text.replace("wrong_password", "")


def test_a_broker_that_is_away_is_only_logged(caplog: pytest.LogCaptureFixture) -> None:
    feed = MessageFeed(Broker.of(f"stomp://127.0.0.1:{free_port()}"), first_wait_s=0.01)
    assert not feed.wait(0.3)
    assert feed.take() == []
    assert feed.is_open
    feed.close()
    assert not feed.is_open
    assert "polling goes on" in caplog.text


def test_the_sandbox_starts_with_a_broker_that_is_away(tmp_path: Path) -> None:
    assert Options(state=tmp_path, broker="stomp://127.0.0.1:1").broker
