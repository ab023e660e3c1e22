"""What runs, what it did and who did it: an operator's questions, answered by clicking in a real browser."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("playwright", reason="playwright is not installed")

from playwright.sync_api import expect

# The same browser, catalogue and way to open a page.
from ui.browsing import Mode, violations
from ui.seed import BROKEN, PAUSED
from ui.test_browser import open_page, running, seeded, url  # noqa: F401 - fixtures

if TYPE_CHECKING:
    from playwright.sync_api import Page

Open = Callable[..., "Page"]
PAGES = ("/jobs", "/jobs?show=ended", "/cycles", "/cycles?which=all&range=1h", "/steps", "/audit?range=7d")


@pytest.fixture
def a_job(open_page: Open) -> Page:  # noqa: F811
    page = open_page("/jobs?show=slow")
    page.locator("#jobs tbody tr", has_text="slow").first.get_by_role("rowheader").get_by_role("link").click()
    return page


def test_what_is_in_flight(open_page: Open) -> None:  # noqa: F811
    page = open_page("/")
    page.locator(".tile", has_text="In flight").get_by_role("link").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("FTS jobs")
    page.get_by_label("FTS server").select_option("fts_cern")
    expect(page).to_have_url(re.compile("server=fts_cern"))
    expect(page.locator("#jobs tbody tr").first).to_contain_text("fts_cern")
    expect(page.locator("#jobs")).not_to_contain_text("fts_fnal")


def test_what_is_wrong_at_fts(open_page: Open) -> None:  # noqa: F811
    page = open_page("/")
    page.get_by_role("region", name="Needs a person now").get_by_role(
        "link", name="nobody asks about"
    ).click()
    expect(page.locator("#jobs tbody tr")).to_have_count(2)
    expect(page.locator("#jobs")).to_contain_text("not confirmed")
    page.locator("#jobs tbody tr", has_text="nobody asks").get_by_role("rowheader").get_by_role(
        "link"
    ).click()
    expect(page.locator(".notice").first).to_contain_text("nobody has asked FTS about it for")


def test_why_is_this_job_slow_and_who_made_it(a_job: Page) -> None:
    expect(a_job.locator(".notice")).to_contain_text("are usual")
    expect(a_job.get_by_role("link", name="FTS monitor")).to_have_attribute(
        "href", re.compile(r"^https://fts_.*#/job/")
    )
    expect(a_job.locator("#files tbody tr").first).to_contain_text("SUBMITTED")
    expect(a_job.locator("#steps")).to_contain_text("planned it")
    log = a_job.locator("#steps").get_by_role("link", name="log").first
    expect(log).to_have_attribute("href", re.compile("^/dags/stageout_transfer/runs/.*/tasks/group"))
    a_job.get_by_role("link", name=re.compile("^cycle ")).click()
    expect(a_job.locator("#jobs")).to_contain_text("slow")


def test_what_did_the_last_cycles_do(open_page: Open) -> None:  # noqa: F811
    page = open_page("/cycles")
    page.locator("#cycles tbody tr").nth(3).get_by_role("rowheader").get_by_role("link").click()
    expect(page.get_by_role("link", name="Its run in Airflow")).to_have_attribute(
        "href", re.compile("^/dags/stageout_transfer/runs/scheduled__")
    )
    expect(page.locator("#steps tbody tr")).to_have_count(4)
    expect(page.locator("#links tbody tr", has_text=PAUSED)).to_contain_text("paused by olga: disk pools")
    page.locator("#links").get_by_role("link", name=str(BROKEN)).click()
    page.locator("#jobs tbody tr").first.get_by_role("rowheader").get_by_role("link").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("FTS job")


def test_what_ran_and_failed(open_page: Open) -> None:  # noqa: F811
    page = open_page("/cycles")
    expect(page.locator("#runs tbody tr", has_text="reconcile")).to_contain_text("2 jobs at FTS")
    page.get_by_role("link", name="All steps of all DAGs").click()
    page.get_by_label("Outcome").select_option("Failed")
    expect(page.locator("#steps tbody tr")).to_have_count(1)
    page.locator("#steps").get_by_role("link", name="stageout_reconcile.verdict").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("A run of stageout_reconcile")


def test_who_changed_that_and_when(open_page: Open) -> None:  # noqa: F811
    page = open_page("/audit?range=7d")
    page.get_by_role("searchbox", name="What").fill("policy")
    page.get_by_role("searchbox", name="Who").fill("pietro")
    page.get_by_role("button", name="Show").click()
    expect(page.locator("#changes tbody tr").first).to_contain_text("max attempts: 4 → 3")
    page.get_by_role("searchbox", name="What").fill("kill")
    page.get_by_role("searchbox", name="Who").fill("olga")
    page.get_by_role("button", name="Show").click()
    expect(page.locator("#acts tbody tr").first).to_contain_text(
        "killed by olga: wrong dataset, ticket 170299"
    )


@pytest.mark.parametrize("mode", ["light", pytest.param("dark", marks=pytest.mark.long)])
def test_axe_has_nothing_to_say(mode: Mode, open_page: Open, url: str) -> None:  # noqa: F811
    page = open_page("/jobs", mode=mode)
    for path in PAGES:
        page.goto(url + path)
        assert violations(page) == [], path
        if path in ("/jobs", "/cycles"):
            page.locator(f"#{path[1:]} tbody tr").first.get_by_role("rowheader").get_by_role("link").click()
            assert violations(page) == [], page.url


def test_a_narrow_screen_shows_everything(open_page: Open, url: str) -> None:  # noqa: F811
    page = open_page("/jobs", width=400)
    for path in PAGES:
        page.goto(url + path)
        assert page.evaluate("document.documentElement.scrollWidth") <= 400, path
    page.goto(url + "/jobs")
    page.locator("#jobs tbody tr").first.get_by_role("rowheader").get_by_role("link").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 400, page.url
