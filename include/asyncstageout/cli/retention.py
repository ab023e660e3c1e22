"""``aso retention``: for how long the past is kept, and what of it is gone."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from itertools import groupby
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from asyncstageout.catalogue.pruning import PRUNES
from asyncstageout.catalogue.retention import (
    horizons,
    retention_settings,
    set_retention,
    unset_retention,
)
from asyncstageout.catalogue.retention import retention as kept
from asyncstageout.cli import Advice, app, console
from asyncstageout.cli.options import AsJson, CatalogueURL, open_catalogue, who
from asyncstageout.cli.policies import meanings, say
from asyncstageout.core.retention import Retention, WrongRetention, read_days

retention = typer.Typer(help="For how long the past is kept, and what of it is gone.", no_args_is_help=True)
app.add_typer(retention, name="retention")

TAKES_EFFECT = "From the next run of stageout_statistics on. What is dropped does not come back."

REFERENCE_HEAD = """\
# For how long the past is kept

Made by `aso retention reference`; how to use it: [the past](../how-to/history.md). Days are whole numbers, at
most 36,500. Partitions go as a whole, when all of them is older: events by the day, files and statistics by
the month.

| setting | default | meaning |
|---|---|---|"""
REFERENCE_ROWS = """
Rows of these tables are deleted one by one:

| table | when | because |
|---|---|---|"""
AGES = {
    "events": "older than the events that are still there",
    "history": "older than the files that are still there",
    None: "at once",
}


@retention.command("set")
def set_command(
    settings: Annotated[list[str], typer.Argument(metavar="NAME=VALUE...", help="Such as events_days=60.")],
    *,
    catalogue_url: CatalogueURL = None,
) -> None:
    """Set for how many days things are kept, or where each day is exported to. `none` is no place."""
    wanted = dict(_setting(text) for text in settings)
    try:
        with open_catalogue(catalogue_url) as conn:
            changed = set_retention(conn, wanted, who())
    except WrongRetention as error:
        raise _refused(error) from error
    said = ", ".join(f"{name}={_shown(value)}" for name, value in wanted.items())
    say(f"{said}. {TAKES_EFFECT}" if changed else f"{said} already. Nothing was changed.")


@retention.command("unset")
def unset_command(
    names: Annotated[list[str], typer.Argument(metavar="NAME...")], *, catalogue_url: CatalogueURL = None
) -> None:
    """Let the defaults count again."""
    try:
        with open_catalogue(catalogue_url) as conn:
            dropped = unset_retention(conn, names, who())
    except WrongRetention as error:
        raise _refused(error) from error
    if not dropped:
        raise Advice("Nothing of that is set.", "`aso retention show` tells what counts.")
    say(f"{', '.join(dropped)} no longer set. {TAKES_EFFECT}")


@retention.command("show")
def show_command(*, catalogue_url: CatalogueURL = None, as_json: AsJson = False) -> None:
    """Show what counts, who set it, and up to when what is gone."""
    with open_catalogue(catalogue_url) as conn:
        values, settings, gone = kept(conn).model_dump(), retention_settings(conn), horizons(conn)
    if as_json:
        facts = {"settings": values, "gone": [asdict(one) for one in gone]}
        sys.stdout.write(json.dumps(facts, default=str) + "\n")
        return
    table = Table("setting", "value", "by", box=None, pad_edge=False)
    for name, value in values.items():
        by = settings[name].updated_by if name in settings else ""
        table.add_row(*(Text(cell, "" if by else "dim") for cell in (name, _shown(value), by)))
    console.print(table)
    if not gone:
        say("\nNothing of the past is gone.")
        return
    table = Table("gone", "up to (UTC)", "rows, about", "last", box=None, pad_edge=False)
    for name, group in groupby(gone, key=lambda one: one.table):
        parts = list(group)
        rows, last = sum(one.rows for one in parts), max(one.updated_at for one in parts)
        until = max(one.until for one in parts)
        table.add_row(name, f"{until:%Y-%m-%d %H:%M}", f"{rows:,}", f"{last:%Y-%m-%d %H:%M}")
    console.print()
    console.print(table)


@retention.command("reference")
def reference_command() -> None:
    """Print what can be set, as Markdown: docs/reference/retention.md."""
    sys.stdout.write(reference())


def reference() -> str:
    """Return the page on all settings, made of their definitions."""
    words = meanings(Retention)
    settings = [
        f"| `{name}` | `{_shown(field.default)}` | {words[name]} |"
        for name, field in Retention.model_fields.items()
    ]
    rows = [
        f"| `{one.table}` | {AGES.get(one.until, f'after `{one.until}`')} | {one.why} |" for one in PRUNES
    ]
    return "\n".join([REFERENCE_HEAD, *settings, REFERENCE_ROWS, *rows, ""])


def _setting(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not equals:
        raise Advice(f"{text!r} sets nothing.", "Write it as events_days=60.")
    return name.strip(), read_days(name.strip(), value)


def _refused(error: WrongRetention) -> Advice:
    return Advice(f"Nothing was changed: {error}.", "`aso retention reference` tells what can be set.")


def _shown(value: object) -> str:
    return "none" if value is None else str(value)
