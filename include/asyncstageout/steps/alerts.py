"""Looks what needs a person, decides who is told of it now, and tells them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Protocol

from psycopg import Connection

from asyncstageout.catalogue import alert_messages, alerts
from asyncstageout.catalogue.alert_settings import note_channels, rules_in_force, silences_in_force
from asyncstageout.catalogue.alerts import Wish
from asyncstageout.catalogue.attention import attention
from asyncstageout.clients.receivers import Failing, Faulty, NotLetIn, ReceiverError
from asyncstageout.core.alert_channels import AnyChannel
from asyncstageout.core.alert_rules import Rule
from asyncstageout.core.alerts import (
    Alert,
    Ending,
    Notice,
    Opening,
    Seeing,
    State,
    grouped,
    moves,
    silence_of,
    telling,
    wants,
)
from asyncstageout.steps.crashpoints import reached
from asyncstageout.steps.recording import Summary

logger = logging.getLogger(__name__)

LEASE_S = 400.0
"""Longer than a mail server may take: Airflow's SMTP hook tries six times, 30 s each."""

TRIES = 3
"""One that is silent for a moment needs nobody; the third try comes about six minutes after the first."""


class ChannelsNeedAPerson(Exception):
    """A channel is not as it should be, or takes nothing; all others were told."""

    def __init__(self, sentence: str) -> None:
        super().__init__(f"{sentence} (runbooks/undelivered-alerts.md)")


class Teller(Protocol):
    """A channel, opened."""

    def tell(self, notices: Sequence[Notice]) -> None:
        """Tell it; to be told twice must not harm.

        Raises:
            ReceiverError: it took nothing, as far as is known.
        """
        ...


def look(conn: Connection, channels: Sequence[AnyChannel], *, now: datetime, step_run: int) -> Summary:
    """Bring the alerts up to date, and write what each channel is to be told. Two at once decide once."""
    with conn.transaction():
        if not alerts.looks_alone(conn):
            return Summary("Somebody else looks at this moment")
        note_channels(conn, channels)
        rules = rules_in_force(conn)
        known = alerts.known_alerts(conn)
        groups = grouped(attention(conn, now, rules), rules, known)
        opened: list[Opening] = []
        seen: list[Seeing] = []
        ended: list[Ending] = []
        for move in moves(groups, known, rules, now):
            match move:
                case Opening():
                    opened.append(move)
                case Seeing():
                    seen.append(move)
                case Ending():
                    ended.append(move)
        hear_the_end = [channel.name for channel in channels if channel.over]
        over = alerts.end_alerts(conn, ended, hear_the_end, now=now, step_run=step_run)
        made = alerts.open_alerts(conn, opened, now=now, step_run=step_run)
        alerts.see_alerts(conn, seen, now=now, step_run=step_run)
        there = [one for one in made if one.state is State.OPEN]
        there += [_as_seen(one) for one in seen if one.state is State.OPEN]
        wishes = _wishes(conn, there, channels, rules, now)
        messages = alerts.make_messages(conn, wishes, now=now)
        reached("alerts.before_commit")
    pending = len(made) + len(seen) - len(there)
    return Summary(
        f"{len(there):,} alerts are open, {pending:,} may heal yet, {over:,} are over",
        {"open": len(there), "pending": pending, "over": over, "messages": messages},
    )


def tell(
    conn: Connection,
    channels: Sequence[AnyChannel],
    open_teller: Callable[[AnyChannel], Teller],
    *,
    problems: Sequence[str] = (),
    step_run: int,
) -> Summary:
    """Send what waits, each channel for itself.

    Args:
        open_teller: makes the channel; raises ReceiverError if its connection is wrong.
        problems: what is wrong with channels that are not among these.

    Raises:
        ChannelsNeedAPerson: see there; what the others were to be told they were told.
    """
    by_name = {channel.name: channel for channel in channels}
    alert_messages.drop_stale(conn, list(by_name), step_run=step_run)
    told, refusals = 0, list(problems)
    for name in sorted(alert_messages.due_channels(conn, list(by_name))):
        notices = alert_messages.claim(conn, name, lease_s=LEASE_S, step_run=step_run)
        if not notices:
            continue
        ids = [one.message_id for one in notices]
        try:
            open_teller(by_name[name]).tell(notices)
        except ReceiverError as error:
            tries = alert_messages.refused(
                conn, ids, problem=error.said, maybe_told=may_have_arrived(error), step_run=step_run
            )
            logger.warning("channel %s: %s", name, error.said)
            if tries >= TRIES or isinstance(error, NotLetIn):
                refusals.append(f"channel {name}: {error.said}")
            continue
        reached("alerts.after_send")
        told += alert_messages.told(conn, ids, step_run=step_run)
    if refusals:
        raise ChannelsNeedAPerson("; ".join(refusals))
    return Summary(f"Told {told:,} messages" if told else "Nobody has to be told", {"told": told})


def may_have_arrived(error: ReceiverError) -> bool:
    """Say whether a channel may have taken what it gave no clear answer to."""
    match error:
        case Failing():
            return error.status is None and error.maybe_delivered
        case Faulty():
            return error.status is None
    return False


def _as_seen(one: Seeing) -> Alert:
    alert = one.alert
    return Alert(
        alert.alert_id, alert.key, one.state, one.finding.severity, alert.first_seen_at, alert.last_seen_at
    )


def _wishes(
    conn: Connection,
    there: Sequence[Alert],
    channels: Sequence[AnyChannel],
    rules: Mapping[str, Rule],
    now: datetime,
) -> list[Wish]:
    silences = silences_in_force(conn)
    heard = [one for one in there if not silence_of(one.key, silences)]
    longest_s = max((rules[one.key.rule].quiet_s for one in heard), default=0.0)
    last = alerts.last_told(conn, now - timedelta(seconds=longest_s)) if heard else {}
    return [
        Wish(one.alert_id, channel.name, kind)
        for one in heard
        for channel in channels
        if wants(channel, one.key, one.severity)
        and (
            kind := telling(
                one.alert_id,
                one.severity,
                last.get((one.key, channel.name)),
                quiet_s=rules[one.key.rule].quiet_s,
                now=now,
            )
        )
    ]
