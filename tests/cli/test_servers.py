"""``aso servers`` lists, adds, drains and removes; every change is on record."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeAlias

import pytest
from click.testing import Result
from psycopg import Connection

from asyncstageout.catalogue.fts_servers import note_contact, servers
from asyncstageout.cli import Advice
from fixtures.catalogue import Add, Plan, record

Aso: TypeAlias = Callable[..., Result]


@pytest.fixture(autouse=True)
def _maria(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncstageout.cli.servers.who", lambda: "maria")
    monkeypatch.setenv("COLUMNS", "200")


def test_a_server_from_its_beginning_to_its_end(aso: Aso, conn: Connection) -> None:
    said = aso("servers", "add", "bari", "--endpoint", "https://fts.ba.infn.it:8446", "--region", "IT",
               "--region", "T2_ES_*", "--vo", "cms", "--weight", "30").stdout  # fmt: skip
    assert said.startswith(
        "bari was added.\nMake its Airflow connection, if there is none: airflow connections add bari"
    )
    found = {server.name: server for server in servers(conn)}["bari"]
    assert (found.vo, found.regions, found.weight, found.state) == ("cms", ("IT", "T2_ES_*"), 30, "up")
    assert aso("servers", "add", "bari", "--weight", "40").stdout == "bari was changed.\n"
    found = {server.name: server for server in servers(conn)}["bari"]
    assert (found.regions, found.weight) == (("IT", "T2_ES_*"), 40), "what was not named stays"
    said = aso("servers", "set", "bari", "draining", "--reason", "upgrade").stdout
    assert said == "bari is draining. It gets no new jobs; those that it has are followed to their end.\n"
    (line,) = [line for line in aso("servers").stdout.splitlines() if line.startswith("bari")]
    assert "draining" in line
    assert aso("servers", "remove", "bari").stdout == "bari was removed.\n"
    changes = conn.execute(
        "SELECT after->>'state' FROM config_change WHERE actor = 'maria' ORDER BY id"
    ).fetchall()
    assert changes == [("up",), ("up",), ("draining",), (None,)]


def test_health_and_what_is_under_way(aso: Aso, conn: Connection, add: Add, plan: Plan) -> None:
    add(record(1), record(2))
    plan()
    note_contact(conn, "fts", None, datetime.now(UTC), "3.13.4")
    (row,) = json.loads(aso("servers", "--json").stdout)
    assert (row["name"], row["open_jobs"], row["open_files"], row["in_doubt"]) == ("fts", 1, 2, 1)
    assert row["version"] == "3.13.4"
    assert "FTS 3.13.4, asked" in aso("servers").stdout
    note_contact(conn, "fts", "got no answer", datetime.now(UTC), refused=True)
    said = aso("servers").stdout
    assert "failing since" in said
    assert "got no answer" in said


def test_a_server_with_open_jobs_is_not_removed(aso: Aso, add: Add, plan: Plan) -> None:
    add(record(1))
    plan()
    refused = aso("servers", "remove", "fts").exception
    assert isinstance(refused, Advice)
    assert str(refused) == "fts has 1 open jobs: drain it first"
    assert "aso servers set fts draining" in refused.remedy


@pytest.mark.parametrize("command", [["set", "nobody", "up"], ["remove", "nobody"]], ids=str)
def test_a_server_that_does_not_exist(aso: Aso, command: list[str]) -> None:
    assert isinstance(aso("servers", *command).exception, Advice)
    assert aso("servers", "set", "fts", "sideways").exit_code == 2
