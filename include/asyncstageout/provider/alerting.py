"""The body of the task that looks and tells; and what is told when the catalogue itself is silent."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import psycopg
from airflow.sdk import Variable
from psycopg import Connection

from asyncstageout.catalogue.fts_servers import installation_id
from asyncstageout.clients.receivers import ReceiverError
from asyncstageout.core.alert_channels import AnyChannel
from asyncstageout.core.alert_rules import RULES
from asyncstageout.core.alerts import About, Key, Kind, Notice, Severity, wants
from asyncstageout.provider.alert_channels import channels, opened
from asyncstageout.provider.running import run_step
from asyncstageout.steps import alerts as step
from asyncstageout.steps.recording import Summary

logger = logging.getLogger(__name__)

SILENT = Key("catalogue-silent", "catalogue")
SILENT_VARIABLE = "stageout_catalogue_silent"
"""Airflow Variable: since when the catalogue is silent, and when that was told."""
TIMED_OUT = psycopg.errors.QueryCanceled.sqlstate


def watch(context: Mapping[str, Any]) -> dict[str, Any]:
    """Look what needs a person, and tell who is to be told.

    :raises ChannelsNeedAPerson: a channel is not as it should be; the others were told.
    """
    known, problems = channels()

    def body(conn: Connection, step_run: int) -> Summary:
        answers(known, datetime.now(UTC))
        looked = step.look(conn, known, now=datetime.now(UTC), step_run=step_run)
        told = step.tell(
            conn,
            known,
            partial(opened, installation=str(installation_id(conn))),
            problems=problems,
            step_run=step_run,
        )
        nobody = "" if known else "; nobody is ever told: there is no channel (docs/how-to/alerts.md)"
        return Summary(f"{looked.sentence}. {told.sentence}{nobody}", looked.counts | told.counts)

    try:
        return run_step(context, body).as_xcom()
    except psycopg.OperationalError as error:
        if error.sqlstate != TIMED_OUT:
            silent(known, str(error).partition("\n")[0], datetime.now(UTC))
        raise


def silent(known: Sequence[AnyChannel], problem: str, now: datetime) -> None:
    """Tell of a catalogue that is silent for long, without it: an Airflow Variable remembers."""
    rule = RULES[SILENT.rule]
    remembered: dict[str, str] = Variable.get(SILENT_VARIABLE, default={}, deserialize_json=True)
    since = datetime.fromisoformat(remembered["since"]) if remembered else now
    told_at = datetime.fromisoformat(remembered["told_at"]) if remembered.get("told_at") else None
    has_held = now - since >= timedelta(seconds=rule.for_s)
    if has_held and (told_at is None or now - told_at >= timedelta(seconds=rule.quiet_s)):
        kind = Kind.AGAIN if told_at else Kind.OPEN
        _tell(known, _notice(kind, f"The catalogue does not answer: {problem}", since))
        told_at = now
    said = {"since": since.isoformat()} | ({"told_at": told_at.isoformat()} if told_at else {})
    if said != remembered:
        Variable.set(SILENT_VARIABLE, said, serialize_json=True)


def answers(known: Sequence[AnyChannel], now: datetime) -> None:
    """Say that the catalogue answers again, if anybody was told that it does not."""
    remembered: dict[str, str] | None = Variable.get(SILENT_VARIABLE, default=None, deserialize_json=True)
    if remembered is None:
        return
    if "told_at" in remembered:
        since = datetime.fromisoformat(remembered["since"])
        _tell(known, _notice(Kind.OVER, "The catalogue answers again", since, over_at=now))
    Variable.delete(SILENT_VARIABLE)


def _tell(known: Sequence[AnyChannel], notice: Notice) -> None:
    for channel in known:
        if wants(channel, SILENT, notice.severity) and (channel.over or notice.kind is not Kind.OVER):
            try:
                opened(channel, installation="unknown").tell([notice])
            except ReceiverError as error:
                logger.error("channel %s: %s", channel.name, error.said)


def _notice(kind: Kind, sentence: str, since: datetime, over_at: datetime | None = None) -> Notice:
    return Notice(
        int(since.timestamp()),
        None,
        kind,
        Severity.URGENT,
        sentence,
        *SILENT,
        "",
        About("nothing"),
        since,
        over_at,
    )
