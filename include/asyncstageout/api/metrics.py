"""Numbers in Prometheus's text format. Any account may read them: none of them is about a person."""

from __future__ import annotations

from itertools import groupby
from threading import Lock
from time import monotonic
from typing import NamedTuple

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from asyncstageout.api.callers import APIHouse, Asker
from asyncstageout.catalogue.metrics import RECENT_MINUTES, Measurement, measurements

router = APIRouter(tags=["monitoring"])

FRESH_S = 5.0
"""So old may an answer be: many who ask cost no more than one."""
MEDIA_TYPE = "text/plain; version=0.0.4"


class Gauge(NamedTuple):
    """What a number means, and what its labels are called."""

    meaning: str
    labels: tuple[str, ...] = ()


GAUGES = {
    "files_waiting": Gauge("Files that wait for a cycle (NEW, RETRY); estimated above 100,000."),
    "wait_seconds": Gauge("How long the file that is due the longest has waited."),
    "files_ended_recently": Gauge(f"Files that ended in the last {RECENT_MINUTES} minutes.", ("state",)),
    "fts_jobs": Gauge("FTS jobs that are not over.", ("server", "state")),
    "files_in_fts": Gauge("Files in FTS jobs that are not over.", ("server", "state")),
    "fts_server_usable": Gauge("1 if an FTS server gets new jobs.", ("server",)),
    "links_broken": Gauge("Links on which nothing starts but probes."),
    "identities_held": Gauge("Identities that an FTS server does not let in."),
    "restrictions": Gauge("Restrictions in force.", ("mode",)),
    "outbox_messages": Gauge(
        "Messages that a subscriber has not taken; counted up to 100,000.", ("subscription", "state")
    ),
    "outbox_wait_seconds": Gauge(
        "How long the message that is due the longest has waited.", ("subscription",)
    ),
    "subscription_well": Gauge("1 if a subscription is active and its receiver takes.", ("subscription",)),
    "step_age_seconds": Gauge("Time since a step last ended well.", ("dag", "task")),
}
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
                text = written(measurements(conn))
            state.metrics = (now, text)
    return PlainTextResponse(text, media_type=MEDIA_TYPE)


def written(found: list[Measurement]) -> str:
    """Return measurements, ordered by name, as text."""
    lines: list[str] = []
    for name, group in groupby(found, key=lambda one: one.name):
        gauge = GAUGES[name]
        lines += [f"# HELP stageout_{name} {gauge.meaning}", f"# TYPE stageout_{name} gauge"]
        for one in group:
            pairs = zip(gauge.labels, (one.first, one.second), strict=False)
            labels = ",".join(f'{label}="{_escaped(value)}"' for label, value in pairs)
            lines.append(f"stageout_{name}{f'{{{labels}}}' if labels else ''} {one.value:.17g}")
    return "\n".join(lines) + "\n"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
