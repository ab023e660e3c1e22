"""How a file travels, and the sentence that says why it does not."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from asyncstageout.core.planning import FileNames, Link, PendingFile
from asyncstageout.core.policies import Bucket, Policies, PolicyRow
from asyncstageout.core.restrictions import Mode, Restriction, Restrictions
from asyncstageout.core.routing import Held, Routing, Way, job_key
from asyncstageout.core.servers import FTSServer
from asyncstageout.core.storages.model import Protocol, Rule, Storage, Unresolvable, prefix_storage

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
LINK = Link("T2_IT_Bari", "T1_DE_KIT")
SRM = Storage(
    site="T2_ES_IFCA",
    kind="tfc",
    protocols=(
        Protocol(
            name="srmv2",
            to_pfn=(Rule(match="/+store/user/(.*)", result="srm://se:8444/x?SFN=/$1", space_token="USER"),),
            read=1,
            write=1,
        ),
    ),
)
STORAGES = {
    "T2_IT_Bari": (1, prefix_storage("T2_IT_Bari", "davs://bari:443/cms")),
    "T1_DE_KIT": (
        2,
        prefix_storage("T1_DE_KIT", "davs://kit:443").model_copy(update={"fts": ("https://fts-b:8446",)}),
    ),
    "T2_ES_IFCA": (3, SRM),
}
SERVERS = [
    FTSServer("fts_a", "https://fts-a:8446"),
    FTSServer("fts_b", "https://fts-b:8446"),
]


def routing(*rows: PolicyRow, **changes: Any) -> Routing:
    parts = {
        "restrictions": Restrictions([], NOW),
        "servers": SERVERS,
        "storages": STORAGES,
        "holds": {},
    } | changes
    return Routing(policies=Policies(rows), **parts)


def policy(settings: dict[str, Any], **scope: Any) -> PolicyRow:
    return PolicyRow(scope.pop("source", None), scope.pop("destination", None), settings, **scope)


def file(**changes: Any) -> PendingFile:
    fields = {
        "transfer_id": 1, "source": LINK.source, "destination": LINK.destination, "username": "alice",
        "identity": "alice", "activity": "default", "priority": 3, "size_bytes": 1,
        "source_lfn": "/store/temp/user/alice.x/a", "destination_lfn": "/store/user/alice/a",
    }  # fmt: skip
    return PendingFile(**(fields | changes))


def test_a_file_goes_with_the_server_that_its_destination_wants() -> None:
    way = routing().way(LINK, "alice", None, "alice")
    assert isinstance(way, Way)
    assert way[1:] == (Bucket(*LINK), "fts_b", "service", FileNames(1, "davs", 2, "davs"))


def test_when_that_server_fails_the_next_takes_over() -> None:
    failing = [SERVERS[0], FTSServer("fts_b", "https://fts-b:8446", failing_since=NOW)]
    way = routing(servers=failing).way(LINK, "alice", None, "alice")
    assert isinstance(way, Way)
    assert way.fts_server == "fts_a"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"servers": []}, "no FTS server is up: none is known"),
        ({"servers": [FTSServer("fts_a", state="draining")]}, "no FTS server is up: fts_a is draining"),
        (
            {"restrictions": Restrictions(
                [Restriction(1, Mode.PAUSE, "T1_DE_KIT", None, None, None, None, "disk full", "ops", NOW)], NOW
            )},
            "paused by ops: disk full",
        ),
        ({"storages": {}}, "T2_IT_Bari has no description of its names (aso sites load)"),
        (
            {"storages": STORAGES | {"T1_DE_KIT": STORAGES["T2_ES_IFCA"]}},
            "T2_IT_Bari can be read by davs and T2_ES_IFCA written by srm: they share no scheme",
        ),
        ({"holds": {("fts_b", "service"): "403 for us"}}, "403 for us"),
        ({"holds": {("", "service"): "no certificate"}}, "no certificate"),
    ],
)  # fmt: skip
def test_what_holds_a_link_is_said(changes: dict[str, Any], reason: str) -> None:
    held = routing(**changes).way(LINK, "alice", None, "alice")
    assert isinstance(held, Held)
    assert reason in held.reason
    assert not held.is_identity, "these hold everybody's files"


def test_a_user_travels_in_his_own_name_where_the_policy_says_so() -> None:
    rows = policy({"credential": "user"}, destination="T1_DE_KIT")
    identity = "alice@cms+uscms+production"
    way = routing(rows).way(LINK, "alice", None, identity)
    assert isinstance(way, Way)
    assert way.identity == identity
    held = routing(rows, holds={("", identity): "expired"}).way(LINK, "alice", None, identity)
    assert held == Held("expired", is_identity=True)
    assert isinstance(routing(rows, holds={("", identity): "expired"}).way(LINK, "alice", None, "alice"), Way)
    assert isinstance(
        routing(rows, holds={("fts_a", identity): "403"}).way(LINK, "alice", None, identity), Way
    )


def test_the_service_of_a_vo_goes_to_a_server_of_that_vo() -> None:
    servers = [FTSServer("fts_cms", vo="cms", weight=1000), FTSServer("fts_atlas", vo="atlas")]
    way = routing(servers=servers).way(LINK, "alice", None, "alice@atlas")
    assert isinstance(way, Way)
    assert (way.fts_server, way.identity) == ("fts_atlas", "service@atlas")


def test_names_and_parameters_of_a_job() -> None:
    link = Link("T2_ES_IFCA", "T2_ES_IFCA")
    rows = policy({"scitag": 65, "priority": 5, "fts_activity": "User", "reuse": True, "timeout_s": 9})
    board = routing(rows)
    way = board.way(link, "alice", None, "alice")
    assert isinstance(way, Way)
    pending = file(source="T2_ES_IFCA", destination="T2_ES_IFCA", source_lfn="/store/user/alice/b")
    named = board.name(pending, way)
    assert named.source.url == "srm://se:8444/x?SFN=/alice/b"
    key = job_key(pending, way, named)
    assert (key.activity, key.priority) == ("User", 5)
    assert dict(key.params) == {
        "verify_checksum": "both", "overwrite": True, "retry": -1, "timeout_s": 9, "max_time_in_queue": 10,
        "reuse": True, "dst_file_report": False, "scitag": 65, "source_spacetoken": "USER",
        "destination_spacetoken": "USER",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("wanted", "verifiable"), [("both", "both"), ("source", "none"), ("target", "none"), ("none", "none")]
)
def test_fts_is_not_asked_to_verify_what_nobody_knows(wanted: str, verifiable: str) -> None:
    board = routing(policy({"verify_checksum": wanted}))
    way = board.way(LINK, "alice", None, "alice")
    assert isinstance(way, Way)
    params = [
        dict(job_key(one, way, board.name(one, way)).params) for one in (file(), file(has_checksum=False))
    ]
    assert [one["verify_checksum"] for one in params] == [wanted, verifiable]


def test_a_name_that_no_rule_makes_says_whose() -> None:
    board = routing()
    link = Link("T2_ES_IFCA", "T2_ES_IFCA")
    way = board.way(link, "alice", None, "alice")
    assert isinstance(way, Way)
    with pytest.raises(Unresolvable, match=r"no rule of T2_ES_IFCA matches /store/temp/user"):
        board.name(file(source="T2_ES_IFCA", destination="T2_ES_IFCA"), way)


def test_a_retry_that_must_overwrite_is_another_job() -> None:
    board = routing(policy({"overwrite": False}))
    way = board.way(LINK, "alice", None, "alice")
    assert isinstance(way, Way)
    keys = {job_key(one, way, board.name(one, way)) for one in (file(), file(overwrite=True))}
    assert {dict(key.params)["overwrite"] for key in keys} == {False, True}
