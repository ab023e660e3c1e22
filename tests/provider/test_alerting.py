"""Channels as a deployment has them: real SMTP over TCP, HTTPS receivers; callbacks; a silent catalogue."""

from __future__ import annotations

import json
import logging
import ssl
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from psycopg import Connection

from asyncstageout.catalogue.attention import attention
from asyncstageout.catalogue.fts_servers import note_contact
from asyncstageout.catalogue.partitions import ensure_partitions
from asyncstageout.clients.receivers import ContentRefused, Failing, NotLetIn, ReceiverError
from asyncstageout.clients.webhook import read_secret, signed
from asyncstageout.core.alert_channels import VARIABLE, AnyChannel, read_channels
from asyncstageout.core.alert_texts import AlertBatch
from asyncstageout.core.alerts import About, Kind, Notice, Severity
from asyncstageout.provider import alerting, watched
from asyncstageout.provider.alert_channels import opened
from asyncstageout.sandbox.layout import free_port
from asyncstageout.steps.alerts import ChannelsNeedAPerson
from clients.answering import AnsweringServer, Reply, answering
from clients.grid import Grid
from fixtures.mail import Mailbox, mail_server

NOW = datetime(2026, 11, 27, 8, tzinfo=UTC)
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
PATH = "services/T0/B0/very-secret"
BASE = "https://airflow.example.org"


def notice(number: int = 1, sentence: str = "FTS <is> {{ down }}", kind: Kind = Kind.OPEN) -> Notice:
    return Notice(
        number, number, kind, Severity.URGENT, sentence, "fts-server-down", "fts", "", About("server", ("fts",)),
        NOW, NOW + timedelta(hours=1) if kind is Kind.OVER else None,
    )  # fmt: skip


def channel(text: dict[str, Any]) -> AnyChannel:
    (found,), problems = read_channels(json.dumps([text]))
    assert problems == []
    return found


MAIL = channel(
    {"name": "mail", "kind": "mail", "to": ["ops@example.org", "olga@example.org"], "severity": "note"}
)
CHAT = channel({"name": "chat", "kind": "slack"})
HOOK = channel({"name": "hook", "kind": "webhook", "conn_id": "pager"})
MANY = channel({"name": "many", "kind": "apprise"})
NIGHT = channel({"name": "night", "kind": "apprise", "tags": ["night", "week"]})


@pytest.fixture(autouse=True)
def _base_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", BASE + "/")


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Grid:
    return Grid.make(tmp_path_factory.mktemp("grid"))


@pytest.fixture(scope="module")
def context(grid: Grid) -> ssl.SSLContext:
    pair = grid.person("localhost", hosts=("localhost",))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.cert, pair.key)
    return context


Connected = Callable[..., None]


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> Connected:
    def make(name: str, **fields: Any) -> None:
        monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", json.dumps({"host": "localhost"} | fields))

    return make


def tell(one: AnyChannel, *notices: Notice) -> None:
    opened(one, "an-installation").tell(notices or [notice()])


# --- mail ---


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    with mail_server(Mailbox()) as box:
        yield box


@pytest.fixture
def smtp(mailbox: Mailbox, connected: Connected) -> Connected:
    """Return what makes the connection to the mailbox, without TLS unless a test says otherwise."""

    def make(login: str | None = None, password: str | None = None, **extra: Any) -> None:
        said = {
            "disable_ssl": True,
            "disable_tls": True,
            "from_email": "stageout@example.org",
            "retry_limit": 0,
        }
        connected(
            "smtp_default", conn_type="smtp", port=mailbox.port, login=login, password=password,
            extra=json.dumps(said | {"timeout": 5} | extra),
        )  # fmt: skip

    return make


def test_a_mail_arrives(mailbox: Mailbox, smtp: Connected) -> None:
    smtp()
    tell(MAIL, notice(1), notice(2, "and this is over", Kind.OVER))
    ((sender, recipients),) = mailbox.envelopes
    assert sender == "stageout@example.org"
    assert recipients == ("ops@example.org", "olga@example.org")
    (mail,) = mailbox.mails
    assert mail["subject"] == "[stageout] urgent: FTS <is> {{ down }} (and 1 more)"
    assert mail["auto-submitted"] == "auto-generated"
    body = mail.get_body(("html",))
    assert body is not None
    text = body.get_content()
    assert "<b>URGENT</b> FTS &lt;is&gt; {{ down }}" in text, "nothing is executed as a template"
    assert f'<a href="{BASE}/stageout/ui/runbooks/fts-server-down.md">runbook</a>' in text
    assert f'<a href="{BASE}/stageout/ui/alerts/1">page</a>' in text
    assert "<b>OVER</b> and this is over" in text


def test_a_mail_that_is_sent_again_has_the_same_id(mailbox: Mailbox, smtp: Connected) -> None:
    smtp()
    mailbox.hangs_up_after_taking = 1
    with pytest.raises(Failing) as failed:
        tell(MAIL)
    assert failed.value.maybe_delivered
    tell(MAIL)
    first, second = mailbox.mails
    assert first["message-id"] == second["message-id"]
    tell(MAIL, notice(2))
    assert mailbox.mails[2]["message-id"] != first["message-id"]


def test_a_mail_over_tls_with_a_password(
    smtp: Connected, mailbox: Mailbox, context: ssl.SSLContext, grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    mailbox.context, mailbox.login = context, ("aso", "pass word")
    monkeypatch.setenv("SSL_CERT_FILE", str(grid.ca))
    smtp("aso", "pass word", disable_tls=False)
    tell(MAIL)
    assert len(mailbox.mails) == 1
    smtp("aso", "wrong", disable_tls=False)
    with pytest.raises(NotLetIn, match="SMTPAuthenticationError"):
        tell(MAIL)
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(NotLetIn, match="certificate verify failed"):
        tell(MAIL)


def test_what_goes_wrong_with_mail_says_whose_fault_it_is(
    smtp: Connected, mailbox: Mailbox, connected: Connected, monkeypatch: pytest.MonkeyPatch
) -> None:
    smtp()
    mailbox.refuses = frozenset(MAIL.to)  # type: ignore[union-attr]
    with pytest.raises(ContentRefused, match="nobody here"):
        tell(MAIL)
    smtp(from_email=None)
    with pytest.raises(NotLetIn, match="from_email"):
        tell(MAIL)
    connected(
        "smtp_default", conn_type="smtp", port=free_port(), extra='{"disable_ssl": true, "retry_limit": 0}'
    )
    with pytest.raises(Failing) as failed:
        tell(MAIL)
    assert not failed.value.maybe_delivered
    monkeypatch.delenv("AIRFLOW_CONN_SMTP_DEFAULT")
    with pytest.raises(NotLetIn, match="connection smtp_default"):
        tell(MAIL)


# --- chats and webhooks ---


@pytest.fixture
def receiver(context: ssl.SSLContext) -> Iterator[AnsweringServer]:
    with answering(lambda _: Reply(200, b"ok"), context) as server:
        yield server


@pytest.fixture
def port(receiver: AnsweringServer) -> int:
    return int(receiver.address.rpartition(":")[2])


def test_a_chat_over_tls(receiver: AnsweringServer, port: int, connected: Connected, grid: Grid) -> None:
    connected(
        "stageout_slack",
        conn_type="http",
        port=port,
        password=PATH,
        extra=json.dumps({"ca_file": str(grid.ca)}),
    )
    tell(CHAT)
    (asked,) = receiver.asked
    assert (asked.method, asked.path) == ("POST", f"/{PATH}")
    text = json.loads(asked.body)["text"]
    assert text.startswith("*URGENT* FTS &lt;is&gt; {{ down }} · since 2026-11-27 08:00 UTC")
    assert f"<{BASE}/stageout/ui/alerts/1|page>" in text


def test_a_chat_as_slacks_own_provider_has_it(
    receiver: AnsweringServer, port: int, connected: Connected, grid: Grid
) -> None:
    connected("stageout_slack", conn_type="slackwebhook", host=f"https://localhost:{port}/services/",
              password="T0/B0/very-secret", extra=json.dumps({"ca_file": str(grid.ca)}))  # fmt: skip
    tell(CHAT)
    assert receiver.asked[0].path == f"/{PATH}"


@pytest.mark.parametrize(
    ("status", "error"),
    [(404, NotLetIn), (400, ContentRefused), (429, Failing), (500, ReceiverError), (302, NotLetIn)],
)
def test_a_chat_that_refuses_and_whose_secret_stays_secret(  # noqa: PLR0917 - fixtures
    receiver: AnsweringServer,
    port: int,
    connected: Connected,
    grid: Grid,
    status: int,
    error: type[ReceiverError],
) -> None:
    receiver.respond = lambda _: Reply(status, b"no_service")
    connected(
        "stageout_slack",
        conn_type="http",
        port=port,
        password=PATH,
        extra=json.dumps({"ca_file": str(grid.ca)}),
    )
    with pytest.raises(error) as refused:
        tell(CHAT)
    assert "no_service" in refused.value.said
    assert "very-secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "it has no password"),
        ({"host": None, "password": PATH}, "it has no host"),
        ({"password": PATH, "schema": "http", "host": "chat.example.org"}, "over https only"),
        ({"password": PATH, "extra": '{"ca_file": "/no/such/file"}'}, "/no/such/file"),
        (None, "there is no such connection"),
    ],
)
def test_a_connection_that_cannot_be_used_is_named(
    connected: Connected, fields: dict[str, Any] | None, said: str
) -> None:
    if fields is not None:
        connected("stageout_slack", conn_type="http", **fields)
    with pytest.raises(NotLetIn) as wrong:
        opened(CHAT, "")
    assert wrong.value.said.startswith("connection stageout_slack: reading it failed: ")
    assert said in wrong.value.said
    assert "very-secret" not in str(wrong.value)


def test_a_webhook_is_signed(receiver: AnsweringServer, port: int, connected: Connected, grid: Grid) -> None:
    connected("pager", conn_type="http", port=port, password=SECRET,
              extra=json.dumps({"ca_file": str(grid.ca), "path": "/alerts"}))  # fmt: skip
    tell(HOOK, notice(1), notice(2))
    tell(HOOK, notice(1), notice(2))
    first, again = receiver.asked
    assert first.path == "/alerts"
    assert first.headers["webhook-id"] == again.headers["webhook-id"]
    stamp = int(first.headers["webhook-timestamp"])
    expected = signed([read_secret(SECRET)], first.headers["webhook-id"], stamp, first.body)
    assert first.headers["webhook-signature"] == expected["webhook-signature"]
    said = AlertBatch.model_validate_json(first.body)
    assert (said.installation, said.channel) == ("an-installation", "hook")
    assert [one.id for one in said.alerts] == ["alert-message-1", "alert-message-2"]
    assert said.alerts[0].runbook == f"{BASE}/stageout/ui/runbooks/fts-server-down.md"


# --- apprise ---


def services(connected: Connected, *config: Any) -> None:
    connected("apprise_default", host=None, conn_type="apprise", extra=json.dumps({"config": list(config)}))


def test_apprises_services_are_told_over_tls(
    receiver: AnsweringServer, port: int, connected: Connected, grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(grid.ca))
    services(connected, {"path": f"jsons://aso:very-secret@localhost:{port}/alerts"})
    tell(MANY, notice(1), notice(2, "and this is over", Kind.OVER))
    tell(MANY, notice(2, "and this is over", Kind.OVER))
    first, over = [json.loads(asked.body) for asked in receiver.asked]
    assert first["title"] == "[stageout] urgent: FTS <is> {{ down }} (and 1 more)"
    assert "FTS &lt;is&gt; {{ down }}" in first["message"]
    assert f"{BASE}/stageout/ui/alerts/1" in first["message"]
    assert (first["type"], over["type"]) == ("failure", "success")


def test_only_services_with_a_tag_of_the_channel_are_told(
    receiver: AnsweringServer, port: int, connected: Connected, grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(grid.ca))
    paths = {name: f"jsons://localhost:{port}/{name}" for name in ("day", "night", "week", "all")}
    tags: dict[str, Any] = {"day": "day", "night": "night", "week": ["week", "holidays"], "all": None}
    services(connected, *({"path": paths[name], "tag": tag} for name, tag in tags.items()))
    tell(NIGHT)
    assert {asked.path for asked in receiver.asked} == {"/night", "/week"}
    receiver.asked.clear()
    tell(MANY)
    assert {asked.path for asked in receiver.asked} == {"/day", "/night", "/week", "/all"}


@pytest.mark.parametrize("status", [404, 500])
def test_a_service_of_apprise_that_takes_nothing_is_told_again_and_its_secret_stays_secret(  # noqa: PLR0917 - fixtures
    receiver: AnsweringServer,
    port: int,
    connected: Connected,
    grid: Grid,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    status: int,
) -> None:
    services(connected, {"path": f"jsons://aso:very-secret@localhost:{port}/alerts"})
    with pytest.raises(Failing, match="task's log says which and why"), caplog.at_level(logging.INFO):
        tell(MANY)
    assert not receiver.asked, "its certificate is of an authority that nobody trusts"
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(grid.ca))
    receiver.respond = lambda _: Reply(status, b"no")
    with pytest.raises(Failing) as failed, caplog.at_level(logging.INFO):
        tell(MANY)
    assert str(status) in caplog.text
    assert "very-secret" not in caplog.text + str(failed.value)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (None, 'must be {"path": URL}'),
        ([], "config names no service"),
        ("{", "config is no JSON"),
        ({"path": 5}, 'must be {"path": URL}'),
        ({"path": "jsons://localhost/x", "tag": 5}, "tag must be"),
        ({"path": "nonsense://very-secret@localhost"}, "no service of the form of path 1"),
        (
            [
                {"path": "jsons://localhost/x"},
                {"path": "jsons://aso:very-secret@localhost/x?verify=no", "tag": "a"},
            ],
            "path 2 says verify=no",
        ),
        ({"path": "jsons://localhost/x", "tag": "day"}, "no service has the tag night or week"),
    ],
)
def test_a_connection_of_apprise_that_cannot_be_used_is_named(
    connected: Connected, caplog: pytest.LogCaptureFixture, config: Any, said: str
) -> None:
    connected("apprise_default", host=None, conn_type="apprise", extra=json.dumps({"config": config}))
    with pytest.raises(NotLetIn) as wrong:
        opened(NIGHT, "")
    assert wrong.value.said.startswith("connection apprise_default: reading it failed: ")
    assert said in wrong.value.said
    assert "very-secret" not in str(wrong.value) + caplog.text


def test_apprise_is_said_to_be_missing_where_it_is(
    connected: Connected, monkeypatch: pytest.MonkeyPatch
) -> None:
    services(connected, {"path": "jsons://localhost/x"})
    monkeypatch.setitem(sys.modules, "apprise", None)
    with pytest.raises(NotLetIn, match=r"pip install 'asyncstageout\[apprise\]'"):
        opened(MANY, "")


# --- the task ---


class FakeVariables:
    """Airflow's Variables as a task sees them."""

    def __init__(self, **values: str) -> None:
        self.values = values

    def get(self, key: str, default: Any = None, deserialize_json: bool = False) -> Any:
        found = self.values.get(key)
        return default if found is None else json.loads(found) if deserialize_json else found

    def set(self, key: str, value: Any, serialize_json: bool = False) -> None:
        self.values[key] = json.dumps(value) if serialize_json else value

    def delete(self, key: str) -> None:
        del self.values[key]


TASK = {
    "ti": SimpleNamespace(dag_id="stageout_alerts", run_id="r", task_id="watch", map_index=-1, try_number=1)
}


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch, catalogue_url: str) -> FakeVariables:
    found = FakeVariables()
    monkeypatch.setattr(alerting, "Variable", found)
    monkeypatch.setattr("asyncstageout.provider.alert_channels.Variable", found)
    monkeypatch.setenv("AIRFLOW_CONN_STAGEOUT_DB", catalogue_url)
    return found


def test_the_task_looks_and_tells(
    conn: Connection, variables: FakeVariables, smtp: Connected, mailbox: Mailbox
) -> None:
    now = datetime.now(UTC)
    ensure_partitions(conn, now.date())
    note_contact(conn, "fts", None, now)
    said = alerting.watch(TASK)["sentence"]
    assert said == (
        "0 alerts are open, 0 may heal yet, 0 are over. Nobody has to be told;"
        " nobody is ever told: there is no channel (docs/how-to/alerts.md)"
    )
    smtp()
    variables.values[VARIABLE] = json.dumps([json.loads(MAIL.model_dump_json()), {"name": "x"}])
    conn.execute(
        "INSERT INTO intake_object (source, name, digest, step_run, problem) VALUES ('inbox', 'o', '', 1, 'no NDJSON')"
    )
    with pytest.raises(ChannelsNeedAPerson, match="channel x: Unable to extract tag"):
        alerting.watch(TASK)
    assert [mail["subject"] for mail in mailbox.mails] == [
        "[stageout] warning: 1 object of source inbox put aside: no NDJSON"
    ]
    variables.values[VARIABLE] = json.dumps([json.loads(MAIL.model_dump_json())])
    said = alerting.watch(TASK)
    # That the run before failed is a finding of its own, which may heal yet: this run is well.
    assert (said["open"], said["told"]) == (1, 0)
    assert len(mailbox.mails) == 1


def test_a_silent_catalogue_is_told_without_it(
    variables: FakeVariables, smtp: Connected, mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    smtp()
    known = [MAIL]
    monkeypatch.setenv("AIRFLOW_CONN_STAGEOUT_DB", f"postgresql://u:hush@127.0.0.1:{free_port()}/x")
    variables.values[VARIABLE] = json.dumps([json.loads(MAIL.model_dump_json())])
    with pytest.raises(psycopg.OperationalError):
        alerting.watch(TASK)
    assert mailbox.mails == []
    (remembered,) = [json.loads(variables.values[alerting.SILENT_VARIABLE])]
    since = datetime.fromisoformat(remembered["since"])
    minute = timedelta(minutes=1)
    for minutes, mails in ((3, 0), (4, 1), (6, 1), (63, 1), (64, 2)):
        alerting.silent(known, "connection refused", since + minutes * minute)
        assert len(mailbox.mails) == mails, minutes
    alerting.answers(known, since + 70 * minute)
    alerting.answers(known, since + 72 * minute)
    assert [mail["subject"] for mail in mailbox.mails] == [
        "[stageout] urgent: The catalogue does not answer: connection refused",
        "[stageout] urgent, still: The catalogue does not answer: connection refused",
        "[stageout] over: The catalogue answers again",
    ]
    assert alerting.SILENT_VARIABLE not in variables.values
    alerting.silent(known, "blip", since)
    alerting.answers(known, since + minute)
    assert len(mailbox.mails) == 3, "nobody hears of a blip"


# --- what Airflow calls back ---


def sentences(conn: Connection) -> list[str]:
    rules = ("task-failed", "run-late", "step-failed")
    return [one.sentence for one in attention(conn, datetime.now(UTC)) if one.rule in rules]


def test_a_task_that_airflow_gives_up(conn: Connection, variables: FakeVariables) -> None:
    ti = SimpleNamespace(dag_id="stageout_kill", run_id="r1", task_id="approve", map_index=None)
    watched.task_failed({"ti": ti, "exception": TimeoutError("nobody\x00 answered")})
    watched.task_failed({"ti": ti})
    assert sentences(conn) == ["stageout_kill.approve failed: no reason"]
    conn.execute(
        "INSERT INTO step_run (dag_id, run_id, task_id, actor, ended_at, outcome, sentence)"
        " VALUES ('stageout_kill', 'r1', 'approve', 'airflow', now(), 'failed', 'its own words')"
    )
    assert sentences(conn) == ["stageout_kill.approve failed: its own words"], "once"
    conn.execute(
        "INSERT INTO step_run (dag_id, run_id, task_id, actor, ended_at, outcome)"
        " VALUES ('stageout_kill', 'r2', 'approve', 'airflow', now() + interval '1 s', 'success')"
    )
    assert sentences(conn) == []


def test_a_run_that_is_late(conn: Connection, variables: FakeVariables) -> None:
    run = {"dag_id": "stageout_transfer", "dag_run_id": "scheduled__1", "state": "running"}
    watched.run_is_late(minutes=30, context={"dag_run": run, "deadline": {"id": "x"}})
    assert sentences(conn) == ["stageout_transfer: run scheduled__1 is not over after 30 minutes (running)"]
    conn.execute("UPDATE airflow_report SET reported_at = now() - interval '31 min'")
    assert sentences(conn) == []


def test_a_callback_does_not_fail_with_the_catalogue(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_STAGEOUT_DB", f"postgresql://u:hush@127.0.0.1:{free_port()}/x")
    watched.run_is_late(minutes=1, context={"dag_run": {"dag_id": "d", "dag_run_id": "r", "state": "queued"}})
    assert "the catalogue does not answer" in caplog.text
    assert "hush" not in caplog.text
