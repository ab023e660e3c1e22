"""What publication wants to know of files: put by submitters, got by the publisher."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Body, Query

from asyncstageout.api.callers import Asker, Catalogue, actor
from asyncstageout.api.cursors import Cursor, cursor_after, key_of_cursor
from asyncstageout.api.limits import PAGE_ROWS
from asyncstageout.api.models import FileMetadata, MetadataAnswer, MetadataPage
from asyncstageout.api.scopes import no_task, visible_to
from asyncstageout.catalogue.file_metadata import Kept, Metadata, metadata_of_task, put_metadata
from asyncstageout.catalogue.questions import task_exists
from asyncstageout.core.callers import Caller
from asyncstageout.core.publication import facts_or_problem
from asyncstageout.core.selections import TaskName
from asyncstageout.steps.recording import Summary, files, recorded

router = APIRouter(tags=["metadata"])

CURSOR = "metadata"
RECORD_BYTES = 1024 * 1024


class _Unfit(ValueError):
    """A record that cannot be taken; the sentence says why."""


@router.put("/file-metadata", response_model=MetadataAnswer, summary="Say what publication needs")
def put_file_metadata(
    caller: Asker,
    conn: Catalogue,
    records: Annotated[list[FileMetadata], Body(min_length=1, max_length=1000)],
) -> dict[str, Any]:
    """Keep what is said of files, each until it is published; what is said again replaces what was said.

    It may come before the request for the file itself. Of two records for one file, the later one counts. One
    with which nothing can be published is kept too, and its `reason` says which field to mend.
    """
    results: list[Kept] = []
    good: list[tuple[int, Metadata]] = []
    for position, record in enumerate(records):
        username = record.username or caller.name
        try:
            his, text = _his(caller, username), _text(record.body)
            good.append(
                (position, Metadata(record.key, record.task, his, text, facts_or_problem(record.body)))
            )
        except _Unfit as error:
            results.append(Kept(position, record.key, "refused", str(error)))

    def step(step_run: int) -> Summary:
        kept = put_metadata(conn, [said for _, said in good], by=caller.name, step_run=step_run)
        results.extend(one._replace(position=good[one.position][0]) for one in kept)
        return Summary(f"Metadata of {files(len(good))}")

    if good:
        recorded(conn, actor(caller, "metadata"), step)
    return {"results": [one._asdict() for one in sorted(results)]}


def _his(caller: Caller, username: str) -> str:
    """Return the owner's name, if the caller may act for him."""
    if not caller.may_act_for(username):
        raise _Unfit(f"{caller.name} may not act for {username}")
    return username


def _text(body: Mapping[str, Any]) -> str:
    """Return metadata as JSON that the catalogue can keep."""
    try:
        text = json.dumps(body, allow_nan=False, ensure_ascii=False)
        size_bytes = len(text.encode())
    except ValueError as error:  # also what is no Unicode
        raise _Unfit("the metadata hold what JSON cannot say") from error
    if size_bytes > RECORD_BYTES:
        raise _Unfit(f"the metadata have {size_bytes:,} bytes; the limit is {RECORD_BYTES:,}")
    if r"\u0000" in text:
        raise _Unfit("the metadata hold a NUL character, which Postgres does not keep")
    return text


@router.get("/file-metadata", response_model=MetadataPage, summary="What was said of a task's files")
def get_file_metadata(
    caller: Asker,
    conn: Catalogue,
    *,
    task: Annotated[TaskName, Query()],
    limit: Annotated[int, Query(ge=1, le=PAGE_ROWS)] = 100,
    cursor: Cursor = None,
) -> dict[str, Any]:
    """Return what was said of a task's files, in the order of their request ids.

    A page may hold fewer than `limit`, where records are large: go on until there is no `next_cursor`.
    """
    visible = visible_to(caller)
    if not task_exists(conn, task, visible):
        raise no_task(task)
    after = key_of_cursor(CURSOR, cursor) if cursor else ""
    rows, more = metadata_of_task(conn, task, limit=limit, after=after)
    return {
        "file_metadata": rows,
        "next_cursor": cursor_after(CURSOR, rows[-1]["request_id"]) if more else None,
    }
