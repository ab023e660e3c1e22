"""``aso sites``: how sites name their files, where that is known from, and how a link would be used."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from psycopg import Connection
from rich.table import Table
from rich.text import Text

from asyncstageout.catalogue.site_sources import (
    SiteFacts,
    SiteSource,
    forget_source,
    looks,
    site_facts,
    sources,
)
from asyncstageout.catalogue.step_runs import Actor
from asyncstageout.catalogue.storages import current_storages
from asyncstageout.cli import Advice, app, console
from asyncstageout.cli.load import progress
from asyncstageout.cli.options import AsJson, CatalogueURL, open_catalogue, who
from asyncstageout.clients.site_files import Found, SourceUnreadable, find
from asyncstageout.core.storages.model import Protocol, Storage, Unresolvable
from asyncstageout.core.storages.schemes import NoCommonScheme, best_protocols
from asyncstageout.steps.load_sites import Look, load_sites
from asyncstageout.steps.recording import Summary, recorded

sites = typer.Typer(help="How sites name their files, and where that is known from.", no_args_is_help=True)
app.add_typer(sites, name="sites")

OUTCOME_STYLES = {"new": "green", "changed": "yellow", "same": "dim", "failed": "red"}
SAMPLE_LFN = "/store/user/alice/sample.root"

_OWNER = re.compile(r"/store/(?:temp/)?user/([A-Za-z0-9_-]+)")

SiteName = Annotated[str, typer.Argument(metavar="SITE", help="As requests name it: T2_IT_Bari, or an RSE.")]


@sites.command("load")
def load(
    locations: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH_OR_URL...",
            help="TFC or storage.json, folder in SITECONF form, https URL, or rucio:RSE.",
        ),
    ],
    *,
    site: Annotated[str | None, typer.Option(help="Whose a TFC is; of a folder, only this site.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")] = False,
    ca: Annotated[
        str | None,
        typer.Option(
            envvar="ASO_SITES_CA",
            show_default="those of certifi",
            help="Authorities for https: file or directory.",
        ),
    ] = None,
    catalogue_url: CatalogueURL = None,
    as_json: AsJson = False,
) -> None:
    """Load descriptions of sites, and look at them every day from now on.

    What is broken is named with file, line and field, and leaves the version before as it was. The exit code
    is 1 if anything was broken.
    """
    results: list[Look] = []
    with open_catalogue(catalogue_url) as conn:
        known = {source.location for source in sources(conn)}
        places = dict.fromkeys(_place(location, site, known) for location in locations)
        fetched = {place: _fetched(place, site, ca) for place in places}
        if all(isinstance(one, SourceUnreadable) for one in fetched.values()):
            raise _unreadable(next(iter(fetched.values())))
        asked = {_source(one, site): one for one in fetched.values()}

        def step(_step_run: int) -> Summary:
            total = sum(len(one.files) for one in fetched.values() if isinstance(one, Found))
            with progress("Reading sites", total) as advance:
                summary, judged = load_sites(
                    conn,
                    list(asked),
                    by=who(),
                    now=datetime.now(UTC),
                    dry_run=dry_run,
                    site=site if any(source.kind == "siteconf" for source in asked) else None,
                    finder=lambda source: _found(asked[source]),
                    advance=advance,
                )
            results.extend(judged)
            return summary

        recorded(conn, Actor(task_id="sites load", name=who()), step)
    _print_looks(results, as_json=as_json)
    raise typer.Exit(1 if any(look.outcome == "failed" for look in results) else 0)


@sites.command("list")
def list_command(*, catalogue_url: CatalogueURL = None, as_json: AsJson = False) -> None:
    """List the sites, with the kind and version of their description, and what is wrong with it now."""
    with open_catalogue(catalogue_url) as conn:
        known = site_facts(conn)
        looked_at = sources(conn)
    if as_json:
        _write_json({"sites": [asdict(one) for one in known], "sources": [asdict(one) for one in looked_at]})
        return
    if not known:
        console.print("No sites. `aso sites load` reads their descriptions.")
        return
    console.print(_site_table(known))
    for one in known:
        if one.problem:
            console.print(Text(f"\n{one.site}: ", style="red") + Text(one.problem), soft_wrap=True)
    if looked_at:
        console.print("\nLooked at every day:")
    for source in looked_at:
        console.print(f"  {source.location}  ({source.kind})", markup=False, soft_wrap=True)


@sites.command("show")
def show(site: SiteName, *, catalogue_url: CatalogueURL = None, as_json: AsJson = False) -> None:
    """Show everything about one site: its protocols and rules, in order, and where they come from."""
    with open_catalogue(catalogue_url) as conn:
        storage = _storage(conn, site)
        facts = site_facts(conn, [site])[0]
    if as_json:
        _write_json({**asdict(facts), "storage": storage.model_dump(mode="json", exclude_defaults=True)})
        return
    console.print(Text(site, style="bold"))
    for name, value in _facts(facts, storage):
        if value:
            console.print(f"  {name:<10} {value}", markup=False, soft_wrap=True)
    for protocol in storage.protocols:
        _print_protocol(protocol)


@sites.command("resolve")
def resolve(
    site: SiteName,
    name: Annotated[
        str, typer.Argument(metavar="LFN_OR_PFN", help="/store/... leads to PFNs, all else back.")
    ],
    *,
    protocol: Annotated[str | None, typer.Option(help="As the site calls it; default: all.")] = None,
    destination: Annotated[
        str | None, typer.Option(help="Site that the file is on its way to, for rules that ask.")
    ] = None,
    user: Annotated[
        str | None, typer.Option(show_default="from the LFN", help="Owner, for Rucio's paths.")
    ] = None,
    catalogue_url: CatalogueURL = None,
    as_json: AsJson = False,
) -> None:
    """Say what a site makes of an LFN by each protocol, or which LFN a PFN is. Exit code 1: nothing."""
    with open_catalogue(catalogue_url) as conn:
        storage = _storage(conn, site)
    names = [one.name for one in storage.protocols]
    if protocol is not None and protocol not in names:
        raise Advice(f"{site} has no protocol {protocol}.", f"It has {', '.join(names)}.")
    answers: dict[str, str | None] = {}
    for one in [protocol] if protocol is not None else names:
        answers[one] = _resolved(storage, one, name, user or _owner(name), destination)
    if as_json:
        _write_json(answers)
    elif protocol is not None and answers[protocol] is not None:
        # Alone on its line, for scripts.
        console.print(answers[protocol], markup=False, soft_wrap=True)
    else:
        for one, answer in answers.items():
            console.print(f"{one:<12} {answer or 'no rule matches'}", markup=False, soft_wrap=True)
    raise typer.Exit(0 if any(answers.values()) else 1)


@sites.command("link")
def link(
    source: Annotated[str, typer.Argument(help="Site, such as T2_IT_Bari.")],
    destination: Annotated[str, typer.Argument(help="Site, such as T2_CH_CERN.")],
    lfn: Annotated[str, typer.Argument(metavar="LFN", help="For the example.")] = SAMPLE_LFN,
    *,
    catalogue_url: CatalogueURL = None,
    as_json: AsJson = False,
) -> None:
    """Say by which protocols files go from one site to another, with an example. Exit code 1: by none."""
    with open_catalogue(catalogue_url) as conn:
        ends = {"source": _storage(conn, source), "destination": _storage(conn, destination)}
    try:
        pair = best_protocols(ends["source"], ends["destination"])
    except NoCommonScheme as error:
        raise Advice(
            f"No file can go this way: {error}.",
            "`aso sites show` has what each site offers; a site must add a protocol to its description.",
        ) from error
    answers = {
        end: {
            "site": ends[end].site,
            "protocol": name,
            "url": _resolved(ends[end], name, lfn, _owner(lfn), destination),
        }
        for end, name in (("source", pair.source), ("destination", pair.destination))
    }
    if as_json:
        _write_json(answers)
    else:
        for end, answer in answers.items():
            console.print(f"{end:<12} {answer['site']} by {answer['protocol']}", markup=False)
            console.print(
                f"{'':<12} {answer['url'] or f'no rule matches {lfn}'}", markup=False, soft_wrap=True
            )
    raise typer.Exit(0 if all(answer["url"] for answer in answers.values()) else 1)


@sites.command("forget")
def forget(
    location: Annotated[str, typer.Argument(metavar="SOURCE", help="As `aso sites list` shows it.")],
    *,
    catalogue_url: CatalogueURL = None,
) -> None:
    """Look at a source no more. What it described goes on to count, until something else describes it."""
    with open_catalogue(catalogue_url) as conn:
        described = [look.site for look in looks(conn, location)]
        if not forget_source(conn, location, who()):
            raise Advice(f"There is no source {location}.", "`aso sites list` shows the sources.")
    console.print(
        f"Forgotten. Its sites keep their last version: {', '.join(described) or 'none'}.", markup=False
    )


def _place(location: str, site: str | None, known: Container[str]) -> str:
    """Return the site's own folder where one of a whole tree is asked for, so that the others are left alone.

    In a tree that is looked at every day anyway, it is part of that.
    """
    tree = Path(location).expanduser().absolute()
    if site is None or str(tree) in known or not (tree / site).is_dir():
        return location
    return str(tree / site)


def _fetched(location: str, site: str | None, ca: str | None) -> Found | SourceUnreadable:
    try:
        return find(location, site, ca=ca)
    except SourceUnreadable as error:
        return error


def _unreadable(error: Found | SourceUnreadable) -> Advice:
    return Advice(
        f"Nothing was loaded. {error.location} cannot be read: {getattr(error, 'why', '')}.",
        "Name a TFC or storage.json, a folder of sites, an https URL, or rucio:RSE.",
    )


def _source(fetched: Found | SourceUnreadable, site: str | None) -> SiteSource:
    if isinstance(fetched, SourceUnreadable):
        return SiteSource(fetched.location, "tfc", site)
    return SiteSource(fetched.location, fetched.kind, site if fetched.kind != "siteconf" else None)


def _found(fetched: Found | SourceUnreadable) -> Found:
    if isinstance(fetched, SourceUnreadable):
        raise fetched
    return fetched


def _storage(conn: Connection, site: str) -> Storage:
    known = current_storages(conn, [site])
    if site not in known:
        raise Advice(
            f"There is no description of {site}.",
            "`aso sites list` shows the sites, `aso sites load` adds some.",
        )
    return known[site][1]


def _resolved(storage: Storage, protocol: str, name: str, user: str, destination: str | None) -> str | None:
    try:
        if name.startswith("/store/"):
            return storage.pfn(protocol, name, username=user, destination=destination).url
        return storage.lfn(protocol, name)
    except Unresolvable:
        return None


def _owner(lfn: str) -> str:
    """Return the user whose area an LFN is in: ``/store/user/alice/x``, ``/store/temp/user/alice.1f3/x``."""
    found = _OWNER.match(lfn)
    return found[1] if found else ""


def _print_looks(results: Sequence[Look], *, as_json: bool) -> None:
    if as_json:
        rows = [
            {"site": look.site, "outcome": look.outcome, "file": look.file, "problem": look.problem}
            for look in results
        ]
        _write_json({"sites": rows})
        return
    told = [look for look in results if look.outcome != "same"]
    for look in told:
        line = Text(f"{look.outcome:<8}", style=OUTCOME_STYLES[look.outcome]) + Text(look.site)
        console.print(line + Text(f"  {look.problem or ''}"), soft_wrap=True)
    console.print(f"{len(results):,} sites read, {len(results) - len(told):,} as before.")


def _site_table(known: Sequence[SiteFacts]) -> Table:
    table = Table(box=None, pad_edge=False)
    # Only the place may be cut: names are there to be copied.
    table.add_column("site", no_wrap=True, min_width=max(len(one.site) for one in known))
    for heading, width in (("kind", 12), ("version", 7), ("loaded", 10)):
        table.add_column(heading, no_wrap=True, min_width=width)
    table.add_column("from", no_wrap=True, overflow="ellipsis", ratio=1)
    for one in known:
        loaded = f"{one.loaded_at:%Y-%m-%d}" if one.loaded_at else ""
        name = Text(one.site, style="red" if one.problem else "")
        table.add_row(name, one.kind or "-", str(one.version or "-"), loaded, one.origin or "")
    return table


def _facts(facts: SiteFacts, storage: Storage) -> list[tuple[str, str | None]]:
    loaded = f", loaded {facts.loaded_at:%Y-%m-%d %H:%M} UTC by {facts.loaded_by}" if facts.loaded_at else ""
    return [
        ("kind", storage.kind),
        ("version", f"{facts.version}{loaded}"),
        ("from", facts.origin),
        ("volume", storage.volume),
        ("RSE", storage.rse),
        ("FTS", ", ".join(storage.fts)),
        ("problem", facts.problem),
    ]


def _print_protocol(protocol: Protocol) -> None:
    ends = [
        f"{end} (preference {value})"
        for end, value in (("source", protocol.read), ("destination", protocol.write))
        if value is not None
    ]
    console.print(
        Text(f"\n{protocol.name}", style="bold")
        + Text(f"  {', '.join(ends) or 'not for copies between sites'}")
    )
    if protocol.prefix is not None:
        middle = f" + {protocol.translation} of scope and LFN" if protocol.translation else " + LFN"
        console.print(f"  {protocol.prefix}{middle}", markup=False, soft_wrap=True)
    for direction, rules in (("→", protocol.to_pfn), ("←", protocol.to_lfn)):
        for rule in rules:
            extra = f"  chain {rule.chain}" if rule.chain else ""
            extra += f"  for {rule.destination_match}" if rule.destination_match else ""
            extra += f"  space {rule.space_token}" if rule.space_token else ""
            console.print(f"  {rule.match}  {direction}  {rule.result}{extra}", markup=False, soft_wrap=True)


def _write_json(facts: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(facts, default=_jsonable) + "\n")


def _jsonable(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"no JSON for {type(value).__name__}")
