"""Kills as CRAB asks for them: of a task, or of named files."""

from __future__ import annotations

from collections.abc import Sequence

from psycopg import Connection

from asyncstageout.api.crab.answers import on_record
from asyncstageout.api.crab.forms import ID
from asyncstageout.api.scopes import visible_to
from asyncstageout.catalogue.kills import kill
from asyncstageout.catalogue.selected import Outcomes
from asyncstageout.core.callers import Caller
from asyncstageout.core.selections import Selection

STOPPED = frozenset({"killed", "being_killed"})
KILLED = STOPPED | {"already_killed", "already_being_killed"}
"""Outcomes after which a file is, or will be, killed. What has ended otherwise could not be."""


def kill_task(conn: Connection, caller: Caller, username: str, task: str) -> int:
    """Kill what has not ended of a task; return how many files that stopped."""
    outcomes = _kill(conn, caller, Selection(task=task, username=username), "killTransfers")
    return sum(count for name, count in outcomes.counts.items() if name in STOPPED)


def kill_by_id(
    conn: Connection, caller: Caller, ids: Sequence[str], *, username: str | None = None
) -> tuple[list[str], list[str]]:
    """Kill named files; return those that are killed now, and those that are not."""
    known = tuple(dict.fromkeys(one for one in ids if ID.fullmatch(one)))
    killed: set[int | str] = set()
    if known:
        selection = Selection(ids=known, username=username)
        outcomes = _kill(conn, caller, selection, "killTransfersById")
        killed = {one for one, file in (outcomes.files or {}).items() if file.outcome in KILLED}
    return [one for one in ids if one in killed], [one for one in ids if one not in killed]


def _kill(conn: Connection, caller: Caller, selection: Selection, subresource: str) -> Outcomes:
    found: list[Outcomes] = []

    def do(step_run: int) -> tuple[str, int]:
        comment = f"killed by {caller.name} through CRAB"
        outcomes = kill(conn, selection, visible_to(caller), comment=comment, step_run=step_run)
        found.append(outcomes)
        stopped = sum(outcomes.counts.get(name, 0) for name in STOPPED)
        return f"{stopped:,} of {sum(outcomes.counts.values()):,} files stopped", stopped

    on_record(conn, caller, subresource, do)
    return found[0]
