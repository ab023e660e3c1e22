"""Restrictions are set, announced and lifted, refuse new requests, and ring when files may go again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from psycopg import Connection

from asyncstageout.catalogue.bell import PENDING_CHANNEL
from asyncstageout.catalogue.config_changes import UnknownSite, config_changes
from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.history import move_finished
from asyncstageout.catalogue.identity_holds import hold
from asyncstageout.catalogue.link_health import why_waiting
from asyncstageout.catalogue.lookup import next_due
from asyncstageout.catalogue.migrate import upgrade
from asyncstageout.catalogue.policies import policy_rows, put_policy
from asyncstageout.catalogue.restrictions import (
    Area,
    NeverInForce,
    NoReason,
    all_restrictions,
    lift,
    open_restrictions,
    restrict,
    restrictions_in_force,
)
from asyncstageout.catalogue.transitions import Move, apply_moves
from asyncstageout.core.planning import Link
from asyncstageout.core.restrictions import Mode, Restriction, Restrictions
from asyncstageout.core.states import TransferState
from fixtures.catalogue import Add, Plan, record, states

BARI, CERN = "T2_IT_Bari", "T2_CH_CERN"
HOUR = timedelta(hours=1)


def now() -> datetime:
    return datetime.now(UTC)


def pause(conn: Connection, **changes: object) -> Restriction:
    return restrict(
        conn,
        Mode.PAUSE,
        Area(site=BARI),
        **({"reason": "disk full", "by": "ops"} | changes),  # type: ignore[arg-type]
    )


def test_what_is_set_is_read_back(conn: Connection) -> None:
    ends_at = now() + HOUR
    made = restrict(
        conn, Mode.BAN, Area(source=BARI, destination=CERN, username="alice", activity="Skims"),
        reason="loops", by="maria", ends_at=ends_at,
    )  # fmt: skip
    assert open_restrictions(conn) == restrictions_in_force(conn) == all_restrictions(conn) == [made]
    assert (made.mode, made.author, made.reason, made.ends_at) == (Mode.BAN, "maria", "loops", ends_at)
    assert Restrictions([made], now()).stops(BARI, CERN, "alice", "Skims") is made
    assert Restrictions([made], now()).stops(BARI, CERN, "bob", "Skims") is None


def test_an_announced_downtime_is_not_in_force(conn: Connection) -> None:
    made = pause(conn, starts_at=now() + HOUR, ends_at=now() + 3 * HOUR, is_downtime=True)
    assert restrictions_in_force(conn) == []
    assert open_restrictions(conn) == [made]
    assert Restrictions([made], now()).stops(BARI, CERN) is None
    assert Restrictions([made], now() + 2 * HOUR).stops(BARI, CERN) is made
    overlapping = pause(conn, starts_at=now() + 2 * HOUR, ends_at=now() + 4 * HOUR, is_downtime=True)
    assert open_restrictions(conn) == [made, overlapping]


def test_what_is_over_is_kept_but_not_open(conn: Connection) -> None:
    made = pause(conn)
    conn.execute(
        "UPDATE restriction SET starts_at = now() - interval '2 h', ends_at = now() - interval '1 h'"
    )
    assert open_restrictions(conn) == restrictions_in_force(conn) == []
    assert [one.restriction_id for one in all_restrictions(conn)] == [made.restriction_id]
    assert lift(conn, [made.restriction_id], "ops") == [], "it is over already"


def test_a_restriction_has_to_make_sense(conn: Connection) -> None:
    with pytest.raises(NeverInForce):
        pause(conn, ends_at=now() - HOUR)
    with pytest.raises(UnknownSite, match="T2_FR_Nowhere"):
        restrict(conn, Mode.PAUSE, Area(source="T2_FR_Nowhere"), reason="x", by="ops")
    with pytest.raises(NeverInForce):
        pause(conn, starts_at=now() + 2 * HOUR, ends_at=now() + HOUR)
    with pytest.raises(NeverInForce):
        pause(conn, starts_at=now() - 2 * HOUR, ends_at=now() - HOUR)
    with pytest.raises(NoReason):
        pause(conn, reason=" ")
    with pytest.raises(ValueError, match="either end"):
        Area(site=BARI, source=CERN)
    assert all_restrictions(conn) == []


def test_lifting_rings_once_and_is_on_record(conn: Connection, catalogue_url: str) -> None:
    made = [pause(conn), pause(conn)]
    ids = [one.restriction_id for one in made]
    with connect(catalogue_url) as listener:
        listener.execute(f"LISTEN {PENDING_CHANNEL}")
        assert [one.restriction_id for one in lift(conn, ids, "tom")] == ids
        assert lift(conn, ids, "tom") == [], "nothing left to lift: no ring"
        assert len(list(listener.notifies(timeout=0.2))) == 1
    assert restrictions_in_force(conn) == []
    assert [one.author for one in all_restrictions(conn)] == ["ops", "ops"], "who set it stays on it"
    assert [one.actor for one in config_changes(conn, table="restriction")] == ["tom", "tom", "ops", "ops"]


def test_the_bell_is_due_when_a_pause_ends(conn: Connection, add: Add) -> None:
    assert next_due(conn, now()) is None
    first = pause(conn, ends_at=now() + HOUR)
    second = pause(conn, ends_at=now() + 2 * HOUR)
    restrict(conn, Mode.DRAIN, Area(username="bob"), reason="x", by="ops", ends_at=now() + HOUR / 2)
    assert next_due(conn, now()) == first.ends_at
    assert first.ends_at is not None
    assert next_due(conn, first.ends_at) == second.ends_at
    add(record(1))
    conn.execute("UPDATE transfer SET due_at = now() + interval '5 min'")
    due_at = next_due(conn, now())
    assert due_at is not None
    assert due_at < first.ends_at
    lift(conn, [one.restriction_id for one in open_restrictions(conn)], "ops")
    conn.execute("UPDATE transfer SET due_at = now()")
    assert next_due(conn, now()) is None


def test_a_drain_refuses_what_is_new_and_says_why(conn: Connection, add: Add) -> None:
    add(record(0))
    ends_at = datetime(2099, 11, 24, 8, tzinfo=UTC)
    restrict(
        conn, Mode.DRAIN, Area(destination=CERN), reason="moves to new disks", by="maria", ends_at=ends_at
    )
    answers = add(record(0), record(1), record(2, destination="T1_DE_KIT"))
    assert [answer.outcome for answer in answers] == ["exists", "refused", "created"]
    assert answers[1].reason == (
        "anywhere → T2_CH_CERN: drained by maria until 2099-11-24 08:00 UTC: moves to new disks"
    )
    assert states(conn) == {"NEW": 2}


@pytest.mark.parametrize("mode", Mode)
def test_only_drains_and_bans_refuse(add: Add, conn: Connection, mode: Mode) -> None:
    restrict(conn, mode, Area(username="alice"), reason="x", by="ops")
    answers = add(record(1), record(2, username="bob"))
    assert [answer.outcome for answer in answers] == [
        "created" if mode is Mode.PAUSE else "refused",
        "created",
    ]


def test_what_has_finished_exists_in_a_drain_too(
    conn: Connection, add: Add, submitted: Plan, step: int
) -> None:
    add(record(1))
    (job,) = submitted()
    apply_moves(conn, [Move(job.transfer_ids[0], job.sid, TransferState.DONE)], step)
    assert move_finished(conn, keep_done_s=-1) == 1
    restrict(conn, Mode.BAN, Area(), reason="x", by="ops")
    assert [answer.outcome for answer in add(record(1), record(2))] == ["exists", "refused"]


def test_old_pauses_become_restrictions(empty_database_url: str) -> None:
    upgrade(empty_database_url, "0001")
    with connect(empty_database_url) as conn:
        conn.execute("INSERT INTO site VALUES ('T2_IT_Bari', 'davs://bari.example:1', now(), 'setup')")
        conn.execute(
            "INSERT INTO link_policy (source, settings, updated_by) VALUES"
            """ ('T2_IT_Bari', '{"paused": "disk full", "max_attempts": 2}', 'maria'),"""
            """ (NULL, '{"paused": null}', 'tom')"""
        )
    upgrade(empty_database_url)
    with connect(empty_database_url) as conn:
        (pause,) = restrictions_in_force(conn)
        settings = [row.settings for row in policy_rows(conn)]
    assert (pause.mode, pause.source, pause.author) == (Mode.PAUSE, BARI, "maria")
    assert pause.sentence() == "paused by maria: disk full"
    assert settings == [{"max_attempts": 2}, {}]


def test_a_file_says_why_it_waits(conn: Connection, add: Add) -> None:
    add(record(1))
    (link, identity) = (Link(BARI, CERN), "alice")
    assert why_waiting(conn, link, identity, now()) is None
    hold(conn, "fts", ["service"], reason="no proxy", wait_s=300)
    assert "has not let service in" in (why_waiting(conn, link, identity, now()) or "")
    put_policy(conn, None, None, {"credential": "user"}, "ops")
    assert why_waiting(conn, link, identity, now()) is None, "he travels in his own name"
    restrict(conn, Mode.PAUSE, Area(username="alice"), reason="loops", by="ops")
    assert why_waiting(conn, link, identity, now()) == "paused by ops: loops"


def test_a_drain_that_begins_later_refuses_nothing_yet(conn: Connection, add: Add) -> None:
    restrict(conn, Mode.DRAIN, Area(), reason="x", by="ops", starts_at=now() + HOUR)
    assert [answer.outcome for answer in add(record(1))] == ["created"]


def test_requests_keep_whose_they_are(conn: Connection, add: Add) -> None:
    add(record(1), record(2, vo="cms", vo_group="higgs", vo_role="production"))
    rows = conn.execute("SELECT identity FROM transfer ORDER BY id").fetchall()
    assert rows == [("alice",), ("alice@cms+higgs+production",)]
