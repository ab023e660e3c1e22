"""``aso load``: files for the catalogue, from a list or from a made-up day."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer
from psycopg import Connection
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from asyncstageout.catalogue.intake import OUTCOMES, add_transfers
from asyncstageout.catalogue.partitions import ensure_partitions
from asyncstageout.catalogue.step_runs import Actor
from asyncstageout.catalogue.storages import put_sites, site_urls
from asyncstageout.cli import Advice, app, console
from asyncstageout.cli.options import AsJson, CatalogueURL, open_catalogue, who
from asyncstageout.core.requests import read_requests
from asyncstageout.sandbox.days import DEMO_MEDIAN_BYTES, REAL_MEDIAN_BYTES, Day, DayFile, write_files
from asyncstageout.sandbox.layout import Layout
from asyncstageout.sandbox.sites.names import DOMAIN, site_pfn
from asyncstageout.steps.recording import Summary, recorded

Advance = Callable[[int], object]

BATCH = 10_000
SHOWN_REFUSALS = 20
ROOM_BYTES = 500_000_000
"""What stays free on the disk after a day was written twice, at its sources and at its destinations."""


@dataclass(frozen=True, slots=True)
class Line:
    """One request of a list. ``record`` is whatever JSON it holds; ``problem`` says why there is none."""

    number: int
    """From 1."""
    record: Any = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class RefusedLine:
    number: int
    source_lfn: str
    reason: str


@dataclass
class Loaded:
    """What became of a list."""

    outcomes: Counter[str] = field(default_factory=Counter)
    """By :data:`asyncstageout.catalogue.intake.OUTCOMES`."""
    refusals: list[RefusedLine] = field(default_factory=list)
    """The first ones, in the order of their lines."""

    @property
    def counts(self) -> dict[str, int]:
        return {outcome: self.outcomes[outcome] for outcome in OUTCOMES}

    @property
    def sentence(self) -> str:
        counts = self.counts
        again = f"{counts['again']:,} sent again, " if counts["again"] else ""
        return (
            f"{counts['created']:,} files taken in, {again}{counts['exists']:,} were there already, "
            f"{counts['refused']:,} refused."
        )


@app.command()
def load(
    file: Annotated[str | None, typer.Argument(help="NDJSON: one request per line; - is the input.")] = None,
    *,
    day: Annotated[bool, typer.Option("--day", help="Make up a realistic day of output instead.")] = False,
    seed: Annotated[int, typer.Option(help="Of the day; the same seed gives the same day.")] = 1,
    files: Annotated[int, typer.Option(help="Of the day.", min=0)] = 2000,
    users: Annotated[int, typer.Option(help="Of the day.", min=1)] = 1000,
    sites: Annotated[int, typer.Option(help="Of the day.", min=2, max=60)] = 60,
    no_bytes: Annotated[
        bool,
        typer.Option("--no-bytes", help="Only requests, of real sizes, for an FTS that copies nothing."),
    ] = False,
    catalogue_url: CatalogueURL = None,
    as_json: AsJson = False,
) -> None:
    """Take files into the catalogue, from a list or from a made-up day.

    A bad line is refused with its number and the reason, and the rest go on; the exit code is then 1.
    """
    if day == (file is not None):
        raise Advice(
            "Nothing to load." if not day else "A list or a day, not both.", "See `aso load --help`."
        )
    with open_catalogue(catalogue_url) as conn:
        if file is not None:
            loaded = _load_list(conn, file)
        else:
            made_up = _day(seed, files, users, sites, with_bytes=not no_bytes)
            loaded = _load_day(conn, made_up, with_bytes=not no_bytes)
    show_loaded(loaded, as_json=as_json)
    raise typer.Exit(1 if loaded.outcomes["refused"] else 0)


def load_requests(conn: Connection, lines: Iterable[Line], actor: Actor) -> Loaded:
    """Take requests in, in batches of 10,000, as one step on record."""
    loaded = Loaded()
    # A list may come before the first cycle of the day: its events then need not be moved later.
    ensure_partitions(conn, datetime.now(UTC).date())

    def take_all(step_run: int) -> Summary:
        remaining = iter(lines)
        while batch := list(islice(remaining, BATCH)):
            _load_batch(conn, batch, step_run, loaded)
        return Summary(loaded.sentence, loaded.counts)

    recorded(conn, actor, take_all)
    return loaded


def _load_batch(conn: Connection, batch: list[Line], step_run: int, loaded: Loaded) -> None:
    refused = [RefusedLine(line.number, "", line.problem) for line in batch if line.problem]
    readable = [line for line in batch if not line.problem]
    good, bad = read_requests(line.record for line in readable)
    refused += [
        RefusedLine(readable[item.position].number, item.source_lfn, f"{item.field}: {item.reason}")
        for item in bad
    ]
    answers = add_transfers(conn, good, step_run)
    lfns = {position: request.source_lfn for position, request in good}
    refused += [
        RefusedLine(readable[answer.position].number, lfns[answer.position], answer.reason or "")
        for answer in answers
        if answer.outcome == "refused"
    ]
    loaded.outcomes.update(answer.outcome for answer in answers if answer.outcome != "refused")
    loaded.outcomes["refused"] += len(refused)
    room = max(0, SHOWN_REFUSALS - len(loaded.refusals))
    loaded.refusals += sorted(refused, key=lambda line: line.number)[:room]


def read_lines(stream: Iterable[bytes]) -> Iterator[Line]:
    """Yield the requests of an NDJSON stream; empty lines are passed over."""
    for number, text in enumerate(stream, start=1):
        if not text.strip():
            continue
        # JSON may hold it, a text in Postgres may not, and one such line would sink its whole batch.
        if b"\\u0000" in text or b"\0" in text:
            yield Line(number, problem="it holds a NUL character")
            continue
        try:
            yield Line(number, json.loads(text))
        except (ValueError, RecursionError) as error:
            yield Line(number, problem=f"not JSON: {error}")


def day_lines(files: Iterable[DayFile]) -> Iterator[Line]:
    """Yield the requests of a made-up day."""
    for file in files:
        yield Line(file.number + 1, file.request)


def offer_sites(conn: Connection, day: Day, port: int, updated_by: str) -> None:
    """Configure the sandbox's sites in the catalogue.

    Raises:
        Advice: the catalogue knows them as real sites, which a made-up day must not touch.
    """
    real = [f"{name} ({url})" for name, url in site_urls(conn).items() if f".{DOMAIN}" not in url]
    if real:
        raise Advice(
            f"The catalogue has real sites: {', '.join(real[:3])}.",
            "A made-up day belongs into a sandbox; check --catalogue-url and ASO_CATALOGUE_URL.",
        )
    put_sites(conn, {site: site_pfn(site, "", port) for site in day.sites}, updated_by)


def fill_sites(day: Day, files: list[DayFile], layout: Layout) -> int:
    """Leave the day's files at their sources; return how many bytes they have.

    Raises:
        Advice: the disk has no room for them, twice.
    """
    size_bytes = sum(file.size_bytes for file in files)
    layout.prepare()
    free_bytes = shutil.disk_usage(layout.sites).free
    if free_bytes < 2 * size_bytes + ROOM_BYTES:
        raise Advice(
            f"The day has {size_bytes / 1e6:,.0f} MB and is kept twice, "
            f"but only {free_bytes / 1e6:,.0f} MB are free in {layout.sites}.",
            "Ask for fewer --files, make room, or delete earlier days with `aso down --wipe`.",
        )
    for site in day.sites:
        (layout.sites / site).mkdir(exist_ok=True)
    with progress("writing files", size_bytes) as advance:
        return write_files(files, day.filling, layout.sites, advance)


def _day(seed: int, files: int, users: int, sites: int, *, with_bytes: bool) -> Day:
    return Day(
        seed=seed,
        file_count=files,
        user_count=users,
        site_count=sites,
        median_bytes=DEMO_MEDIAN_BYTES if with_bytes else REAL_MEDIAN_BYTES,
        # The same command again is the same day and changes nothing; any other one has its own names.
        label=f"day{seed}x{files}x{users}x{sites}" + ("" if with_bytes else "n"),
        starts_at=datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0),
    )


def _load_list(conn: Connection, name: str) -> Loaded:
    with opened(name) as (stream, size_bytes), progress("loading", size_bytes) as advance:
        return load_requests(conn, read_lines(counted(stream, advance)), _actor())


def _load_day(conn: Connection, day: Day, *, with_bytes: bool) -> Loaded:
    layout = Layout.load()
    actor = _actor()
    offer_sites(conn, day, layout.ports.sites, actor.name)
    files: Iterable[DayFile] = day.files()
    if with_bytes:
        files = list(files)
        fill_sites(day, files, layout)
    with progress("loading", day.file_count) as advance:
        return load_requests(conn, _each(day_lines(files), advance), actor)


def _actor() -> Actor:
    return Actor(task_id="load", name=who())


@contextmanager
def opened(name: str) -> Iterator[tuple[BinaryIO, int | None]]:
    """Open a list; yield it with its size in bytes, which is unknown of the input."""
    if name == "-":
        yield sys.stdin.buffer, None
        return
    path = Path(name)
    try:
        with path.open("rb") as stream:
            yield stream, path.stat().st_size
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise Advice(f"{path} cannot be read: {error.strerror}.", "Name a file, or - .") from error


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Advance]:
    """Show a bar on the terminal's error channel while something lasts; yield what moves it on."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    errors = Console(stderr=True)
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda amount: bar.advance(task, amount)


def counted(stream: Iterable[bytes], advance: Advance) -> Iterator[bytes]:
    """Yield what is read, and say how many bytes of it there were."""
    for text in stream:
        advance(len(text))
        yield text


def _each(lines: Iterable[Line], advance: Advance) -> Iterator[Line]:
    for line in lines:
        advance(1)
        yield line


def show_loaded(loaded: Loaded, *, as_json: bool) -> None:
    """Print what became of a list, with the first of its refusals."""
    if as_json:
        refusals = [
            {"line": line.number, "source_lfn": line.source_lfn, "reason": line.reason}
            for line in loaded.refusals
        ]
        sys.stdout.write(json.dumps({**loaded.counts, "refusals": refusals}) + "\n")
        return
    console.print(loaded.sentence)
    if loaded.refusals:
        console.print(_refusal_table(loaded))


def _refusal_table(loaded: Loaded) -> Table:
    left_out = loaded.outcomes["refused"] - len(loaded.refusals)
    table = Table(box=None, pad_edge=False, caption=f"and {left_out:,} more" if left_out else None)
    table.add_column("line", justify="right")
    table.add_column("why it was refused", overflow="fold")
    for line in loaded.refusals:
        lfn = f" ({line.source_lfn})" if line.source_lfn else ""
        table.add_row(str(line.number), f"{line.reason}{lfn}")
    return table
