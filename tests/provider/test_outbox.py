"""The tasks that deliver, with connections as a deployment gives them, to receivers that speak real HTTP."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from psycopg import Connection
from rucio.client import Client
from starlette.requests import Request
from starlette.testclient import TestClient

from api.crab_clients import CrabRest, PostJob, encoded
from asyncstageout.api.app import create_app
from asyncstageout.api.callers import APIHouse
from asyncstageout.api.limits import Limits, Rate
from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.pool import CataloguePool
from asyncstageout.catalogue.storages import put_sites
from asyncstageout.catalogue.subscriptions import subscriptions
from asyncstageout.catalogue.transitions import Move, apply_moves
from asyncstageout.clients import rucio_catalogue
from asyncstageout.clients.http import new_session
from asyncstageout.core.callers import Caller, Role
from asyncstageout.core.deliveries import Batch
from asyncstageout.core.failures import classify
from asyncstageout.core.states import TransferState
from asyncstageout.provider import outbox
from asyncstageout.provider.sources.crab import CRABSource
from asyncstageout.steps.deliver import DeliveryNeedsAPerson
from asyncstageout.steps.intake import Interval, collect
from clients.answering import AnsweringServer, Asked, Reply, answering
from conftest import PostgresServer
from contract.rucio.server import StandIn
from fixtures.catalogue import SITES, Add, Plan, record
from fixtures.receivers import make_due, subscribe

S = TransferState
NOW = datetime.now(UTC)
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
CONTEXT = {
    "ti": SimpleNamespace(dag_id="stageout_publish", run_id="r", task_id="deliver", map_index=0, try_number=1)
}
QUOTA = classify("TRANSFER [5] HTTP 507 : it's full, really")

Connect = Callable[..., None]


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch, catalogue_url: str) -> Connect:
    monkeypatch.setenv("AIRFLOW_CONN_STAGEOUT_DB", catalogue_url)

    def make(name: str, url: str, **fields: Any) -> None:
        scheme, _, address = url.partition("://")
        host, _, port = address.partition(":")
        conn = {"conn_type": "http", "schema": scheme, "host": host, "port": int(port)} | fields
        monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", json.dumps(conn))

    return make


@pytest.fixture
def ended(conn: Connection, submitted: Plan, step: int) -> Callable[..., list[int]]:
    """Bring what waits to its end: the first file fails, the others are done."""

    def end() -> list[int]:
        members = [(number, job.sid) for job in submitted() for number in job.transfer_ids]
        (failed, sid), *done = sorted(members)
        moves = [Move(failed, sid, S.FAILED, QUOTA), *(Move(one, job, S.DONE) for one, job in done)]
        apply_moves(conn, moves, step)
        return sorted(number for number, _ in members)

    return end


def deliver(name: str) -> dict[str, Any]:
    assert name in outbox.list_due(CONTEXT)
    return outbox.deliver(CONTEXT, name)


# --- webhook ---


def test_a_webhook_is_told_through_its_connection(
    conn: Connection, connected: Connect, add: Add, ended: Callable[..., list[int]]
) -> None:
    subscribe(conn, "hook")
    subscribe(conn, "nobody", username="bob")
    add(*(record(number) for number in range(3)))
    files = ended()
    with answering(lambda _asked: Reply(204)) as server:
        connected("hook", server.url, password=SECRET, extra={"path": "/told/here", "old_secret": SECRET})
        assert outbox.list_due(CONTEXT) == ["hook"]
        assert deliver("hook") == {
            "sentence": "hook: 3 messages delivered", "delivered": 3, "refused": 0, "dead": 0, "stopped": 0
        }  # fmt: skip
        (asked,) = server.asked
    assert asked.path == "/told/here"
    assert len(asked.headers["webhook-signature"].split()) == 2
    batch = Batch.model_validate_json(asked.body)
    assert [(one.data.number, one.state) for one in batch.messages] == list(
        zip(files, ["FAILED", "DONE", "DONE"], strict=True)
    )
    row = conn.execute("SELECT id::text FROM installation").fetchone()
    assert row == (batch.installation,)
    assert outbox.list_due(CONTEXT) == []
    sentences = conn.execute(
        "SELECT task_id, sentence FROM step_run WHERE dag_id IS NOT NULL ORDER BY id"
    ).fetchall()
    assert sentences[0] == ("deliver", "Something waits for hook")
    assert sentences[-1] == ("deliver", "Nothing waits for anybody")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "it has no password"),
        ({"password": "whsec_short"}, "is no base64"),
        ({"password": SECRET, "schema": "http", "host": "hook.example.org"}, "over https only"),
        ({"password": SECRET, "host": ""}, "it has no host"),
        ({"password": SECRET, "extra": {"crl": "x"}}, "crl is leaf, chain or empty"),
        ({"password": SECRET, "extra": {"ca_file": "/no/such"}}, "certificate authorities /no/such"),
        (None, "there is no such connection"),
    ],
)
def test_a_connection_that_is_wrong_is_said(
    conn: Connection, connected: Connect, add: Add, fields: dict[str, Any] | None, says: str
) -> None:
    subscribe(conn, "hook", events=["transfer:NEW"])
    add(record(0))
    if fields is not None:
        connected("hook", "https://127.0.0.1:1", **fields)
    with pytest.raises(DeliveryNeedsAPerson, match=f"connection hook: reading it failed: .*{says}") as raised:
        deliver("hook")
    assert SECRET not in str(raised.value)
    (view,) = subscriptions(conn)
    assert view.health is not None
    assert view.health.needs_person
    assert conn.execute("SELECT outcome FROM step_run ORDER BY id DESC LIMIT 1").fetchone() == ("failed",)


# --- Rucio ---


@pytest.fixture
def rucio(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[StandIn, AnsweringServer]]:
    monkeypatch.setattr(Client, "TOKEN_PATH_PREFIX", str(tmp_path / "token_"))
    stand_in = StandIn()
    with answering(stand_in.respond) as server:
        yield stand_in, server


def test_arrived_files_are_registered_in_rucio(
    conn: Connection,
    *,
    connected: Connect,
    add: Add,
    ended: Callable[..., list[int]],
    rucio: tuple[StandIn, AnsweringServer],
    step: int,
) -> None:
    stand_in, server = rucio
    subscribe(conn, "cms", kind="rucio")
    connected("cms", server.url, login="aso", password="secret", extra={"account": "aso"})
    add(*(record(number) for number in range(4)))
    files = ended()
    assert deliver("cms")["delivered"] == 3, "the file that failed is not at its destination"
    assert len(stand_in.replicas) == 3
    conn.execute(
        "INSERT INTO file_event (transfer_id, kind, from_state, to_state, subject, step_run)"
        " VALUES (%s, 'publication', 'ACQUIRED', 'DONE', '/A/alice-B/USER#1', %s)",
        (files[1], step),
    )
    assert deliver("cms")["delivered"] == 1
    assert stand_in.datasets[("user.alice", "/A/alice-B/USER#1")] == {
        ("user.alice", "/store/user/alice/mc/out_1.root")
    }
    assert len(stand_in.replicas) == 3


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "cert_file is missing"),
        ({"login": "aso"}, "password is missing"),
        ({"login": "aso", "password": "secret"}, "account is missing"),
        ({"extra": {"auth_type": "gss", "account": "aso"}}, "auth_type is userpass, x509, x509_proxy, not 'gss'"),
        ({"login": "aso", "password": "wrong", "extra": {"account": "aso"}}, "login failed: CannotAuthenticate"),
    ],
)  # fmt: skip
def test_who_cannot_log_in_to_rucio_needs_a_person(
    conn: Connection, *, connected: Connect, add: Add, ended: Callable[..., list[int]],
    rucio: tuple[StandIn, AnsweringServer], fields: dict[str, Any], says: str
) -> None:  # fmt: skip
    subscribe(conn, "cms", kind="rucio")
    connected("cms", rucio[1].url, **fields)
    add(record(0), record(1))
    ended()
    with pytest.raises(DeliveryNeedsAPerson, match=says):
        deliver("cms")


def test_without_rucio_clients_it_says_what_to_install(
    conn: Connection,
    connected: Connect,
    add: Add,
    ended: Callable[..., list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(rucio_catalogue, "import_module", missing)
    subscribe(conn, "cms", kind="rucio")
    connected("cms", "https://127.0.0.1:1", login="aso", password="secret", extra={"account": "aso"})
    add(record(0), record(1))
    ended()
    with pytest.raises(DeliveryNeedsAPerson, match=r"pip install 'asyncstageout\[rucio\]'"):
        deliver("cms")


# --- CRAB ---


async def _crabs_operator(_request: Request) -> Caller:
    return Caller("aso", Role.OPERATOR)


@pytest.fixture
def crab(postgres_server: PostgresServer, _catalogue_template: str) -> Iterator[tuple[Connection, str]]:
    """Another installation, whose CRAB interface is CRAB's REST to us: its catalogue, and its URL."""
    name, url = postgres_server.fresh_database(template=_catalogue_template)
    pool = CataloguePool(lambda: connect(url), patience_s=2)
    limits = Limits(rates=dict.fromkeys(Role, Rate(1e9, 1e9)))
    house = APIHouse(catalogue=pool.connection, authenticate=_crabs_operator, limits=limits)
    inside = TestClient(create_app(house), base_url="http://crab.test")

    def forward(asked: Asked) -> Reply:
        headers = {"Content-Type": asked.headers.get("content-type", ""), "X-Requested-With": "test"}
        answer = inside.request(asked.method, asked.path, content=asked.body, headers=headers)
        return Reply(answer.status_code, answer.content)

    with connect(url) as conn, answering(forward) as server:
        put_sites(conn, SITES, "test")
        yield conn, server.url
    pool.close()
    postgres_server.drop(name)


def crabs_rows(theirs: Connection) -> list[tuple[Any, ...]]:
    return theirs.execute(
        "SELECT t.state::text, t.failure_reason, c.fts_id, c.fts_instance, t.publication::text,"
        " c.publication_failure_reason FROM transfer t JOIN crab_record c ON c.transfer_id = t.id ORDER BY t.id"
    ).fetchall()


def test_crab_hears_of_the_files_that_it_gave_us(
    conn: Connection, *, connected: Connect, add: Add, ended: Callable[..., list[int]],
    crab: tuple[Connection, str], step: int,
) -> None:  # fmt: skip
    theirs, url = crab
    connected("crab", url)
    post_job = PostJob(CrabRest(_Over(url)), worker="aso")  # type: ignore[arg-type] - asks over HTTP
    for number in range(3):
        post_job.rest.ok("PUT", "fileusertransfers", encoded(post_job.insert(number, publish=1)))
    theirs.execute("UPDATE transfer SET due_at = now()")
    source = CRABSource.of("crab", "crab", "prod", "aso")
    assert collect(conn, source, Interval(NOW, NOW), step).counts["created"] == 3
    assert [row[0] for row in crabs_rows(theirs)] == ["SUBMITTED"] * 3

    subscribe(conn, "report", kind="crab", conn_id="crab", origin="crab", settings={"worker": "aso"})
    add(record(99, username="carol"))  # none of CRAB's
    files = ended()
    assert deliver("report")["delivered"] == 6
    row = conn.execute("SELECT job_id::text FROM fts_job").fetchone()
    assert row
    failed, *done = crabs_rows(theirs)
    assert failed[:4] == ("FAILED", "TRANSFER (5) HTTP 507 : it`s full; really", row[0], "fts")
    assert [one[:4] for one in done] == [("DONE", None, row[0], "fts")] * 2

    conn.execute(
        "INSERT INTO file_event (transfer_id, kind, from_state, to_state, step_run, reason)"
        " SELECT * FROM unnest(%s::bigint[], '{publication,publication}'::text[], '{NEW,NEW}'::text[],"
        " '{DONE,FAILED}'::text[], ARRAY[%s, %s]::bigint[], '{NULL,\"no such era, ever\"}'::text[])",
        (files[1:3], step, step),
    )
    assert deliver("report")["delivered"] == 2
    assert [one[4:] for one in crabs_rows(theirs)[1:]] == [("DONE", None), ("FAILED", "no such era; ever")]


def test_a_word_that_crab_does_not_take_is_refused_alone(
    conn: Connection, *, connected: Connect, crab: tuple[Connection, str], step: int,
    ended: Callable[..., list[int]],
) -> None:  # fmt: skip
    """One file is another worker's there by now."""
    theirs, url = crab
    connected("crab", url)
    post_job = PostJob(CrabRest(_Over(url)), worker="aso")  # type: ignore[arg-type] - asks over HTTP
    for number in range(2):
        post_job.rest.ok("PUT", "fileusertransfers", encoded(post_job.insert(number)))
    theirs.execute("UPDATE transfer SET due_at = now()")
    collect(conn, CRABSource.of("crab", "crab", "prod", "aso"), Interval(NOW, NOW), step)
    subscribe(
        conn, "report", kind="crab", conn_id="crab", settings={"worker": "aso"}, events=["transfer:DONE"]
    )
    theirs.execute("UPDATE transfer SET driver = 'schedd'")
    ended()
    assert deliver("report") | {"sentence": ""} == {
        "sentence": "", "delivered": 0, "refused": 1, "dead": 0, "stopped": 0
    }  # fmt: skip
    theirs.execute("UPDATE transfer SET driver = 'aso'")
    make_due(conn)
    assert deliver("report")["delivered"] == 1


class _Over:
    """What ``CrabRest`` needs of a client, over HTTP."""

    def __init__(self, url: str) -> None:
        self._session, self._url = new_session(), url

    def get(self, path: str) -> Any:
        return self._session.get(self._url + path, timeout=10)

    def request(self, method: str, path: str, *, content: str, headers: dict[str, str]) -> Any:
        return self._session.request(method, self._url + path, data=content, headers=headers, timeout=10)
