"""``aso services``: the accounts of services that submit for users."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from asyncstageout.catalogue.services import put_service, remove_service, submitting_services
from asyncstageout.cli import Advice, app, console
from asyncstageout.cli.options import AsJson, CatalogueURL, open_catalogue, who
from asyncstageout.core.callers import EVERYBODY

services = typer.Typer(help="Services that submit for users over REST: list, add, remove.")
app.add_typer(services, name="services")

Name = Annotated[
    str, typer.Argument(help="Account: in Airflow, or as the front end names it.", show_default=False)
]


@services.callback(invoke_without_command=True)
def list_services(
    context: typer.Context, *, catalogue_url: CatalogueURL = None, as_json: AsJson = False
) -> None:
    """List the services, and for whom each may act."""
    if context.invoked_subcommand:
        return
    with open_catalogue(catalogue_url) as conn:
        found = submitting_services(conn)
    if as_json:
        facts = [
            {"name": one.name, "may_act_for": sorted(one.may_act_for), "updated_by": one.updated_by,
             "updated_at": one.updated_at.isoformat()}
            for one in found
        ]  # fmt: skip
        sys.stdout.write(json.dumps(facts) + "\n")
        return
    table = Table("service", "may act for", "set by", box=None, pad_edge=False)
    for one in found:
        users = "everybody" if EVERYBODY in one.may_act_for else ", ".join(sorted(one.may_act_for))
        table.add_row(Text(one.name), Text(users), Text(f"{one.updated_by} {one.updated_at:%Y-%m-%d}"))
    console.print(table if found else "No service may submit for others.")


@services.command()
def add(
    name: Name,
    *,
    user: Annotated[
        list[str] | None, typer.Option(help="May act for this user; repeat it.", show_default=False)
    ] = None,
    everybody: Annotated[bool, typer.Option("--everybody", help="May act for every user.")] = False,
    catalogue_url: CatalogueURL = None,
) -> None:
    """Let an account submit, kill, retry and see the files of users; in place of those set before."""
    if bool(user) == everybody:
        raise Advice("For whom may it act?", "--user NAME, as often as needed, or --everybody.")
    users = [EVERYBODY] if everybody else user or []
    with open_catalogue(catalogue_url) as conn:
        changed = put_service(conn, name, users, who())
    said = "everybody" if everybody else ", ".join(sorted(set(users)))
    end = "It counts within ten seconds." if changed else "So it was before."
    console.print(f"{name} may act for {said}. {end}", markup=False, soft_wrap=True)


@services.command()
def remove(name: Name, *, catalogue_url: CatalogueURL = None) -> None:
    """Let an account act for itself alone."""
    with open_catalogue(catalogue_url) as conn:
        if not remove_service(conn, name, who()):
            raise Advice(f"{name} is no service.", "`aso services` lists them.")
    console.print(f"{name} may act for itself alone.", markup=False)
