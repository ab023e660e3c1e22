"""Looks on the disks of the sandbox's sites whether a day's files are where the catalogue says they are."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from asyncstageout.core.naming import request_id
from asyncstageout.core.states import TransferState
from asyncstageout.sandbox.days import DayFile

PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One file that is not as it is said to be."""

    destination: str
    destination_lfn: str
    state: str | None
    """What the catalogue says; None when it does not know the file."""
    problem: str

    def __str__(self) -> str:
        return f"{self.destination} {self.destination_lfn}: {self.state or 'unknown'}, but {self.problem}"


def mismatches(
    files: Iterable[DayFile],
    states: Mapping[str, str],
    sites_root: Path,
    on_checked: Callable[[int], object] = lambda _: None,
) -> list[Mismatch]:
    """Compare the list from which the files were made with what lies at their destinations.

    Args:
        states: what the catalogue says, by request id.
        on_checked: called after each file with its size in bytes.
    """
    found = []
    for file in files:
        state = states.get(request_id(file.request["source_lfn"]))
        problem = _problem(file, state, sites_root / file.destination_path)
        if problem:
            found.append(
                Mismatch(file.request["destination"], file.request["destination_lfn"], state, problem)
            )
        on_checked(file.size_bytes)
    return found


def _problem(file: DayFile, state: str | None, path: Path) -> str | None:
    if state is None:
        return "it was loaded"
    if not TransferState(state).is_final:
        return "the demo has ended"
    difference = _difference(file, path)
    if state == TransferState.DONE:
        return difference
    return None if difference else "the whole file is at its destination"


def _difference(file: DayFile, path: Path) -> str | None:
    """Say how the file on disk differs from what was sent, or None."""
    if not path.is_file():
        return "it is not there"
    if (size_bytes := path.stat().st_size) != file.size_bytes:
        return f"it has {size_bytes} bytes, not {file.size_bytes}"
    if (adler32 := adler32_of(path)) != file.request["adler32"]:
        return f"its adler32 is {adler32}, not {file.request['adler32']}"
    return None


def adler32_of(path: Path) -> str:
    """Return the checksum of a file: 8 hexadecimal digits."""
    value = 1
    with path.open("rb") as content:
        while piece := content.read(PIECE_BYTES):
            value = zlib.adler32(piece, value)
    return f"{value:08x}"
