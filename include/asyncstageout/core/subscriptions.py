"""Who wants to hear of which events of which files: what a subscription may say, checked field by field.

==========  =====================================  ========================================================
kind        is told of                             what a message becomes
==========  =====================================  ========================================================
webhook     whatever it wants                      part of a signed POST (docs/reference/webhooks.md)
rucio       files that arrived, or are published   a replica at the destination, attached to a dataset
crab        what CRAB's own workers report         ``updateTransfers`` and ``updatePublication`` of its REST
==========  =====================================  ========================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from asyncstageout.core.requests import SiteName, Username
from asyncstageout.core.rucio_names import Template, check_dataset, check_rse
from asyncstageout.core.states import PublicationState, TransferState

S = TransferState
P = PublicationState


class Kind(StrEnum):
    WEBHOOK = "webhook"
    RUCIO = "rucio"
    CRAB = "crab"


class State(StrEnum):
    """Whether a subscriber is told."""

    ACTIVE = "active"
    PAUSED = "paused"
    """What happens is kept for it, and told when it is active again."""
    OFF = "off"
    """What happens is not kept: nobody listens any more."""


def _transfer(states: Iterable[TransferState]) -> tuple[str, ...]:
    return tuple(f"transfer:{state}" for state in states)


def _publication(states: Iterable[PublicationState]) -> tuple[str, ...]:
    return tuple(f"publication:{state}" for state in states)


EVENTS: Mapping[Kind, tuple[str, ...]] = {
    Kind.WEBHOOK: _transfer(S) + _publication(P),
    Kind.RUCIO: ("transfer:DONE", "publication:DONE"),
    # Words that RESTFileTransfers lets a worker say; of a NEW or an ACQUIRED file it knows itself.
    Kind.CRAB: _transfer([S.SUBMITTED, S.RETRY, S.DONE, S.FAILED, S.KILLED])
    + _publication([P.ACQUIRED, P.RETRY, P.DONE, P.FAILED]),
}
"""What each kind can make something of."""


def _of(kind: Kind) -> AfterValidator:
    def check(events: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [event for event in events if event not in EVENTS[kind]]:
            raise ValueError(f"no event for {kind}: {unknown[0]!r}; there are {', '.join(EVENTS[kind])}")
        return tuple(dict.fromkeys(events))

    return AfterValidator(check)


Events = Annotated[tuple[str, ...], Field(min_length=1, max_length=50)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.\-]{0,59}$")]
ConnId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.\-]{1,250}$")]
Origin = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.\-]{1,60}$")]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class WebhookSettings(_Settings):
    """How a webhook is told."""

    batch: int = Field(200, ge=1, le=1000, description="Messages in one POST, at most.")


class RucioSettings(_Settings):
    """Under which names files are registered in Rucio."""

    rse: Annotated[str, AfterValidator(check_rse)] = Field(
        "{site}", description="RSE of a destination; {site} is its name here."
    )
    dataset: Annotated[str, AfterValidator(check_dataset)] = Field(
        "/AsyncStageOut/{username}-{task}/USER#{uuid}",
        description="Dataset of files that are in no block. {task}: its name, other characters as -;"
        " {uuid}: made of it.",
    )
    user_scope: Template = Field("user.{username}", description="Scope of users' files.")
    group_scope: Template = Field("group.{group}", description="Scope of files in /store/group/rucio/.")
    logs: bool = Field(False, description="Register files of the type log too.")
    batch: int = Field(200, ge=1, le=1000, description="Files in one call, at most.")


class CRABSettings(_Settings):
    """As whom we report to CRAB's REST."""

    instance: Annotated[str, Field(pattern=r"^[A-Za-z0-9_\-]{1,50}$")] = Field(
        "prod", description="Of CRAB's REST: prod, preprod, dev."
    )
    worker: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.\-]{1,100}$")] = Field(
        "asyncstageout", description="Name under which the files were acquired there (tm_aso_worker)."
    )
    batch: int = Field(500, ge=1, le=1000, description="Files in one call, at most; 1,000 is CRAB's limit.")


class _Subscription(BaseModel):
    """What all kinds have. Of files for which everything holds that is given; nothing is given: of all."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    conn_id: ConnId = Field(description="Airflow connection that leads there.")
    username: Username | None = Field(None, description="Only files of this user.")
    source: SiteName | None = Field(None, description="Only files from this site.")
    destination: SiteName | None = Field(None, description="Only files to this site.")
    origin: Origin | None = Field(None, description="Only files that this source of stageout_intake brought.")


class WebhookSubscription(_Subscription):
    """Somebody's own receiver of signed messages."""

    kind: Literal["webhook"]
    events: Annotated[Events, _of(Kind.WEBHOOK)] = (
        "transfer:DONE", "transfer:FAILED", "transfer:KILLED", "publication:DONE", "publication:FAILED",
    )  # fmt: skip
    settings: WebhookSettings = WebhookSettings()


class RucioSubscription(_Subscription):
    """A Rucio server in which arrived files become replicas."""

    kind: Literal["rucio"]
    events: Annotated[Events, _of(Kind.RUCIO)] = EVENTS[Kind.RUCIO]
    settings: RucioSettings = RucioSettings()


class CRABSubscription(_Subscription):
    """CRAB's REST, for files that were collected there."""

    kind: Literal["crab"]
    events: Annotated[Events, _of(Kind.CRAB)] = (
        "transfer:SUBMITTED", "transfer:DONE", "transfer:FAILED", "transfer:KILLED", "publication:DONE",
        "publication:FAILED",
    )  # fmt: skip
    settings: CRABSettings = CRABSettings()


AnySubscription = WebhookSubscription | RucioSubscription | CRABSubscription
Subscription = Annotated[AnySubscription, Field(discriminator="kind")]
"""As pydantic reads one."""
_ADAPTER: TypeAdapter[AnySubscription] = TypeAdapter(Subscription)


class SubscriptionInvalid(ValueError):
    """A subscription cannot be so; ``field`` says what of it."""

    def __init__(self, field: str, why: str) -> None:
        self.field = field
        super().__init__(f"{field}: {why}")


def read_subscription(fields: Mapping[str, Any]) -> AnySubscription:
    """Check what somebody wants; what is None was not said.

    Raises:
        SubscriptionInvalid: with the first field that is wrong.
    """
    said = {name: value for name, value in fields.items() if value is not None}
    try:
        return _ADAPTER.validate_python(said)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        # The first part of a place is the kind, once that is known.
        place = [str(part) for part in first["loc"] if isinstance(part, str)][1:]
        raise SubscriptionInvalid(
            ".".join(place) or "kind", first["msg"].removeprefix("Value error, ")
        ) from error
