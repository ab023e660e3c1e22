"""Hook, triggers, sensor and operator, as Airflow meets them."""

from __future__ import annotations

import asyncio
import json
import os
import runpy
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers_manager import ProvidersManager
from airflow.sdk import Asset
from airflow.sdk.api.datamodels._generated import DagRunType
from airflow.triggers.base import TaskFailedEvent, TaskSuccessEvent

from asyncstageout.catalogue.bell import ring
from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.cycles import CycleParams
from asyncstageout.catalogue.fts_servers import add_server, note_contact, set_state
from asyncstageout.clients.credentials.model import Credential, CredentialMissing
from asyncstageout.clients.messages import FileNotice, MessageFeed
from asyncstageout.core.identities import Identity
from asyncstageout.provider import cycle, get_provider_info, triggers
from asyncstageout.provider.assets import FTS_JOBS
from asyncstageout.provider.fts_clients import HookClients, NotConfigured
from asyncstageout.provider.hooks import FTSHook
from asyncstageout.provider.messages import feed_of
from asyncstageout.provider.operators import CancelFTSJobsOperator, SubmitFTSJobsOperator
from asyncstageout.provider.running import cycle_params, run_step
from asyncstageout.provider.sensors import TRIGGER, OpenFTSJobsSensor
from asyncstageout.provider.triggers import OpenFTSJobsTrigger, PendingFilesTrigger
from asyncstageout.provider.web import fts_monitor
from asyncstageout.sandbox.layout import free_port
from asyncstageout.sandbox.tls import client_certificate
from asyncstageout.steps.recording import Summary
from fixtures.catalogue import Add, record, states
from fixtures.cycles import House, jobs_at_fts
from sandbox.harness import ALICE, BOB


@pytest.fixture
def connections(
    monkeypatch: pytest.MonkeyPatch,
    house: House,
    tls_folder: Path,
    catalogue_url: str,
) -> Iterator[House]:
    """Connections as a deployment gives them: in the environment, as JSON and as a URL."""
    pair = client_certificate(tls_folder, "alice", ALICE)
    host, port = house.fts.url.removeprefix("https://").split(":")
    fts = {
        "conn_type": "fts3",
        "host": host,
        "port": int(port),
        "extra": {
            "ca_file": str(tls_folder / "ca.pem"),
            "cert_file": str(pair.cert),
            "key_file": str(pair.key),
            "monitor_url": "https://monitor.example/fts3/ftsmon/",
        },
    }
    monkeypatch.setenv("AIRFLOW_CONN_FTS3_DEFAULT", json.dumps(fts))
    monkeypatch.setenv("AIRFLOW_CONN_FTS", json.dumps(fts))
    monkeypatch.setenv("AIRFLOW_CONN_STAGEOUT_DB", catalogue_url)
    return house


def task_instance(task_id: str = "sense") -> Any:
    return SimpleNamespace(dag_id="d", run_id="r", task_id=task_id, map_index=-1, try_number=1)


def test_the_connection_type_has_a_form() -> None:
    fields = {name for name in ProvidersManager().connection_form_widgets if name.startswith("extra__fts3__")}
    assert fields == {
        f"extra__fts3__{name}"
        for name in (
            "ca_file",
            "crl",
            "cert_file",
            "key_file",
            "vo",
            "monitor_url",
            "messages_url",
            "messages_password",
        )
    }
    info = get_provider_info()
    assert info["connection-types"][0]["hook-class-name"].endswith(".FTSHook")


def test_the_connection_test_says_who_we_are(connections: House) -> None:
    ok, message = FTSHook().test_connection()
    assert ok, message
    assert f"knows us as {ALICE} of testvo" in message


def test_the_connection_test_says_what_is_wrong(
    connections: House, monkeypatch: pytest.MonkeyPatch, tls_folder: Path
) -> None:
    whole = json.loads(os.environ["AIRFLOW_CONN_FTS3_DEFAULT"])
    nobody = whole | {"extra": {"ca_file": whole["extra"]["ca_file"]}}
    monkeypatch.setenv("AIRFLOW_CONN_FTS3_DEFAULT", json.dumps(nobody))
    assert FTSHook().test_connection() == (
        False, "FTS 3.13.4 answers but takes us for nobody: check the certificate or token",
    )  # fmt: skip
    monkeypatch.setenv("AIRFLOW_CONN_FTS3_DEFAULT", json.dumps(whole | {"port": 1}))
    ok, message = FTSHook().test_connection()
    assert not ok
    assert "127.0.0.1:1" in message
    monkeypatch.setenv("AIRFLOW_CONN_FTS3_DEFAULT", json.dumps(whole | {"host": ""}))
    assert "has no host" in FTSHook().test_connection()[1]
    monkeypatch.setenv("AIRFLOW_CONN_FTS3_DEFAULT", json.dumps(whole | {"extra": {"ca_file": "/no/such"}}))
    ok, message = FTSHook().test_connection()
    assert not ok
    assert "/no/such" in message


def test_the_monitor_page_of_a_job(connections: House, monkeypatch: pytest.MonkeyPatch) -> None:
    assert FTSHook().monitor_url("abc") == "https://monitor.example/fts3/ftsmon/#/job/abc"
    monkeypatch.setenv("AIRFLOW_CONN_FTS3_DEFAULT", json.dumps({"conn_type": "fts3", "host": "fts.cern.ch"}))
    assert FTSHook().monitor_url("abc") == "https://fts.cern.ch:8449/fts3/ftsmon/#/job/abc"
    assert FTSHook().endpoint == "https://fts.cern.ch:8446"
    assert fts_monitor("fts3_default", "abc") == FTSHook().monitor_url("abc")
    assert fts_monitor("no_such_server", "abc") is None


def test_submitting_a_shard(connections: House, add: Add) -> None:
    add(record(1), record(2))
    connections.collect()
    connections.group()
    shard = {"cycle_id": connections.cycle().cycle_id, "shard": 0, "label": "a → b", "largest": "x"}
    operator = SubmitFTSJobsOperator(task_id="submit", shard=shard)
    context: dict[str, Any] = {"ti": task_instance("submit")}
    result = operator.execute(context)
    assert (result["jobs"], result["files"]) == (1, 2)
    assert context["shard_label"] == "a → b: FTS accepted 1 jobs with 2 files", "the grid alone tells"
    room, monitor = (link.get_link(operator, ti_key=None) for link in operator.operator_extra_links)  # type: ignore[arg-type]
    (job,) = jobs_at_fts(connections)
    assert room == f"/plugin/stageout/stageout/ui/jobs/{job.job_id}"
    assert monitor == f"https://monitor.example/fts3/ftsmon/#/job/{job.job_id}"
    assert operator.execute(context)["jobs"] == 0, "again: nothing"
    assert len(jobs_at_fts(connections)) == 1
    row = connections.conn.execute(
        "SELECT dag_id, run_id, actor, outcome FROM step_run WHERE task_id = 'submit' ORDER BY id LIMIT 1"
    ).fetchone()
    assert row == ("d", "r", "airflow", "success")


def test_a_label_fits_into_airflows_database(connections: House) -> None:
    context = {"ti": task_instance("submit"), "part": "T2_IT_Bari"}
    run_step(context, lambda conn, _: Summary("very " * 100), label="part")
    assert len(context["part"]) == 250
    assert context["part"].startswith("T2_IT_Bari: very ")


def test_an_event_of_an_asset_says_what_the_step_did(connections: House) -> None:
    events: dict[Asset, Any] = {FTS_JOBS: SimpleNamespace(extra={})}
    context = {"ti": task_instance("summarise"), "outlet_events": events}
    run_step(context, lambda conn, _: Summary("2 jobs", {"jobs": 2}), outlet=FTS_JOBS)
    assert events[FTS_JOBS].extra == {"sentence": "2 jobs", "jobs": 2}


def test_tasks_lead_to_the_room(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = runpy.run_path(str(Path(__file__).parents[2] / "plugins/stageout.py"))["StageoutPlugin"]
    (link,) = plugin.global_operator_extra_links
    key = SimpleNamespace(dag_id="stageout_clean", run_id="scheduled__2026-11-27T10:00:00+00:00")
    place = "/plugin/stageout/stageout/ui/runs/stageout_clean/scheduled__2026-11-27T10%3A00%3A00%2B00%3A00"
    assert link.get_link(None, ti_key=key) == place
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example/prefix/")
    assert link.get_link(None, ti_key=key) == f"/prefix{place}"
    assert link.get_link(None, ti_key=SimpleNamespace(dag_id="theirs", run_id="r")) == "", "not ours"


def test_cancelling_jobs(connections: House, add: Add) -> None:
    add(record(1))
    connections.run_cycle()
    (job,) = jobs_at_fts(connections)
    operator = CancelFTSJobsOperator(task_id="cancel", job_ids=[str(job.job_id)])
    assert operator.execute({}) == {str(job.job_id): "CANCELED"}


async def _first(trigger: Any) -> Any:
    events = trigger.run()
    try:
        return await asyncio.wait_for(anext(events), 20)
    finally:
        await events.aclose()


def watch(**options: Any) -> OpenFTSJobsTrigger:
    trigger = OpenFTSJobsTrigger("stageout_db", linger_s=0.0, pause_s=0.01, **options)
    trigger._task_instance = task_instance()
    return trigger


def test_triggers_come_back_as_they_were() -> None:
    for trigger in (watch(shift_s=7.0), PendingFilesTrigger("stageout_db", quiet_s=0.5)):
        path, arguments = trigger.serialize()
        module, name = path.rsplit(".", 1)
        again = getattr(import_module(module), name)(**arguments)
        assert again.serialize() == trigger.serialize()
    assert watch().serialize()[0] == TRIGGER
    assert json.dumps(watch().serialize()[1])


def test_a_watch_ends_with_the_news(connections: House, add: Add) -> None:
    add(record(1), record(2))
    connections.run_cycle()
    connections.finish_at_fts()
    event = asyncio.run(_first(watch()))
    assert isinstance(event, TaskSuccessEvent)
    assert event.xcoms is not None
    assert event.xcoms["return_value"]["news"] == 2
    connections.update()
    assert states(connections.conn) == {"DONE": 2}


def test_a_silent_watch_ends_with_its_shift(connections: House) -> None:
    event = asyncio.run(_first(watch(shift_s=0.05)))
    assert isinstance(event, TaskSuccessEvent)
    assert event.xcoms is not None
    assert event.xcoms["return_value"]["news"] == 0


def test_what_was_staged_and_not_applied_is_news(connections: House, add: Add) -> None:
    add(record(1))
    connections.run_cycle()
    connections.finish_at_fts()
    connections.sense()
    event = asyncio.run(_first(watch(shift_s=3600.0)))
    assert isinstance(event, TaskSuccessEvent)


def test_a_watch_that_never_got_an_answer_is_red(connections: House, add: Add) -> None:
    add(record(1))
    connections.run_cycle()
    connections.set_faults(api=[{"action": "status", "status": 503, "body": "<html>", "path": "/jobs/.*"}])
    event = asyncio.run(_first(watch(shift_s=0.05)))
    assert isinstance(event, TaskFailedEvent)
    row = connections.conn.execute(
        "SELECT outcome, sentence FROM step_run WHERE task_id = 'sense'"
    ).fetchone()
    assert row is not None
    assert row[0] == "failed"
    assert "503" in row[1]


def test_the_loop_is_not_blocked_while_fts_is_slow(connections: House, add: Add) -> None:
    add(record(1))
    connections.run_cycle()
    connections.set_faults(api=[{"action": "latency", "latency_s": 0.5, "path": "/jobs/.*", "count": 1}])

    async def beat_beside() -> int:
        waiting = asyncio.create_task(_first(watch(shift_s=0.2)))
        beats = 0
        while not waiting.done():
            await asyncio.sleep(0.01)
            beats += 1
        await waiting
        return beats

    assert asyncio.run(beat_beside()) >= 10


def test_the_bell_rings_at_start_and_on_arrival(connections: House, catalogue_url: str) -> None:
    async def two_rings() -> None:
        events = PendingFilesTrigger("stageout_db", quiet_s=0.01).run()
        await asyncio.wait_for(anext(events), 20)
        second = asyncio.create_task(anext(events))  # type: ignore[arg-type]
        while not second.done():
            # The listener may not listen yet: ring until it does.
            await asyncio.to_thread(_ring, catalogue_url)
            await asyncio.wait([second], timeout=0.05)
        await second
        await events.aclose()

    asyncio.run(asyncio.wait_for(two_rings(), 20))


def _ring(url: str) -> None:
    with connect(url) as own:
        ring(own)


def test_the_bell_rings_when_a_retry_becomes_due(connections: House, add: Add) -> None:
    add(record(1))
    connections.conn.execute("UPDATE transfer SET due_at = now() + interval '0.4 seconds'")

    async def due_ring() -> None:
        events = PendingFilesTrigger("stageout_db", quiet_s=0.01).run()
        await anext(events)
        await anext(events)
        await events.aclose()

    asyncio.run(asyncio.wait_for(due_ring(), 20))


def test_the_sensor_lives_in_the_triggerer_or_pokes(connections: House, add: Add) -> None:
    sensor = OpenFTSJobsSensor(task_id="sense")
    assert sensor.start_from_trigger
    assert sensor.start_trigger_args.trigger_cls == TRIGGER
    assert sensor.start_trigger_args.timeout is not None
    poking = OpenFTSJobsSensor(task_id="poke", deferrable=False)
    assert not poking.start_from_trigger
    add(record(1))
    connections.run_cycle()
    connections.conn.execute("UPDATE fts_job SET next_poll_at = now()")
    assert not poking.poke({})
    connections.finish_at_fts()
    connections.conn.execute("UPDATE fts_job SET next_poll_at = now()")
    assert poking.poke({})


class HeardFeed:
    """A feed that has heard what it is given."""

    def __init__(self, *notices: FileNotice) -> None:
        self.notices = list(notices)

    def take(self) -> list[FileNotice]:
        taken, self.notices = self.notices, []
        return taken

    def wait(self, _timeout_s: float) -> bool:
        return bool(self.notices)


def test_a_watch_ends_with_news_from_messages(
    connections: House, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FTS does not answer at all, and what its messages say is applied all the same."""
    add(record(1), record(2))
    connections.run_cycle()
    rows = connections.conn.execute(
        "SELECT t.id, j.job_id FROM transfer t JOIN fts_job j ON j.sid = t.fts_job"
    )
    feed = HeardFeed(
        *(FileNotice(job_id, "FINISHED", "ACTIVE", number, 1, datetime.now(UTC)) for number, job_id in rows)
    )
    monkeypatch.setattr(triggers, "feed_of", lambda _: feed)
    connections.set_faults(api=[{"action": "status", "status": 503, "body": "<html>", "path": "/jobs/.*"}])
    event = asyncio.run(_first(watch()))
    assert isinstance(event, TaskSuccessEvent)
    assert event.xcoms is not None
    assert event.xcoms["return_value"]["news"] == 2
    connections.update()
    assert states(connections.conn) == {"DONE": 2}


def test_the_feed_of_a_connection(connections: House, caplog: pytest.LogCaptureFixture) -> None:
    connection = FTSHook().connection
    assert feed_of(connection) is None, "no broker, no feed"

    def with_url(url: str) -> MessageFeed | None:
        connection.extra = json.dumps({"messages_url": url, "messages_password": "secret"})
        return feed_of(connection)

    assert with_url("https://broker.test") is None
    assert "not stomp+ssl://user@host:port" in caplog.text
    feed = with_url(f"stomp://aso@127.0.0.1:{free_port()}")
    assert feed is not None
    assert feed_of(connection) is feed, "it outlives a watch"
    assert feed.broker.password == "secret"
    feed.close()
    again = feed_of(connection)
    assert again is not None
    assert again is not feed
    again.close()


def test_the_last_look_finds_what_ended_meanwhile(connections: House, add: Add) -> None:
    add(record(1))
    connections.run_cycle()
    connections.finish_at_fts()
    context: dict[str, Any] = {"ti": task_instance("update_catalogue")}
    assert cycle.update_catalogue(context)["done"] == 1
    assert states(connections.conn) == {"DONE": 1}


def test_the_last_look_is_no_condition(connections: House, add: Add) -> None:
    add(record(1))
    connections.run_cycle()
    connections.finish_at_fts()
    connections.sense()
    connections.set_faults(api=[{"action": "status", "status": 503, "body": "<html>", "path": "/jobs/.*"}])
    connections.conn.execute("UPDATE fts_job SET next_poll_at = now()")
    context: dict[str, Any] = {"ti": task_instance("update_catalogue")}
    assert cycle.update_catalogue(context)["done"] == 1


# --- several servers ---


@pytest.fixture
def beside(connections: House, monkeypatch: pytest.MonkeyPatch) -> House:
    """A second server, ``other``, whose connection leads nowhere, with a job of its own."""
    whole = json.loads(os.environ["AIRFLOW_CONN_FTS"])
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", json.dumps(whole | {"port": free_port()}))
    add_server(connections.conn, "other", by="test")
    set_state(connections.conn, "other", "draining", reason=None, by="test")
    return connections


def job_at(house: House, add: Add, server: str, number: int) -> None:
    add(record(number))
    house.run_cycle(f"run {number}")
    house.conn.execute(
        "UPDATE fts_job SET fts_server = %s WHERE sid = (SELECT fts_job FROM transfer ORDER BY id DESC LIMIT 1)",
        (server,),
    )


def test_a_silent_server_delays_no_news_of_others(beside: House, add: Add) -> None:
    job_at(beside, add, "other", 1)
    job_at(beside, add, "fts", 2)
    beside.finish_at_fts()
    event = asyncio.run(_first(watch(shift_s=3600.0)))
    assert isinstance(event, TaskSuccessEvent), "it is not known for long enough"
    assert event.xcoms is not None
    assert event.xcoms["return_value"]["news"] == 1


def test_a_server_that_is_silent_for_a_whole_shift_is_named(beside: House, add: Add) -> None:
    job_at(beside, add, "other", 1)
    job_at(beside, add, "fts", 2)
    event = asyncio.run(_first(watch(shift_s=0.05)))
    assert isinstance(event, TaskFailedEvent)
    assert event.xcoms is not None
    assert event.xcoms["return_value"]["sentence"].startswith(
        "other gave no answer for 0 s, 1 file are there"
    )


def test_what_others_say_does_not_hide_a_silent_server(beside: House, add: Add) -> None:
    """Red once in the time of a shift, however often there is news; the news are applied all the same."""
    job_at(beside, add, "other", 1)
    job_at(beside, add, "fts", 2)
    beside.finish_at_fts()
    note_contact(beside.conn, "other", "silent", datetime.now(UTC) - timedelta(seconds=200), refused=True)
    beside.conn.execute("UPDATE fts_server_health SET checked_at = now() WHERE name = 'other'")
    first = asyncio.run(_first(watch(shift_s=120.0)))
    assert isinstance(first, TaskFailedEvent)
    assert first.xcoms is not None
    assert first.xcoms["return_value"]["sentence"].startswith("other gave no answer for 120 s")
    second = asyncio.run(_first(watch(shift_s=120.0)))
    assert isinstance(second, TaskSuccessEvent)
    beside.update()
    assert states(beside.conn) == {"DONE": 1, "SUBMITTED": 1}


def test_a_server_without_a_connection_is_named(
    beside: House, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_at(beside, add, "other", 1)
    monkeypatch.delenv("AIRFLOW_CONN_OTHER")
    event = asyncio.run(_first(watch(shift_s=0.05)))
    assert isinstance(event, TaskFailedEvent)
    assert event.xcoms is not None
    assert "Make or mend the Airflow connection" in event.xcoms["return_value"]["sentence"]


class Folder:
    """Credentials of one user."""

    def __init__(self, credential: Credential) -> None:
        self._credential = credential

    def credential(self, identity: Identity) -> Credential:
        if identity != self._credential.identity:
            raise CredentialMissing(identity, "no such file")
        return self._credential

    renew = None


def test_clients_by_server_and_identity(connections: House, tls_folder: Path) -> None:
    pair = client_certificate(tls_folder, "bob", BOB)
    identity = Identity("bob", "othervo")
    own = Credential(
        identity, "x509", BOB, datetime.now(UTC), cert_file=str(pair.cert), key_file=str(pair.key)
    )
    with HookClients({"fts": "testvo"}, source=lambda: Folder(own)) as clients:  # type: ignore[arg-type,return-value]
        service = clients.client("fts", "service")
        assert clients.client("fts", "service") is service
        assert service.vo == "testvo"
        bob = clients.client("fts", "bob@othervo")
        assert bob.vo == "othervo"
        assert bob.whoami().user_dn == BOB
        assert clients.storage_tokens("bob@othervo") is None
        with pytest.raises(CredentialMissing):
            clients.client("fts", "carol")
        with pytest.raises(NotConfigured, match="aso servers"):
            clients.client("nowhere", "service")
    with HookClients({}, source=lambda: None) as clients, pytest.raises(CredentialMissing):
        clients.client("fts", "bob")


def test_a_backfill_takes_its_window_as_airflow_says_it() -> None:
    """The run's type is an enumeration in a task, whose text is not its value."""
    now = datetime.now(UTC)
    dag_run = SimpleNamespace(
        run_type=DagRunType.BACKFILL, data_interval_start=now, data_interval_end=now + timedelta(minutes=1)
    )
    context: dict[str, Any] = {"dag_run": dag_run, "params": {"username": None, "limit": 5}}
    assert cycle_params(context) == CycleParams(
        limit=5, created_from=now, created_to=now + timedelta(minutes=1)
    )
    dag_run.run_type = DagRunType.SCHEDULED
    assert cycle_params(context) == CycleParams(limit=5)
