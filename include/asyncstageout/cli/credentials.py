"""``aso credentials``: whose credentials are good, until when, and who waits for one."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from asyncstageout.catalogue.credentials import CredentialNote, DelegationNote, delegations
from asyncstageout.catalogue.credentials import credentials as look
from asyncstageout.cli import app, console
from asyncstageout.cli.options import AsJson, CatalogueURL, open_catalogue

SOON = timedelta(days=1)


@app.command()
def credentials(
    *,
    troubled: Annotated[
        bool, typer.Option("--troubled", help="Only those that are missing, refused or end soon.")
    ] = False,
    catalogue_url: CatalogueURL = None,
    as_json: AsJson = False,
) -> None:
    """List what is known of credentials, as the DAG "Stage-out: credentials" last saw them.

    Those in trouble come first. No credential is shown, or kept in the catalogue.
    """
    with open_catalogue(catalogue_url) as conn:
        notes = [note for note in look(conn) if note.problem or not troubled]
        given = [note for note in delegations(conn) if note.problem or not troubled]
    if as_json:
        rows = {"credentials": [asdict(one) for one in notes], "delegations": [asdict(one) for one in given]}
        sys.stdout.write(json.dumps(rows, default=datetime.isoformat) + "\n")
        return
    if not (notes or given):
        console.print("Nothing is known yet, or nobody is in trouble. The DAG looks every half hour.")
        return
    console.print(_credentials(notes))
    if given:
        console.print()
        console.print(_delegations(given))
    troubles = [(one.identity, one.problem) for one in notes] + [(one.identity, one.problem) for one in given]
    for identity, problem in troubles:
        if problem:
            console.print(f"\n{identity}", style="red", markup=False)
            console.print(f"  {problem}", markup=False, soft_wrap=True)


def _credentials(notes: list[CredentialNote]) -> Table:
    table = _table("identity", "kind", "ends", "files waiting", "subject", "VOMS")
    for one in notes:
        voms = one.fqans[0] if one.fqans else ""
        waiting = f"{one.waiting_files:,}"
        table.add_row(one.identity, one.kind or "none", _end(one), waiting, one.subject or "", voms)
    return table


def _delegations(notes: list[DelegationNote]) -> Table:
    table = _table("FTS", "may act for", "until", "delegation")
    for one in notes:
        table.add_row(one.fts_server, one.identity, _end(one), one.delegation_id or "")
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column.startswith("files") else "left")
    return table


def _end(note: CredentialNote | DelegationNote) -> Text:
    if note.expires_at is None:
        return Text("unknown", style="red" if note.problem else "")
    left = note.expires_at - datetime.now(UTC)
    style = "red" if note.problem else "yellow" if left < SOON else "green"
    return Text(f"{note.expires_at:%Y-%m-%d %H:%M} UTC", style=style)
