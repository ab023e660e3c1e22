"""What holds for every page: who may look, what a browser may run, errors, tables, files; each on its own data."""

from __future__ import annotations

import csv
import doctest
import io
import zlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import product
from types import ModuleType
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
import requests
from fastapi import FastAPI
from psycopg import Connection
from psycopg.types.json import Jsonb
from starlette.middleware.gzip import GZipMiddleware
from starlette.testclient import TestClient

from api.test_authorisation import needs, routes
from asyncstageout.api.callers import APIHouse, Catalogue, an_operator, who_asks
from asyncstageout.catalogue.fts_servers import note_contact
from asyncstageout.catalogue.history import move_finished
from asyncstageout.catalogue.link_health import open_breaker
from asyncstageout.catalogue.pool import CataloguePool
from asyncstageout.catalogue.restrictions import Area, restrict
from asyncstageout.catalogue.rollups import roll_up_hour
from asyncstageout.catalogue.transitions import Move, apply_moves
from asyncstageout.core.failures import classify
from asyncstageout.core.naming import request_id
from asyncstageout.core.planning import Link
from asyncstageout.core.restrictions import Mode
from asyncstageout.core.states import TransferState
from asyncstageout.ui import charts, places, tables, tasks, words
from asyncstageout.ui.app import create_room
from asyncstageout.ui.assets import ASSETS
from asyncstageout.ui.page import Looking
from asyncstageout.ui.spans import SPANS
from asyncstageout.ui.tables import Column, Shown
from client.serving import mounted, serving
from fixtures.catalogue import Add, Plan, file_ids, record
from ui.conftest import UI, Room
from ui.reading import Element, read
from ui.serving import UNLIMITED, by_cookie

HOSTILE = "<script>alert(1)</script>\"' onload=x"
LINK = ("T2_IT_Bari", "T2_CH_CERN")

OPERATORS_ONLY = {
    "/alerts": "/alerts",
    "/alerts/{alert_id}": "/alerts/1",
    "/runbooks/{name}": "/runbooks/credentials.md",
    "/links": "/links",
    "/links/{source}/{destination}": "/links/T2_IT_Bari/T2_CH_CERN",
    "/sites": "/sites",
    "/sites/{site}": "/sites/T2_IT_Bari",
    "/users": "/users",
    "/jobs": "/jobs",
    "/cycles": "/cycles",
    "/steps": "/steps",
    "/audit": "/audit",
}
OF_ONE = {
    "/jobs/{job}": "/jobs/00000000-0000-4000-8000-000000000000",
    "/cycles/{cycle}": "/cycles/1",
    "/runs/{dag_id}/{run_id}": "/runs/stageout_clean/scheduled__1",
}
"""Operators' pages of things of which an empty catalogue has none: 404 there."""
OF_FILES = {
    "/users/{username}": "/users/alice",
    "/tasks/{task}": "/tasks/261122_alice_task",
    "/files/{file_id}": f"/files/{request_id(record(1)['source_lfn'])}",
}
"""Of alice's first file: without it they are not there."""
EVERYBODYS = {
    "/": "/", "/tasks": "/tasks", "/failures": "/failures", "/search": "/search", **OF_FILES,
    "/assets/{name}": f"/assets/{ASSETS['stageout.css'].name}",
}  # fmt: skip
PAGES = ["/", "/tasks", "/failures", "/search", *OPERATORS_ONLY.values()]
"""A new page is one more line in one of these."""


@pytest.fixture(autouse=True)
def _an_alert(conn: Connection) -> None:
    """Number 1, of which nobody is told yet."""
    conn.execute(
        "INSERT INTO alert (rule, subject, state, severity, sentence, about, first_seen_at, last_seen_at)"
        " VALUES ('files-late', 'x', 'pending', 2, %s, %s, now(), now())",
        (HOSTILE, Jsonb({"kind": "nothing", "names": []})),
    )


def page_of(client: TestClient, path: str, status: int = 200) -> Element:
    answer = client.get(UI + path)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    return read(answer.text)


# --- who may look ---


def test_every_route_is_in_a_table(pages: FastAPI) -> None:
    known = OPERATORS_ONLY.keys() | OF_ONE.keys() | EVERYBODYS.keys()
    assert {route.path for _, route in routes(pages)} == known


def test_every_route_says_who_may(pages: FastAPI) -> None:
    found = dict.fromkeys([*OPERATORS_ONLY, *OF_ONE], True) | dict.fromkeys(EVERYBODYS, False)
    for method, route in routes(pages):
        assert method == "GET", "pages change nothing: the REST API does"
        assert needs(route.dependant, who_asks), route.path
        assert needs(route.dependant, an_operator) == found[route.path], route.path


def test_nobody_is_sent_to_log_in_and_comes_back(room: Room) -> None:
    for path in (*PAGES, "/nothing"):
        answer = room(None).get(f"{UI}{path}?range=1h")
        assert answer.status_code == 303
        wanted = f"{UI}{path}?range=1h".replace("/", "%2F").replace("?", "%3F").replace("=", "%3D")
        assert answer.headers["location"] == f"/api/v2/auth/login?next={wanted}"
    assert room(None).post(f"{UI}/").status_code == 401


def test_the_address_without_a_slash_leads_in(room: Room) -> None:
    assert room().get(UI).headers["location"].endswith(f"{UI}/")


def test_users_see_no_page_of_operators(room: Room) -> None:
    for path in OPERATORS_ONLY.values():
        refused = page_of(room("alice"), path, 403)
        assert "alice is no operator." in refused.text
        assert page_of(room("olga"), path).one("h1").text
    for path in OF_ONE.values():
        assert "alice is no operator." in page_of(room("alice"), path, 403).text
        page_of(room("olga"), path, 404)


def test_users_see_their_own_files(room: Room, add: Add) -> None:
    add(record(1), record(2), record(3, username="bob"))
    hers = page_of(room("alice"), "/")
    assert hers.one("h1").text == "Your files"
    assert tile(hers, "Waiting").startswith("2 ")
    assert "Needs a person" not in hers.text
    assert [link.text for link in hers.one("nav").all("a")] == ["Overview", "Tasks", "Failures"]
    everything = page_of(room("olga"), "/")
    assert tile(everything, "Waiting").startswith("3 ")


def tile(page: Element, label: str) -> str:
    (found,) = [one for one in page.all("div") if one.attributes.get("class", "").startswith("tile")
                and one.all("dt")[0].text == label]  # fmt: skip
    return " ".join(one.text for one in found.all("dd"))


# --- what a browser may do with a page ---


def test_a_page_runs_nothing_but_our_script(room: Room, add: Add) -> None:
    add(record(1))
    for path in (*PAGES, *OF_FILES.values()):
        answer = room().get(UI + path)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'self'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-store"
        for element in read(answer.text).all():
            assert not any(name.startswith("on") or name == "style" for name in element.attributes)
            assert element.tag != "style"
            if element.tag == "script":
                assert element.attributes["src"].startswith(f"{UI}/assets/stageout.")
                assert not element.children
            for name in ("href", "src", "action"):
                assert element.attributes.get(name, "/").startswith(("/", "#")), element.attributes


def test_assets_stay_in_the_browser(room: Room) -> None:
    for asset in ASSETS.values():
        answer = room("alice").get(f"{UI}/assets/{asset.name}")
        assert answer.headers["cache-control"] == "private, max-age=31536000, immutable"
        assert answer.headers["content-type"].split(";")[0] == asset.media_type
        assert answer.content == asset.body
    assert room().get(f"{UI}/assets/stageout.000000000000.css").status_code == 404
    assert room().get(f"{UI}/assets/..%2fapp.py").status_code in (404, 422)


def test_what_people_write_stays_text(room: Room, conn: Connection, submitted: Plan, add: Add) -> None:
    add(record(1))
    submitted()
    restrict(conn, Mode.PAUSE, Area(source=LINK[0], destination=LINK[1]), reason=HOSTILE, by=HOSTILE)
    open_breaker(conn, Link(*LINK), reason=HOSTILE, openings=1, wait_s=600)
    note_contact(conn, "fts", HOSTILE, datetime.now(UTC), refused=True)
    for path in (*PAGES, *OF_FILES.values(), f"/links?q={HOSTILE}", f"/search?q={HOSTILE}"):
        page = page_of(room(), path)
        assert {script.attributes["src"] for script in page.all("script")} == {
            f"{UI}/assets/{ASSETS['stageout.js'].name}"
        }
        assert not any("onload" in element.attributes for element in page.all())
    assert HOSTILE in page_of(room(), "/links/T2_IT_Bari/T2_CH_CERN").text


def test_a_framed_page_has_no_way_back_of_its_own(room: Room) -> None:
    def back(**headers: str) -> list[Element]:
        page = read(room().get(f"{UI}/", headers=headers).text)
        return page.one("header").all("a", href="/")

    assert [link.text for link in back()] == ["Airflow"]
    assert back(**{"Sec-Fetch-Dest": "iframe"}) == []


# --- errors are pages ---


WRONG = (
    ("/nothing", 404, "Not Found"),
    ("/sites/T2_XX_Nowhere", 404, "There is no site T2_XX_Nowhere."),
    ("/links/T2_IT_Bari/T2_XX_Nowhere", 404, "There is no site T2_XX_Nowhere."),
    ("/?range=2h", 422, "range"),
    ("/links?links.sort=x", 422, "links.sort cannot be x."),
    ("/links?links.page=0", 422, "links.page cannot be 0."),
    ("/links?links.page=7", 422, "links.page cannot be 7."),
    ("/alerts/99", 404, "There is no alert 99."),
    ("/runbooks/nothing.md", 404, "There is no runbook nothing.md."),
    ("/runbooks/..%2freadme.md", 404, "Not Found"),
    ("/sites?format=csv&table=x", 404, "This page has no table x."),
    (f"/sites/{HOSTILE}", 404, "Not Found"),
    ("/tasks/nothing", 404, "There is no task nothing."),
    ("/files/1", 404, "There is no file 1."),
    ("/files/x", 422, "file_id"),
    ("/users/nobody", 404, "There is no user nobody whose files you may see."),
    ("/failures?category=bad", 422, "category"),
    ("/failures?site=%00", 422, "site"),
    ("/tasks?tasks.cursor=x", 422, "The cursor is not from this list."),
)


def test_errors_are_pages(room: Room) -> None:
    for path, status, said in WRONG:
        page = page_of(room(), path, status)
        assert said in page.one("main").text
        assert page.one("nav")


def test_what_the_catalogue_cannot_do_is_a_page(pages: FastAPI, caplog: pytest.LogCaptureFixture) -> None:
    @pages.get("/away")
    def away(_: Looking) -> None:
        raise psycopg.OperationalError("password of the server")

    @pages.get("/slow")
    def slow(_: Looking, conn: Catalogue) -> None:
        conn.execute("SET statement_timeout = '10ms'")
        conn.execute("SELECT pg_sleep(5)")

    @pages.get("/broken")
    def broken(_: Looking) -> None:
        raise RuntimeError("secret of the house")

    client = TestClient(pages, raise_server_exceptions=False, cookies={"who": "olga"})
    for path, status, said in (
        ("/away", 503, "The catalogue does not answer"),
        ("/slow", 503, "needs too long"),
        ("/broken", 500, "A defect of the service"),
    ):
        answer = client.get(path)
        assert answer.status_code == status
        assert said in read(answer.text).one("main").text
        assert "secret" not in answer.text
        assert "password" not in answer.text
    error_id = read(client.get("/broken").text).one("main").all("code")[0].text
    assert error_id in caplog.text


# --- tables ---

ROWS = [
    {"name": f"n{number:03d}", "files": None if number % 50 == 7 else number, "at": datetime(2026, 11, 1, tzinfo=UTC)}
    for number in range(120)
]  # fmt: skip
COLUMNS = (
    Column("name", "Name", place=lambda row: places.site(row["name"])),
    Column("files", "Files", Shown.NUMBER),
    Column("at", "When", Shown.TIME),
)


@pytest.fixture
def tabular(pages: FastAPI) -> Callable[[str], Any]:
    """Return what asks a page with one table of 120 rows, shown by the template of the sites."""

    @pages.get("/tabular")
    def tabular(page: Looking, only: str = "") -> Any:
        rows = [row for row in ROWS if only in str(row["name"])]
        table = page.table("sites", "Numbers", COLUMNS, rows, sort="-files", empty="There is nothing.")
        return page.show("sites.html", title="T", tables=[table], q="")

    client = TestClient(pages, cookies={"who": "olga"})
    return lambda query: client.get(f"/tabular{query}")


def test_a_table_is_sorted_and_paged(tabular: Callable[[str], Any]) -> None:
    first = read(tabular("?range=1h").text)
    rows = first.one("table").rows()
    assert len(rows) == 50
    assert rows[0][:2] == ["n119", "119"]
    assert "1 to 50 of 120" in first.text
    assert [head.attributes.get("aria-sort") for head in first.all("th", scope="col")] == [
        None,
        "descending",
        None,
    ]
    names, files, _ = [head.one("a").attributes["href"] for head in first.all("th", scope="col")]
    assert names == "/tabular?range=1h&sites.sort=name#sites"
    assert files == "/tabular?range=1h&sites.sort=files#sites"
    (onward,) = first.all("a", rel="next")
    assert onward.attributes["href"] == "/tabular?range=1h&sites.page=2#sites"

    last = read(tabular("?sites.page=3").text)
    assert [row[1] for row in last.one("table").rows()][-3:] == ["–", "–", "–"], (
        "what is not known comes last"
    )
    assert not last.all("a", rel="next")
    assert last.one("a", rel="prev").attributes["href"] == "/tabular?sites.page=2#sites"
    link = read(tabular("?sites.sort=name&range=7d").text).one("tbody").all("a")[0]
    assert (link.text, link.attributes["href"]) == ("n000", "/sites/n000?range=7d")


def test_a_table_is_a_file_too(tabular: Callable[[str], Any]) -> None:
    answer = tabular("?format=csv&sites.sort=name&sites.page=2")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["content-disposition"].startswith('attachment; filename="stageout-sites-')
    rows = list(csv.reader(io.StringIO(answer.text)))
    assert rows[:2] == [["name", "files", "at"], ["n000", "0", "2026-11-01T00:00:00Z"]]
    assert len(rows) == 121, "all rows, whatever page is shown"
    assert rows[8] == ["n007", "", "2026-11-01T00:00:00Z"]


def test_a_file_is_for_those_who_may_see_the_page(room: Room) -> None:
    assert room("alice").get(f"{UI}/links?format=csv").status_code == 403
    assert room(None).get(f"{UI}/links?format=csv").status_code == 303


def test_an_empty_table_says_what_that_means(tabular: Callable[[str], Any]) -> None:
    page = read(tabular("?only=x").text)
    assert "There is nothing." in page.text
    assert not page.all("table")


def test_pages_of_an_empty_catalogue_say_so(room: Room, conn: Connection) -> None:
    conn.execute("DELETE FROM fts_server")
    for span, path in product(SPANS, PAGES):
        page = page_of(room(), f"{path}?range={span}&unit=bytes")
        assert (
            "Nothing" in page.text
            or "No" in page.text
            or path in ("/sites", "/search", "/tasks", OPERATORS_ONLY["/runbooks/{name}"])
        )


# --- what the pages say ---


def test_a_paused_link_says_so_on_every_page(room: Room, conn: Connection, add: Add) -> None:
    add(record(1))
    restrict(conn, Mode.PAUSE, Area(site=LINK[0]), reason="disk full", by="olga",
             ends_at=datetime.now(UTC) + timedelta(minutes=30))  # fmt: skip
    overview = page_of(room(), "/")
    (item,) = [one for one in overview.all("li") if "disk full" in one.text]
    assert item.all("a")[0].attributes["href"] == f"{UI}/sites/T2_IT_Bari"
    link = page_of(room(), "/links/T2_IT_Bari/T2_CH_CERN")
    assert "paused" in link.one("h1").text
    assert "disk full" in link.text
    assert [button.text for button in link.all("button") if button.attributes.get("data-opens")] == [
        "Pause or drain…", "Lift…",
    ]  # fmt: skip
    (row,) = page_of(room(), "/links?only=restricted").one(id="links").rows()
    assert row[:3] == ["T2_IT_Bari", "T2_CH_CERN", "paused"]
    assert page_of(room(), "/links?only=trouble").one(id="links").all("table") == []
    rows = {row[0]: row[1] for row in page_of(room(), "/sites").one("table").rows()}
    assert rows["T2_IT_Bari"] == "paused"
    assert rows["T2_CH_CERN"] == "well"


@pytest.mark.parametrize("accepted", ["gzip, br", "identity"])
def test_a_page_with_a_matrix_is_seen_before_the_matrix_is_made(
    house: APIHouse, add: Add, accepted: str
) -> None:
    add(record(0))
    as_in_airflow = GZipMiddleware(create_room(house), minimum_size=1024, compresslevel=5)
    with serving(as_in_airflow) as base:
        answer = requests.get(
            f"{base}{UI}/links", cookies={"who": "olga"}, headers={"Accept-Encoding": accepted}, stream=True,
            timeout=20,
        )  # fmt: skip
        pieces = list(answer.raw.read_chunked(decode_content=False))
    if "gzip" in accepted:
        unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS + 16)
        pieces = [unpacker.decompress(piece) for piece in pieces]
        assert unpacker.eof
    assert b"Cells show" in pieces[0]
    assert b'id="matrix"' not in pieces[0]
    assert b'id="matrix"' in pieces[1]
    assert b"".join(pieces).rstrip().endswith(b"</html>")


def test_the_matrix_shows_what_waits(room: Room, add: Add) -> None:
    add(*(record(number) for number in range(3)), record(9, source="T2_US_MIT"))
    matrix = page_of(room(), "/links?show=waiting").one(id="matrix")
    assert [head.text for head in matrix.all("th", scope="col")] == ["T2_CH_CERN"]
    assert matrix.rows() == [
        ["T2_IT_Bari", "3"],
        ["T2_US_MIT", "1"],
    ]
    cell = matrix.all("td")[1].one("a")
    assert cell.attributes["href"] == f"{UI}/links/T2_IT_Bari/T2_CH_CERN"
    assert cell.attributes["title"].startswith("T2_IT_Bari → T2_CH_CERN: 0 files (0 B) done, 3 waiting")


# --- users, tasks, files, failures ---

NO_ROOM = classify("TRANSFER [5] copy of out_1.root HTTP 507 : Insufficient Storage")
GONE = classify("SOURCE [2] No such file")


@pytest.fixture
def files(conn: Connection, add: Add, submitted: Plan, step: int) -> dict[str, int]:
    """One of alice's failed for good, one waits for its next attempt, one arrived; one of bob's failed."""
    records = {"failed": record(1), "again": record(2), "done": record(3), "bobs": record(4, username="bob")}
    add(*records.values())
    ids = dict(zip(records, file_ids(conn), strict=True))
    jobs = {number: job.sid for job in submitted() for number in job.transfer_ids}
    for name, state, failure in (
        ("failed", "FAILED", NO_ROOM), ("again", "RETRY", NO_ROOM), ("done", "DONE", None), ("bobs", "FAILED", GONE),
    ):  # fmt: skip
        apply_moves(conn, [Move(ids[name], jobs[ids[name]], TransferState(state), failure)], step)
    roll_up_hour(conn, datetime.now(UTC).replace(minute=0, second=0, microsecond=0), step_run=step)
    return ids


def test_users_see_nothing_of_others(room: Room, files: dict[str, int]) -> None:
    bob = room("bob")
    for path in OF_FILES.values():
        assert "alice is no" not in page_of(bob, path, 404).text
        assert page_of(room("alice"), path).one("h1").text
        assert page_of(room("olga"), path).one("h1").text
    assert "bob may not act for alice." in page_of(bob, "/failures?user=alice", 403).text
    assert "bob may not act for alice." in page_of(bob, "/tasks?user=alice", 403).text
    failures = page_of(bob, "/failures")
    assert [row[1] for row in failures.one(id="reasons").rows()] == ["SOURCE [2] No such file"]
    assert "alice" not in failures.text
    assert [row[0] for row in page_of(bob, "/tasks").one(id="tasks").rows()] == ["261122_bob_task"]
    for table in ("reasons", "files", "categories"):
        assert "alice" not in bob.get(f"{UI}/failures?format=csv&table={table}").text
    assert bob.get(f"{UI}/tasks/261122_alice_task?format=csv").status_code == 404


def test_a_search_leads_to_what_is_called_so(room: Room, conn: Connection, files: dict[str, int]) -> None:
    sid, job_id = conn.execute(
        "SELECT sid, job_id FROM fts_job WHERE %s = ANY(transfer_ids)", (files["failed"],)
    ).fetchone() or ("", "")
    lfn = record(1)["source_lfn"]
    hers = f"/files/{files['failed']}"
    for wanted, place in (
        (lfn, hers), (record(1)["destination_lfn"], hers), (f"davs://se.example.test:8443/cms{lfn}", hers),
        (request_id(lfn), hers), (str(files["failed"]), hers), ("alice", "/users/alice"),
        (" 261122_alice_task ", "/tasks/261122_alice_task"), (job_id, f"/jobs/{sid}"), (sid, f"/jobs/{sid}"),
        ("T2_IT_Bari", "/sites/T2_IT_Bari"),
    ):  # fmt: skip
        answer = room().get(f"{UI}/search", params={"q": wanted, "range": "7d"})
        assert (answer.status_code, answer.headers["location"]) == (303, f"{UI}{place}?range=7d")
        his = room("bob").get(f"{UI}/search", params={"q": wanted})
        if wanted in (job_id, sid):  # his own file is in it, too
            assert his.headers["location"] == f"{UI}/files/{files['bobs']}"
        else:
            assert his.status_code == 200
            assert "Nothing of yours is called" in his.text
    assert f"Nothing is called {HOSTILE}" in page_of(room(), f"/search?q={quote(HOSTILE)}").text


def test_a_file_tells_why_it_failed_and_who_did_what(
    room: Room, conn: Connection, files: dict[str, int]
) -> None:
    page = page_of(room("alice"), f"/files/{files['failed']}")
    assert "It failed for good, after 1 attempt: the destination has no room." in page.text
    (attempt,) = page.one(id="attempts").rows()
    assert attempt[:2] == ["1", "FAILED"]
    assert "HTTP 507" in page.one(id="attempts").text
    assert [row[2] for row in page.one(id="history").rows()] == ["NEW", "ACQUIRED", "SUBMITTED", "FAILED"]
    assert [button.text for button in page.all("button") if button.attributes.get("data-opens")] == [
        "Send again…"
    ]
    assert (
        page.one("dialog").one("form").attributes["data-body"]
        == f'{{"ids": [{files["failed"]}], "killed_too": false}}'
    )
    assert "It is deleted" not in page.text
    again = page_of(room("alice"), f"/files/{files['again']}")
    assert "attempt 1 failed: the destination has no room" in again.text
    assert [button.text for button in again.all("button") if button.attributes.get("data-opens")] == ["Kill…"]
    move_finished(conn, keep_done_s=-3600)
    past = page_of(room("alice"), f"/files/{files['done']}")
    assert "It is at T2_CH_CERN, after 1 attempt." in past.text
    assert not [button for button in past.all("button") if button.attributes.get("data-opens")]


def test_the_steps_of_a_file_lead_to_their_logs_and_its_jobs_to_the_monitor(
    conn: Connection, pool: CataloguePool, add: Add, submitted: Plan
) -> None:
    add(record(1))
    submitted()
    conn.execute(
        "UPDATE step_run SET dag_id = 'stageout_transfer', run_id = 'manual__1+1', task_id = 'submit', map_index = 3,"
        " try_number = 2, actor = 'airflow'"
    )
    (number,) = file_ids(conn)
    house = APIHouse(
        catalogue=pool.connection, authenticate=by_cookie, limits=UNLIMITED,
        fts_monitor=lambda server, job: f"https://{server}.example.test/#/job/{job}",
    )  # fmt: skip
    client = TestClient(mounted(create_room(house)), base_url="http://stageout.test", cookies={"who": "olga"})
    page = page_of(client, f"/files/{number}")
    (job_id,) = conn.execute("SELECT job_id FROM fts_job").fetchone() or ("",)
    (monitor,) = page.one(id="attempts").all("a", target="_blank")
    assert (monitor.text, monitor.attributes["href"]) == ("fts", f"https://fts.example.test/#/job/{job_id}")
    log = page.one(id="history").all("a", target="_blank")[0]
    assert log.text == "stageout_transfer.submit[3], try 2"
    assert (
        log.attributes["href"]
        == "/dags/stageout_transfer/runs/manual__1%2B1/tasks/submit/mapped/3?try_number=2"
    )


def test_failures_of_a_kind_are_one_reason(room: Room, files: dict[str, int]) -> None:
    page = page_of(room(), "/failures")
    assert tile(page, "Failed attempts").startswith("3 ")
    assert tile(page, "Failed for good").startswith("2 ")
    assert [row[:2] for row in page.one(id="categories").rows()] == [["quota", "2"], ["source-missing", "1"]]
    reasons = {row[1]: row[2:5] for row in page.one(id="reasons").rows()}
    assert reasons == {
        "TRANSFER [5] copy of out_<N>.root HTTP 507 : Insufficient Storage": ["2", "1", "1"],
        "SOURCE [2] No such file": ["1", "1", "1"],
    }
    users, links = page.one(id="users").rows(), page.one(id="links").rows()
    assert [(*row[:2], row[3]) for row in users] == [("alice", "2", "quota"), ("bob", "1", "source-missing")]
    assert [(*row[:2], row[3]) for row in links] == [("T2_IT_Bari → T2_CH_CERN", "3", "quota")]
    text = room().get(f"{UI}/failures?format=csv&table=users").text
    assert [row["most"] for row in csv.DictReader(io.StringIO(text))] == ["quota", "source-missing"]
    assert "users.sort" in page_of(room(), "/failures?users.sort=most", 422).text
    quota = page_of(room(), "/failures?category=quota&range=7d")
    assert "the destination has no room. What helps: free space there" in quota.text
    assert tile(quota, "Failed attempts").startswith("2 ")
    assert [row[:2] for row in quota.one(id="users").rows()] == [["alice", "2"]]
    assert quota.one(id="users").rows()[0][3] == "quota"
    for query, seen in (
        ("user=bob", 1), ("site=T2_CH_CERN", 3), ("source=T2_IT_Bari", 3), ("site=T2_US_MIT", 0),
        ("source=T2_IT_Bari&destination=T2_CH_CERN", 3), ("user=bob&site=T2_CH_CERN", 1), ("user=bob&category=quota", 0),
    ):  # fmt: skip
        found = page_of(room(), f"/failures?{query}")
        assert tile(found, "Failed attempts").startswith(f"{seen} "), query
        assert len(found.one(id="files").all("tr")) == (seen + 1 if seen else 0), query


def test_a_task_shows_its_files_by_state_and_page_by_page(
    room: Room, files: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "FILES_PER_PAGE", 2)
    path = "/tasks/261122_alice_task"
    first = page_of(room("alice"), path)
    assert first.one("svg", role="img").attributes["aria-label"] == "1 DONE, 1 FAILED, 1 RETRY"
    assert [row[1] for row in first.one(id="files").rows()] == ["DONE", "RETRY"]
    (onward,) = first.all("a", rel="next")
    second = page_of(room("alice"), onward.attributes["href"].removeprefix(UI).partition("#")[0])
    assert [row[1] for row in second.one(id="files").rows()] == ["FAILED"]
    (back,) = second.all("a", rel="prev")
    assert back.attributes["href"] == f"{UI}{path}#files"
    failed = page_of(room("alice"), f"{path}?state=FAILED")
    assert len(failed.one(id="files").rows()) == 1
    assert "No file is in this state." in page_of(room("alice"), f"{path}?state=KILLED").text
    rows = list(csv.DictReader(io.StringIO(room("alice").get(f"{UI}{path}?format=csv&table=files").text)))
    assert [row["state"] for row in rows] == ["DONE", "RETRY", "FAILED"]
    assert rows[2]["failure_reason"] == NO_ROOM.reason
    monkeypatch.setattr(tasks, "TASKS_PER_PAGE", 1)
    assert [row[0] for row in page_of(room(), "/tasks").one(id="tasks").rows()] == ["261122_bob_task"]
    listed = csv.DictReader(io.StringIO(room().get(f"{UI}/tasks?format=csv").text))
    assert [(row["task"], row["files"], row["failed"]) for row in listed] == [
        ("261122_bob_task", "1", "1"), ("261122_alice_task", "3", "1"),
    ]  # fmt: skip


def test_users_are_found_by_a_part_of_their_name(room: Room, files: dict[str, int]) -> None:
    rows = {row[0]: row for row in page_of(room(), "/users").one(id="users").rows()}
    assert rows.keys() == {"alice", "bob"}
    assert rows["alice"][1] == "1", "waits for its second attempt"
    assert [row[0] for row in page_of(room(), "/users?q=LIC").one(id="users").rows()] == ["alice"]
    assert "No user fits" in page_of(room(), "/users?q=x").text


@pytest.mark.parametrize("module", [charts, places, tables, tasks, words])
def test_examples(module: ModuleType) -> None:
    assert doctest.testmod(module).failed == 0
