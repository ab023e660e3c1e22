"""Actions on files: of one file, of a task, of a user."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from asyncstageout.core.states import TransferState
from asyncstageout.ui import places
from asyncstageout.ui.actions import COMMENT, Action, Field

S = TransferState
_KILLED_TOO = Field("killed_too", "Also files that were killed", "yes")


def on_file(number: int, state: TransferState) -> list[Action]:
    """Return what may be done with one file as it is."""
    body: dict[str, object] = {"ids": [number]}
    if state in (S.FAILED, S.KILLED):
        return [_retry("the file", "/transfers/retry", body | {"killed_too": state is S.KILLED}, ())]
    return [] if state in (S.DONE, S.KILL) else [_kill("the file", "/transfers/kill", body)]


def on_task(task: str, states: Iterable[str]) -> list[Action]:
    """Return what may be done with a task whose files are in these states."""
    return _on_many(
        "the task's files", {S(state) for state in states}, places.path("tasks", task, "kill"),
        places.path("tasks", task, "retry"), {},
    )  # fmt: skip


def on_user(username: str, states: Iterable[str]) -> list[Action]:
    """Return what may be done with all files of a user."""
    what = f"all live files of {username}"
    found = {S(state) for state in states}
    return _on_many(what, found, "/transfers/kill", "/transfers/retry", {"username": username})


def publishing_again(task: str) -> Action:
    return Action(
        "publish", "Publish again", places.path("tasks", task, "publication", "retry"),
        "Publishes the task's files again that arrived and whose publication was given up.",
        (COMMENT,), counts_first=True,
    )  # fmt: skip


def _on_many(
    what: str, states: set[TransferState], kill: str, retry: str, body: Mapping[str, object]
) -> list[Action]:
    found = []
    if states & {S.NEW, S.ACQUIRED, S.SUBMITTED, S.RETRY}:
        found.append(_kill(what, kill, body))
    if states & {S.FAILED, S.KILLED}:
        found.append(_retry(what, retry, body, (_KILLED_TOO,)))
    return found


def _kill(what: str, path: str, body: Mapping[str, object]) -> Action:
    return Action(
        "kill", "Kill", path,
        f"Stops {what}: what waits at once, what FTS has as soon as FTS lets it go. What arrived stays.",
        (COMMENT,), body=body, counts_first=True, is_grave=True,
    )  # fmt: skip


def _retry(what: str, path: str, body: Mapping[str, object], fields: Iterable[Field]) -> Action:
    return Action(
        "retry", "Send again", path, f"Sends what failed for good of {what} again, with all attempts.",
        (COMMENT, *fields), body=body, counts_first=True,
    )  # fmt: skip
