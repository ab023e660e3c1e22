"""The schema goes up and down, agrees with the core's words, and guards itself."""

from __future__ import annotations

import itertools
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum

import psycopg
import pytest
from psycopg import Connection

from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.history import move_finished
from asyncstageout.catalogue.migrate import current_revision, downgrade, head_revision, upgrade
from asyncstageout.catalogue.partitions import ensure_partitions, wanted_partitions
from asyncstageout.catalogue.policies import policy_rows, put_policy
from asyncstageout.catalogue.storages import put_sites, site_urls
from asyncstageout.core.policies import UnknownSetting
from asyncstageout.core.states import FileType, JobState, PublicationState, TransferState
from fixtures.catalogue import Add, record


def test_migrations_up_and_down_leave_nothing(empty_database_url: str) -> None:
    assert current_revision(empty_database_url) is None
    for _ in range(2):
        upgrade(empty_database_url)
        assert current_revision(empty_database_url) == head_revision()
        upgrade(empty_database_url)  # there already
        downgrade(empty_database_url, "base")
        with connect(empty_database_url) as conn:
            left = conn.execute(
                "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
                " UNION ALL SELECT typname FROM pg_type WHERE typtype = 'e'"
                " UNION ALL SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
            ).fetchall()
        assert {name for (name,) in left} == {"alembic_version", "alembic_version_pkc"}


def test_a_past_from_before_is_known(conn: Connection, catalogue_url: str, add: Add) -> None:
    add(record(1))
    conn.execute("UPDATE transfer SET state = 'DONE', ended_at = now() - interval '2 days'")
    move_finished(conn)
    conn.commit()
    downgrade(catalogue_url, "0012")
    upgrade(catalogue_url)
    assert [answer.outcome for answer in add(record(1), record(2))] == ["exists", "created"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("transfer_state", TransferState),
        ("publication_state", PublicationState),
        ("file_type", FileType),
        ("job_state", JobState),
    ],
)
def test_words_of_the_database_are_those_of_the_core(
    conn: Connection, name: str, words: type[StrEnum]
) -> None:
    rows = conn.execute(
        "SELECT enumlabel FROM pg_enum WHERE enumtypid = %s::regtype ORDER BY enumsortorder", (name,)
    )
    assert {label for (label,) in rows} == {word.value for word in words}


def test_history_has_the_columns_of_the_live_table(conn: Connection) -> None:
    """Rows move with SELECT *: a migration that forgets one of the two tables must not pass."""
    columns = {
        table: conn.execute(
            "SELECT column_name, data_type FROM information_schema.columns WHERE table_name = %s"
            " ORDER BY ordinal_position",
            (table,),
        ).fetchall()
        for table in ("transfer", "transfer_history")
    }
    assert columns["transfer"] == columns["transfer_history"]


def test_partitions_are_made_ahead_once(conn: Connection) -> None:
    today = date(2026, 12, 28)
    made = ensure_partitions(conn, today)
    assert "transfer_event_20261228" in made
    assert "transfer_event_20270104" in made
    assert {"transfer_history_202612", "transfer_history_202701"} <= set(made)
    assert ensure_partitions(conn, today) == []


@pytest.mark.parametrize("today", [date(2026, 2, 25), date(2028, 2, 29), date(2026, 12, 31)])
def test_partitions_touch_without_gap_or_overlap(today: date) -> None:
    by_table: dict[str, list[tuple[date, date]]] = {}
    for table, _, start, end in wanted_partitions(today):
        by_table.setdefault(table, []).append((start, end))
    for ranges in by_table.values():
        assert ranges[0][0] <= today
        for (_, end), (start, _) in itertools.pairwise(ranges):
            assert end == start


def test_an_event_without_partition_is_not_lost(conn: Connection, add: Add) -> None:
    add(record())
    (table,) = conn.execute("SELECT tableoid::regclass::text FROM transfer_event").fetchone() or ("",)
    assert table == "transfer_event_default"


def test_an_event_lands_in_its_day(conn: Connection, add: Add) -> None:
    now = datetime.now(UTC)
    ensure_partitions(conn, now.date())
    add(record())
    (table,) = conn.execute("SELECT tableoid::regclass::text FROM transfer_event").fetchone() or ("",)
    assert table.startswith("transfer_event_2")


def test_what_the_default_partition_caught_moves_to_its_day(conn: Connection, add: Add) -> None:
    now = datetime.now(UTC)
    add(record(1))
    assert ensure_partitions(conn, now.date() - timedelta(days=40))  # not the day that was caught
    add(record(2))
    assert ensure_partitions(conn, now.date())
    add(record(3))
    rows = conn.execute("SELECT tableoid::regclass::text, count(*) FROM transfer_event GROUP BY 1").fetchall()
    assert rows == [(f"transfer_event_{now:%Y%m%d}", 3)]
    assert ensure_partitions(conn, now.date()) == []
    with pytest.raises(psycopg.errors.RaiseException, match="append-only"):
        conn.execute("DELETE FROM transfer_event")


@pytest.mark.parametrize("change", ["UPDATE transfer_event SET reason = 'x'", "DELETE FROM transfer_event"])
def test_events_are_append_only(conn: Connection, add: Add, change: str) -> None:
    add(record())
    with pytest.raises(psycopg.errors.RaiseException, match="append-only"):
        conn.execute(change)


def test_sites_and_policies(conn: Connection) -> None:
    assert put_sites(conn, {"T2_IT_Bari": "davs://other.example:1"}, "ops") == 1
    assert put_sites(conn, {"T2_IT_Bari": "davs://other.example:1"}, "ops") == 0
    assert site_urls(conn)["T2_IT_Bari"].startswith("davs://other.example:1/store/")
    put_policy(conn, None, None, {"files_per_job": 10}, "ops")
    put_policy(conn, None, None, {"files_per_job": 20}, "ops")
    assert [row.settings for row in policy_rows(conn)] == [{"files_per_job": 20}]
    with pytest.raises(UnknownSetting, match="speed"):
        put_policy(conn, None, None, {"speed": 1}, "ops")
    with pytest.raises(ValueError, match="scheme"):
        put_sites(conn, {"T2_XX_Bad": "/no/scheme"}, "ops")
