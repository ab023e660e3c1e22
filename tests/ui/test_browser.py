"""An operator's questions, answered by clicking in a real browser, over a catalogue that a day has gone through."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

import pytest

from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.rollups import HOUR, roll_up_hour
from ui.seed import BROKEN, DRAINED, PAUSED, fill
from ui.serving import room

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    from conftest import PostgresServer

pytest.importorskip("playwright", reason="playwright is not installed")

from playwright.sync_api import expect

from ui.browsing import PATIENCE_MS, Mode, browser, context, violations

FILES, DAYS = 1_500, 8
LINK = f"/links/{BROKEN.source}/{BROKEN.destination}"
PAGES = (
    "/",
    "/alerts",
    "/runbooks/credentials.md",
    "/links",
    LINK,
    "/sites",
    f"/sites/{PAUSED}",
    "/users",
    "/tasks",
    "/failures",
    "/failures?category=quota",
    "/search?q=x",
)
"""A new page is one more here, or in :func:`pages`."""
BAD = ("error", "warning")
Open = Callable[..., "Page"]

expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="module")
def seeded(postgres_server: PostgresServer, _catalogue_template: str) -> Iterator[str]:
    """The URL of a catalogue that all tests here share: what one changes, it changes back."""
    name, url = postgres_server.fresh_database(template=_catalogue_template)
    with connect(url) as conn:
        fill(conn, files=FILES, days=DAYS)
    yield url
    postgres_server.drop(name)


class Story(NamedTuple):
    """A file that failed for good, with its owner and his task, of which some files DBS did not take."""

    file: int
    lfn: str
    reason: str
    user: str
    task: str


@pytest.fixture(scope="module")
def story(seeded: str) -> Story:
    with connect(seeded) as conn:
        row = conn.execute(
            "SELECT t.id, t.source_lfn, t.failure_reason, k.username, k.name FROM transfer t JOIN task k ON k.id = t.task_id"
            " WHERE t.state = 'FAILED' AND k.id IN (SELECT task_id FROM block) AND t.ended_at > now() - interval '20 h'"
            " ORDER BY t.ended_at DESC, t.id LIMIT 1"
        ).fetchone()
    assert row is not None
    return Story(*row)


@pytest.fixture(scope="module")
def pages(story: Story) -> tuple[str, ...]:
    return (
        *PAGES,
        f"/users/{story.user}",
        f"/tasks/{story.task}",
        f"/files/{story.file}",
        f"/failures?user={story.user}",
    )


@pytest.fixture(scope="module")
def running() -> Iterator[Browser]:
    # Playwright keeps an event loop in this thread, so it must be gone before the tests of other modules.
    with browser() as running:
        yield running


@pytest.fixture(scope="module")
def url(running: Browser, seeded: str) -> Iterator[str]:
    with room(seeded) as url:
        yield url


@pytest.fixture
def open_page(running: Browser, url: str) -> Iterator[Open]:
    """Return what opens a page; whatever the browser complains of there is an error."""
    contexts, complaints = [], []

    def open_page(path: str, *, listens: bool = True, **options: object) -> Page:
        contexts.append(context(running, url, **options))
        page = contexts[-1].new_page()
        if listens:
            page.on("console", lambda one: complaints.append(one.text) if one.type in BAD else None)
            page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(url + path)
        return page

    yield open_page
    for one in contexts:
        one.close()
    assert complaints == []


# --- an operator's questions ---


def test_how_much_waits_and_since_when(open_page: Open) -> None:
    page = open_page("/")
    waiting = page.locator(".tile", has_text="Waiting")
    expect(waiting).to_contain_text("the oldest since")
    waiting.get_by_role("link").click()
    expect(page.get_by_role("heading", level=2, name="Waiting from source")).to_be_visible()
    expect(page.locator("#links tbody tr").first).to_contain_text("ago")


def test_what_needs_me_now_and_where_is_it(open_page: Open) -> None:
    page = open_page("/")
    needs = page.get_by_role("region", name="Needs a person now")
    expect(needs.get_by_role("listitem").first).to_contain_text(
        "2 jobs at FTS that the catalogue does not know"
    )
    needs.get_by_role("link", name=f"{BROKEN}: breaker open").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("breaker open")


def test_why_does_a_link_fail(open_page: Open) -> None:
    page = open_page("/links?only=trouble")
    page.locator("#links").get_by_role("link", name=BROKEN.destination, exact=True).first.click()
    expect(page.locator("#failures")).to_contain_text("the destination site failed")
    expect(page.locator("#failed tbody tr").first).to_contain_text("Host is down")
    expect(page.locator("#jobs tbody tr").first).to_contain_text("FAILED")


def test_which_link_is_the_worst(open_page: Open) -> None:
    page = open_page("/links")
    head = page.locator("#links").get_by_role("columnheader", name="Efficiency")
    head.get_by_role("link").click()
    expect(head).to_have_attribute("aria-sort", "descending")
    head.get_by_role("link").click()
    expect(head).to_have_attribute("aria-sort", "ascending")
    expect(page.locator("#links tbody tr").first).to_contain_text("0 %")
    page.reload()
    expect(head).to_have_attribute("aria-sort", "ascending")


def test_why_does_nothing_come_from_a_site(open_page: Open) -> None:
    page = open_page("/sites")
    page.get_by_label("Site", exact=True).fill(PAUSED)
    page.get_by_role("button", name="Show").click()
    expect(page.locator("#sites tbody tr")).to_have_count(1)
    page.get_by_role("rowheader").get_by_role("link", name=PAUSED).click()
    expect(page.locator(".notice")).to_contain_text("disk pools are full; ticket 170312")


def test_who_drained_a_site_and_why(open_page: Open) -> None:
    page = open_page(f"/sites/{DRAINED}")
    expect(page.locator("#restrictions li")).to_contain_text("storage is being retired")
    expect(page.locator("#restrictions li")).to_contain_text("by pietro")


def test_what_is_between_two_sites(open_page: Open) -> None:
    page = open_page("/links?show=volume&sites=60")
    cell = page.locator("#matrix").get_by_title(f"{BROKEN.source} → {BROKEN.destination}: ")
    expect(cell).to_contain_text("breaker open")
    cell.click()
    expect(page).to_have_url(re.compile(LINK))


def test_how_was_the_week_in_bytes(open_page: Open) -> None:
    page = open_page("/")
    page.get_by_role("group", name="Time").get_by_role("link", name="7d").click()
    page.get_by_role("group", name="Unit").get_by_role("link", name="Bytes").click()
    expect(page).to_have_url(re.compile("range=7d&unit=bytes"))
    chart = page.locator("#throughput")
    chart.get_by_text("The numbers as a table").click()
    expect(chart.get_by_role("row")).to_have_count(7 * 8 + 2)
    expect(chart.get_by_role("row").nth(20)).to_contain_text("B")
    page.get_by_role("link", name="Links", exact=True).click()
    expect(page).to_have_url(re.compile("/links.range=7d"))


def test_who_set_the_policy_of_a_link(open_page: Open) -> None:
    policy = open_page(LINK).locator("#policy")
    expect(policy).to_contain_text("files_per_job")
    expect(policy).to_contain_text("by pietro")
    policy.get_by_text("Everything else").click()
    expect(policy.get_by_text("verify_checksum")).to_be_visible()


def test_give_me_the_numbers(open_page: Open) -> None:
    page = open_page("/links?links.sort=source")
    with page.expect_download() as download:
        page.get_by_role("link", name="CSV of Links").click()
    assert download.value.suggested_filename.startswith("stageout-links-")
    with download.value.path().open() as file:
        rows = list(csv.DictReader(file))
    (broken,) = [row for row in rows if (row["source"], row["destination"]) == BROKEN]
    assert (broken["conditions"], broken["done"], float(broken["efficiency"])) == ("breaker open", "0", 0)


def test_stop_a_link_and_let_it_go_again(open_page: Open) -> None:
    page = open_page(LINK)
    page.get_by_role("button", name="Pause or drain").click()
    dialog = page.get_by_role("dialog", name="Pause or drain")
    dialog.get_by_role("button", name="Pause or drain").click()
    expect(dialog).to_be_visible()  # a reason is required
    dialog.get_by_label("Reason").fill("their pools are down")
    dialog.get_by_label("For how long").select_option("8 hours")
    dialog.get_by_role("button", name="Pause or drain").click()
    expect(dialog).to_be_hidden()
    expect(page.get_by_role("status").last).to_have_text("Done.")
    paused = page.locator("#restrictions li")
    expect(paused).to_contain_text("their pools are down")
    expect(paused).to_contain_text("by olga")
    expect(paused).to_contain_text("in 7 h")
    paused.get_by_role("button", name="Lift").click()
    page.get_by_role("dialog", name="Lift").get_by_role("button", name="Lift").click()
    expect(page.locator("#restrictions")).to_contain_text("Nothing is restricted here.")


def test_what_the_api_minds_is_said_in_the_dialog(open_page: Open) -> None:
    page = open_page(LINK, listens=False)
    page.route("**/api/v1/restrictions", lambda route: route.fulfill(
        status=422, content_type="application/problem+json",
        body='{"detail": "1 thing is wrong.", "errors": [{"pointer": "#/reason", "detail": "too short"}]}'))  # fmt: skip
    page.get_by_role("button", name="Pause or drain").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Reason").fill("x")
    dialog.get_by_role("button", name="Pause or drain").click()
    expect(dialog.get_by_role("status")).to_have_text("1 thing is wrong. #/reason too short")
    dialog.get_by_role("button", name="Cancel").click()
    expect(dialog).to_be_hidden()


# --- why it failed, whose it is, where it is ---


def test_why_did_a_users_file_fail_in_two_clicks(open_page: Open, story: Story) -> None:
    page = open_page("/")
    page.locator(".tile", has_text="Failed for good").get_by_role("link").click()
    page.locator("#users").get_by_role("link", name=story.user, exact=True).click()
    row = page.locator("#files tbody tr", has_text=story.lfn)
    expect(row).to_contain_text(story.reason)
    expect(row).to_contain_text("FAILED")
    expect(page.locator("#reasons tbody tr").first).to_be_visible()


def test_what_is_this_failure_and_what_helps(open_page: Open) -> None:
    page = open_page("/?range=24h")
    page.locator("#failures").get_by_role("link", name="quota").click()
    expect(page).to_have_url(re.compile("category=quota&range=24h"))
    expect(page.locator(".notice")).to_contain_text("What helps: free space there")
    expect(page.locator("#reasons tbody tr").first).to_contain_text("HTTP 507 : Insufficient Storage")
    page.locator("#links").get_by_role("link", name="why").first.click()
    expect(page.locator("[name=category]")).to_have_value("quota")
    expect(page.locator("[name=source]")).not_to_have_value("")
    expect(page.locator("#files tbody tr").first).to_contain_text("quota")


def test_where_is_this_file_and_who_did_that(open_page: Open, story: Story) -> None:
    page = open_page("/links")
    page.get_by_label("Search").fill(story.lfn)
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(f"/files/{story.file}$"))
    expect(page.get_by_role("region", name="Where it is")).to_contain_text("It failed for good, after")
    expect(page.locator("#attempts tbody tr").first).to_contain_text(story.reason)
    last = page.locator("#history tbody tr").last
    expect(last).to_contain_text("FAILED")
    log = last.get_by_role("link", name="stageout_sense.update_catalogue, try 1")
    expect(log).to_have_attribute(
        "href", re.compile(r"^/dags/stageout_sense/runs/scheduled__.*/tasks/update_catalogue\?try_number=1$")
    )
    page.get_by_role("link", name=story.task).click()
    expect(page.get_by_role("heading", level=1)).to_have_text(story.task)


def test_how_far_is_a_task_and_why_is_it_not_published(open_page: Open, story: Story) -> None:
    page = open_page("/")
    page.get_by_label("Search").fill(story.user)
    page.keyboard.press("Enter")
    page.locator("#tasks").get_by_role("link", name=story.task).click()
    expect(page.locator("svg.progress rect.p-failed")).to_be_visible()
    expect(page.locator("#unpublished tbody tr").first).to_contain_text("DBS refused the block")
    page.get_by_label("Files that are").select_option("FAILED")
    expect(page.locator("#files tbody tr .state").first).to_have_text("FAILED")
    page.get_by_role("button", name="Publish again").click()
    dialog = page.get_by_role("dialog", name="Publish again")
    expect(dialog.get_by_role("status")).to_contain_text("would go to DBS again")
    dialog.get_by_role("button", name="Cancel").click()


def test_whose_files_wait_for_longest(open_page: Open) -> None:
    page = open_page("/users")
    page.locator("#users").get_by_role("columnheader", name="Oldest waiting").get_by_role("link").click()
    expect(page.locator("#users tbody tr").first).to_contain_text("h ago")


def test_send_a_file_again_and_stop_it(open_page: Open, story: Story) -> None:
    page = open_page(f"/failures?user={story.user}")
    page.locator("#files tbody tr", has_text="FAILED").last.get_by_role("rowheader").get_by_role(
        "link"
    ).click()
    where = page.get_by_role("region", name="Where it is")
    for button, state in (("Send again", "NEW"), ("Kill", "KILLED")):
        page.get_by_role("button", name=button).click()
        dialog = page.get_by_role("dialog", name=button)
        expect(dialog.get_by_role("status")).to_contain_text("It would do this now: 1 ")
        dialog.get_by_label("Comment").fill("as the user asked")
        dialog.get_by_role("button", name=button).click()
        expect(page.get_by_role("heading", level=1)).to_contain_text(state)
        expect(page.locator("#history tbody tr").last).to_contain_text("by olga: as the user asked")
    expect(where).to_contain_text("It was stopped")


def test_users_find_their_own_way(open_page: Open, story: Story) -> None:
    page = open_page("/", who=story.user)
    page.get_by_role("link", name="Failures", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Your failures")
    page.locator("#files tbody tr", has_text=story.lfn).get_by_role("rowheader").get_by_role("link").click()
    expect(page.get_by_role("region", name="Where it is")).to_contain_text("It failed for good")
    page.get_by_label("Search").fill("no such thing")
    page.keyboard.press("Enter")
    expect(page.get_by_role("main")).to_contain_text("Nothing of yours is called no such thing.")


# --- for everybody ---


@pytest.mark.parametrize("mode", ["light", pytest.param("dark", marks=pytest.mark.long)])
def test_axe_has_nothing_to_say(mode: Mode, open_page: Open, url: str, pages: tuple[str, ...]) -> None:
    page = open_page("/", mode=mode, listens=False)
    for path in (*pages, "/links?show=efficiency", "/nothing"):
        page.goto(url + path)
        assert violations(page) == [], path
    page.goto(url + LINK)
    page.get_by_role("button", name="Pause or drain").click()
    assert violations(page) == [], "a dialog"


def test_a_narrow_screen_shows_everything(open_page: Open, url: str, pages: tuple[str, ...]) -> None:
    page = open_page("/", width=400)
    for path in pages:
        page.goto(url + path)
        assert page.evaluate("document.documentElement.scrollWidth") <= 400, path
    page.get_by_role("button", name="Pages").click()
    page.get_by_role("link", name="Overview", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Overview")
    assert violations(page) == []


def test_the_keyboard_is_enough(open_page: Open) -> None:
    page = open_page(LINK)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    opener = page.get_by_role("button", name="Pause or drain")
    opener.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_label("What", exact=True)).to_be_focused()
    page.keyboard.press("Escape")
    expect(opener).to_be_focused()


def test_without_a_script_all_is_there_but_actions(open_page: Open, url: str) -> None:
    page = open_page(LINK, java_script_enabled=False)
    expect(page.locator("#failed tbody tr").first).to_contain_text("Host is down")
    expect(page.locator("#throughput svg.drawing rect.k-failed").first).to_be_visible()
    expect(page.get_by_role("button", name="Pause or drain")).to_be_hidden()
    expect(page.get_by_text("aso pause")).to_be_visible()


def test_times_are_told_in_local_time_too(open_page: Open) -> None:
    moment = open_page("/").locator(".made time")
    at = datetime.fromisoformat(moment.get_attribute("datetime") or "")
    local = at.astimezone(UTC) + timedelta(hours=1 if at.month in (11, 12, 1, 2) else 0)
    if local != at:
        assert f"{local:%H:%M:%S}" in (moment.get_attribute("title") or "")


def test_a_refresh_leaves_the_reader_where_he_is(open_page: Open, seeded: str) -> None:
    page = open_page(LINK)
    page.locator("#policy-defaults summary").click()
    page.evaluate("window.scrollTo(0, 300)")
    page.locator("#jobs").get_by_role("link", name="CSV").focus()
    before = page.evaluate("[window.scrollY, document.querySelector('.made time').dateTime]")
    with connect(seeded) as conn:
        conn.execute("UPDATE link_breaker SET reason = 'other news'")
    page.clock.install()
    page.get_by_label("Refresh").select_option("30 s")
    page.locator("#jobs").get_by_role("link", name="CSV").focus()
    page.clock.fast_forward(31_000)
    expect(page.locator(".notice")).to_contain_text("other news")
    expect(page.locator("#policy-defaults")).to_have_attribute("open", "")
    expect(page.locator("#jobs").get_by_role("link", name="CSV")).to_be_focused()
    assert page.evaluate("window.scrollY") == before[0]
    page.reload()
    expect(page.get_by_label("Refresh")).to_have_value("30")


# --- inside Airflow ---

FRAME = """<!doctype html><html lang="en" class="light" style="color-scheme: light"><title>Airflow</title>
<body style="margin:0"><iframe title="Stage-out" src="/stageout/ui/" style="width:100%;height:880px;border:0"
 sandbox="allow-scripts allow-same-origin allow-forms allow-downloads"></iframe></body></html>"""
"""As Airflow 3.3 shows a plugin's view."""


def test_inside_airflow_it_wears_airflows_colours(open_page: Open, url: str) -> None:
    page = open_page("/", mode="dark", listens=False)  # Chromium warns of Airflow's frame
    page.route("**/plugin/stageout", lambda route: route.fulfill(body=FRAME, content_type="text/html"))
    page.goto(url.partition("/stageout/ui")[0] + "/plugin/stageout")
    inside = page.frame_locator("iframe")
    background = "getComputedStyle(document.documentElement).backgroundColor"
    expect(inside.locator(":root")).to_have_attribute("data-mode", "light")
    light = inside.locator(":root").evaluate(background)
    page.evaluate("document.documentElement.className = 'dark'")
    expect(inside.locator(":root")).to_have_attribute("data-mode", "dark")
    assert inside.locator(":root").evaluate(background) != light
    expect(inside.locator("header").get_by_role("link", name="Airflow")).to_have_count(0)
    # The frame may not leave itself: Airflow's own document follows the link.
    page.context.route(
        "**/dags/**", lambda route: route.fulfill(body="a task of Airflow", content_type="text/html")
    )
    inside.get_by_role("link", name="stageout_reconcile.verdict failed").click()
    with page.expect_popup() as opened:
        inside.locator("#steps").get_by_role("link", name="log").click()
    expect(opened.value.get_by_text("a task of Airflow")).to_be_visible()


# --- what the pages are tested with ---


def test_the_seed_counts_as_the_statistics_do(seeded: str) -> None:
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - 3 * HOUR
    with connect(seeded) as conn:
        before = conn.execute(
            "SELECT * FROM statistic_hour WHERE at = %s ORDER BY 1, 2, 3, 4", (hour,)
        ).fetchall()
        roll_up_hour(conn, hour, step_run=1)
        after = conn.execute(
            "SELECT * FROM statistic_hour WHERE at = %s ORDER BY 1, 2, 3, 4", (hour,)
        ).fetchall()
    assert len(before) > 100
    assert before == after
