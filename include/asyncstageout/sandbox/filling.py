"""What is inside made-up files: a seeded stream that is cheap to write, with a checksum known beforehand.

A file is a 16-byte header of its own and then one random block, again and again. Adler-32 is a pair of sums,
so that of a repeated block has a formula: the checksum of a file of any size costs the same, written or not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import accumulate
from random import Random
from typing import Self

BLOCK_BYTES = 1 << 16
BLOCKS_PER_PIECE = 16
HEADER_BYTES = 16
_MODULUS = 65521


@dataclass(frozen=True, slots=True)
class _Sums:
    """Length, sum of the bytes, and sum of each byte times its distance from the end."""

    length: int = 0
    plain: int = 0
    weighted: int = 0

    @classmethod
    def of(cls, content: bytes) -> Self:
        running = list(accumulate(content))
        return cls(len(content), running[-1] if running else 0, sum(running))

    def then(self, other: _Sums) -> _Sums:
        return _Sums(
            self.length + other.length,
            self.plain + other.plain,
            self.weighted + other.length * self.plain + other.weighted,
        )

    def times(self, count: int) -> _Sums:
        earlier = self.length * self.plain * (count * (count - 1) // 2)
        return _Sums(self.length * count, self.plain * count, self.weighted * count + earlier)

    @property
    def adler32(self) -> str:
        low = (1 + self.plain) % _MODULUS
        high = (self.length + self.weighted) % _MODULUS
        return f"{high << 16 | low:08x}"


class Filling:
    """The contents of all files of one seed, told apart by their numbers."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._block = Random(seed).randbytes(BLOCK_BYTES)
        plain = list(accumulate(self._block, initial=0))
        self._starts = list(zip(plain, accumulate(plain), strict=True))
        self._whole = self._start(BLOCK_BYTES)

    def adler32(self, number: int, size_bytes: int) -> str:
        """Return the checksum of a file: 8 hexadecimal digits."""
        header = self._header(number)[:size_bytes]
        blocks, rest_bytes = divmod(size_bytes - len(header), BLOCK_BYTES)
        return _Sums.of(header).then(self._whole.times(blocks)).then(self._start(rest_bytes)).adler32

    def pieces(self, number: int, size_bytes: int) -> Iterator[bytes]:
        """Yield the content of a file, at most 1 MiB at a time."""
        header = self._header(number)[:size_bytes]
        yield header
        piece = self._block * BLOCKS_PER_PIECE
        pieces, rest_bytes = divmod(size_bytes - len(header), len(piece))
        for _ in range(pieces):
            yield piece
        yield piece[:rest_bytes]

    def _header(self, number: int) -> bytes:
        return blake2b(f"{self._seed}/{number}".encode(), digest_size=HEADER_BYTES).digest()

    def _start(self, length: int) -> _Sums:
        """Return the sums of the first bytes of the block."""
        return _Sums(length, *self._starts[length])
