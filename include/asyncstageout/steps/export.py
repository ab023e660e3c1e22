"""Writes days of the past to Parquet files, in bounded memory, whole or not at all."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from typing import Any, BinaryIO, Protocol, Self

from psycopg import Connection

from asyncstageout.catalogue.exporting import COLUMNS, VERSION, Block, DayRows, rows_of_day
from asyncstageout.catalogue.retention import ExportedDay, gone_until, midnight, note_exported
from asyncstageout.steps.recording import Summary, size

logger = logging.getLogger(__name__)

ROWS_PER_GROUP = 50_000
BLOCK_BYTES = 4 << 20


class Place(Protocol):
    """A folder or file: ``pathlib.Path``, or Airflow's ``ObjectStoragePath``."""

    def __truediv__(self, name: str, /) -> Self: ...
    def open(self, mode: str) -> Any: ...
    def mkdir(self, *, parents: bool, exist_ok: bool) -> None: ...
    def exists(self) -> bool: ...
    def unlink(self) -> None: ...
    def rename(self, target: Self, /) -> Any: ...


class ParquetMissing(Exception):
    """The library that writes Parquet is not installed."""

    def __init__(self) -> None:
        super().__init__("writing Parquet needs pyarrow: pip install 'asyncstageout[parquet]'")


class DayGone(Exception):
    """All of a day was dropped."""

    def __init__(self, day: date) -> None:
        self.day = day
        super().__init__(f"nothing is left of {day}: `aso retention show` tells what is kept for how long")


class ExportIncomplete(Exception):
    """A file has not as many rows as the catalogue gave; it is not counted as written."""

    def __init__(self, location: str, written: int, given: int | None) -> None:
        self.location, self.written, self.given = location, written, given
        super().__init__(f"{location}: {written:,} rows were written of {given}")


def export_day(conn: Connection, day: date, place: Place, *, step_run: int) -> Summary:
    """Write each table's day to ``PLACE/TABLE/DAY.parquet``, in place of what is there, and note where it is.

    What is gone is left out, so that an earlier export of it stays.

    Raises:
        DayGone: nothing is left of that day.
        ParquetMissing: pyarrow is not installed.
        OSError: the place cannot be written.
    """
    there = [table for table in COLUMNS if not is_gone(conn, table, day)]
    if not there:
        raise DayGone(day)
    written = [_export(conn, table, day, place, step_run) for table in there]
    said = ", ".join(f"{one.rows:,} of {one.table}" for one in written)
    size_bytes = sum(one.size_bytes for one in written)
    return Summary(
        f"Exported {day}: {said}; {size(size_bytes)} at {place}",
        {"rows": sum(one.rows for one in written), "size_bytes": size_bytes},
    )


def is_gone(conn: Connection, table: str, day: date) -> bool:
    """Say whether a table's day was dropped."""
    until = gone_until(conn, "transfer_history" if table == "transfer" else table)
    return until is not None and midnight(day) < until


def _export(conn: Connection, table: str, day: date, place: Place, step_run: int) -> ExportedDay:
    folder, name = place / table, f"{day}.parquet"
    folder.mkdir(parents=True, exist_ok=True)
    with _replacing(folder, name) as stream, rows_of_day(conn, table, day) as rows:
        count = _write(rows, table, day, stream)
        size_bytes = stream.tell()
        if count != rows.count:
            raise ExportIncomplete(str(folder / name), count, rows.count)
    exported = ExportedDay(table, day, str(folder / name), count, size_bytes)
    note_exported(conn, exported, step_run)
    logger.info("%s: %s rows", exported.location, f"{count:,}")
    return exported


@contextmanager
def _replacing(folder: Place, name: str) -> Iterator[BinaryIO]:
    """Open a file under another name; it takes its own, in place of what has it, when all is written."""
    part = folder / f".{name}.part"
    try:
        with part.open("wb") as stream:
            yield stream
        part.rename(folder / name)
    except BaseException:
        if part.exists():
            part.unlink()
        raise


def _write(rows: DayRows, table: str, day: date, stream: BinaryIO) -> int:
    """Write Parquet and return how many rows."""
    try:
        import pyarrow as pa  # noqa: PLC0415 - optional
        from pyarrow import csv, parquet  # noqa: PLC0415 - optional
    except ImportError as error:
        raise ParquetMissing from error
    types = {"timestamp": pa.timestamp("us", tz="UTC")}
    fields = [
        (column.name, types.get(column.type) or getattr(pa, column.type)()) for column in COLUMNS[table]
    ]
    schema = pa.schema(fields, metadata={"asyncstageout": f"{table} {day} version {VERSION}"})
    count = 0
    with parquet.ParquetWriter(stream, schema, compression="zstd") as writer:
        for batch in _batches(csv, rows, schema):
            writer.write_batch(batch, row_group_size=ROWS_PER_GROUP)
            count += batch.num_rows
    return count


def _batches(csv: Any, rows: DayRows, schema: Any) -> Iterator[Any]:
    text = io.BufferedReader(_Blocks(rows.blocks), BLOCK_BYTES)
    if not text.peek(1):  # Arrow wants a first line
        return
    yield from csv.open_csv(
        text,
        csv.ReadOptions(column_names=schema.names, block_size=BLOCK_BYTES, use_threads=False),
        csv.ParseOptions(newlines_in_values=True),
        csv.ConvertOptions(
            column_types=schema, strings_can_be_null=True, quoted_strings_can_be_null=False, null_values=[""]
        ),
    )


class _Blocks(io.RawIOBase):
    """Blocks of bytes as a file."""

    def __init__(self, blocks: Iterator[Block]) -> None:
        self._blocks, self._rest = blocks, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer with what there is, several blocks if they fit; 0 is the end."""
        room, filled = memoryview(buffer), 0
        while filled < len(room):
            if not self._rest:
                block = next(self._blocks, None)
                if block is None:
                    break
                self._rest = memoryview(block)
            part = self._rest[: len(room) - filled]
            room[filled : filled + len(part)] = part
            filled += len(part)
            self._rest = self._rest[len(part) :]
        return filled
