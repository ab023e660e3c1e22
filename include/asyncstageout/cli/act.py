"""``aso kill`` and ``aso retry``: files are stopped, or sent again, over the REST API."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.table import Table

from asyncstageout.cli import Advice, app, console
from asyncstageout.cli.api_access import APIUrl, TokenFile, stageout_at
from asyncstageout.cli.options import AsJson
from asyncstageout.cli.restrictions import FORMATS
from asyncstageout.client import Acted, NeedsApproval
from asyncstageout.core.failures import Category
from asyncstageout.core.selections import read_id

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
Site = Annotated[str | None, typer.Option(help="All files from or to this site.")]
HITS = ("killed", "being_killed", "sent_again")
"""Outcomes of files that are changed."""

Comment = Annotated[str, typer.Option(help="Why; it stands in the history of each file.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask first.")]
YesTo = Annotated[
    int | None,
    typer.Option("--yes-to", min=0, help="Do not ask first, if it is about so many files at most."),
]
Ended = typer.Option(formats=FORMATS, help="UTC; past files count too, as with a task or numbers.")
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would happen.")]


@app.command()
def kill(
    files: Ids = None,
    *,
    task: TaskName = None,
    user: User = None,
    source: Source = None,
    destination: Destination = None,
    site: Site = None,
    comment: Comment = "",
    yes: Yes = False,
    yes_to: YesTo = None,
    dry_run: DryRun = False,
    api_url: APIUrl = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Stop files for which all that is given holds, and say for which it was too late."""
    chosen = _chosen(files, task=task, username=user, source=source, destination=destination, site=site)
    with stageout_at(api_url, token_file) as client:

        def act(**options: Any) -> Acted:
            return client.kill(**chosen, comment=comment, **options)

        _do("Stop them?", act, yes=yes, yes_to=yes_to, dry_run=dry_run, as_json=as_json)


@app.command()
def retry(
    files: Ids = None,
    *,
    task: TaskName = None,
    user: User = None,
    source: Source = None,
    destination: Destination = None,
    site: Site = None,
    category: Annotated[Category | None, typer.Option(help="Why they failed.")] = None,
    ended_from: Annotated[datetime | None, Ended] = None,
    ended_to: Annotated[datetime | None, Ended] = None,
    killed_too: Annotated[bool, typer.Option("--killed-too", help="Also what somebody stopped.")] = False,
    comment: Comment = "",
    yes: Yes = False,
    yes_to: YesTo = None,
    dry_run: DryRun = False,
    api_url: APIUrl = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Send files again that failed for good, of those for which all that is given holds."""
    chosen = _chosen(
        files, task=task, username=user, source=source, destination=destination, site=site,
        category=category and category.value, ended_from=ended_from and ended_from.replace(tzinfo=UTC),
        ended_to=ended_to and ended_to.replace(tzinfo=UTC),
    )  # fmt: skip
    with stageout_at(api_url, token_file) as client:

        def act(**options: Any) -> Acted:
            return client.retry(**chosen, comment=comment, killed_too=killed_too, **options)

        _do("Send them again?", act, yes=yes, yes_to=yes_to, dry_run=dry_run, as_json=as_json)


def _chosen(files: list[str] | None, **given: str | datetime | None) -> dict[str, Any]:
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value}
    if files:
        chosen["ids"] = [read_id(one) for one in files]
    if not chosen:
        raise Advice("Nothing says which files.", "Name files, or --task, --user, --site, --source, ...")
    return chosen


def _do(
    question: str, act: Callable[..., Acted], *, yes: bool, yes_to: int | None, dry_run: bool, as_json: bool
) -> None:
    if dry_run or not (yes or yes_to is not None):
        preview = act(dry_run=True)
        if dry_run and as_json:
            _print_json(preview)
            return
        console.print("This would happen:")
        _show(preview)
        if dry_run:
            return
        typer.confirm(question, abort=True, err=True)
        yes_to = sum(preview.counts.get(outcome, 0) for outcome in HITS)
    try:
        acted = act(expected_files=yes_to)
    except NeedsApproval as error:
        raise Advice(
            f"This is about {error.files:,} files; none was touched.",
            f"If it is meant, say --yes-to {error.files}.",
        ) from error
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
