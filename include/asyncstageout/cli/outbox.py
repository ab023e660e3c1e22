"""``aso outbox``: what subscribers still have to hear, and the dead letters."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Annotated, NamedTuple

import psycopg
import typer
from rich.table import Table
from rich.text import Text

from asyncstageout.catalogue import dead_letters
from asyncstageout.catalogue.dead_letters import MAX_MESSAGES, Chosen
from asyncstageout.catalogue.step_runs import Actor
from asyncstageout.cli import Advice, app, console
from asyncstageout.cli.options import AsJson, CatalogueURL, open_catalogue, who
from asyncstageout.steps.recording import Summary, recorded

outbox = typer.Typer(help="What subscribers still have to hear; dead letters: look, replay, discard.")
app.add_typer(outbox, name="outbox")

Numbers = Annotated[
    list[int] | None, typer.Argument(metavar="[NUMBER]...", help="As `aso outbox dead` shows.")
]
Subscription = Annotated[str | None, typer.Option(help="Only of this subscription.")]
User = Annotated[str | None, typer.Option(help="Only about files of this user.")]
Problem = Annotated[str | None, typer.Option(help="Only where the receiver said this, or a part of it.")]
OlderThan = Annotated[int | None, typer.Option(min=0, metavar="HOURS", help="Only what is dead for so long.")]
Everything = Annotated[bool, typer.Option("--all", help="All dead letters.")]
Comment = Annotated[str, typer.Option(help="Why; it stands in the history of each file.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask first.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would happen.")]


class Deed(NamedTuple):
    """What can be done with dead letters."""

    name: str
    participle: str
    act: Callable[..., int]


REPLAY = Deed("replay", "sent again", dead_letters.replay)
DISCARD = Deed("discard", "given up", dead_letters.discard)


@outbox.callback(invoke_without_command=True)
def default(
    context: typer.Context,
    *,
    subscription: Subscription = None,
    catalogue_url: CatalogueURL = None,
    as_json: AsJson = False,
) -> None:
    """Show what each subscriber still has to hear, since when, and what is dead."""
    if context.invoked_subcommand:
        return
    with open_catalogue(catalogue_url) as conn:
        found = dead_letters.backlogs(conn, subscription)
    if as_json:
        sys.stdout.write(json.dumps([one._asdict() for one in found], default=str) + "\n")
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("subscription")
    for title in ("waiting", "oldest", "dead"):
        table.add_column(title, justify="right")
    table.add_column("state", overflow="fold")
    now = datetime.now(UTC)
    for one in found:
        oldest = _age(now - one.oldest_at) if one.oldest_at else ""
        state = f"failing since {one.failing_since:%H:%M}: {one.problem}" if one.failing_since else one.state
        table.add_row(Text(one.subscription), f"{one.pending:,}", oldest, f"{one.dead:,}", Text(state))
    console.print(table if found else "Nobody is told of anything.")


@outbox.command()
def dead(
    *,
    subscription: Subscription = None,
    user: User = None,
    problem: Problem = None,
    older_than: OlderThan = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 50,
    catalogue_url: CatalogueURL = None,
    as_json: AsJson = False,
) -> None:
    """List dead letters: what a receiver refused for more than a day."""
    chosen = _chosen(None, subscription, user, problem, older_than)
    with open_catalogue(catalogue_url) as conn:
        letters = dead_letters.dead_letters(conn, chosen, limit=limit)
        total = dead_letters.count_dead(conn, chosen)
    if as_json:
        sys.stdout.write(json.dumps([asdict(one) for one in letters], default=str) + "\n")
        return
    table = Table(box=None, pad_edge=False)
    for title in ("number", "file", "behind it"):
        table.add_column(title, justify="right")
    for title in ("subscription", "event", "user", "since", "why"):
        table.add_column(title, overflow="fold")
    for one in letters:
        event = f"{one.message.partition('-')[0]}:{one.to_state}"
        table.add_row(
            str(one.number), str(one.transfer_id), str(one.holds_back), Text(one.subscription), event,
            one.username, f"{one.dead_at:%Y-%m-%d %H:%M}", Text(one.problem),
        )  # fmt: skip
    console.print(table if letters else "No dead letters.")
    if total > len(letters):
        _say(f"{total:,} in all; --limit shows more.")


@outbox.command()
def replay(
    numbers: Numbers = None,
    *,
    subscription: Subscription = None,
    user: User = None,
    problem: Problem = None,
    older_than: OlderThan = None,
    everything: Everything = False,
    comment: Comment = "",
    yes: Yes = False,
    dry_run: DryRun = False,
    catalogue_url: CatalogueURL = None,
) -> None:
    """Send dead letters again, with all their tries."""
    chosen = _chosen(numbers, subscription, user, problem, older_than, everything=everything)
    _do(catalogue_url, REPLAY, chosen, comment, yes=yes, dry_run=dry_run)


@outbox.command()
def discard(
    numbers: Numbers = None,
    *,
    subscription: Subscription = None,
    user: User = None,
    problem: Problem = None,
    older_than: OlderThan = None,
    everything: Everything = False,
    comment: Comment = "",
    yes: Yes = False,
    dry_run: DryRun = False,
    catalogue_url: CatalogueURL = None,
) -> None:
    """Give dead letters up for ever; later messages of their files go out."""
    chosen = _chosen(numbers, subscription, user, problem, older_than, everything=everything)
    _do(catalogue_url, DISCARD, chosen, comment, yes=yes, dry_run=dry_run)


def _chosen(
    numbers: list[int] | None,
    subscription: str | None,
    user: str | None,
    problem: str | None,
    older_than_h: int | None,
    *,
    everything: bool | None = None,
) -> Chosen:
    """Return what is meant.

    Raises:
        Advice: everything and something, or neither; None: neither is everything.
    """
    before = None if older_than_h is None else datetime.now(UTC) - timedelta(hours=older_than_h)
    chosen = Chosen(numbers or None, subscription, user, problem, before)
    if everything is not None and everything == any(one is not None for one in chosen):
        raise Advice(
            "Everything, or what?" if everything else "Which dead letters?",
            "Numbers, --subscription, --user, --problem, --older-than, or --all. `aso outbox dead` lists.",
        )
    return chosen


def _do(url: str | None, deed: Deed, chosen: Chosen, comment: str, *, yes: bool, dry_run: bool) -> None:
    with open_catalogue(url) as conn:
        count = dead_letters.count_dead(conn, chosen)
        if dry_run or not count:
            _say(f"{_letters(count)} would be {deed.participle}." if count else "No such dead letters.")
            return
        if not yes:
            typer.confirm(f"{_letters(count)} will be {deed.participle}. Go on?", abort=True, err=True)
        changed = _recorded(conn, deed, chosen, comment)
    left = " The same command goes on with the rest." if changed == MAX_MESSAGES else ""
    _say(f"Done: {_letters(changed)} {deed.participle}.{left}")


def _recorded(conn: psycopg.Connection, deed: Deed, chosen: Chosen, comment: str) -> int:
    said = f"by {who()}" + (f": {comment}" if comment else "")
    counts: list[int] = []

    def step(step_run: int) -> Summary:
        counts.append(deed.act(conn, chosen, comment=said, step_run=step_run))
        return Summary(f"{_letters(counts[0])} {deed.participle}", {"letters": counts[0]})

    recorded(conn, Actor(f"aso outbox {deed.name}", who()), step)
    return counts[0]


def _letters(count: int) -> str:
    return f"{count:,} dead letter{'' if count == 1 else 's'}"


def _age(age: timedelta) -> str:
    """Say how long, in the largest unit that fits.

    >>> _age(timedelta(minutes=90))
    '1 h'
    """
    seconds = int(age.total_seconds())
    units = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))
    size, unit = next(((size, unit) for size, unit in units if seconds >= size), (1, "s"))
    return f"{seconds // size} {unit}"


def _say(text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)
