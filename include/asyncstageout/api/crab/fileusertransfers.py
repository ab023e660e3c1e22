"""``fileusertransfers``: what PostJob and users say and ask of their files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import APIRouter
from psycopg import Connection
from pydantic import ValidationError
from starlette.responses import Response

from asyncstageout.api.callers import Asker, Catalogue
from asyncstageout.api.crab import forms
from asyncstageout.api.crab.answers import CrabAnswer, modified, on_record, result, table
from asyncstageout.api.crab.forms import Form, Parameters, bad, crab_problem
from asyncstageout.api.crab.kills import kill_by_id, kill_task
from asyncstageout.api.crab.schema import form_in_body, form_in_query
from asyncstageout.api.scopes import visible_to
from asyncstageout.catalogue.crab import Said, insert_file, send_again
from asyncstageout.catalogue.crab_rows import PUBLICATION_STATUS, TRANSFER_STATUS, file_by_id, statuses
from asyncstageout.catalogue.retries_by_people import SENT_AGAIN, retry_files
from asyncstageout.core.callers import Caller
from asyncstageout.core.crab import INSERTED, PARAMETERS, Reinjection, as_record
from asyncstageout.core.requests import TransferRequest
from asyncstageout.core.selections import Selection
from asyncstageout.core.states import PublicationState, TransferState

router = APIRouter()

Call = Callable[[Caller, Connection, Form], Response]
R = TypeVar("R", TransferRequest, Reinjection)

FILE_TEXTS = ("destination", "destination_lfn", "type", "adler32", "vogroup", "vorole")
FILE_NUMBERS = {"filesize": 2**63 - 1, "job_retry_count": 32_767}


def _username(caller: Caller, form: Form) -> str:
    """Return whose files are meant, if the caller may act for him."""
    username = form.required("username", forms.USERNAME)
    if not caller.may_act_for(username):
        raise crab_problem(403, f"{caller.name} may not act for {username}.", kind="not-yours")
    return username


def _file(caller: Caller, form: Form, *texts: str) -> dict[str, Any]:
    """Return what is said of a file, in the words of ``core.requests``."""
    values: dict[str, Any] = {
        "taskname": form.required("taskname", forms.TASK),
        "username": _username(caller, form),
        **{name: form.required(name) for name in ("source", "source_lfn", "job_id")},
        **{name: form.text(name) for name in texts},
        **{name: form.required_number(name, most=most) for name, most in FILE_NUMBERS.items()},
    }
    return as_record(values)


def _said(form: Form) -> Said:
    state = form.word("transfer_state", TransferState)
    if state not in INSERTED:
        bad("transfer_state", f"is none of {', '.join(sorted(INSERTED))}")
    form.word("publication_state", PublicationState)
    return Said(
        start_time=form.required_number("start_time", most=99_999_999_999),
        state=state,
        publish=form.required_number("publish", most=1) == 1,
        dbs_blockname=form.text("dbs_blockname", forms.BLOCK),
        block_complete=form.text("block_complete", forms.STATUS),
    )


def _checked(model: type[R], record: dict[str, Any], form: Form) -> R:
    """Return a file that fits the rules, under the id that CRAB gave it."""
    try:
        request = model.model_validate(record)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = str(first["loc"][0]) if first["loc"] else "request"
        bad(PARAMETERS.get(field, field), first["msg"].removeprefix("Value error, "))
    if form.required("id", forms.ID) != request.request_id:
        bad("id", "is not the SHA-224 of source_lfn")
    return request


@router.put(
    "/fileusertransfers",
    responses={200: {"model": CrabAnswer}},
    summary="Insert a file",
    openapi_extra=form_in_body("id", "username", "taskname", "source", "source_lfn", "destination",
        "destination_lfn", "filesize", "publish", "transfer_state", "publication_state", "job_id",
        "job_retry_count", "type", "start_time"),
)  # fmt: skip
def crab_insert(instance: str, caller: Asker, conn: Catalogue, form: Parameters) -> Response:
    """Take one file in; the same call again changes nothing."""
    said = _said(form)
    record = _file(caller, form, *FILE_TEXTS) | {"publish": said.publish}
    request = _checked(TransferRequest, record, form)
    worker = form.text("asoworker", forms.WORKER)

    def do(step_run: int) -> tuple[str, int]:
        created = insert_file(conn, request, said, worker=worker, step_run=step_run)
        return f"{instance}: {request.request_id} {'inserted' if created else 'was there'}", int(created)

    on_record(conn, caller, "insert", do)
    return result()


def _update(caller: Caller, conn: Connection, form: Form) -> Response:
    said = _said(form)
    request = _checked(Reinjection, _file(caller, form, "adler32"), form)
    changed: list[bool] = []

    def do(step_run: int) -> tuple[str, int]:
        changed.append(send_again(conn, request, said, step_run=step_run))
        return f"{request.request_id} {'sent again' if changed[0] else 'was sent again before'}", changed[0]

    on_record(conn, caller, "updateDoc", do)
    return modified(1)


def _kill_task(caller: Caller, conn: Connection, form: Form) -> Response:
    username, task = _username(caller, form), form.required("taskname", forms.TASK)
    return modified(kill_task(conn, caller, username, task))


def _kill_by_id(caller: Caller, conn: Connection, form: Form) -> Response:
    username, ids = _username(caller, form), form.items("listOfIds") or []
    killed, failed = kill_by_id(conn, caller, ids, username=username)
    return result({"killed": killed, "failedKill": failed})


def _retry(caller: Caller, conn: Connection, form: Form) -> Response:
    username, task = _username(caller, form), form.required("taskname", forms.TASK)
    selection = Selection(task=task, username=username)
    counts: list[int] = []

    def do(step_run: int) -> tuple[str, int]:
        comment = f"sent again by {caller.name} through CRAB"
        outcomes = retry_files(conn, selection, visible_to(caller), comment=comment, step_run=step_run)
        counts.append(outcomes.counts.get(SENT_AGAIN, 0))
        return f"{task}: {counts[0]:,} sent again", counts[0]

    on_record(conn, caller, "retryTransfers", do)
    return modified(counts[0])


CHANGES: dict[str, Call] = {
    "updateDoc": _update,
    "killTransfers": _kill_task,
    "killTransfersById": _kill_by_id,
    "retryTransfers": _retry,
}


@router.post(
    "/fileusertransfers",
    responses={200: {"model": CrabAnswer}},
    summary="Send a file again, kill, retry",
    openapi_extra=form_in_body("username", "taskname", subresources=CHANGES),
)
def crab_change(instance: str, caller: Asker, conn: Catalogue, form: Parameters) -> Response:  # noqa: ARG001
    """Do what ``subresource`` says."""
    return _call(CHANGES, form)(caller, conn, form)


def _by_id(caller: Caller, conn: Connection, form: Form) -> Response:
    return table(file_by_id(conn, form.required("id"), visible_to(caller)))


def _status(columns: tuple[str, ...]) -> Call:
    def status(caller: Caller, conn: Connection, form: Form) -> Response:
        username, task = _username(caller, form), form.required("taskname", forms.TASK)
        return table(statuses(conn, columns, username, task, visible_to(caller)))

    return status


QUESTIONS: dict[str, Call] = {
    "getById": _by_id,
    "getTransferStatus": _status(TRANSFER_STATUS),
    "getPublicationStatus": _status(PUBLICATION_STATUS),
}


@router.get(
    "/fileusertransfers",
    responses={200: {"model": CrabAnswer}},
    summary="A file, or the states of a task's files",
    openapi_extra=form_in_query("id", "username", "taskname", subresources=QUESTIONS),
)
def crab_ask(instance: str, caller: Asker, conn: Catalogue, form: Parameters) -> Response:  # noqa: ARG001
    """Answer what ``subresource`` asks."""
    return _call(QUESTIONS, form)(caller, conn, form)


def _call(calls: dict[str, Call], form: Form) -> Call:
    name = form.required("subresource")
    return calls[name] if name in calls else bad("subresource", f"is none of {', '.join(calls)}")
