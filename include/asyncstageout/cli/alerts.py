"""``aso alerts``: what needs a person, who was told, what is silenced, and whether channels work."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

import psycopg
import typer
from rich.table import Table
from rich.text import Text

from asyncstageout.catalogue.alert_messages import Outcome, make_test, outcomes
from asyncstageout.catalogue.alert_settings import (
    SeenChannel,
    SilenceInvalid,
    add_silence,
    all_silences,
    end_silence,
    put_rule,
    rules_in_force,
    seen_channels,
    silences_in_force,
)
from asyncstageout.catalogue.alerts import AlertView, alert_events, alert_view, open_views, over_views
from asyncstageout.catalogue.step_runs import Actor
from asyncstageout.cli import Advice, app, console
from asyncstageout.cli.options import AsJson, CatalogueURL, duration, open_catalogue, who
from asyncstageout.cli.policies import say
from asyncstageout.cli.restrictions import FORMATS
from asyncstageout.core.alert_channels import read_channels
from asyncstageout.core.alert_rules import RULES, Rule, RuleInvalid, RuleSettings, runbook
from asyncstageout.core.alerts import Severity, Silence, silence_of
from asyncstageout.steps.alerts import look
from asyncstageout.steps.recording import recorded

alerts = typer.Typer(help="What needs a person: open alerts, silences, rules, channels.")
app.add_typer(alerts, name="alerts")

STYLES = {Severity.URGENT: "red", Severity.WARNING: "yellow", Severity.NOTE: ""}
LOOK_AGAIN_S = 2.0
TEST = "This is a test; nothing is wrong"

RuleName = Annotated[str, typer.Argument(help="As `aso alerts rules` lists them.", show_default=False)]
Number = Annotated[int, typer.Argument(help="Of the alert.", show_default=False)]


@alerts.callback(invoke_without_command=True)
def default(context: typer.Context, *, catalogue_url: CatalogueURL = None, as_json: AsJson = False) -> None:
    """List open alerts."""
    if not context.invoked_subcommand:
        list_command(catalogue_url=catalogue_url, as_json=as_json)


@alerts.command("list")
def list_command(
    *,
    pending: Annotated[
        bool, typer.Option(help="Also those that nobody is told of yet, since they may heal.")
    ] = False,
    over: Annotated[bool, typer.Option(help="Those that are over, in place of the open ones.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Of those that are over.")] = 50,
    catalogue_url: CatalogueURL = None,
    as_json: AsJson = False,
) -> None:
    """List alerts, the gravest first."""
    with open_catalogue(catalogue_url) as conn:
        views = over_views(conn, limit) if over else open_views(conn, pending=pending)
        silences = silences_in_force(conn)
    if as_json:
        sys.stdout.write(json.dumps([_facts(view, silences) for view in views], default=str) + "\n")
        return
    table = Table(box=None, pad_edge=False)
    for column in ("alert", "severity", "since", "rule", "what", "told"):
        table.add_column(column, overflow="fold")
    for view in views:
        severity = Severity(view.severity)
        table.add_row(
            str(view.alert_id), Text(severity.name.lower(), STYLES[severity]),
            f"{view.since or view.first_seen_at:%m-%d %H:%M}", view.rule, Text(view.sentence),
            Text(_told(view, silences)),
        )  # fmt: skip
    console.print(table if views else "No alert is over yet." if over else "Nothing needs a person.")


@alerts.command()
def show(number: Number, *, catalogue_url: CatalogueURL = None) -> None:
    """Show one alert, what became of it, and who was told."""
    with open_catalogue(catalogue_url) as conn:
        view = alert_view(conn, number)
        if view is None:
            raise Advice(f"There is no alert {number}.", "`aso alerts` lists the open ones, --over the past.")
        events, silences = alert_events(conn, number), silences_in_force(conn)
    say(f"{Severity(view.severity).name.lower()}: {view.sentence}")
    say(f"rule {view.rule}, subject {view.subject}, {view.state}; runbooks/{runbook(view.rule)}")
    if view.remedy:
        say(view.remedy)
    if view.state != "over" and (silence := silence_of(view.key, silences)):
        say(_silenced(silence))
    for event in events:
        what = (
            f"{event.kind} {event.channel}: {event.sentence}"
            if event.channel
            else f"{event.kind}: {event.sentence}"
        )
        say(f"{event.at:%Y-%m-%d %H:%M:%S}  {what}")


@alerts.command("look")
def look_command(*, catalogue_url: CatalogueURL = None) -> None:
    """Look now. Who has to be told is told by the next run of stageout_alerts."""
    with open_catalogue(catalogue_url) as conn:
        known, _ = read_channels(json.dumps([one.settings for one in seen_channels(conn)]))
        summary = recorded(
            conn,
            Actor("aso alerts look", who()),
            lambda step_run: look(conn, known, now=datetime.now(UTC), step_run=step_run),
        )
    say(f"{summary.sentence}.")


@alerts.command()
def silence(
    *,
    rule: Annotated[str, typer.Option(help="Name or pattern, such as link-*.")] = "*",
    subject: Annotated[str, typer.Option(help="Or a pattern; a site is meant at both ends of a link.")] = "*",
    reason: Annotated[str, typer.Option(help="For those who wonder.")],
    until: Annotated[datetime | None, typer.Option(formats=FORMATS, help="UTC.")] = None,
    lasting: Annotated[str | None, typer.Option("--for", help="Such as 30m, 2h or 3d.")] = None,
    catalogue_url: CatalogueURL = None,
) -> None:
    """Tell nobody of some alerts for a while. They are shown all the same."""
    if (until is None) == (lasting is None):
        raise Advice("A silence has an end.", "Say --for or --until.")
    ends_at = until.replace(tzinfo=UTC) if until else datetime.now(UTC) + duration(lasting or "")
    with open_catalogue(catalogue_url) as conn:
        try:
            made = add_silence(conn, rule, subject, reason=reason, ends_at=ends_at, by=who())
        except SilenceInvalid as error:
            raise Advice(f"Nothing was changed: {error}.", "Times are UTC.") from error
        now = sum(made.fits(view.key) for view in open_views(conn))
    say(f"{made.silence_id}: {_silenced(made)} {now:,} open alerts fit now.")
    say(f"End it with: aso alerts unsilence {made.silence_id}")


@alerts.command()
def unsilence(
    number: Annotated[int, typer.Argument(help="Of the silence.", show_default=False)],
    *,
    catalogue_url: CatalogueURL = None,
) -> None:
    """End a silence. What is still open is told by the next run of stageout_alerts."""
    with open_catalogue(catalogue_url) as conn:
        ended = end_silence(conn, number, who())
    if ended is None:
        raise Advice(f"There is no silence {number} in force.", "`aso alerts silences` lists them.")
    say(f"{number} was ended: {ended.rule} of {ended.subject}.")


@alerts.command()
def silences(
    *,
    everything: Annotated[bool, typer.Option("--all", help="Also those that are over.")] = False,
    catalogue_url: CatalogueURL = None,
    as_json: AsJson = False,
) -> None:
    """List silences."""
    with open_catalogue(catalogue_url) as conn:
        found = all_silences(conn) if everything else silences_in_force(conn)
    if as_json:
        sys.stdout.write(json.dumps([asdict(one) for one in found], default=str) + "\n")
        return
    table = Table("silence", "rule", "subject", "until (UTC)", "why", box=None, pad_edge=False)
    for one in found:
        until = f"{one.ended_at or one.ends_at:%Y-%m-%d %H:%M}" + (", ended" if one.ended_at else "")
        table.add_row(
            str(one.silence_id), Text(one.rule), Text(one.subject), until, Text(f"{one.author}: {one.reason}")
        )
    console.print(table if found else "Nothing is silenced.")


@alerts.command()
def rules(*, catalogue_url: CatalogueURL = None) -> None:
    """List the rules as they are wanted here; what differs from the default is marked."""
    with open_catalogue(catalogue_url) as conn:
        found = rules_in_force(conn)
    table = Table("rule", "told after", "again after", "limit", "what", box=None, pad_edge=False)
    for name, rule in found.items():
        usual = RULES[name]
        cells = [
            (_time(rule.for_s), rule.for_s != usual.for_s),
            (_time(rule.quiet_s), rule.quiet_s != usual.quiet_s),
            (_limit(rule), rule.limit != usual.limit),
        ]
        marked = [Text(text + (" *" if differs else "")) for text, differs in cells]
        table.add_row(name, *marked, Text("off" if rule.is_off else rule.title))
    console.print(table)


@alerts.command("set")
def set_command(
    rule: RuleName,
    settings: Annotated[list[str], typer.Argument(metavar="NAME=VALUE...", help="Such as for_s=600.")],
    *,
    catalogue_url: CatalogueURL = None,
) -> None:
    """Change a rule: for_s, quiet_s, limit, is_off=true."""
    _put(catalogue_url, rule, dict(_setting(text) for text in settings))
    say(f"{rule}: {', '.join(settings)}, from the next look on.")


@alerts.command("unset")
def unset_command(
    rule: RuleName,
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME...]", help="None: all.")] = None,
    *,
    catalogue_url: CatalogueURL = None,
) -> None:
    """Take settings of a rule back to their defaults."""
    _put(catalogue_url, rule, dict.fromkeys(names or RuleSettings.model_fields))
    say(f"{rule}: {', '.join(names or ['everything'])} as it was, from the next look on.")


@alerts.command()
def channels(*, catalogue_url: CatalogueURL = None, as_json: AsJson = False) -> None:
    """List the channels as stageout_alerts last read them, and how they take what they are told."""
    with open_catalogue(catalogue_url) as conn:
        found = seen_channels(conn)
    if as_json:
        sys.stdout.write(json.dumps([one._asdict() for one in found], default=str) + "\n")
        return
    table = Table("channel", "kind", "hears of", "last told (UTC)", "waiting", "", box=None, pad_edge=False)
    for one in found:
        told_at = f"{one.told_at:%Y-%m-%d %H:%M}" if one.told_at else "never"
        table.add_row(
            one.name,
            one.settings["kind"],
            _hears(one),
            told_at,
            str(one.waiting),
            Text(one.problem or "", "red"),
        )
    nobody = "Nobody is told: docs/how-to/alerts.md. (stageout_alerts has to run once to see a new channel.)"
    console.print(table if found else nobody, markup=False)


@alerts.command("test")
def send_test(
    *,
    channel: Annotated[str | None, typer.Option(help="Only this one.")] = None,
    wait_s: Annotated[float, typer.Option("--wait", help="Seconds to wait for the outcome.")] = 300.0,
    catalogue_url: CatalogueURL = None,
) -> None:
    """Send a message through every channel, as an alert would go, and say what came of it."""
    with open_catalogue(catalogue_url) as conn:
        numbers = make_test(conn, f"{TEST} (sent by {who()})", channel)
        if not numbers:
            raise Advice(
                f"There is no channel {channel}." if channel else "There is no channel yet.",
                "`aso alerts channels` lists them; stageout_alerts reads them every two minutes.",
            )
        say("The next run of stageout_alerts sends it, within two minutes.")
        found = _awaited(conn, numbers, wait_s)
    for one in found:
        said = "told" if one.told_at else one.problem or "nobody has sent it: does stageout_alerts run?"
        say(f"{one.channel}: {said}")
    if not all(one.told_at for one in found):
        raise typer.Exit(1)


@alerts.command("reference")
def reference_command() -> None:
    """Print all rules, as Markdown: docs/reference/alerts.md."""
    sys.stdout.write(reference())


HEAD = """# Rules of alerts

What `stageout_alerts` looks for. *Told after*: so long it must hold before anybody is told, so that nobody is
told of what heals itself. *Again after*: nobody is told of the same subject again within, however often it
comes and goes; if it gets worse, at once. All of it can be set otherwise:
`aso alerts set RULE for_s=600 quiet_s=3600 limit=0.5`, `aso alerts set RULE is_off=true`
([how to](../how-to/alerts.md)).

Links of one site that break together are one alert of that site (*by site*). This page is made by
`aso alerts reference`.

| rule | what | severity | told after | again after | limit | runbook |
|---|---|---|---|---|---|---|
"""


def reference() -> str:
    """Return the page on all rules, made of their definitions."""
    return HEAD + "".join(_line(name, rule) for name, rule in RULES.items())


def _line(name: str, rule: Rule) -> str:
    cells = (
        f"`{name}`",
        rule.title + (" (by site)" if rule.by_site else ""),
        rule.severities,
        _time(rule.for_s),
        _time(rule.quiet_s),
        f"`{_limit(rule)}` {rule.limit.words}" if rule.limit else "",
        f"[{rule.runbook.removesuffix('.md')}](../../runbooks/{rule.runbook})",
    )
    return f"| {' | '.join(cells)} |\n"


def _awaited(conn: psycopg.Connection, numbers: list[int], wait_s: float) -> list[Outcome]:
    ends_at_s = time.monotonic() + wait_s
    while True:
        found = outcomes(conn, numbers)
        if all(one.told_at or one.problem or one.dropped_at for one in found) or time.monotonic() > ends_at_s:
            return found
        time.sleep(LOOK_AGAIN_S)


def _put(url: str | None, rule: str, changes: dict[str, Any]) -> None:
    with open_catalogue(url) as conn:
        try:
            put_rule(conn, rule, changes, who())
        except RuleInvalid as error:
            raise Advice(
                f"Nothing was changed: {error}.", "docs/reference/alerts.md lists the rules."
            ) from error


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise Advice(f"{text!r} sets nothing.", "Write it as for_s=600.")
    words = {"true": True, "false": False}
    try:
        return name.strip(), words[value] if value in words else float(value)
    except ValueError as error:
        raise Advice(f"{value!r} is no number.", "Times are in seconds; is_off is true or false.") from error


def _facts(view: AlertView, silences: list[Silence]) -> dict[str, Any]:
    silence = silence_of(view.key, silences)
    return asdict(view) | {
        "severity": Severity(view.severity).name.lower(),
        "runbook": f"runbooks/{runbook(view.rule)}",
        "silence": silence and silence.silence_id,
    }


def _told(view: AlertView, silences: list[Silence]) -> str:
    if view.state != "over" and (silence := silence_of(view.key, silences)):
        return f"silenced by {silence.author} until {silence.ends_at:%m-%d %H:%M}"
    if view.state == "pending":
        return "may heal yet"
    return ", ".join(view.channels) or "nobody"


def _silenced(one: Silence) -> str:
    return (
        f"{one.rule} of {one.subject} is silenced until {one.ends_at:%Y-%m-%d %H:%M} UTC"
        f" by {one.author}: {one.reason}."
    )


def _hears(one: SeenChannel) -> str:
    rules = ", ".join(one.settings["rules"])
    return f"{one.settings['severity']}" + ("" if rules == "*" else f": {rules}")


def _time(seconds: float) -> str:
    """Say a time in its largest whole unit.

    >>> _time(0), _time(240), _time(43200), _time(90)
    ('at once', '4 min', '12 h', '90 s')
    """
    for length, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= length and seconds % length == 0:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:g} s" if seconds else "at once"


def _limit(rule: Rule) -> str:
    if rule.limit is None:
        return ""
    return "none" if rule.limit.value is None else f"{rule.limit.value:.15g}"
