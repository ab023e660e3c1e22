"""``aso submit``: hand files in over the REST API."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from typing import Annotated, Any, BinaryIO

import typer

from asyncstageout.cli import Advice, app, console
from asyncstageout.cli.api_access import APIUrl, TokenFile, stageout_at
from asyncstageout.cli.load import (
    SHOWN_REFUSALS,
    Advance,
    Line,
    Loaded,
    RefusedLine,
    counted,
    opened,
    progress,
    read_lines,
    show_loaded,
)
from asyncstageout.cli.options import AsJson
from asyncstageout.client import Stageout


@app.command()
def submit(
    files: Annotated[list[str], typer.Argument(help="NDJSON or a JSON list of requests; - is the input.")],
    *,
    api_url: APIUrl = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Hand in requests to move files. What is there already stays as it is, so doing it twice does no harm.

    A bad request is refused with its line (or place in the list) and the reason, and the rest go on; the exit
    code is then 1.
    """
    any_refused = False
    with stageout_at(api_url, token_file) as client:
        for name in files:
            loaded = _submit_file(client, name)
            if len(files) > 1 and not as_json:
                console.print(f"{name}:", markup=False, soft_wrap=True)
            show_loaded(loaded, as_json=as_json)
            any_refused |= bool(loaded.outcomes["refused"])
    raise typer.Exit(1 if any_refused else 0)


def _submit_file(client: Stageout, name: str) -> Loaded:
    loaded = Loaded()
    sent: deque[Line] = deque()
    with opened(name) as (stream, size_bytes), progress("submitting", size_bytes) as advance:
        for answer in client.submit(_readable(_lines(name, stream, advance), sent, loaded)):
            line = sent.popleft()
            loaded.outcomes[answer.outcome] += 1
            if answer.outcome == "refused":
                field = f"{answer.field}: " if answer.field else ""
                _note(loaded, line, f"{field}{answer.reason}")
    loaded.refusals.sort(key=lambda line: line.number)
    return loaded


def _readable(lines: Iterator[Line], sent: deque[Line], loaded: Loaded) -> Iterator[Any]:
    for line in lines:
        if line.problem:
            loaded.outcomes["refused"] += 1
            _note(loaded, line, line.problem)
        else:
            sent.append(line)
            yield line.record


def _note(loaded: Loaded, line: Line, reason: str) -> None:
    if len(loaded.refusals) < SHOWN_REFUSALS:
        lfn = line.record.get("source_lfn", "") if isinstance(line.record, dict) else ""
        loaded.refusals.append(RefusedLine(line.number, str(lfn), reason))


def _lines(name: str, stream: BinaryIO, advance: Advance) -> Iterator[Line]:
    """Yield requests with their numbers: lines of NDJSON, or places in a list, from 1."""
    peek = getattr(stream, "peek", None)
    if peek is None or not peek(1).lstrip().startswith(b"["):
        yield from read_lines(counted(stream, advance))
        return
    try:
        records = json.loads(b"".join(counted(stream, advance)))
    except (ValueError, RecursionError) as error:
        raise Advice(f"{name} begins like a JSON list, and is none: {error}", "Mend it.") from error
    for number, record in enumerate(records, start=1):
        yield Line(number, record)
