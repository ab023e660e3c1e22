"""Kills files and sends them again for a caller, on record."""

from __future__ import annotations

from psycopg import Connection

from asyncstageout.api.callers import actor
from asyncstageout.api.models import ActAnswer, FileOutcome, TaskAct, TaskRetry
from asyncstageout.api.scopes import visible_to
from asyncstageout.catalogue.kills import kill, would_kill
from asyncstageout.catalogue.retries_by_people import retry_files, would_retry
from asyncstageout.catalogue.selected import Outcomes
from asyncstageout.core.callers import Caller
from asyncstageout.core.selections import Selection
from asyncstageout.steps.recording import Summary, recorded

WORDS = {
    "killed": "killed",
    "being_killed": "being killed",
    "already_killed": "killed before",
    "already_being_killed": "being killed already",
    "too_late": "ended before",
    "sent_again": "sent again",
    "already_waiting": "waiting already",
    "already_under_way": "under way already",
    "done": "done",
    "refused": "refused",
    "not_yours": "not there or not yours",
    "left_over": "left over",
}
"""Outcomes for people, in the order in which they are told."""


def kill_files(conn: Connection, caller: Caller, selection: Selection, wish: TaskAct) -> ActAnswer:
    """Kill the files of a selection that the caller may act for, or say what that would do."""
    visible = visible_to(caller)
    if wish.dry_run:
        return _answer(would_kill(conn, selection, visible), dry_run=True)
    found: list[Outcomes] = []

    def step(step_run: int) -> Summary:
        comment = _comment("killed", caller, wish)
        found.append(kill(conn, selection, visible, comment=comment, step_run=step_run))
        return _summary(found[0])

    recorded(conn, actor(caller, "kill"), step)
    return _answer(found[0], dry_run=False)


def send_again(conn: Connection, caller: Caller, selection: Selection, wish: TaskRetry) -> ActAnswer:
    """Send the files of a selection again that the caller may act for, or say what that would do."""
    visible = visible_to(caller)
    if wish.dry_run:
        return _answer(would_retry(conn, selection, visible, killed_too=wish.killed_too), dry_run=True)
    found: list[Outcomes] = []

    def step(step_run: int) -> Summary:
        comment = _comment("sent again", caller, wish)
        found.append(
            retry_files(
                conn, selection, visible, comment=comment, step_run=step_run, killed_too=wish.killed_too
            )
        )
        return _summary(found[0])

    recorded(conn, actor(caller, "retry"), step)
    return _answer(found[0], dry_run=False)


def _comment(what: str, caller: Caller, wish: TaskAct) -> str:
    return f"{what} by {caller.name}" + (f": {wish.comment}" if wish.comment else "")


def _summary(outcomes: Outcomes) -> Summary:
    return Summary(_sentence(outcomes), outcomes.counts)


def _sentence(outcomes: Outcomes) -> str:
    """Say what became of the files.

    >>> _sentence(Outcomes({"too_late": 1, "killed": 2000}))
    '2,000 killed, 1 ended before'
    """
    parts = [f"{count:,} {word}" for name, word in WORDS.items() if (count := outcomes.counts.get(name))]
    reasons = "; ".join(f"{count:,} because {reason}" for reason, count in outcomes.reasons.items())
    return (", ".join(parts) or "no files") + (f" ({reasons})" if reasons else "")


def _answer(outcomes: Outcomes, *, dry_run: bool) -> ActAnswer:
    named = outcomes.files or {}
    return ActAnswer(
        sentence=_sentence(outcomes),
        dry_run=dry_run,
        counts=outcomes.counts,
        reasons=outcomes.reasons,
        files=[FileOutcome(id=one, outcome=file.outcome, reason=file.reason) for one, file in named.items()],
    )
