"""``aso servers``: the FTS servers, how each is, what operators want of it, and when it is given up."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from asyncstageout.catalogue.fts_servers import (
    HasOpenJobs,
    ServerView,
    add_server,
    remove_server,
    server_views,
    set_state,
)
from asyncstageout.catalogue.given_up import GivenUp, NotDown, give_up
from asyncstageout.catalogue.step_runs import Actor
from asyncstageout.cli import Advice, app, console
from asyncstageout.cli.options import AsJson, CatalogueURL, open_catalogue, who
from asyncstageout.steps.recording import Summary, files, recorded

servers = typer.Typer(help="FTS servers: list, add, drain, take down, give up, remove.")
app.add_typer(servers, name="servers")

Name = Annotated[str, typer.Argument(help="Of the server, and of its Airflow connection.")]


class Wanted(StrEnum):
    """What a server can be told."""

    up = "up"
    draining = "draining"
    down = "down"


CONNECTION = """\
Make its Airflow connection, if there is none: airflow connections add {name} --conn-type fts3 \
--conn-host HOST --conn-port 8446 --conn-extra '{{"ca_file": "…", "cert_file": "…", "key_file": "…"}}'"""

LOUD = {
    False: "{name} must never come back with the jobs it has: it would copy files that others have by then.",
    True: "{name} may be copying these files AT THIS MOMENT. Two servers that write one file spoil it. Go on"
    " only if you know that it is switched off.",
}

FOLLOWS = {
    Wanted.up: "It gets new jobs from the next cycle on, as long as it answers.",
    Wanted.draining: "It gets no new jobs; those that it has are followed to their end.",
    Wanted.down: "It is not contacted any more: nobody asks what became of its open jobs.",
}


@servers.callback(invoke_without_command=True)
def list_servers(
    context: typer.Context, *, catalogue_url: CatalogueURL = None, as_json: AsJson = False
) -> None:
    """List the servers with state, health, and what is under way in their jobs."""
    if context.invoked_subcommand:
        return
    with open_catalogue(catalogue_url) as conn:
        views = server_views(conn)
    if as_json:
        sys.stdout.write(json.dumps([_flat(view) for view in views], default=_iso) + "\n")
    else:
        console.print(_table(views))


@servers.command()
def add(
    name: Name,
    *,
    endpoint: Annotated[str | None, typer.Option(help="URL as sites name it in their storage.json.")] = None,
    vo: Annotated[
        str | None, typer.Option(help="The only VO that it serves.", show_default="every VO")
    ] = None,
    region: Annotated[
        list[str] | None, typer.Option(help="Countries (IT) or sites (T2_DE_*) it is first for; repeat it.")
    ] = None,
    weight: Annotated[
        int | None,
        typer.Option(min=0, help="Its share of links, beside others of the same rank.", show_default="100"),
    ] = None,
    catalogue_url: CatalogueURL = None,
) -> None:
    """Add a server, or change these settings of a known one."""
    with open_catalogue(catalogue_url) as conn:
        # Without --region on the line, typer gives an empty list.
        is_new = add_server(
            conn, name, endpoint=endpoint, vo=vo, regions=region or None, weight=weight, by=who()
        )
    console.print(f"{name} was {'added' if is_new else 'changed'}.", markup=False)
    if is_new:
        console.print(CONNECTION.format(name=name), markup=False, soft_wrap=True)


@servers.command("set")
def change(
    name: Name,
    state: Annotated[Wanted, typer.Argument(help="What it is to do.")],
    *,
    reason: Annotated[str | None, typer.Option(help="For those who wonder later.")] = None,
    catalogue_url: CatalogueURL = None,
) -> None:
    """Say what a server is to do: up, draining (no new jobs) or down (not contacted)."""
    with open_catalogue(catalogue_url) as conn:
        if not set_state(conn, name, state.value, reason=reason, by=who()):
            raise _unknown(name)
    console.print(f"{name} is {state.value}. {FOLLOWS[state]}", markup=False, soft_wrap=True)


@servers.command()
def remove(name: Name, *, catalogue_url: CatalogueURL = None) -> None:
    """Forget a server; refused while it has open jobs."""
    with open_catalogue(catalogue_url) as conn:
        try:
            if not remove_server(conn, name, by=who()):
                raise _unknown(name)
        except HasOpenJobs as error:
            raise Advice(
                str(error), f"`aso servers set {name} draining` and wait for the jobs to end."
            ) from error
    console.print(f"{name} was removed.", markup=False)


@servers.command("give-up")
def give_up_jobs(
    name: Name,
    *,
    reason: Annotated[str, typer.Option(help="Why; it stands in the history of each file.")],
    may_still_write: Annotated[
        bool,
        typer.Option("--may-still-write", help="Also jobs whose files it may be copying at this moment."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask first.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would happen.")] = False,
    catalogue_url: CatalogueURL = None,
) -> None:
    """Give up all jobs at a server that is down and never comes back: their files go to other servers."""
    with open_catalogue(catalogue_url) as conn:
        why = f"the FTS server {name} was given up by {who()}: {reason}"

        def act(step_run: int, *, dry_run: bool = False) -> GivenUp:
            try:
                done = give_up(
                    conn,
                    name,
                    reason=why,
                    step_run=step_run,
                    may_still_write=may_still_write,
                    dry_run=dry_run,
                )
            except NotDown as error:
                raise Advice(
                    f"Nothing was changed: {error}.",
                    f"Make sure that it is gone for good, then: aso servers set {name} down",
                ) from error
            if done is None:
                raise _unknown(name)
            return done

        def step(step_run: int) -> Summary:
            done = act(step_run)
            return Summary(f"{name}: {_given_up(done)}", done._asdict())

        if dry_run or not yes:
            console.print(
                f"This would happen: {_given_up(act(0, dry_run=True))}.", markup=False, soft_wrap=True
            )
            if dry_run:
                return
            console.print(LOUD[may_still_write].format(name=name), style="bold red", soft_wrap=True)
            if typer.prompt(f"Type {name} to go on", err=True) != name:
                raise typer.Abort
        summary = recorded(conn, Actor(task_id="servers give-up", name=who()), step)
    console.print(f"{summary.sentence}.", markup=False, soft_wrap=True)


def _given_up(done: GivenUp) -> str:
    sentence = f"{done.jobs:,} jobs given up, {files(done.waiting)} for other servers"
    if done.killed:
        sentence += f", {done.killed:,} killed as asked"
    if done.may_still_write:
        sentence += (
            f"; {done.may_still_write:,} jobs stay, since it may still copy their files"
            " (--may-still-write gives them up too)"
        )
    return sentence


def _unknown(name: str) -> Advice:
    return Advice(f"There is no FTS server {name}.", "`aso servers` lists them.")


def _iso(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _flat(view: ServerView) -> dict[str, Any]:
    row = asdict(view)
    server: dict[str, Any] = row.pop("server")
    return server | row


def _table(views: list[ServerView]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("server", "state", "health", "serves"):
        table.add_column(heading)
    for heading in ("weight", "open jobs", "files", "in doubt"):
        table.add_column(heading, justify="right")
    for view in views:
        server = view.server
        serves = " ".join([*server.regions, *([f"VO {server.vo}"] if server.vo else [])]) or "all"
        table.add_row(
            Text(server.name), _state(view), _health(view), Text(serves), str(server.weight),
            f"{view.open_jobs:,}", f"{view.open_files:,}", f"{view.in_doubt:,}",
        )  # fmt: skip
    return table


def _state(view: ServerView) -> Text:
    state = view.server.state
    text = f"{state}: {view.reason}" if view.reason and state != "up" else state
    return Text(text, style="" if state == "up" else "yellow")


def _health(view: ServerView) -> Text:
    server = view.server
    if server.failing_since:
        return Text(f"failing since {server.failing_since:%H:%M}: {server.problem}", style="red")
    if view.checked_at is None:
        return Text("never contacted", style="yellow")
    version = f"FTS {view.version}, " if view.version else ""
    trouble = f"; {server.problem}" if server.problem else ""
    return Text(f"{version}asked {view.checked_at:%H:%M:%S}{trouble}", style="" if trouble else "green")
