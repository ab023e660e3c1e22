"""What needs a person: each kind is found when it is there, and not before."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from psycopg import Connection

from asyncstageout.catalogue.attention import About, Attention, Severity, attention
from asyncstageout.catalogue.credentials import CredentialNote, note_credentials
from asyncstageout.catalogue.fts_servers import note_contact, set_state
from asyncstageout.catalogue.identity_holds import hold
from asyncstageout.catalogue.link_health import open_breaker
from asyncstageout.catalogue.partitions import ensure_partitions
from asyncstageout.catalogue.restrictions import Area, lift, restrict
from asyncstageout.catalogue.site_sources import SiteSource, put_source, record_looks
from asyncstageout.catalogue.step_runs import Actor, end_step, start_step
from asyncstageout.core.planning import Link
from asyncstageout.core.restrictions import Mode
from fixtures.catalogue import Add, Plan, record

NOW = datetime.now(UTC)
LINK = Link("T2_IT_Bari", "T2_CH_CERN")


@pytest.fixture(autouse=True)
def well(conn: Connection) -> None:
    """A catalogue in which nothing is wrong."""
    ensure_partitions(conn, NOW.date())
    note_contact(conn, "fts", None, datetime.now(UTC))
    assert attention(conn, NOW) == []


def only(conn: Connection) -> Attention:
    (found,) = attention(conn, datetime.now(UTC))
    return found


def ran(conn: Connection, task_id: str, outcome: str, sentence: str = "", **where: object) -> None:
    actor = Actor(
        task_id,
        "airflow",
        "stageout_reconcile",
        str(where.get("run", "r1")),
        int(str(where.get("index", -1))),
    )
    end_step(conn, start_step(conn, actor), outcome=outcome, sentence=sentence, counts={})


def test_a_step_that_failed(conn: Connection) -> None:
    ran(conn, "check", "success")
    ran(conn, "repair", "failed", "OperationalError: gone")
    ran(conn, "verdict", "failed", "NeedsAPerson: 3 jobs at FTS that nobody asks about")
    worst, other = attention(conn, datetime.now(UTC))
    assert worst.severity is Severity.URGENT
    assert worst.sentence == "stageout_reconcile.verdict failed: 3 jobs at FTS that nobody asks about"
    assert worst.about == About("step", ("stageout_reconcile", "r1", "verdict", "-1"))
    assert (other.severity, other.about.names[2]) == (Severity.WARNING, "repair")
    ran(conn, "verdict", "success", run="r2")
    ran(conn, "repair", "success")  # another try
    assert attention(conn, datetime.now(UTC)) == []


def test_one_of_several_mapped_tasks_that_failed(conn: Connection) -> None:
    ran(conn, "submit", "failed", "FTSError: no", index=0)
    ran(conn, "submit", "success", index=1)
    assert only(conn).about == About("step", ("stageout_reconcile", "r1", "submit", "0"))


def test_a_step_that_never_reported_back(conn: Connection) -> None:
    step = start_step(conn, Actor("sense", "airflow", "stageout_sense", "r1"))
    conn.execute("UPDATE step_run SET started_at = now() - interval '2 h' WHERE id = %s", (step,))
    assert only(conn).sentence == "stageout_sense.sense has not reported back"


def test_files_wait_and_nothing_collects(conn: Connection, add: Add) -> None:
    add(record(1))
    assert attention(conn, datetime.now(UTC)) == []
    conn.execute("UPDATE transfer SET due_at = now() - interval '11 min'")
    assert only(conn).severity is Severity.URGENT
    assert only(conn).sentence == "Files wait and no cycle has collected any"
    collect = Actor("collect", "airflow", "stageout_transfer", "r1")
    end_step(conn, start_step(conn, collect), outcome="success", sentence="", counts={})
    assert attention(conn, datetime.now(UTC)) == [], "they wait for something else"


def test_servers(conn: Connection) -> None:
    set_state(conn, "fts", "draining", reason="upgrade", by="olga")
    assert only(conn).sentence == "FTS server fts is draining: upgrade"
    assert only(conn).severity is Severity.URGENT, "there is no other"
    set_state(conn, "fts", "up", reason=None, by="olga")
    note_contact(conn, "fts", "connection refused", datetime.now(UTC), refused=True)
    assert only(conn).sentence.endswith(": connection refused")
    assert only(conn).rule == "fts-server-down"


def test_jobs_that_nobody_looks_after(conn: Connection, add: Add, plan: Plan, submitted: Plan) -> None:
    add(record(1))
    submitted()
    add(record(2))
    plan()
    assert attention(conn, datetime.now(UTC)) == []
    conn.execute("UPDATE fts_job SET submitted_at = now() - interval '11 min' WHERE state = 'SUBMITTED'")
    conn.execute("UPDATE transfer SET updated_at = now() - interval '11 min'")
    assert {one.sentence for one in attention(conn, datetime.now(UTC))} == {
        "1 job that FTS has not confirmed for 10 minutes", "1 job at FTS that nobody asks about",
    }  # fmt: skip
    conn.execute("UPDATE fts_server_health SET checked_at = now() - interval '1 h'")
    sentences = [one.sentence for one in attention(conn, datetime.now(UTC))]
    assert "Nobody asks FTS server fts about its 2 open jobs" in sentences


def test_breakers(conn: Connection) -> None:
    open_breaker(conn, LINK, reason="9 of 10 failed", openings=1, wait_s=300)
    assert (only(conn).severity, only(conn).about) == (Severity.NOTE, About("link", LINK))
    conn.execute("UPDATE link_breaker SET opened_at = now() - interval '7 h'")
    assert only(conn).severity is Severity.WARNING


def test_restrictions_that_end_soon_or_were_forgotten(conn: Connection) -> None:
    made = restrict(
        conn, Mode.PAUSE, Area(site="T2_IT_Bari"), reason="full", by="olga", ends_at=NOW + timedelta(hours=9)
    )
    restrict(
        conn,
        Mode.PAUSE,
        Area(site="T2_US_MIT"),
        reason="announced",
        by="olga",
        starts_at=NOW + timedelta(hours=1),
    )
    assert attention(conn, datetime.now(UTC)) == []
    conn.execute(
        "UPDATE restriction SET ends_at = now() + interval '1 h' WHERE id = %s", (made.restriction_id,)
    )
    assert only(conn).sentence.startswith("Site T2_IT_Bari is paused by olga: full (ends at")
    assert only(conn).about == About("site", ("T2_IT_Bari",))
    lift(conn, [made.restriction_id], "olga")
    restrict(conn, Mode.DRAIN, Area(source=LINK.source, destination=LINK.destination), reason="old", by="olga",
             starts_at=NOW - timedelta(days=15))  # fmt: skip
    assert only(conn).sentence == f"{LINK} is drained by olga: old (without an end)"
    assert only(conn).about == About("link", LINK)


def test_credentials(conn: Connection) -> None:
    note_credentials(conn, [CredentialNote("service", "x509", "s", (), NOW + timedelta(days=30))])
    assert attention(conn, datetime.now(UTC)) == []
    note_credentials(conn, [CredentialNote("service", "x509", "s", (), NOW + timedelta(days=3))])
    assert only(conn).severity is Severity.NOTE
    assert only(conn).sentence.startswith("Credential of service ends on")
    note_credentials(conn, [CredentialNote("service", "x509", "s", (), NOW - timedelta(days=1))])
    assert only(conn).sentence.startswith("Credential of service ended on")
    conn.execute("DELETE FROM credential")
    hold(conn, "fts", ["alice@cms", "bob@cms"], reason="no VOMS", wait_s=600)
    assert only(conn).sentence.endswith("no VOMS, and 1 more")


def test_descriptions_of_sites(conn: Connection) -> None:
    put_source(conn, SiteSource("/sites", "siteconf"), "olga")
    record_looks(conn, "/sites", {"T2_IT_Bari": "no JSON", "T2_US_MIT": None}, now=NOW)
    assert only(conn).sentence == "The description of T2_IT_Bari cannot be used: no JSON"


def test_objects_put_aside(conn: Connection, step: int) -> None:
    conn.execute(
        "INSERT INTO intake_object (source, name, digest, step_run, problem) VALUES ('inbox', %s, '', %s, 'no NDJSON')",
        (str(uuid4()), step),
    )
    assert only(conn).sentence == "1 object of source inbox put aside: no NDJSON"


def test_partitions(conn: Connection) -> None:
    conn.execute(f"DROP TABLE transfer_event_{NOW:%Y%m%d}")
    assert only(conn).sentence == f"Partitions are missing: transfer_event_{NOW:%Y%m%d}"
