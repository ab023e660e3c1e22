"""``filetransfers``: what workers that move or publish files take, report and ask."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from fastapi import APIRouter
from psycopg import Connection
from starlette.responses import Response

from asyncstageout.api.callers import Asker, Catalogue
from asyncstageout.api.crab import forms
from asyncstageout.api.crab.answers import CrabAnswer, modified, on_record, table, told
from asyncstageout.api.crab.forms import Form, Parameters, bad, crab_problem
from asyncstageout.api.crab.kills import kill_by_id
from asyncstageout.api.crab.schema import form_in_body, form_in_query
from asyncstageout.api.scopes import visible_to
from asyncstageout.catalogue import crab, crab_rows
from asyncstageout.catalogue.crab import BlockWord, PublicationWord, Word
from asyncstageout.catalogue.selected import Visible
from asyncstageout.core.callers import Caller, Role
from asyncstageout.core.states import PublicationState, TransferState

router = APIRouter()

SMALLINT = 32_767


class Call(NamedTuple):
    """One subresource."""

    run: Callable[[Caller, Connection, Form], Response]
    is_users: bool = False
    """Users may call it, for their own files: PostJob and the scripts beside it run with the user's proxy."""


def _worker(form: Form) -> str:
    return form.required("asoworker", forms.WORKER)


def _ids(form: Form) -> list[str]:
    return form.items("list_of_ids") or bad("list_of_ids", "is missing")


def _count(subresource: str, change: Callable[[Connection, Form, Visible, int], int]) -> Call:
    """Return a call that changes as many files as there are."""

    def run(caller: Caller, conn: Connection, form: Form) -> Response:
        worker, counts = _worker(form), []

        def do(step_run: int) -> tuple[str, int]:
            counts.append(change(conn, form, visible_to(caller), step_run))
            return f"{worker}: {counts[0]:,} files", counts[0]

        on_record(conn, caller, subresource, do)
        return modified(counts[0])

    return Call(run)


def _named(subresource: str, change: Callable[[Connection, Form, Visible, int], list[str]]) -> Call:
    """Return a call that changes the files that it names."""

    def run(caller: Caller, conn: Connection, form: Form) -> Response:
        worker, ids, done = _worker(form), _ids(form), []

        def do(step_run: int) -> tuple[str, int]:
            done.extend(change(conn, form, visible_to(caller), step_run))
            return f"{worker}: {len(done):,} of {len(ids):,} files", len(done)

        on_record(conn, caller, subresource, do)
        return told(ids, done)

    return Call(run, is_users=True)


def _acquire(conn: Connection, form: Form, visible: Visible, step_run: int) -> int:
    username = form.text("username", forms.USERNAME)
    return crab.acquire_transfers(conn, _worker(form), username, visible, step_run)


def _acquire_publication(conn: Connection, form: Form, visible: Visible, step_run: int) -> int:
    return crab.acquire_publication(conn, _worker(form), visible, step_run)


def _retry(conn: Connection, form: Form, visible: Visible, step_run: int) -> int:
    cooled_s = form.required_number("time_to", most=10**9)
    return crab.retry_transfers(conn, _worker(form), cooled_s, visible, step_run)


def _retry_publication(conn: Connection, form: Form, visible: Visible, step_run: int) -> int:
    cooled_s = form.required_number("time_to", most=10**9)
    return crab.retry_publication(conn, _worker(form), cooled_s, visible, step_run)


def _update(conn: Connection, form: Form, visible: Visible, step_run: int) -> list[str]:
    ids = _ids(form)
    columns = zip(
        ids,
        form.words("list_of_transfer_state", TransferState, len(ids)),
        form.column("list_of_failure_reason", len(ids)),
        form.column("list_of_fts_instance", len(ids)),
        form.column("list_of_fts_id", len(ids)),
        strict=True,
    )
    return crab.tell_transfers(conn, _worker(form), [Word(*row) for row in columns], visible, step_run)


def _update_publication(conn: Connection, form: Form, visible: Visible, step_run: int) -> list[str]:
    ids = _ids(form)
    columns = zip(
        ids,
        form.words("list_of_publication_state", PublicationState, len(ids)),
        form.column("list_of_failure_reason", len(ids)),
        form.numbers("list_of_retry_value", len(ids), most=SMALLINT),
        strict=True,
    )
    flag = form.number("publish_flag", most=1)
    words = [PublicationWord(*row) for row in columns]
    return crab.tell_publication(
        conn, _worker(form), words, visible, step_run, publish=None if flag is None else flag == 1
    )


def _update_blocks(conn: Connection, form: Form, visible: Visible, _step_run: int) -> list[str]:
    ids = _ids(form)
    names = ("list_of_dbs_blockname", "list_of_block_complete", "list_of_fts_instance", "list_of_fts_id")
    columns = zip(ids, *(form.column(name, len(ids)) for name in names), strict=True)
    return crab.tell_blocks(conn, _worker(form), [BlockWord(*row) for row in columns], visible)


def _kill(caller: Caller, conn: Connection, form: Form) -> Response:
    ids = _ids(form)
    killed, _ = kill_by_id(conn, caller, ids)
    return told(ids, killed)


CHANGES: dict[str, Call] = {
    "acquireTransfers": _count("acquireTransfers", _acquire),
    "acquirePublication": _count("acquirePublication", _acquire_publication),
    "updateTransfers": _named("updateTransfers", _update),
    "updateRucioInfo": _named("updateRucioInfo", _update_blocks),
    "updatePublication": _named("updatePublication", _update_publication),
    "retryPublication": _count("retryPublication", _retry_publication),
    "retryTransfers": _count("retryTransfers", _retry),
    "killTransfers": Call(_kill, is_users=True),
}

CHANGED_BY = ("asoworker", "username", "list_of_ids", "list_of_transfer_state", "list_of_failure_reason",
    "list_of_retry_value", "list_of_fts_instance", "list_of_fts_id", "list_of_publication_state",
    "publish_flag", "list_of_dbs_blockname", "list_of_block_complete", "time_to")  # fmt: skip


@router.post(
    "/filetransfers",
    responses={200: {"model": CrabAnswer}},
    summary="Take files, report what became of them",
    openapi_extra=form_in_body(*CHANGED_BY, subresources=CHANGES),
)
def crab_worker_change(instance: str, caller: Asker, conn: Catalogue, form: Parameters) -> Response:  # noqa: ARG001
    """Do what ``subresource`` says."""
    return _call(CHANGES, caller, form)(caller, conn, form)


def _limit(form: Form, most: int = crab_rows.MAX_ROWS, default: int = crab_rows.DEFAULT_ROWS) -> int:
    return min(form.number("limit") or default, most)


def _grouping(form: Form, most: int) -> int:
    return form.required_number("grouping", most=most)


def _acquired(caller: Caller, conn: Connection, form: Form) -> Response:
    grouping = _grouping(form, 3)
    exactly: dict[str, str | None] = {}
    if grouping == 1:
        exactly = {
            "username": form.required("username", forms.USERNAME),
            "vo_group": form.text("vogroup") or "",
            "vo_role": form.text("vorole") or "",
        }
    elif grouping >= 2:
        exactly["source"] = form.required("source", forms.SITE)
    if grouping == 3:
        exactly["destination"] = form.required("destination", forms.SITE)
    return table(
        crab_rows.files_of_worker(
            conn, crab_rows.ACQUIRED, _worker(form), _limit(form), visible_to(caller), exactly=exactly
        )
    )


def _acquired_publication(caller: Caller, conn: Connection, form: Form) -> Response:
    username = form.required("username", forms.USERNAME) if _grouping(form, 1) else None
    return table(
        crab_rows.files_of_worker(
            conn, crab_rows.ACQUIRED_PUBLICATION, _worker(form), _limit(form), visible_to(caller),
            exactly={"username": username}, of_publication=True,
        )
    )  # fmt: skip


def _to_kill(caller: Caller, conn: Connection, form: Form) -> Response:
    _grouping(form, 0)
    limit = _limit(form, crab_rows.MAX_ROWS_TO_KILL, crab_rows.MAX_ROWS_TO_KILL)
    visible = visible_to(caller)
    return table(crab_rows.files_of_worker(conn, crab_rows.TO_KILL, _worker(form), limit, visible))


def _voms(caller: Caller, conn: Connection, form: Form) -> Response:
    return table(crab_rows.voms_attributes(conn, form.required("taskname", forms.TASK), visible_to(caller)))


def _active(*, of_publication: bool) -> Call:
    def run(caller: Caller, conn: Connection, form: Form) -> Response:
        visible = visible_to(caller)
        return table(crab_rows.active_users(conn, _worker(form), visible, of_publication=of_publication))

    return Call(run)


PATTERNS = {
    "tm_username": ("username", "username", forms.USERNAME),
    "tm_taskname": ("taskname", "task", forms.TASK),
    "tm_source": ("source", "source", forms.SITE),
    "tm_destination": ("destination", "destination", forms.SITE),
}


def _statistics(state: str, groupings: int) -> Call:
    def run(caller: Caller, conn: Connection, form: Form) -> Response:
        by = crab_rows.GROUPS[_grouping(form, groupings - 1)]
        exactly: dict[str, str | None] = {}
        for column in by[1:]:
            parameter, name, pattern = PATTERNS[column]
            exactly[name] = form.required(parameter, pattern)
        if len(by) > 1:
            exactly["worker"] = form.text("asoworker", forms.WORKER)
            by = by if exactly["worker"] else by[1:]
        return table(crab_rows.statistics(conn, state, by, visible_to(caller), exactly))

    return Call(run, is_users=True)


QUESTIONS: dict[str, Call] = {
    "acquiredTransfers": Call(_acquired),
    "acquiredPublication": Call(_acquired_publication),
    "getTransfersToKill": Call(_to_kill),
    "getVOMSAttributesForTask": Call(_voms, is_users=True),
    "activeUsers": _active(of_publication=False),
    "activeUserPublications": _active(of_publication=True),
    "groupedTransferStatistics": _statistics("tm_transfer_state", len(crab_rows.GROUPS)),
    "groupedPublishStatistics": _statistics("tm_publication_state", 3),
}


@router.get(
    "/filetransfers",
    responses={200: {"model": CrabAnswer}},
    summary="What a worker has taken, and how many files there are",
    openapi_extra=form_in_query("asoworker", "grouping", "limit", "username", "vogroup", "vorole", "taskname",
        "source", "destination", subresources=QUESTIONS),
)  # fmt: skip
def crab_worker_ask(instance: str, caller: Asker, conn: Catalogue, form: Parameters) -> Response:  # noqa: ARG001
    """Answer what ``subresource`` asks."""
    return _call(QUESTIONS, caller, form)(caller, conn, form)


def _call(
    calls: dict[str, Call], caller: Caller, form: Form
) -> Callable[[Caller, Connection, Form], Response]:
    name = form.required("subresource")
    call = calls[name] if name in calls else bad("subresource", f"is none of {', '.join(calls)}")
    if caller.role is Role.USER and not call.is_users:
        raise crab_problem(403, f"{name} is for submitting services and operators.", kind="services-only")
    return call.run
