"""``aso clean``: what waits, what was given up and why, what nobody needs."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from psycopg import Connection

from asyncstageout.catalogue.audit import audit
from asyncstageout.catalogue.cleaning import Word, claim, due_copies, pause_site, settle, take_site
from asyncstageout.catalogue.sweeps import Found, advance, begin_or_go_on
from asyncstageout.cli import Advice, console
from asyncstageout.core.cleaning import Outcome
from asyncstageout.core.states import TransferState
from cli.conftest import Aso
from fixtures.catalogue import Add, Plan, file_ids, record
from fixtures.cleaning import end

BARI, KIT = "T2_IT_Bari", "T1_DE_KIT"


@pytest.fixture
def given_up(
    conn: Connection, add: Add, submitted: Plan, step: int, monkeypatch: pytest.MonkeyPatch
) -> list[int]:
    """Two files, the deletion of one of which was given up; and a silent storage."""
    monkeypatch.setattr(console, "width", 220)
    monkeypatch.setattr("asyncstageout.cli.clean.who", lambda: "maria")
    add(record(1), record(2), record(3, source=KIT))
    submitted()
    end(conn, step, TransferState.DONE)
    (copy,) = claim(conn, due_copies(conn, BARI, at_most=1), step_run=step, lease_s=60)
    due_at = datetime.now(UTC) + timedelta(days=7)
    settle(conn, [Word(copy, Outcome.FAILED, 4, due_at, "se.test", "it answered 403 [no]")], step)
    take_site(conn, KIT, step_run=step, lease_s=60)
    pause_site(conn, KIT, until=datetime.now(UTC) + timedelta(minutes=15), reason="it got no answer")
    return file_ids(conn)


def test_status(aso: Aso, given_up: list[int]) -> None:
    said = aso("clean", "status").stdout
    bari, kit = (next(line for line in said.splitlines() if line.startswith(site)) for site in (BARI, KIT))
    assert bari.split()[1:7] == ["1", "1.0", "kB", "0", "0", "1"]
    assert "failing since" in kit
    assert "left alone until" in kit
    assert "it got no answer" in said
    rows = json.loads(aso("clean", "status", "--json", "--site", BARI).stdout)
    assert [(row["site"], row["due"], row["failed"]) for row in rows] == [(BARI, 1, 1)]
    assert aso("clean", "status", "--site", "T2_US_MIT").stdout == "No temporary copy waits to be deleted.\n"


def test_what_was_given_up_is_listed_and_tried_again(aso: Aso, given_up: list[int], conn: Connection) -> None:
    said = aso("clean", "failed").stdout
    assert said.startswith(f"{given_up[0]}  {BARI}  {record(1)['source_lfn']}\n    4 tries, given up ")
    assert said.rstrip().endswith("it answered 403 [no]")
    assert json.loads(aso("clean", "failed", "--json").stdout)[0]["username"] == "alice"
    refused = aso("clean", "retry").exception
    assert isinstance(refused, Advice)
    assert "0 deletions" in aso("clean", "retry", "--user", "bob").stdout
    assert "0 deletions" in aso("clean", "retry", str(given_up[1])).stdout
    said = aso("clean", "retry", "--site", BARI, "--comment", "they mended it").stdout
    assert said == "1 deletions that were given up are tried again.\n"
    assert aso("clean", "failed").stdout == "Nothing was given up.\n"
    event = conn.execute(
        "SELECT e.from_state, e.to_state, e.reason, s.task_id, s.actor FROM file_event e"
        " JOIN step_run s ON s.id = e.step_run ORDER BY e.id DESC LIMIT 1"
    ).fetchone()
    assert event == ("FAILED", "WAITING", "they mended it", "clean retry", "maria")
    assert conn.execute("SELECT tries FROM cleaning WHERE transfer_id = %s", (given_up[0],)).fetchone() == (
        0,
    )
    assert {one.name for one in audit(conn) if one.violations} == set()


def test_what_sweeps_found(aso: Aso, conn: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "width", 220)
    assert aso("clean", "orphans").stdout.startswith("No sweep was made.")
    begin_or_go_on(conn, BARI, older_than_days=30, roots=["/store/temp/user/"], step_run=1)
    oldest_at = datetime(2026, 1, 2, tzinfo=UTC)
    found = [Found("/store/temp/user/alice.abc", 10, 3_000, 4, 1_000, oldest_at)]
    advance(conn, BARI, visited=1, closed=1, more=["/store/temp/user/bob/"], found=found, step_run=1)
    said = aso("clean", "orphans").stdout
    assert "1 directories known to be left, 1 closed directories" in said
    assert "2026-01-02 00:00" in said
    assert "/store/temp/user/alice.abc" not in said
    assert "/store/temp/user/alice.abc" in aso("clean", "orphans", "--site", BARI).stdout
    (row,) = json.loads(aso("clean", "orphans", "--site", BARI, "--json").stdout)
    assert (row["orphans"], row["found_in"][0]["orphan_bytes"]) == (4, 1000)
