"""What to do when FTS found a file in the way at the destination (only where overwriting is off)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from asyncstageout.core.failures import LEAVES_BYTES

THERE_ALREADY = "was there already, same size and checksum"


class Existing(Enum):
    """What the file in the way is taken for."""

    OURS = "ours"
    """The very file: it has arrived."""
    LEFT_OVER = "left over"
    """What an attempt of our own may have left: it is overwritten, once."""
    FOREIGN = "foreign"
    """Somebody else's, or nobody can say: it is never touched."""


@dataclass(frozen=True, slots=True)
class Content:
    """What identifies a file's bytes; None is what nobody said."""

    size_bytes: int | None
    adler32: str | None


def identify(
    wanted: Content, found: Content, *, previous: str | None, overwrote: bool, overwrite_wrong: bool
) -> Existing:
    """Return what the file in the way is.

    Args:
        wanted: of the request.
        found: as FTS reports it (``dst_file``). Without a checksum on both sides nothing is proven.
        previous: category of the failure of the attempt before; None on the first attempt.
        overwrote: the attempt was allowed to overwrite, and yet the file was in the way (on tape).
        overwrite_wrong: the link's policy.
    """
    if wanted == found and None not in (found.size_bytes, found.adler32):
        return Existing.OURS
    if overwrite_wrong and not overwrote and previous in LEAVES_BYTES:
        return Existing.LEFT_OVER
    return Existing.FOREIGN
