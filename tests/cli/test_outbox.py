"""``aso subscriptions`` and ``aso outbox``."""

from __future__ import annotations

import json

import pytest
from psycopg import Connection

from asyncstageout.catalogue import outbox
from asyncstageout.catalogue.outbox import Refusal
from asyncstageout.catalogue.subscriptions import note_failing, subscriptions
from asyncstageout.cli import Advice
from cli.conftest import Aso
from fixtures.catalogue import Add, record
from fixtures.receivers import subscribe


def test_a_subscription_from_its_begin_to_its_end(aso: Aso, conn: Connection) -> None:
    assert "Nobody is told." in aso("subscriptions").stdout
    said = aso("subscriptions", "add", "cms", "--kind", "rucio", "--conn", "rucio", "--user", "alice").stdout
    assert said.startswith("cms was added: user alice.\n")
    said = aso(
        "subscriptions", "add", "cms", "--set", "logs=true", "--set", "batch=7", "--event", "transfer:DONE"
    ).stdout
    assert said == "cms was changed: user alice.\n"
    (view,) = subscriptions(conn)
    assert (view.wanted.username, view.wanted.events) == ("alice", ("transfer:DONE",))
    assert view.wanted.settings.model_dump() | {"logs": True, "batch": 7} == view.wanted.settings.model_dump()
    assert (
        "aso subscriptions resume cms"
        in aso("subscriptions", "pause", "cms", "--reason", "moves house").stdout
    )
    shown = aso("subscriptions", "show", "cms").stdout
    assert "paused: moves house" in shown
    assert "dataset" in shown
    note_failing(conn, view.number, "nobody listens", wait_s=60)
    assert aso("subscriptions", "resume", "cms").exit_code == 0
    (fact,) = json.loads(aso("subscriptions", "list", "--json").stdout)
    assert (fact["name"], fact["state"], fact["problem"]) == ("cms", "active", None)
    assert "never hear" in aso("subscriptions", "off", "cms").stdout
    assert aso("subscriptions", "remove", "cms").stdout == "cms was removed; 0 messages were discarded.\n"
    assert subscriptions(conn) == []


@pytest.mark.parametrize(
    ("arguments", "says", "helps"),
    [
        (["add", "x", "--kind", "crab"], "conn_id: Field required", "what can be set"),
        (["add", "x", "--conn", "c"], "kind: ", "--kind is one of webhook, rucio, crab"),
        (["add", "x", "--kind", "crab", "--conn", "c", "--event", "transfer:NEW"], "no event for crab", "publication:DONE"),
        (["add", "x", "--kind", "crab", "--conn", "c", "--set", "secret=x"], "settings.secret: ", "what can be set"),
        (["add", "x", "--kind", "crab", "--conn", "c", "--set", "secret"], "'secret' is no setting", "batch=50"),
        (["add", "x", "--kind", "crab", "--conn", "c", "--source", "T2_FR_No"], "T2_FR_No", "aso sites"),
        (["pause", "x"], "There is no subscription x", "lists them"),
        (["remove", "x"], "There is no subscription x", "lists them"),
        (["show", "x"], "There is no subscription x", "lists them"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(
    aso: Aso, conn: Connection, arguments: list[str], says: str, helps: str
) -> None:
    result = aso("subscriptions", *arguments)
    assert isinstance(result.exception, Advice)
    assert says in str(result.exception)
    assert helps in result.exception.remedy
    assert subscriptions(conn) == []


@pytest.fixture
def dead(conn: Connection, add: Add, step: int) -> None:
    number = subscribe(conn, events=["transfer:NEW"])
    add(record(0), record(1, username="bob"), record(2))
    claimed = outbox.claim(conn, number, at_most=2, lease_s=9, step_run=step).messages
    outbox.refused(conn, [Refusal(one.number, "no scope", None) for one in claimed], step_run=step)


@pytest.mark.usefixtures("dead")
def test_dead_letters(aso: Aso, conn: Connection) -> None:
    (backlog,) = json.loads(aso("outbox", "--json").stdout)
    assert (backlog["pending"], backlog["dead"]) == (1, 2)
    assert "hook" in aso("outbox", "--subscription", "hook").stdout
    listed = aso("outbox", "dead").stdout
    assert listed.count("transfer:NEW") == listed.count("no scope") == 2
    assert "2 in all; --limit shows more." in aso("outbox", "dead", "--limit", "1").stdout
    assert aso("outbox", "dead", "--user", "carol").stdout == "No dead letters.\n"
    assert aso("outbox", "replay", "--all", "--dry-run").stdout == "2 dead letters would be sent again.\n"
    assert aso("outbox", "replay", "--user", "bob", typed="n\n").exit_code == 1
    assert aso("outbox", "replay", "--user", "bob", "--yes").stdout == "Done: 1 dead letter sent again.\n"
    assert aso("outbox", "replay", "--user", "bob").stdout == "No such dead letters.\n"
    (letter,) = json.loads(aso("outbox", "dead", "--json").stdout)
    said = aso("outbox", "discard", str(letter["number"]), "--comment", "too late", typed="y\n").stdout
    assert said.endswith("Done: 1 dead letter given up.\n")
    row = conn.execute("SELECT sentence, task_id FROM step_run ORDER BY id DESC LIMIT 1").fetchone()
    assert row == ("1 dead letter given up", "aso outbox discard")
    assert "were discarded" in aso("subscriptions", "remove", "hook", typed="y\n").stdout


@pytest.mark.parametrize("arguments", [["replay"], ["discard"], ["discard", "--all", "--user", "bob"]])
def test_it_must_be_said_which(aso: Aso, arguments: list[str]) -> None:
    assert isinstance(aso("outbox", *arguments).exception, Advice)
