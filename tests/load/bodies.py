"""Requests as a submitting system makes them, many and all different."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

SITES = [f"T2_XX_S{number:02d}" for number in range(60)]
USERS = 97
FILES_PER_TASK = 2_000


def record(number: int, label: str = "load") -> dict[str, Any]:
    """One request, told apart by its number and the label of its run; LFNs as long as those of CMS."""
    username = f"user{number // FILES_PER_TASK % USERS}"
    tail = f"mc/{label}/QCD_Pt-15to7000_13TeV/261122_101112/0000/out_{number}.root"
    return {
        "task": f"{label}_{username}_{number // FILES_PER_TASK}",
        "username": username,
        "source": SITES[number % 59],
        "destination": SITES[number // FILES_PER_TASK % 59 + 1],
        "source_lfn": f"/store/temp/user/{username}.abc/{tail}",
        "destination_lfn": f"/store/user/{username}/{tail}",
        "size_bytes": 1_000_000 + number,
        "adler32": f"{number + 1:08x}",
    }


def bodies(files: int, per_body: int, label: str) -> Iterator[bytes]:
    """Yield NDJSON bodies of so many requests each."""
    for first in range(0, files, per_body):
        numbers = range(first, min(first + per_body, files))
        yield b"\n".join(json.dumps(record(number, label)).encode() for number in numbers)
