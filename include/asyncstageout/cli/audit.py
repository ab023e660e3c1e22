"""``aso audit``: proves from the catalogue alone that no file is lost, doubled or forgotten."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from asyncstageout.catalogue.audit import Result
from asyncstageout.catalogue.audit import audit as look
from asyncstageout.cli import app, console
from asyncstageout.cli.options import AsJson, CatalogueURL, open_catalogue


@app.command()
def audit(
    *,
    since: Annotated[
        datetime | None,
        typer.Option(help="Only what was touched since then, UTC; for example the last audit."),
    ] = None,
    catalogue_url: CatalogueURL = None,
    as_json: AsJson = False,
) -> None:
    """Prove that every file is in exactly one legal place and every move is on record.

    Reads only, and may run at any time. The exit code is 0 when everything holds, else 1.
    """
    with open_catalogue(catalogue_url) as conn:
        results = list(look(conn, since.replace(tzinfo=UTC) if since else None))
    holds = not any(result.violations for result in results)
    if as_json:
        sys.stdout.write(json.dumps({"holds": holds, "invariants": [asdict(one) for one in results]}) + "\n")
    else:
        console.print(_table(results))
        _print_samples(results)
    raise typer.Exit(0 if holds else 1)


def _table(results: list[Result]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("invariant", no_wrap=True)
    table.add_column("violations", justify="right", no_wrap=True)
    table.add_column("seconds", justify="right", no_wrap=True)
    table.add_column("proves that")
    for one in results:
        count = Text(f"{one.violations:,}", style="red" if one.violations else "green")
        table.add_row(one.name, count, f"{one.took_s:.1f}", one.proves)
    return table


def _print_samples(results: list[Result]) -> None:
    for one in results:
        if one.violations:
            console.print(f"\n{one.name}: {one.violations:,} violations, for example", style="red")
        for where, what in one.samples:
            console.print(f"  {where}  {what}", markup=False, soft_wrap=True)
