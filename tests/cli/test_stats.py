"""``aso stats`` tells what happened; ``aso retention`` and ``aso history`` look after the past."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeAlias

import pytest
from click.testing import Result
from psycopg import Connection
from pyarrow import parquet

from asyncstageout.catalogue.retention import horizons, note_gone, retention
from asyncstageout.catalogue.rollups import roll_up_hour
from asyncstageout.catalogue.transitions import Move, apply_moves
from asyncstageout.cli import Advice
from asyncstageout.cli import retention as command
from asyncstageout.cli.retention import reference
from asyncstageout.core.failures import classify
from asyncstageout.core.states import TransferState
from fixtures.catalogue import Add, Plan, record
from fixtures.past import happened_at

Aso: TypeAlias = Callable[..., Result]
S = TransferState
HOUR = timedelta(hours=1)


@pytest.fixture
def lived(conn: Connection, add: Add, submitted: Plan, step: int) -> Connection:
    """Two hours ago: two of alice's files and one of bob's are done, one of alice's failed."""
    add(
        *(record(number) for number in range(3)),
        record(9, username="bob", source="T2_US_MIT", size_bytes=5 * 10**12),
    )
    moves = [
        Move(number, job.sid, S.DONE, fts_finished_at=datetime.now(UTC))
        for job in submitted() for number in job.transfer_ids
    ]  # fmt: skip
    moves[0] = Move(moves[0].transfer_id, moves[0].fts_job, S.FAILED, classify("HTTP 507"))
    apply_moves(conn, moves, step)
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - 2 * HOUR
    happened_at(conn, hour, spread_s=100)
    for number in range(2):
        roll_up_hour(conn, hour + number * HOUR, step_run=step)
    return conn


def test_in_all(lived: Connection, aso: Aso) -> None:
    said = aso("stats").stdout
    for line in (
        "4 files arrived, 5.0 TB",
        "3 files done, 5.0 TB: 3 files and ",
        "1 failed for good, 0 killed, 0 sent again",
        "75.0% of 4 attempts in FTS went well",
        "2 users, 2 tasks, 2 links from 2 to 1 sites",
    ):
        assert line in said, said
    assert "Counted up to" not in said
    (waits,) = [line for line in said.splitlines() if line.startswith("from arrival to DONE")]
    assert waits.split()[-2:] == ["20.2", "min"] or "min" in waits


@pytest.mark.parametrize(
    ("by", "first"),
    [
        ("link", "T2_IT_Bari → T2_CH_CERN 3 2 2.0 kB 1 66.7%"),
        ("site", "to T2_CH_CERN 4 3 5.0 TB 1 75.0%"),
        ("user", "alice 3 2 2.0 kB 1 66.7%"),
        ("task", "261122_alice_task 3 2 2.0 kB 1 66.7%"),
        ("error", "quota 1 1 T2_IT_Bari → T2_CH_CERN 1"),
    ],
)
def test_by_what_it_happened_to(lived: Connection, aso: Aso, by: str, first: str) -> None:
    said = aso("stats", "--by", by).stdout
    rows = [" ".join(line.split()) for line in said.splitlines()[2:]]
    assert rows[0].startswith(first), said
    rows = json.loads(aso("stats", "--by", by, "--limit", "1", "--json").stdout)["rows"]
    assert len(rows) == 1


def test_over_time_and_for_programs(lived: Connection, aso: Aso) -> None:
    facts = json.loads(aso("stats", "--since", "3h", "--every", "1h", "--json").stdout)
    (row,) = [row for row in facts["rows"] if row["arrived"]]
    assert row["failures"] == {"quota": 1}
    assert datetime.fromisoformat(row["at"]).minute == 0
    assert facts["counted_until"] is not None
    assert f"{datetime.fromisoformat(row['at']):%H:%M}" in aso("stats", "--every", "1h").stdout
    assert isinstance(aso("stats", "--since", "yesterday").exception, Advice)


def test_where_nothing_is_counted_it_says_so(conn: Connection, aso: Aso) -> None:
    said = aso("stats").stdout
    assert "Counted up to: never. Does stageout_statistics run?" in said
    assert "0 files arrived" in said
    assert aso("stats", "--by", "error").exit_code == 0


@pytest.fixture
def _maria(monkeypatch: pytest.MonkeyPatch, conn: Connection) -> None:
    monkeypatch.setattr(command, "who", lambda: "maria")


@pytest.mark.usefixtures("_maria")
def test_retention_is_set_shown_and_taken_away(conn: Connection, aso: Aso) -> None:
    said = aso("retention", "set", "events_days=60", "export_to=/data/past").stdout
    assert said.startswith(
        "events_days=60, export_to=/data/past. From the next run of stageout_statistics on."
    )
    assert "Nothing was changed" in aso("retention", "set", "events_days=60").stdout
    shown = {line.split()[0]: line.split() for line in aso("retention", "show").stdout.splitlines() if line}
    assert shown["events_days"] == ["events_days", "60", "maria"]
    assert shown["history_days"] == ["history_days", "400"]
    assert shown["Nothing"][-1] == "gone."
    note_gone(conn, "transfer_event", datetime(2026, 8, 10, tzinfo=UTC), part="a", rows=5, step_run=1)
    note_gone(conn, "transfer_event", datetime(2026, 8, 11, tzinfo=UTC), part="b", rows=7, step_run=1)
    (line,) = [
        line for line in aso("retention", "show").stdout.splitlines() if line.startswith("transfer_event")
    ]
    assert line.split()[:4] == ["transfer_event", "2026-08-11", "00:00", "12"]
    facts = json.loads(aso("retention", "show", "--json").stdout)
    assert facts["settings"]["events_days"] == 60
    assert len(facts["gone"]) == len(horizons(conn)) == 2
    assert "no longer set" in aso("retention", "unset", "events_days", "export_to").stdout
    assert retention(conn).events_days == 90
    assert "set retention events_days" in aso("changes", "--of", "retention").stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("set", "events_days=0"),
        ("set", "events_days"),
        ("set", "years=5"),
        ("unset", "events_days"),
        ("set", "history_days=5"),
    ],
)
def test_what_cannot_be_is_refused_with_advice(
    conn: Connection, aso: Aso, arguments: tuple[str, ...]
) -> None:
    assert isinstance(aso("retention", *arguments).exception, Advice)


def test_the_reference_is_that_of_the_code() -> None:
    page = Path(__file__).parents[2] / "docs/reference/retention.md"
    assert page.read_text() == reference(), "aso retention reference > docs/reference/retention.md"


def test_a_day_of_the_past_goes_into_a_folder(lived: Connection, aso: Aso, tmp_path: Path) -> None:
    day = (datetime.now(UTC) - 2 * HOUR).date()
    said = aso("history", "export", str(day), "--to", str(tmp_path / "past"))
    assert said.stdout.startswith(f"Exported {day}: ")
    assert parquet.read_table(tmp_path / "past" / "transfer" / f"{day}.parquet").num_rows in (3, 4)
    step = lived.execute("SELECT task_id, outcome FROM step_run ORDER BY id DESC LIMIT 1").fetchone()
    assert step == ("aso history export", "success")
    url = aso("history", "export", str(day), "--to", f"file://{tmp_path}/url")
    assert url.exit_code == 0, url.exception
    for wrong in (
        ("2199-01-01", "--to", str(tmp_path)),
        (str(day), "--to", "/proc/nowhere"),
        (str(day), "--to", "nonsense://x"),
    ):
        assert isinstance(aso("history", "export", *wrong).exception, Advice), wrong


def test_airflow_needs_the_platform(aso: Aso) -> None:
    refused = aso("airflow", "version").exception
    assert isinstance(refused, Advice)
    assert "`aso up`" in refused.remedy
