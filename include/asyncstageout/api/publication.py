"""Publication of tasks: how they are to be published, how far that is, their blocks, failed files again."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Query

from asyncstageout.api.callers import Asker, Catalogue, actor
from asyncstageout.api.cursors import Cursor, cursor_after, number_of_cursor
from asyncstageout.api.models import (
    BlockPage,
    PublicationRetried,
    PublicationWish,
    TaskAct,
    TaskPublication,
)
from asyncstageout.api.scopes import no_task, visible_to
from asyncstageout.api.tasks import Task
from asyncstageout.catalogue.publication import (
    blocks_of_task,
    failed_publications,
    retry_publication,
    set_publication,
    task_publication,
)
from asyncstageout.catalogue.questions import task_exists
from asyncstageout.steps.recording import Summary, files, recorded

router = APIRouter(tags=["publication"])

CURSOR = "blocks"
_AGAIN = TaskAct()


@router.get("/tasks/{task}/publication", response_model=TaskPublication, summary="How far publication is")
def show_publication(caller: Asker, conn: Catalogue, task: Task) -> dict[str, Any]:
    """Tell how a task's files are published, how many are, and why others are not."""
    found = task_publication(conn, task, visible_to(caller))
    if found is None:
        raise no_task(task)
    return found


@router.put("/tasks/{task}/publication", response_model=TaskPublication, summary="Say how to publish a task")
def put_publication(caller: Asker, conn: Catalogue, task: Task, wish: PublicationWish) -> dict[str, Any]:
    """Say into which DBS, with which input and parents a task's files go, and whether more files come.

    The task is there from its first file on. Blocks that exist already keep their DBS.
    """
    visible = visible_to(caller)
    if not task_exists(conn, task, visible):
        raise no_task(task)

    def step(_: int) -> Summary:
        said = wish.model_dump(exclude_none=True)
        set_publication(conn, task, visible, **said)
        return Summary(f"{task}: {', '.join(f'{name} {value}' for name, value in said.items()) or 'nothing'}")

    recorded(conn, actor(caller, "publication"), step)
    return show_publication(caller, conn, task)


@router.get("/tasks/{task}/blocks", response_model=BlockPage, summary="List a task's blocks")
def list_blocks(
    caller: Asker,
    conn: Catalogue,
    task: Task,
    *,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    cursor: Cursor = None,
) -> dict[str, Any]:
    """List the blocks into which a task's files went, the newest first."""
    visible = visible_to(caller)
    if not task_exists(conn, task, visible):
        raise no_task(task)
    before_id = number_of_cursor(CURSOR, cursor)
    rows = blocks_of_task(conn, task, visible, limit=limit + 1, before_id=before_id)
    more = len(rows) > limit
    return {
        "blocks": rows[:limit],
        "next_cursor": cursor_after(CURSOR, rows[limit - 1]["id"]) if more else None,
    }


@router.post(
    "/tasks/{task}/publication/retry",
    response_model=PublicationRetried,
    summary="Publish a task's failed files again",
)
def retry_task_publication(
    caller: Asker, conn: Catalogue, task: Task, wish: Annotated[TaskAct, Body()] = _AGAIN
) -> dict[str, Any]:
    """Publish the files of a task again that arrived and whose publication was given up, 50,000 a call."""
    visible = visible_to(caller)
    if not task_exists(conn, task, visible):
        raise no_task(task)
    counts: list[int] = []

    def step(step_run: int) -> Summary:
        comment = f"published again by {caller.name}" + (f": {wish.comment}" if wish.comment else "")
        counts.append(retry_publication(conn, task, visible, comment=comment, step_run=step_run))
        return Summary(f"{task}: {files(counts[0])} go to DBS again", {"files": counts[0]})

    if wish.dry_run:
        counts.append(failed_publications(conn, task, visible))
    else:
        recorded(conn, actor(caller, "publication retry"), step)
    return {
        "sentence": f"{files(counts[0])} {'would' if wish.dry_run else 'will'} go to DBS again",
        "dry_run": wish.dry_run,
        "files": counts[0],
    }
