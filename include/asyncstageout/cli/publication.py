"""``aso publication``: how far a task's files are in DBS, and what moves them on, over the REST API."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime
from itertools import islice
from typing import Annotated, Any

import typer
from rich.table import Table

from asyncstageout.cli import Advice, app, console
from asyncstageout.cli.api_access import APIUrl, TokenFile, stageout_at
from asyncstageout.cli.options import AsJson
from asyncstageout.client import Block, Publication
from asyncstageout.core.states import BlockState, PublicationState

commands = typer.Typer(help="Publication of tasks in DBS: how far, which blocks, once more.")
app.add_typer(commands, name="publication")

Task = Annotated[str, typer.Argument(help="Full name of the task.")]


@commands.command()
def show(
    task: Task, *, api_url: APIUrl = None, token_file: TokenFile = None, as_json: AsJson = False
) -> None:
    """Say how many files of a task are published, and why others are not."""
    with stageout_at(api_url, token_file) as client:
        _show(client.publication(task), as_json=as_json)


@commands.command()
def blocks(
    task: Task,
    *,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 20,
    api_url: APIUrl = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """List the blocks into which a task's files went."""
    with stageout_at(api_url, token_file) as client:
        found = list(islice(client.blocks(task), limit))
    if as_json:
        _print_json([asdict(one) for one in found])
        return
    table = Table(box=None, pad_edge=False)
    for title, justify in (("state", "left"), ("files", "right"), ("lumis", "right"), ("at", "left")):
        table.add_column(title, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("block", overflow="fold")
    table.add_column("why", overflow="fold")
    for one in found:
        why = one.reason if one.state != BlockState.PUBLISHED else one.close_reason
        table.add_row(
            one.state, f"{one.files:,}", f"{one.lumis:,}", _when(one), one.name, why or one.close_reason or ""
        )
    console.print(
        table if found else "No blocks yet: files go into one when they have arrived with metadata."
    )


@commands.command()
def retry(
    task: Task,
    *,
    comment: Annotated[str, typer.Option(help="Why; it stands in the history of each file.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask first.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would happen.")] = False,
    api_url: APIUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Publish the files of a task again whose publication was given up."""
    with stageout_at(api_url, token_file) as client:
        if dry_run or not yes:
            preview = client.retry_publication(task, dry_run=True)
            console.print(f"{preview.sentence}.", soft_wrap=True)
            if dry_run or not preview.files:
                return
            typer.confirm("Publish them again?", abort=True, err=True)
        console.print(f"{client.retry_publication(task, comment=comment).sentence}.", soft_wrap=True)


@commands.command()
def complete(
    task: Task,
    *,
    reopen: Annotated[bool, typer.Option("--reopen", help="More files come after all.")] = False,
    api_url: APIUrl = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Say that no more files of a task come: its blocks are closed and published as they are."""
    with stageout_at(api_url, token_file) as client:
        _show(client.set_publication(task, is_complete=not reopen), as_json=as_json)


@commands.command(name="set")
def set_(
    task: Task,
    *,
    dbs: Annotated[str | None, typer.Option(help="Connection of the DBS instance, for new blocks.")] = None,
    input_dataset: Annotated[str | None, typer.Option(help="What its jobs read; empty: nothing.")] = None,
    with_parents: Annotated[
        bool | None, typer.Option("--with-parents/--without-parents", help="Whether parents are told.")
    ] = None,
    api_url: APIUrl = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Say into which DBS, with which input and parents a task's files go."""
    if dbs is None and input_dataset is None and with_parents is None:
        raise Advice("Nothing says what to set.", "Give --dbs, --input-dataset or --with-parents.")
    with stageout_at(api_url, token_file) as client:
        found = client.set_publication(task, dbs=dbs, input_dataset=input_dataset, with_parents=with_parents)
        _show(found, as_json=as_json)


def sentence(found: Publication) -> str:
    """Say where the files are, in the order of their way."""
    parts = [f"{count:,} {state}" for state in PublicationState if (count := found.files.get(state, 0))]
    said = f"{found.task}: {', '.join(parts) or 'no files'}; into {found.dbs}"
    if found.input_dataset:
        said += f", input {found.input_dataset}"
    return said + (", with parents" if found.with_parents else "")


def _show(found: Publication, *, as_json: bool) -> None:
    if as_json:
        _print_json(asdict(found))
        return
    console.print(sentence(found), soft_wrap=True)
    counts = ", ".join(f"{count:,} {state}" for state, count in found.blocks.items())
    console.print(f"Blocks: {counts or 'none'}", soft_wrap=True)
    if found.waiting_files:
        console.print(
            f"{found.waiting_files:,} have arrived and are in no block:"
            " without metadata, or of a publisher outside.",
            soft_wrap=True,
        )
    _reasons("Blocks wait:", ((one["blocks"], one["reason"]) for one in found.waiting))
    _reasons("Files failed:", ((one["files"], one["reason"]) for one in found.failures))


def _reasons(title: str, rows: Iterable[tuple[int, str | None]]) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(justify="right")
    table.add_column(overflow="fold")
    for count, reason in rows:
        table.add_row(f"{count:,}", reason or "without a reason")
    if table.row_count:
        console.print(title)
        console.print(table)


def _when(block: Block) -> str:
    at = block.settled_at or block.closed_at or block.opened_at
    return f"{at:%Y-%m-%d %H:%M}"


def _print_json(found: Any) -> None:
    sys.stdout.write(json.dumps(found, default=datetime.isoformat) + "\n")
