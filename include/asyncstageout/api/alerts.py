"""For operators: alerts that are open or over, silences, and whether channels work."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from asyncstageout.api.callers import Catalogue, Operator
from asyncstageout.api.limits import PAGE_ROWS, Moment
from asyncstageout.api.problems import Flaw, Problem
from asyncstageout.catalogue import alert_settings
from asyncstageout.catalogue.alert_messages import make_test
from asyncstageout.catalogue.alert_settings import SilenceInvalid, seen_channels, silences_in_force
from asyncstageout.catalogue.alerts import AlertView, alert_events, alert_view, open_views, over_views
from asyncstageout.core.alert_rules import runbook
from asyncstageout.core.alerts import Severity, Silence, State, silence_of

router = APIRouter(tags=["alerts"])

Number = Annotated[int, Path(ge=1, le=2**63 - 1)]
Rows = Annotated[int, Query(ge=1, le=PAGE_ROWS)]
Pattern = Annotated[str, Field(min_length=1, max_length=300, pattern=r"^[^\x00-\x1f\[\]?]*$")]


class AlertBody(BaseModel):
    """An alert, and who was told."""

    alert_id: int
    rule: str
    subject: str
    state: State
    severity: Literal["note", "warning", "urgent"]
    sentence: str
    remedy: str
    runbook: str = Field(description="Name of the file in runbooks/.")
    since: datetime = Field(description="As far as is known; else when it was found first.")
    opened_at: datetime | None
    over_at: datetime | None
    told_at: datetime | None = Field(description="When anybody was told last.")
    channels: list[str] = Field(description="Those that were told.")
    silence_id: int | None = Field(description="The silence in force for it, if there is one.")


class AlertEventBody(BaseModel):
    """One thing that became of an alert."""

    model_config = ConfigDict(from_attributes=True)

    at: datetime
    kind: str
    channel: str | None
    sentence: str


class AlertDetail(AlertBody):
    """An alert with its history."""

    events: list[AlertEventBody]


class SilenceBody(BaseModel):
    """Of which alerts nobody is told, until when, and why."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "rule": "link-*",
                    "subject": "T2_IT_Bari",
                    "reason": "downtime",
                    "ends_at": "2099-01-01T08:00:00Z",
                }
            ]
        },
    )

    rule: Pattern = Field("*", description="Name of a rule, or a pattern with *.")
    subject: Pattern = Field("*", description="Or a pattern; a site is meant at both ends of a link.")
    reason: Annotated[str, Field(min_length=1, max_length=1000, pattern=r"^[^\x00]*$")]
    ends_at: Moment


class SilenceView(BaseModel):
    """A silence, and who set it."""

    model_config = ConfigDict(from_attributes=True)

    silence_id: int
    rule: str
    subject: str
    reason: str
    author: str
    starts_at: datetime
    ends_at: datetime
    ended_at: datetime | None = Field(description="When somebody ended it early.")


class ChannelBody(BaseModel):
    """A channel as stageout_alerts last read it, and how it takes what it is told."""

    model_config = ConfigDict(from_attributes=True)

    name: str
    settings: dict[str, Any]
    told_at: datetime | None
    waiting: int
    problem: str | None


class TestBody(BaseModel):
    """Which channels to test; without a name all of them."""

    __test__ = False
    model_config = ConfigDict(extra="forbid")

    channel: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_\-]{0,62}$")] | None = None


class TestAnswer(BaseModel):
    """How many channels will be told, by the next run of stageout_alerts."""

    __test__ = False

    messages: int


@router.get("/alerts")
def list_alerts(
    _: Operator, catalogue: Catalogue, *, state: State = State.OPEN, limit: Rows = 100
) -> list[AlertBody]:
    """List alerts: open, the gravest first; pending, which may heal yet; or over, the last first."""
    if state is State.OVER:
        views = over_views(catalogue, limit)
    else:
        views = [one for one in open_views(catalogue, pending=True) if one.state == state][:limit]
    silences = silences_in_force(catalogue)
    return [_alert(view, silences) for view in views]


@router.get("/alerts/channels")
def list_channels(_: Operator, catalogue: Catalogue) -> list[ChannelBody]:
    """List who is told of which alerts."""
    return [ChannelBody.model_validate(one) for one in seen_channels(catalogue)]


@router.post("/alerts/test")
def test_channels(body: TestBody, operator: Operator, catalogue: Catalogue) -> TestAnswer:
    """Send a message through channels, as an alert would go."""
    sentence = f"This is a test; nothing is wrong (sent by {operator.name})"
    made = make_test(catalogue, sentence, body.channel)
    if not made:
        raise Problem(404, f"There is no channel {body.channel}." if body.channel else "There is no channel.")
    return TestAnswer(messages=len(made))


@router.get("/alerts/silences")
def list_silences(
    _: Operator, catalogue: Catalogue, *, over: bool = False, limit: Rows = 100
) -> list[SilenceView]:
    """List silences in force; with ``over`` also the past ones."""
    rows = alert_settings.all_silences(catalogue, limit) if over else silences_in_force(catalogue)[:limit]
    return [SilenceView.model_validate(row) for row in rows]


@router.post("/alerts/silences", status_code=201)
def add_silence(body: SilenceBody, operator: Operator, catalogue: Catalogue) -> SilenceView:
    """Tell nobody of some alerts until then; they are shown all the same."""
    try:
        made = alert_settings.add_silence(
            catalogue, body.rule, body.subject, reason=body.reason, ends_at=body.ends_at, by=operator.name
        )
    except SilenceInvalid as error:
        flaw = Flaw(detail=str(error), pointer=f"#/{error.field}")
        raise Problem(422, str(error), errors=[flaw]) from error
    return SilenceView.model_validate(made)


@router.post("/alerts/silences/{silence_id}/end")
def end_silence(silence_id: Number, operator: Operator, catalogue: Catalogue) -> SilenceView:
    """End a silence now; what is still open is told by the next run of stageout_alerts."""
    ended = alert_settings.end_silence(catalogue, silence_id, operator.name)
    if ended is None:
        raise Problem(404, f"There is no silence {silence_id} in force.")
    return SilenceView.model_validate(ended)


@router.get("/alerts/{alert_id}")
def get_alert(alert_id: Number, _: Operator, catalogue: Catalogue) -> AlertDetail:
    """Show one alert, and what became of it."""
    view = alert_view(catalogue, alert_id)
    if view is None:
        raise Problem(404, f"There is no alert {alert_id}.", kind="no-such-alert")
    events = [AlertEventBody.model_validate(one) for one in alert_events(catalogue, alert_id)]
    return AlertDetail(**_alert(view, silences_in_force(catalogue)).model_dump(), events=events)


def _alert(view: AlertView, silences: list[Silence]) -> AlertBody:
    silence = None if view.state == State.OVER else silence_of(view.key, silences)
    return AlertBody(
        alert_id=view.alert_id, rule=view.rule, subject=view.subject, state=State(view.state),
        severity=Severity(view.severity).name.lower(),
        sentence=view.sentence, remedy=view.remedy, runbook=runbook(view.rule),
        since=view.since or view.first_seen_at, opened_at=view.opened_at, over_at=view.over_at,
        told_at=view.told_at, channels=view.channels, silence_id=silence and silence.silence_id,
    )  # fmt: skip
