"""``aso subscriptions``: who is told of what happens to files."""

from __future__ import annotations

import base64
import json
import secrets
import sys
from contextlib import suppress
from typing import Annotated, Any

import psycopg
import typer
from rich.table import Table
from rich.text import Text

from asyncstageout.catalogue.config_changes import UnknownSite
from asyncstageout.catalogue.dead_letters import backlogs
from asyncstageout.catalogue.step_runs import Actor
from asyncstageout.catalogue.subscriptions import (
    KindIsFixed,
    SubscriptionView,
    put_subscription,
    remove_subscription,
    set_state,
)
from asyncstageout.catalogue.subscriptions import subscriptions as all_subscriptions
from asyncstageout.cli import Advice, app, console
from asyncstageout.cli.options import AsJson, CatalogueURL, open_catalogue, who
from asyncstageout.core.deliveries import Batch
from asyncstageout.core.subscriptions import EVENTS, Kind, State, SubscriptionInvalid, read_subscription
from asyncstageout.steps.recording import Summary, recorded

subscriptions = typer.Typer(help="Who is told of what happens to files: webhooks, Rucio, CRAB.")
app.add_typer(subscriptions, name="subscriptions")

SECRET_BYTES = 32

Name = Annotated[str, typer.Argument(help="Of the subscription.", show_default=False)]
Reason = Annotated[str | None, typer.Option(help="For those who wonder later.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask first.")]


@subscriptions.callback(invoke_without_command=True)
def default(context: typer.Context, *, catalogue_url: CatalogueURL = None, as_json: AsJson = False) -> None:
    """List them."""
    if not context.invoked_subcommand:
        list_command(catalogue_url=catalogue_url, as_json=as_json)


@subscriptions.command("list")
def list_command(*, catalogue_url: CatalogueURL = None, as_json: AsJson = False) -> None:
    """List the subscriptions, how each receiver takes what it is sent, and what waits for it."""
    with open_catalogue(catalogue_url) as conn:
        views = all_subscriptions(conn)
        waiting = {one.subscription: one for one in backlogs(conn)}
    if as_json:
        sys.stdout.write(json.dumps([_facts(view) for view in views], default=str) + "\n")
        return
    table = Table(box=None, pad_edge=False)
    for title in ("subscription", "kind", "state", "of"):
        table.add_column(title, overflow="fold")
    for title in ("waiting", "dead"):
        table.add_column(title, justify="right")
    for view in views:
        backlog = waiting[view.wanted.name]
        table.add_row(
            Text(view.wanted.name), view.wanted.kind, _state(view), Text(_scope(view)),
            f"{backlog.pending:,}", Text(f"{backlog.dead:,}", style="red" if backlog.dead else ""),
        )  # fmt: skip
    console.print(table if views else "Nobody is told. `aso subscriptions add` makes the first.")


@subscriptions.command()
def show(name: Name, *, catalogue_url: CatalogueURL = None, as_json: AsJson = False) -> None:
    """Show all that is known of one."""
    with open_catalogue(catalogue_url) as conn:
        view = _view(conn, name)
        (backlog,) = backlogs(conn, name)
    if as_json:
        facts = _facts(view) | {
            "pending": backlog.pending,
            "oldest_at": backlog.oldest_at,
            "dead": backlog.dead,
        }
        sys.stdout.write(json.dumps(facts, default=str) + "\n")
        return
    wanted = view.wanted
    oldest = f", the oldest of {backlog.oldest_at:%Y-%m-%d %H:%M} UTC" if backlog.oldest_at else ""
    rows: list[tuple[str, str | Text]] = [
        ("kind", wanted.kind), ("connection", wanted.conn_id), ("state", _state(view)),
        ("of", _scope(view)), ("events", ", ".join(wanted.events)),
        *((key, str(value)) for key, value in wanted.settings.model_dump().items()),
        ("waiting", f"{backlog.pending:,}{oldest}"), ("dead", f"{backlog.dead:,}"),
        ("set by", f"{view.updated_by}, {view.updated_at:%Y-%m-%d %H:%M} UTC"),
    ]  # fmt: skip
    table = Table(box=None, show_header=False, pad_edge=False)
    for key, value in rows:
        table.add_row(key, value if isinstance(value, Text) else Text(value))
    console.print(table)


@subscriptions.command()
def add(
    name: Name,
    *,
    kind: Annotated[
        Kind | None, typer.Option(help="What kind of receiver it is.", show_default=False)
    ] = None,
    conn: Annotated[
        str | None, typer.Option(help="Airflow connection that leads there.", show_default=False)
    ] = None,
    event: Annotated[
        list[str] | None,
        typer.Option(help="Such as transfer:DONE; repeat it.", show_default="what its kind is for"),
    ] = None,
    user: Annotated[str | None, typer.Option(help="Only files of this CERN account.")] = None,
    source: Annotated[str | None, typer.Option(help="Only files from this site.")] = None,
    destination: Annotated[str | None, typer.Option(help="Only files to this site.")] = None,
    origin: Annotated[str | None, typer.Option(help="Only files that this source of intake brought.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Of its kind; repeat it.")
    ] = None,
    catalogue_url: CatalogueURL = None,
) -> None:
    """Add a subscription, or change what is given of a known one. It is told of what happens from now on."""
    given = {"kind": kind and kind.value, "conn_id": conn, "username": user, "source": source,
             "destination": destination, "origin": origin}  # fmt: skip
    said: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    with open_catalogue(catalogue_url) as catalogue:
        known = all_subscriptions(catalogue, name)
        before = known[0].wanted.model_dump() if known else {"settings": {}}
        if event:
            said["events"] = tuple(event)
        said["settings"] = before["settings"] | dict(map(_setting, settings or ()))
        try:
            is_new = put_subscription(catalogue, read_subscription(before | {"name": name} | said), who())
        except SubscriptionInvalid as error:
            raise Advice(f"Nothing was changed: {error}.", _help_with(error.field)) from error
        except (KindIsFixed, UnknownSite) as error:
            raise Advice(
                f"Nothing was changed: {error}.", "`aso subscriptions` and `aso sites` list both."
            ) from error
        _say(f"{name} was {'added' if is_new else 'changed'}: {_scope(_view(catalogue, name))}.")
    if is_new:
        _say("Make its Airflow connection, if there is none: docs/how-to/subscriptions.md.")


@subscriptions.command()
def pause(name: Name, *, reason: Reason = None, catalogue_url: CatalogueURL = None) -> None:
    """Send it nothing; what happens meanwhile is kept, and sent when it is resumed."""
    _set(catalogue_url, name, State.PAUSED, reason)
    _say(f"{name} is paused. What happens is kept for it: `aso subscriptions resume {name}`.")


@subscriptions.command()
def off(name: Name, *, reason: Reason = None, catalogue_url: CatalogueURL = None) -> None:
    """Send it nothing, and keep nothing more for it either; what waits already stays."""
    _set(catalogue_url, name, State.OFF, reason)
    _say(f"{name} is off. It will never hear of what happens until `aso subscriptions resume {name}`.")


@subscriptions.command()
def resume(name: Name, *, catalogue_url: CatalogueURL = None) -> None:
    """Send it what waits, also if it was failing: it is tried at once."""
    _set(catalogue_url, name, State.ACTIVE, None)
    _say(f"{name} is active. What waits for it goes out with the next run of stageout_publish.")


@subscriptions.command()
def remove(name: Name, *, yes: Yes = False, catalogue_url: CatalogueURL = None) -> None:
    """Forget it, and discard what waits for it; each message is put on record."""
    with open_catalogue(catalogue_url) as conn:
        _view(conn, name)
        (backlog,) = backlogs(conn, name)
        waiting = backlog.pending + backlog.dead
        if waiting and not yes:
            typer.confirm(f"{waiting:,} messages wait for {name}. Discard them?", abort=True, err=True)
        counts: list[int] = []

        def step(step_run: int) -> Summary:
            counts.append(remove_subscription(conn, name, by=who(), step_run=step_run) or 0)
            return Summary(f"{name} removed, {counts[0]:,} messages discarded", {"discarded": counts[0]})

        recorded(conn, Actor("aso subscriptions remove", who()), step)
    _say(f"{name} was removed; {counts[0]:,} messages were discarded.")


@subscriptions.command()
def secret() -> None:
    """Print a fresh secret for a webhook: for the password of its connection, and for the receiver."""
    key = base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()
    sys.stdout.write(f"whsec_{key}\n")


@subscriptions.command("schema")
def schema_command() -> None:
    """Print the JSON schema of what webhooks get: docs/reference/webhooks.schema.json."""
    sys.stdout.write(schema())


def schema() -> str:
    """Return the JSON schema of the body of a POST to a webhook, made of its model."""
    return json.dumps(Batch.model_json_schema(mode="serialization"), indent=2) + "\n"


def _set(url: str | None, name: str, state: State, reason: str | None) -> None:
    with open_catalogue(url) as conn:
        if not set_state(conn, name, state, reason=reason, by=who()):
            raise _unknown(name)


def _view(conn: psycopg.Connection, name: str) -> SubscriptionView:
    views = all_subscriptions(conn, name)
    if not views:
        raise _unknown(name)
    return views[0]


def _unknown(name: str) -> Advice:
    return Advice(f"There is no subscription {name}.", "`aso subscriptions` lists them.")


def _help_with(field: str) -> str:
    if field == "events":
        return "\n".join(f"{kind}: {', '.join(events)}" for kind, events in EVENTS.items())
    if field == "kind":
        return f"--kind is one of {', '.join(Kind)}; a new subscription also needs --conn."
    return "docs/how-to/subscriptions.md lists what can be set."


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise Advice(f"{text!r} is no setting.", "Write --set NAME=VALUE, such as --set batch=50.")
    with suppress(ValueError):
        return name, int(value)
    return name, {"true": True, "false": False}.get(value, value)


def _facts(view: SubscriptionView) -> dict[str, Any]:
    health = view.health
    return view.wanted.model_dump() | {
        "state": view.state, "reason": view.reason, "updated_at": view.updated_at,
        "updated_by": view.updated_by, "failing_since": health and health.failing_since,
        "problem": health and health.problem, "retry_at": health and health.retry_at,
    }  # fmt: skip


def _state(view: SubscriptionView) -> Text:
    if view.state is not State.ACTIVE:
        return Text(f"{view.state}: {view.reason}" if view.reason else view.state, style="yellow")
    if view.health:
        until = (
            "until somebody looks"
            if view.health.needs_person
            else f"next try {view.health.retry_at:%H:%M:%S}"
        )
        since = f"failing since {view.health.failing_since:%Y-%m-%d %H:%M}"
        return Text(f"{since}, {until}: {view.health.problem}", style="red")
    return Text("active", style="green")


def _scope(view: SubscriptionView) -> str:
    wanted = view.wanted
    names = {
        "user": wanted.username,
        "from": wanted.source,
        "to": wanted.destination,
        "of source": wanted.origin,
    }
    return ", ".join(f"{word} {name}" for word, name in names.items() if name) or "all files"


def _say(text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)
