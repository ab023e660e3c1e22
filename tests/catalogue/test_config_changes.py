"""The record of configuration says who did what, and nobody can change it."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import Connection
from psycopg.errors import RaiseException

from asyncstageout.catalogue.config_changes import changing, config_changes
from asyncstageout.catalogue.policies import add_settings
from asyncstageout.catalogue.restrictions import Area, lift, restrict
from asyncstageout.core.restrictions import Mode
from asyncstageout.core.scopes import Scope


def test_every_kind_of_change_names_its_actor(conn: Connection) -> None:
    before = config_changes(conn, limit=1)
    add_settings(conn, Scope(), {"max_attempts": 2}, "maria")
    paused = restrict(conn, Mode.PAUSE, Area(site="T2_IT_Bari"), reason="disk full", by="tom")
    lift(conn, [paused.restriction_id], "alice")
    with changing(conn, "olga"):
        conn.execute("DELETE FROM site WHERE name = 'T2_IT_Bari'")
    made = [one for one in config_changes(conn) if one not in before and one.actor != "test"]
    assert [(one.actor, one.object, one.before is None, one.after is None) for one in reversed(made)] == [
        ("maria", "link_policy", True, False),
        ("tom", "restriction", True, False),
        ("alice", "restriction", False, False),
        ("olga", "site", False, True),
        ("olga", "restriction", False, True),
    ]


def test_a_deletion_outside_is_the_database_users(conn: Connection) -> None:
    add_settings(conn, Scope(), {"max_attempts": 2}, "maria")
    conn.execute("DELETE FROM link_policy")
    row = conn.execute("SELECT current_user").fetchone()
    assert row is not None
    assert config_changes(conn, limit=1)[0].actor == row[0]
    with changing(conn, "maria"):
        pass
    add_settings(conn, Scope(), {"max_attempts": 2}, "maria")
    conn.execute("DELETE FROM link_policy")
    assert config_changes(conn, limit=1)[0].actor == row[0], "the actor is forgotten with his transaction"


@pytest.mark.parametrize(
    "statement", ["UPDATE config_change SET actor = 'nobody'", "DELETE FROM config_change"]
)
def test_the_record_cannot_be_changed(conn: Connection, statement: str) -> None:
    add_settings(conn, Scope(), {"max_attempts": 2}, "maria")
    with pytest.raises(RaiseException):
        conn.execute(statement)


def test_what_is_taken_back_is_not_on_record(conn: Connection) -> None:
    with conn.transaction():
        add_settings(conn, Scope(), {"max_attempts": 2}, "maria")
        raise psycopg.Rollback
    assert config_changes(conn, table="link_policy") == []
