"""The API under Airflow's authentication: its tokens, its session, a front end of a connection."""

from __future__ import annotations

import json
import runpy
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.testclient import TestClient

from asyncstageout.api.app import create_app
from asyncstageout.api.callers import APIHouse
from asyncstageout.api.front_end import FrontEnd, UnsafeKey, signature
from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.pool import CataloguePool
from asyncstageout.catalogue.services import put_service
from asyncstageout.provider import web

KEY = b"a key of 20 bytes ok"
OPERATORS = "/api/v1/servers"
ANYBODYS = "/api/v1/metrics"


class AuthManager:
    """Knows two tokens; only op may trigger DAGs."""

    users = {"token-of-op": "op", "token-of-viewer": "viewer"}  # noqa: RUF012

    async def get_user_from_token(self, token: str) -> Any:
        from jwt import InvalidTokenError  # noqa: PLC0415

        if token not in self.users:
            raise InvalidTokenError
        return SimpleNamespace(get_name=lambda: self.users[token])

    def is_authorized_dag(self, *, method: str, access_entity: Any, details: Any, user: Any) -> bool:
        assert (method, access_entity.name, details.id) == ("POST", "RUN", "stageout_transfer")
        return bool(user.get_name() == "op")


@pytest.fixture
def client(catalogue_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    for module in ("airflow.api_fastapi.core_api.security", web.__name__):
        monkeypatch.setattr(f"{module}.get_auth_manager", AuthManager)
    trusted = FrontEnd((KEY,), (ip_network("127.0.0.1"),), frozenset({"operator"}))
    pool = CataloguePool(lambda: connect(catalogue_url))
    house = APIHouse(catalogue=pool.connection, authenticate=web.Authentication(lambda: trusted).caller)
    yield TestClient(create_app(house), client=("127.0.0.1", 1))
    pool.close()


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def certificate(login: str, **roles: str) -> dict[str, str]:
    headers = {"cms-auth-status": "OK", "cms-authn-login": login, "cms-authn-method": "X509Cert"}
    headers |= {f"cms-authz-{role}": groups for role, groups in roles.items()}
    signed = signature({name: value.encode() for name, value in headers.items()}, KEY)
    return headers | {"cms-authn-hmac": signed}


@pytest.mark.parametrize(
    ("headers", "operators", "anybodys"),
    [
        ({}, 401, 401),
        (bearer("token-of-nobody"), 401, 401),
        (bearer("token-of-viewer"), 403, 200),
        (bearer("token-of-op"), 200, 200),
        ({"Cookie": "_token=token-of-op"}, 200, 200),
        ({"Cookie": "_token=token-of-nobody"}, 401, 401),
        (certificate("alice"), 403, 200),
        (certificate("olga", operator="group:x"), 200, 200),
        (certificate("alice") | {"cms-authn-login": "olga"}, 401, 401),
        (bearer("token-of-viewer") | certificate("olga", operator="group:x"), 403, 200),
        ({"Cookie": "_token=token-of-op"} | certificate("alice"), 403, 200),
        ({"Cookie": "_token=token-of-viewer", "cms-auth-status": "NONE"}, 403, 200),
    ],
)
def test_who_is_let_in(client: TestClient, headers: dict[str, str], operators: int, anybodys: int) -> None:
    assert client.get(OPERATORS, headers=headers).status_code == operators
    assert client.get(ANYBODYS, headers=headers).status_code == anybodys


def test_a_session_changes_nothing_without_its_header(client: TestClient) -> None:
    cookie, body = {"Cookie": "_token=token-of-op"}, {"settings": {"max_attempts": 4}}
    assert client.put("/api/v1/policies", json=body, headers=cookie).status_code == 403
    basic = cookie | {"Authorization": "Basic b3A6b3A="}
    assert client.put("/api/v1/policies", json=body, headers=basic).status_code == 403
    made = client.put("/api/v1/policies", json=body, headers=cookie | {"X-Requested-With": "page"})
    assert made.json()["updated_by"] == "op"


def test_a_service_is_known_by_its_account(client: TestClient, catalogue_url: str) -> None:
    task = "/api/v1/tasks?username=alice"
    with connect(catalogue_url) as conn:
        put_service(conn, "crab", ["alice"], "test")
    assert client.get(task, headers=certificate("crab")).status_code == 200
    assert client.get(task, headers=certificate("bob")).status_code == 403


# --- the connection of the front end ---


def declare(monkeypatch: pytest.MonkeyPatch, **extra: Any) -> None:
    connection = {"conn_type": "generic", "extra": {"peers": ["10.0.0.0/8"], "operators": ["o"], **extra}}
    monkeypatch.setenv("AIRFLOW_CONN_STAGEOUT_FRONT_END", json.dumps(connection))


def test_without_a_connection_there_is_no_front_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web.BaseHook, "get_connection", _missing)
    assert web.front_end() is None


def _missing(name: str) -> Any:
    raise web.AirflowNotFoundException(name)


def test_a_connection_describes_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(KEY)
    key.chmod(0o400)
    declare(monkeypatch, key_files=[str(key)])
    assert web.front_end() == FrontEnd((KEY,), (ip_network("10.0.0.0/8"),), frozenset({"o"}))
    key.chmod(0o644)
    with pytest.raises(UnsafeKey):
        web.front_end()


def test_a_wrong_connection_lets_nobody_in(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> FrontEnd:
        raise UnsafeKey("/etc/key", "too short")

    assert web.Authentication(broken)._fresh_front_end() is None
    assert "nobody is let in" in caplog.text


def test_keys_are_read_again_after_a_minute() -> None:
    now_s, keys = [0.0], [KEY]
    found = web.Authentication(lambda: FrontEnd((keys[0],), ()), lambda: now_s[0])
    keys_found = []
    for now_s[0], keys[0] in ((0.0, b"1"), (59.0, b"2"), (61.0, b"3")):
        front_end = found._fresh_front_end()
        assert front_end is not None
        keys_found.append(front_end.keys[0])
    assert keys_found == [b"1", b"1", b"3"]


def test_the_plugin_is_light_and_serves_below_stageout() -> None:
    path = Path(__file__).parents[2] / "plugins/stageout.py"
    namespace = runpy.run_path(str(path))
    (app,) = namespace["StageoutPlugin"].fastapi_apps
    assert app["url_prefix"] == "/stageout"
    assert f"!{path.name}" in path.with_name(".airflowignore").read_text().split()
    imports = path.read_text().partition("class ")[0]
    assert "asyncstageout" not in imports.partition('"""')[2].partition('"""')[2]


def test_jobs_have_a_page_in_the_monitor_of_their_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_FTS_HERE", "fts3://fts.example.test")
    assert web.fts_monitor("fts_here", "7") == "https://fts.example.test:8449/fts3/ftsmon/#/job/7"
    assert web.fts_monitor("fts_nowhere", "7") is None
