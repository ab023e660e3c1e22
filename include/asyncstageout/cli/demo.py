"""``aso demo``: a day's output through the whole platform, before one's eyes, and checked on disk."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from types import FrameType
from typing import Annotated, Any

import psycopg
import typer
from psycopg import Connection
from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.text import Text

from asyncstageout.catalogue.lookup import (
    Delays,
    FileFilter,
    delays,
    failure_counts,
    link_count,
    list_files,
    state_counts,
)
from asyncstageout.catalogue.policies import put_policy
from asyncstageout.catalogue.step_runs import Actor
from asyncstageout.cli import Advice, app, console, grid
from asyncstageout.cli.doctor import examine
from asyncstageout.cli.doctor import show as show_result
from asyncstageout.cli.load import day_lines, fill_sites, load_requests, offer_sites, progress
from asyncstageout.cli.options import open_catalogue, who
from asyncstageout.cli.surroundings import Surroundings
from asyncstageout.cli.up import follow, show_entrance, start, stop
from asyncstageout.core.prospects import remedy
from asyncstageout.core.states import FINAL_STATES, TransferState
from asyncstageout.sandbox.arrivals import Mismatch, mismatches
from asyncstageout.sandbox.days import Day, DayFile
from asyncstageout.sandbox.faults import FaultPlan, Mix
from asyncstageout.sandbox.layout import Layout
from asyncstageout.sandbox.state import has_supervisor
from asyncstageout.steps.recording import files as say_files
from asyncstageout.steps.recording import size as say_size

S = TransferState

DEMO_POLICY = {"retry_scale": 0.002}
"""A failed file goes again within a second, not after a minute: waiting teaches nothing here."""
STUCK_S = 600.0
POLL_S = 1.0
TOLD_S = 10.0
"""Between two lines where no terminal shows the bar."""
SHOWN_MISMATCHES = 20
PHASES: dict[str, tuple[TransferState, ...]] = {
    "done": (S.DONE,),
    "in flight": (S.ACQUIRED, S.SUBMITTED, S.KILL),
    "waiting": (S.NEW,),
    "retrying": (S.RETRY,),
    "failed": (S.FAILED, S.KILLED),
}
INTERRUPTS = (signal.SIGTERM, signal.SIGHUP)


class Stuck(Exception):
    """No file of the demo changed its state for ``idle_s`` seconds."""

    def __init__(self, counts: dict[str, int], idle_s: float) -> None:
        super().__init__(f"nothing moved for {idle_s:.0f} s: {in_words(counts)}")
        self.counts = counts
        self.idle_s = idle_s


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a demo, ready to be told."""

    files: int
    size_bytes: int
    links: int
    lasted_s: float
    counts: dict[str, int]
    failures: list[tuple[str, str, int]]
    """(category, a reason of it, files)."""
    delays: Delays
    examples: list[tuple[int, str]]
    """(number of a file, why it is worth a look)."""
    mismatches: list[Mismatch]


@app.command()
def demo(
    *,
    files: Annotated[int, typer.Option(min=1, max=100_000)] = 2000,
    sites: Annotated[int, typer.Option(min=2, max=60)] = 60,
    users: Annotated[int, typer.Option(min=1)] = 40,
    failures: Annotated[float, typer.Option(min=0, max=1, help="Share of the files that fail.")] = 0.03,
    with_grid: Annotated[
        bool,
        typer.Option(
            "--grid",
            help="As on the grid: users' own certificates, two FTS servers, sites that describe themselves;"
            " two links are paused and an FTS goes down in the middle.",
        ),
    ] = False,
    seed: Annotated[int, typer.Option(help="The same seed gives the same day.")] = 1,
) -> None:
    """Start the platform if needed, move a made-up day's output through it, and check what arrived.

    Everything goes on running at the end. Ctrl-C at any time stops it all.
    """
    if "ASO_CATALOGUE_URL" in os.environ:
        raise Advice("ASO_CATALOGUE_URL is set, and the demo runs on the embedded catalogue.", "Unset it.")
    now = datetime.now(UTC)
    day = Day(
        seed=seed,
        file_count=files,
        user_count=users,
        site_count=sites,
        label=f"demo{now:%y%m%d%H%M%S}",
        starts_at=now.replace(hour=0, minute=0, second=0, microsecond=0),
    )
    try:
        with _interruptible():
            correct = _run(day, failures, with_grid=with_grid)
    except KeyboardInterrupt:
        console.print("\nInterrupted.")
        with suppress(KeyboardInterrupt), _interrupts_held():
            stop(Layout.load())
        raise typer.Exit(130) from None
    raise typer.Exit(0 if correct else 1)


def _run(day: Day, failures: float, *, with_grid: bool) -> bool:
    """Do the demo; return whether everything is where the catalogue says it is."""
    layout = _started()
    manifest = list(day.files())
    try:
        with open_catalogue(None) as conn:
            offer_sites(conn, day, layout.ports.sites, who())
            put_policy(conn, None, None, DEMO_POLICY, who())
            _set_faults(layout, FaultPlan(seed=day.seed, mix=Mix(rate=failures)))
            size_bytes = fill_sites(day, manifest, layout)
            if with_grid:
                grid.prepare(conn, day, manifest, layout)
            console.print(
                f"\n{say_files(len(manifest))}, {say_size(size_bytes)}, wait at {len(day.sites)} sites; "
                f"{failures:.0%} of them will meet a failure."
            )
            begun_s = time.monotonic()
            actor = Actor(task_id="demo", name=who())
            first = len(manifest) // 2 if with_grid else len(manifest)
            late = partial(load_requests, conn, day_lines(manifest[first:]), actor)
            trouble = grid.Trouble(layout, day.file_count, late) if with_grid else None
            with _begun(trouble, conn, manifest):
                load_requests(conn, day_lines(manifest[:first]), actor)
                _show_moving(conn, day, layout, trouble)
            outcome = _outcome(conn, day, manifest, layout, time.monotonic() - begun_s)
            owners = grid.ownership(conn, day, layout) if with_grid else None
    except Stuck as stuck:
        _explain(stuck, layout)
        return False
    except psycopg.OperationalError as error:
        raise Advice(f"The catalogue went away: {error}", "See `aso status`.") from error
    for line in (*summary(outcome), *(owners.sentences() if owners else ())):
        console.print(line, soft_wrap=True)
    show_entrance(layout)
    return not outcome.mismatches and not (owners and owners.wrong)


@contextmanager
def _begun(trouble: grid.Trouble | None, conn: Connection, manifest: Sequence[DayFile]) -> Iterator[None]:
    if trouble is None:
        yield
        return
    try:
        trouble.begin(conn, grid.busiest_links(manifest))
        yield
    finally:
        trouble.end(conn)


def _started() -> Layout:
    layout = Layout.load()
    if not has_supervisor(layout.lock_file):
        console.print("Starting the platform (half a minute the first time).")
        # Between its birth and its first word nobody could tell it to stop.
        with _interrupts_held():
            start(layout)
    follow(layout)
    return Layout.load(layout.home)


def _set_faults(layout: Layout, plan: FaultPlan) -> None:
    for name in grid.SERVICES:
        with Surroundings(layout).fts_named(name).client() as fts:
            fts.ask("PUT", "/sandbox/faults", body=plan.model_dump(mode="json"))


def counts_until_final(
    conn: Connection,
    day: Day,
    *,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], object] = time.sleep,
) -> Iterator[dict[str, int]]:
    """Yield how many of the day's files are in each state, every second, until all are final.

    Raises:
        Stuck: nothing changed for 10 minutes.
    """
    last: dict[str, int] = {}
    changed_s = clock()
    while True:
        counts = state_counts(conn, day.task_pattern)
        yield counts
        if final_files(counts) >= day.file_count:
            return
        if counts != last:
            last, changed_s = counts, clock()
        elif clock() - changed_s > STUCK_S:
            raise Stuck(counts, clock() - changed_s)
        pause(POLL_S)


def final_files(counts: dict[str, int]) -> int:
    return sum(counts.get(state, 0) for state in FINAL_STATES)


def in_words(counts: dict[str, int]) -> str:
    """Say where the files are.

    >>> in_words({"DONE": 3, "NEW": 1})
    '3 done, 0 in flight, 1 waiting, 0 retrying, 0 failed'
    """
    return ", ".join(
        f"{sum(counts.get(state, 0) for state in states):,} {phase}" for phase, states in PHASES.items()
    )


def _show_moving(conn: Connection, day: Day, layout: Layout, trouble: grid.Trouble | None) -> None:
    begun_s = told_s = time.monotonic()
    with Live(console=console, auto_refresh=False, transient=True) as live:
        for counts in counts_until_final(conn, day):
            if not has_supervisor(layout.lock_file):
                raise Advice("The platform was stopped.", f"Logs: {layout.logs}. `aso demo` starts it again.")
            now_s = time.monotonic()
            final = final_files(counts)
            if trouble and (happened := trouble.tick(conn, final, now_s)):
                console.print(happened)
            words = f"{in_words(counts)}; {final / max(now_s - begun_s, 1):.0f} files/s"
            if console.is_terminal:
                bar = ProgressBar(total=day.file_count, completed=final, width=60)
                live.update(Group(bar, Text(words)), refresh=True)
            elif now_s - told_s >= TOLD_S:
                told_s = now_s
                console.print(words)


def _explain(stuck: Stuck, layout: Layout) -> None:
    console.print(f"[red]The demo is stuck[/red]: {stuck}.\n")
    with closing(Surroundings(layout)) as patient:
        for result in examine(patient):
            show_result(result)
    console.print(f"\nLogs: {layout.logs}. Everything still runs; stop it with `aso down`.", soft_wrap=True)


def _outcome(
    conn: Connection, day: Day, manifest: Sequence[DayFile], layout: Layout, lasted_s: float
) -> Outcome:
    rows = _rows(conn, manifest)
    states = {row["request_id"]: row["state"] for row in rows}
    size_bytes = sum(file.size_bytes for file in manifest)
    with progress("checking files", size_bytes) as advance:
        wrong = mismatches(manifest, states, layout.sites, advance)
    return Outcome(
        files=len(manifest),
        size_bytes=size_bytes,
        links=link_count(conn, day.task_pattern),
        lasted_s=lasted_s,
        counts=state_counts(conn, day.task_pattern),
        failures=failure_counts(conn, day.task_pattern),
        delays=delays(conn, day.task_pattern),
        examples=_examples(rows),
        mismatches=wrong,
    )


def _rows(conn: Connection, manifest: Sequence[DayFile]) -> list[dict[str, Any]]:
    """Return what the catalogue says of the day's files."""
    tasks = Counter(file.request["task"] for file in manifest)
    return [
        row for task, count in tasks.items() for row in list_files(conn, FileFilter(task=task), limit=count)
    ]


def _examples(rows: Sequence[dict[str, Any]]) -> list[tuple[int, str]]:
    """Return one file of each kind that is worth a look."""
    kinds: dict[str, Callable[[dict[str, Any]], bool]] = {
        "DONE at its first attempt": lambda row: row["state"] == S.DONE and row["attempt"] == 1,
        "DONE after a failure": lambda row: row["state"] == S.DONE and row["attempt"] > 1,
        "FAILED": lambda row: row["state"] == S.FAILED,
    }
    found = ((next(filter(is_one, rows), None), kind) for kind, is_one in kinds.items())
    return [(row["id"], kind) for row, kind in found if row is not None]


def summary(outcome: Outcome) -> Iterator[str]:
    """Yield the last lines of a demo, as rich text."""
    rate = outcome.files / max(outcome.lasted_s, 0.001)
    yield (
        f"\n[bold]{say_files(outcome.files)}[/], {say_size(outcome.size_bytes)} on {outcome.links:,} links "
        f"in {outcome.lasted_s:.0f} s, {rate:.0f} files/s: "
        + ", ".join(f"{count:,} {state}" for state, count in sorted(outcome.counts.items()))
    )
    yield from _said_of_disks(outcome)
    if outcome.failures:
        yield "\nWhat failed for good"
        for category, reason, count in outcome.failures:
            yield f"  {count:>5,} {category}: {remedy(category).meaning}\n        {escape(reason)}"
    yield "\nDelays                                  p50      p95"
    for what, p50_s, p95_s in (
        ("  from arrival to accepted by FTS", outcome.delays.accepted_p50_s, outcome.delays.accepted_p95_s),
        ("  from its end in FTS to DONE", outcome.delays.settled_p50_s, outcome.delays.settled_p95_s),
    ):
        yield f"{what:<36}{_seconds(p50_s)} {_seconds(p95_s)}"
    yield "\nThe whole story of a file"
    for number, kind in outcome.examples:
        yield f"  aso files show {number:<10} {kind}"


def _said_of_disks(outcome: Outcome) -> Iterator[str]:
    if not outcome.mismatches:
        done = outcome.counts.get(S.DONE, 0)
        yield (
            f"[green]Checked on disk[/]: {say_files(done)} DONE, with the right size and checksum; "
            f"of the {outcome.files - done:,} others none is complete."
        )
        return
    yield f"[red]Checked on disk: {say_files(len(outcome.mismatches))} are not as the catalogue says[/]"
    for mismatch in outcome.mismatches[:SHOWN_MISMATCHES]:
        yield f"  {escape(str(mismatch))}"
    if (left_out := len(outcome.mismatches) - SHOWN_MISMATCHES) > 0:
        yield f"  and {left_out:,} more"


def _seconds(value_s: float | None) -> str:
    return f"{value_s:6.1f} s" if value_s is not None else "     - s"


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let a polite kill, and a terminal that closes, do what Ctrl-C does."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in INTERRUPTS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Let interrupts wait until the block is over."""
    came: list[int] = []
    numbers = (signal.SIGINT, *INTERRUPTS)
    before = {number: signal.signal(number, lambda *_: came.append(1)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt
