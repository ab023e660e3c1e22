"""*Sites*: all of them at both ends of links; and the page of one, with its links and its own description."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response
from psycopg import Connection

from asyncstageout.api.callers import Catalogue, Operator
from asyncstageout.api.problems import Problem
from asyncstageout.catalogue.measures import ATTEMPTS
from asyncstageout.catalogue.queues import Queue, Queues, queues
from asyncstageout.catalogue.site_sources import SiteFacts, site_facts
from asyncstageout.catalogue.statistics import Kind, Of, by_subject, totals
from asyncstageout.catalogue.storages import current_storages
from asyncstageout.ui import failures, places
from asyncstageout.ui.conditions import Condition, Conditions, lifting, restricting
from asyncstageout.ui.links import COLUMNS as LINK_COLUMNS
from asyncstageout.ui.links import Search, SiteText, link_rows
from asyncstageout.ui.overview import throughput
from asyncstageout.ui.page import Looking, Page
from asyncstageout.ui.tables import Column, Shown

router = APIRouter()

MOST_SITES = 10_000
_COUNTS = ("done", "done_bytes")
_ENDS = {"from": Kind.SOURCE, "to": Kind.DESTINATION}

COLUMNS = (
    Column("site", "Site", place=lambda row: places.site(row["site"])),
    Column("conditions", "Condition", Shown.CONDITIONS),
    Column("from_done", "Files sent", Shown.NUMBER, hint="Files that arrived from there"),
    Column("from_done_bytes", "Volume sent", Shown.BYTES),
    Column("from_efficiency", "Efficiency as source", Shown.SHARE),
    Column("from_waiting", "Waiting there", Shown.NUMBER),
    Column("to_done", "Files received", Shown.NUMBER),
    Column("to_done_bytes", "Volume received", Shown.BYTES),
    Column("to_efficiency", "Efficiency as destination", Shown.SHARE),
    Column("to_waiting", "Waiting for it", Shown.NUMBER),
    Column("to_in_flight", "On the way to it", Shown.NUMBER),
    Column("storage", "Described by"),
)
_LINKS = tuple(column for column in LINK_COLUMNS if column.name not in ("in_flight_bytes", "failed"))
_PROTOCOLS = (
    Column("name", "Protocol"),
    Column("read", "Read", Shown.NUMBER, hint="Order of preference; none: not for reading"),
    Column("write", "Written", Shown.NUMBER),
    Column("prefix", "Prefix or rules", Shown.CODE),
)


@router.get("/sites", name="sites")
def sites(page: Looking, _: Operator, conn: Catalogue, q: Search = "") -> Response:
    """Show all sites."""
    rows = [row for row in _rows(page, conn) if q.strip().lower() in row["site"].lower()]
    table = page.table(
        "sites", f"Sites, {page.span.words}", COLUMNS, rows, sort=f"-to_{page.measure('done')}",
        empty="No site fits. `aso sites load` adds sites from their own descriptions.",
    )  # fmt: skip
    return page.show("sites.html", title="Sites", tables=[table], q=q)


@router.get("/sites/{site}", name="site")
def site_page(page: Looking, _: Operator, conn: Catalogue, site: SiteText) -> Response:
    """Show all about one site."""
    known = site_facts(conn, [site])
    if not known:
        raise Problem(404, f"There is no site {site}.", kind="no-such-site")
    found = queues(conn)
    period = page.span.whole(page.now)
    ends = {end: totals(conn, period, Of(kind, site)) for end, kind in _ENDS.items()}
    links = link_rows(page, conn, found, site=site)
    conditions = Conditions(conn, page.now)
    touching = conditions.touching_site(site)
    tables = [
        page.table(
            "links", f"Its links, {page.span.words}", _LINKS, links, sort=f"-{page.measure('done')}",
            per_page=20, empty="Nothing moved, waits or is under way on any of its links.",
        ),
        *(
            page.table(
                f"{end}_failures", f"Failed attempts {words}, {page.span.words}",
                failures.columns(**{"source" if end == "from" else "destination": site}),
                failures.by_category(ends[end]["failures"]), sort="-attempts",
                empty="No attempt failed. A longer time may show some.",
            )
            for end, words in (("from", "from there"), ("to", "to it"))
        ),
        page.table(
            "protocols", "How its files are named", _PROTOCOLS, _protocols(conn, site), sort="write",
            empty="Nothing describes its storage: files from and to it fail for their names.",
        ),
    ]  # fmt: skip
    return page.show(
        "site.html", title=site, tables=tables, site=site, facts=known[0], ends=ends,
        queue=_at_ends(found)[site], is_estimate=found.is_estimate,
        charts=[
            throughput(page, conn, Of(kind, site), name=f"{end}_throughput", title=f"Ended, {words}")
            for (end, kind), words in zip(_ENDS.items(), ("from there", "to it"), strict=True)
        ],
        conditions=conditions.of_site(site), restrictions=touching, lift=lifting(touching),
        restrict=restricting(f"site {site}, at either end", site=site),
    )  # fmt: skip


def _rows(page: Page, conn: Connection) -> list[dict[str, Any]]:
    period = page.span.whole(page.now)
    moved = {
        end: {
            row["subject"]: row
            for row in by_subject(conn, period, Of(kind), limit=MOST_SITES, columns=(*_COUNTS, *ATTEMPTS))
        }
        for end, kind in _ENDS.items()
    }
    at_ends, conditions = _at_ends(queues(conn)), Conditions(conn, page.now)
    return [_row(facts, moved, at_ends[facts.site], conditions) for facts in site_facts(conn)]


def _row(
    facts: SiteFacts, moved: dict[str, dict[str, Any]], queue: dict[str, Queue], conditions: Conditions
) -> dict[str, Any]:
    found = conditions.of_site(facts.site)
    if facts.problem:
        found.append(Condition("description fails", "warning", facts.problem))
    row: dict[str, Any] = {"site": facts.site, "conditions": found, "storage": facts.kind}
    for end in _ENDS:
        counts = moved[end].get(facts.site)
        row |= {f"{end}_{name}": counts[name] if counts else 0 for name in _COUNTS}
        row |= {
            f"{end}_efficiency": counts["efficiency"] if counts else None,
            f"{end}_waiting": queue[end].waiting,
            f"{end}_in_flight": queue[end].in_flight,
        }
    return row


def _at_ends(found: Queues) -> defaultdict[str, dict[str, Queue]]:
    """Return what waits and is under way from each site and to it."""
    sums: defaultdict[str, dict[str, Queue]] = defaultdict(lambda: dict.fromkeys(_ENDS, Queue()))
    for link, queue in found.by_link.items():
        for end, site in zip(_ENDS, link, strict=True):
            sums[site] = sums[site] | {end: sums[site][end].with_(queue)}
    return sums


def _protocols(conn: Connection, site: str) -> list[dict[str, Any]]:
    found = current_storages(conn, [site]).get(site)
    if found is None:
        return []
    return [
        {
            "name": one.name,
            "read": one.read,
            "write": one.write,
            "prefix": one.prefix or f"{len(one.to_pfn)} rules",
        }
        for one in found[1].protocols
    ]
