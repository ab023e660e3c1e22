"""*Alerts*: what needs a person, what was, silences, channels; one alert with its history; runbooks."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path
from fastapi.responses import Response

from asyncstageout.api.callers import Catalogue, Operator
from asyncstageout.api.problems import Problem
from asyncstageout.catalogue.alert_settings import SeenChannel, seen_channels, silences_in_force
from asyncstageout.catalogue.alerts import AlertView, alert_events, alert_view, open_views, over_views
from asyncstageout.core.alert_rules import runbook
from asyncstageout.core.alerts import Key, Severity, Silence, silence_of
from asyncstageout.ui import places
from asyncstageout.ui.actions import Action, Field
from asyncstageout.ui.overview import place_of
from asyncstageout.ui.page import Looking
from asyncstageout.ui.runbooks import NoRunbook, rendered_runbook
from asyncstageout.ui.tables import Column, Shown

router = APIRouter()

OVER_SHOWN = 200
LASTING = (
    ("3600", "1 hour"), ("14400", "4 hours"), ("28800", "8 hours"), ("86400", "1 day"), ("259200", "3 days"),
    ("604800", "1 week"), ("2592000", "30 days"),
)  # fmt: skip
REASON = Field("reason", "Reason", "lines", required=True, hint="Others will wonder why nobody is told.")
ENDS_AT = Field("ends_at", "For how long", "lasting", value="14400", choices=LASTING)

SILENCE = Action(
    "silence", "Silence", "/alerts/silences",
    "Nobody is told of these alerts until it ends. They are shown all the same.",
    (
        Field("rule", "Rule", value="*", required=True, hint="Its name, or a pattern such as link-*."),
        Field("subject", "Subject", value="*", required=True,
              hint="Or a pattern; a site is meant at both ends of a link."),
        ENDS_AT, REASON,
    ),
)  # fmt: skip

_OVER = (
    Column("alert", "Alert", place=lambda row: places.alert(row["alert"])),
    Column("severity", "Severity"),
    Column("sentence", "What"),
    Column("since", "From", Shown.TIME),
    Column("over_at", "To", Shown.TIME),
    Column("channels", "Told"),
    Column("rule", "Rule", place=lambda row: _runbook_place(row["rule"])),
)
_EVENTS = (
    Column("at", "When", Shown.TIME),
    Column("kind", "What"),
    Column("channel", "Channel"),
    Column("sentence", "Said"),
)
_CHANNELS = (
    Column("name", "Channel"),
    Column("kind", "Kind"),
    Column("severity", "From severity"),
    Column("rules", "Rules"),
    Column("told_at", "Last told", Shown.TIME),
    Column("waiting", "Waiting", Shown.NUMBER),
    Column("problem", "Problem"),
)


@router.get("/alerts", name="alerts")
def alerts(page: Looking, _: Operator, conn: Catalogue) -> Response:
    """Show what needs a person, and of what nobody is told."""
    opened, silences = open_views(conn, pending=True), silences_in_force(conn)
    tables = [
        page.table(
            "over", "Over lately", _OVER, [_over(one) for one in over_views(conn, OVER_SHOWN)],
            sort="-over_at", per_page=20, empty="No alert is over yet. What heals untold is forgotten.",
        ),
        page.table(
            "channels", "Who is told", _CHANNELS, [_channel(one) for one in seen_channels(conn)], sort="name",
            empty="Nobody is told: there is no channel (docs/how-to/alerts.md).",
        ),
    ]  # fmt: skip
    return page.show(
        "alerts.html", title="Alerts", tables=tables, place_of=place_of, silence=SILENCE, silences=silences,
        opened=[(one, silence_of(one.key, silences)) for one in opened if one.state == "open"],
        pending=[one for one in opened if one.state == "pending"],
        silencing={one.alert_id: silencing(one.key, str(one.alert_id)) for one in opened},
        ending={one.silence_id: _ending(one) for one in silences},
    )  # fmt: skip


@router.get("/alerts/{alert_id}", name="alert")
def alert(
    page: Looking, _: Operator, conn: Catalogue, alert_id: Annotated[int, Path(ge=1, le=2**63 - 1)]
) -> Response:
    """Show one alert: how it is, what became of it, who was told."""
    view = alert_view(conn, alert_id)
    if view is None:
        raise Problem(404, f"There is no alert {alert_id}.", kind="no-such-alert")
    silence = None if view.state == "over" else silence_of(view.key, silences_in_force(conn))
    events = page.table(
        "events", "What became of it", _EVENTS, [one._asdict() for one in alert_events(conn, alert_id)],
        sort="at", empty="Nobody was told: it may heal yet.",
    )  # fmt: skip
    return page.show(
        "alert.html", title=f"Alert {alert_id}", tables=[events], one=view, place_of=place_of,
        silence=silence, silencing=silencing(view.key, str(alert_id)),
        ending=_ending(silence) if silence else None,
    )  # fmt: skip


@router.get("/runbooks/{name}", name="runbook")
def runbook_page(
    page: Looking, _: Operator, name: Annotated[str, Path(pattern=r"^[a-z0-9-]{1,60}\.md$")]
) -> Response:
    """Show what to do."""
    try:
        text = rendered_runbook(name, page.url)
    except NoRunbook as error:
        raise Problem(404, str(error), kind="no-such-runbook") from error
    return page.show("runbook.html", title=text.title, text=text.html)


def silencing(key: Key, number: str) -> Action:
    """Return the action that silences one alert."""
    return Action(
        f"silence-{number}", "Silence", "/alerts/silences",
        f"Nobody is told of {key.rule} of {key.subject} until it ends. It is shown all the same.",
        (ENDS_AT, REASON), body={"rule": key.rule, "subject": key.subject},
    )  # fmt: skip


def _ending(one: Silence) -> Action:
    return Action(
        f"end-{one.silence_id}", "End", f"/alerts/silences/{one.silence_id}/end",
        f"Ends it now: {one.rule} of {one.subject}, silenced by {one.author}: {one.reason}."
        " What is still open is told within two minutes.",
    )  # fmt: skip


def _over(one: AlertView) -> dict[str, Any]:
    return {
        "alert": one.alert_id,
        "severity": Severity(one.severity).name.lower(),
        "sentence": one.sentence,
        "since": one.since or one.first_seen_at,
        "over_at": one.over_at,
        "channels": ", ".join(one.channels),
        "rule": one.rule,
    }


def _channel(one: SeenChannel) -> dict[str, Any]:
    return one.settings | {
        "rules": ", ".join(one.settings["rules"]),
        "told_at": one.told_at,
        "waiting": one.waiting,
        "problem": one.problem,
    }


def _runbook_place(rule: str) -> str | None:
    name = runbook(rule)
    return places.runbook(name) if name else None
