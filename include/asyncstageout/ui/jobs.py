"""*FTS jobs*: what is open, in doubt, slow or over; and the page of one, with its files and who made it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit
from uuid import UUID

from fastapi import APIRouter, Query
from fastapi.responses import Response
from psycopg import Connection

from asyncstageout.api.callers import APIHouse, Catalogue, Operator
from asyncstageout.api.cursors import cursor_after, key_of_cursor
from asyncstageout.api.problems import Problem
from asyncstageout.catalogue.fts_servers import servers
from asyncstageout.catalogue.job_views import (
    OPEN_SHOWN,
    EndedAt,
    JobFilter,
    ended_jobs,
    files_of_job,
    find_job,
    open_jobs,
    steps_of_job,
    usual_s,
)
from asyncstageout.catalogue.repairs import UNPOLLED_S
from asyncstageout.catalogue.site_sources import site_facts
from asyncstageout.core.planning import Link
from asyncstageout.core.slow_jobs import AFTER_S, RULE, is_slow
from asyncstageout.ui import places
from asyncstageout.ui.conditions import Condition
from asyncstageout.ui.page import Looking, Page
from asyncstageout.ui.tables import CSV_BATCH, ROWS_PER_PAGE, Column, Row, Shown, Table
from asyncstageout.ui.words import duration

router = APIRouter()

Show = Literal["open", "doubt", "slow", "ended"]
SHOWS: Mapping[Show, str] = {"open": "Open", "doubt": "In doubt", "slow": "Slow", "ended": "Ended"}
EMPTY: Mapping[Show, str] = {
    "open": "Nothing is under way. Cycles say what waits, and why.",
    "doubt": "FTS has confirmed every job, and somebody asks about each of them.",
    "slow": "No job takes much longer than others on its link.",
    "ended": "No job ended in this time. A longer one may show some.",
}
Name = Annotated[str, Query(max_length=255, pattern=r"^[^\x00]*$")]
CURSOR = "jobs"
IN_DOUBT = frozenset({"not confirmed", "nobody asks", "unknown to FTS"})
SLOW = "slow"
ENDINGS: Mapping[str, Condition] = {
    "FAILED": Condition("failed", "bad", "FTS copied none of its files"),
    "FINISHEDDIRTY": Condition("partly failed", "warning", "FTS did not copy all of its files"),
    "CANCELED": Condition("cancelled", "note", "FTS was told to stop it"),
}

COLUMNS = (
    Column("job", "FTS job", Shown.CODE, place=lambda row: places.job(row["sid"])),
    Column("link", "Link", place=lambda row: places.link(row["source"], row["destination"])),
    Column("conditions", "Condition", Shown.CONDITIONS),
    Column("said", "State", hint="What FTS said last; before it said anything, ours"),
    Column("fts_server", "Server"),
    Column("files", "Files", Shown.NUMBER),
    Column("open_files", "Open", Shown.NUMBER, hint="Files without an outcome"),
    Column("size_bytes", "Size", Shown.BYTES),
    Column("planned_at", "Planned", Shown.TIME),
    Column("took_s", "At FTS", Shown.SECONDS, hint="How long FTS has, or had, the job"),
)
_OVER = (
    *(column for column in COLUMNS if column.name != "open_files"),
    Column("ended_at", "Ended", Shown.TIME),
)
_FILES = (
    Column("file", "File", Shown.CODE, place=lambda row: places.file(row["id"])),
    Column("state", "State now", Shown.STATE),
    Column("here", "In this job", Shown.STATE, hint="What became of it in this job"),
    Column("attempt", "Attempt", Shown.NUMBER),
    Column("username", "User"),
    Column("source_lfn", "Source LFN", Shown.CODE),
    Column("size_bytes", "Size", Shown.BYTES),
    Column("reason", "Reason"),
    Column(
        "later", "Now in", Shown.CODE, hint="A later FTS job",
        place=lambda row: places.job(row["later"]) if row["later"] else None,
    ),
)  # fmt: skip
_STEPS = (
    Column("what", "What", place=lambda row: row["dag_id"] and places.run(row["dag_id"], row["run_id"])),
    Column("started_at", "When", Shown.TIME),
    Column("actor", "By"),
    Column("sentence", "What it did in all"),
    Column("log", "In Airflow", out=lambda row: row["log_at"]),
)


@router.get("/jobs", name="jobs")
def jobs(
    page: Looking, _: Operator, conn: Catalogue, *,
    show: Show = "open", server: Name = "", source: Name = "", destination: Name = "",
) -> Response:  # fmt: skip
    """Show FTS jobs."""
    where = JobFilter(server or None, source or None, destination or None)
    found = [job_row(job, page.now) for job in with_usual(conn, open_jobs(conn, where))]
    shown: dict[Show, list[dict[str, Any]]] = {
        "open": found,
        "doubt": [row for row in found if any(one.word in IN_DOUBT for one in row["conditions"])],
        "slow": [row for row in found if any(one.word == SLOW for one in row["conditions"])],
    }
    if show == "ended":
        table = _ended(page, conn, where)
    else:
        caption = {"open": "Open FTS jobs", "doubt": "FTS jobs in doubt", "slow": "Slow FTS jobs"}[show]
        table = page.table("jobs", caption, COLUMNS, shown[show], sort="planned_at", empty=EMPTY[show])
    sites = [("", "any"), *((facts.site, facts.site) for facts in site_facts(conn))]
    return page.show(
        "jobs.html", title="FTS jobs", tables=[table], show=show, shows=SHOWS.items(), shown=shown, rule=RULE,
        server=server, servers=[("", "any"), *((one.name, one.name) for one in servers(conn))],
        source=source, destination=destination, sites=sites,
        is_capped=len(found) == OPEN_SHOWN, most=OPEN_SHOWN,
    )  # fmt: skip


@router.get("/jobs/{job}", name="job")
def job_page(page: Looking, _: Operator, conn: Catalogue, job: UUID) -> Response:
    """Show all about one FTS job, by our id of it or by FTS's."""
    found = find_job(conn, job)
    if found is None:
        raise Problem(404, f"There is no FTS job {job}.", kind="no-such-job")
    (row,) = (job_row(one, page.now) for one in with_usual(conn, [found]))
    files = [_file_row(file, found["sid"]) for file in files_of_job(conn, found)]
    steps = [step | log_of(page, step) for step in steps_of_job(conn, found)]
    tables = [
        page.table("files", "Its files", _FILES, files, sort="file", empty="It has no files."),
        page.table(
            "steps", "Who did what", _STEPS, steps, sort="started_at",
            empty="The steps that made it are not on record any more.",
        ),
    ]  # fmt: skip
    return page.show(
        "job.html", title=f"FTS job {row['job']}", tables=tables, job=row, rule=RULE,
        link=Link(found["source"], found["destination"]), monitor=_monitor(page, found),
    )  # fmt: skip


def with_usual(conn: Connection, found: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield jobs with how long those of their links usually take (``usual_s``), where that can matter."""
    old = {_link(job) for job in found if job["state"] == "SUBMITTED" and job["took_s"] > AFTER_S}
    usual = usual_s(conn, old) if old else {}
    for job in found:
        yield job | {"usual_s": usual.get(_link(job))}


def job_row(job: Row, now: datetime) -> dict[str, Any]:
    """Return a job as tables show it."""
    return {
        **job,
        "job": str(job["job_id"] or job["sid"]),
        "link": str(_link(job)),
        "said": job["fts_state"] or job["state"],
        "conditions": conditions(job, now),
    }


def conditions(job: Row, now: datetime) -> list[Condition]:
    """Return what is to be said of a job, the graver first; nothing if it is well."""
    if job["state"] == "REFUSED":
        return [Condition("refused", "bad", job["reason"] or "FTS refused it")]
    if job["state"] == "ENDED":
        ending = ENDINGS.get(job["fts_state"] or "")
        return [ending] if ending else []
    found = []
    if job["state"] == "PLANNED":
        waits_s = (now - (job["waits_since"] or job["planned_at"])).total_seconds()
        if waits_s > UNPOLLED_S:
            said = f"FTS has not confirmed it for {duration(waits_s)}; cycles go on telling FTS, under one id"
            found.append(Condition("not confirmed", "warning", said))
    else:
        silent_s = (now - (job["polled_at"] or job["submitted_at"])).total_seconds()
        if job["missing_at"]:
            found.append(Condition("unknown to FTS", "bad", "FTS does not know it; its files go again soon"))
        if silent_s > UNPOLLED_S:
            said = f"nobody has asked FTS about it for {duration(silent_s)}"
            found.append(Condition("nobody asks", "warning", said))
        if is_slow(job["took_s"], job.get("usual_s")):
            usual, took = duration(job["usual_s"]), duration(job["took_s"])
            said = f"FTS has had it for {took}; on its link {usual} are usual"
            found.append(Condition(SLOW, "warning", said))
    if job["cancelled_at"]:
        found.append(Condition("being stopped", "note", "FTS was told to stop files of it"))
    return found


def log_of(page: Page, step: Row) -> dict[str, str | None]:
    """Return where Airflow shows the log of a step, for a column; nothing for a command of a person."""
    if not step["dag_id"]:
        return {"log": None, "log_at": None}
    place = places.log(*(step[name] for name in ("dag_id", "run_id", "task_id", "map_index", "try_number")))
    return {"log": "log", "log_at": page.airflow(place)}


def step_name(step: Row) -> str:
    """Return a step as Airflow calls it: ``stageout_transfer.submit [2]``; of a person: the command."""
    name = f"{step['dag_id']}.{step['task_id']}" if step["dag_id"] else str(step["task_id"])
    return name if step["map_index"] < 0 else f"{name} [{step['map_index']}]"


def _ended(page: Page, conn: Connection, where: JobFilter) -> Table:
    since = page.now - page.span.length
    look = partial(ended_jobs, conn, where, since=since)
    rows = look(until=_place(page), limit=ROWS_PER_PAGE + 1)
    more = len(rows) > ROWS_PER_PAGE
    last = rows[ROWS_PER_PAGE - 1] if more else None
    return page.listing(
        "jobs", f"FTS jobs that ended in {page.span.words}", _OVER,
        [job_row(job, page.now) for job in rows[:ROWS_PER_PAGE]],
        next_cursor=cursor_after(CURSOR, f"{last['ended_at'].isoformat()} {last['sid']}") if last else None,
        empty=EMPTY["ended"], everything=lambda: _all_ended(look, page.now),
    )  # fmt: skip


def _all_ended(look: Callable[..., list[dict[str, Any]]], now: datetime) -> Iterator[dict[str, Any]]:
    until: EndedAt | None = _FIRST
    while until:
        rows = look(until=until, limit=CSV_BATCH)
        yield from (job_row(job, now) for job in rows)
        until = EndedAt(rows[-1]["ended_at"], rows[-1]["sid"]) if len(rows) == CSV_BATCH else None


_FIRST = EndedAt(datetime(9000, 1, 1, tzinfo=UTC), UUID(int=0))


def _place(page: Page) -> EndedAt:
    cursor = page.cursor("jobs")
    if cursor is None:
        return _FIRST
    at, _, sid = key_of_cursor(CURSOR, cursor).partition(" ")
    try:
        return EndedAt(datetime.fromisoformat(at), UUID(sid))
    except ValueError as error:
        raise Problem(422, f"jobs.cursor cannot be {cursor}.", kind="invalid-request") from error


def _file_row(file: Row, sid: UUID) -> dict[str, Any]:
    later = file["fts_job"] if file["fts_job"] not in (None, sid) else None
    return {**file, "file": file["id"], "later": later}


def _monitor(page: Page, job: Row) -> str | None:
    """Return the address of a job in the FTS monitor, if it is one that a browser may be sent to."""
    house: APIHouse = page.request.app.state.house
    url = house.fts_monitor(job["fts_server"], str(job["job_id"])) if job["job_id"] else None
    return url if url and urlsplit(url).scheme in ("http", "https") else None


def _link(job: Row) -> Link:
    return Link(job["source"], job["destination"])
