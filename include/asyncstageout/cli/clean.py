"""``aso clean``: temporary copies that wait, deletions that were given up, and what sweeps found."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.table import Table

from asyncstageout.catalogue.cleaning_views import SiteView, cleaning_status, failed_copies, try_again
from asyncstageout.catalogue.step_runs import Actor
from asyncstageout.catalogue.sweeps import SweepView, sweep_views, swept_areas
from asyncstageout.cli import Advice, app, console
from asyncstageout.cli.options import AsJson, CatalogueURL, open_catalogue, who
from asyncstageout.steps.recording import Summary, recorded, size

clean_app = typer.Typer(
    help="Temporary copies: what waits to be deleted, what was given up, what nobody needs.",
    no_args_is_help=True,
)
app.add_typer(clean_app, name="clean")

Site = Annotated[str | None, typer.Option(help="Only at this site, such as T2_IT_Bari.")]
Limit = Annotated[int, typer.Option(min=1, max=100_000, help="Lines at most.")]


@clean_app.command()
def status(*, site: Site = None, catalogue_url: CatalogueURL = None, as_json: AsJson = False) -> None:
    """Show each site with temporary copies: due, waiting, resting, given up; and whose storage is silent."""
    with open_catalogue(catalogue_url) as conn:
        views = cleaning_status(conn, site)
    if as_json:
        _print_json([asdict(view) for view in views])
        return
    if not views:
        console.print("No temporary copy waits to be deleted.")
        return
    table = _table("site", "due", "bytes", "waiting", "resting", "given up", "due since", "storage")
    for view in views:
        table.add_row(
            view.site, f"{view.due:,}", size(view.due_bytes), f"{view.waiting:,}", f"{view.resting:,}",
            f"{view.failed:,}", _moment(view.oldest_due_at), _storage(view),
        )  # fmt: skip
    console.print(table)
    for view in views:
        if view.reason:
            console.print(f"\n{view.site}", style="red", markup=False)
            console.print(f"  {view.reason}", markup=False, soft_wrap=True)


@clean_app.command()
def failed(
    *, site: Site = None, limit: Limit = 100, catalogue_url: CatalogueURL = None, as_json: AsJson = False
) -> None:
    """List copies whose deletion was given up, the latest first, and why."""
    with open_catalogue(catalogue_url) as conn:
        copies = failed_copies(conn, site=site, limit=limit)
    if as_json:
        _print_json([asdict(copy) for copy in copies])
        return
    if not copies:
        console.print("Nothing was given up.")
    for copy in copies:
        console.print(f"{copy.transfer_id}  {copy.site}  {copy.source_lfn}", markup=False, soft_wrap=True)
        console.print(
            f"    {copy.tries} tries, given up {_moment(copy.failed_at)}, again {_moment(copy.due_at)}:"
            f" {copy.reason}",
            markup=False, soft_wrap=True, style="dim",
        )  # fmt: skip


@clean_app.command()
def retry(
    files: Annotated[list[int] | None, typer.Argument(metavar="[FILE]...", help="Numbers of files.")] = None,
    *,
    site: Site = None,
    user: Annotated[str | None, typer.Option(help="Only copies of this user.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that was given up.")] = False,
    comment: Annotated[str, typer.Option(help="Why; it stands in the history of each file.")] = "",
    catalogue_url: CatalogueURL = None,
) -> None:
    """Try to delete again what was given up, with all its tries, in the next run."""
    if not (files or site or user) and not everything:
        raise Advice("Nothing says which.", "Name files, or --site, --user, or --all.")
    with open_catalogue(catalogue_url) as conn:

        def step(step_run: int) -> Summary:
            copies = try_again(
                conn, site=site, username=user, ids=files or None, comment=comment or "asked for by a person",
                step_run=step_run,
            )  # fmt: skip
            return Summary(f"{copies:,} deletions that were given up are tried again", {"copies": copies})

        summary = recorded(conn, Actor("clean retry", who()), step)
    console.print(f"{summary.sentence}.")


@clean_app.command()
def orphans(
    *, site: Site = None, limit: Limit = 100, catalogue_url: CatalogueURL = None, as_json: AsJson = False
) -> None:
    """Show what sweeps found that no file of ours needs; with --site, in which users' areas.

    The DAG "Stage-out: clean" sweeps when its form says so.
    """
    with open_catalogue(catalogue_url) as conn:
        views = sweep_views(conn, site)
        areas = swept_areas(conn, site, limit) if site else []
    if as_json:
        _print_json([asdict(view) | {"found_in": [one._asdict() for one in areas]} for view in views])
        return
    if not views:
        console.print("No sweep was made. Trigger stageout_clean with sweep and a site.")
        return
    table = _table("site", "files", "bytes", "orphans", "their bytes", "older than", "oldest", "swept")
    for view in views:
        table.add_row(
            view.site, f"{view.files:,}", size(view.size_bytes), f"{view.orphans:,}", size(view.orphan_bytes),
            f"{view.older_than_days} days", _moment(view.oldest_at), _swept(view),
        )  # fmt: skip
    console.print(table)
    if areas:
        console.print()
        detail = _table("area", "files", "bytes", "orphans", "their bytes", "oldest")
        for one in areas:
            detail.add_row(
                one.area, f"{one.files:,}", size(one.size_bytes), f"{one.orphans:,}", size(one.orphan_bytes),
                _moment(one.oldest_at),
            )  # fmt: skip
        console.print(detail)


def _table(first: str, *numbers: str) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(first, no_wrap=True)
    for title in numbers:
        table.add_column(title, justify="left" if title in ("storage", "swept") else "right", overflow="fold")
    return table


def _storage(view: SiteView) -> str:
    if view.failing_since is None:
        return ""
    until = f", left alone until {_moment(view.paused_until)}" if view.paused_until else ""
    return f"failing since {_moment(view.failing_since)}{until}"


def _swept(view: SweepView) -> str:
    closed = f", {view.closed:,} closed directories" if view.closed else ""
    if view.ended_at is None:
        return f"since {_moment(view.started_at)}, {view.left:,} directories known to be left{closed}"
    return f"{_moment(view.ended_at)}{closed}"


def _moment(at: datetime | None) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M}" if at else ""


def _print_json(rows: Sequence[dict[str, Any]]) -> None:
    sys.stdout.write(json.dumps(rows, default=datetime.isoformat) + "\n")
