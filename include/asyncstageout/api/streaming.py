"""Requests that come as lines and are answered as lines, however many, in batches that fit into memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from tempfile import SpooledTemporaryFile
from typing import IO

from pydantic_core import to_json

from asyncstageout.api.problems import Problem

BATCH_LINES = 10_000
BATCH_BYTES = 16 * 1024 * 1024
LINE_BYTES = 64 * 1024
SPOOL_BYTES = 1024 * 1024
PIECE_BYTES = 64 * 1024


async def batches_of_lines(stream: AsyncIterator[bytes]) -> AsyncIterator[list[bytes]]:
    """Yield the lines of a body that are not empty, at most 10,000 and some 16 MB at a time.

    Raises:
        Problem: 413, a line is longer than 64 KiB.
    """
    lines: list[bytes] = []
    size_bytes, rest = 0, b""
    async for piece in stream:
        *whole, rest = (rest + piece).split(b"\n")
        if len(rest) > LINE_BYTES:
            raise Problem(413, f"A line has more than {LINE_BYTES:,} bytes.", kind="too-large")
        lines += (line for line in whole if line.strip())
        size_bytes += len(piece)
        while len(lines) >= BATCH_LINES or (lines and size_bytes >= BATCH_BYTES):
            yield lines[:BATCH_LINES]
            lines, size_bytes = lines[BATCH_LINES:], 0
    if rest.strip():
        lines.append(rest)
    if lines:
        yield lines


class LineAnswer:
    """Lines of an answer, on disk beyond the first MiB, until the whole request has been read.

    Many clients read nothing before they have sent everything: an answer that began earlier would fill the
    network's buffers, and both sides would wait for each other.
    """

    def __init__(self) -> None:
        self._file: IO[bytes] = SpooledTemporaryFile(max_size=SPOOL_BYTES)  # noqa: SIM115 - closed by `pieces`

    def add(self, results: Iterable[Mapping[str, object]]) -> None:
        self._file.writelines(to_json(result) + b"\n" for result in results)

    def close(self) -> None:
        self._file.close()

    def pieces(self) -> Iterator[bytes]:
        """Yield the answer, and forget it."""
        with self._file as file:
            file.seek(0)
            while piece := file.read(PIECE_BYTES):
                yield piece
