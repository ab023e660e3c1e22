"""``aso files``: which files there are, and everything about one of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

import typer
from psycopg import Connection
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from asyncstageout.catalogue.link_health import why_waiting
from asyncstageout.catalogue.lookup import (
    Event,
    FileFilter,
    SideEvent,
    file_events,
    find_file,
    list_files,
    side_events,
)
from asyncstageout.cli import app, console
from asyncstageout.cli.options import AsJson, CatalogueURL, open_catalogue
from asyncstageout.core.planning import Link
from asyncstageout.core.prospects import what_next
from asyncstageout.core.states import TransferState
from asyncstageout.steps.recording import size

files = typer.Typer(help="Which files there are, and everything about one of them.", no_args_is_help=True)
app.add_typer(files, name="files")

STATE_STYLES = {
    TransferState.DONE: "green",
    TransferState.FAILED: "red",
    TransferState.RETRY: "yellow",
    TransferState.KILL: "magenta",
    TransferState.KILLED: "magenta",
}


@files.command("list")
def list_command(
    *,
    state: Annotated[TransferState | None, typer.Option(case_sensitive=False)] = None,
    user: Annotated[str | None, typer.Option(help="CERN account of the owner.")] = None,
    task: Annotated[str | None, typer.Option(help="Full name of the CRAB task.")] = None,
    source: Annotated[str | None, typer.Option(help="Site, such as T2_IT_Bari.")] = None,
    destination: Annotated[str | None, typer.Option(help="Site, such as T2_CH_CERN.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="Files on one page.")] = 20,
    after: Annotated[int, typer.Option(min=0, help="Go on after this number.")] = 0,
    catalogue_url: CatalogueURL = None,
    as_json: AsJson = False,
) -> None:
    """List files in the order in which they arrived, a page at a time."""
    where = FileFilter(state=state, username=user, task=task, source=source, destination=destination)
    with open_catalogue(catalogue_url) as conn:
        # One more than shown tells whether there is a next page.
        rows = list_files(conn, where, limit=limit + 1, after_id=after)
    page, more = rows[:limit], len(rows) > limit
    if as_json:
        _write_json({"files": page, "next_after": page[-1]["id"] if more else None})
    elif not page:
        console.print("No such files.")
    else:
        console.print(_page_table(page))
        if more:
            console.print(f"More: --after {page[-1]['id']}")


@files.command("show")
def show(
    wanted: Annotated[str, typer.Argument(metavar="FILE", help="Its number, request id, or either LFN.")],
    *,
    catalogue_url: CatalogueURL = None,
    as_json: AsJson = False,
) -> None:
    """Show everything about one file: where it is, what happened to it, who did it, and what comes next."""
    with open_catalogue(catalogue_url) as conn:
        file = find_file(conn, wanted)
        events = file_events(conn, file["id"]) if file else []
        beside = side_events(conn, file["id"]) if file else []
        now = datetime.now(UTC)
        held = _held(conn, file, now) if file else None
    if file is None:
        console.print(f"There is no file {wanted}.", markup=False, soft_wrap=True)
        raise typer.Exit(1)
    prospect = what_next(file, now, held)
    if as_json:
        facts = {"next": prospect, "events": list(map(asdict, events))}
        _write_json({**file, **facts, "side_events": list(map(asdict, beside))})
        return
    _print_facts(file)
    console.print(f"\n[bold]Next[/bold]  {escape(prospect)}\n")
    console.print(_history(events))
    if beside:
        console.print("\n[bold]Around it[/bold]")
        console.print(_beside(beside))


def _held(conn: Connection, file: Mapping[str, Any], now: datetime) -> str | None:
    link = Link(file["source"], file["destination"])
    return why_waiting(conn, link, file["identity"], now, file["activity"])


def _page_table(page: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("number", justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("user", no_wrap=True, overflow="ellipsis")
    table.add_column("from → to", no_wrap=True, overflow="ellipsis")
    table.add_column("file", no_wrap=True, overflow="ellipsis", ratio=1)
    for row in page:
        why = f" {row['failure_category']}" if row["failure_category"] else ""
        table.add_row(
            str(row["id"]),
            _styled(row["state"]) + Text(why, style="dim"),
            row["username"],
            f"{row['source']} → {row['destination']}",
            row["destination_lfn"].rpartition("/")[2],
        )
    return table


def _print_facts(file: Mapping[str, Any]) -> None:
    console.print(Text(f"File {file['id']}  ", style="bold") + _styled(file["state"]))
    for name, value in _facts(file):
        if value:
            # Long names must stay whole, so that they can be copied.
            console.print(f"  {name:<12} {value}", markup=False, soft_wrap=True)


def _facts(file: Mapping[str, Any]) -> list[tuple[str, str | None]]:
    activity = "" if file["activity"] == "default" else f", activity {file['activity']}"
    group = f" ({file['vo_group'] or '-'}/{file['vo_role'] or '-'})" if file["vo_group"] else ""
    ended_at: datetime | None = file["ended_at"]
    return [
        ("request", file["request_id"]),
        ("task", f"{file['task']}, job {file['job_id'] or '-'}"),
        ("user", f"{file['username']}{group}"),
        ("kind", f"{file['type']}, {size(file['size_bytes'])}, adler32 {file['adler32'] or 'unknown'}"),
        ("from", f"{file['source']}  {file['source_url'] or file['source_lfn']}"),
        ("to", f"{file['destination']}  {file['destination_url'] or file['destination_lfn']}"),
        ("priority", f"{file['priority']} of 5{activity}"),
        ("attempts", str(file["attempt"])),
        ("FTS job", file["fts_job_id"] and f"{file['fts_job_id']} at {file['fts_server']}"),
        ("failure", file["failure_category"] and f"{file['failure_category']} ({file['failure_code']})"),
        ("reason", file["failure_reason"]),
        ("publication", file["publication"] if file["publication"] != "NOT_REQUIRED" else None),
        ("arrived", f"{file['created_at']:%Y-%m-%d %H:%M:%S} UTC"),
        ("ended", ended_at and f"{ended_at:%Y-%m-%d %H:%M:%S} UTC, {_lasted(file['created_at'], ended_at)}"),
    ]


def _lasted(start: datetime, end: datetime) -> str:
    return f"after {(end - start).total_seconds():,.0f} s"


def _history(events: list[Event]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("UTC", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("by whom, and why", overflow="fold")
    day = None
    for event in events:
        if event.at.date() != day:
            day = event.at.date()
            table.add_row(Text(f"{day:%d %b}", style="dim"), "", "")
        table.add_row(f"{event.at:%H:%M:%S}", _styled(event.to_state), _account(event))
    return table


def _beside(events: list[SideEvent]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("UTC", "what", "state"):
        table.add_column(title, no_wrap=True)
    table.add_column("of what, and why", overflow="fold")
    for event in events:
        lines = [line for line in (event.subject, event.reason) if line]
        if event.dag_id is None:
            lines.append(f"by {event.actor}")
        table.add_row(f"{event.at:%d %b %H:%M:%S}", event.kind, event.to_state, Text("\n".join(lines)))
    return table


def _account(event: Event) -> Text:
    """Say which step of which run did it, for whom, in which FTS job, and why."""
    lines = [_step(event)]
    if event.run_id:
        # Bare: the longest run ids just fit into a terminal of 80 columns.
        lines.append(event.run_id)
    if event.fts_job_id:
        # The attempt is counted when FTS takes it; before that, the number is the last one's.
        attempt = f", attempt {event.attempt}" if event.to_state != TransferState.ACQUIRED else ""
        lines.append(f"FTS job {event.fts_job_id}{attempt}")
    if event.reason:
        lines.append(event.reason)
    return Text("\n".join(lines))


def _step(event: Event) -> str:
    if event.dag_id is None:
        return f"{event.task_id}, by {event.actor}"
    index = f"[{event.map_index}]" if event.map_index >= 0 else ""
    who = "" if event.actor == "airflow" else f", by {event.actor}"
    return f"{event.dag_id}.{event.task_id}{index}, try {event.try_number}{who}"


def _styled(state: str) -> Text:
    return Text(state, style=STATE_STYLES.get(TransferState(state), ""))


def _write_json(facts: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(facts, default=_jsonable) + "\n")


def _jsonable(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    raise TypeError(f"no JSON for {type(value).__name__}")
