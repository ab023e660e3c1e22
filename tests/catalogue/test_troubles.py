"""What is beyond its limit: each kind is found when it is there, and not before."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from psycopg import Connection
from psycopg.types.json import Jsonb

from asyncstageout.catalogue.attention import attention
from asyncstageout.catalogue.fts_servers import note_contact
from asyncstageout.catalogue.link_health import open_breaker
from asyncstageout.catalogue.partitions import ensure_partitions
from asyncstageout.catalogue.restrictions import Area, lift, restrict
from asyncstageout.core.alert_rules import RULES, tuned
from asyncstageout.core.alerts import About, Attention, Severity
from asyncstageout.core.planning import Link
from asyncstageout.core.restrictions import Mode
from fixtures.catalogue import Add, Plan, record
from fixtures.receivers import subscribe

LINK = Link("T2_IT_Bari", "T2_CH_CERN")


def found(conn: Connection, settings: Mapping[str, Mapping[str, Any]] | None = None) -> list[Attention]:
    return attention(conn, datetime.now(UTC), tuned(settings or {}))


def only(conn: Connection, settings: Mapping[str, Mapping[str, Any]] | None = None) -> Attention:
    (one,) = found(conn, settings)
    assert one.rule in RULES
    return one


@pytest.fixture(autouse=True)
def well(conn: Connection) -> None:
    """A catalogue in which nothing is wrong."""
    ensure_partitions(conn, datetime.now(UTC).date())
    note_contact(conn, "fts", None, datetime.now(UTC))
    assert found(conn) == []


def test_what_reconcile_counted_last(conn: Connection) -> None:
    def checked(ago: str, **counts: int) -> None:
        conn.execute(
            "INSERT INTO step_run (dag_id, run_id, task_id, actor, ended_at, outcome, counts)"
            " VALUES ('stageout_reconcile', 'r', 'check', 'airflow', now() - %s::interval, 'success', %s)",
            (ago, Jsonb(counts)),
        )

    checked("11 min", leaked_files=9)
    assert found(conn) == [], "too old to count"
    checked("4 min", unknown_jobs=2, leaked_files=1)
    assert {(one.rule, one.severity, one.sentence) for one in found(conn)} == {
        ("jobs-unknown", Severity.WARNING, "FTS has 2 jobs of ours that the catalogue does not know"),
        ("files-leaked", Severity.URGENT, "1 files have no next step"),
    }
    checked("2 min", unknown_jobs=0, leaked_files=0)
    assert found(conn) == []


def test_kills_that_hang(conn: Connection, add: Add, submitted: Plan) -> None:
    add(record(1))
    submitted()
    conn.execute("UPDATE transfer SET state = 'KILL'")
    assert found(conn) == []
    conn.execute("UPDATE transfer SET updated_at = now() - interval '16 min'")
    one = only(conn)
    assert (one.rule, one.about, one.subject) == ("kills-hanging", About("server", ("fts",)), "fts")
    assert found(conn, {"kills-hanging": {"limit": 1000.0}}) == []


def test_a_link_on_which_most_attempts_fail(conn: Connection) -> None:
    def scored(succeeded: int, failed: int, ago: str = "5 min") -> None:
        conn.execute(
            "INSERT INTO link_window VALUES (%s, %s, date_trunc('minute', now() - %s::interval), %s, %s)",
            (*LINK, ago, succeeded, failed),
        )

    scored(0, 19)
    assert found(conn) == [], "too few to say anything"
    scored(3, 0, "6 min")
    one = only(conn)
    assert one.sentence == f"{LINK}: 19 of 22 attempts failed within an hour"
    assert one.subject == "T2_IT_Bari/T2_CH_CERN"
    scored(0, 500, "65 min")
    scored(3, 0, "7 min")
    assert found(conn) == [], "what was before the hour does not count"
    assert only(conn, {"link-failing": {"limit": 0.5}}).rule == "link-failing"
    open_breaker(conn, LINK, reason="x", openings=1, wait_s=60)
    assert only(conn, {"link-failing": {"limit": 0.5}}).rule == "link-broken", "once"


def test_files_that_wait_too_long(conn: Connection, add: Add) -> None:
    add(record(1), record(2))
    conn.execute(
        "INSERT INTO step_run (dag_id, run_id, task_id, actor, ended_at, outcome)"
        " VALUES ('stageout_transfer', 'r', 'collect', 'airflow', now(), 'success')"
    )
    conn.execute("UPDATE transfer SET due_at = now() - interval '5 h'")
    assert found(conn) == []
    conn.execute("UPDATE transfer SET due_at = now() - interval '7 h'")
    assert only(conn).sentence.startswith(f"{LINK}: 2 files wait since ")
    made = restrict(conn, Mode.PAUSE, Area(site=LINK.source), reason="full", by="olga",
                    ends_at=datetime.now(UTC) + timedelta(days=1))  # fmt: skip
    assert found(conn) == [], "a pause holds them back"
    lift(conn, [made.restriction_id], "olga")
    conn.execute("UPDATE transfer SET driver = 'elsewhere'")
    assert found(conn) == [], "somebody else moves them"


def test_publication_that_is_stuck(conn: Connection, add: Add) -> None:
    add(record(1))
    conn.execute(
        """
        INSERT INTO block (name, task_id, dataset, destination, dbs, transfer_ids, lumis, payload_bytes, size_bytes,
            oldest_at, state, closed_at, reason)
        SELECT '/a/b/USER#1', id, '/a/b/USER', 'T2_CH_CERN', 'dbs_phys03', '{1}', 1, 1, 1, now(), 'CLOSED',
            now() - interval '59 min', '503' FROM task
        """
    )
    assert found(conn) == []
    one = only(conn, {"publication-stuck": {"limit": 600.0}})
    assert (one.subject, one.sentence) == ("dbs_phys03", "dbs_phys03 has not taken 1 blocks: 503")


def test_a_storage_that_lets_nothing_be_deleted(conn: Connection) -> None:
    conn.execute(
        "INSERT INTO cleaning_site (site, failing_since, reason)"
        " VALUES ('T2_IT_Bari', now() - interval '5 h', 'answered 403')"
    )
    assert found(conn) == []
    assert only(conn, {"cleaning-failing": {"limit": 60.0}}).sentence == (
        "Nothing can be deleted at T2_IT_Bari: answered 403"
    )


def test_subscribers_and_dead_letters(conn: Connection) -> None:
    number = subscribe(conn, "hook")
    conn.execute(
        "INSERT INTO subscription_health VALUES (%s, 1, now() - interval '59 min', now(), 'busy', false)",
        (number,),
    )
    assert found(conn) == []
    conn.execute("UPDATE subscription_health SET needs_person = true")
    assert only(conn).sentence == "Subscriber hook takes nothing: busy"
    conn.execute("DELETE FROM subscription_health")
    conn.execute(
        "INSERT INTO outbox (subscription, transfer_id, event_kind, event_id, to_state, at, dead_at)"
        " VALUES (%s, 1, 'transfer', 1, 'DONE', now(), now())",
        (number,),
    )
    assert only(conn).sentence == "Subscriber hook has 1 dead letters"


def test_hours_that_nobody_counted(conn: Connection) -> None:
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    for ago in (3, 4, 5, 7):
        start = hour - timedelta(hours=ago)
        conn.execute(
            "INSERT INTO rolled_hour (hour, until, events, step_run) VALUES (%s, %s, 0, 1)",
            (start, start + timedelta(hours=1)),
        )
    one = only(conn)
    assert one.sentence == f"Not counted: 1 hours, the first {hour - timedelta(hours=6):%Y-%m-%d %H:%M} UTC"
    conn.execute("DELETE FROM rolled_hour WHERE hour < %s", (hour - timedelta(hours=6),))
    assert found(conn) == []


def test_the_size_of_the_database(conn: Connection) -> None:
    row = conn.execute("SELECT pg_database_size(current_database())").fetchone()
    assert row
    assert found(conn) == [], "no limit was set"
    for share, severity in ((0.9, Severity.WARNING), (0.5, Severity.URGENT)):
        assert only(conn, {"database-size": {"limit": row[0] * share}}).severity is severity
    assert found(conn, {"database-size": {"limit": row[0] * 1.1}}) == []


def test_a_rule_that_is_off_finds_nothing(conn: Connection) -> None:
    open_breaker(conn, LINK, reason="x", openings=1, wait_s=60)
    assert only(conn).rule == "link-broken"
    assert found(conn, {"link-broken": {"is_off": True}}) == []
