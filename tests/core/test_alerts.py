"""Alerts: what belongs together, when somebody is told, and channels as people write them."""

from __future__ import annotations

import doctest
import json
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asyncstageout.core import alert_rules, alerts
from asyncstageout.core.alert_channels import Mail, Slack, Webhook, read_channels
from asyncstageout.core.alert_rules import RULES, RuleInvalid, check_settings, tuned
from asyncstageout.core.alert_texts import Links, batch, chat, html, title
from asyncstageout.core.alerts import (
    OVER_AFTER_S,
    About,
    Alert,
    Attention,
    Ending,
    Key,
    Kind,
    Notice,
    Opening,
    Seeing,
    Severity,
    State,
    Told,
    grouped,
    moves,
    telling,
    wants,
)

NOW = datetime(2026, 11, 27, 8, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
BARI, CERN, MIT, KIT = "T2_IT_Bari", "T2_CH_CERN", "T2_US_MIT", "T1_DE_KIT"
RUNBOOKS = Path(__file__).parents[2] / "runbooks"


def broken(source: str, destination: str, severity: Severity = Severity.WARNING) -> Attention:
    return Attention(
        "link-broken", severity, f"{source} to {destination}", About("link", (source, destination))
    )


def known(
    subject: str, state: State = State.PENDING, *, rule: str = "link-broken", minutes: int = 0
) -> Alert:
    at = NOW - minutes * MINUTE
    return Alert(7, Key(rule, subject), state, Severity.WARNING, at, at)


def subjects(*findings: Attention, alerts: tuple[Alert, ...] = ()) -> dict[str, int]:
    groups = grouped(findings, RULES, alerts)
    return {key.subject: max(len(one.members), 1) for key, one in groups.items()}


# --- what belongs together ---


def test_links_of_one_site_are_one_alert() -> None:
    found = [broken(BARI, CERN), broken(MIT, CERN), broken(KIT, CERN, Severity.URGENT), broken(MIT, BARI)]
    assert subjects(*found) == {CERN: 3, f"{MIT}/{BARI}": 1}
    one = grouped(found, RULES)[Key("link-broken", CERN)]
    assert one.sentence == f"3 links of {CERN}, such as {KIT} to {CERN}"
    assert (one.severity, one.about) == (Severity.URGENT, About("site", (CERN,)))


def test_a_link_that_was_told_alone_stays_alone_and_later_ones_join_a_site() -> None:
    found = [broken(BARI, CERN), broken(MIT, CERN), broken(KIT, CERN)]
    assert subjects(*found, alerts=(known(f"{BARI}/{CERN}", State.OPEN),)) == {f"{BARI}/{CERN}": 1, CERN: 2}
    assert subjects(*found, alerts=(known(f"{BARI}/{CERN}"),)) == {CERN: 3}, "nobody has heard of it alone"
    assert subjects(broken(MIT, CERN), alerts=(known(CERN, State.OPEN),)) == {CERN: 1}


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sets(st.sampled_from(list(product("abcde", "vwxyz"))), max_size=15))
def test_every_finding_is_in_exactly_one_group(links: set[tuple[str, str]]) -> None:
    found = [broken(*link) for link in links]
    groups = grouped(found, RULES)
    seen = [member for one in groups.values() for member in (one.members or (one.subject,))]
    assert sorted(seen) == sorted(one.subject for one in found)
    assert grouped(found[::-1], RULES).keys() == groups.keys(), "whatever the order"


def test_findings_with_one_subject_are_one_alert() -> None:
    where = [About("step", ("stageout_transfer", "r", "submit", str(index))) for index in range(3)]
    found = [
        Attention("step-failed", Severity.WARNING, "red", about, of="stageout_transfer.submit")
        for about in where
    ]
    (one,) = grouped(found, RULES).values()
    assert one.sentence == "red (and 2 more)"
    assert one.about == where[0]


# --- what follows ---


def only_move(*findings: Attention, alerts: tuple[Alert, ...] = ()) -> alerts.Move:
    (move,) = moves(grouped(findings, RULES, alerts), alerts, RULES, NOW)
    return move


def test_nobody_is_told_before_it_has_held() -> None:
    new = only_move(broken(BARI, CERN))
    assert isinstance(new, Opening)
    assert new.state is State.PENDING
    for minutes, state in ((29, State.PENDING), (30, State.OPEN)):
        seen = only_move(broken(BARI, CERN), alerts=(known(f"{BARI}/{CERN}", minutes=minutes),))
        assert isinstance(seen, Seeing)
        assert seen.state is state
    at_once = only_move(Attention("dead-letters", Severity.WARNING, "3", About("nothing"), of="crab"))
    assert isinstance(at_once, Opening)
    assert at_once.state is State.OPEN


def test_links_that_are_put_together_have_held_as_long_as_the_first_of_them() -> None:
    before = known(f"{BARI}/{CERN}", minutes=31)
    found = list(
        moves(grouped([broken(BARI, CERN), broken(MIT, CERN)], RULES, [before]), [before], RULES, NOW)
    )
    assert [type(one) for one in found] == [Opening, Ending]
    assert isinstance(found[0], Opening)
    assert (found[0].first_seen_at, found[0].state) == (before.first_seen_at, State.OPEN)


def test_one_miss_does_not_end_an_open_alert_but_forgets_a_pending_one() -> None:
    def after(seconds: float, state: State) -> list[alerts.Move]:
        alert = Alert(7, Key("link-broken", CERN), state, Severity.NOTE, NOW, NOW)
        return list(moves({}, [alert], RULES, NOW + timedelta(seconds=seconds)))

    assert after(OVER_AFTER_S - 1, State.OPEN) == []
    assert [type(one) for one in after(OVER_AFTER_S, State.OPEN)] == [Ending]
    assert [type(one) for one in after(1, State.PENDING)] == [Ending]


@pytest.mark.parametrize(
    ("last", "kind"),
    [
        (None, Kind.OPEN),
        (Told(7, Severity.WARNING, NOW - 59 * MINUTE), None),
        (Told(7, Severity.WARNING, NOW - 60 * MINUTE), Kind.AGAIN),
        (Told(7, Severity.NOTE, NOW - MINUTE), Kind.WORSE),
        (Told(7, Severity.URGENT, NOW - MINUTE), None),
        # It was over, and is there again.
        (Told(6, Severity.WARNING, NOW - 59 * MINUTE), None),
        (Told(6, Severity.WARNING, NOW - 60 * MINUTE), Kind.OPEN),
    ],
)
def test_nobody_is_told_again_too_soon(last: Told | None, kind: Kind | None) -> None:
    assert telling(7, Severity.WARNING, last, quiet_s=3600, now=NOW) is kind


# --- rules and channels ---


def test_every_rule_has_a_runbook_that_says_all_it_must() -> None:
    for rule in RULES.values():
        text = (RUNBOOKS / rule.runbook).read_text()
        assert "**Means.**" in text, rule.runbook
        assert "**Over when**" in text, rule.runbook


def test_settings_of_rules() -> None:
    assert check_settings("files-late", {"limit": 600, "for_s": None}) == {"limit": 600.0}
    for rule, wrong, field in (
        ("no-rule", {}, "no-rule"),
        ("files-late", {"for_s": -1}, "for_s"),
        ("files-late", {"colour": 1}, "colour"),
        ("step-failed", {"limit": 5}, "limit"),
    ):
        with pytest.raises(RuleInvalid) as invalid:
            check_settings(rule, wrong)
        assert invalid.value.field == field
    changed = tuned(
        {"files-late": {"limit": 60.0, "quiet_s": 7.0, "later": True}, "step-silent": {"is_off": True}}
    )
    assert changed["files-late"].limit
    assert changed["files-late"].limit.value == 60.0
    assert (changed["files-late"].quiet_s, changed["step-silent"].is_off) == (7.0, True)
    assert changed["step-failed"] == RULES["step-failed"]


def test_channels_as_people_write_them() -> None:
    text = json.dumps([
        {"name": "mail", "kind": "mail", "to": ["ops@example.org"]},
        {"name": "chat", "kind": "slack", "severity": "urgent", "rules": ["fts-*"], "over": False},
        {"name": "pager", "kind": "webhook", "conn_id": "pager"},
    ])  # fmt: skip
    channels, problems = read_channels(text)
    assert problems == []
    mail, chat_, pager = channels
    assert isinstance(mail, Mail)
    assert isinstance(chat_, Slack)
    assert isinstance(pager, Webhook)
    assert (mail.conn_id, mail.severity, mail.over) == ("smtp_default", "warning", True)
    assert wants(mail, Key("files-late", BARI), Severity.WARNING)
    assert not wants(mail, Key("files-late", BARI), Severity.NOTE)
    assert wants(chat_, Key("fts-server-down", "fts"), Severity.URGENT)
    assert not wants(chat_, Key("files-late", BARI), Severity.URGENT)
    assert read_channels(None) == ([], [])


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"name": "x", "kind": "pigeon"}, "channel x: Input tag 'pigeon'"),
        ({"kind": "slack"}, "channel 1: name: Field required"),
        ({"name": "x", "kind": "mail", "to": []}, "channel x: to:"),
        ({"name": "x", "kind": "mail", "to": ["no address"]}, "channel x: to.0:"),
        ({"name": "x", "kind": "mail", "to": ["a@b.c\nBcc: d@e.f"]}, "channel x: to.0:"),
        ({"name": "x", "kind": "webhook"}, "channel x: conn_id: Field required"),
        ({"name": "x", "kind": "slack", "rules": ["nonsense"]}, "rules: no rule is called nonsense"),
        ({"name": "x", "kind": "slack", "colour": 1}, "colour: Extra inputs"),
        (7, "channel 1:"),
    ],
)
def test_what_is_wrong_with_a_channel_is_said_and_the_others_count(row: object, said: str) -> None:
    channels, (problem,) = read_channels(json.dumps([row, {"name": "chat", "kind": "slack"}]))
    assert said in problem
    assert problem.startswith("stageout_alert_channels")
    assert [one.name for one in channels] == ["chat"]


def test_a_variable_that_is_no_list_is_told() -> None:
    for text, said in (("{", "no JSON"), ("{}", "must be a list")):
        channels, (problem,) = read_channels(text)
        assert not channels
        assert said in problem
    twice = json.dumps([{"name": "chat", "kind": "slack"}, {"name": "chat", "kind": "slack"}])
    channels, problems = read_channels(twice)
    assert len(channels) == 1
    assert problems == ["stageout_alert_channels: two channels are called chat"]


# --- what is said ---


def notice(number: int, kind: Kind, severity: Severity, sentence: str, **rest: object) -> Notice:
    return Notice(
        number, number, kind, severity, sentence, "files-late", f"{BARI}/{CERN}", "Ask <them>.",
        About("link", (BARI, CERN)), NOW, rest.get("over_at"),
    )  # fmt: skip


def test_texts_escape_what_people_and_servers_write() -> None:
    notices = [
        notice(1, Kind.OVER, Severity.URGENT, "gone", over_at=NOW + 5 * MINUTE),
        notice(2, Kind.AGAIN, Severity.WARNING, "<script> & {{ x }}\nline"),
    ]
    links = Links("https://airflow.example.org")
    assert title(notices) == "[stageout] warning, still: <script> & {{ x }} line (and 1 more)"
    mail = html(notices, links)
    assert "&lt;script&gt; &amp; {{ x }}" in mail
    assert "Ask &lt;them&gt;." in mail
    assert 'href="https://airflow.example.org/stageout/ui/alerts/2"' in mail
    assert 'href="https://airflow.example.org/stageout/ui/runbooks/late-files.md"' in mail
    over, still = chat(notices, links).splitlines()
    assert over.startswith("*OVER* gone · from 2026-11-27 08:00 to 2026-11-27 08:05 UTC")
    assert "&lt;script&gt; &amp; {{ x }} line" in still
    first, _ = batch(notices, Links(""), installation="i", channel="c").alerts
    assert (first.id, first.page, first.runbook) == ("alert-message-1", "", "runbooks/late-files.md")


@pytest.mark.parametrize("module", [alerts, alert_rules])
def test_examples(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]
