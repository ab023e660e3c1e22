"""Makes partitions for what comes, exports and drops what is over, deletes rows that nobody needs any more.

What has to be exported first is not dropped before it is, and what is in use is left for the next run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import NamedTuple

from psycopg import Connection

from asyncstageout.catalogue import dropping
from asyncstageout.catalogue.dropping import Part
from asyncstageout.catalogue.partitions import ensure_partitions
from asyncstageout.catalogue.pruning import PRUNES, prune
from asyncstageout.catalogue.retention import EVENTS, days_not_exported, retention
from asyncstageout.catalogue.rollups import roll_up_hour, uncounted_hours
from asyncstageout.core.retention import Retention
from asyncstageout.steps.export import Place, export_day, is_gone
from asyncstageout.steps.recording import Summary

logger = logging.getLogger(__name__)

DAY = timedelta(days=1)
DAYS_A_RUN = 10
"""So many days are exported at most; the next run goes on."""
OVERDUE = timedelta(days=3)
"""What should have been dropped so long ago is a case for a person."""


class Condemned(NamedTuple):
    """A partition whose time is over."""

    table: str
    part: Part


class DropsOverdue(Exception):
    """Partitions should have been dropped days ago, and still are there."""

    def __init__(self, condemned: list[Condemned]) -> None:
        self.condemned = condemned
        names = ", ".join(one.part.name for one in condemned[:5])
        super().__init__(
            f"{len(condemned)} partitions should have been dropped days ago: {names} (runbooks/retention.md)"
        )


@dataclass(slots=True)
class _Done:
    dropped: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    """For their export."""
    busy: list[str] = field(default_factory=list)


def export_due(
    conn: Connection, place_of: Callable[[Retention], Place], *, now: datetime, step_run: int
) -> Summary:
    """Export yesterday, and what is about to be dropped, if it is set where to.

    Args:
        place_of: opens the place that the settings name.
    """
    keep = retention(conn)
    if keep.export_to is None:
        return Summary("Nothing is exported: it is not set where to (`aso retention set export_to=...`)")
    due = _days_to_export(conn, keep, now)
    place = place_of(keep)
    said = [export_day(conn, day, place, step_run=step_run) for day in due[:DAYS_A_RUN]]
    if not said:
        return Summary("All days are exported", {"days": 0})
    rest = f"; {len(due) - len(said)} days are left for the next run" if len(due) > len(said) else ""
    return Summary(
        f"{said[-1].sentence if len(said) == 1 else f'Exported {len(said)} days'}{rest}",
        {
            "days": len(said),
            "rows": sum(one.counts["rows"] for one in said),
            "days_left": len(due) - len(said),
        },
    )


def turn_partitions(conn: Connection, *, now: datetime, step_run: int, dry_run: bool = False) -> Summary:
    """Make the partitions of the week that comes, and drop those whose time is over."""
    if dry_run:
        names = [one.part.name for one in condemned(conn, retention(conn), now)]
        return Summary(f"Would drop {', '.join(names) or 'nothing'}", {"dropped": len(names)})
    made = ensure_partitions(conn, now.date())
    for table in EVENTS:
        made += dropping.sort_strays(conn, table)
    done = _drop(conn, now, step_run)
    for name in dropping.going(conn):
        dropping.finish_dropping(conn, name)
    sentence = f"Made {len(made)} partitions, dropped {len(done.dropped)}"
    if done.dropped:
        sentence += f" ({', '.join(done.dropped[:5])}{', ...' if len(done.dropped) > 5 else ''})"
    if done.waiting:
        sentence += f"; {len(done.waiting)} wait for their export"
    if done.busy:
        sentence += f"; {len(done.busy)} were in use and are left for the next run"
    counts = {
        "made": len(made),
        "dropped": len(done.dropped),
        "waiting": len(done.waiting),
        "busy": len(done.busy),
    }
    return Summary(sentence, counts)


def prune_rows(conn: Connection, *, now: datetime, step_run: int) -> Summary:
    """Delete rows of all kinds whose time is over."""
    keep = retention(conn)
    deleted = {one.table: prune(conn, one, keep, now=now, step_run=step_run) for one in PRUNES}
    said = ", ".join(f"{count:,} of {table}" for table, count in deleted.items() if count)
    return Summary(f"Deleted {said or 'nothing'}", deleted)


def overdue(conn: Connection, now: datetime) -> None:
    """Look whether everything was dropped in its time.

    Raises:
        DropsOverdue: not everything.
    """
    if late := list(condemned(conn, retention(conn), now - OVERDUE)):
        raise DropsOverdue(late)


def condemned(conn: Connection, keep: Retention, now: datetime) -> Iterator[Condemned]:
    """Yield the partitions whose time is over, in the order in which they may go."""
    ages = dict.fromkeys(EVENTS, keep.events_days) | {
        "transfer_history": keep.history_days,
        "statistic_hour": keep.hour_statistics_days,
        "statistic_day": keep.day_statistics_days,
    }
    for table, days in ages.items():
        for part in dropping.parts_before(conn, table, now - days * DAY):
            yield Condemned(table, part)


def _drop(conn: Connection, now: datetime, step_run: int) -> _Done:
    keep, done = retention(conn), _Done()
    stopped: set[str] = set()
    for table, part in condemned(conn, keep, now):
        # The oldest goes first, so that what is gone ends at one time.
        if table in stopped:
            continue
        if _missing_days(conn, keep, table, part):
            done.waiting.append(part.name)
        elif _drop_one(conn, table, part, step_run):
            done.dropped.append(part.name)
            continue
        else:
            done.busy.append(part.name)
        stopped.add(table)
    return done


def _drop_one(conn: Connection, table: str, part: Part, step_run: int) -> bool:
    if table in EVENTS:
        # What is not counted before it goes never will be.
        for hour in uncounted_hours(conn, part.start, part.end):
            roll_up_hour(conn, hour, step_run=step_run)
        return dropping.drop_events(conn, table, part, step_run=step_run)
    if table == "transfer_history":
        return dropping.detach_history(conn, part, step_run=step_run)
    return dropping.drop_statistics(conn, table, part, step_run=step_run)


def _days_to_export(conn: Connection, keep: Retention, now: datetime) -> list[date]:
    yesterday = now.date() - DAY
    days = {
        day
        for table in ("transfer", *EVENTS)
        for day in _not_exported(conn, keep, table, yesterday, yesterday)
    }
    for table, part in condemned(conn, keep, now):
        days.update(_missing_days(conn, keep, table, part))
    return sorted(days)


def _missing_days(conn: Connection, keep: Retention, table: str, part: Part) -> list[date]:
    """Return the days of a partition that must be exported before it goes."""
    if keep.export_to is None or table.startswith("statistic"):
        return []
    name = "transfer" if table == "transfer_history" else table
    return _not_exported(conn, keep, name, part.start.date(), (part.end - DAY).date())


def _not_exported(conn: Connection, keep: Retention, table: str, first: date, last: date) -> list[date]:
    days = days_not_exported(conn, table, first, last, keep.export_to or "")
    return [day for day in days if not is_gone(conn, table, day)]
