"""What is over goes when it is counted, and exported where that is set; and nobody is waited for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from psycopg import Connection

from asyncstageout.catalogue import partitions
from asyncstageout.catalogue.audit import audit
from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.dropping import sort_strays
from asyncstageout.catalogue.history import move_finished
from asyncstageout.catalogue.partitions import ensure_days, ensure_month
from asyncstageout.catalogue.retention import EVENTS, gone_until, set_retention
from asyncstageout.catalogue.transitions import Move, apply_moves
from asyncstageout.core.retention import Retention
from asyncstageout.core.states import TransferState
from asyncstageout.steps.retention import DropsOverdue, export_due, overdue, prune_rows, turn_partitions
from fixtures.catalogue import Add, Plan, record
from fixtures.past import happened_at

S = TransferState
DAY = timedelta(days=1)
NOON = datetime(2026, 8, 10, 12, tzinfo=UTC)
OVER = datetime(2026, 11, 9, 0, 30, tzinfo=UTC)
"""Ninety days after the end of that day."""


@pytest.fixture
def old(conn: Connection, add: Add, submitted: Plan, step: int) -> Connection:
    """A file was done in August; its events are in their day, it is in its month."""
    add(record(1))
    (job,) = submitted()
    apply_moves(conn, [Move(1, job.sid, S.DONE)], step)
    happened_at(conn, NOON)
    move_finished(conn)
    for table in EVENTS:
        sort_strays(conn, table)
        ensure_days(conn, table, [NOON.date(), (NOON + DAY).date()])
    ensure_month(conn, ("transfer_history",), NOON.date())
    return conn


def there(conn: Connection, like: str = "transfer_event_202608%") -> list[str]:
    rows = conn.execute(
        "SELECT relname FROM pg_class WHERE relkind = 'r' AND relname LIKE %s ORDER BY 1", (like,)
    )
    return [name for (name,) in rows]


def test_partitions_go_in_their_time_and_those_of_the_week_ahead_come(old: Connection, step: int) -> None:
    early = turn_partitions(old, now=OVER - DAY, step_run=step)
    assert early.counts["dropped"] == 0
    assert early.counts["made"] > 16
    said = turn_partitions(old, now=OVER, step_run=step)
    assert said.sentence == "Made 2 partitions, dropped 2 (transfer_event_20260810, file_event_20260810)"
    assert there(old) == ["transfer_event_20260811"]
    assert {one.name for one in audit(old) if one.violations} == set()


def test_what_goes_is_counted_before(old: Connection, step: int) -> None:
    turn_partitions(old, now=OVER, step_run=step)
    assert old.execute("SELECT sum(done) FROM statistic_hour WHERE kind = 'total'").fetchone() == (1,)
    assert old.execute("SELECT count(*) FROM rolled_hour").fetchone() == (24,)


def test_a_dry_run_says_what_would_go(old: Connection, step: int) -> None:
    said = turn_partitions(old, now=OVER, step_run=step, dry_run=True)
    assert said.sentence == "Would drop transfer_event_20260810, file_event_20260810"
    assert len(there(old)) == 2


def test_what_is_in_use_is_left_for_the_next_run(
    old: Connection, catalogue_url: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "LOCK_TIMEOUT_S", 0.05)
    with connect(catalogue_url) as other, other.transaction():
        other.execute("SELECT count(*) FROM transfer_event")
        said = turn_partitions(old, now=OVER + DAY, step_run=step)
    assert said.counts["busy"] == 1, "the day after it must not go before it"
    assert said.counts["dropped"] == 2
    assert "1 were in use" in said.sentence
    assert gone_until(old, "transfer_event") is None
    assert turn_partitions(old, now=OVER + DAY, step_run=step).counts["dropped"] == 2


def export(conn: Connection, folder: Path, now: datetime, step: int) -> str:
    def place_of(keep: Retention) -> Path:
        assert keep.export_to == str(folder)
        return folder

    return export_due(conn, place_of, now=now, step_run=step).sentence


def test_what_must_be_exported_is_not_dropped_before(old: Connection, tmp_path: Path, step: int) -> None:
    assert export(old, tmp_path, OVER, step).startswith("Nothing is exported")
    set_retention(old, {"export_to": str(tmp_path)}, "maria")
    said = turn_partitions(old, now=OVER, step_run=step)
    assert said.counts["waiting"] == 2
    assert "2 wait for their export" in said.sentence
    assert export(old, tmp_path, OVER, step) == "Exported 2 days"
    assert sorted(path.name for path in (tmp_path / "transfer_event").iterdir()) == [
        "2026-08-10.parquet", "2026-11-08.parquet",
    ]  # fmt: skip
    assert export(old, tmp_path, OVER, step) == "All days are exported"
    assert turn_partitions(old, now=OVER, step_run=step).counts == {
        "made": 0, "dropped": 2, "waiting": 0, "busy": 0,
    }  # fmt: skip
    assert export(old, tmp_path, OVER, step) == "All days are exported", "what is gone is not exported again"


def test_a_month_waits_for_each_of_its_days(
    old: Connection, tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = datetime(2027, 10, 8, tzinfo=UTC)
    set_retention(old, {"export_to": str(tmp_path)}, "maria")
    monkeypatch.setattr("asyncstageout.steps.retention.DAYS_A_RUN", 20)
    assert export(old, tmp_path, later, step) == "Exported 20 days; 12 days are left for the next run"
    assert "transfer_history_202608" in there(old, "transfer_history%")
    turn_partitions(old, now=later, step_run=step)
    assert "transfer_history_202608" in there(old, "transfer_history%")
    assert export(old, tmp_path, later, step) == "Exported 12 days"
    assert turn_partitions(old, now=later, step_run=step).counts["dropped"] == 1
    assert there(old, "%transfer_history_202608%") == []
    assert {one.name for one in audit(old) if one.violations} == set()


def test_the_month_that_a_death_left_half_gone_is_finished(old: Connection, step: int) -> None:
    old.execute("ALTER TABLE transfer_history DETACH PARTITION transfer_history_202608")
    old.execute("ALTER TABLE transfer_history_202608 RENAME TO dropped_transfer_history_202608")
    turn_partitions(old, now=OVER, step_run=step)
    assert there(old, "%transfer_history_202608%") == []


def test_red_when_something_should_have_gone_days_ago(old: Connection, step: int) -> None:
    overdue(old, OVER + 2 * DAY)
    with pytest.raises(DropsOverdue, match=r"2 partitions .*transfer_event_20260810.*runbooks/retention.md"):
        overdue(old, OVER + 3 * DAY)
    turn_partitions(old, now=OVER + 3 * DAY, step_run=step)
    overdue(old, OVER + 3 * DAY)


def test_rows_go_and_it_says_which(old: Connection, step: int) -> None:
    old.execute("INSERT INTO link_window (source, destination, minute) VALUES ('a', 'b', %s)", (NOON,))
    assert prune_rows(old, now=OVER, step_run=step).sentence == "Deleted 1 of link_window"
    assert prune_rows(old, now=OVER, step_run=step).sentence == "Deleted nothing"


def test_strays_are_sorted_into_their_days(old: Connection, step: int) -> None:
    old.execute(
        "INSERT INTO file_event (transfer_id, at, kind, to_state, step_run) VALUES (1, %s, 'cleaning', 'DONE', %s)",
        (NOON + 5 * DAY, step),
    )
    turn_partitions(old, now=OVER - DAY, step_run=step)
    assert there(old, "file_event_202608%") == [f"file_event_202608{day}" for day in (10, 11, 15)]
