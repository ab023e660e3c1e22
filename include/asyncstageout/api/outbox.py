"""For operators: who is told of what happens, what he still has to hear, and the dead letters."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Path, Query
from psycopg import Connection
from pydantic import BaseModel, ConfigDict, Field

from asyncstageout.api.callers import Catalogue, Operator, actor
from asyncstageout.api.limits import PAGE_ROWS, Moment
from asyncstageout.api.problems import Flaw, Problem
from asyncstageout.catalogue import dead_letters
from asyncstageout.catalogue.dead_letters import Chosen
from asyncstageout.catalogue.subscriptions import (
    KindIsFixed,
    SubscriptionView,
    put_subscription,
    remove_subscription,
    set_state,
    subscriptions,
)
from asyncstageout.core.callers import Caller
from asyncstageout.core.subscriptions import Name, State, Subscription
from asyncstageout.steps.recording import Summary, recorded

router = APIRouter(tags=["outbox"])

Called = Annotated[Name, Path()]
Text = Annotated[str, Field(min_length=1, max_length=300, pattern=r"^[^\x00]*$")]
Username = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.\-]{1,30}$")]
Number = Annotated[int, Field(ge=1, le=2**63 - 1)]


class HealthBody(BaseModel):
    """Why a receiver can be told nothing now."""

    model_config = ConfigDict(from_attributes=True)

    failures: int
    failing_since: datetime
    retry_at: datetime
    problem: str
    needs_person: bool


class SubscriptionBody(BaseModel):
    """A subscription, who set it, and how it is."""

    subscription: Subscription
    state: State
    reason: str | None
    updated_at: datetime
    updated_by: str
    health: HealthBody | None = Field(description="Null: as far as is known it takes what it is sent.")


class StateBody(BaseModel):
    """Whether a subscriber is told: now (active), later (paused), or not even kept for it (off)."""

    model_config = ConfigDict(extra="forbid")

    state: State
    reason: Text | None = None


class Removed(BaseModel):
    """What became of what waited for a subscription that was removed."""

    discarded: int


class BacklogBody(BaseModel):
    """What one subscriber still has to hear."""

    model_config = ConfigDict(from_attributes=True)

    subscription: str
    kind: str
    state: State
    pending: int
    oldest_at: datetime | None = Field(description="When the oldest event happened that it has not heard of.")
    dead: int
    failing_since: datetime | None
    problem: str | None
    retry_at: datetime | None
    needs_person: bool


class LetterBody(BaseModel):
    """A dead letter: a message that its receiver refused for more than a day."""

    model_config = ConfigDict(from_attributes=True)

    number: int
    subscription: str
    message: str
    to_state: str
    transfer_id: int
    username: str | None
    tries: int
    problem: str
    dead_at: datetime
    holds_back: int = Field(description="Later messages of the same file that wait for it.")


class LetterFilter(BaseModel):
    """Dead letters for which everything holds that is given."""

    model_config = ConfigDict(extra="forbid")

    subscription: Name | None = None
    username: Username | None = None
    problem: Text | None = Field(None, description="What the receiver said, or a part of it.")
    dead_before: Moment | None = None


class LetterPage(LetterFilter):
    """A list of dead letters."""

    limit: Annotated[int, Field(ge=1, le=PAGE_ROWS)] = 100


class LetterAct(LetterFilter):
    """What is to be done with which dead letters."""

    numbers: Annotated[list[Number], Field(min_length=1, max_length=10_000)] | None = None
    everything: bool = Field(False, description="Must be true where nothing is named.")
    comment: Text | None = Field(None, description="Why; it stands in the history of each file.")
    dry_run: bool = False


class LetterAnswer(BaseModel):
    """How many dead letters were changed, or would be."""

    letters: int
    dry_run: bool


@router.get("/subscriptions")
def list_subscriptions(_: Operator, catalogue: Catalogue) -> list[SubscriptionBody]:
    """List who is told of what."""
    return [_body(view) for view in subscriptions(catalogue)]


@router.put("/subscriptions")
def put_subscriptions(body: Subscription, operator: Operator, catalogue: Catalogue) -> SubscriptionBody:
    """Make a subscription, or put this in the place of the one of its name; for what happens from now on."""
    try:
        put_subscription(catalogue, body, operator.name)
    except KindIsFixed as error:
        raise Problem(409, str(error), errors=[Flaw(detail=str(error), pointer="#/kind")]) from error
    return _body(subscriptions(catalogue, body.name)[0])


@router.put("/subscriptions/{name}/state")
def put_subscription_state(
    name: Called, body: StateBody, operator: Operator, catalogue: Catalogue
) -> SubscriptionBody:
    """Pause, resume or switch off a subscription; resumed, it is tried at once."""
    if not set_state(catalogue, name, body.state, reason=body.reason, by=operator.name):
        raise _no_subscription(name)
    return _body(subscriptions(catalogue, name)[0])


@router.delete("/subscriptions/{name}")
def delete_subscription(name: Called, operator: Operator, catalogue: Catalogue) -> Removed:
    """Forget a subscription and discard what waits for it, each message on record."""
    discarded: list[int | None] = []

    def step(step_run: int) -> Summary:
        discarded.append(remove_subscription(catalogue, name, by=operator.name, step_run=step_run))
        return Summary(f"{name} removed, {discarded[0] or 0:,} messages discarded")

    if not subscriptions(catalogue, name):
        raise _no_subscription(name)
    recorded(catalogue, actor(operator, "remove subscription"), step)
    return Removed(discarded=discarded[0] or 0)


@router.get("/outbox")
def list_outbox(_: Operator, catalogue: Catalogue) -> list[BacklogBody]:
    """List what each subscriber still has to hear, and how many dead letters there are."""
    return [BacklogBody.model_validate(one) for one in dead_letters.backlogs(catalogue)]


@router.get("/outbox/dead")
def list_dead_letters(
    _: Operator, catalogue: Catalogue, page: Annotated[LetterPage, Query()]
) -> list[LetterBody]:
    """List dead letters, the oldest message first."""
    letters = dead_letters.dead_letters(catalogue, _chosen(page), limit=page.limit)
    return [LetterBody.model_validate(one) for one in letters]


@router.post("/outbox/replay")
def replay_dead_letters(body: LetterAct, operator: Operator, catalogue: Catalogue) -> LetterAnswer:
    """Send dead letters again, with all their tries."""
    return _act(catalogue, operator, "replay", body, dead_letters.replay)


@router.post("/outbox/discard")
def discard_dead_letters(body: LetterAct, operator: Operator, catalogue: Catalogue) -> LetterAnswer:
    """Give dead letters up for ever; later messages of their files go out."""
    return _act(catalogue, operator, "discard", body, dead_letters.discard)


def _act(
    conn: Connection, operator: Caller, name: str, wish: LetterAct, act: Callable[..., int]
) -> LetterAnswer:
    chosen = _chosen(wish)._replace(numbers=wish.numbers)
    if wish.everything == any(one is not None for one in chosen):
        raise Problem(
            422, "Everything, or what is named?" if wish.everything else "Name something, or say everything."
        )
    if wish.dry_run:
        return LetterAnswer(letters=dead_letters.count_dead(conn, chosen), dry_run=True)
    comment = f"by {operator.name}" + (f": {wish.comment}" if wish.comment else "")
    counts: list[int] = []

    def step(step_run: int) -> Summary:
        counts.append(act(conn, chosen, comment=comment, step_run=step_run))
        return Summary(f"{name}: {counts[0]:,} dead letters", {"letters": counts[0]})

    recorded(conn, actor(operator, f"{name} dead letters"), step)
    return LetterAnswer(letters=counts[0], dry_run=False)


def _chosen(wish: LetterFilter) -> Chosen:
    return Chosen(
        subscription=wish.subscription, username=wish.username, problem=wish.problem,
        dead_before=wish.dead_before,
    )  # fmt: skip


def _body(view: SubscriptionView) -> SubscriptionBody:
    return SubscriptionBody(
        subscription=view.wanted, state=view.state, reason=view.reason, updated_at=view.updated_at,
        updated_by=view.updated_by, health=view.health and HealthBody.model_validate(view.health),
    )  # fmt: skip


def _no_subscription(name: str) -> Problem:
    return Problem(404, f"There is no subscription {name}.", kind="no-such-subscription")
