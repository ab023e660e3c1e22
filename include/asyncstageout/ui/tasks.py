"""*Tasks*: the newest, of everybody or one's own; and the page of one, with its failures and files."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, NamedTuple

from fastapi import APIRouter, Path, Query
from fastapi.responses import Response
from psycopg import Connection

from asyncstageout.api.callers import Catalogue
from asyncstageout.api.cursors import cursor_after, number_of_cursor
from asyncstageout.api.scopes import no_task, refuse_stranger, visible_to
from asyncstageout.catalogue.failed_attempts import Wanted, failed_attempts
from asyncstageout.catalogue.publication import blocks_of_task, task_publication
from asyncstageout.catalogue.questions import TransferFilter, newest_tasks, newest_transfers, task_summary
from asyncstageout.core.states import FINAL_STATES, IN_FLIGHT_STATES, PENDING_STATES, TransferState
from asyncstageout.ui import failures, places
from asyncstageout.ui.acting import on_task, publishing_again
from asyncstageout.ui.page import Looking, Page
from asyncstageout.ui.tables import Column, Row, Shown, Table

router = APIRouter()

TASKS_PER_PAGE = 20
"""The files of each are counted."""
FILES_PER_PAGE = 25
BLOCKS_SHOWN = 200
CSV_PAGE = 1000
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)

TaskText = Annotated[str, Path(pattern=r"^[^\x00/]{1,255}$")]
User = Annotated[str, Query(max_length=100, pattern=r"^[^\x00]*$")]
STATES = (("", "Any"), *((state.value, state.value) for state in TransferState))

COLUMNS = (
    Column("task", "Task", Shown.CODE, place=lambda row: places.task(row["task"])),
    Column("username", "User", place=lambda row: places.user(row["username"])),
    Column("created_at", "Since", Shown.TIME),
    Column("files", "Files", Shown.NUMBER),
    Column("waiting", "Waiting", Shown.NUMBER),
    Column("in_flight", "In flight", Shown.NUMBER),
    Column("done", "Done", Shown.NUMBER),
    Column("failed", "Failed", Shown.NUMBER),
    Column("killed", "Killed", Shown.NUMBER),
    Column("ended", "Ended", Shown.SHARE, hint="Files that have ended, however they did"),
)
_FILES = (
    Column("destination_lfn", "Destination LFN", Shown.CODE, place=lambda row: places.file(row["id"])),
    Column("state", "State", Shown.STATE),
    Column("link", "Link"),
    Column("size_bytes", "Size", Shown.BYTES),
    Column("attempt", "Attempts", Shown.NUMBER),
    Column("publication", "Publication"),
    Column("failure_reason", "Reason", Shown.CODE),
    Column("updated_at", "Since", Shown.TIME),
)
_BLOCKS = (
    Column("name", "Block", Shown.CODE),
    Column("state", "State"),
    Column("files", "Files", Shown.NUMBER),
    Column("size_bytes", "Size", Shown.BYTES),
    Column("dbs", "DBS"),
    Column("opened_at", "Opened", Shown.TIME),
    Column("due_at", "Next look", Shown.TIME),
    Column("settled_at", "Settled", Shown.TIME),
    Column("tries", "Refusals", Shown.NUMBER),
    Column("reason", "Reason", Shown.CODE),
)
_UNPUBLISHED = (
    Column("reason", "Why", Shown.CODE),
    Column("files", "Files", Shown.NUMBER),
    Column("blocks", "Blocks", Shown.NUMBER),
)


class Share(NamedTuple):
    """A part of the bar of progress."""

    state: str
    x: float
    """Percent."""
    width: float
    files: int


@router.get("/tasks", name="tasks")
def tasks(page: Looking, conn: Catalogue, user: User = "") -> Response:
    """Show the newest tasks: of everybody to operators, his own to a user."""
    username = user.strip() or None
    refuse_stranger(page.caller, username)
    visible = [username] if username else visible_to(page.caller)
    title = "Tasks" if page.caller.sees_everybody else "Your tasks"
    whose = f" of {username}" if username else ""
    table = tasks_table(page, conn, visible, f"{title}{whose}, the newest first")
    return page.show("tasks.html", title=title, tables=[table], user=user)


@router.get("/tasks/{task}", name="task")
def task_page(
    page: Looking, conn: Catalogue, task: TaskText, state: TransferState | Literal[""] = ""
) -> Response:
    """Show how far one task is, what of it failed and why, and its files."""
    visible = visible_to(page.caller)
    found = task_summary(conn, task, visible)
    publication = task_publication(conn, task, visible)
    if found is None or publication is None:
        raise no_task(task)
    look = failed_attempts(conn, Wanted(LONG_AGO, task=task))
    tables = [
        _files_table(page, conn, task, TransferState(state) if state else None),
        page.table(
            "reasons", "Why files failed", failures.OWN_REASONS, failures.by_reason(look), sort="-attempts",
            per_page=20, empty="No file failed or waits for another attempt.",
        ),
        page.table(
            "blocks", f"Its blocks, up to the newest {BLOCKS_SHOWN}", _BLOCKS,
            blocks_of_task(conn, task, visible, limit=BLOCKS_SHOWN), sort="-opened_at", per_page=10,
            empty="No file of it went into a block.",
        ),
        page.table(
            "unpublished", "Why files are not published", _UNPUBLISHED, _unpublished(publication),
            sort="-files", empty="Nothing that was to be published was refused.",
        ),
    ]  # fmt: skip
    return page.show(
        "task.html", title=task, tables=tables, task=found, publication=publication, look=look,
        is_published=bool(found["publication"].keys() - {"NOT_REQUIRED"}),
        bar=progress(found["states"]), counts=grouped(found["states"]),
        acts=on_task(task, found["states"]), states=STATES, state=str(state),
        again=publishing_again(task) if publication["files"].get("FAILED") else None,
    )  # fmt: skip


def tasks_table(page: Page, conn: Connection, visible: Collection[str] | None, caption: str) -> Table:
    """Return the newest tasks of some users, or of everybody."""

    def pages() -> Iterator[Row]:
        before_id = None
        while found := newest_tasks(conn, visible, limit=CSV_PAGE // 10, before_id=before_id):
            yield from map(_task_row, found)
            before_id = found[-1]["id"]

    before_id = number_of_cursor("tasks", page.cursor("tasks"))
    rows = newest_tasks(conn, visible, limit=TASKS_PER_PAGE + 1, before_id=before_id)
    return page.listing(
        "tasks", caption, COLUMNS, list(map(_task_row, rows[:TASKS_PER_PAGE])),
        next_cursor=_next_cursor("tasks", rows, TASKS_PER_PAGE), everything=pages,
        empty="There is no task yet: the first file makes one.",
    )  # fmt: skip


def grouped(states: Mapping[str, int]) -> dict[str, int]:
    """Return how many files wait, are in flight, and ended how."""
    pending, flying = {state.value for state in PENDING_STATES}, {state.value for state in IN_FLIGHT_STATES}
    return {
        "waiting": sum(n for state, n in states.items() if state in pending),
        "in_flight": sum(n for state, n in states.items() if state in flying),
        "done": states.get("DONE", 0),
        "failed": states.get("FAILED", 0),
        "killed": states.get("KILLED", 0) + states.get("KILL", 0),
    }


def progress(states: Mapping[str, int]) -> list[Share]:
    """Return the parts of the bar, the ended ones first.

    >>> [(one.state, one.x, one.width) for one in progress({"NEW": 1, "DONE": 3})]
    [('DONE', 0.0, 75.0), ('NEW', 75.0, 25.0)]
    """
    total, x, parts = sum(states.values()) or 1, 0.0, []
    for state in ("DONE", "FAILED", "KILLED", "KILL", "SUBMITTED", "ACQUIRED", "RETRY", "NEW"):
        if files := states.get(state, 0):
            width = 100 * files / total
            parts.append(Share(state, round(x, 3), round(width, 3), files))
            x += width
    return parts


def _task_row(row: Row) -> dict[str, Any]:
    ended = sum(row["states"].get(state.value, 0) for state in FINAL_STATES)
    return {**row, **grouped(row["states"]), "ended": ended / row["files"] if row["files"] else None}


def _files_table(page: Page, conn: Connection, task: str, state: TransferState | None) -> Table:
    where = TransferFilter(task=task, states=(state,) if state else None)

    def pages() -> Iterator[Row]:
        before_id = None
        while found := newest_transfers(conn, where, limit=CSV_PAGE, before_id=before_id):
            yield from map(_file_row, found)
            before_id = found[-1]["id"]

    before_id = number_of_cursor("files", page.cursor("files"))
    rows = newest_transfers(conn, where, limit=FILES_PER_PAGE + 1, before_id=before_id)
    return page.listing(
        "files", "Its files, the newest first", _FILES,
        list(map(_file_row, rows[:FILES_PER_PAGE])),
        next_cursor=_next_cursor("files", rows, FILES_PER_PAGE), everything=pages,
        empty="No file is in this state. Choose another one.",
    )  # fmt: skip


def _file_row(row: Row) -> dict[str, Any]:
    return {**row, "link": f"{row['source']} → {row['destination']}"}


def _next_cursor(kind: str, rows: Sequence[Row], shown: int) -> str | None:
    """Return the cursor of the page behind; of which a row more than is shown tells."""
    return cursor_after(kind, rows[shown - 1]["id"]) if len(rows) > shown else None


def _unpublished(publication: Row) -> list[dict[str, Any]]:
    """Return a row for each reason for which files, or whole blocks, are not published."""
    files = [{**one, "reason": one["reason"] or "no reason is on record", "blocks": None}
             for one in publication["failures"]]  # fmt: skip
    return files + [{**one, "files": None} for one in publication["waiting"]]
