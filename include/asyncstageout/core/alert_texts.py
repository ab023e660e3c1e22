"""What channels are told, in words: for a mail, for a chat, for a program."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from html import escape
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from asyncstageout.core.alert_rules import runbook
from asyncstageout.core.alerts import Kind, Notice

TITLE_CHARS = 120


class Links(NamedTuple):
    """Where people read on."""

    base: str
    """Airflow's own address, without a slash at its end; empty: nobody knows it, and there are no links."""

    def page(self, notice: Notice) -> str:
        return self._to(f"alerts/{notice.alert_id}" if notice.alert_id else "alerts")

    def runbook(self, notice: Notice) -> str:
        """Return the address of the rule's runbook, or its name where no address is known."""
        name = runbook(notice.rule)
        return (self._to(f"runbooks/{name}") or f"runbooks/{name}") if name else ""

    def _to(self, place: str) -> str:
        return f"{self.base}/stageout/ui/{place}" if self.base else ""


def title(notices: Sequence[Notice]) -> str:
    """Say in one line what some notices are about; the gravest comes first."""
    first = max(notices, key=lambda one: (one.kind is not Kind.OVER, one.severity))
    rest = f" (and {len(notices) - 1:,} more)" if len(notices) > 1 else ""
    return f"[stageout] {first.word}: {' '.join(first.sentence.split())[:TITLE_CHARS]}{rest}"


def html(notices: Sequence[Notice], links: Links) -> str:
    """Return the body of a mail."""
    return "<html><body>" + "".join(_paragraph(one, links) for one in notices) + "</body></html>"


def _paragraph(one: Notice, links: Links) -> str:
    rest = [_when(one), escape(one.remedy)]
    for words, url in (("runbook", links.runbook(one)), ("page", links.page(one))):
        if url:
            is_address = url.startswith("http")
            rest.append(f'<a href="{escape(url)}">{words}</a>' if is_address else escape(url))
    said = f"<b>{escape(one.word.upper())}</b> {escape(one.sentence)}"
    below = f"<small>{escape(one.rule)} {escape(one.subject)}</small>"
    return f"<p>{said}<br>{' · '.join(filter(None, rest))}<br>{below}</p>"


def chat(notices: Sequence[Notice], links: Links) -> str:
    """Return the text of a message in Slack's notation, which Mattermost and Rocket.Chat read too.

    https://docs.slack.dev/messaging/formatting-message-text: only ``&``, ``<`` and ``>`` are escaped.
    """
    return "\n".join(_line(one, links) for one in notices)


def _line(one: Notice, links: Links) -> str:
    parts = [f"*{one.word.upper()}* {_for_chat(one.sentence)}", _when(one)]
    for words, url in (("runbook", links.runbook(one)), ("page", links.page(one))):
        if url:
            parts.append(f"<{url}|{words}>" if url.startswith("http") else url)
    return " · ".join(parts)


def _for_chat(text: str) -> str:
    return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _when(one: Notice) -> str:
    if one.over_at and one.kind is Kind.OVER:
        return f"from {one.since:%Y-%m-%d %H:%M} to {one.over_at:%Y-%m-%d %H:%M} UTC"
    return f"since {one.since:%Y-%m-%d %H:%M} UTC"


class AlertMessage(BaseModel):
    """One alert, for a program."""

    model_config = ConfigDict(frozen=True)

    id: str = Field(description="The same whenever this message comes again: drop what you have seen.")
    kind: Kind = Field(description="open; worse; again: it is open still; over; test.")
    alert: int | None = Field(description="Number of the alert; null in a test.")
    rule: str
    subject: str
    severity: str = Field(description="note, warning or urgent.")
    sentence: str
    remedy: str
    since: datetime
    over_at: datetime | None
    runbook: str
    page: str


class AlertBatch(BaseModel):
    """Body of a POST to a webhook."""

    model_config = ConfigDict(frozen=True)

    installation: str = Field(description="Who sends this: id of the installation of AsyncStageOut.")
    channel: str
    alerts: list[AlertMessage]


def batch(notices: Sequence[Notice], links: Links, *, installation: str, channel: str) -> AlertBatch:
    """Return what a webhook is told."""
    return AlertBatch(
        installation=installation,
        channel=channel,
        alerts=[
            AlertMessage(
                id=f"alert-message-{one.message_id}", kind=one.kind, alert=one.alert_id, rule=one.rule,
                subject=one.subject, severity=one.severity.name.lower(), sentence=one.sentence,
                remedy=one.remedy, since=one.since, over_at=one.over_at, runbook=links.runbook(one),
                page=links.page(one),
            )
            for one in notices
        ],
    )  # fmt: skip
