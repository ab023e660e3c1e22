"""Kills files and sends them again for a caller, on record, and not by the thousand by mistake."""

from __future__ import annotations

from psycopg import Connection

from asyncstageout.api.callers import actor
from asyncstageout.api.models import ActAnswer, FileOutcome, TaskAct, TaskRetry
from asyncstageout.api.problems import Problem
from asyncstageout.api.scopes import visible_to
from asyncstageout.catalogue.selected import MAX_FILES, Outcomes
from asyncstageout.core.callers import Caller
from asyncstageout.core.selections import APPROVE_ABOVE, Selection
from asyncstageout.steps.acting import Deed, killing, sending_again, sentence
from asyncstageout.steps.recording import Summary, recorded


def kill_files(conn: Connection, caller: Caller, selection: Selection, wish: TaskAct) -> ActAnswer:
    """Kill the files of a selection that the caller may act for, or say what that would do.

    Raises:
        Problem: 409, they are too many to be meant.
    """
    return _act(conn, caller, selection, wish, deed=killing(), name="kill", done="killed")


def send_again(conn: Connection, caller: Caller, selection: Selection, wish: TaskRetry) -> ActAnswer:
    """Send the files of a selection again that the caller may act for, or say what that would do.

    Raises:
        Problem: 409, they are too many to be meant.
    """
    deed = sending_again(killed_too=wish.killed_too)
    return _act(conn, caller, selection, wish, deed=deed, name="retry", done="sent again")


def _act(
    conn: Connection,
    caller: Caller,
    selection: Selection,
    wish: TaskAct,
    *,
    deed: Deed,
    name: str,
    done: str,
) -> ActAnswer:
    visible = visible_to(caller)
    if wish.dry_run:
        return _answer(deed.would(conn, selection, visible), dry_run=True)
    at_most = MAX_FILES
    # Who names files, or one task, or means his own, knows what he asks for.
    if not (selection.ids or selection.task or selection.username == caller.name):
        at_most = _agreed(deed.hit(deed.would(conn, selection, visible).counts), wish)
    comment = f"{done} by {caller.name}" + (f": {wish.comment}" if wish.comment else "")
    found: list[Outcomes] = []

    def step(step_run: int) -> Summary:
        outcomes = deed.act(conn, selection, visible, comment=comment, step_run=step_run, at_most=at_most)
        found.append(outcomes)
        return Summary(f"{sentence(outcomes)}; {comment}", outcomes.counts)

    recorded(conn, actor(caller, name), step)
    return _answer(found[0], dry_run=False)


def _agreed(files: int, wish: TaskAct) -> int:
    """Return how many files may be changed.

    Raises:
        Problem: 409, it would be more than anybody said.
    """
    agreed = max(APPROVE_ABOVE, wish.expected_files or 0)
    if files > agreed:
        raise Problem(
            409,
            f"This is about {files:,} files. If that is meant, say it again with expected_files: {files}.",
            kind="needs-approval",
            files=files,
        )
    return min(MAX_FILES, agreed)


def _answer(outcomes: Outcomes, *, dry_run: bool) -> ActAnswer:
    named = outcomes.files or {}
    return ActAnswer(
        sentence=sentence(outcomes),
        dry_run=dry_run,
        counts=outcomes.counts,
        reasons=outcomes.reasons,
        files=[FileOutcome(id=one, outcome=file.outcome, reason=file.reason) for one, file in named.items()],
    )
