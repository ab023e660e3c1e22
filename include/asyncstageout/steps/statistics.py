"""Counts the hours of a time from their events, and says what happened in it."""

from __future__ import annotations

from datetime import UTC, datetime

from psycopg import Connection

from asyncstageout.catalogue.retention import EVENTS, gone_until
from asyncstageout.catalogue.rollups import HOUR, hours_to_count, make_days, roll_up_hour
from asyncstageout.catalogue.statistics import Period, totals
from asyncstageout.steps.recording import Summary, files, size


class EventsGone(Exception):
    """What should be counted again is known by its counts alone: the events were dropped."""

    def __init__(self, until: datetime) -> None:
        self.until = until
        super().__init__(
            f"the events before {until:%Y-%m-%d %H:%M} UTC are gone (`aso retention show`);"
            " the statistics of those hours stay as they are"
        )


def roll_up(
    conn: Connection,
    start: datetime,
    end: datetime,
    *,
    now: datetime,
    step_run: int,
    catches_up: bool = False,
) -> Summary:
    """Count every hour of [start, end) that is over, each in a transaction of its own, and add days up.

    Args:
        start, end: aware; the hours that they lie in are meant.
        catches_up: also hours before them that nobody counted, or to which events came late.

    Raises:
        EventsGone: the events of all of them were dropped.
    """
    gone = max((until for table in EVENTS if (until := gone_until(conn, table))), default=None)
    wanted = _hours(start, min(end, _hour(now)))
    hours = [hour for hour in wanted if gone is None or hour >= gone]
    if wanted and not hours and gone is not None:
        raise EventsGone(gone)
    earlier = hours_to_count(conn, _hour(start)) if catches_up else []
    earlier = [hour for hour in earlier if gone is None or hour >= gone]
    events = sum(roll_up_hour(conn, hour, step_run=step_run) for hour in (*earlier, *hours))
    days = make_days(conn)
    sentence = f"Counted {_number(len(hours), 'hour')}"
    if earlier:
        sentence += f", and {len(earlier)} before that were not complete"
    sentence += f": {_number(events, 'event')}"
    if len(hours) < len(wanted):
        sentence += f"; the events of {len(wanted) - len(hours)} more are gone"
    if days:
        sentence += f"; added up {_number(len(days), 'day')}"
    counts = {"hours": len(hours), "earlier_hours": len(earlier), "events": events, "days": len(days)}
    return Summary(sentence, counts)


def say_what_happened(conn: Connection, start: datetime, end: datetime) -> Summary:
    """Return the main numbers of a time."""
    found = totals(conn, Period.covering(start, end))
    sentence = f"{files(found['arrived'])} arrived, {found['done']:,} done ({size(found['done_bytes'])})"
    if found["failed"]:
        sentence += f", {found['failed']:,} failed for good"
    if found["efficiency"] is not None:
        sentence += f"; {found['efficiency']:.1%} of the attempts went well"
    if found["done_after"]:
        sentence += f"; half of the files were done within {found['done_after']['p50_s']:,.0f} s"
    names = ("arrived", "done", "done_bytes", "failed", "killed", "attempts_done", "attempts_failed")
    return Summary(sentence, {name: found[name] for name in names})


def _hour(at: datetime) -> datetime:
    return at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def _hours(start: datetime, end: datetime) -> list[datetime]:
    first = _hour(start)
    return [first + number * HOUR for number in range(max(0, -((first - end) // HOUR)))]


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
