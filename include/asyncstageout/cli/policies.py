"""``aso policy`` and ``aso changes``: how files travel, what is set for whom, and who changed it."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from inspect import getsource
from itertools import pairwise
from textwrap import dedent
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from asyncstageout.catalogue.config_changes import ConfigChange, UnknownSite, config_changes
from asyncstageout.catalogue.policies import add_settings, drop_settings, policy_rows
from asyncstageout.cli import Advice, app, console
from asyncstageout.cli.options import AsJson, CatalogueURL, open_catalogue, who
from asyncstageout.core.policies import (
    Bucket,
    LinkPolicy,
    Policies,
    PolicyRow,
    UnknownSetting,
    WrongValue,
    allowed,
    read_value,
)
from asyncstageout.core.scopes import Scope

policy = typer.Typer(help="How files travel: limits, parameters of FTS, credentials.", no_args_is_help=True)
app.add_typer(policy, name="policy")

TAKES_EFFECT = "From the next cycle on, a minute at most; what FTS has goes on as it was submitted."

REFERENCE_HEAD = """\
# What can be set for links, users and activities

Made by `aso policy reference`; how to use it: [policies](../how-to/policies.md). A row of policy names any of
source, destination, user and activity, and sets any of these. Each setting comes from the most specific row
that sets it; these weights add up:

| the row names | weight | because |
|---|---|---|
| the user | 8 | an exception for one person is meant wherever his files go |
| the activity | 4 | an exception for a kind of work holds on all links |
| the destination | 2 | it is written to: full disks and quotas are there |
| the source | 1 | it is only read from |

So a link (3) counts before its destination (2) and that before its source (1); what names the user counts
before all that does not.

`max_files_in_flight` and `max_bytes_in_flight` count the files of each link. Where the most specific row that
sets one of them names a user or an activity, only his or its files on the link are counted, by themselves;
they no longer count in the link's.

| setting | allowed | default | meaning |
|---|---|---|---|"""

Source = Annotated[str | None, typer.Option(help="Files from this site.")]
Destination = Annotated[str | None, typer.Option(help="Files to this site.")]
User = Annotated[str | None, typer.Option(help="Files of this CERN account.")]
Activity = Annotated[str | None, typer.Option(help="Files of this activity.")]


@contextmanager
def advised() -> Iterator[None]:
    """Turn what a person can put right into advice."""
    try:
        yield
    except (UnknownSetting, WrongValue) as error:
        raise Advice(
            f"Nothing was changed: {error}.", "`aso policy reference` tells what can be set."
        ) from error
    except UnknownSite as error:
        raise Advice(
            f"Nothing was changed: {error}", "`aso sites` lists the sites that are known."
        ) from error


def say(text: str) -> None:
    """Print a line as it is."""
    console.print(text, markup=False, soft_wrap=True)


@policy.command("set")
def set_command(
    settings: Annotated[list[str], typer.Argument(metavar="NAME=VALUE...", help="Such as max_attempts=5.")],
    *,
    source: Source = None,
    destination: Destination = None,
    user: User = None,
    activity: Activity = None,
    catalogue_url: CatalogueURL = None,
) -> None:
    """Set how files travel on a link, from a source, to a destination, of a user, of an activity, or all.

    Values: none, true, 5, 0.5, 2T, davs,root. Other settings of the same scope stay as they are.
    """
    scope = Scope(source, destination, user, activity)
    with advised():
        wanted = dict(_setting(text) for text in settings)
        with open_catalogue(catalogue_url) as conn:
            changed = add_settings(conn, scope, wanted, who())
    said = ", ".join(f"{name}={_shown(value)}" for name, value in wanted.items())
    say(f"{scope}: {said}. {TAKES_EFFECT}" if changed else f"{scope}: {said} already. Nothing was changed.")


@policy.command("unset")
def unset_command(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME...]", help="Without: all of them.")
    ] = None,
    *,
    source: Source = None,
    destination: Destination = None,
    user: User = None,
    activity: Activity = None,
    catalogue_url: CatalogueURL = None,
) -> None:
    """Take settings away, so that what is set less specifically counts again."""
    scope = Scope(source, destination, user, activity)
    with open_catalogue(catalogue_url) as conn:
        dropped = drop_settings(conn, scope, names or [], who())
    if not dropped:
        raise Advice(f"Nothing of that is set for {scope}.", "`aso policy list` shows what is set for whom.")
    say(f"{scope}: {', '.join(dropped)} no longer set. {TAKES_EFFECT}")


@policy.command("show")
def show_command(
    source: Annotated[str, typer.Argument(help="Site, such as T2_IT_Bari.")] = "",
    destination: Annotated[str, typer.Argument(help="Site, such as T2_CH_CERN.")] = "",
    *,
    user: User = None,
    activity: Annotated[str, typer.Option(help="Of the files.")] = "default",
    catalogue_url: CatalogueURL = None,
    as_json: AsJson = False,
) -> None:
    """Show what counts for files, and which row each value comes from."""
    file = (source, destination, user or "", activity)
    with open_catalogue(catalogue_url) as conn:
        policies = Policies(policy_rows(conn))
    values = policies.of(*file).model_dump(mode="json")
    origins = _origins(policies.rows_for(*file))
    if as_json:
        facts = {
            name: {"value": value, "from": str(origins[name].scope) if name in origins else None}
            for name, value in values.items()
        }
        sys.stdout.write(json.dumps(facts) + "\n")
        return
    table = Table(box=None, pad_edge=False)
    for title in ("setting", "value", "set for", "by"):
        table.add_column(title, no_wrap=title != "set for")
    for name, value in values.items():
        row = origins.get(name)
        style = "" if row else "dim"
        origin = str(row.scope) if row else "default"
        cells = (name, _shown(value), origin, row.updated_by if row else "")
        table.add_row(*(Text(cell, style) for cell in cells))
    console.print(table)
    say(f"Limits count the files {_counted(policies.bucket_of(*file))}.")


@policy.command("list")
def list_command(*, catalogue_url: CatalogueURL = None, as_json: AsJson = False) -> None:
    """List everything that is set, the most general first."""
    with open_catalogue(catalogue_url) as conn:
        rows = sorted(policy_rows(conn), key=lambda row: (row.scope.rank(), str(row.scope)))
    if as_json:
        sys.stdout.write(json.dumps([asdict(row) for row in rows], default=str) + "\n")
        return
    if not rows:
        say("Nothing is set; the defaults count (`aso policy show`).")
    for row in rows:
        at = f", {row.updated_at:%Y-%m-%d %H:%M} UTC" if row.updated_at else ""
        say(f"{row.scope}  (by {row.updated_by}{at})")
        for name, value in sorted(row.settings.items()):
            say(f"  {name} = {_shown(value)}")


@policy.command("reference")
def reference_command() -> None:
    """Print what can be set, as Markdown: docs/reference/policies.md."""
    sys.stdout.write(reference())


def reference() -> str:
    """Return the page on all settings, made of their definitions."""
    words = meanings(LinkPolicy)
    lines = [
        f"| `{name}` | {allowed(name)} | `{_shown(field.default)}` | {words[name]} |"
        for name, field in LinkPolicy.model_fields.items()
    ]
    return "\n".join([REFERENCE_HEAD, *lines, ""])


def meanings(model: type) -> dict[str, str]:
    """Return what stands below each setting in the source. (pydantic can, but for 25 ms of every task.)"""
    (source,) = ast.parse(dedent(getsource(model))).body
    assert isinstance(source, ast.ClassDef)  # noqa: S101 - it is the source of a class
    found = {}
    for field, text in pairwise(source.body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            name, meaning = ast.unparse(field.target), str(ast.literal_eval(text.value))
            found[name] = " ".join(meaning.replace("``", "`").split())
    return found


@app.command()
def changes(
    *,
    since: Annotated[datetime | None, typer.Option(help="Only since then, UTC.")] = None,
    of: Annotated[
        str | None,
        typer.Option(
            help="Only of site, site_source, fts_server, link_policy, restriction, retention or subscription."
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000)] = 50,
    catalogue_url: CatalogueURL = None,
    as_json: AsJson = False,
) -> None:
    """Tell who changed the configuration, when, and from what to what; the last change first."""
    with open_catalogue(catalogue_url) as conn:
        found = config_changes(conn, since=since and since.replace(tzinfo=UTC), table=of, limit=limit)
    if as_json:
        sys.stdout.write(json.dumps([asdict(one) for one in found], default=str) + "\n")
        return
    if not found:
        say("No changes.")
    for one in found:
        say(f"{one.at:%Y-%m-%d %H:%M:%S} UTC  {one.actor}  {_did(one)} {one.subject()}")
        for name, before, after in one.differences():
            say(f"    {name}: {_shown(before)} → {_shown(after)}")


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise Advice(f"{text!r} is no setting.", "Write NAME=VALUE, such as max_attempts=5.")
    return name.strip(), read_value(name.strip(), value)


def _origins(rows: tuple[PolicyRow, ...]) -> dict[str, PolicyRow]:
    return {name: row for row in rows for name in row.settings if name in LinkPolicy.model_fields}


def _counted(bucket: Bucket) -> str:
    parts = [f"of user {bucket.username}"] if bucket.username else []
    parts += [f"of activity {bucket.activity}"] if bucket.activity else []
    return " ".join([*parts, "on this link"]) if parts else "of the link"


def _did(change: ConfigChange) -> str:
    if change.before is None:
        return "set"
    return "removed" if change.after is None else "changed"


def _shown(value: Any) -> str:
    """Write a value as a person would type it."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(map(str, value)) or "(empty)"
    return str(value)
