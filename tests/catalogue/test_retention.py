"""For how long things are kept is on record; what is gone, and what was exported, is known."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest
from psycopg import Connection

from asyncstageout.catalogue.config_changes import config_changes
from asyncstageout.catalogue.retention import (
    ExportedDay,
    days_not_exported,
    gone_until,
    horizons,
    note_exported,
    note_gone,
    retention,
    retention_settings,
    set_retention,
    unset_retention,
)
from asyncstageout.core.retention import Retention, WrongRetention

NOON = datetime(2026, 8, 10, 12, tzinfo=UTC)
DAY = timedelta(days=1)


def test_what_is_set_counts_and_is_on_record(conn: Connection) -> None:
    assert retention(conn) == Retention()
    assert set_retention(conn, {"events_days": 30, "export_to": "/data"}, "maria")
    assert not set_retention(conn, {"events_days": 30}, "otto")
    assert retention(conn) == Retention(events_days=30, export_to="/data")
    assert retention_settings(conn)["events_days"].updated_by == "maria"
    assert set_retention(conn, {"events_days": 40, "export_to": None}, "otto")
    last, *_, first = config_changes(conn, table="retention")
    assert (first.actor, last.actor) == ("maria", "otto")
    assert first.subject() == "retention events_days"
    assert retention(conn).export_to is None
    assert unset_retention(conn, ["events_days", "history_days"], "maria") == ["events_days"]
    assert retention(conn) == Retention()
    (dropped,) = config_changes(conn, table="retention", limit=1)
    assert (dropped.actor, dropped.differences()) == (
        "maria",
        [("name", "events_days", None), ("value", 40, None)],
    )


def test_what_contradicts_what_is_set_is_refused(conn: Connection) -> None:
    set_retention(conn, {"history_days": 1000, "hour_statistics_days": 1000, "events_days": 900}, "maria")
    with pytest.raises(WrongRetention, match="history_days"):
        set_retention(conn, {"history_days": 800}, "maria")
    with pytest.raises(WrongRetention, match="history_days must not be less than events_days"):
        unset_retention(conn, ["history_days"], "maria")
    assert retention(conn).history_days == 1000


def test_what_is_gone_adds_up(conn: Connection) -> None:
    assert gone_until(conn, "step_run") is None
    note_gone(conn, "step_run", NOON, rows=5, step_run=1)
    note_gone(conn, "step_run", NOON - DAY, rows=2, step_run=2)
    note_gone(conn, "transfer_event", NOON, part="transfer_event_20260809", rows=7, step_run=3)
    note_gone(conn, "transfer_event", NOON + DAY, part="transfer_event_20260810", rows=8, step_run=3)
    assert gone_until(conn, "step_run") == NOON
    assert gone_until(conn, "transfer_event") == NOON + DAY
    assert [(one.table, one.part, one.rows, one.step_run) for one in horizons(conn)] == [
        ("step_run", "", 7, 2),
        ("transfer_event", "transfer_event_20260810", 8, 3),
        ("transfer_event", "transfer_event_20260809", 7, 3),
    ]


def test_a_day_is_exported_when_it_was_over_and_lies_where_it_should(conn: Connection) -> None:
    first, last = date(2026, 8, 10), date(2026, 8, 12)

    def missing(under: str = "/data") -> list[int]:
        return [day.day for day in days_not_exported(conn, "transfer", first, last, under)]

    assert missing() == [10, 11, 12]
    note_exported(conn, ExportedDay("transfer", first, "/data/transfer/2026-08-10.parquet", 5, 100), 1)
    assert missing() == [11, 12]
    assert missing("s3://elsewhere") == [10, 11, 12]
    note_exported(conn, ExportedDay("transfer_event", last, "/data/x", 5, 100), 1)
    assert missing() == [11, 12]
    conn.execute("UPDATE exported_day SET exported_at = '2026-08-10T23:59:59Z'")
    assert missing() == [10, 11, 12], "it was not over"
