"""``aso pause`` and its like say what they do, until when, and how to undo it."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

import pytest
from click.testing import Result
from psycopg import Connection

from asyncstageout.catalogue.restrictions import all_restrictions, open_restrictions
from asyncstageout.cli import Advice, restrictions
from asyncstageout.core.restrictions import Mode

Aso: TypeAlias = Callable[..., Result]

BARI, CERN = "T2_IT_Bari", "T2_CH_CERN"


@pytest.fixture(autouse=True)
def _maria(monkeypatch: pytest.MonkeyPatch, conn: Connection) -> None:
    monkeypatch.setattr(restrictions, "who", lambda: "maria")


@pytest.mark.parametrize(
    ("mode", "does"),
    [
        (Mode.PAUSE, "Files wait: nothing new starts from the next cycle on. What FTS has goes on."),
        (Mode.DRAIN, "New requests are refused from now on. What is known goes on."),
        (Mode.BAN, "New requests are refused from now on, and nothing starts from the next cycle on."),
    ],
)
def test_set_list_resume(aso: Aso, conn: Connection, mode: Mode, does: str) -> None:
    said = aso(mode.value, "--site", BARI, "--reason", "disk full", "--until", "2099-11-24 08:00").stdout
    lines = said.splitlines()
    assert lines[0].startswith("1: site T2_IT_Bari: ")
    assert lines[0].endswith(" by maria until 2099-11-24 08:00 UTC: disk full")
    assert lines[1].startswith(does)
    assert lines[2] == "Lift it with: aso resume 1"
    (row,) = open_restrictions(conn)
    assert (row.mode, row.site, row.ends_at) == (mode, BARI, datetime(2099, 11, 24, 8, tzinfo=UTC))
    listed = " ".join(aso("restrictions").stdout.split())
    assert f"1 until 2099-11-24 08:00 {mode} site T2_IT_Bari maria: disk full" in listed
    said = aso("resume", "1").stdout
    assert said.splitlines()[-1] == "Files that waited for it start at once."
    assert open_restrictions(conn) == []
    assert aso("restrictions").stdout == "Nothing is paused, drained or banned.\n"
    (fact,) = json.loads(aso("restrictions", "--all", "--json").stdout)
    assert fact["state"].startswith("lifted ")
    assert fact["author"] == "maria"


def test_for_a_time(aso: Aso, conn: Connection) -> None:
    for lasting, time in (
        ("30m", timedelta(minutes=30)),
        ("2h", timedelta(hours=2)),
        ("3d", timedelta(days=3)),
    ):
        before = datetime.now(UTC)
        assert aso("pause", "--user", "bob", "--reason", "loops", "--for", lasting).exit_code == 0
        row = all_restrictions(conn)[0]
        assert row.ends_at is not None
        assert before + time <= row.ends_at <= datetime.now(UTC) + time


def test_resume_by_scope_lifts_exactly_that(aso: Aso, conn: Connection) -> None:
    aso("pause", "--source", BARI, "--destination", CERN, "--reason", "x")
    aso("drain", "--source", BARI, "--destination", CERN, "--reason", "y")
    aso("pause", "--source", BARI, "--reason", "z")
    aso("ban", "--everything", "--reason", "all")
    assert aso("resume", "--source", BARI, "--destination", CERN).exit_code == 0
    assert [row.reason for row in open_restrictions(conn)] == ["z", "all"]
    aso("resume", "--everything")
    assert [row.reason for row in open_restrictions(conn)] == ["z"]


def test_a_downtime_is_announced(aso: Aso, conn: Connection) -> None:
    said = aso(
        "downtime", BARI, "--from", "2099-11-24 08:00", "--for", "4h", "--reason", "new switch"
    ).stdout.splitlines()
    assert said[0] == "1: downtime of site T2_IT_Bari until 2099-11-24 12:00 UTC: new switch"
    assert said[1] == "It begins 2099-11-24 08:00 UTC."
    (row,) = open_restrictions(conn)
    assert (row.is_downtime, row.mode) == (True, Mode.PAUSE)
    assert "begins 2099-11-24 08:00 downtime" in " ".join(aso("restrictions").stdout.split())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["pause", "--reason", "x"], "Say what for."),
        (["pause", "--everything", "--user", "bob", "--reason", "x"], "Everything, or what?"),
        (["pause", "--site", BARI, "--source", CERN, "--reason", "x"], "--site means both ends."),
        (["pause", "--site", BARI, "--reason", " "], "needs a reason"),
        (["pause", "--site", "T2_FR_Nowhere", "--reason", "x"], "T2_FR_Nowhere"),
        (["pause", "--site", BARI, "--reason", "x", "--until", "2020-01-01 00:00"], "never be in force"),
        (["pause", "--site", BARI, "--reason", "x", "--for", "soon"], "'soon' is no time"),
        (
            ["pause", "--site", BARI, "--reason", "x", "--for", "2h", "--until", "2099-01-01"],
            "--until or --for, not both.",
        ),
        (["downtime", BARI], "A downtime has an end."),
        (["resume", "17"], "There is nothing to lift."),
        (["resume", "--site", BARI], "There is nothing to lift."),
    ],
)
def test_what_is_wrong_is_said(aso: Aso, conn: Connection, arguments: list[str], says: str) -> None:
    result = aso(*arguments)
    assert isinstance(result.exception, Advice)
    assert says in str(result.exception)
    assert result.exception.remedy
    assert all_restrictions(conn) == []
