"""``aso policy`` sets, shows and takes away; ``aso changes`` tells who did."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest
from click.testing import Result
from psycopg import Connection

from asyncstageout.catalogue.policies import policy_rows
from asyncstageout.cli import Advice, policies
from asyncstageout.core.policies import SETTINGS
from asyncstageout.core.scopes import Scope

Aso: TypeAlias = Callable[..., Result]

BARI, CERN = "T2_IT_Bari", "T2_CH_CERN"


@pytest.fixture(autouse=True)
def _maria(monkeypatch: pytest.MonkeyPatch, conn: Connection) -> None:
    monkeypatch.setattr(policies, "who", lambda: "maria")


def test_set_show_unset(aso: Aso, conn: Connection) -> None:
    said = aso("policy", "set", "--destination", CERN, "max_bytes_in_flight=2T", "schemes=davs, root").stdout
    assert said == (
        "anywhere → T2_CH_CERN: max_bytes_in_flight=2000000000000, schemes=davs,root. From the next cycle on, a"
        " minute at most; what FTS has goes on as it was submitted.\n"
    )
    assert (
        "already. Nothing was changed"
        in aso("policy", "set", "--destination", CERN, "schemes=davs,root").stdout
    )
    aso("policy", "set", "--user", "alice", "max_files_in_flight=10", "priority=none")
    shown = {line.split()[0]: line.split() for line in aso("policy", "show", BARI, CERN).stdout.splitlines()}
    assert shown["schemes"] == ["schemes", "davs,root", "anywhere", "→", "T2_CH_CERN", "maria"]
    assert shown["max_attempts"] == ["max_attempts", "3", "default"]
    assert shown["Limits"][3:] == ["files", "of", "the", "link."]
    assert "files of user alice on this link." in aso("policy", "show", BARI, CERN, "--user", "alice").stdout
    facts = json.loads(aso("policy", "show", BARI, CERN, "--user", "alice", "--json").stdout)
    assert facts["max_files_in_flight"] == {"value": 10, "from": "user alice"}
    assert facts["schemes"] == {"value": ["davs", "root"], "from": "anywhere → T2_CH_CERN"}
    assert facts["overwrite"] == {"value": True, "from": None}
    said = aso("policy", "unset", "--destination", CERN, "schemes").stdout
    assert said.startswith("anywhere → T2_CH_CERN: schemes no longer set. From the next cycle on")
    aso("policy", "unset", "--destination", CERN)
    assert [row.scope for row in policy_rows(conn)] == [Scope(username="alice")]


def test_list(aso: Aso) -> None:
    assert "Nothing is set" in aso("policy", "list").stdout
    aso("policy", "set", "--user", "alice", "--activity", "Skims", "credential=user")
    aso("policy", "set", "max_attempts=5")
    lines = aso("policy", "list").stdout.splitlines()
    assert lines[0].startswith("everything  (by maria, ")
    assert lines[1] == "  max_attempts = 5"
    assert lines[2].startswith("user alice, activity Skims  (by maria, ")
    assert [row["settings"] for row in json.loads(aso("policy", "list", "--json").stdout)] == [
        {"max_attempts": 5},
        {"credential": "user"},
    ]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["set", "speed=3"], "no such setting: speed; there are breaker_attempts"),
        (["set", "max_attempts=0"], "max_attempts cannot be '0': it must be a whole number from 1 to 100"),
        (["set", "max_attempts"], "'max_attempts' is no setting"),
        (["set", "--source", "T2_FR_Nowhere", "max_attempts=3"], "T2_FR_Nowhere"),
        (["unset", "max_attempts"], "Nothing of that is set for everything"),
    ],
)
def test_what_is_wrong_is_said(aso: Aso, conn: Connection, arguments: list[str], says: str) -> None:
    result = aso("policy", *arguments)
    assert isinstance(result.exception, Advice)
    assert says in str(result.exception)
    assert result.exception.remedy
    assert policy_rows(conn) == []


def test_the_reference_is_made_of_the_settings(aso: Aso) -> None:
    page = Path(__file__).parents[2] / "docs" / "reference" / "policies.md"
    assert page.read_text() == aso("policy", "reference").stdout, (
        "aso policy reference > docs/reference/policies.md"
    )
    assert all(f"| `{name}` |" in page.read_text() for name in SETTINGS)


def test_changes_say_who_what_and_from_what_to_what(aso: Aso) -> None:
    aso("policy", "set", "--source", BARI, "max_attempts=5")
    aso("policy", "set", "--source", BARI, "max_attempts=6", "reuse=true")
    aso("pause", "--site", BARI, "--reason", "disk full")
    aso("policy", "unset", "--source", BARI)
    lines = aso("changes", "--limit", "4").stdout.splitlines()
    heads = [line.split("UTC  ")[1] for line in lines if not line.startswith(" ")]
    assert [head.split("  ", 1)[1] for head in heads] == [
        "removed policy of T2_IT_Bari → anywhere",
        "set pause 1 of site T2_IT_Bari",
        "changed policy of T2_IT_Bari → anywhere",
        "set policy of T2_IT_Bari → anywhere",
    ]
    assert "    max_attempts: 5 → 6" in lines
    assert "    reuse: null → true" not in lines
    assert "    reuse: none → true" in lines
    assert "    reason: none → disk full" in lines
    found = json.loads(aso("changes", "--of", "link_policy", "--json").stdout)
    assert [one["actor"] for one in found] == ["maria"] * 3
    assert aso("changes", "--since", "2099-01-01").stdout == "No changes.\n"
