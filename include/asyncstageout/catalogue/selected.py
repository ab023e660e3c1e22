"""What becomes of selected files when a person acts on them, counted and, where he named them, one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from psycopg import Connection

from asyncstageout.core.selections import Selection
from asyncstageout.core.states import TransferState

Visible = Collection[str] | None
"""Users whose files somebody may see; None: everybody's."""

MAX_FILES = 50_000
"""What one call changes at most: a few seconds of work."""
NOT_YOURS = "not_yours"
"""A file that was named and is not there, or is somebody's whom one may not act for: which, is not told."""
LEFT_OVER = "left_over"
"""Beyond :data:`MAX_FILES`: the same call again goes on with them."""
REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one file."""

    outcome: str
    reason: str | None = None
    """Why it was refused."""


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What became of the files that somebody selected."""

    counts: dict[str, int]
    reasons: dict[str, int] = field(default_factory=dict)
    """Why files were refused, and how many."""
    files: dict[int | str, Outcome] | None = None
    """Each file by the id that was given, if files were selected by id."""


_CONDITIONS = {
    "ids": "(t.id = ANY(%(numbers)s::bigint[]) OR t.request_id = ANY(%(request_ids)s::text[]))",
    "task": "t.task_id = (SELECT id FROM task WHERE name = %(task)s)",
    "username": "t.username = %(username)s",
    "source": "t.source = %(source)s",
    "destination": "t.destination = %(destination)s",
    "site": "%(site)s IN (t.source, t.destination)",
    "category": "t.failure_category = %(category)s",
    "ended_from": "t.ended_at >= %(ended_from)s",
    "ended_to": "t.ended_at < %(ended_to)s",
}
_LIVE = "SELECT id, request_id, state FROM transfer t WHERE {condition}"
_PAST = " UNION ALL SELECT id, request_id, state FROM transfer_history t WHERE {condition}"

# The wishes come first: they may hold statements that change something, which must stand at the top.
_EACH = "SELECT id, request_id, outcome, reason FROM answer"
_COUNTED = "SELECT outcome, reason, count(*) FROM answer GROUP BY outcome, reason"

WORDS = "unnest(%(states)s::transfer_state[], %(words)s::text[]) AS w(state, word)"
"""The outcome of each state, as statements see it."""


def act(
    conn: Connection,
    statement: str,
    words: Mapping[TransferState, str],
    selection: Selection,
    visible: Visible,
    **values: Any,
) -> Outcomes:
    """Run a statement over a selection and gather its ``answer``.

    Args:
        statement: ``WITH ... answer AS (...)`` with the columns id, request_id, outcome and reason. It has
            places for the ``condition`` over ``transfer t`` and for what is ``selected``: (id, request_id,
            state).
        words: outcomes by the state in which a file is found.
        visible: users whose files count; None: everybody's.
    """
    where = condition(selection, visible)
    # In the past there is nothing to stop, but who names files or a task wants to hear of all of them.
    selected = (_LIVE + (_PAST if selection.reaches_back else "")).format(condition=where)
    text = statement.format(condition=where, selected=selected)
    named = parameters(selection, visible) | {
        "states": list(words), "words": list(words.values()), **values
    }  # fmt: skip
    return _one_by_one(conn, text, named, selection.ids) if selection.ids else _counted(conn, text, named)


def condition(selection: Selection, visible: Visible) -> str:
    """Return the condition over ``t``, a row of ``transfer`` or of the history, for a selection."""
    parts = [text for name, text in _CONDITIONS.items() if getattr(selection, name, None) is not None]
    if visible is not None:
        parts.append("t.username = ANY(%(visible)s::text[])")
    return " AND ".join(parts)


def parameters(selection: Selection, visible: Visible) -> dict[str, Any]:
    """Return the values that a :func:`condition` names."""
    return {
        **selection.model_dump(exclude={"ids"}),
        "numbers": selection.numbers,
        "request_ids": selection.request_ids,
        "visible": None if visible is None else list(visible),
    }


def _counted(conn: Connection, text: str, named: Mapping[str, Any]) -> Outcomes:
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for outcome, reason, count in conn.execute(text + _COUNTED, named):
        counts[outcome] += count
        if reason:
            reasons[reason] += count
    return Outcomes(dict(counts), dict(reasons))


def _one_by_one(
    conn: Connection, text: str, named: Mapping[str, Any], ids: Collection[int | str]
) -> Outcomes:
    found: dict[int | str, Outcome] = {}
    for number, request_id, *answer in conn.execute(text + _EACH, named):
        found[number] = found[request_id] = Outcome(*answer)
    files = {one: found.get(one, Outcome(NOT_YOURS)) for one in ids}
    return Outcomes(
        dict(Counter(file.outcome for file in files.values())),
        dict(Counter(file.reason for file in files.values() if file.reason)),
        files,
    )
