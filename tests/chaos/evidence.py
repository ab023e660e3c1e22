"""What must be true after a fault, from the disks, the catalogue and the FTS's own log of copies."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from psycopg import Connection

from asyncstageout.catalogue.audit import audit
from asyncstageout.core.naming import request_id
from asyncstageout.core.states import TransferState
from asyncstageout.sandbox.arrivals import mismatches
from asyncstageout.sandbox.days import Day, DayFile

LONGEST_IDLE_S = 120.0
"""The promise: no file is without a next step for longer."""


@dataclass(slots=True)
class Copy:
    """One copy that FTS made, from its log."""

    job_id: str
    destination: str
    """URL."""
    started_at: datetime
    ended_at: datetime | None = None
    """None: it never ended, the FTS was killed meanwhile."""
    arrived: bool = False


@dataclass(frozen=True, slots=True)
class Lives:
    """When the FTS died and came back, as whoever killed it saw it."""

    deaths: list[datetime] = field(default_factory=list)
    starts: list[datetime] = field(default_factory=list)
    emptied: list[datetime] = field(default_factory=list)
    """The starts at which it had forgotten everything."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What a fault did to the files of a day. All zeros, and a short time, are right."""

    files: int
    lost: int
    duplicated: int
    longest_idle_s: float
    problems: tuple[str, ...] = ()

    @property
    def is_right(self) -> bool:
        return not (self.lost or self.duplicated or self.problems) and self.longest_idle_s < LONGEST_IDLE_S


def examine(
    conn: Connection, day: Day, manifest: Sequence[DayFile], *, sites: Path, log: Path, lives: Lives
) -> Findings:
    """Look everywhere. Every file of the day is final by now, and all could have arrived."""
    states = _states(conn, manifest)
    # Of files that are not DONE the state alone speaks.
    missing = [
        str(one)
        for one in mismatches(manifest, states, sites)
        if one.state is None or one.state == TransferState.DONE
    ]
    not_done = [f"{name}: {state}" for name, state in states.items() if state != TransferState.DONE]
    copies = read_copies(log, lives)
    destinations = _destinations(conn, day)
    ours = [copy for copy in copies if copy.destination in destinations]
    twice = [*overlaps(ours), *repeated(ours, lives), *_final_twice(conn, day)]
    return Findings(
        files=len(manifest),
        lost=len(missing) + len(not_done),
        duplicated=len(twice),
        longest_idle_s=longest_idle_s(conn, day, ours, lives),
        problems=(*missing[:5], *not_done[:5], *twice[:5], *audit_problems(conn)),
    )


def read_copies(log: Path, lives: Lives) -> list[Copy]:
    """Return all copies of the log in the order of their starts; the FTS's deaths end what was running."""
    copies: list[Copy] = []
    running: dict[tuple[str, str], Copy] = {}
    deaths = iter(sorted(lives.deaths))
    death = next(deaths, None)
    for line in _lines(log):
        at = datetime.fromisoformat(line["at"])
        while death is not None and death < at:
            for copy in running.values():
                copy.ended_at = death
            running.clear()
            death = next(deaths, None)
        key = (line["job_id"], line["destination"])
        if line["event"] == "start":
            running[key] = Copy(*key, at)
            copies.append(running[key])
        elif ended := running.pop(key, None):
            ended.ended_at, ended.arrived = at, line["ok"]
    return copies


def _lines(log: Path) -> Iterator[dict[str, Any]]:
    # A kill may cut the last line short; what the next FTS writes then stands behind it.
    for text in re.split(r'(?={"at":)', log.read_text()):
        if text.endswith("\n"):
            yield json.loads(text)


def overlaps(copies: Iterable[Copy]) -> list[str]:
    """Say where two jobs copied to one destination at the same time."""
    found = []
    for destination, group in _by_destination(copies):
        for one, following in pairwise(group):
            if one.job_id != following.job_id and (
                one.ended_at is None or following.started_at < one.ended_at
            ):
                found.append(f"{destination}: copied by {one.job_id} and {following.job_id} at the same time")
    return found


def repeated(copies: Iterable[Copy], lives: Lives) -> list[str]:
    """Say what was copied once more after it had arrived. An FTS that forgot its jobs cannot tell us so."""
    found = []
    for destination, group in _by_destination(copies):
        for one, following in pairwise(group):
            forgot = any(one.started_at < emptied_at <= following.started_at for emptied_at in lives.emptied)
            if one.arrived and one.job_id != following.job_id and not forgot:
                found.append(f"{destination}: copied again by {following.job_id}")
    return found


def _by_destination(copies: Iterable[Copy]) -> Iterator[tuple[str, list[Copy]]]:
    groups: dict[str, list[Copy]] = defaultdict(list)
    for copy in copies:
        groups[copy.destination].append(copy)
    yield from groups.items()


_STAYS = """
SELECT e.transfer_id, e.to_state::text, e.at, lead(e.at) OVER w, j.job_id::text,
    (v.body->'protocols'->0->>'prefix') || t.destination_lfn
FROM transfer_event e
JOIN transfer t ON t.id = e.transfer_id
JOIN task k ON k.id = t.task_id
JOIN site d ON d.name = t.destination JOIN storage v ON v.id = d.storage_id
LEFT JOIN fts_job j ON j.sid = e.fts_job
WHERE k.name LIKE %s
WINDOW w AS (PARTITION BY e.transfer_id ORDER BY e.id)
"""


def longest_idle_s(conn: Connection, day: Day, copies: Iterable[Copy], lives: Lives) -> float:
    """Return the longest time for which any file of the day was without a next step, in seconds.

    A file is without a next step

    - in NEW, RETRY, ACQUIRED and KILL, from the event until the next one. (The wait that a retry prescribes is
      a step, but is counted too: the bound is then too high, never too low.)
    - in SUBMITTED, from the moment when FTS had ended its last copy for this job until the event that says so.
      Where FTS logged no such end (it forgot the job), from its last start, or else from the acceptance.

    While FTS has a job and works on it, the next step is FTS's.
    """
    ends: dict[tuple[str, str], list[datetime]] = defaultdict(list)
    for copy in copies:
        if copy.ended_at is not None:
            ends[copy.job_id, copy.destination].append(copy.ended_at)
    longest_s = 0.0
    for _, state, since_at, until_at, job_id, destination in conn.execute(_STAYS, (day.task_pattern,)):
        if until_at is None:
            continue
        begun_at = since_at
        if state == TransferState.SUBMITTED:
            seen = [at for at in ends.get((job_id, destination), ()) if at <= until_at]
            restarts = [at for at in lives.starts if since_at < at <= until_at]
            begun_at = max([since_at, *seen, *([] if seen else restarts)])
        longest_s = max(longest_s, (until_at - begun_at).total_seconds())
    return longest_s


def audit_problems(conn: Connection) -> list[str]:
    """Return what the audit of the catalogue finds (`aso audit`)."""
    return [
        f"audit: {result.name}: {result.violations} violations, such as {result.samples[:2]}"
        for result in audit(conn)
        if result.violations
    ]


def _states(conn: Connection, manifest: Sequence[DayFile]) -> dict[str, str]:
    wanted = [request_id(file.request["source_lfn"]) for file in manifest]
    rows = conn.execute(
        "SELECT request_id, state::text FROM transfer WHERE request_id = ANY(%(ids)s)"
        " UNION ALL SELECT request_id, state::text FROM transfer_history WHERE request_id = ANY(%(ids)s)",
        {"ids": wanted},
    ).fetchall()
    twice = [name for name, count in Counter(name for name, _ in rows).items() if count > 1]
    assert not twice, f"in two places: {twice}"
    return dict(rows)


def _destinations(conn: Connection, day: Day) -> set[str]:
    rows = conn.execute(
        "SELECT (v.body->'protocols'->0->>'prefix') || t.destination_lfn FROM transfer t JOIN task k ON k.id = t.task_id"
        " JOIN site s ON s.name = t.destination JOIN storage v ON v.id = s.storage_id WHERE k.name LIKE %s",
        (day.task_pattern,),
    )
    return {url for (url,) in rows}


def _final_twice(conn: Connection, day: Day) -> list[str]:
    rows = conn.execute(
        "SELECT e.transfer_id, count(*) FROM transfer_event e JOIN transfer t ON t.id = e.transfer_id"
        " JOIN task k ON k.id = t.task_id"
        " WHERE k.name LIKE %s AND e.to_state IN ('DONE', 'FAILED', 'KILLED')"
        " GROUP BY e.transfer_id HAVING count(*) > 1",
        (day.task_pattern,),
    )
    return [f"file {number} became final {count} times" for number, count in rows]


def now() -> datetime:
    return datetime.now(UTC)
