"""Which FTS server takes a link's jobs."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from asyncstageout.core.servers import FTSServer, choose_server, none_is_up

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
CERN = FTSServer("cern", "https://fts3-cms.cern.ch:8446")
FNAL = FTSServer("fnal", "https://cmsfts3.fnal.gov:8446/", regions=("US", "T2_BR_*"))
RAL = FTSServer("ral", "https://lcgfts3.gridpp.rl.ac.uk:8446", vo="cms", regions=("T1_UK_RAL",))
ALL = (CERN, FNAL, RAL)


def chosen(servers: tuple[FTSServer, ...] = ALL, **options: Any) -> str | None:
    server = choose_server(servers, **{"destination": "T2_IT_Bari", "key": "a -> b"} | options)
    return server.name if server else None


def test_the_site_names_its_servers_in_order() -> None:
    wanted = ["https://LCGFTS3.gridpp.rl.ac.uk:8446/", "https://cmsfts3.fnal.gov:8446"]
    assert chosen(wanted=wanted) == "ral"
    assert chosen((CERN, FNAL, replace(RAL, failing_since=NOON)), wanted=wanted) == "fnal"
    assert chosen(wanted=["https://unknown.example", wanted[1]]) == "fnal"


@pytest.mark.parametrize(
    ("destination", "server"),
    [("T2_US_MIT", "fnal"), ("T2_BR_SPRACE", "fnal"), ("T1_UK_RAL", "ral")],
)
def test_then_a_server_of_the_region(destination: str, server: str) -> None:
    for number in range(20):
        assert chosen(destination=destination, key=str(number)) == server


def test_a_policy_allows_only_some_whatever_the_site_names() -> None:
    assert chosen(allowed=["cern"], wanted=[RAL.endpoint or ""], destination="T2_US_MIT") == "cern"
    assert chosen((FNAL, RAL), allowed=["cern"]) is None


def test_a_server_serves_its_vo() -> None:
    assert chosen((RAL,), vo="atlas") is None
    assert chosen((RAL,), vo="cms") == chosen((RAL,)) == "ral"
    assert chosen((CERN,), vo="atlas") == "cern"


@pytest.mark.parametrize(
    "change", [{"state": "draining"}, {"state": "down"}, {"failing_since": NOON}], ids=str
)
def test_only_one_that_is_up_and_answers_is_chosen(change: dict[str, Any]) -> None:
    assert chosen((replace(CERN, **change), FNAL)) == "fnal"
    assert chosen((replace(CERN, **change),)) is None


def test_why_there_is_none() -> None:
    servers = (replace(CERN, failing_since=NOON), replace(FNAL, state="draining"))
    assert none_is_up(servers) == ("no FTS server is up: cern has not answered since 12:00; fnal is draining")
    assert none_is_up(()) == "no FTS server is up: none is known"


def test_links_are_shared_by_weight_and_stay() -> None:
    servers = (FTSServer("a", weight=100), FTSServer("b", weight=300), FTSServer("c", weight=0))
    before = {key: chosen(servers, key=key) for key in map(str, range(2000))}
    share = Counter(before.values())
    assert 0.22 < share["a"] / 2000 < 0.28
    assert share["c"] == 0
    without_a = {key: chosen(servers[1:], key=key) for key in before}
    assert all(without_a[key] == server for key, server in before.items() if server == "b")
    assert chosen(servers[2:]) == "c", "the last one left"
