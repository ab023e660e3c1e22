"""``aso servers`` lists, adds, drains and removes; every change is on record."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeAlias

import pytest
from click.testing import Result
from psycopg import Connection

from asyncstageout.catalogue.audit import audit
from asyncstageout.catalogue.fts_servers import note_contact, servers
from asyncstageout.catalogue.kills import kill
from asyncstageout.cli import Advice, console
from asyncstageout.core.selections import Selection
from fixtures.catalogue import Add, Plan, record, states

Aso: TypeAlias = Callable[..., Result]


@pytest.fixture(autouse=True)
def _maria(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncstageout.cli.servers.who", lambda: "maria")
    monkeypatch.setattr(console, "width", 220)


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


def test_a_server_that_never_comes_back_is_given_up(
    aso: Aso, *, conn: Connection, add: Add, plan: Plan, submitted: Plan, step: int
) -> None:
    """Its files go elsewhere, those to be stopped are killed; what it may still write stays unless told so."""
    add(record(0), record(1))
    old, _young = submitted(files_per_job=1)
    add(record(2), record(3))
    planned, _unsent = plan(files_per_job=1)
    conn.execute(
        "UPDATE fts_job SET planned_at = now() - interval '3 d', submitted_at = now() - interval '2 d'"
        " WHERE sid = %s",
        (old.sid,),
    )
    conn.execute("UPDATE fts_job SET poster = %s WHERE sid = %s", (step, planned.sid))
    kill(conn, Selection(ids=old.transfer_ids), None, comment="", step_run=step)
    give_up = ("servers", "give-up", "fts", "--reason", "burnt down")
    assert "fts is up, not down" in str(aso(*give_up, "--yes").exception)
    aso("servers", "set", "fts", "down")
    would = (
        "2 jobs given up, 1 file for other servers, 1 killed as asked; 2 jobs stay, since it may still copy"
    )
    assert would in aso(*give_up, "--dry-run").stdout
    assert aso(*give_up, typed="no\n").exit_code == 1
    assert states(conn) == {"KILL": 1, "SUBMITTED": 1, "ACQUIRED": 2}
    said = aso(*give_up, typed="fts\n").stdout
    assert "must never come back" in said
    assert would in said.splitlines()[-1]
    assert states(conn) == {"KILLED": 1, "SUBMITTED": 1, "ACQUIRED": 1, "NEW": 1}
    assert "AT THIS MOMENT" in aso(*give_up, "--may-still-write", typed="fts\n").stdout
    assert states(conn) == {"KILLED": 1, "RETRY": 1, "NEW": 2}
    row = conn.execute(
        "SELECT failure_category, failure_reason FROM transfer WHERE state = 'RETRY'"
    ).fetchone()
    assert row == ("lost", "the FTS server fts was given up by maria: burnt down")
    assert [result for result in audit(conn) if result.violations] == []
    assert aso(*give_up, "--yes").stdout == "fts: 0 jobs given up, 0 files for other servers.\n"
    assert "no FTS server nowhere" in str(aso("servers", "give-up", "nowhere", "--reason", "x").exception)
