"""Whose files and tasks a caller means, and whether they are his to ask for."""

from __future__ import annotations

from psycopg import Connection

from asyncstageout.api.problems import Problem
from asyncstageout.catalogue.questions import task_exists
from asyncstageout.catalogue.selected import Visible
from asyncstageout.core.callers import Caller
from asyncstageout.core.selections import Selection


def visible_to(caller: Caller) -> Visible:
    """Return the users whose files he may see; None: everybody's."""
    return None if caller.sees_everybody else sorted({caller.name, *caller.acts_for})


def refuse_stranger(caller: Caller, username: str | None) -> None:
    """Refuse who asks for the files of a user for whom he may not act.

    Raises:
        Problem: 403.
    """
    if username is not None and not caller.may_act_for(username):
        raise Problem(403, f"{caller.name} may not act for {username}.", kind="not-yours")


def no_task(task: str) -> Problem:
    return Problem(404, f"There is no task {task}.", kind="no-such-task")


def refuse_selection(conn: Connection, caller: Caller, selection: Selection) -> None:
    """Refuse a selection that is not his to make.

    Raises:
        Problem: 403; or 404, there is no such task that he may see.
    """
    if selection.is_of_everybody and not caller.is_operator:
        raise Problem(403, "Say whose files: those of a whole link are for operators.", kind="operators-only")
    refuse_stranger(caller, selection.username)
    if selection.task is not None and not task_exists(conn, selection.task, visible_to(caller)):
        raise no_task(selection.task)
