"""``aso migrate``: the catalogue's schema."""

from __future__ import annotations

import typer

from asyncstageout.cli import Advice, app, console


@app.command()
def migrate(
    revision: str = typer.Option("head", help="Bring the catalogue up to this revision of its schema."),
) -> None:
    """Bring the catalogue's schema up to date: that of ASO_CATALOGUE_URL, else the embedded one."""
    from asyncstageout.catalogue.migrate import current_revision, upgrade  # noqa: PLC0415 -- half a second
    from asyncstageout.sandbox.airflow_env import catalogue_url  # noqa: PLC0415
    from asyncstageout.sandbox.layout import Layout  # noqa: PLC0415

    try:
        url = catalogue_url(Layout.load())
    except FileNotFoundError as error:
        raise Advice("There is no catalogue yet.", "Set ASO_CATALOGUE_URL, or run `aso up` first.") from error
    upgrade(url, revision)
    console.print(f"The catalogue is at revision {current_revision(url)}.")
