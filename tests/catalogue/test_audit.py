"""The audit holds for whatever the steps do, and finds each thing that must not be."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from importlib import import_module

import psycopg
import pytest
from psycopg import Connection
from typer.testing import CliRunner

from asyncstageout import cli
from asyncstageout.catalogue.audit import INVARIANTS, audit
from asyncstageout.catalogue.history import move_finished
from asyncstageout.catalogue.publishing import record_published
from asyncstageout.catalogue.transitions import Move, apply_moves
from asyncstageout.core.blocks import PublicationSettings
from asyncstageout.core.failures import classify
from asyncstageout.core.states import TransferState
from asyncstageout.steps.assemble import assemble
from fixtures.catalogue import Add, Plan, record
from fixtures.publication import AT_ONCE, describe, land, lfn
from fixtures.receivers import subscribe

S = TransferState
QUOTA = classify("TRANSFER [5] HTTP 507 : Insufficient Storage")


@pytest.fixture
def lived(conn: Connection, add: Add, submitted: Plan, plan: Plan, step: int) -> Connection:
    """A catalogue with a file in every place: waiting, planned, at FTS, failed, done, in the history."""
    add(*(record(number) for number in range(4)))
    (job,) = submitted(limit=3)
    done, failed, again = job.transfer_ids
    apply_moves(conn, [Move(done, job.sid, S.DONE), Move(failed, job.sid, S.FAILED, QUOTA)], step)
    move_finished(conn, keep_done_s=-1)
    apply_moves(conn, [Move(again, job.sid, S.RETRY, QUOTA)], step)
    submitted()
    add(record(10))
    plan()
    _publish(conn, add, step)
    subscribe(conn, events=["transfer:NEW"])
    add(record(11))
    return conn


def _publish(conn: Connection, add: Add, step: int) -> None:
    """One file is published, one is in an open block, one failed for its metadata."""
    add(*(record(number, publish=True, destination_lfn=lfn(number)) for number in (20, 21, 22)))
    land(conn, step)
    now = datetime.now(UTC) + timedelta(seconds=1)
    describe(conn, step, 20)
    assemble(conn, lambda _: AT_ONCE, now=now, step_run=step)
    record_published(conn, [block for (block,) in conn.execute("SELECT id FROM block")], step)
    describe(conn, step, 21)
    describe(conn, step, 22, outdataset="/no")
    assemble(conn, lambda _: PublicationSettings(), now=now, step_run=step)


def violations(conn: Connection, since: datetime | None = None) -> dict[str, int]:
    return {one.name: one.violations for one in audit(conn, since) if one.violations}


@pytest.mark.parametrize("since", [None, timedelta(hours=1), -timedelta(hours=1)])
def test_what_the_steps_do_holds(lived: Connection, since: timedelta | None) -> None:
    states = lived.execute("SELECT DISTINCT state::text FROM transfer ORDER BY 1").fetchall()
    assert [state for (state,) in states] == ["ACQUIRED", "DONE", "FAILED", "NEW", "SUBMITTED"]
    publications = lived.execute("SELECT DISTINCT publication::text FROM transfer ORDER BY 1").fetchall()
    assert [state for (state,) in publications] == ["ACQUIRED", "DONE", "FAILED", "NOT_REQUIRED"]
    assert violations(lived, None if since is None else datetime.now(UTC) - since) == {}


Damage = str
DAMAGES: dict[str, tuple[Damage, ...]] = {
    "one place": (
        "INSERT INTO transfer_history SELECT * FROM transfer WHERE state = 'FAILED'",
        "UPDATE transfer SET request_id = (SELECT request_id FROM transfer_history) WHERE state = 'NEW'",
    ),
    "known in the past": ("DELETE FROM past_request", "UPDATE past_request SET transfer_id = 0"),
    "nothing vanished": ("DELETE FROM transfer WHERE state = 'FAILED'", "DELETE FROM transfer_history"),
    "states agree": (
        "UPDATE transfer_history SET state = 'SUBMITTED'",
        "UPDATE transfer SET attempt = 0 WHERE state = 'SUBMITTED'",
        "UPDATE transfer SET already_there = true WHERE state = 'NEW'",
    ),
    "jobs agree": (
        "UPDATE fts_job SET job_id = NULL WHERE state = 'SUBMITTED'",
        "UPDATE fts_job SET ended_at = now() WHERE state = 'PLANNED'",
    ),
    "every move on record": (
        "UPDATE transfer SET state = 'DONE', ended_at = now() WHERE state = 'SUBMITTED'",
        "INSERT INTO transfer_event (transfer_id, from_state, to_state, attempt, step_run)"
        " SELECT id, 'NEW', 'RETRY', 0, 1 FROM transfer WHERE state = 'NEW'",
        "INSERT INTO transfer_event (transfer_id, from_state, to_state, attempt, step_run)"
        " SELECT id, 'DONE', 'NEW', 0, 1 FROM transfer WHERE state = 'NEW'",
        "ALTER TABLE transfer_event DISABLE TRIGGER transfer_event_append_only;"
        "DELETE FROM transfer_event WHERE to_state = 'ACQUIRED' AND transfer_id = 1",
        "UPDATE transfer SET attempt = 7 WHERE state = 'NEW'",
        "UPDATE transfer SET fts_job = gen_random_uuid() WHERE state = 'FAILED'",
    ),
    "every move signed": ("ALTER TABLE step_run DISABLE TRIGGER ALL; DELETE FROM step_run",),
    "attempts": ("UPDATE transfer SET attempt = 7 WHERE state = 'FAILED'",),
    "once in a job": (
        "INSERT INTO transfer_event (transfer_id, from_state, to_state, attempt, fts_job, step_run)"
        " SELECT id, 'ACQUIRED', 'SUBMITTED', 1, fts_job, 1 FROM transfer WHERE state = 'SUBMITTED'",
    ),
    "exact lists": (
        "ALTER TABLE fts_job DISABLE TRIGGER fts_job_exact_list;"
        "UPDATE fts_job SET transfer_ids = transfer_ids || 999 WHERE state = 'PLANNED'",
        "ALTER TABLE fts_job DISABLE TRIGGER fts_job_exact_list;"
        "UPDATE fts_job SET transfer_ids = '{}' WHERE state = 'PLANNED'",
    ),
    "in a living job": (
        "UPDATE fts_job SET state = 'REFUSED' WHERE state = 'PLANNED'",
        "UPDATE fts_job SET state = 'SUBMITTED' WHERE state = 'PLANNED'",
        "DELETE FROM fts_job WHERE state = 'PLANNED'",
    ),
    "one job at a time": (
        "UPDATE fts_job SET state = 'PLANNED' WHERE state = 'ENDED';"
        "ALTER TABLE transfer_event DISABLE TRIGGER transfer_event_append_only;"
        "DELETE FROM transfer_event WHERE to_state = 'RETRY'",
    ),
    "open files": (
        "UPDATE fts_job SET open_files = open_files + 1 WHERE state = 'SUBMITTED'",
        "UPDATE fts_job SET open_files = 0 WHERE state = 'PLANNED'",
        "UPDATE fts_job SET state = 'SUBMITTED' WHERE state = 'ENDED'",
    ),
    "one writer": (
        "DROP INDEX transfer_one_writer;"
        "UPDATE transfer SET destination_lfn = (SELECT destination_lfn FROM transfer WHERE state = 'ACQUIRED')"
        " WHERE state = 'SUBMITTED'",
    ),
    "publication on record": (
        "UPDATE transfer SET publication = 'NEW' WHERE publication = 'ACQUIRED'",
        "UPDATE transfer SET publication = 'RETRY' WHERE state = 'NEW'",
        "INSERT INTO file_event (transfer_id, kind, from_state, to_state, step_run)"
        " SELECT id, 'publication', 'NEW', 'ACQUIRED', 1 FROM transfer WHERE publication = 'ACQUIRED'",
        "INSERT INTO file_event (transfer_id, kind, from_state, to_state, step_run)"
        " SELECT id, 'publication', 'DONE', 'ACQUIRED', 1 FROM transfer WHERE publication = 'DONE';"
        "UPDATE transfer SET publication = 'ACQUIRED' WHERE publication = 'DONE'",
    ),
    "in a living block": (
        "UPDATE block SET state = 'FAILED', closed_at = now(), settled_at = now() WHERE state = 'OPEN'",
        "DELETE FROM block WHERE state = 'OPEN'",
        "UPDATE block SET transfer_ids = '{}' WHERE state = 'OPEN'",
        "UPDATE transfer SET block_id = NULL WHERE publication = 'ACQUIRED'",
    ),
    "blocks agree": ("UPDATE block SET transfer_ids = transfer_ids || 1::bigint WHERE state = 'OPEN'",),
    "known to be in DBS": (
        "ALTER TABLE file_event DISABLE TRIGGER file_event_append_only;"
        "UPDATE file_event SET subject = NULL WHERE to_state = 'DONE'",
    ),
    "messages known": (
        "ALTER TABLE subscription_health DROP CONSTRAINT subscription_health_subscription_fkey;"
        "DELETE FROM subscription",
        "INSERT INTO outbox (subscription, transfer_id, event_kind, event_id, to_state, at)"
        " SELECT subscription, transfer_id, event_kind, event_id, to_state, at FROM outbox",
        "UPDATE outbox SET event_id = 999999",
        "UPDATE outbox SET to_state = 'KILLED'",
        "UPDATE outbox SET event_kind = 'publication'",
    ),
    "deliveries agree": (
        "UPDATE outbox SET dead_at = now()",
        "INSERT INTO file_event (transfer_id, kind, from_state, to_state, subject, step_run, reason)"
        " SELECT transfer_id, 'delivery', 'PENDING', 'DELIVERED', 'hook', 1, 'transfer-' || event_id || ' NEW'"
        " FROM outbox",
        "INSERT INTO file_event (transfer_id, kind, from_state, to_state, subject, step_run, reason)"
        " SELECT transfer_id, 'delivery', 'PENDING', 'DEAD', 'hook', 1, 'transfer-' || event_id || ' NEW: x'"
        " FROM outbox",
    ),
    "deliveries in order": (
        "INSERT INTO file_event (transfer_id, kind, from_state, to_state, subject, step_run, reason)"
        " SELECT transfer_id, 'delivery', 'PENDING', 'DELIVERED', 'hook', 1, 'transfer-' || event_id + 1 || ' DONE'"
        " FROM outbox",
    ),
    "temporary copies": (
        "DELETE FROM cleaning WHERE ended_as = 'DONE'",  # in the history
        "UPDATE transfer SET cleaned_at = now() WHERE state = 'FAILED'",
    ),
    "sources of live files": (
        "UPDATE cleaning SET transfer_id = (SELECT id FROM transfer WHERE state = 'NEW') WHERE ended_as = 'FAILED'",
    ),
    "no leak": (
        "UPDATE fts_job SET state = 'REFUSED' WHERE state = 'PLANNED';"
        "UPDATE transfer SET updated_at = now() - interval '3 minutes'",
        "UPDATE transfer SET due_at = now() + interval '2 days' WHERE state = 'NEW'",
    ),
}


def test_every_invariant_is_tried() -> None:
    assert set(DAMAGES) == {invariant.name for invariant in INVARIANTS}


@pytest.mark.parametrize(
    ("name", "damage"), [(name, damage) for name, damages in DAMAGES.items() for damage in damages]
)
def test_what_must_not_be_is_found(lived: Connection, name: str, damage: str) -> None:
    lived.execute(damage)
    found = {one.name: one for one in audit(lived)}
    assert found[name].violations > 0
    assert found[name].samples


def test_young_strays_are_no_leak_yet(lived: Connection) -> None:
    lived.execute("UPDATE fts_job SET state = 'REFUSED' WHERE state = 'PLANNED'")
    assert "no leak" not in violations(lived)


def test_since_leaves_out_what_was_not_touched(lived: Connection) -> None:
    lived.execute(
        "UPDATE transfer SET attempt = 7, updated_at = now() - interval '1 day' WHERE state = 'FAILED'"
    )
    now = datetime.now(UTC)
    assert "attempts" in violations(lived)
    assert "attempts" in violations(lived, now - timedelta(hours=1)), "its events are young"
    assert "attempts" not in violations(lived, now + timedelta(hours=1))


def test_it_writes_nothing_and_leaves_the_connection_as_it_was(lived: Connection) -> None:
    results = audit(lived)
    next(results)
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        lived.execute("DELETE FROM fts_report")
    results.close()
    lived.execute("DELETE FROM fts_report")


def test_the_exact_list_cannot_be_changed(lived: Connection) -> None:
    lived.execute("UPDATE fts_job SET transfer_ids = transfer_ids")
    with pytest.raises(psycopg.errors.RaiseException, match="never changes"):
        lived.execute("UPDATE fts_job SET transfer_ids = '{}'")


def test_killed_while_it_waited_or_was_planned(
    conn: Connection, add: Add, plan: Plan, submitted: Plan, step: int
) -> None:
    """A killed file is counted out of its job once, and of none that it has left before."""
    add(*(record(number) for number in range(4)))
    (job,) = submitted(limit=2)
    first, second = job.transfer_ids
    apply_moves(conn, [Move(first, job.sid, S.RETRY, QUOTA)], step)
    apply_moves(conn, [Move(first, job.sid, S.KILL), Move(second, job.sid, S.KILL)], step)
    assert violations(conn) == {}
    apply_moves(conn, [Move(first, None, S.KILLED), Move(second, job.sid, S.KILLED)], step)
    assert conn.execute("SELECT state::text, open_files FROM fts_job").fetchall() == [("ENDED", 0)]
    assert violations(conn) == {}


def run(catalogue_url: str, monkeypatch: pytest.MonkeyPatch, *options: str) -> tuple[int, str]:
    for name in ("audit", "files"):  # Typer takes an app of one command for that command
        import_module(f"asyncstageout.cli.{name}")
    monkeypatch.setenv("ASO_CATALOGUE_URL", catalogue_url)
    answer = CliRunner().invoke(cli.app, ["audit", *options])
    return answer.exit_code, answer.output


def test_the_command(lived: Connection, catalogue_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    code, output = run(catalogue_url, monkeypatch)
    assert code == 0, output
    assert "exact lists" in output
    lived.execute("UPDATE transfer SET attempt = 7 WHERE state = 'FAILED'")
    code, output = run(catalogue_url, monkeypatch)
    assert code == 1
    assert "counts 7 attempts, was accepted 1 times" in output
    code, output = run(catalogue_url, monkeypatch, "--json", "--since", str(datetime.now(UTC).date()))
    assert code == 1
    answer = json.loads(output)
    assert answer["holds"] is False
    assert len(answer["invariants"]) == len(INVARIANTS)
