"""What holds for every route: errors, headers, health, metrics, the document; and operators' configuration."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fastapi import FastAPI
from psycopg import Connection
from starlette.testclient import TestClient

from api.conftest import ALICE, API, by_name
from asyncstageout.api.__main__ import document
from asyncstageout.api.app import create_app
from asyncstageout.api.callers import APIHouse, Catalogue
from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.metrics import measurements
from asyncstageout.catalogue.pool import CatalogueBusy, CataloguePool
from fixtures.catalogue import Add, record

V1 = "/api/v1"
DOCUMENT = Path(__file__).parents[2] / "docs/reference/api/openapi.json"


def problem(response: Any, status: int, kind: str = "") -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["status"] == status
    assert body["type"] == (f"urn:asyncstageout:problem:{kind}" if kind else "about:blank")
    assert body["instance"].startswith(V1)
    return body


def test_every_error_is_a_problem(api: API) -> None:
    client = api()
    restrictions = f"{V1}/restrictions"
    problem(client.get(f"{V1}/nothing"), 404)
    assert problem(client.patch(f"{V1}/policies"), 405)["title"] == "Method Not Allowed"
    assert "GET" in client.patch(f"{V1}/servers").headers["allow"]
    as_json = {"Content-Type": "application/json"}
    problem(client.post(restrictions, content=b"{", headers=as_json), 400, "not-json")
    problem(
        client.post(restrictions, content=b"x", headers={"Content-Type": "text/xml"}),
        415,
        "unsupported-media-type",
    )
    problem(client.post(restrictions, content=b"x"), 415, "unsupported-media-type")
    body = problem(client.post(restrictions, json={"mode": "pause", "site": 3}), 422, "invalid-request")
    assert {flaw["pointer"] for flaw in body["errors"]} == {"#/site", "#/reason"}
    body = problem(client.get(f"{V1}/changes?limit=0"), 422, "invalid-request")
    assert body["errors"][0]["parameter"] == "limit"
    refused = api(None).get(f"{V1}/servers")
    problem(refused, 401, "not-authenticated")
    assert refused.headers["www-authenticate"] == "Bearer"


def test_a_defect_tells_an_id_and_nothing_else(
    app: FastAPI, api: API, caplog: pytest.LogCaptureFixture
) -> None:
    @app.get(f"{V1}/broken")
    def broken() -> None:
        raise RuntimeError("secret of the house")

    body = problem(api(raise_server_exceptions=False).get(f"{V1}/broken"), 500, "defect")
    assert "secret" not in json.dumps(body)
    assert body["error_id"] in caplog.text


def test_what_the_catalogue_cannot_do_is_told(app: FastAPI, api: API) -> None:
    @app.get(f"{V1}/slow")
    def slow(conn: Catalogue) -> None:
        conn.execute("SET statement_timeout = '10ms'")
        conn.execute("SELECT pg_sleep(5)")

    @app.get(f"{V1}/nul")
    def nul(conn: Catalogue) -> None:
        conn.execute("SELECT %s::text", ("\x00",))

    @app.get(f"{V1}/busy")
    def busy() -> None:
        raise CatalogueBusy

    @app.get(f"{V1}/away")
    def away() -> None:
        raise psycopg.OperationalError("password of the server")

    client = api()
    assert "narrow" in problem(client.get(f"{V1}/slow"), 503, "too-slow")["detail"]
    problem(client.get(f"{V1}/nul"), 422, "invalid-request")
    assert client.get(f"{V1}/busy").headers["retry-after"] == "5"
    assert "password" not in problem(client.get(f"{V1}/away"), 503, "no-catalogue")["detail"]


def test_answers_are_not_kept_nor_guessed_at(api: API) -> None:
    for response in (
        api().get(f"{V1}/servers"),
        api(None).get(f"{V1}/servers"),
        api(None).get(f"{V1}/health"),
    ):
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["x-content-type-options"] == "nosniff"


def test_a_browsers_session_cannot_be_used_by_another_site(api: API) -> None:
    """A cookie alone does not change anything; neither does a certificate in a browser."""
    body = {"mode": "pause", "site": "T2_IT_Bari", "reason": "r"}
    client, name = (
        api(None),
        {"Authorization": "olga"},
    )  # by_name takes it; for the gate it is no bearer token
    lift = f"{V1}/restrictions"
    problem(client.post(lift, json=body, headers=name), 403, "forgery")
    certificate = name | {"cms-auth-status": "OK"}
    problem(
        client.post(lift, json=body, headers=certificate | {"Origin": "https://evil.test"}), 403, "forgery"
    )
    problem(
        client.post(lift, json=body, headers=certificate | {"Sec-Fetch-Site": "cross-site"}), 403, "forgery"
    )
    assert client.post(lift, json=body, headers=certificate).status_code == 201
    assert client.post(lift, json=body, headers=name | {"X-Requested-With": "page"}).status_code == 201
    assert client.get(lift, headers=name).status_code == 200


# --- health, metrics, document ---


def test_health_is_for_anybody(api: API, conn: Connection) -> None:
    client = api(None)
    well = {"status": "ok", "catalogue": "reachable", "schema_version": "current"}
    assert client.get(f"{V1}/health").json() == well
    conn.execute("UPDATE alembic_version SET version_num = '0000'")
    response = client.get(f"{V1}/health")
    assert (response.status_code, response.json()["schema_version"]) == (503, "other")


def test_health_without_a_catalogue() -> None:
    def refuse() -> Connection:
        raise psycopg.OperationalError("no such host")

    house = APIHouse(catalogue=CataloguePool(refuse).connection, authenticate=by_name)
    response = TestClient(create_app(house)).get(f"{V1}/health")
    assert (response.status_code, response.json()["catalogue"]) == (503, "unreachable")
    assert "host" not in response.text


def test_metrics_are_prometheus_text(api: API, add: Add) -> None:
    add(record(0), record(1))
    response = api(ALICE).get(f"{V1}/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = response.text.splitlines()
    assert "stageout_files_waiting 2" in lines
    assert 'stageout_fts_server_usable{server="fts"} 1' in lines
    assert 'stageout_restrictions{mode="ban"} 0' in lines
    names = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(names) == len(set(names))
    assert "alice" not in response.text


def test_metrics_are_as_many_with_many_files(conn: Connection, add: Add) -> None:
    before = len(measurements(conn))
    add(*(record(number, username=f"user{number}") for number in range(50)))
    assert len(measurements(conn)) == before


def test_the_document_is_complete(app: FastAPI, api: API) -> None:
    schema = app.openapi()
    assert schema["openapi"].startswith("3.1")
    operations = [one for path in schema["paths"].values() for one in path.values()]
    ids = [one["operationId"] for one in operations]
    assert len(ids) == len(set(ids))
    assert all(one["tags"] and one["summary"] for one in operations)
    assert api().get(f"{V1}/openapi.json").json() == schema
    for page in ("/docs", "/redoc"):  # they would load scripts from elsewhere
        assert api().get(page).status_code == 404


def test_the_reference_is_up_to_date() -> None:
    """``python -m asyncstageout.api > docs/reference/api/openapi.json`` renews it."""
    assert DOCUMENT.read_text() == document()


# --- the pool ---


def test_the_pool_survives_a_restart_of_postgres(pool: CataloguePool, conn: Connection) -> None:
    with pool.connection() as first, pool.connection() as second:
        pids = [first.info.backend_pid, second.info.backend_pid]
    conn.execute("SELECT pg_terminate_backend(pid) FROM unnest(%s::int[]) AS pid", (pids,))
    with pool.connection() as fresh:
        assert fresh.execute("SELECT 1").fetchone() == (1,)
        assert fresh.info.backend_pid not in pids


def test_the_pool_is_bounded_and_takes_back_no_open_transaction(catalogue_url: str) -> None:
    pool = CataloguePool(lambda: connect(catalogue_url), size=1, patience_s=0.05)
    with pool.connection() as only:
        with pytest.raises(CatalogueBusy), pool.connection():
            pass
        only.execute("BEGIN")
    with pool.connection() as fresh:
        assert fresh is not only
    pool.close()


# --- configuration ---


def test_policies_are_set_seen_and_dropped(api: API) -> None:
    client = api()
    link = {"source": "T2_IT_Bari", "destination": "T2_CH_CERN"}
    made = client.put(f"{V1}/policies", json=link | {"settings": {"max_attempts": 5}}).json()
    assert (made["settings"], made["updated_by"]) == ({"max_attempts": 5}, "olga")
    assert client.get(f"{V1}/policies").json() == [made]
    assert client.delete(f"{V1}/policies", params=link).json() == {"dropped": ["max_attempts"]}
    problem(client.delete(f"{V1}/policies", params=link), 404)
    changes = client.get(f"{V1}/changes", params={"table": "link_policy"}).json()
    assert [(change["actor"], change["after"] is None) for change in changes] == [
        ("olga", True),
        ("olga", False),
    ]


@pytest.mark.parametrize(
    "body",
    [
        {"settings": {}},
        {"settings": {"no_such": 1}},
        {"settings": {"max_attempts": 0}},
        {"settings": {"max_attempts": 2}, "source": "T9_Nowhere"},
        {"settings": {"max_attempts": 2}, "unknown": "field"},
    ],
)
def test_a_wrong_policy_changes_nothing(api: API, body: dict[str, Any]) -> None:
    problem(api().put(f"{V1}/policies", json=body), 422, "invalid-request")
    assert api().get(f"{V1}/policies").json() == []


def test_restrictions_are_set_seen_and_lifted(api: API) -> None:
    client = api()
    ends_at = datetime.now(UTC) + timedelta(hours=2)
    body = {"mode": "pause", "site": "T2_IT_Bari", "reason": "disk full", "ends_at": ends_at.isoformat()}
    response = client.post(f"{V1}/restrictions", json=body)
    made = response.json()
    assert (response.status_code, made["author"], made["site"]) == (201, "olga", "T2_IT_Bari")
    assert client.get(f"{V1}/restrictions").json() == [made]
    lift = f"{V1}/restrictions/{made['restriction_id']}/lift"
    assert client.post(lift).json()["lifted_at"]
    problem(client.post(lift), 404)
    assert client.get(f"{V1}/restrictions").json() == []
    assert len(client.get(f"{V1}/restrictions?over=true").json()) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"site": None},
        {"everything": True},
        {"source": "T2_IT_Bari"},
        {"site": "T9_Nowhere"},
        {"reason": " "},
        {"ends_at": "2001-01-01T00:00:00Z"},
        {"ends_at": "9999-12-31T23:59:59-14:00"},
        {"ends_at": "2027-01-01T00:00:00"},
        {"reason": "\x00"},
    ],
)
def test_a_wrong_restriction_changes_nothing(api: API, change: dict[str, Any]) -> None:
    body = {"mode": "ban", "site": "T2_IT_Bari", "reason": "r"} | change
    assert api().post(f"{V1}/restrictions", json=body).status_code == 422
    assert api().get(f"{V1}/restrictions").json() == []


def test_servers_are_listed(api: API) -> None:
    (server,) = api().get(f"{V1}/servers").json()
    assert (server["name"], server["state"], server["open_jobs"]) == ("fts", "up", 0)
