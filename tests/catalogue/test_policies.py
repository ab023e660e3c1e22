"""Policies are set, changed and taken away, each time on record, and read back as they were meant."""

from __future__ import annotations

from typing import Any

import pytest
from psycopg import Connection

from asyncstageout.catalogue.config_changes import UnknownSite, config_changes
from asyncstageout.catalogue.policies import add_settings, drop_settings, policy_rows, put_policy
from asyncstageout.core.policies import Bucket, Policies, UnknownSetting, WrongValue
from asyncstageout.core.scopes import Scope

BARI, CERN = "T2_IT_Bari", "T2_CH_CERN"


def settings(conn: Connection) -> dict[Scope, dict[str, Any]]:
    return {row.scope: row.settings for row in policy_rows(conn)}


def test_one_row_per_scope(conn: Connection) -> None:
    put_policy(conn, None, None, {"files_per_job": 10}, "ops")
    put_policy(conn, None, None, {"max_attempts": 2}, "ops")
    put_policy(conn, BARI, None, {"files_per_job": 20}, "ops", username="alice", activity="Skims")
    assert settings(conn) == {
        Scope(): {"max_attempts": 2},
        Scope(BARI, None, "alice", "Skims"): {"files_per_job": 20},
    }


def test_settings_are_added_and_dropped_one_by_one(conn: Connection) -> None:
    scope = Scope(BARI, CERN, "alice")
    assert add_settings(conn, scope, {"max_attempts": 2, "schemes": ["davs", "root"]}, "ops")
    assert add_settings(conn, scope, {"max_attempts": 4, "scitag": None}, "maria")
    assert not add_settings(conn, scope, {"max_attempts": 4}, "tom"), "nothing changed"
    assert settings(conn) == {scope: {"max_attempts": 4, "schemes": ["davs", "root"], "scitag": None}}
    assert Policies(policy_rows(conn)).of(BARI, CERN, "alice").schemes == ("davs", "root")
    assert drop_settings(conn, scope, ["schemes", "priority"], "ops") == ["schemes"]
    assert drop_settings(conn, scope, ["schemes"], "ops") == []
    assert settings(conn) == {scope: {"max_attempts": 4, "scitag": None}}
    assert drop_settings(conn, scope, [], "ops") == ["max_attempts", "scitag"]
    assert drop_settings(conn, Scope(), [], "ops") == []
    assert settings(conn) == {}


def test_what_is_wrong_changes_nothing(conn: Connection) -> None:
    for wrong, error in (
        ({"speed": 1}, UnknownSetting),
        ({"max_attempts": 0}, WrongValue),
        ({"paused": "disk full"}, UnknownSetting),
    ):
        with pytest.raises(error):
            put_policy(conn, None, None, wrong, "ops")
        with pytest.raises(error):
            add_settings(conn, Scope(), wrong, "ops")
    with pytest.raises(UnknownSite, match="T2_FR_Nowhere"):
        put_policy(conn, "T2_FR_Nowhere", None, {"max_attempts": 1}, "ops")
    assert settings(conn) == {}


def test_every_change_is_on_record_with_its_actor(conn: Connection) -> None:
    add_settings(conn, Scope(None, CERN), {"max_attempts": 2}, "maria")
    add_settings(conn, Scope(None, CERN), {"max_attempts": 4}, "tom")
    add_settings(conn, Scope(None, CERN), {"max_attempts": 4}, "nobody")
    drop_settings(conn, Scope(None, CERN), [], "alice")
    changes = config_changes(conn, table="link_policy")
    assert [
        (one.actor, one.before and one.before["settings"], one.after and one.after["settings"])
        for one in changes
    ] == [
        ("alice", {"max_attempts": 4}, None),
        ("tom", {"max_attempts": 2}, {"max_attempts": 4}),
        ("maria", None, {"max_attempts": 2}),
    ]
    assert {one.at.tzinfo is not None for one in changes} == {True}
    assert config_changes(conn, table="link_policy", limit=1) == changes[:1]
    assert config_changes(conn, table="link_policy", since=changes[1].at) == changes[:2]


def test_limits_of_users_have_buckets_of_their_own(conn: Connection) -> None:
    put_policy(conn, None, None, {"max_files_in_flight": 100}, "ops")
    put_policy(conn, None, CERN, {"max_files_in_flight": 5}, "ops", username="alice")
    policies = Policies(policy_rows(conn))
    assert policies.bucket_of(BARI, CERN, "bob") == Bucket(BARI, CERN)
    assert policies.bucket_of(BARI, CERN, "alice") == Bucket(BARI, CERN, "alice")
