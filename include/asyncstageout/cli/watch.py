"""``aso watch``: where a task's files are, until all have ended."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Protocol

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from asyncstageout.cli import app, console
from asyncstageout.cli.api_access import APIUrl, TokenFile, stageout_at
from asyncstageout.cli.options import AsJson
from asyncstageout.client import Task
from asyncstageout.core.states import TransferState

TIME_OVER = 3
# (a state that some file ended in, exit code): the first that fits counts.
EXIT_CODES = ((TransferState.FAILED, 1), (TransferState.KILLED, 2))


class Shown(Protocol):
    def __call__(self, status: Task) -> None: ...


@app.command()
def watch(
    task: Annotated[str, typer.Argument(help="Full name of the task.")],
    *,
    timeout: Annotated[float | None, typer.Option(help="Seconds; the exit code is 3 when over.")] = None,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks, at most.")] = 5.0,
    api_url: APIUrl = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Watch a task until all its files have ended.

    The exit code tells how: 0 all DONE, 1 some FAILED, 2 some KILLED and none FAILED, 3 time over.
    """
    ends_at_s = None if timeout is None else time.monotonic() + timeout
    with stageout_at(api_url, token_file) as client, _display(as_json=as_json) as show:
        for status in client.watch(task, poll_s=every):
            show(status)
            if status.open_files and ends_at_s is not None and time.monotonic() >= ends_at_s:
                raise typer.Exit(TIME_OVER)
    raise typer.Exit(exit_code(status))


def exit_code(status: Task) -> int:
    """Return what a task's end means to a script."""
    return next((code for state, code in EXIT_CODES if status.states.get(state)), 0)


def sentence(status: Task) -> str:
    """Say where the files are, in the order of their way."""
    parts = [f"{count:,} {state}" for state in TransferState if (count := status.states.get(state, 0))]
    return f"{status.files:,} files: {', '.join(parts) or 'none'}"


@contextmanager
def _display(*, as_json: bool) -> Iterator[Shown]:
    if as_json:
        yield _write_json
    elif console.is_terminal:
        with _bar() as show:
            yield show
    else:
        yield _lines()


def _write_json(status: Task) -> None:
    sys.stdout.write(json.dumps(asdict(status), default=datetime.isoformat) + "\n")
    sys.stdout.flush()


def _lines() -> Shown:
    """A line whenever something changed."""
    last = ""

    def show(status: Task) -> None:
        nonlocal last
        if (text := sentence(status)) != last:
            last = text
            console.print(text, soft_wrap=True)

    return show


@contextmanager
def _bar() -> Iterator[Shown]:
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console) as bar:
        row = bar.add_task("", total=None)

        def show(status: Task) -> None:
            done = status.files - status.open_files
            bar.update(row, total=status.files, completed=done, description=sentence(status))

        yield show
