"""Objects in a folder of any storage that Airflow reaches: NDJSON, also with gzip, and Parquet."""

from __future__ import annotations

import gzip
import io
import json
import logging
import zlib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.util import find_spec
from typing import Any, BinaryIO, cast

from airflow.sdk import ObjectStoragePath

from asyncstageout.steps.intake import (
    CHUNK,
    Gone,
    Interval,
    Record,
    Report,
    SourceUnreadable,
    Unreadable,
    numbered,
)

logger = logging.getLogger(__name__)

NDJSON = (".ndjson", ".jsonl", ".ndjson.gz", ".jsonl.gz")
PARQUET = ".parquet"
MAX_LINE_BYTES = 1_000_000
_BUFFER_BYTES = 1 << 20
_VERSIONS = ("ETag", "etag", "md5Hash", "generation", "content_md5")
"""Where the storages' file systems say which version of an object it is, without reading it."""


class Inbox:
    """Takes ``inbox/*``; moves what it took to ``done/DATE/``, what is wrong to ``quarantine/DATE/``.

    Only names that end as :data:`NDJSON` and :data:`PARQUET` say are looked at, so that a writer may write
    under another one (``.part``, ``.tmp``) and rename.

    :param path: of object storage, such as ``s3://bucket/stageout``; the folders are below it.
    :param conn_id: Airflow connection of the storage.
    :param keeps: moves and writes nothing; the catalogue alone remembers what was taken.
    """

    has_times = False

    def __init__(self, name: str, path: str, *, conn_id: str | None = None, keeps: bool = False) -> None:
        self.name = name
        self.root = ObjectStoragePath(path, conn_id=conn_id)
        self.keeps = keeps

    def batches(self, _interval: Interval) -> Iterator[InboxObject]:
        """Yield every object that waits, whatever its age."""
        found = self._objects()
        unread = [one.name for one in found if one.is_parquet] if find_spec("pyarrow") is None else []
        yield from (one for one in found if one.name not in unread)
        if unread:
            raise SourceUnreadable(
                self.name, f"{unread[0]} needs Parquet: pip install 'asyncstageout[parquet]' on all workers"
            )

    def _objects(self) -> list[InboxObject]:
        folder = self.root / "inbox"
        folder.fs.invalidate_cache()
        try:
            listed = folder.fs.ls(folder.path, detail=True)
        except FileNotFoundError:
            raise SourceUnreadable(self.name, f"there is no folder {folder}") from None
        except PermissionError as error:
            raise SourceUnreadable(self.name, f"{folder} cannot be listed: {error}") from error
        infos = {str(info["name"]).rstrip("/").rpartition("/")[2]: info for info in listed}
        return [
            InboxObject(self, name, info)
            for name, info in sorted(infos.items())
            if info.get("type") != "directory"
            and name.endswith((*NDJSON, PARQUET))
            and not name.startswith(".")
        ]


class InboxObject:
    """One object, as it was listed."""

    def __init__(self, inbox: Inbox, name: str, info: Mapping[str, Any]) -> None:
        self.name = name
        self.digest: str | None = _version(info)
        self.again = not inbox.keeps
        self.is_parquet = name.endswith(PARQUET)
        self._inbox = inbox
        self._path = inbox.root / "inbox" / name

    def records(self) -> Iterator[Record]:
        try:
            with self._path.open("rb") as stream:
                yield from self._parquet(stream) if self.is_parquet else self._ndjson(stream)
        except FileNotFoundError:
            raise Gone(self.name) from None
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise Unreadable(f"not gzip, or cut off: {error}") from error

    def done(self, _report: Report) -> None:
        if not self._inbox.keeps:
            self._move("done")

    def refused(self, report: Report) -> None:
        if self._inbox.keeps:
            return
        if target := self._move("quarantine"):
            with (target.parent / f"{target.name}.report.ndjson").open("wb") as stream:
                stream.writelines(report_lines(report))

    def _ndjson(self, stream: Any) -> Iterator[Record]:
        if self.name.endswith(".gz"):
            with gzip.GzipFile(fileobj=stream) as unpacked:
                yield from read_ndjson(cast("BinaryIO", unpacked))
        else:
            yield from read_ndjson(cast("BinaryIO", io.BufferedReader(stream, _BUFFER_BYTES)))

    @staticmethod
    def _parquet(stream: Any) -> Iterator[Record]:
        from pyarrow import ArrowInvalid, ArrowNotImplementedError  # noqa: PLC0415 - optional
        from pyarrow.parquet import ParquetFile  # noqa: PLC0415 - optional

        position = 1
        try:
            for rows in ParquetFile(stream).iter_batches(batch_size=CHUNK):
                yield from numbered(rows.to_pylist(), start=position)
                position += rows.num_rows
        except (ArrowInvalid, ArrowNotImplementedError) as error:
            raise Unreadable(f"not Parquet, or broken: {error}") from error

    def _move(self, folder: str) -> ObjectStoragePath | None:
        """Return where it is now; None if somebody else moved it, or put another one in its place."""
        target = _free(self._inbox.root / folder / f"{datetime.now(UTC):%Y-%m-%d}" / self.name)
        try:
            self._path.fs.invalidate_cache()
            if _version(self._path.fs.info(self._path.path)) != self.digest:
                logger.warning("%s was replaced while it was read; the new one is next", self._path)
                return None
            target.parent.mkdir(parents=True, exist_ok=True)
            self._path.move(target)
        except FileNotFoundError:
            return None
        except PermissionError as error:
            why = f"{self._path} cannot be moved to {target.parent}: allow it, or set consumed to keep"
            raise SourceUnreadable(self._inbox.name, why) from error
        logger.info("%s is now %s", self._path, target)
        return target


def read_ndjson(stream: BinaryIO) -> Iterator[Record]:
    """Yield the lines of a stream; empty ones are passed over.

    :raises Unreadable: a line is longer than any request can be.
    """
    position = 0
    while text := stream.readline(MAX_LINE_BYTES + 1):
        position += 1
        if len(text) > MAX_LINE_BYTES:
            raise Unreadable(f"line {position} has more than {MAX_LINE_BYTES:,} bytes")
        if not text.strip():
            continue
        try:
            yield Record(position, json.loads(text))
        except (ValueError, RecursionError) as error:
            yield Record(position, None, f"not JSON: {error}")


def report_lines(report: Report) -> Iterator[bytes]:
    """Yield NDJSON that says what became of an object: one line in all, then one for each refusal."""
    first: dict[str, Any] = {"created": report.created, "existed": report.existed, "refused": report.refused}
    if report.unreadable is not None:
        first["unreadable"] = report.unreadable
    yield json.dumps(first).encode() + b"\n"
    for refusal in report.refusals:
        yield json.dumps(refusal._asdict()).encode() + b"\n"


def _version(info: Mapping[str, Any]) -> str:
    for key in _VERSIONS:
        if info.get(key):
            return f"{key}:{str(info[key])[:200]}"
    return f"{info.get('size')}:{info.get('mtime') or info.get('LastModified') or info.get('last_modified')}"


def _free(path: ObjectStoragePath) -> ObjectStoragePath:
    """Return the path, or with a number behind it where that name is taken."""
    target, number = path, 0
    while target.exists():
        number += 1
        target = path.parent / f"{path.name}.{number}"
    return target
