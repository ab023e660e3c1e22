"""*Users*: whose files wait, move, arrived and failed; and the page of one, with his tasks and failures."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path
from fastapi.responses import Response
from psycopg import Connection

from asyncstageout.api.callers import Catalogue, Operator
from asyncstageout.api.problems import Problem
from asyncstageout.catalogue.failed_attempts import Wanted, failed_attempts
from asyncstageout.catalogue.finding import has_tasks
from asyncstageout.catalogue.measures import ATTEMPTS
from asyncstageout.catalogue.queues import own_files
from asyncstageout.catalogue.queues_of_users import UserQueue, UserQueues, queues_of_users
from asyncstageout.catalogue.statistics import Kind, Of, by_subject, totals
from asyncstageout.ui import failures, places
from asyncstageout.ui.acting import on_user
from asyncstageout.ui.links import Search
from asyncstageout.ui.overview import delays, throughput
from asyncstageout.ui.page import Looking, Page
from asyncstageout.ui.tables import Column, Shown
from asyncstageout.ui.tasks import tasks_table

router = APIRouter()

MOST_USERS = 20_000
_COUNTS = ("arrived", "done", "done_bytes", "failed", "attempts_failed")

COLUMNS = (
    Column("username", "User", place=lambda row: places.user(row["username"])),
    Column("waiting", "Waiting", Shown.NUMBER),
    Column("oldest_due_at", "Oldest waiting", Shown.TIME, hint="Since when it could start"),
    Column("in_flight", "In flight", Shown.NUMBER),
    Column("arrived", "Arrived", Shown.NUMBER),
    Column("done", "Done", Shown.NUMBER),
    Column("done_bytes", "Volume", Shown.BYTES),
    Column("failed", "Failed", Shown.NUMBER, hint="Files that failed for good"),
    Column(
        "attempts_failed", "Failed attempts", Shown.NUMBER,
        place=lambda row: places.failures(user=row["username"]),
    ),
    Column("efficiency", "Efficiency", Shown.SHARE, hint="Attempts in FTS that went well"),
)  # fmt: skip


@router.get("/users", name="users")
def users(page: Looking, _: Operator, conn: Catalogue, q: Search = "") -> Response:
    """Show all users with anything to show."""
    found = queues_of_users(conn)
    rows = [row for row in _rows(page, conn, found) if q.strip().lower() in row["username"].lower()]
    table = page.table(
        "users", f"Users, {page.span.words}", COLUMNS, rows, sort=f"-{page.measure('done')}",
        empty="No user fits: nothing of theirs waits or moved. Take a longer time, or another name.",
    )  # fmt: skip
    return page.show("users.html", title="Users", tables=[table], q=q, found=found)


@router.get("/users/{username}", name="user")
def user_page(
    page: Looking, conn: Catalogue, username: Annotated[str, Path(pattern=r"^[^\x00/]{1,100}$")]
) -> Response:
    """Show all about one user: to operators, and to himself."""
    may = page.caller.may_act_for(username)
    if not may or not (username == page.caller.name or has_tasks(conn, username)):
        raise Problem(404, f"There is no user {username} whose files you may see.", kind="no-such-user")
    of, period = Of(Kind.USER, usernames=[username]), page.span.whole(page.now)
    own = own_files(conn, [username])
    look = failed_attempts(conn, Wanted(period.start, [username]))
    tables = [
        tasks_table(page, conn, [username], "Tasks"),
        page.table(
            "reasons", f"Why his files failed, {page.span.words}", failures.OWN_REASONS,
            failures.by_reason(look), sort="-attempts", per_page=10,
            empty="No file of his failed or waits for another attempt.",
        ),
    ]  # fmt: skip
    return page.show(
        "user.html", title=username, tables=tables, username=username, own=own, look=look,
        found=totals(conn, period, of), charts=(throughput(page, conn, of), delays(page, conn, of)),
        acts=on_user(username, own.states),
    )  # fmt: skip


def _rows(page: Page, conn: Connection, found: UserQueues) -> list[dict[str, Any]]:
    period = page.span.whole(page.now)
    moved = {
        row["subject"]: row
        for row in by_subject(conn, period, Of(Kind.USER), limit=MOST_USERS, columns=(*_COUNTS, *ATTEMPTS))
    }
    rows = []
    for username in moved | dict.fromkeys(found.by_user):
        queue, counts = found.by_user.get(username, UserQueue()), moved.get(username)
        rows.append(
            {
                "username": username,
                **queue._asdict(),
                **{name: counts[name] if counts else 0 for name in _COUNTS},
                "efficiency": counts["efficiency"] if counts else None,
            }
        )
    return rows
