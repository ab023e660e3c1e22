"""*Cycles*: what each of them did; the last run of every other DAG; the page of one run; and all steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path
from fastapi.responses import RedirectResponse, Response

from asyncstageout.api.callers import Catalogue, Operator
from asyncstageout.api.cursors import cursor_after, number_of_cursor
from asyncstageout.api.problems import Problem
from asyncstageout.catalogue.job_views import jobs_of_cycle
from asyncstageout.catalogue.run_views import (
    Stretch,
    Which,
    cycles,
    cycles_of_run,
    find_cycle,
    last_runs,
    links_of_cycle,
    steps,
    steps_of_run,
)
from asyncstageout.ui import places
from asyncstageout.ui.conditions import Condition
from asyncstageout.ui.jobs import COLUMNS as JOB_COLUMNS
from asyncstageout.ui.jobs import Name, job_row, log_of, step_name, with_usual
from asyncstageout.ui.page import Looking, Page
from asyncstageout.ui.tables import CSV_BATCH, ROWS_PER_PAGE, Column, Row, Shown, Table
from asyncstageout.ui.words import bytes_

router = APIRouter()

OURS = "stageout_"
WHICH: Mapping[Which, str] = {"work": "That found work", "trouble": "With a failed step", "all": "All"}
Outcome = Literal["all", "failed", "running"]
OUTCOMES: Mapping[Outcome, str] = {"all": "All", "failed": "Failed", "running": "Not ended"}
STAGES = ("collect", "group", "submit", "summarise")
WHY: Mapping[str, str] = {
    "scheduled": "every minute", "asset_triggered": "files arrived", "manual": "by hand",
    "backfill": "backfill",
}  # fmt: skip
"""Type of a run, as its id begins -> what made it run."""
Look = Callable[[int | None, int], list[dict[str, Any]]]
"""Takes the id of the row before (None: begins at the last one) and how many rows to return."""
RunId = Annotated[str, Path(max_length=250, pattern=r"^[^\x00]+$")]


_CYCLES = (
    Column("cycle", "Cycle", place=lambda row: places.cycle(row["id"])),
    Column("created_at", "Began", Shown.TIME),
    Column("why", "Why"),
    Column("conditions", "Condition", Shown.CONDITIONS),
    Column("links", "Links", Shown.NUMBER, hint="Links with waiting files that it looked at"),
    Column("held_links", "Held", Shown.NUMBER, hint="Links of which it held files back"),
    Column("files", "Files", Shown.NUMBER, hint="Files in its FTS jobs"),
    Column("accepted_jobs", "FTS jobs", Shown.NUMBER, hint="Jobs that FTS accepted"),
    Column("size_bytes", "Size", Shown.BYTES),
    *(
        Column(f"{stage}_s", stage.capitalize(), Shown.SECONDS, hint="How long this step took")
        for stage in STAGES
    ),
    Column("run", "In Airflow", out=lambda row: row["run_at"]),
)
_RUNS = (
    Column("dag", "DAG", place=lambda row: places.run(row["dag_id"], row["run_id"])),
    Column("started_at", "Last run", Shown.TIME),
    Column("conditions", "Condition", Shown.CONDITIONS),
    Column("sentence", "What it did"),
    Column("steps", "Steps", Shown.NUMBER),
    Column("took_s", "Took", Shown.SECONDS),
    Column("run", "In Airflow", out=lambda row: row["run_at"]),
)
_STEPS = (
    Column("step", "Step"),
    Column("started_at", "Began", Shown.TIME),
    Column("conditions", "Outcome", Shown.CONDITIONS),
    Column("sentence", "What it did"),
    Column("counts", "Counts", Shown.LINES),
    Column("took_s", "Took", Shown.SECONDS),
    Column("try_number", "Try", Shown.NUMBER),
    Column("log", "In Airflow", out=lambda row: row["log_at"]),
)
_ALL_STEPS = (
    Column("step", "Step", place=lambda row: places.run(row["dag_id"], row["run_id"])),
    *(column for column in _STEPS if column.name not in ("step", "counts", "try_number")),
)
_LINKS = (
    Column("link", "Link", place=lambda row: places.link(row["source"], row["destination"])),
    Column("users", "Users", Shown.NUMBER, hint="Users whose files waited"),
    Column("in_flight", "In flight", Shown.NUMBER, hint="Files under way before"),
    Column("room", "Room", Shown.NUMBER, hint="Files that it would have taken"),
    Column("held", "Why files were held back"),
)


@router.get("/cycles", name="cycles")
def cycles_page(page: Looking, _: Operator, conn: Catalogue, which: Which = "work") -> Response:
    """Show the last cycles, and the last run of every DAG."""

    def look(before: int | None, limit: int) -> list[dict[str, Any]]:
        found = cycles(conn, Stretch(page.now - page.span.length, before, limit), which)
        return [_cycle_row(page, one) for one in found]

    runs = [_run_row(page, run) for run in last_runs(conn)]
    tables = [
        going_back(
            page, "cycles", f"Cycles, {page.span.words}", _CYCLES, look,
            empty="No cycle fits. Another choice or a longer time may show some.",
        ),
        page.table("runs", "The last run of each DAG", _RUNS, runs, sort="dag", empty="Nothing has run yet."),
    ]  # fmt: skip
    return page.show("cycles.html", title="Cycles", tables=tables, which=which, whiches=WHICH.items())


@router.get("/cycles/{cycle}", name="cycle")
def cycle_page(
    page: Looking, _: Operator, conn: Catalogue, cycle: Annotated[int, Path(ge=0, lt=2**63)]
) -> Response:
    """Show all about one cycle."""
    found = find_cycle(conn, cycle)
    if found is None:
        raise Problem(404, f"There is no cycle {cycle}.", kind="no-such-cycle")
    rows = [job_row(job, page.now) for job in with_usual(conn, jobs_of_cycle(conn, cycle))]
    links = [row | {"link": f"{row['source']} → {row['destination']}"} for row in links_of_cycle(conn, cycle)]
    tables = [
        _steps_of(page, steps_of_run(conn, found["dag_id"], found["run_id"])),
        page.table(
            "links", "Links with waiting files", _LINKS, links, sort="-held",
            empty="No file waited, or what it saw was dropped since (docs/reference/retention.md).",
        ),
        page.table("jobs", "Its FTS jobs", JOB_COLUMNS, rows, sort="link", empty="It made no FTS job."),
    ]  # fmt: skip
    return page.show("cycle.html", title=f"Cycle {cycle}", tables=tables, cycle=_cycle_row(page, found))


@router.get("/runs/{dag_id}/{run_id}", name="run")
def run_page(page: Looking, _: Operator, conn: Catalogue, dag_id: RunId, run_id: RunId) -> Response:
    """Show the steps of a run; that of a cycle leads there."""
    numbers = cycles_of_run(conn, dag_id, run_id)
    if len(numbers) == 1 and not page.is_csv:
        return RedirectResponse(page.url(places.cycle(numbers[0])), 303)
    found = steps_of_run(conn, dag_id, run_id)
    if not (found or numbers):
        raise Problem(
            404, f"No step of run {run_id} of {dag_id} is on record: none has begun, or it was dropped.",
            kind="no-such-run",
        )  # fmt: skip
    return page.show(
        "run.html", title=f"A run of {dag_id}", tables=[_steps_of(page, found)], dag_id=dag_id, run_id=run_id,
        cycles=numbers,
    )  # fmt: skip


@router.get("/steps", name="steps")
def steps_page(
    page: Looking, _: Operator, conn: Catalogue, dag: Name = "", outcome: Outcome = "all"
) -> Response:
    """Show what all DAGs did, step by step."""

    def look(before: int | None, limit: int) -> list[dict[str, Any]]:
        stretch = Stretch(page.now - page.span.length, before, limit)
        return [step_row(page, one) for one in steps(conn, stretch, dag_id=dag or None, outcome=outcome)]

    table = going_back(
        page, "steps", f"Steps, {page.span.words}", _ALL_STEPS, look,
        empty="No step fits. Another choice or a longer time may show some.",
    )  # fmt: skip
    dags = sorted({row["dag_id"] for row in last_runs(conn)} | ({dag} if dag else set()))
    return page.show(
        "steps.html", title="Steps", tables=[table], dag=dag, outcome=outcome, outcomes=OUTCOMES.items(),
        dags=[("", "all"), *((one, one) for one in dags)],
    )  # fmt: skip


def going_back(
    page: Page, name: str, caption: str, columns: Sequence[Column], look: Look, *, empty: str
) -> Table:
    """Return a list that goes back in time, a page at a time."""
    rows = look(number_of_cursor(name, page.cursor(name)), ROWS_PER_PAGE + 1)
    shown = rows[:ROWS_PER_PAGE]
    following = cursor_after(name, shown[-1]["id"]) if len(rows) > ROWS_PER_PAGE else None
    return page.listing(
        name, caption, columns, shown, next_cursor=following, empty=empty, everything=partial(_all, look)
    )


def step_row(page: Page, step: Row) -> dict[str, Any]:
    """Return a step as tables show it."""
    return {
        **step,
        "step": step_name(step),
        **log_of(page, step),
        "conditions": _outcome(step["outcome"] == "failed", step["ended_at"] is None, step["sentence"]),
        "counts": [_counted(name, count) for name, count in step["counts"].items() if count],
    }


def _all(look: Look) -> Iterator[dict[str, Any]]:
    rows = look(None, CSV_BATCH)
    while rows:
        yield from rows
        rows = look(rows[-1]["id"], CSV_BATCH) if len(rows) == CSV_BATCH else []


def _steps_of(page: Page, found: list[dict[str, Any]]) -> Table:
    rows = [step_row(page, step) | {"step": step_name(step).rpartition(".")[2]} for step in found]
    return page.table(
        "steps", "Its steps", _STEPS, rows, sort="started_at", empty="Its steps are not on record any more."
    )


def _cycle_row(page: Page, cycle: Row) -> dict[str, Any]:
    found = _outcome(cycle["is_red"], cycle["is_running"], cycle["sentence"])
    params = cycle["params"]
    if params.get("dry_run"):
        found.append(Condition("dry run", "note", "it only said what would be submitted"))
    elif cycle["planned_jobs"] and not cycle["is_running"]:
        found.append(Condition("not confirmed", "warning", "FTS has not confirmed all of its jobs"))
    kind = cycle["run_id"].partition("__")[0]
    return {
        **cycle,
        "cycle": str(cycle["id"]),
        **_run_at(page, cycle),
        "why": WHY.get(kind, kind),
        "only": {name: value for name, value in params.items() if name not in ("limit", "dry_run")},
        "conditions": found,
        **{f"{stage}_s": cycle["took_s"].get(stage) for stage in STAGES},
    }


def _run_row(page: Page, run: Row) -> dict[str, Any]:
    found = _outcome(run["is_red"], run["is_running"], run["sentence"])
    return {**run, "dag": run["dag_id"].removeprefix(OURS), "conditions": found, **_run_at(page, run)}


def _run_at(page: Page, run: Row) -> dict[str, str]:
    return {"run": "run", "run_at": page.airflow(places.airflow_run(run["dag_id"], run["run_id"]))}


def _outcome(is_red: bool, is_running: bool, sentence: str | None) -> list[Condition]:
    if is_red:
        return [Condition("failed", "bad", sentence or "no reason is known")]
    return [Condition("not ended", "note", "it runs, or its process died")] if is_running else []


def _counted(name: str, count: Any) -> str:
    """Say one of the numbers of a step.

    >>> _counted("size_bytes", 4_100_000_000), _counted("held_links", 1200), _counted("dbs", "phys03")
    ('size: 4.1 GB', 'held links: 1,200', 'dbs: phys03')
    """
    if name.endswith("_bytes") and isinstance(count, int):
        return f"{name.removesuffix('_bytes').replace('_', ' ')}: {bytes_(count)}"
    said = f"{count:,}" if isinstance(count, int | float) else str(count)
    return f"{name.replace('_', ' ')}: {said}"
