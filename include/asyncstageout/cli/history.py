"""``aso history``: days of the past as files."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, cast

import typer

from asyncstageout.catalogue.step_runs import Actor
from asyncstageout.cli import Advice, app
from asyncstageout.cli.options import CatalogueURL, open_catalogue, who
from asyncstageout.cli.policies import say
from asyncstageout.steps.export import DayGone, ExportIncomplete, ParquetMissing, Place, export_day
from asyncstageout.steps.recording import recorded

history = typer.Typer(help="The past: days of it as Parquet files.", no_args_is_help=True)
app.add_typer(history, name="history")


@history.command()
def export(
    day: Annotated[datetime, typer.Argument(formats=["%Y-%m-%d"], help="UTC, such as 2026-11-22.")],
    *,
    to: Annotated[str, typer.Option(help="Folder, or URL such as s3://bucket/stageout.")],
    conn_id: Annotated[str | None, typer.Option(help="Airflow connection of the URL's storage.")] = None,
    catalogue_url: CatalogueURL = None,
) -> None:
    """Write the files that ended on a day, and its events, to TO/transfer/DAY.parquet and so on.

    What is there is replaced. A day that is not over is written as far as it is.
    """
    if day.date() > datetime.now(UTC).date():
        raise Advice(f"{day.date()} is to come.", "Name a day that is over.")
    actor = Actor(task_id="aso history export", name=who())
    try:
        with open_catalogue(catalogue_url) as conn:
            place = _place(to, conn_id)
            said = recorded(
                conn, actor, lambda step_run: export_day(conn, day.date(), place, step_run=step_run)
            )
    except (DayGone, ParquetMissing, ExportIncomplete, OSError, ValueError) as error:
        raise Advice(f"Nothing was exported: {error}.", "Check --to, and docs/how-to/history.md.") from error
    say(said.sentence)


def _place(to: str, conn_id: str | None) -> Place:
    if "://" not in to:
        return Path(to)
    from airflow.sdk import ObjectStoragePath  # noqa: PLC0415 - seconds, which a folder need not wait for

    return cast("Place", ObjectStoragePath(to, conn_id=conn_id))
