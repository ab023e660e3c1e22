"""Files: handed in, asked for, killed, sent again."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from fastapi.responses import Response, StreamingResponse
from psycopg import Connection
from pydantic import AwareDatetime
from pydantic_core import to_json
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from asyncstageout.api.acting import kill_files, send_again
from asyncstageout.api.callers import APIHouse, Asker, Catalogue
from asyncstageout.api.cursors import Cursor, cursor_after, number_of_cursor
from asyncstageout.api.limits import NDJSON, PAGE_ROWS
from asyncstageout.api.models import (
    ActAnswer,
    KillRequest,
    RetryRequest,
    SubmitAnswer,
    TransferDetail,
    TransferPage,
)
from asyncstageout.api.problems import Problem
from asyncstageout.api.scopes import refuse_selection, refuse_stranger, visible_to
from asyncstageout.api.streaming import LineAnswer, batches_of_lines
from asyncstageout.api.submitting import read_list, submit
from asyncstageout.catalogue.intake import OUTCOMES
from asyncstageout.catalogue.link_health import why_waiting
from asyncstageout.catalogue.lookup import Event, SideEvent, file_events, find_file, side_events
from asyncstageout.catalogue.questions import TransferFilter, jobs_of, newest_transfers
from asyncstageout.core.callers import Caller
from asyncstageout.core.planning import Link
from asyncstageout.core.prospects import remedy, what_next
from asyncstageout.core.requests import TransferRequest, read_json_requests
from asyncstageout.core.selections import SiteName, TaskName, UserName
from asyncstageout.core.states import PENDING_STATES, TransferState

router = APIRouter(tags=["transfers"])

CURSOR = "transfers"


def _request_schema() -> dict[str, Any]:
    """Return the schema of one request, whole: nothing else of the document refers to it."""
    schema = TransferRequest.model_json_schema()
    schema["properties"]["type"] = {**schema.pop("$defs")["FileType"], "default": "output"}
    schema["examples"] = [
        {
            "task": "261122_alice_task",
            "username": "alice",
            "source": "T2_IT_Bari",
            "destination": "T2_CH_CERN",
            "source_lfn": "/store/temp/user/alice.0a1b/mc/out_1.root",
            "destination_lfn": "/store/user/alice/mc/out_1.root",
            "size_bytes": 2_000_000_000,
            "adler32": "0a1b2c3d",
        }
    ]
    return schema


_LIST = {"type": "array", "maxItems": 10_000, "items": _request_schema()}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "anyOf": [
                        _LIST,
                        {"type": "object", "required": ["transfers"], "properties": {"transfers": _LIST}},
                    ]
                }
            },
            NDJSON: {"schema": {"type": "string", "description": "One request a line, however many."}},
        },
    }
}


@router.post(
    "/transfers",
    response_model=SubmitAnswer,
    responses={200: {"content": {NDJSON: {"schema": {"type": "string"}}}}},
    openapi_extra=_BODY,
    summary="Hand files in",
)
async def submit_transfers(request: Request, caller: Asker) -> Response:
    """Take files in, up to 10,000 as JSON or any number as lines, and say what became of each.

    Whoever says the same again is answered `exists`, and nothing changes: repeat what was not answered. With
    a higher `job_retry_count` it is a later retry of the job, and sends its file `again`. Lines are taken in
    10,000 at a time, each in a transaction of its own; their answer begins when all are in.
    """
    house: APIHouse = request.app.state.house
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() == NDJSON:
        return await _submit_lines(house, caller, request)
    body = await request.body()
    return Response(await run_in_threadpool(_submit_list, house, caller, body), media_type="application/json")


def _submit_list(house: APIHouse, caller: Caller, body: bytes) -> bytes:
    requests, refusals = read_list(body)
    with house.catalogue() as conn:
        results = submit(conn, caller, requests, refusals)
    counts = Counter(str(result["outcome"]) for result in results)
    return to_json({name: counts[name] for name in OUTCOMES} | {"results": results})


async def _submit_lines(house: APIHouse, caller: Caller, request: Request) -> Response:
    answer = LineAnswer()

    def take(lines: list[bytes], position: int) -> None:
        requests, refusals = read_json_requests(lines)
        with house.catalogue() as conn:
            results = submit(conn, caller, requests, refusals)
        answer.add({**result, "position": position + place} for place, result in enumerate(results))

    position = 0
    try:
        async for lines in batches_of_lines(request.stream()):
            await run_in_threadpool(take, lines, position)
            position += len(lines)
    except BaseException:
        answer.close()
        raise
    return StreamingResponse(answer.pieces(), media_type=NDJSON)


@router.get("/transfers", response_model=TransferPage, summary="List files")
def list_transfers(
    caller: Asker,
    conn: Catalogue,
    *,
    task: Annotated[TaskName | None, Query()] = None,
    username: Annotated[UserName | None, Query(description="The owner.")] = None,
    state: Annotated[list[TransferState] | None, Query(description="Any of these.")] = None,
    source: Annotated[SiteName | None, Query()] = None,
    destination: Annotated[SiteName | None, Query()] = None,
    since: Annotated[AwareDatetime | None, Query(description="Arrived then or later.")] = None,
    until: Annotated[AwareDatetime | None, Query(description="Arrived earlier.")] = None,
    limit: Annotated[int, Query(ge=1, le=PAGE_ROWS)] = 100,
    cursor: Cursor = None,
) -> dict[str, Any]:
    """List files, live and past, the newest first; those that arrive meanwhile do not shift the pages."""
    refuse_stranger(caller, username)
    where = TransferFilter(
        visible_to(caller), task, username, tuple(state) if state else None, source, destination, since, until
    )
    before_id = number_of_cursor(CURSOR, cursor)
    # One more than shown tells whether there is a next page.
    rows = newest_transfers(conn, where, limit=limit + 1, before_id=before_id)
    more = len(rows) > limit
    return {
        "transfers": rows[:limit],
        "next_cursor": cursor_after(CURSOR, rows[limit - 1]["id"]) if more else None,
    }


@router.get("/transfers/{file_id}", response_model=TransferDetail, summary="One file, with its history")
def show_transfer(
    caller: Asker,
    conn: Catalogue,
    file_id: Annotated[
        str, Path(pattern=r"^([0-9]{1,18}|[0-9a-f]{56})$", description="Its number or its request id.")
    ],
) -> dict[str, Any]:
    """Tell all about one file: where it is, why, what happened to it, who did it and what comes next."""
    file = find_file(conn, file_id)
    if file is None or not caller.may_act_for(file["username"]):
        raise Problem(404, f"There is no file {file_id}.", kind="no-such-file")
    now = datetime.now(UTC)
    held = _held(conn, file, now)
    meaning = remedy(file["failure_category"]) if file["failure_category"] else None
    return {
        **file,
        "what_next": what_next(file, now, held),
        "failure_meaning": meaning and meaning.meaning,
        "failure_remedy": meaning and meaning.action,
        "waits_because": held,
        "jobs": jobs_of(conn, file["id"]),
        "events": [_event(event) for event in file_events(conn, file["id"])],
        "side_events": [_side_event(event) for event in side_events(conn, file["id"])],
    }


def _held(conn: Connection, file: dict[str, Any], now: datetime) -> str | None:
    if TransferState(file["state"]) not in PENDING_STATES:
        return None
    link = Link(file["source"], file["destination"])
    return why_waiting(conn, link, file["identity"], now, file["activity"])


def _event(event: Event) -> dict[str, Any]:
    step = f"{event.dag_id}.{event.task_id}" if event.dag_id else event.task_id
    return {
        "at": event.at,
        "from_state": event.from_state,
        "to_state": event.to_state,
        "attempt": event.attempt,
        "reason": event.reason,
        "fts_job_id": event.fts_job_id,
        "actor": event.actor,
        "step": f"{step}[{event.map_index}]" if event.map_index >= 0 else step,
        "run_id": event.run_id,
    }


def _side_event(event: SideEvent) -> dict[str, Any]:
    step = f"{event.dag_id}.{event.task_id}" if event.dag_id else event.task_id
    return {**asdict(event), "step": step}


@router.post("/transfers/kill", response_model=ActAnswer, summary="Kill files")
def kill_transfers(caller: Asker, conn: Catalogue, wish: KillRequest) -> ActAnswer:
    """Stop files: what waits is `killed`; what FTS may have is `being_killed`, and ends as FTS says.

    The other outcomes: `already_killed`, `already_being_killed`, `too_late` (it had ended), `not_yours` (or
    not there), `left_over` (beyond 50,000 files: the same call again goes on).
    """
    refuse_selection(conn, caller, wish)
    return kill_files(conn, caller, wish, wish)


@router.post("/transfers/retry", response_model=ActAnswer, summary="Send files again")
def retry_transfers(caller: Asker, conn: Catalogue, wish: RetryRequest) -> ActAnswer:
    """Send files again that failed for good (`killed_too`: or were killed), with all their attempts.

    The outcomes: `sent_again`, `already_waiting`, `already_under_way`, `being_killed`, `killed`, `done`,
    `refused` (see `reasons`), `not_yours` (or not there), `left_over` (the same call again goes on).
    """
    refuse_selection(conn, caller, wish)
    return send_again(conn, caller, wish, wish)
