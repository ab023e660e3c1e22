"""*Links*: a matrix and a table of all; and the page of one, with its policy, trend, failures and jobs."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query
from fastapi.responses import Response
from psycopg import Connection
from pydantic_core import to_json

from asyncstageout.api.callers import Catalogue, Operator
from asyncstageout.api.problems import Problem
from asyncstageout.catalogue.link_jobs import last_failures, last_jobs
from asyncstageout.catalogue.measures import ATTEMPTS
from asyncstageout.catalogue.policies import policy_rows
from asyncstageout.catalogue.queues import Queue, Queues, queue_on, queues
from asyncstageout.catalogue.site_sources import site_facts
from asyncstageout.catalogue.statistics import Kind, Of, by_subject, totals
from asyncstageout.core.planning import Link
from asyncstageout.core.policies import Policies
from asyncstageout.ui import failures, places
from asyncstageout.ui.conditions import Condition, Conditions, lifting, restricting
from asyncstageout.ui.matrix import SHOWS, Show, matrix
from asyncstageout.ui.overview import delays, throughput
from asyncstageout.ui.page import Looking, Page
from asyncstageout.ui.tables import Column, Row, Shown
from asyncstageout.ui.words import share

router = APIRouter()

MOST_LINKS = 20_000
SIZES = ("12", "24", "60")
"""Sites on a side of the matrix."""
SiteText = Annotated[str, Path(pattern=r"^[A-Za-z0-9_.:/@\- ]{1,255}$")]
Search = Annotated[str, Query(max_length=100, pattern=r"^[^\x00]*$")]
Only = Literal["all", "trouble", "restricted", "waiting"]
ONLY = {
    "all": "All links", "trouble": "In trouble", "restricted": "Paused, drained or banned",
    "waiting": "With waiting files",
}  # fmt: skip
LOW, LOW_OF = 0.8, 10
"""Below such an efficiency, of at least so many attempts, a link is in trouble."""

_NOTHING = Queue()
_COUNTS = ("done", "done_bytes", "failed", *ATTEMPTS)
COLUMNS = (
    Column("source", "Source", place=lambda row: places.link(row["source"], row["destination"])),
    Column("destination", "Destination", place=lambda row: places.link(row["source"], row["destination"])),
    Column("conditions", "Condition", Shown.CONDITIONS),
    Column("done", "Done", Shown.NUMBER),
    Column("done_bytes", "Volume", Shown.BYTES),
    Column("failed", "Failed", Shown.NUMBER, hint="Files that failed for good"),
    Column("efficiency", "Efficiency", Shown.SHARE, hint="Attempts in FTS that went well"),
    Column("waiting", "Waiting", Shown.NUMBER),
    Column(
        "oldest_due_at",
        "Oldest waiting",
        Shown.TIME,
        hint="Since when the file could start that waits longest",
    ),
    Column("in_flight", "In flight", Shown.NUMBER),
    Column("in_flight_bytes", "In flight, size", Shown.BYTES),
)
_JOBS = (
    Column("job_id", "FTS job", Shown.CODE, place=lambda row: places.job(row["sid"])),
    Column("state", "State"),
    Column("fts_state", "At FTS"),
    Column("fts_server", "Server"),
    Column("identity", "In whose name"),
    Column("files", "Files", Shown.NUMBER),
    Column("open_files", "Open", Shown.NUMBER),
    Column("size_bytes", "Size", Shown.BYTES),
    Column("planned_at", "Planned", Shown.TIME),
    Column("took_s", "Took", Shown.SECONDS),
    Column("reason", "Reason"),
)
_FAILED = (
    Column("state", "State", Shown.STATE),
    Column("username", "User", place=lambda row: places.user(row["username"])),
    Column("task", "Task", place=lambda row: places.task(row["task"])),
    Column("source_lfn", "Source LFN", Shown.CODE, place=lambda row: places.file(row["id"])),
    Column("attempt", "Attempt", Shown.NUMBER),
    Column("failure_category", "Category"),
    Column("failure_reason", "Reason"),
    Column("updated_at", "When", Shown.TIME),
)


@router.get("/links", name="links")
def links(
    page: Looking, _: Operator, conn: Catalogue, *,
    q: Search = "", only: Only = "all", show: Show = "volume", sites: Literal["12", "24", "60"] = "24",
) -> Response:  # fmt: skip
    """Show all links with anything to show."""
    found = queues(conn)
    rows = [row for row in link_rows(page, conn, found) if _is_meant(row, q, only)]
    table = page.table(
        "links", f"Links, {page.span.words}", COLUMNS, rows,
        sort="oldest_due_at" if only == "waiting" else f"-{page.measure('done')}",
        empty="No link fits. Take another time, or another choice.",
    )  # fmt: skip
    return page.show(
        "links.html", title="Links", tables=[table], q=q, only=only, only_words=ONLY, show=show, shows=SHOWS,
        size=sites, sizes=[(one, one) for one in SIZES], is_estimate=found.is_estimate,
        matrix_of=partial(matrix, rows, show, page.unit, int(sites)),
    )  # fmt: skip


@router.get("/links/{source}/{destination}", name="link")
def link_page(
    page: Looking, _: Operator, conn: Catalogue, source: SiteText, destination: SiteText
) -> Response:
    """Show all about one link."""
    link = Link(source, destination)
    known = {facts.site for facts in site_facts(conn, link)}
    for site in link:
        if site not in known:
            raise Problem(404, f"There is no site {site}.", kind="no-such-site")
    of = Of(Kind.LINK, source, destination)
    found = totals(conn, page.span.whole(page.now), of)
    queue, is_capped = queue_on(conn, link)
    conditions = Conditions(conn, page.now)
    touching = conditions.touching_link(link)
    tables = [
        page.table(
            "jobs", "Its last FTS jobs", _JOBS, last_jobs(conn, link), sort="-planned_at",
            empty="No FTS job was ever made for it.",
        ),
        page.table(
            "failed", "Files that failed in its last jobs", _FAILED, last_failures(conn, link),
            sort="-updated_at", empty="No file of its last jobs failed, or all were sent again.",
        ),
        page.table(
            "failures", f"Failed attempts by category, {page.span.words}",
            failures.columns(source=source, destination=destination),
            failures.by_category(found["failures"]), sort="-attempts",
            empty="No attempt failed. A longer time may show some.",
        ),
    ]  # fmt: skip
    return page.show(
        "link.html", title=str(link), tables=tables, link=link, found=found, queue=queue, is_capped=is_capped,
        charts=(throughput(page, conn, of), delays(page, conn, of)), conditions=conditions.of_link(link),
        restrictions=touching, lift=lifting(touching), settings=settings(conn, link),
        restrict=restricting(str(link), source=source, destination=destination),
    )  # fmt: skip


def link_rows(
    page: Page, conn: Connection, found: Queues, *, site: str | None = None
) -> list[dict[str, Any]]:
    """Return a row for each link on which anything moved in the page's time, waits or is under way.

    Args:
        site: only links with this site at an end.
    """
    which = [Of(Kind.LINK, site), Of(Kind.LINK, other=site)] if site else [Of(Kind.LINK)]
    moved = {
        Link(row["subject"], row["other"]): row
        for of in which
        for row in by_subject(conn, page.span.whole(page.now), of, limit=MOST_LINKS, columns=_COUNTS)
    }
    conditions = Conditions(conn, page.now)
    return [
        _row(page, link, moved.get(link), found.by_link.get(link, _NOTHING), conditions)
        for link in moved | dict.fromkeys([*found.by_link, *conditions.breakers])
        if site is None or site in link
    ]


def settings(conn: Connection, link: Link) -> list[dict[str, Any]]:
    """Return each setting of a link's policy, and who set it for what; those that were set come first."""
    policies = Policies(policy_rows(conn))
    policy, rows = policies.of(*link), policies.rows_for(*link)
    by_name = {name: row for row in rows for name in row.settings}
    found = [
        {
            "name": name,
            "value": to_json(value).decode().replace("null", "none").strip('"'),
            "row": by_name.get(name),
        }
        for name, value in policy.model_dump().items()
    ]
    return sorted(found, key=lambda one: one["row"] is None)


def _row(page: Page, link: Link, moved: Row | None, queue: Queue, conditions: Conditions) -> dict[str, Any]:
    counts = moved or dict.fromkeys(_COUNTS, 0)
    efficiency = moved["efficiency"] if moved else None
    attempts = sum(counts[name] for name in ATTEMPTS)
    found = conditions.of_link(link)
    if not found and attempts >= LOW_OF and efficiency is not None and efficiency < LOW:
        found = (
            Condition("low efficiency", "warning", f"only {share(efficiency)} of the attempts went well"),
        )
    oldest_s = (page.now - queue.oldest_due_at).total_seconds() if queue.oldest_due_at else None
    return {
        **link._asdict(),
        **{name: counts[name] for name in ("done", "done_bytes", "failed")},
        "attempts": attempts,
        "efficiency": efficiency,
        "waiting": queue.waiting,
        "oldest_due_at": queue.oldest_due_at,
        "oldest_s": oldest_s,
        "in_flight": queue.in_flight,
        "in_flight_bytes": queue.in_flight_bytes,
        "conditions": found,
    }


def _is_meant(row: Row, q: str, only: Only) -> bool:
    text = q.strip().lower()
    if text and text not in f"{row['source']} → {row['destination']}".lower():
        return False
    match only:
        case "trouble":
            return any(not one.is_restriction for one in row["conditions"])
        case "restricted":
            return any(one.is_restriction for one in row["conditions"])
        case "waiting":
            return bool(row["waiting"])
    return True
