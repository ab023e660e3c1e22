"""Who is told of which alerts, and where: the Airflow Variable :data:`VARIABLE`, checked."""

from __future__ import annotations

import json
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from asyncstageout.core.alert_rules import matching

VARIABLE = "stageout_alert_channels"

ConnId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.\-]{1,250}$")]
Address = Annotated[str, Field(pattern=r"^[^@\s,;<>]+@[^@\s,;<>]+$", max_length=254)]


class Channel(BaseModel):
    """What all channels have."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_\-]{0,62}$")]
    severity: Literal["note", "warning", "urgent"] = "warning"
    """It is told of alerts that are at least so severe."""
    rules: Annotated[tuple[str, ...], Field(min_length=1)] = ("*",)
    """Names of rules, or patterns with ``*``."""
    over: bool = True
    """It is told when an alert is over."""

    @field_validator("rules")
    @classmethod
    def _known(cls, rules: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in rules:
            if not matching(pattern):
                raise ValueError(f"no rule is called {pattern}; `aso alerts rules` lists them")
        return rules


class Mail(Channel):
    """By mail, through a connection of type ``smtp``."""

    kind: Literal["mail"]
    conn_id: ConnId = "smtp_default"
    to: Annotated[tuple[Address, ...], Field(min_length=1)]


class Slack(Channel):
    """Into a channel of Slack, Mattermost or Rocket.Chat: an incoming webhook."""

    kind: Literal["slack"]
    conn_id: ConnId = "stageout_slack"


class Webhook(Channel):
    """To a URL, as JSON, signed as subscriptions are."""

    kind: Literal["webhook"]
    conn_id: ConnId


class Apprise(Channel):
    """To services of Apprise, through a connection as Airflow's Apprise provider has it."""

    kind: Literal["apprise"]
    conn_id: ConnId = "apprise_default"
    tags: tuple[Annotated[str, Field(pattern=r"^[^\s,]{1,100}$")], ...] = ()
    """Services that have one of them; none: all."""


AnyChannel: TypeAlias = Mail | Slack | Webhook | Apprise
_CHANNEL: TypeAdapter[AnyChannel] = TypeAdapter(Annotated[AnyChannel, Field(discriminator="kind")])


def read_channels(text: str | None) -> tuple[list[AnyChannel], list[str]]:
    """Return the channels that the variable names, and what is wrong with those that do not count."""
    try:
        rows = json.loads(text or "[]")
    except ValueError as error:
        return [], [f"{VARIABLE} is no JSON: {error}"]
    if not isinstance(rows, list):
        return [], [f"{VARIABLE} must be a list of channels, each an object with name and kind"]
    channels: dict[str, AnyChannel] = {}
    problems = []
    for number, row in enumerate(rows, 1):
        try:
            channel = _CHANNEL.validate_python(row)
        except ValidationError as error:
            problems.append(f"{VARIABLE}, {_called(row, number)}: {_said(error)}")
            continue
        if channel.name in channels:
            problems.append(f"{VARIABLE}: two channels are called {channel.name}")
        channels.setdefault(channel.name, channel)
    return list(channels.values()), problems


def _called(row: object, number: int) -> str:
    name = row.get("name") if isinstance(row, dict) else None
    return f"channel {name}" if isinstance(name, str) else f"channel {number}"


def _said(error: ValidationError) -> str:
    flaw = error.errors(include_url=False, include_input=False)[0]
    # The first part says which kind of channel it is.
    place = ".".join(str(part) for part in flaw["loc"] if part not in ("mail", "slack", "webhook", "apprise"))
    return f"{place}: {flaw['msg'].removeprefix('Value error, ')}" if place else flaw["msg"]
