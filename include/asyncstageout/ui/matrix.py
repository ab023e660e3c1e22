"""A table of sources and destinations, each link a cell as dark as it is busy."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from markupsafe import Markup

from asyncstageout.ui import words
from asyncstageout.ui.conditions import Condition

SAID_IN_FULL = 24
"""With more sites on a side a cell that is pointed at says less: thousands of sentences make a page slow."""
LEVELS = 6
"""Steps of darkness; each is in the style sheet."""
Show = Literal["volume", "efficiency", "waiting", "in_flight", "oldest"]
SHOWS: Mapping[Show, str] = {
    "volume": "Done",
    "efficiency": "Efficiency",
    "waiting": "Waiting",
    "in_flight": "In flight",
    "oldest": "Oldest waiting",
}


class Cell(NamedTuple):
    """One link."""

    words: str | Markup
    level: str
    """Class of the style sheet: ``h0`` to ``h6``, or ``e0`` to ``e3`` for an efficiency."""
    sentence: str
    """What is said when it is pointed at."""
    flag: Condition | None
    """What keeps files from the link."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """Sources down, destinations across, the busiest first."""

    sources: Sequence[str]
    destinations: Sequence[str]
    cells: Mapping[str, Mapping[str, Cell]]
    """Source -> destination -> cell, of the links that there are."""
    left_out: int
    """Links that are not in it."""


def matrix(rows: Iterable[Mapping[str, Any]], show: Show, unit: str, most: int) -> Matrix:
    """Return the matrix of the busiest ``most`` sources and destinations.

    Args:
        rows: as :func:`asyncstageout.ui.links.link_rows` returns them.
    """
    rows = list(rows)
    key, say = _MEASURES[show][unit]
    weigh: Counter[str] = Counter()
    received: Counter[str] = Counter()
    for row in rows:
        # Efficiencies do not add up; there the busiest stand first.
        weight = row["attempts"] if show == "efficiency" else row[key] or 0
        weigh[row["source"]] += weight
        received[row["destination"]] += weight
    sources, destinations = (
        dict(sorted(found.items(), key=lambda one: (-one[1], one[0]))[:most]) for found in (weigh, received)
    )
    inside = [row for row in rows if row["source"] in sources and row["destination"] in destinations]
    largest = max((row[key] or 0 for row in inside), default=0)
    cells: defaultdict[str, dict[str, Cell]] = defaultdict(dict)
    for row in inside:
        cells[row["source"]][row["destination"]] = Cell(
            _said(row[key], say, show),
            _level(row[key], largest, show),
            _sentence(row) if most <= SAID_IN_FULL or row["conditions"] else _link(row),
            next((one for one in row["conditions"] if one.is_restriction or one.tone == "bad"), None),
        )
    used = set().union(*cells.values())
    return Matrix(
        [name for name in sources if name in cells],
        [name for name in destinations if name in used],
        cells,
        len(rows) - len(inside),
    )


def _link(row: Mapping[str, Any]) -> str:
    return f"{row['source']} → {row['destination']}"


def _sentence(row: Mapping[str, Any]) -> str:
    files, size = row["done"], row["done_bytes"]
    found = [f"{_link(row)}: {words.number(files)} files ({words.bytes_(size)}) done"]
    if row["efficiency"] is not None:
        found.append(f"{words.share(row['efficiency'])} of the attempts went well")
    found.append(f"{words.number(row['waiting'])} waiting")
    found.append(f"{words.number(row['in_flight'])} in flight")
    return "; ".join([", ".join(found), *(one.sentence for one in row["conditions"])])


def _said(value: float | None, say: Callable[[Any], str | Markup], show: Show) -> str | Markup:
    return say(value) if value or (show == "efficiency" and value is not None) else ""


def _level(value: float | None, largest: float, show: Show) -> str:
    if show == "efficiency":
        return "" if value is None else f"e{sum(value >= edge for edge in (0.5, 0.8, 0.95))}"
    if not value:
        return "h0"
    return f"h{max(1, math.ceil(LEVELS * math.log1p(value) / math.log1p(largest)))}"


def _brief_bytes(value: int) -> str:
    return str(words.bytes_(value)).replace(" ", "")


def _brief_wait(seconds: float) -> str:
    return " ".join(str(words.duration(max(seconds, 10))).split(" ")[:2])


def _percent(value: float) -> str:
    return f"{math.floor(value * 100)}%"


_MEASURES: Mapping[Show, Mapping[str, tuple[str, Callable[[Any], str | Markup]]]] = {
    "volume": {"files": ("done", words.short), "bytes": ("done_bytes", _brief_bytes)},
    "in_flight": {"files": ("in_flight", words.short), "bytes": ("in_flight_bytes", _brief_bytes)},
    "efficiency": dict.fromkeys(("files", "bytes"), ("efficiency", _percent)),
    "waiting": dict.fromkeys(("files", "bytes"), ("waiting", words.short)),
    "oldest": dict.fromkeys(("files", "bytes"), ("oldest_s", _brief_wait)),
}
"""What is shown, in which unit -> the field of a row, and how it is said in little room."""
