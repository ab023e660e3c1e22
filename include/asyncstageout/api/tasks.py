"""Tasks: how far their files are, and all of them killed or sent again at once."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Query

from asyncstageout.api.acting import kill_files, send_again
from asyncstageout.api.callers import Asker, Catalogue
from asyncstageout.api.cursors import Cursor, cursor_after, number_of_cursor
from asyncstageout.api.models import ActAnswer, TaskAct, TaskPage, TaskRetry, TaskSummary
from asyncstageout.api.scopes import no_task, refuse_selection, refuse_stranger, visible_to
from asyncstageout.catalogue.questions import newest_tasks, task_summary
from asyncstageout.core.selections import Selection, TaskName, UserName
from asyncstageout.core.states import FINAL_STATES

router = APIRouter(tags=["tasks"])

CURSOR = "tasks"
_KILL, _RETRY = TaskAct(), TaskRetry()
Task = Annotated[TaskName, Path(description="Name of the task.")]


@router.get("/tasks", response_model=TaskPage, summary="List tasks")
def list_tasks(
    caller: Asker,
    conn: Catalogue,
    *,
    username: Annotated[UserName | None, Query(description="The owner.")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    cursor: Cursor = None,
) -> dict[str, Any]:
    """List tasks with their files by state, the newest first."""
    refuse_stranger(caller, username)
    before_id = number_of_cursor(CURSOR, cursor)
    rows = newest_tasks(conn, visible_to(caller), limit=limit + 1, username=username, before_id=before_id)
    more = len(rows) > limit
    return {
        "tasks": rows[:limit],
        "next_cursor": cursor_after(CURSOR, rows[limit - 1]["id"]) if more else None,
    }


@router.get("/tasks/{task}", response_model=TaskSummary, summary="How far a task is")
def show_task(caller: Asker, conn: Catalogue, task: Task) -> dict[str, Any]:
    """Tell how far a task's files are, how large they are, and why some failed."""
    found = task_summary(conn, task, visible_to(caller))
    if found is None:
        raise no_task(task)
    return {**found, "is_final": set(found["states"]) <= FINAL_STATES}


@router.post("/tasks/{task}/kill", response_model=ActAnswer, summary="Kill a task's files")
def kill_task(
    caller: Asker, conn: Catalogue, task: Task, wish: Annotated[TaskAct, Body()] = _KILL
) -> ActAnswer:
    """Stop all files of a task that have not ended; outcomes as of `POST /transfers/kill`."""
    selection = Selection(task=task)
    refuse_selection(conn, caller, selection)
    return kill_files(conn, caller, selection, wish)


@router.post("/tasks/{task}/retry", response_model=ActAnswer, summary="Send a task's failed files again")
def retry_task(
    caller: Asker, conn: Catalogue, task: Task, wish: Annotated[TaskRetry, Body()] = _RETRY
) -> ActAnswer:
    """Send all files of a task again that failed; outcomes as of `POST /transfers/retry`."""
    selection = Selection(task=task)
    refuse_selection(conn, caller, selection)
    return send_again(conn, caller, selection, wish)
