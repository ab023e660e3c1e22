"""Numbers in Prometheus's text format. Any account may read them: none of them is about a person.

Names as https://prometheus.io/docs/practices/naming/ wants them: base units, counters end in ``_total``.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from threading import Lock
from time import monotonic
from typing import Literal, NamedTuple

from fastapi import APIRouter
from psycopg import Connection
from starlette.datastructures import State
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from asyncstageout.api.callers import APIHouse, Asker
from asyncstageout.catalogue.counters import LINKS, Count, Week, busiest_links, counts, week
from asyncstageout.catalogue.metrics import RECENT_MINUTES, measurements
from asyncstageout.core.planning import Link

router = APIRouter(tags=["monitoring"])

FRESH_S = 5.0
"""So old may an answer be: many who ask cost no more than one."""
MEDIA_TYPE = "text/plain; version=0.0.4"


class Metric(NamedTuple):
    """What a number means, and what its labels are called."""

    meaning: str
    labels: tuple[str, ...] = ()
    kind: Literal["gauge", "counter", "histogram"] = "gauge"


_LINK = ("source", "destination")
_BUSIEST = f"the {LINKS} busiest links of the week before, all others as other"

METRICS = {
    "files_waiting": Metric("Files that wait for a cycle (NEW, RETRY); estimated above 100,000."),
    "wait_seconds": Metric("How long the file that is due the longest has waited."),
    "files_ended_recently": Metric(f"Files that ended in the last {RECENT_MINUTES} minutes.", ("state",)),
    "fts_jobs": Metric("FTS jobs that are not over.", ("server", "state")),
    "files_in_fts": Metric("Files in FTS jobs that are not over.", ("server", "state")),
    "fts_server_usable": Metric("1 if an FTS server gets new jobs.", ("server",)),
    "links_broken": Metric("Links on which nothing starts but probes."),
    "identities_held": Metric("Identities that an FTS server does not let in."),
    "restrictions": Metric("Restrictions in force.", ("mode",)),
    "copies_due": Metric("Temporary copies that are to be deleted; at each site counted up to 1,000."),
    "copy_wait_seconds": Metric("How long the temporary copy that is due the longest has waited."),
    "copies_given_up": Metric("Temporary copies whose deletion was given up, the 20 worst sites.", ("site",)),
    "storages_silent": Metric("Storages that let nothing be deleted."),
    "outbox_messages": Metric(
        "Messages that a subscriber has not taken; counted up to 100,000.", ("subscription", "state")
    ),
    "outbox_wait_seconds": Metric(
        "How long the message that is due the longest has waited.", ("subscription",)
    ),
    "subscription_well": Metric("1 if a subscription is active and its receiver takes.", ("subscription",)),
    "step_age_seconds": Metric("Time since a step last ended well.", ("dag", "task")),
    "steps_failed_recently": Metric(
        f"Steps that failed in the last {RECENT_MINUTES} minutes.", ("dag", "task")
    ),
    "blocks": Metric(
        "Blocks that are not published yet: open, closed; counted up to 100,000.", ("dbs", "state")
    ),
    "block_wait_seconds": Metric("How long the oldest closed block has waited for its DBS.", ("dbs",)),
    "alerts": Metric("Open alerts, also those that are silenced.", ("rule", "severity")),
    "alert_messages_waiting": Metric("Messages about alerts that a channel has not taken.", ("channel",)),
    "database_size_bytes": Metric("Size of the catalogue's database."),
    "counters_since_timestamp_seconds": Metric("Since when the counters count: Monday, 00:00 UTC."),
    "counted_until_timestamp_seconds": Metric("Up to when what happened is in the counters."),
    "files_total": Metric("Moves of files: what became of them.", ("event",), "counter"),
    "file_bytes_total": Metric("The bytes of those files.", ("event",), "counter"),
    "attempts_total": Metric("Attempts in FTS that ended: done or failed.", ("outcome",), "counter"),
    "failed_attempts_total": Metric("Failed attempts by category.", ("category",), "counter"),
    "file_events_total": Metric(
        "What happened around files: publication, cleaning, delivery.", ("kind", "state"), "counter"
    ),
    "delay_seconds": Metric("How long files waited for what.", ("delay",), "histogram"),
    "link_files_total": Metric(f"Files that ended on {_BUSIEST}.", (*_LINK, "event"), "counter"),
    "link_bytes_total": Metric(f"Their bytes on {_BUSIEST}.", (*_LINK, "event"), "counter"),
    "link_attempts_total": Metric(
        f"Attempts in FTS that ended on {_BUSIEST}.", (*_LINK, "outcome"), "counter"
    ),
    "link_done_seconds": Metric(f"From arrival to DONE on {_BUSIEST}.", _LINK, "histogram"),
}
HISTOGRAM_PARTS = ("_bucket", "_sum", "_count")
_lock = Lock()


@router.get(
    "/metrics",
    response_class=PlainTextResponse,
    responses={200: {"content": {"text/plain": {"example": "stageout_files_waiting 12\n"}}}},
)
def metrics(request: Request, _: Asker) -> PlainTextResponse:
    """Return the numbers for Prometheus; at most 5 s old."""
    state, now = request.app.state, monotonic()
    with _lock:
        made_at_s, text = getattr(state, "metrics", (0.0, ""))
        if not text or now - made_at_s >= FRESH_S:
            house: APIHouse = state.house
            with house.catalogue() as conn:
                text = current(conn, state)
            state.metrics = (now, text)
    return PlainTextResponse(text, media_type=MEDIA_TYPE)


def current(conn: Connection, state: State) -> str:
    """Return all numbers as they are now, as text.

    Args:
        state: where the links with counters of their own are remembered.
    """
    return written(_all(conn, state))


def _all(conn: Connection, state: State) -> list[Count]:
    found = [
        Count(name, tuple(filter(None, (first, second))), value)
        for name, first, second, value in measurements(conn)
    ]
    this = week(conn)
    found.append(Count("counters_since_timestamp_seconds", (), this.start.timestamp()))
    found.append(Count("counted_until_timestamp_seconds", (), this.until.timestamp()))
    return found + list(counts(conn, this.start, _links(conn, this, state)))


def _links(conn: Connection, this: Week, state: State) -> list[Link]:
    """Return the links with counters of their own; asked for once a week and process, if there are any."""
    since, links = getattr(state, "metrics_links", (None, []))
    if since != this.start or not links:
        links = busiest_links(conn, this.start)
        state.metrics_links = (this.start, links)
    return list(links)


def written(found: Iterable[Count]) -> str:
    """Return numbers as text; those of a metric together."""
    lines: list[str] = []
    for name, group in groupby(
        sorted(found, key=lambda one: family(one.name)), key=lambda one: family(one.name)
    ):
        metric = METRICS[name]
        lines += [f"# HELP stageout_{name} {metric.meaning}", f"# TYPE stageout_{name} {metric.kind}"]
        for one in group:
            names = (*metric.labels, "le") if one.name.endswith("_bucket") else metric.labels
            pairs = zip(names, one.labels, strict=True)
            labels = ",".join(f'{label}="{_escaped(value)}"' for label, value in pairs)
            lines.append(f"stageout_{one.name}{f'{{{labels}}}' if labels else ''} {one.value:.17g}")
    return "\n".join(lines) + "\n"


def family(name: str) -> str:
    """Return the metric that a number belongs to.

    >>> family("delay_seconds_bucket"), family("files_total")
    ('delay_seconds', 'files_total')
    """
    for part in HISTOGRAM_PARTS:
        if name.endswith(part) and name.removesuffix(part) in METRICS:
            return name.removesuffix(part)
    return name


REFERENCE = """# Metrics

`GET /stageout/api/v1/metrics` gives these numbers in Prometheus's text format to any account; an answer is at
most 5 s old, and `aso metrics` prints the same. How to scrape it, dashboards, Airflow's own metrics:
[how to](../how-to/metrics.md). This page is made by `aso metrics reference`.

**Counters** are made of the catalogue's statistics: no restart of anything sets them back. They lag two to
ten minutes behind (`stageout_counted_until_timestamp_seconds`), and begin anew every Monday at 00:00 UTC,
which `rate()` and `increase()` take for a restart.

**Links.** A hundred sites have ten thousand links. Only the busiest by volume have series of their own, those
of the week before, so that none comes or goes within a week; the rest has `source` and `destination` *other*.
In its first week an installation has those of its first day. The REST API's statistics have all links.

**Histograms** count exactly; their `_sum` is within a tenth.

| metric | type | labels | meaning |
|---|---|---|---|
"""


def reference() -> str:
    """Return the page on all metrics, made of their definitions."""
    rows = []
    for name, one in sorted(METRICS.items()):
        labels = ", ".join(f"`{label}`" for label in one.labels)
        rows.append(f"| `stageout_{name}` | {one.kind} | {labels} | {one.meaning} |\n")
    return REFERENCE + "".join(rows)


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
