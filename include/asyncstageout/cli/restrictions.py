"""``aso pause``, ``drain``, ``ban``, ``downtime``, ``resume``, ``restrictions``: what must not start."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.table import Table

from asyncstageout.catalogue.restrictions import (
    Area,
    NeverInForce,
    NoReason,
    all_restrictions,
    lift,
    open_restrictions,
    restrict,
)
from asyncstageout.cli import Advice, app, console
from asyncstageout.cli.options import AsJson, CatalogueURL, duration, open_catalogue, who
from asyncstageout.cli.policies import Activity, Destination, Source, User, advised, say
from asyncstageout.core.restrictions import Mode, Restriction

WHAT_IT_DOES = {
    Mode.PAUSE: "Files wait: nothing new starts from the next cycle on. What FTS has goes on.",
    Mode.DRAIN: "New requests are refused from now on. What is known goes on.",
    Mode.BAN: "New requests are refused from now on, and nothing starts from the next cycle on."
    " What FTS has goes on.",
}
HELP = {
    Mode.PAUSE: "Let files wait: nothing starts until it is over.",
    Mode.DRAIN: "Refuse new requests, and let what is known go on.",
    Mode.BAN: "Refuse new requests, and start nothing.",
}
FORMATS = ["%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M:%S", "%Y-%m-%d"]

Site = Annotated[str | None, typer.Option(help="Files from or to this site.")]
Everything = Annotated[bool, typer.Option("--everything", help="All files of everybody.")]
Reason = Annotated[str, typer.Option(help="What users read while they wait.")]
Until = Annotated[datetime | None, typer.Option(formats=FORMATS, help="UTC; without: until resumed.")]
Begin = Annotated[datetime | None, typer.Option("--from", formats=FORMATS, help="UTC; without: now.")]
Numbers = Annotated[list[int] | None, typer.Argument(metavar="[NUMBER...]", help="See `aso restrictions`.")]
Lasting = Annotated[str | None, typer.Option("--for", help="Such as 30m, 2h or 3d, in place of --until.")]


def _add_command(mode: Mode) -> None:
    def restrict_command(
        *,
        site: Site = None,
        source: Source = None,
        destination: Destination = None,
        user: User = None,
        activity: Activity = None,
        everything: Everything = False,
        reason: Reason,
        until: Until = None,
        lasting: Lasting = None,
        catalogue_url: CatalogueURL = None,
    ) -> None:
        area = _area(site, source, destination, user, activity, everything=everything)
        _restrict(catalogue_url, mode, area, reason=reason, ends_at=_end(until, lasting))

    app.command(mode.value, help=HELP[mode])(restrict_command)


for _mode in Mode:
    _add_command(_mode)


@app.command()
def downtime(
    site: Annotated[str, typer.Argument(help="Site, such as T2_IT_Bari.")],
    *,
    begin: Annotated[
        datetime | None, typer.Option("--from", formats=FORMATS, help="UTC; without: now.")
    ] = None,
    until: Until = None,
    lasting: Lasting = None,
    reason: Reason = "downtime",
    catalogue_url: CatalogueURL = None,
) -> None:
    """Announce a downtime of a site: files from and to it wait from its begin to its end."""
    starts_at = begin and begin.replace(tzinfo=UTC)
    ends_at = _end(until, lasting, starts_at)
    if ends_at is None:
        raise Advice("A downtime has an end.", "Say --until or --for; without an end it is a pause.")
    _restrict(
        catalogue_url, Mode.PAUSE, Area(site=site), reason=reason, starts_at=starts_at, ends_at=ends_at,
        is_downtime=True,
    )  # fmt: skip


@app.command()
def resume(
    ids: Annotated[
        list[int] | None, typer.Argument(metavar="[ID...]", help="As `aso restrictions` shows.")
    ] = None,
    *,
    site: Site = None,
    source: Source = None,
    destination: Destination = None,
    user: User = None,
    activity: Activity = None,
    everything: Everything = False,
    catalogue_url: CatalogueURL = None,
) -> None:
    """Lift pauses, drains, bans and downtimes: those with these numbers, or all for exactly this scope."""
    area = None if ids else _area(site, source, destination, user, activity, everything=everything)
    with open_catalogue(catalogue_url) as conn:
        wanted = ids or [row.restriction_id for row in open_restrictions(conn) if _area_of(row) == area]
        lifted = lift(conn, wanted, who())
    if not lifted:
        raise Advice("There is nothing to lift.", "`aso restrictions` shows what there is, and its numbers.")
    for row in lifted:
        say(f"{row.restriction_id}: lifted: {_told(row)}")
    say("Files that waited for it start at once.")


@app.command()
def restrictions(
    *,
    everything: Annotated[bool, typer.Option("--all", help="Also those that are over.")] = False,
    catalogue_url: CatalogueURL = None,
    as_json: AsJson = False,
) -> None:
    """List pauses, drains, bans and downtimes, in force and announced."""
    with open_catalogue(catalogue_url) as conn:
        rows = all_restrictions(conn) if everything else open_restrictions(conn)
    now = datetime.now(UTC)
    if as_json:
        facts = [asdict(row) | {"state": _state(row, now)} for row in rows]
        sys.stdout.write(json.dumps(facts, default=_moment) + "\n")
        return
    if not rows:
        say("Nothing is paused, drained or banned.")
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("number", justify="right", no_wrap=True)
    for title in ("state", "what", "for", "why"):
        table.add_column(title, overflow="fold")
    for row in rows:
        kind = "downtime" if row.is_downtime else row.mode.value
        table.add_row(
            str(row.restriction_id), _state(row, now), kind, row.what(), f"{row.author}: {row.reason}"
        )
    console.print(table)


def _restrict(
    url: str | None,
    mode: Mode,
    area: Area,
    *,
    reason: str,
    ends_at: datetime | None,
    starts_at: datetime | None = None,
    is_downtime: bool = False,
) -> None:
    try:
        with advised(), open_catalogue(url) as conn:
            made = restrict(
                conn, mode, area, reason=reason, by=who(), starts_at=starts_at, ends_at=ends_at,
                is_downtime=is_downtime,
            )  # fmt: skip
    except (NeverInForce, NoReason) as error:
        raise Advice(f"Nothing was changed: {error}.", "Times are UTC.") from error
    say(f"{made.restriction_id}: {_told(made)}")
    announced = starts_at is not None and starts_at > datetime.now(UTC)
    say(f"It begins {starts_at:%Y-%m-%d %H:%M} UTC." if announced else WHAT_IT_DOES[mode])
    say(f"Lift it with: aso resume {made.restriction_id}")


def _area(
    site: str | None,
    source: str | None,
    destination: str | None,
    user: str | None,
    activity: str | None,
    *,
    everything: bool,
) -> Area:
    """Return what is meant.

    Raises:
        Advice: nothing is named, or everything and something.
    """
    named = any((site, source, destination, user, activity))
    if named == everything:
        raise Advice(
            "Everything, or what?" if named else "Say what for.",
            "--site, or --source and --destination, --user, --activity; or --everything.",
        )
    if site and (source or destination):
        raise Advice("--site means both ends.", "Name a site, or a source and a destination.")
    return Area(site=site, source=source, destination=destination, username=user, activity=activity)


def _area_of(row: Restriction) -> Area:
    return Area(
        site=row.site, source=row.source, destination=row.destination, username=row.username,
        activity=row.activity,
    )  # fmt: skip


def _end(until: datetime | None, lasting: str | None, starts_at: datetime | None = None) -> datetime | None:
    if until and lasting:
        raise Advice("--until or --for, not both.", "Say when it ends, or how long it lasts.")
    if lasting is None:
        return until and until.replace(tzinfo=UTC)
    return (starts_at or datetime.now(UTC)) + duration(lasting)


def _told(row: Restriction) -> str:
    return row.sentence() if row.is_downtime else f"{row.what()}: {row.sentence()}"


def _state(row: Restriction, now: datetime) -> str:
    if row.lifted_at:
        return f"lifted {row.lifted_at:%Y-%m-%d %H:%M}"
    if row.is_over(now):
        return f"over since {row.ends_at:%Y-%m-%d %H:%M}"
    if not row.is_in_force(now):
        return f"begins {row.starts_at:%Y-%m-%d %H:%M}"
    return f"until {row.ends_at:%Y-%m-%d %H:%M}" if row.ends_at else "in force"


def _moment(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"no JSON for {type(value).__name__}")
