"""``aso kill`` and ``aso retry``: files are stopped, or sent again, over the REST API."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.table import Table

from asyncstageout.cli import Advice, app, console
from asyncstageout.cli.api_access import APIUrl, TokenFile, stageout_at
from asyncstageout.cli.options import AsJson
from asyncstageout.client import Acted

WORDS = {
    "killed": "stopped",
    "being_killed": "FTS may have them: they end as FTS says",
    "already_being_killed": "were being stopped already",
    "already_killed": "had been stopped before",
    "too_late": "too late: they had ended",
    "sent_again": "wait again, with all their attempts",
    "already_waiting": "were waiting already",
    "already_under_way": "were under way already",
    "done": "had arrived",
    "refused": "refused",
    "not_yours": "not there, or not yours",
    "left_over": "left over: the same command goes on with them",
}
"""Outcome -> what a person is told; another one speaks for itself."""

Ids = Annotated[list[str] | None, typer.Argument(metavar="[FILE]...", help="Their numbers or request ids.")]
TaskName = Annotated[str | None, typer.Option(help="All files of this task.")]
User = Annotated[str | None, typer.Option(help="All files of this user.")]
Source = Annotated[str | None, typer.Option(help="All files from this site.")]
Destination = Annotated[str | None, typer.Option(help="All files to this site.")]
Comment = Annotated[str, typer.Option(help="Why; it stands in the history of each file.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask first.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would happen.")]


@app.command()
def kill(
    files: Ids = None,
    *,
    task: TaskName = None,
    user: User = None,
    source: Source = None,
    destination: Destination = None,
    comment: Comment = "",
    yes: Yes = False,
    dry_run: DryRun = False,
    api_url: APIUrl = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Stop files for which all that is given holds, and say for which it was too late."""
    chosen = _chosen(files, task=task, username=user, source=source, destination=destination)
    with stageout_at(api_url, token_file) as client:

        def act(*, dry_run: bool) -> Acted:
            return client.kill(**chosen, comment=comment, dry_run=dry_run)

        _do("Stop them?", act, yes=yes, dry_run=dry_run, as_json=as_json)


@app.command()
def retry(
    files: Ids = None,
    *,
    task: TaskName = None,
    user: User = None,
    source: Source = None,
    destination: Destination = None,
    killed_too: Annotated[bool, typer.Option("--killed-too", help="Also what somebody stopped.")] = False,
    comment: Comment = "",
    yes: Yes = False,
    dry_run: DryRun = False,
    api_url: APIUrl = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Send files again that failed for good, of those for which all that is given holds."""
    chosen = _chosen(files, task=task, username=user, source=source, destination=destination)
    with stageout_at(api_url, token_file) as client:

        def act(*, dry_run: bool) -> Acted:
            return client.retry(**chosen, comment=comment, killed_too=killed_too, dry_run=dry_run)

        _do("Send them again?", act, yes=yes, dry_run=dry_run, as_json=as_json)


def _chosen(files: list[str] | None, **given: str | None) -> dict[str, Any]:
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value}
    if files:
        chosen["ids"] = [int(one) if one.isdecimal() and len(one) < 20 else one for one in files]
    if not chosen:
        raise Advice("Nothing says which files.", "Name files, or --task, --user, --source or --destination.")
    return chosen


def _do(question: str, act: Callable[..., Acted], *, yes: bool, dry_run: bool, as_json: bool) -> None:
    if not yes or dry_run:
        preview = act(dry_run=True)
        if dry_run and as_json:
            _print_json(preview)
            return
        console.print("This would happen:")
        _show(preview)
        if dry_run:
            return
        typer.confirm(question, abort=True, err=True)
    acted = act(dry_run=False)
    _print_json(acted) if as_json else _show(acted)


def _print_json(acted: Acted) -> None:
    sys.stdout.write(json.dumps(asdict(acted)) + "\n")


def _show(acted: Acted) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(justify="right")
    table.add_column(overflow="fold")
    for outcome, count in acted.counts.items():
        if count:
            table.add_row(f"{count:,}", WORDS.get(outcome, outcome))
    for reason, count in acted.reasons.items():
        table.add_row("", f"{count:,} {reason}", style="dim")
    console.print(table if table.row_count else "No such files.")
