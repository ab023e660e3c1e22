"""For operators: policies, restrictions, FTS servers, and who changed what."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from asyncstageout.api.callers import Catalogue, Operator
from asyncstageout.api.limits import PAGE_ROWS, Moment
from asyncstageout.api.problems import Flaw, Problem
from asyncstageout.catalogue.config_changes import config_changes
from asyncstageout.catalogue.fts_servers import server_views
from asyncstageout.catalogue.policies import drop_settings, policy_rows, put_policy
from asyncstageout.catalogue.restrictions import (
    Area,
    NeverInForce,
    NoReason,
    all_restrictions,
    lift,
    open_restrictions,
    restrict,
)
from asyncstageout.core.policies import PolicyRow
from asyncstageout.core.restrictions import Mode
from asyncstageout.core.scopes import Scope
from asyncstageout.core.servers import State

router = APIRouter(tags=["configuration"])

Name = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[A-Za-z0-9_.:/@\- ]+$")]
Number = Annotated[int, Path(ge=1, le=2**63 - 1)]
Rows = Annotated[int, Query(ge=1, le=PAGE_ROWS)]


class ScopeBody(BaseModel):
    """What a row is for; what is left out names everything."""

    model_config = ConfigDict(extra="forbid")

    source: Name | None = None
    destination: Name | None = None
    username: Name | None = None
    activity: Name | None = None


class PolicyBody(ScopeBody):
    """Settings for what it names; docs/reference/policies.md lists them."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "source": "T2_IT_Bari",
                    "destination": "T2_CH_CERN",
                    "settings": {"max_files_in_flight": 500},
                }
            ]
        },
    )

    settings: Annotated[dict[str, Any], Field(min_length=1)]


class PolicyView(BaseModel):
    """A policy, and who set it."""

    source: str | None
    destination: str | None
    username: str | None
    activity: str | None
    settings: dict[str, Any]
    updated_by: str
    updated_at: datetime | None


class Dropped(BaseModel):
    """Names of settings that were set and are no more."""

    dropped: list[str]


class RestrictionBody(ScopeBody):
    """What must not start (pause), not be taken in (drain), or neither (ban)."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "mode": "pause",
                    "site": "T2_IT_Bari",
                    "reason": "disk full",
                    "ends_at": "2027-01-01T08:00:00Z",
                }
            ]
        },
    )

    mode: Mode
    site: Name | None = Field(None, description="At either end; then no source and destination.")
    reason: str = Field(min_length=1, max_length=1000, description="What users read while they wait.")
    starts_at: Moment | None = Field(None, description="Empty: now.")
    ends_at: Moment | None = Field(None, description="Empty: until it is lifted.")
    is_downtime: bool = Field(False, description="Announced by the site.")
    everything: bool = Field(False, description="Must be true where nothing is named.")


class RestrictionView(BaseModel):
    """A restriction, and who set it."""

    model_config = ConfigDict(from_attributes=True)

    restriction_id: int
    mode: Mode
    site: str | None
    source: str | None
    destination: str | None
    username: str | None
    activity: str | None
    reason: str
    author: str
    starts_at: datetime
    ends_at: datetime | None
    lifted_at: datetime | None
    is_downtime: bool


class ChangeView(BaseModel):
    """One change of one row of configuration."""

    model_config = ConfigDict(from_attributes=True)

    at: datetime
    actor: str
    object: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None


class ServerView(BaseModel):
    """An FTS server: what is wanted of it, how it is, what is under way there."""

    name: str
    endpoint: str | None
    vo: str
    regions: list[str]
    weight: int
    state: State
    reason: str | None
    failing_since: datetime | None
    problem: str | None
    checked_at: datetime | None
    version: str | None
    open_jobs: int
    open_files: int
    in_doubt: int
    updated_at: datetime
    updated_by: str


@router.get("/policies")
def list_policies(_: Operator, catalogue: Catalogue) -> list[PolicyView]:
    """List what is set for whom."""
    return [_policy_view(row) for row in policy_rows(catalogue)]


@router.put("/policies")
def put_policies(body: PolicyBody, operator: Operator, catalogue: Catalogue) -> PolicyView:
    """Make these the settings for what is named, in place of those before; from the next cycle on."""
    scope = _scope(body)
    with catalogue.transaction():
        put_policy(
            catalogue, scope.source, scope.destination, body.settings, operator.name,
            username=scope.username, activity=scope.activity,
        )  # fmt: skip
        return _policy_view(next(row for row in policy_rows(catalogue) if row.scope == scope))


@router.delete("/policies")
def delete_policies(
    scope: Annotated[ScopeBody, Query()], operator: Operator, catalogue: Catalogue
) -> Dropped:
    """Take all settings away from exactly what is named; without any name, those for everything."""
    dropped = drop_settings(catalogue, _scope(scope), [], operator.name)
    if not dropped:
        raise Problem(404, f"Nothing is set for {_scope(scope)}.")
    return Dropped(dropped=dropped)


@router.get("/restrictions")
def list_restrictions(
    _: Operator, catalogue: Catalogue, *, over: bool = False, limit: Rows = 100
) -> list[RestrictionView]:
    """List pauses, drains, bans and downtimes, in force and announced; with ``over`` also the past ones."""
    rows = all_restrictions(catalogue, limit) if over else open_restrictions(catalogue)[:limit]
    return [RestrictionView.model_validate(row) for row in rows]


@router.post("/restrictions", status_code=201)
def add_restriction(body: RestrictionBody, operator: Operator, catalogue: Catalogue) -> RestrictionView:
    """Set a restriction; it counts from the next cycle on, for new requests at once."""
    try:
        made = restrict(
            catalogue, body.mode, _area(body), reason=body.reason, by=operator.name,
            starts_at=body.starts_at, ends_at=body.ends_at, is_downtime=body.is_downtime,
        )  # fmt: skip
    except NeverInForce as error:
        raise Problem(422, str(error), errors=[Flaw(detail=str(error), pointer="#/ends_at")]) from error
    except NoReason as error:
        raise Problem(422, str(error), errors=[Flaw(detail=str(error), pointer="#/reason")]) from error
    return RestrictionView.model_validate(made)


@router.post("/restrictions/{restriction_id}/lift")
def lift_restriction(restriction_id: Number, operator: Operator, catalogue: Catalogue) -> RestrictionView:
    """End a restriction now; files that waited for it start at once."""
    lifted = lift(catalogue, [restriction_id], operator.name)
    if not lifted:
        raise Problem(404, f"There is no restriction {restriction_id} in force or announced.")
    return RestrictionView.model_validate(lifted[0])


@router.get("/changes")
def list_changes(
    _: Operator,
    catalogue: Catalogue,
    *,
    since: Moment | None = None,
    table: Annotated[str | None, Query(pattern="^[a-z_]{1,63}$")] = None,
    limit: Rows = 50,
) -> list[ChangeView]:
    """List who changed which configuration, from what to what, the newest first."""
    changes = config_changes(catalogue, since=since, table=table, limit=limit)
    return [ChangeView.model_validate(change) for change in changes]


@router.get("/servers")
def list_servers(_: Operator, catalogue: Catalogue) -> list[ServerView]:
    """List the FTS servers with state, health, and what is under way in their jobs."""
    return [
        ServerView(
            name=view.server.name, endpoint=view.server.endpoint, vo=view.server.vo,
            regions=list(view.server.regions), weight=view.server.weight, state=view.server.state,
            reason=view.reason, failing_since=view.server.failing_since, problem=view.server.problem,
            checked_at=view.checked_at, version=view.version, open_jobs=view.open_jobs,
            open_files=view.open_files, in_doubt=view.in_doubt, updated_at=view.updated_at,
            updated_by=view.updated_by,
        )
        for view in server_views(catalogue)
    ]  # fmt: skip


def _policy_view(row: PolicyRow) -> PolicyView:
    return PolicyView(
        **row.scope._asdict(), settings=row.settings, updated_by=row.updated_by, updated_at=row.updated_at
    )


def _scope(body: ScopeBody) -> Scope:
    return Scope(body.source, body.destination, body.username, body.activity)


def _area(body: RestrictionBody) -> Area:
    """Return what is meant.

    Raises:
        Problem: 422, nothing is named, or everything and something, or a site twice.
    """
    named = any((body.site, *_scope(body)))
    if named == body.everything:
        raise Problem(422, "Everything, or what is named?" if named else "Name something, or say everything.")
    if body.site and (body.source or body.destination):
        raise Problem(422, "A site is meant at either end; name it, or a source and a destination.")
    return Area(
        site=body.site, source=body.source, destination=body.destination, username=body.username,
        activity=body.activity,
    )  # fmt: skip
