"""*Overview*: how things are, and what needs a person now. Users see the same of their own files."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response
from psycopg import Connection

from asyncstageout.api.callers import Catalogue
from asyncstageout.api.scopes import visible_to
from asyncstageout.catalogue.alert_settings import rules_in_force, silences_in_force
from asyncstageout.catalogue.alerts import known_alerts
from asyncstageout.catalogue.attention import attention
from asyncstageout.catalogue.measures import ATTEMPTS
from asyncstageout.catalogue.queues import own_files, queues
from asyncstageout.catalogue.statistics import EVERYTHING, Kind, Of, by_subject, over_time, totals
from asyncstageout.core.alerts import About, Attention, Silence, grouped, silence_of
from asyncstageout.core.delays import Delay
from asyncstageout.ui import failures, places
from asyncstageout.ui.charts import Chart, columns, delay_lines
from asyncstageout.ui.page import Looking, Page
from asyncstageout.ui.tables import Column, Row, Shown
from asyncstageout.ui.words import bytes_, number

router = APIRouter()

ENDINGS = {"done": "done", "failed": "failed for good", "killed": "killed"}
LISTED = 10

_LINKS = (
    Column("link", "Link", place=lambda row: places.link(row["subject"], row["other"])),
    Column("done", "Done", Shown.NUMBER),
    Column("done_bytes", "Volume", Shown.BYTES),
    Column("attempts_failed", "Failed attempts", Shown.NUMBER),
    Column("efficiency", "Efficiency", Shown.SHARE, hint="Attempts in FTS that went well"),
)
_TASKS = (
    Column("subject", "Task", Shown.CODE, place=lambda row: places.task(row["subject"])),
    Column("arrived", "Arrived", Shown.NUMBER),
    Column("done", "Done", Shown.NUMBER),
    Column("failed", "Failed for good", Shown.NUMBER),
    Column("attempts_failed", "Failed attempts", Shown.NUMBER),
)


@router.get("/", name="overview")
def overview(page: Looking, conn: Catalogue) -> Response:
    """Show how things are: of everything to operators, of his own files to a user."""
    usernames = visible_to(page.caller)
    of = EVERYTHING if usernames is None else Of(Kind.USER, usernames=usernames)
    found = totals(conn, page.span.whole(page.now), of)
    charts = (throughput(page, conn, of), delays(page, conn, of))
    category = page.table(
        "failures", f"Failed attempts by category, {page.span.words}", failures.COLUMNS,
        failures.by_category(found["failures"]), sort="-attempts",
        empty="No attempt failed. A longer time may show some.",
    )  # fmt: skip
    if usernames is None:
        return page.show(
            "overview.html", title="Overview", tables=[_busiest(page, conn), category], found=found,
            charts=charts, queues=queues(conn), own=None, needs=needs(page, conn), place_of=place_of,
        )  # fmt: skip
    return page.show(
        "overview.html", title="Your files", tables=[_tasks(page, conn, usernames), category], found=found,
        charts=charts, queues=None, own=own_files(conn, usernames), needs=(), place_of=place_of,
    )  # fmt: skip


def needs(page: Page, conn: Connection) -> list[tuple[Attention, Silence | None]]:
    """Return what needs a person, each with the silence of its alert."""
    rules, silences = rules_in_force(conn), silences_in_force(conn)
    groups = grouped(attention(conn, page.now, rules), rules, known_alerts(conn))
    found = sorted(groups.values(), key=lambda one: (-one.severity, one.since or page.now))
    return [(one, silence_of(one.key, silences)) for one in found]


def throughput(
    page: Page, conn: Connection, of: Of, *, name: str = "throughput", title: str = "Ended"
) -> Chart:
    """Return how many files, or bytes, ended over time, and how."""
    period = page.span.pieces(page.now, of.kind)
    measures = {name: (words, page.measure(name)) for name, words in ENDINGS.items()}
    rows = over_time(conn, period, of, columns=[measure for _, measure in measures.values()])
    say, unit = (number, "files") if page.unit == "files" else (bytes_, "bytes")
    return columns(name, f"{title}, in {unit}", period, rows, measures=measures, say=say)


def delays(page: Page, conn: Connection, of: Of) -> Chart:
    """Return how long files took from their arrival to DONE, over time."""
    period = page.span.by_hours(page.now)
    rows = over_time(conn, period, of, columns=(Delay.DONE_AFTER,))
    return delay_lines("delays", "From arrival to done", period, rows, Delay.DONE_AFTER)


def place_of(page: Page, about: About) -> str | None:
    """Return the address where to look, or None if the pages do not show it."""
    match about.kind:
        case "link":
            place = places.link(*about.names)
        case "site":
            place = places.site(*about.names)
        case "jobs":
            place = places.path("jobs", show="doubt")
        case "server":
            place = places.path("jobs", server=about.names[0])
        case "sites":
            place = places.SITES
        case "step" | "run":
            place = places.run(*about.names[:2])
        case _:
            return None
    return page.url(place)


def _busiest(page: Page, conn: Connection) -> Any:
    wanted = ("done", "done_bytes", *ATTEMPTS)
    period = page.span.whole(page.now)
    rows = by_subject(conn, period, Of(Kind.LINK), order=page.unit, limit=LISTED, columns=wanted)
    return page.table(
        "links", f"Busiest links, {page.span.words}", _LINKS, [_named(row) for row in rows],
        sort=f"-{page.measure('done')}", empty="Nothing moved in this time. A longer one may show more.",
    )  # fmt: skip


def _named(row: Row) -> dict[str, Any]:
    return {**row, "link": f"{row['subject']} → {row['other']}"}


def _tasks(page: Page, conn: Connection, usernames: Collection[str]) -> Any:
    of, wanted = Of(Kind.TASK, usernames=usernames), [column.name for column in _TASKS[1:]]
    rows = by_subject(conn, page.span.whole(page.now), of, limit=LISTED, columns=wanted)
    return page.table(
        "tasks", f"Your busiest tasks, {page.span.words}", _TASKS, rows, sort="-arrived",
        empty="Nothing of yours moved in this time. A longer one may show more.",
    )  # fmt: skip
