"""``aso alerts`` says what needs a person, silences it, sets rules, and tries the channels."""

from __future__ import annotations

import doctest
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event, Thread
from typing import TypeAlias

import pytest
from click.testing import Result
from psycopg import Connection

from asyncstageout.catalogue import alert_messages
from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.fts_servers import note_contact
from asyncstageout.catalogue.partitions import ensure_partitions
from asyncstageout.cli import Advice, alerts
from asyncstageout.core.alert_channels import read_channels
from asyncstageout.steps.alerts import look

Aso: TypeAlias = Callable[..., Result]
REFERENCE = Path(__file__).parents[2] / "docs/reference/alerts.md"
CHANNELS, _ = read_channels('[{"name": "chat", "kind": "slack"}]')


@pytest.fixture(autouse=True)
def _down(conn: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """An FTS server has been down for long enough to be told."""
    monkeypatch.setattr(alerts, "who", lambda: "maria")
    now = datetime.now(UTC)
    ensure_partitions(conn, now.date())
    note_contact(conn, "fts", "refused", now, refused=True)
    for ago in (timedelta(hours=1), timedelta(0)):
        look(conn, CHANNELS, now=now - ago, step_run=1)


def words(result: Result) -> str:
    return " ".join(result.stdout.split())


def test_what_is_open(aso: Aso) -> None:
    assert "1 urgent" in words(aso("alerts"))
    (alert,) = json.loads(aso("alerts", "--json").stdout)
    assert (alert["rule"], alert["severity"], alert["runbook"], alert["silence"]) == (
        "fts-server-down", "urgent", "runbooks/fts-server-down.md", None,
    )  # fmt: skip
    shown = aso("alerts", "show", "1").stdout
    assert "rule fts-server-down, subject fts, open; runbooks/fts-server-down.md" in shown
    assert "no alert 7" in str(aso("alerts", "show", "7").exception)
    assert words(aso("alerts", "list", "--over")) == "No alert is over yet."
    assert words(aso("alerts", "look")).startswith("1 alerts are open")


def test_a_silence_from_its_beginning_to_its_end(aso: Aso) -> None:
    said = aso(
        "alerts", "silence", "--rule", "fts-*", "--subject", "fts", "--for", "2h", "--reason", "upgrade"
    ).stdout
    assert said.startswith("1: fts-* of fts is silenced until ")
    assert "by maria: upgrade. 1 open alerts fit now." in said
    assert json.loads(aso("alerts", "--json").stdout)[0]["silence"] == 1
    assert "maria: upgrade" in words(aso("alerts", "silences"))
    assert words(aso("alerts", "unsilence", "1")) == "1 was ended: fts-* of fts."
    assert words(aso("alerts", "silences")) == "Nothing is silenced."
    assert len(json.loads(aso("alerts", "silences", "--all", "--json").stdout)) == 1
    assert "silence of fts-* for fts" in words(aso("changes"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["silence", "--reason", "r"], "A silence has an end."),
        (["silence", "--reason", "r", "--for", "1h", "--rule", "nonsense"], "no rule is called nonsense"),
        (["unsilence", "9"], "no silence 9"),
        (["set", "nonsense", "for_s=1"], "there is no such rule"),
        (["set", "files-late", "for_s"], "sets nothing"),
        (["set", "files-late", "for_s=long"], "'long' is no number"),
        (["set", "step-failed", "limit=1"], "step-failed has none"),
        (["test", "--channel", "pager"], "There is no channel pager."),
    ],
)
def test_what_is_wrong_is_said(aso: Aso, given: list[str], said: str) -> None:
    result = aso("alerts", *given)
    assert isinstance(result.exception, Advice)
    assert said in str(result.exception)
    assert result.exception.remedy


def test_a_rule_is_set_and_unset(aso: Aso) -> None:
    assert words(aso("alerts", "set", "files-late", "limit=43200", "for_s=60")).startswith(
        "files-late: limit=43200"
    )
    (line,) = [line for line in aso("alerts", "rules").stdout.splitlines() if line.startswith("files-late")]
    assert "1 min *" in line
    assert "43200 *" in line
    aso("alerts", "unset", "files-late", "for_s")
    (line,) = [line for line in aso("alerts", "rules").stdout.splitlines() if line.startswith("files-late")]
    assert "1 min *" not in line
    aso("alerts", "unset", "files-late")
    assert "*" not in aso("alerts", "rules").stdout.replace("* ", "")


def test_channels(aso: Aso, conn: Connection) -> None:
    assert "chat slack warning never 1" in words(aso("alerts", "channels"))
    conn.execute("DELETE FROM alert_channel")
    assert "Nobody is told" in words(aso("alerts", "channels"))


@pytest.fixture
def sender(catalogue_url: str) -> Iterator[Thread]:
    """Sends what waits for the chat, as stageout_alerts does; refuses what goes to others."""
    stop = Event()

    def send() -> None:
        with connect(catalogue_url) as own:
            while not stop.wait(0.02):
                for name in ("chat", "pager"):
                    notices = alert_messages.claim(own, name, lease_s=60, step_run=1)
                    ids = [one.message_id for one in notices]
                    if name == "chat":
                        alert_messages.told(own, ids, step_run=1)
                    elif ids:
                        alert_messages.refused(own, ids, problem="no_service", maybe_told=False, step_run=1)

    thread = Thread(target=send)
    thread.start()
    yield thread
    stop.set()
    thread.join()


def test_a_test_waits_for_its_outcome(
    aso: Aso, conn: Connection, sender: Thread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alerts, "LOOK_AGAIN_S", 0.02)
    result = aso("alerts", "test", "--channel", "chat")
    assert result.stdout.splitlines()[-1] == "chat: told"
    assert result.exit_code == 0
    conn.execute("INSERT INTO alert_channel (name, settings) VALUES ('pager', '{}')")
    result = aso("alerts", "test")
    assert result.stdout.splitlines()[1:] == ["chat: told", "pager: no_service"]
    assert result.exit_code == 1


def test_the_page_on_rules_is_what_they_are() -> None:
    assert REFERENCE.read_text() == alerts.reference()


def test_examples() -> None:
    assert doctest.testmod(alerts).failed == 0
