"""What every page has: who looks, since when, in which unit, its address, and how it becomes an answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import Annotated, Any, Literal

from fastapi import Depends, Query
from fastapi.responses import Response
from starlette.requests import Request

from asyncstageout.api.callers import Asker
from asyncstageout.api.problems import Problem
from asyncstageout.ui import places
from asyncstageout.ui.rendering import rendered
from asyncstageout.ui.spans import SPANS, Span, SpanName
from asyncstageout.ui.tables import ROWS_PER_PAGE, Column, Row, Table, as_csv, ordered

Unit = Literal["files", "bytes"]
PREFIX = "/stageout/ui"
"""Where the plugin mounts the room; what stands before it is Airflow's own root."""
MOST_PAGES = 100_000


class Page:
    """One request for a page."""

    def __init__(self, request: Request, caller: Asker, *, span: Span, unit: Unit, is_csv: bool) -> None:
        self.request, self.caller = request, caller
        self.span, self.unit, self.is_csv = span, unit, is_csv
        self.now = datetime.now(UTC)

    @property
    def is_framed(self) -> bool:
        """Whether it is shown inside Airflow's page."""
        return self.request.headers.get("sec-fetch-dest") == "iframe"

    @cached_property
    def root(self) -> str:
        """Path of the room."""
        return str(self.request.scope.get("root_path", ""))

    def url(self, place: str) -> str:
        """Return the address of a place (:mod:`asyncstageout.ui.places`), with this page's span and unit."""
        path, _, query = place.partition("?")
        kept = (f"{name}={value}" for name, value in self._kept.items() if f"{name}=" not in query)
        rest = "&".join(filter(None, (query, *kept)))
        return self.root + path + (f"?{rest}" if rest else "")

    def here(self, **changes: object) -> str:
        """Return the address of this page with other parameters; None takes one away."""
        query = dict(self.request.query_params.items()) | changes
        return self.root + places.path(**query).replace("/", self.path, 1)

    def asset(self, name: str) -> str:
        """Return the address of a file of the room, which changes with its content."""
        return f"{self.root}/assets/{name}"

    def api(self, path: str) -> str:
        """Return the address of a path of the REST API."""
        return f"{self.root.removesuffix('/ui')}/api/v1{path}"

    def airflow(self, path: str = "/") -> str:
        """Return the address of a page of Airflow."""
        return self.root.removesuffix(PREFIX) + path

    @property
    def path(self) -> str:
        """Path of this page, below the room."""
        return self.request.scope["path"].removeprefix(self.root) or "/"

    def measure(self, name: str) -> str:
        """Return the name of a count in the page's unit.

        ``done`` or ``done_bytes``, as :mod:`asyncstageout.catalogue.statistics` call them.
        """
        return name if self.unit == "files" else f"{name}_bytes"

    def hidden(self, *names: str) -> list[tuple[str, str]]:
        """Return the parameters that a form must keep, beside those that it asks for itself."""
        pages = ("format", "table")
        return [
            (name, value)
            for name, value in self.request.query_params.multi_items()
            if name not in (*names, *pages) and not name.endswith((".page", ".cursor"))
        ]

    def table(
        self, name: str, caption: str, columns: Sequence[Column], rows: Iterable[Row], *,
        sort: str, empty: str, per_page: int = ROWS_PER_PAGE,
    ) -> Table:  # fmt: skip
        """Return a table of rows that are all there; the URL says in which order, and which page of them.

        Args:
            sort: unless the URL says otherwise.
            empty: what it means that there are no rows, and where to look next.

        Raises:
            Problem: 422, the URL asks for an order or a page that there cannot be.
        """
        asked = self.request.query_params.get(f"{name}.sort", sort)
        if asked.lstrip("-") not in {column.name for column in columns if column.is_sortable}:
            raise _no_such(f"{name}.sort", asked)
        rows = ordered(rows, asked)
        number = self._page_number(name)
        first = (number - 1) * per_page
        if first and first >= len(rows):
            raise _no_such(f"{name}.page", str(number))
        return Table(
            name, caption, columns, rows[first : first + per_page], empty, total=len(rows), first=first,
            sort=asked, everything=lambda: rows,
            previous={f"{name}.page": number - 1 if number > 2 else None} if number > 1 else None,
            next={f"{name}.page": number + 1} if first + per_page < len(rows) else None,
        )  # fmt: skip

    def listing(
        self, name: str, caption: str, columns: Sequence[Column], rows: Sequence[Row], *,
        next_cursor: str | None, empty: str, everything: Callable[[], Iterable[Row]],
    ) -> Table:  # fmt: skip
        """Return one page of a table that is too long to be counted or sorted: a cursor leads on.

        Args:
            next_cursor: of the page after this one (:mod:`asyncstageout.api.cursors`); None: it is the last.
            everything: returns all rows, from the first, for the CSV.
        """
        parameter = f"{name}.cursor"
        return Table(
            name, caption, columns, rows, empty, is_sortable=False, everything=everything,
            previous={parameter: None} if self.cursor(name) else None,
            next={parameter: next_cursor} if next_cursor else None,
        )  # fmt: skip

    def cursor(self, name: str) -> str | None:
        """Return where the page of a list begins; None: at its beginning."""
        return self.request.query_params.get(f"{name}.cursor")

    def show(self, template: str, *, title: str, tables: Sequence[Table] = (), **context: Any) -> Response:
        """Return the page, or one of its tables if a file is asked for.

        Args:
            title: of the page, in the browser's tab.
            tables: those of the page; the template finds each by its name.

        Raises:
            Problem: 404, a file of a table is asked for that the page does not have.
        """
        if self.is_csv:
            wanted = self.request.query_params.get("table") or (tables[0].name if tables else "")
            for table in tables:
                if table.name == wanted:
                    return as_csv(table)
            raise Problem(404, f"This page has no table {wanted}.", kind="no-such-table")
        named = {table.name: table for table in tables}
        return rendered(template, page=self, title=title, tables=named, **context)

    @cached_property
    def _kept(self) -> dict[str, str]:
        given = self.request.query_params
        return {name: given[name] for name in ("range", "unit") if name in given}

    def _page_number(self, name: str) -> int:
        text = self.request.query_params.get(f"{name}.page", "1")
        if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MOST_PAGES):
            raise _no_such(f"{name}.page", text)
        return int(text)


def _no_such(parameter: str, value: str) -> Problem:
    return Problem(422, f"{parameter} cannot be {value}.", kind="invalid-request")


def the_page(
    request: Request,
    caller: Asker,
    span: Annotated[SpanName, Query(alias="range")] = "24h",
    unit: Unit = "files",
    format_: Annotated[Literal["html", "csv"], Query(alias="format")] = "html",
) -> Page:
    return Page(request, caller, span=SPANS[span], unit=unit, is_csv=format_ == "csv")


Looking = Annotated[Page, Depends(the_page)]
"""The page that a route is asked for; whoever asks is authenticated."""
