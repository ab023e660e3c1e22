"""*File*: everything about one file, live or past: where it is, why, what comes next, all that happened."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from functools import cache
from operator import itemgetter
from typing import Annotated, Any

from fastapi import APIRouter, Path
from fastapi.responses import Response
from psycopg import Connection

from asyncstageout.api.callers import APIHouse, Catalogue
from asyncstageout.api.problems import Problem
from asyncstageout.catalogue.around_file import block_of, copies_of, crab_record_of, messages_of
from asyncstageout.catalogue.link_health import why_waiting
from asyncstageout.catalogue.lookup import Event, SideEvent, file_events, find_file, side_events
from asyncstageout.catalogue.questions import jobs_of
from asyncstageout.core.planning import Link
from asyncstageout.core.prospects import remedy, what_next, where_it_is
from asyncstageout.core.states import FINAL_STATES, PENDING_STATES, TransferState
from asyncstageout.ui import places
from asyncstageout.ui.acting import on_file
from asyncstageout.ui.page import Looking, Page
from asyncstageout.ui.tables import Column, Row, Shown

router = APIRouter()

FileId = Annotated[str, Path(pattern=r"^([0-9]{1,18}|[0-9a-f]{56})$")]

_MESSAGES = (
    Column("subscription", "Subscription"),
    Column("event", "What it is to hear"),
    Column("at", "Of when", Shown.TIME),
    Column("due_at", "Next try", Shown.TIME),
    Column("tries", "Tries", Shown.NUMBER),
    Column("problem", "Problem"),
)


@router.get("/files/{file_id}", name="file")
def file_page(page: Looking, conn: Catalogue, file_id: FileId) -> Response:
    """Show one file, by its number or its request id."""
    file = find_file(conn, file_id)
    if file is None or not page.caller.may_act_for(file["username"]):
        raise Problem(404, f"There is no file {file_id}.", kind="no-such-file")
    state, events = TransferState(file["state"]), file_events(conn, file["id"])
    held = _held(conn, file, state, page.now)
    tried = attempts(events, jobs_of(conn, file["id"]))
    tables = [
        page.table(
            "attempts", "Attempts in FTS", _attempt_columns(page), tried, sort="-planned_at",
            empty="It never was in an FTS job.",
        ),
        page.table(
            "history", "All that happened to it", _history_columns(page),
            history(events, side_events(conn, file["id"])), sort="at", per_page=200,
            empty="Its history is over: events are kept as long as `aso retention` says.",
        ),
        page.table(
            "messages", "Who waits to hear of it", _MESSAGES,
            [_message(row) for row in messages_of(conn, file["id"])], sort="at",
            empty="Nobody: whoever subscribed has heard all.",
        ),
    ]  # fmt: skip
    return page.show(
        "file.html", title=file["destination_lfn"].rpartition("/")[2], tables=tables, file=file, held=held,
        where=where_it_is(file), next=what_next(file, page.now, held),
        known=remedy(file["failure_category"]) if file["failure_category"] else None,
        block=block_of(conn, file["block_id"]), copies=copies_of(conn, file["id"]),
        crab=crab_record_of(conn, file["id"]), acts=on_file(file["id"], state),
        is_final=state in FINAL_STATES, shows_jobs=page.caller.is_operator,
    )  # fmt: skip


def attempts(events: Iterable[Event], jobs: Iterable[Row]) -> list[dict[str, Any]]:
    """Return a row for each FTS job that a file was in, with what came of it."""
    rows = {
        job["sid"]: {
            "sid": job["sid"],
            "job": str(job["fts_job_id"]) if job["fts_job_id"] else "not confirmed",
            "fts_job_id": job["fts_job_id"],
            "fts_server": job["fts_server"],
            "planned_at": job["planned_at"],
            "submitted_at": job["submitted_at"],
            **dict.fromkeys(("attempt", "ended_at", "took_s", "state", "category", "reason", "action")),
        }
        for job in jobs
    }
    for event in events:
        row = rows.get(event.sid)
        if row is None:
            continue
        row["state"] = event.to_state
        if event.to_state == "SUBMITTED":
            row["attempt"] = event.attempt
        elif event.to_state not in ("ACQUIRED", "KILL"):
            row |= {
                "ended_at": event.at,
                "took_s": (event.at - (row["submitted_at"] or row["planned_at"])).total_seconds(),
                "category": event.failure_category,
                "reason": event.reason,
                "action": remedy(event.failure_category).action if event.failure_category else None,
            }
    return list(rows.values())


def history(events: Iterable[Event], beside: Iterable[SideEvent]) -> list[dict[str, Any]]:
    """Return a row for each move of a file and for each thing around it, in their order."""
    rows = [_move(event) for event in events] + [_beside(event) for event in beside]
    return sorted(rows, key=itemgetter("at"))


def _move(event: Event) -> dict[str, Any]:
    return {
        "at": event.at,
        "kind": "transfer",
        "state": event.to_state,
        "what": str(event.fts_job_id or ""),
        "sid": event.sid,
        **_who(event),
    }


def _beside(event: SideEvent) -> dict[str, Any]:
    return {
        "at": event.at,
        "kind": event.kind,
        "state": event.to_state,
        "what": event.subject or "",
        "sid": None,
        **_who(event),
    }


def _who(event: Event | SideEvent) -> dict[str, Any]:
    if event.dag_id is None:
        by = f"{event.task_id}, by {event.actor}"
    else:
        part = f"[{event.map_index}]" if event.map_index >= 0 else ""
        person = "" if event.actor == "airflow" else f", by {event.actor}"
        by = f"{event.dag_id}.{event.task_id}{part}, try {event.try_number}{person}"
    step = (event.dag_id, event.run_id, event.task_id, event.map_index, event.try_number)
    return {"by": by, "run_id": event.run_id or "", "step": step, "reason": event.reason}


def _attempt_columns(page: Page) -> tuple[Column, ...]:
    monitored = _monitored(page)
    return (
        Column("attempt", "Attempt", Shown.NUMBER),
        Column("state", "What came of it", Shown.STATE),
        Column("job", "FTS job", Shown.CODE, place=_job_place(page)),
        Column("fts_server", "FTS server", out=monitored, hint="Leads to its monitor"),
        Column("planned_at", "Planned", Shown.TIME),
        Column("ended_at", "Ended", Shown.TIME),
        Column("took_s", "Took", Shown.SECONDS),
        Column("category", "Category"),
        Column("reason", "Reason", Shown.CODE),
        Column("action", "What helps"),
    )


def _history_columns(page: Page) -> tuple[Column, ...]:
    def log(row: Row) -> str | None:
        dag_id, run_id, *rest = row["step"]
        return page.airflow(places.log(dag_id, run_id, *rest)) if dag_id and run_id else None

    return (
        Column("at", "When", Shown.MOMENT),
        Column("kind", "What"),
        Column("state", "Became", Shown.STATE),
        Column("by", "By, with its log", out=log),
        Column("what", "FTS job, block, site", Shown.CODE, place=_job_place(page)),
        Column("reason", "Why", Shown.CODE),
        Column("run_id", "Run", Shown.CODE),
    )


def _job_place(page: Page) -> Callable[[Row], str | None]:
    """Jobs hold files of many users: their pages are for operators."""
    return lambda row: places.job(row["sid"]) if row["sid"] and page.caller.is_operator else None


def _monitored(page: Page) -> Callable[[Row], str | None]:
    house: APIHouse = page.request.app.state.house
    monitor = cache(house.fts_monitor)
    return lambda row: monitor(row["fts_server"], str(row["fts_job_id"])) if row["fts_job_id"] else None


def _held(conn: Connection, file: Row, state: TransferState, now: datetime) -> str | None:
    if state not in PENDING_STATES:
        return None
    link = Link(file["source"], file["destination"])
    return why_waiting(conn, link, file["identity"], now, file["activity"])


def _message(row: Row) -> dict[str, Any]:
    return {
        **row,
        "event": f"{row['event_kind']} {row['to_state']}",
        "due_at": None if row["dead_at"] else row["due_at"],
        "problem": f"given up: {row['problem']}" if row["dead_at"] else row["problem"],
    }
