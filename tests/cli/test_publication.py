"""``aso publication``, through the real API."""

from __future__ import annotations

import json

import pytest
from psycopg import Connection

from api.conftest import app, house, pool  # noqa: F401 -- fixtures
from cli.conftest import Aso
from client.conftest import service_url  # noqa: F401 -- fixture
from fixtures.publication import DATASET, Press

TASK = "261122_alice_task"


@pytest.fixture(autouse=True)
def _as_alice(service_url: str, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setenv("ASO_API_URL", service_url)
    monkeypatch.setenv("ASO_API_TOKEN", "alice")


def said(aso: Aso, *arguments: str) -> str:
    done = aso("publication", *arguments)
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


def test_how_far_a_task_is_and_once_more(press: Press, aso: Aso, conn: Connection) -> None:
    press.ready(0)
    press.run()
    press.ready(1, filesize=7)
    press.arrive(2)
    press.assemble()
    shown = said(aso, "show", TASK)
    assert shown.startswith(f"{TASK}: 1 NEW, 1 DONE, 1 FAILED; into dbs_default Blocks: 1 PUBLISHED")
    assert "1 have arrived and are in no block" in shown
    assert "1 metadata: filesize: they say 7, the file has 1001" in shown
    assert json.loads(aso("publication", "show", TASK, "--json").stdout)["files"]["DONE"] == 1
    assert "PUBLISHED 1 1 " in said(aso, "blocks", TASK)
    (block,) = json.loads(aso("publication", "blocks", TASK, "--json").stdout)
    assert block["name"].startswith(f"{DATASET}#")
    assert said(aso, "retry", TASK, "--dry-run") == "1 file would go to DBS again."
    assert said(aso, "retry", TASK, "--yes") == "1 file will go to DBS again."
    assert conn.execute("SELECT count(*) FROM transfer WHERE publication = 'NEW'").fetchone() == (2,)


def test_a_files_story_has_its_publication(press: Press, aso: Aso, catalogue_url: str) -> None:
    press.ready(0)
    press.run()
    (number,) = press.conn.execute("SELECT id FROM transfer").fetchone() or (0,)
    shown = aso("files", "show", str(number), "--catalogue-url", catalogue_url)
    assert shown.exit_code == 0, shown.output
    assert "publication DONE" in " ".join(shown.output.split())
    as_json = json.loads(aso("files", "show", str(number), "--catalogue-url", catalogue_url, "--json").stdout)
    assert [one["to_state"] for one in as_json["side_events"]] == ["ACQUIRED", "DONE"]


def test_a_task_is_complete_and_open_again(press: Press, aso: Aso, conn: Connection) -> None:
    press.arrive(0)
    said(aso, "complete", TASK)
    assert conn.execute("SELECT complete_at IS NOT NULL FROM task").fetchone() == (True,)
    said(aso, "complete", TASK, "--reopen")
    assert conn.execute("SELECT complete_at IS NOT NULL FROM task").fetchone() == (False,)
    shown = said(aso, "set", TASK, "--dbs", "dbs_other", "--with-parents", "--input-dataset", DATASET)
    assert shown.startswith(f"{TASK}: 1 NEW; into dbs_other, input {DATASET}, with parents")
    assert said(aso, "blocks", TASK).startswith("No blocks yet")


def test_nothing_to_set_is_said(press: Press, aso: Aso) -> None:
    press.arrive(0)
    assert "Nothing says what to set" in str(aso("publication", "set", TASK).exception)
