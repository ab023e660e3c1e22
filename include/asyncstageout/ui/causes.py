"""*Failures*: why attempts fail, since when, on which links, whose; and what helps. Users see their own."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from fastapi.responses import Response
from psycopg import Connection

from asyncstageout.api.callers import Catalogue
from asyncstageout.api.scopes import refuse_stranger, visible_to
from asyncstageout.catalogue.failed_attempts import Wanted, failed_attempts
from asyncstageout.catalogue.measures import ATTEMPTS
from asyncstageout.catalogue.statistics import (
    EVERYTHING,
    Kind,
    Of,
    Period,
    failures_by_subject,
    most_frequent_failures,
    over_time,
    totals,
)
from asyncstageout.core.failures import Category
from asyncstageout.core.prospects import remedy
from asyncstageout.ui import failures, places
from asyncstageout.ui.charts import Chart, Series, starts_of
from asyncstageout.ui.page import Looking, Page
from asyncstageout.ui.tables import Column, Row, Shown, Table
from asyncstageout.ui.words import number

router = APIRouter()

DRAWN = 6
"""Categories with a colour of their own in the chart; all others are one."""
MOST_AFFECTED = 1_000
FILES_SHOWN = 200

Site = Annotated[str, Query(max_length=255, pattern=r"^[A-Za-z0-9_.:/@\- ]*$")]
User = Annotated[str, Query(max_length=100, pattern=r"^[^\x00]*$")]
CATEGORIES = (("", "Any"), *((one.value, one.value) for one in Category))

_COUNTS = (*ATTEMPTS, "failed", "failures")
_MOST = Column("most", "Most often", is_sortable=False)
_AFFECTED = (
    Column("link", "Link", place=lambda row: places.link(row["subject"], row["other"])),
    Column("failed_attempts", "Failed attempts", Shown.NUMBER),
    Column("share", "Of all these", Shown.SHARE),
    _MOST,
    Column("which", "Show", place=lambda row: row["place"]),
)
_PEOPLE = (
    Column("subject", "User", place=lambda row: row["place"], hint="Leads to why his files failed"),
    Column("failed_attempts", "Failed attempts", Shown.NUMBER),
    Column("share", "Of all these", Shown.SHARE),
    _MOST,
)


@dataclass(frozen=True, slots=True)
class Where:
    """What the page is asked for; None leaves a field open."""

    category: str | None
    user: str | None
    site: str | None
    source: str | None
    destination: str | None

    def given(self, but: str = "") -> dict[str, str | None]:
        """Return what is chosen, as the URL says it."""
        return {name: value for name, value in asdict(self).items() if value and name != but}

    @property
    def is_of_sites(self) -> bool:
        return bool(self.site or self.source or self.destination)

    def counted(self, usernames: Collection[str] | None) -> list[Of]:
        """Return what the statistics know that is closest; several add up."""
        if usernames is not None:
            return [Of(Kind.USER, usernames=usernames)]
        if self.source and self.destination:
            return [Of(Kind.LINK, self.source, self.destination)]
        ends = (
            Of(Kind.SOURCE, self.source or self.site),
            Of(Kind.DESTINATION, self.destination or self.site),
        )
        return [of for of in ends if of.subject] or [EVERYTHING]

    def links(self) -> list[Of]:
        """Return the links that are meant; several add up."""
        if self.site:
            return [Of(Kind.LINK, self.site), Of(Kind.LINK, other=self.site)]
        return [Of(Kind.LINK, self.source, self.destination)]


@router.get("/failures", name="failures")
def causes(
    page: Looking, conn: Catalogue, *,
    category: Category | Literal[""] = "", user: User = "", site: Site = "",
    source: Site = "", destination: Site = "",
) -> Response:  # fmt: skip
    """Show why attempts failed: of everything to operators, of his own files to a user."""
    given = {
        "category": str(category), "user": user, "site": site, "source": source, "destination": destination
    }  # fmt: skip
    where = Where(**{name: value.strip() or None for name, value in given.items()})
    refuse_stranger(page.caller, where.user)
    usernames = [where.user] if where.user else visible_to(page.caller)
    period = page.span.whole(page.now)
    found = [totals(conn, period, of, columns=_COUNTS) for of in where.counted(usernames)]
    counted = _only(where, _added(one["failures"] for one in found))
    look = failed_attempts(
        conn,
        Wanted(
            period.start, usernames, category=where.category, source=where.source,
            destination=where.destination, site=where.site,
        ),
    )  # fmt: skip
    tables = [
        page.table(
            "categories", f"By category, {page.span.words}",
            failures.columns(**where.given(but="category")),
            failures.by_category(counted), sort="-attempts",
            empty="No attempt failed. A longer time, or another choice, may show some.",
        ),
        page.table(
            "reasons", "By reason", failures.REASONS, failures.by_reason(look, counted), sort="-attempts",
            per_page=20, empty="No failure was seen. A longer time, or another choice, may show some.",
        ),
        page.table(
            "files", "Files, the latest first", failures.ATTEMPTS, failures.rows_of(look)[:FILES_SHOWN],
            sort="-at", per_page=20,
            empty="No failure was seen. A longer time, or another choice, may show some.",
        ),
    ]  # fmt: skip
    # What the statistics do not know together is not shown.
    if usernames is None:
        tables.append(_links(page, conn, where))
        if not where.is_of_sites:
            tables.append(_users(page, conn, where))
    sums = {name: sum(one[name] for one in found) for name in _COUNTS[:-1]}
    return page.show(
        "failures.html", title="Failures" if page.caller.sees_everybody else "Your failures", tables=tables,
        where=where, categories=CATEGORIES, found=sums, counted=counted, look=look,
        known=remedy(where.category) if where.category else None,
        is_wider=usernames is not None and where.is_of_sites,
        chart=_trend(page, conn, where, where.counted(usernames), counted),
    )  # fmt: skip


def _trend(
    page: Page, conn: Connection, where: Where, counted_of: list[Of], counted: Mapping[str, int]
) -> Chart:
    """Return how many attempts failed over time, by category, the most frequent from below."""
    period = page.span.pieces(page.now, counted_of[0].kind)
    starts = starts_of(period)
    by_start: defaultdict[datetime, Counter[str]] = defaultdict(Counter)
    for of in counted_of:
        for row in over_time(conn, period, of, columns=("failures",)):
            by_start[row["at"]].update(_only(where, row["failures"]))
    drawn = [name for name, _ in Counter(counted).most_common(DRAWN)]
    series = [
        Series(f"c{place}", name, [by_start[at][name] for at in starts]) for place, name in enumerate(drawn)
    ]
    if len(counted) > DRAWN:
        rest = [sum(n for name, n in by_start[at].items() if name not in drawn) for at in starts]
        series.append(Series("others", "all others", rest))
    assert period.width is not None  # noqa: S101 - a chart is of pieces
    return Chart(
        "trend", "Failed attempts, by category", starts, period.width, series, number, until=period.end
    )


def _links(page: Page, conn: Connection, where: Where) -> Table:
    rows = [
        {
            **row,
            "link": f"{row['subject']} → {row['other']}",
            "which": "why",
            "place": places.failures(
                source=row["subject"], destination=row["other"], category=where.category
            ),
        }
        for row in _most_affected(page, conn, where, where.links())
    ]
    table = page.table(
        "links", f"Links, {page.span.words}", _AFFECTED, rows, sort="-failed_attempts", per_page=20,
        empty="No attempt failed on any link.",
    )  # fmt: skip
    return _explained(table, conn, page.span.whole(page.now), Kind.LINK, where.category)


def _users(page: Page, conn: Connection, where: Where) -> Table:
    rows = [
        {**row, "place": places.failures(user=row["subject"], category=where.category)}
        for row in _most_affected(page, conn, where, [Of(Kind.USER)])
    ]
    table = page.table(
        "users", f"Users, {page.span.words}", _PEOPLE, rows, sort="-failed_attempts", per_page=20,
        empty="No attempt of anybody's files failed.",
    )  # fmt: skip
    return _explained(table, conn, page.span.whole(page.now), Kind.USER, where.category)


def _most_affected(page: Page, conn: Connection, where: Where, of: Iterable[Of]) -> list[dict[str, Any]]:
    """Return the failures of all of these together, each with its share of them."""
    period = page.span.whole(page.now)
    found = {
        (row["subject"], row["other"]): row
        for one in of
        for row in failures_by_subject(conn, period, one, category=where.category, limit=MOST_AFFECTED)
    }
    total = sum(row["failed_attempts"] for row in found.values())
    return [{**row, "share": row["failed_attempts"] / total} for row in found.values()]


def _explained(table: Table, conn: Connection, period: Period, kind: Kind, category: str | None) -> Table:
    """Return a table that also says why most often: it is looked up of the rows that are shown only."""

    def explained(rows: Iterable[Row]) -> list[Row]:
        rows = list(rows)
        which = [] if category else [(row["subject"], row["other"]) for row in rows]
        why = most_frequent_failures(conn, period, kind, which) if which else {}
        return [{**row, "most": category or why.get((row["subject"], row["other"]))} for row in rows]

    return replace(table, rows=explained(table.rows), everything=lambda: explained(table.everything()))


def _added(maps: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in maps:
        total.update(one)
    return dict(total)


def _only(where: Where, counted: Mapping[str, int]) -> dict[str, int]:
    return {name: n for name, n in counted.items() if where.category in (None, name)}
