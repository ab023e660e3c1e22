"""What people do with many files, stop them or send them again: what it would hit, the deed, its sentence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

from psycopg import Connection

from asyncstageout.catalogue.kills import BEING_KILLED, KILLED, kill, would_kill
from asyncstageout.catalogue.retries_by_people import SENT_AGAIN, retry_files, would_retry
from asyncstageout.catalogue.selected import LEFT_OVER, MAX_FILES, Outcomes
from asyncstageout.core.selections import Selection
from asyncstageout.steps.recording import Summary, files

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


class Deed(NamedTuple):
    """One way to act on a selection; both calls take the catalogue, the selection and who is visible."""

    hits: frozenset[str]
    """Outcomes of files that it changes."""
    would: Callable[..., Outcomes]
    act: Callable[..., Outcomes]
    """Also ``comment``, ``step_run`` and ``at_most``."""

    def hit(self, counts: Mapping[str, int]) -> int:
        """Return how many files were, or would be, changed."""
        return sum(counts.get(name, 0) for name in self.hits)


def killing(*, rings: bool = True) -> Deed:
    """Stop files.

    Args:
        rings: whether somebody else is to tell FTS.
    """
    return Deed(frozenset({KILLED, BEING_KILLED}), would_kill, partial(kill, rings=rings))


def sending_again(*, killed_too: bool = False) -> Deed:
    """Send files again that failed, or also such that somebody stopped."""
    return Deed(
        frozenset({SENT_AGAIN}),
        partial(would_retry, killed_too=killed_too),
        partial(retry_files, killed_too=killed_too),
    )


def look(conn: Connection, deed: Deed, selection: Selection) -> Summary:
    """Say what a deed would make of the files of a selection, and of how many."""
    outcomes = deed.would(conn, selection, None)
    return Summary(f"This would happen: {sentence(outcomes)}", {"files": deed.hit(outcomes.counts)})


def do(
    conn: Connection, deed: Deed, selection: Selection, *, comment: str, at_most: int, step_run: int
) -> Summary:
    """Do it, to no more files than was agreed, in as many transactions as it needs.

    Args:
        comment: for the history of each file.
    """
    first: Outcomes | None = None
    hit: Counter[str] = Counter()
    while True:
        room = min(MAX_FILES, at_most - hit.total())
        outcomes = deed.act(conn, selection, None, comment=comment, step_run=step_run, at_most=room)
        first = first or outcomes
        hit.update({name: outcomes.counts.get(name, 0) for name in deed.hits})
        left = outcomes.counts.get(LEFT_OVER, 0)
        if not left or not deed.hit(outcomes.counts) or hit.total() >= at_most:
            break
    counts = first.counts | hit | {LEFT_OVER: left}
    summary = sentence(Outcomes(counts, first.reasons))
    return Summary(f"{files(hit.total())} hit: {summary}; {comment}", {"files": hit.total(), **counts})


def sentence(outcomes: Outcomes) -> str:
    """Say what became of files.

    >>> sentence(Outcomes({"too_late": 1, "killed": 2000}))
    '2,000 killed, 1 ended before'
    """
    parts = [f"{count:,} {word}" for name, word in WORDS.items() if (count := outcomes.counts.get(name))]
    reasons = "; ".join(f"{count:,} because {reason}" for reason, count in outcomes.reasons.items())
    return (", ".join(parts) or "no files") + (f" ({reasons})" if reasons else "")
