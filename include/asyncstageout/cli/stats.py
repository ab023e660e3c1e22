"""``aso stats``: what happened to files in a time, in all or by link, site, user, task or error."""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

import typer
from psycopg import Connection
from rich.table import Table
from rich.text import Text

from asyncstageout.catalogue.measures import WITHOUT_DELAYS
from asyncstageout.catalogue.statistics import (
    DAY,
    HOUR,
    Kind,
    Of,
    Period,
    by_subject,
    counted_until,
    over_time,
    subjects_seen,
    totals,
)
from asyncstageout.cli import app, console
from asyncstageout.cli.options import AsJson, CatalogueURL, duration, open_catalogue
from asyncstageout.core.delays import Delay
from asyncstageout.steps.recording import files, size

Rows = list[dict[str, Any]]


class By(StrEnum):
    """What rows are about."""

    total = "total"
    link = "link"
    site = "site"
    user = "user"
    task = "task"
    error = "error"


KINDS = {
    By.link: (Kind.LINK,),
    By.site: (Kind.SOURCE, Kind.DESTINATION),
    By.user: (Kind.USER,),
    By.task: (Kind.TASK,),
}
DELAYS = {
    Delay.ACCEPTED_AFTER: "from arrival to accepted by FTS",
    Delay.IN_FTS: "in FTS, if it went well",
    Delay.SETTLED_AFTER: "from its end in FTS to DONE",
    Delay.DONE_AFTER: "from arrival to DONE",
}
LINKS_NAMED = 3
NAME_CHARS = 26
"""So wide is a link; with it a row fits into 80 columns."""


@app.command()
def stats(
    *,
    since: Annotated[str, typer.Option(help="So far back: 30m, 24h, 7d.")] = "24h",
    by: Annotated[By, typer.Option(help="A row for each.")] = By.total,
    every: Annotated[str | None, typer.Option(help="All files, with a row for each 15m, 1h, 1d.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="Rows at most.")] = 20,
    catalogue_url: CatalogueURL = None,
    as_json: AsJson = False,
) -> None:
    """Tell what happened: files, bytes, failures, delays. Times are UTC, and hours count as a whole."""
    now = datetime.now(UTC)
    width = duration(every) if every else None
    period = Period.covering(now - duration(since), now, width)
    with open_catalogue(catalogue_url) as conn:
        until = counted_until(conn)
        rows = over_time(conn, period) if width else _rows(conn, period, by, limit)
    if as_json:
        facts = {"start": period.start, "end": period.end, "counted_until": until, "rows": rows}
        sys.stdout.write(json.dumps(facts, default=_moment) + "\n")
        return
    console.print(f"{period.start:%Y-%m-%d %H:%M} to {period.end:%Y-%m-%d %H:%M} UTC", style="bold")
    if until is None or now - until > 2 * HOUR:
        told = f"{until:%Y-%m-%d %H:%M} UTC" if until else "never"
        console.print(f"Counted up to: {told}. Does stageout_statistics run?", style="yellow")
    if by is By.total and not width:
        _print_totals(rows[0], (period.end - period.start) / DAY)
    elif by is By.error and not width:
        console.print(_errors_table(rows))
    else:
        console.print(_table(rows))


def _rows(conn: Connection, period: Period, by: By, limit: int) -> Rows:
    if by is By.total:
        return [totals(conn, period) | {"seen": subjects_seen(conn, period)}]
    if by is By.error:
        links = by_subject(
            conn, period, Of(Kind.LINK), order="failures", limit=100_000, columns=("failures",)
        )
        return _errors(links)[:limit]
    wanted = (*WITHOUT_DELAYS, Delay.DONE_AFTER)
    rows = [
        row | {"kind": kind.value}
        for kind in KINDS[by]
        for row in by_subject(conn, period, Of(kind), limit=limit, columns=wanted)
    ]
    return rows if len(KINDS[by]) == 1 else sorted(rows, key=lambda row: -row["done"])[:limit]


def _errors(links: Rows) -> Rows:
    """Return categories with their failed attempts, and the links that had most of them."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for row in links:
        for category, attempts in row["failures"].items():
            found[category][_name(row)] += attempts
    rows: Rows = [
        {"category": category, "attempts": by_link.total(), "links": len(by_link),
         "most": dict(by_link.most_common(LINKS_NAMED))}
        for category, by_link in found.items()
    ]  # fmt: skip
    return sorted(rows, key=lambda row: -row["attempts"])


def _name(row: Mapping[str, Any]) -> str:
    if "at" in row:
        return f"{row['at']:%Y-%m-%d %H:%M}"
    match row.get("kind"):
        case Kind.TASK | Kind.USER:
            return str(row["subject"])
        case Kind.SOURCE | Kind.DESTINATION:
            return f"{'from' if row['kind'] == Kind.SOURCE else 'to'} {row['subject']}"
    return f"{row['subject']} → {row['other']}"


def _table(rows: Rows) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("", overflow="fold", min_width=NAME_CHARS)
    for title in ("arrived", "done", "volume", "failed", "well", "half in"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        after = (row.get(Delay.DONE_AFTER) or {}).get("p50_s")
        table.add_row(
            Text(_name(row)),
            *(f"{row[name]:,}" for name in ("arrived", "done")),
            size(row["done_bytes"]),
            f"{row['failed']:,}" if row["failed"] else "",
            "" if row["efficiency"] is None else f"{row['efficiency']:.1%}",
            "" if after is None else _lasting(after),
        )
    return table


def _errors_table(rows: Rows) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("why", no_wrap=True)
    table.add_column("attempts", justify="right", no_wrap=True)
    table.add_column("links", justify="right", no_wrap=True)
    table.add_column("most of them", overflow="fold")
    for row in rows:
        most = ", ".join(f"{link} {attempts:,}" for link, attempts in row["most"].items())
        table.add_row(row["category"], f"{row['attempts']:,}", f"{row['links']:,}", most)
    return table


def _print_totals(row: Mapping[str, Any], days: float) -> None:
    for line in _lines(row, days):
        console.print(line, markup=False, soft_wrap=True)
    table = Table("waits", "p50", "p95", "p99", box=None, pad_edge=False)
    for delay, words in DELAYS.items():
        shares = row[delay] or {}
        table.add_row(
            words, *(_lasting(shares[name]) if shares else "" for name in ("p50_s", "p95_s", "p99_s"))
        )
    console.print(table)


def _lines(row: Mapping[str, Any], days: float) -> Iterator[str]:
    seen = row["seen"]
    yield f"{files(row['arrived'])} arrived, {size(row['arrived_bytes'])}"
    yield (
        f"{files(row['done'])} done, {size(row['done_bytes'])}: {row['done'] / days:,.0f} files"
        f" and {size(round(row['done_bytes'] / days))} a day"
    )
    yield f"{row['failed']:,} failed for good, {row['killed']:,} killed, {row['sent_again']:,} sent again"
    if row["efficiency"] is not None:
        ended = row["attempts_done"] + row["attempts_failed"]
        yield f"{row['efficiency']:.1%} of {ended:,} attempts in FTS went well"
    yield (
        f"{seen['user']:,} users, {seen['task']:,} tasks, {seen['link']:,} links"
        f" from {seen['source']:,} to {seen['destination']:,} sites"
    )
    if row["around"]:
        yield "; ".join(f"{what}: {count:,}" for what, count in sorted(row["around"].items()))


def _lasting(seconds: float) -> str:
    """Say a time with two digits that matter.

    >>> _lasting(4.56), _lasting(456.0), _lasting(45_600.0)
    ('4.6 s', '7.6 min', '12.7 h')
    """
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds / 86_400:.1f} days"


def _moment(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"no JSON for {type(value).__name__}")
