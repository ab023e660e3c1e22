"""Tables: columns said once, for the page, its order, its pages of rows and its CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from fastapi.responses import StreamingResponse

Row = Mapping[str, Any]

ROWS_PER_PAGE = 50
CSV_BATCH = 1000
_FORMULA = re.compile(r"^[=+\-@\t\r]")
"""A spreadsheet would compute what begins so."""


class Shown(StrEnum):
    """How the values of a column are shown."""

    TEXT = "text"
    CODE = "code"
    """A name that is looked up or copied: an LFN, an id."""
    NUMBER = "number"
    BYTES = "bytes"
    SHARE = "share"
    SECONDS = "seconds"
    TIME = "time"
    MOMENT = "moment"
    """To the second, where several things happen in a minute."""
    STATE = "state"
    LINES = "lines"
    """A list of texts, each on a line of its own."""
    CONDITIONS = "conditions"
    """A list of :class:`asyncstageout.ui.conditions.Condition`; empty: all is well."""

    @property
    def is_quantity(self) -> bool:
        return self in (Shown.NUMBER, Shown.BYTES, Shown.SHARE, Shown.SECONDS)


@dataclass(frozen=True, slots=True)
class Column:
    """One column."""

    name: str
    """Key in the rows, head of the CSV, and what the URL calls it."""
    title: str
    shown: Shown = Shown.TEXT
    place: Callable[[Row], str | None] | None = None
    """Returns the path (:mod:`asyncstageout.ui.places`) that the value leads to."""
    hint: str = ""
    """What it means, where the title does not say it."""
    is_sortable: bool = True
    out: Callable[[Row], str | None] | None = None
    """Returns the whole address, in Airflow or elsewhere, that the value leads to."""


@dataclass(frozen=True, slots=True)
class Table:
    """What a template's ``table`` macro shows. Made by :meth:`asyncstageout.ui.page.Page.table`."""

    name: str
    """What the URL calls it: ``links.sort=-failed``."""
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    """Of this page."""
    empty: str
    """What it means that there are none, and where to look next."""
    total: int | None = None
    """Of all pages; None: nobody counted."""
    first: int = 0
    """Place of the first row among all."""
    sort: str | None = None
    """Name of the column, after a minus if its largest come first; None: in an order of its own."""
    is_sortable: bool = True
    previous: Mapping[str, object] | None = None
    """Parameters of the page before; None: there is none."""
    next: Mapping[str, object] | None = None
    everything: Callable[[], Iterable[Row]] = tuple
    """Returns all rows, for the CSV."""

    def order_of(self, column: Column) -> str | None:
        """Return what ``aria-sort`` says of a column."""
        if self.sort is None or self.sort.lstrip("-") != column.name:
            return None
        return "descending" if self.sort.startswith("-") else "ascending"

    def other_order(self, column: Column) -> str:
        """Return what to sort by when a column's head is chosen: quantities begin with the largest."""
        order = self.order_of(column)
        descends = column.shown.is_quantity if order is None else order == "ascending"
        return f"-{column.name}" if descends else column.name


def ordered(rows: Iterable[Row], sort: str) -> list[Row]:
    """Return rows in the order of a column; those without a value come last, either way.

    >>> [row["a"] for row in ordered([{"a": 1}, {"a": None}, {"a": 2}], "-a")]
    [2, 1, None]
    """
    name = sort.lstrip("-")
    known, unknown = list[Row](), list[Row]()
    for row in rows:
        (unknown if row[name] is None else known).append(row)
    return sorted(known, key=lambda row: row[name], reverse=sort.startswith("-")) + unknown


def as_csv(table: Table) -> StreamingResponse:
    """Return all rows of a table as a file, piece by piece."""
    name = f"stageout-{table.name}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.csv"
    return StreamingResponse(
        _lines(table),
        media_type="text/csv; charset=utf-8",
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )


def _lines(table: Table) -> Iterator[str]:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow([column.name for column in table.columns])
    for number, row in enumerate(table.everything(), 1):
        writer.writerow([_cell(row[column.name]) for column in table.columns])
        if number % CSV_BATCH == 0:
            yield text.getvalue()
            text.seek(0)
            text.truncate()
    yield text.getvalue()


def _cell(value: Any) -> Any:
    """Return a value for programs: numbers as they are, times in UTC, nothing that a spreadsheet computes.

    >>> _cell("=1+1"), _cell(datetime(2026, 11, 27, tzinfo=UTC)), _cell(-1), _cell(None)
    ("'=1+1", '2026-11-27T00:00:00Z', -1, None)
    """
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
    if isinstance(value, str) and _FORMULA.match(value):
        return f"'{value}"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
