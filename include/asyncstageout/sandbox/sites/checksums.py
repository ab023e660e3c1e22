"""adler32 of files, computed once per content."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from pathlib import Path
from zlib import adler32

CHUNK_BYTES = 1 << 20


class Checksums:
    """Remembers checksums by path, size and time of change; reads a file at most once per change."""

    def __init__(self, kept: int = 200_000) -> None:
        self._kept = kept
        self._sums: OrderedDict[tuple[str, int, int], str] = OrderedDict()

    async def of(self, path: Path) -> str:
        """Return the adler32 of a file, eight hexadecimal digits."""
        key = _key(path)
        found = self._sums.get(key)
        if found is None:
            found = await _read(path)
            self._keep(key, found)
        return found

    def remember(self, path: Path, value: int) -> None:
        """Keep a checksum that was computed while the file was written."""
        self._keep(_key(path), f"{value:08x}")

    def _keep(self, key: tuple[str, int, int], value: str) -> None:
        self._sums[key] = value
        if len(self._sums) > self._kept:
            self._sums.popitem(last=False)


def _key(path: Path) -> tuple[str, int, int]:
    stat = path.stat()
    return (str(path), stat.st_size, stat.st_mtime_ns)


async def _read(path: Path) -> str:
    value = 1
    with path.open("rb") as source:
        while chunk := source.read(CHUNK_BYTES):
            value = adler32(chunk, value)
            await asyncio.sleep(0)  # other requests have their turn
    return f"{value:08x}"
