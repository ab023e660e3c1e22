"""A day in Parquet is what the catalogue has of it: every row, every character, or nothing at all."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from airflow.sdk import ObjectStoragePath
from psycopg import Connection
from pyarrow import parquet

from asyncstageout.catalogue.exporting import COLUMNS, DayRows
from asyncstageout.catalogue.history import move_finished
from asyncstageout.catalogue.retention import days_not_exported, midnight, note_gone
from asyncstageout.catalogue.transitions import Move, apply_moves
from asyncstageout.core.failures import classify
from asyncstageout.core.states import TransferState
from asyncstageout.steps import export
from asyncstageout.steps.export import DayGone, ExportIncomplete, ParquetMissing, export_day
from fixtures.catalogue import Add, Plan, record
from fixtures.past import happened_at

S = TransferState
DAY = date(2026, 11, 20)
NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
NASTY = 'said "no", and\nso\r\non: \\N ,,'


@pytest.fixture
def lived(conn: Connection, add: Add, submitted: Plan, step: int) -> Connection:
    """One file is done and in the history, one failed, one is killed the day after, one waits."""
    add(*(record(number) for number in range(4)))
    (job,) = submitted()
    done, failed, killed, waiting = job.transfer_ids
    apply_moves(
        conn,
        [
            Move(done, job.sid, S.DONE, fts_finished_at=datetime.now(UTC)),
            Move(failed, job.sid, S.FAILED, classify(NASTY)),
            Move(waiting, job.sid, S.RETRY, classify("TRANSFER [5] x"), due_at=datetime.now(UTC)),
            Move(killed, job.sid, S.KILL),
        ],
        step,
    )
    apply_moves(conn, [Move(killed, job.sid, S.KILLED)], step)
    conn.execute(
        "INSERT INTO file_event (transfer_id, kind, to_state, step_run, reason) VALUES (%s, 'cleaning', 'DONE', %s, '')",
        (done, step),
    )
    happened_at(conn, NOON)
    conn.execute("UPDATE transfer SET ended_at = ended_at + interval '1 day' WHERE state = 'KILLED'")
    assert move_finished(conn, keep_failed_s=1e9) == 2
    return conn


def rows(folder: Any, table: str) -> list[dict[str, Any]]:
    return list(parquet.read_table(str(folder / table / f"{DAY}.parquet")).to_pylist())


@pytest.mark.parametrize("kind", [Path, lambda path: ObjectStoragePath(f"file://{path}")])
def test_a_day_of_files_and_events(lived: Connection, tmp_path: Path, step: int, kind: Any) -> None:
    said = export_day(lived, DAY, kind(tmp_path), step_run=step)
    assert said.sentence.startswith(f"Exported {DAY}: 2 of transfer, 17 of transfer_event, 1 of file_event; ")
    done, failed = sorted(rows(tmp_path, "transfer"), key=lambda row: row["id"])
    assert (done["state"], failed["state"]) == ("DONE", "FAILED")
    assert failed["failure_reason"] == NASTY
    assert done["failure_reason"] is None
    assert done["task"] == "261122_alice_task"
    assert done["vo_group"] == ""
    for name in ("created_at", "ended_at", "fts_finished_at"):
        assert (
            done[name]
            == lived.execute(f"SELECT {name} FROM transfer_history WHERE id = %s", (done["id"],)).fetchone()[
                0
            ]
        )  # type: ignore[index]
    events = rows(tmp_path, "transfer_event")
    assert [row["id"] for row in events] == [
        row[0] for row in lived.execute("SELECT id FROM transfer_event ORDER BY id")
    ]
    assert {row["actor"] for row in events} == {"tester"}
    (cleaned,) = rows(tmp_path, "file_event")
    assert (cleaned["kind"], cleaned["reason"], cleaned["from_state"]) == ("cleaning", "", None)
    assert days_not_exported(lived, "transfer", DAY, DAY, str(kind(tmp_path))) == []
    # Again: in place of what was there.
    export_day(lived, DAY, kind(tmp_path), step_run=step)
    assert len(rows(tmp_path, "transfer")) == 2
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [f"{DAY}.parquet"] * 3


def test_a_day_without_anything_is_a_file_without_rows(conn: Connection, tmp_path: Path, step: int) -> None:
    export_day(conn, DAY, tmp_path, step_run=step)
    for table, columns in COLUMNS.items():
        written = parquet.read_table(tmp_path / table / f"{DAY}.parquet")
        assert written.num_rows == 0
        assert written.column_names == [column.name for column in columns]
        assert written.schema.metadata[b"asyncstageout"] == f"{table} {DAY} version 1".encode()
    assert days_not_exported(conn, "file_event", DAY, DAY, str(tmp_path)) == []


def test_what_is_gone_is_left_out_so_that_an_earlier_export_stays(
    lived: Connection, tmp_path: Path, step: int
) -> None:
    export_day(lived, DAY, tmp_path, step_run=step)
    for table in ("transfer_event", "file_event"):
        note_gone(lived, table, midnight(date(2026, 11, 21)), part="x", rows=0, step_run=step)
    said = export_day(lived, DAY, tmp_path, step_run=step)
    assert said.sentence.startswith(f"Exported {DAY}: 2 of transfer; ")
    assert len(rows(tmp_path, "transfer_event")) == 17
    note_gone(lived, "transfer_history", midnight(date(2026, 12, 1)), part="x", rows=0, step_run=step)
    with pytest.raises(DayGone, match="nothing is left of 2026-11-20"):
        export_day(lived, DAY, tmp_path, step_run=step)


def test_what_fails_leaves_nothing_behind_and_is_not_counted_as_written(
    lived: Connection, tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "_write", full)
    with pytest.raises(OSError, match="No space left"):
        export_day(lived, DAY, tmp_path, step_run=step)
    monkeypatch.setattr(export, "_write", lambda rows, *_: len(list(rows.blocks)) - 1)
    with pytest.raises(ExportIncomplete, match="1 rows were written of 2"):
        export_day(lived, DAY, tmp_path, step_run=step)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert days_not_exported(lived, "transfer", DAY, DAY, str(tmp_path)) == [DAY]
    assert lived.execute("SELECT 1").fetchone() == (1,), "the connection is of use"


def test_without_the_library_it_says_what_to_install(
    lived: Connection, tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ParquetMissing, match=r"asyncstageout\[parquet\]"):
        export_day(lived, DAY, tmp_path, step_run=step)


def test_many_rows_go_through_as_a_stream(tmp_path: Path) -> None:
    """More rows than a group, in blocks that end anywhere, are written as they come."""
    count = export.ROWS_PER_GROUP * 2 + 5
    lines = (f'{n},{n},2026-11-20 12:00:00+00,,NEW,0,,,"a\nb",me,,,t\n'.encode() for n in range(count))
    asked = 0

    def blocks() -> Any:
        nonlocal asked
        for line in lines:
            asked += 1
            yield line[:7]
            yield memoryview(line)[7:]

    with (tmp_path / "x").open("wb") as stream:
        written = export._write(DayRows(blocks()), "transfer_event", DAY, stream)
    assert written == asked == count
    found = parquet.ParquetFile(tmp_path / "x")
    assert found.num_row_groups >= 3
    assert (
        max(found.metadata.row_group(n).num_rows for n in range(found.num_row_groups))
        <= export.ROWS_PER_GROUP
    )
    assert found.schema_arrow.field("at").type == pa.timestamp("us", tz="UTC")
