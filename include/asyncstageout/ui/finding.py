"""*Search*: leads from a name to the page of what is called so."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query
from fastapi.responses import RedirectResponse, Response
from psycopg import Connection

from asyncstageout.api.callers import Catalogue
from asyncstageout.api.scopes import visible_to
from asyncstageout.catalogue.finding import has_tasks, job_called, own_file_in
from asyncstageout.catalogue.lookup import find_file
from asyncstageout.catalogue.questions import task_exists
from asyncstageout.catalogue.site_sources import site_facts
from asyncstageout.core.callers import Caller
from asyncstageout.ui import places
from asyncstageout.ui.page import Looking

router = APIRouter()

Wanted = Annotated[str, Query(max_length=1200, pattern=r"^[^\x00]*$")]


@router.get("/search", name="search")
def search(page: Looking, conn: Catalogue, q: Wanted = "") -> Response:
    """Lead to the page of a task, user, file, FTS job or site, or say that there is none."""
    wanted = q.strip()
    place = found(conn, page.caller, wanted) if wanted else None
    if place is not None:
        return RedirectResponse(page.url(place), 303)
    return page.show("search.html", title="Search", q=wanted)


def found(conn: Connection, caller: Caller, wanted: str) -> str | None:
    """Return the place of what is called so and may be seen; None: there is nothing.

    An LFN is taken from within a URL, too.
    """
    if (at := wanted.find("/store/")) >= 0:
        return _file(conn, caller, wanted[at:])
    if job := _uuid(wanted):
        return _job(conn, caller, job)
    if task_exists(conn, wanted, visible_to(caller)):
        return places.task(wanted)
    if caller.may_act_for(wanted) and has_tasks(conn, wanted):
        return places.user(wanted)
    if caller.is_operator and site_facts(conn, [wanted]):
        return places.site(wanted)
    return _file(conn, caller, wanted)


def _file(conn: Connection, caller: Caller, wanted: str) -> str | None:
    file = find_file(conn, wanted)
    return places.file(file["id"]) if file and caller.may_act_for(file["username"]) else None


def _job(conn: Connection, caller: Caller, wanted: str) -> str | None:
    sid = job_called(conn, wanted)
    if sid is None or caller.is_operator:
        return sid and places.job(sid)
    number = own_file_in(conn, sid, visible_to(caller) or ())
    return None if number is None else places.file(number)


def _uuid(text: str) -> str | None:
    try:
        return str(UUID(text)) if len(text) == 36 else None
    except ValueError:
        return None
