"""What happened to files in a time: everybody asks for his own, operators for all."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import AwareDatetime

from asyncstageout.api.callers import Asker, Catalogue
from asyncstageout.api.models import Statistics
from asyncstageout.api.problems import Problem
from asyncstageout.api.scopes import refuse_stranger, visible_to
from asyncstageout.catalogue.measures import COLUMNS, WITHOUT_DELAYS
from asyncstageout.catalogue.statistics import (
    DAY,
    HOUR,
    MINUTE,
    Kind,
    Of,
    Period,
    by_subject,
    counted_until,
    over_time,
    totals,
)
from asyncstageout.core.callers import Caller
from asyncstageout.core.selections import SiteName, TaskName, UserName

router = APIRouter(tags=["monitoring"])

MOST_ROWS = 1000
LONGEST = timedelta(days=1100)
"""As long as statistics are kept by default."""

NAMES: dict[Kind, tuple[str | None, str | None]] = {
    Kind.TOTAL: (None, None),
    Kind.LINK: ("source", "destination"),
    Kind.SOURCE: ("source", None),
    Kind.DESTINATION: ("destination", None),
    Kind.USER: ("username", None),
    Kind.TASK: ("task", "username"),
}
"""What the two keys of a kind are called."""
OWNED = frozenset({Kind.TOTAL, Kind.USER, Kind.TASK})
"""Of these everybody has his own; links and sites are counted for all together."""


@router.get("/statistics", response_model=Statistics, summary="What happened")
def show_statistics(
    caller: Asker,
    conn: Catalogue,
    *,
    by: Annotated[Kind, Query(description="A row for each; `total`: one row.")] = Kind.TOTAL,
    since: Annotated[AwareDatetime | None, Query(description="Default: a day before `until`.")] = None,
    until: Annotated[AwareDatetime | None, Query(description="Default: now.")] = None,
    every_s: Annotated[
        int | None,
        Query(ge=60, le=31_536_000, description="Rows over time in place of that: of all that is asked for."),
    ] = None,
    source: Annotated[SiteName | None, Query()] = None,
    destination: Annotated[SiteName | None, Query()] = None,
    username: Annotated[UserName | None, Query()] = None,
    task: Annotated[TaskName | None, Query()] = None,
    delays: Annotated[bool, Query(description="Also how long files waited.")] = False,
    order: Annotated[
        Literal["files", "bytes", "failures", "name"], Query(description="What is first.")
    ] = "files",
    limit: Annotated[int, Query(ge=1, le=MOST_ROWS)] = 100,
) -> dict[str, Any]:
    """Tell what happened in a time: files, bytes, failures by category, delays.

    Hours count as a whole; by minutes (`every_s` below 3600) only the total of all files is counted. Who is
    no operator sees his own: `total`, `user` and `task`.
    """
    refuse_stranger(caller, username)
    given = {"source": source, "destination": destination, "username": username, "task": task}
    of = _of(caller, by, {name: value for name, value in given.items() if value is not None})
    period = _period(of.kind, since, until, every_s)
    wanted = COLUMNS if delays else WITHOUT_DELAYS
    if every_s is not None:
        rows = over_time(conn, period, of, columns=wanted)
    elif by is Kind.TOTAL:
        rows = [totals(conn, period, of, columns=wanted)]
    else:
        rows = [
            _named(by, row) for row in by_subject(conn, period, of, order=order, limit=limit, columns=wanted)
        ]
    return {"start": period.start, "end": period.end, "counted_until": counted_until(conn), "rows": rows}


def _of(caller: Caller, by: Kind, given: dict[str, str]) -> Of:
    """Return what is meant.

    Raises:
        Problem: 422, ``by`` knows nothing of a name that is given; 403, it is for operators.
    """
    if strange := sorted(given.keys() - set(NAMES[by])):
        raise Problem(422, f"by={by} is not counted by {', '.join(strange)}.", kind="not-counted")
    if not caller.sees_everybody and by not in OWNED:
        raise Problem(403, f"by={by} is for operators; ask for total, user or task.", kind="operators-only")
    first, second = NAMES[by]
    kind = Kind.USER if by is Kind.TOTAL and not caller.sees_everybody else by
    return Of(kind, given.get(first or ""), given.get(second or ""), visible_to(caller))


def _period(kind: Kind, since: datetime | None, until: datetime | None, every_s: int | None) -> Period:
    """Return the time that is meant.

    Raises:
        Problem: 422, it is no time, too long, or in too many pieces.
    """
    end = until or datetime.now(UTC)
    start = since or end - DAY
    if not timedelta(0) < end - start <= LONGEST:
        raise Problem(
            422, f"since must be before until, by {LONGEST.days} days at most.", kind="no-such-time"
        )
    width = None if every_s is None else timedelta(seconds=every_s)
    if width is not None and width % (MINUTE if width < HOUR else HOUR if width < DAY else DAY):
        raise Problem(422, "every_s must be whole minutes, hours or days.", kind="no-such-pieces")
    if width is not None and (end - start) / width > MOST_ROWS:
        raise Problem(
            422, f"That makes more than {MOST_ROWS:,} rows: make every_s larger.", kind="too-many-rows"
        )
    return Period.covering(start, end, width, kind=kind)


def _named(by: Kind, row: dict[str, Any]) -> dict[str, Any]:
    subject, other = row.pop("subject"), row.pop("other")
    return row | {name: value for name, value in zip(NAMES[by], (subject, other), strict=True) if name}
