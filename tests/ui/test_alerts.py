"""*Alerts*: what is open, silenced, over; and runbooks as pages."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from psycopg import Connection

from asyncstageout.catalogue.alert_settings import add_silence
from asyncstageout.catalogue.fts_servers import note_contact
from asyncstageout.catalogue.partitions import ensure_partitions
from asyncstageout.core.alert_channels import read_channels
from asyncstageout.core.alert_rules import RULES
from asyncstageout.steps.alerts import look, tell
from asyncstageout.ui.runbooks import NoRunbook, rendered_runbook
from ui.conftest import UI, Room
from ui.reading import Element, read

CHANNELS, _ = read_channels('[{"name": "chat", "kind": "slack"}]')
HOUR = timedelta(hours=1)


class Deaf:
    def tell(self, _: object) -> None:
        """Take everything."""


@pytest.fixture
def now(conn: Connection) -> datetime:
    """An FTS server has been down for long enough to be told, and it was."""
    now = datetime.now(UTC)
    ensure_partitions(conn, now.date())
    note_contact(conn, "fts", "refused <b>", now, refused=True)
    look(conn, CHANNELS, now=now - HOUR, step_run=1)
    look(conn, CHANNELS, now=now, step_run=1)
    tell(conn, CHANNELS, lambda _: Deaf(), step_run=1)
    return now


def page_of(room: Room, path: str) -> Element:
    answer = room().get(UI + path)
    assert answer.status_code == 200, answer.text
    return read(answer.text)


def buttons(page: Element) -> list[str]:
    return [one.text for one in page.all("button") if one.attributes.get("data-opens")]


def test_an_open_alert_says_what_whom_and_where(room: Room, now: datetime) -> None:
    page = page_of(room, "/alerts")
    (item,) = [one for one in page.all("li") if "refused <b>" in one.text]
    assert "fts-server-down" in item.text
    assert "told: chat" in item.text
    links = {link.text: link.attributes["href"] for link in item.all("a")}
    assert links["runbook"] == f"{UI}/runbooks/fts-server-down.md"
    assert buttons(page) == ["Silence…", "Silence…"]
    assert page.one(id="channels").rows()[0][:4] == ["chat", "slack", "warning", "*"]
    (number,) = [href for words, href in links.items() if "refused" in words]
    alert = page_of(room, number.removeprefix(UI))
    assert [row[1] for row in alert.one(id="events").rows()] == ["open", "told"]


def test_a_silence_is_set_and_ended_through_the_api_and_shown_everywhere(
    room: Room, conn: Connection, now: datetime
) -> None:
    page = page_of(room, "/alerts")
    forms = [one.attributes for one in page.all("form") if one.attributes.get("data-action")]
    assert {one["data-action"] for one in forms} == {"/stageout/api/v1/alerts/silences"}
    assert any('"rule": "fts-server-down"' in one["data-body"] for one in forms)
    body = {"rule": "fts-server-down", "subject": "fts", "reason": "<i>upgrade", "ends_at": str(now + HOUR)}
    made = room().post("/stageout/api/v1/alerts/silences", json=body, headers={"X-Requested-With": "x"})
    assert made.status_code == 201, made.text
    for path in ("/alerts", "/"):
        (item,) = [one for one in page_of(room, path).all("li") if "refused <b>" in one.text]
        mark = item.one("span", title="by olga: <i>upgrade")
        assert mark.text == "silenced"
    page = page_of(room, "/alerts")
    assert "<i>upgrade" in page.one(id="silences").text
    assert buttons(page)[-1] == "End…"
    end = page.all("form")[-1].attributes["data-action"]
    assert room().post(end, headers={"X-Requested-With": "x"}).status_code == 200
    assert "Nothing is silenced." in page_of(room, "/alerts").text


def test_what_is_over_is_a_table(room: Room, conn: Connection, now: datetime) -> None:
    note_contact(conn, "fts", None, now)
    look(conn, CHANNELS, now=now + HOUR, step_run=1)
    page = page_of(room, "/alerts")
    assert "Nothing needs a person." in page.text
    (row,) = page.one(id="over").rows()
    assert (row[1], row[5], row[6]) == ("urgent", "chat", "fts-server-down")
    answer = room().get(f"{UI}/alerts?format=csv&table=over")
    assert answer.text.splitlines()[0] == "alert,severity,sentence,since,over_at,channels,rule"


def test_links_of_one_site_are_one_line_of_the_overview(room: Room, conn: Connection) -> None:
    ensure_partitions(conn, datetime.now(UTC).date())
    for source in ("T2_US_MIT", "T1_DE_KIT"):
        conn.execute(
            "INSERT INTO link_breaker (source, destination, state, reason, probe_at)"
            " VALUES (%s, 'T2_CH_CERN', 'open', 'all failed', now())",
            (source,),
        )
    add_silence(conn, "*", "T2_CH_CERN", reason="known", ends_at=datetime.now(UTC) + HOUR, by="olga")
    (item,) = [one for one in page_of(room, "/").all("li") if "links of T2_CH_CERN" in one.text]
    assert "silenced" in item.text


@pytest.mark.parametrize("name", sorted({rule.runbook for rule in RULES.values()}))
def test_a_runbook_is_a_page_without_dead_links(room: Room, name: str) -> None:
    page = page_of(room, f"/runbooks/{name}")
    assert "Means." in page.text
    assert "](" not in page.text
    for link in page.one("article").all("a"):
        assert room().get(link.attributes["href"]).status_code == 200


def test_runbooks_hold_no_html_of_their_own() -> None:
    with pytest.raises(NoRunbook):
        rendered_runbook("no-such-thing.md", str)
    for name in {rule.runbook for rule in RULES.values()}:
        assert rendered_runbook(name, str).title
