"""``aso metrics``: what a monitoring system is told, and what it means."""

from __future__ import annotations

import sys

import typer
from starlette.datastructures import State

from asyncstageout.api.metrics import current, reference
from asyncstageout.cli import app
from asyncstageout.cli.options import CatalogueURL, open_catalogue

metrics = typer.Typer(help="What a monitoring system is told.")
app.add_typer(metrics, name="metrics")


@metrics.callback(invoke_without_command=True)
def default(context: typer.Context, *, catalogue_url: CatalogueURL = None) -> None:
    """Print all numbers as Prometheus reads them."""
    if not context.invoked_subcommand:
        with open_catalogue(catalogue_url) as conn:
            sys.stdout.write(current(conn, State()))


@metrics.command("reference")
def reference_command() -> None:
    """Print what they mean, as Markdown: docs/reference/metrics.md."""
    sys.stdout.write(reference())
