"""How long pages take when ten million files wait: ``python -m load.pages [files] [history]``, from ``tests``.

Makes a Postgres of its own in a temporary folder (about 1.3 kB of disk per waiting file, 800 bytes per past one) and
deletes it afterwards. Says for each page the median of what the server takes, what of it is its own CPU, and when a
browser has painted something (its *first contentful paint*). Each result is a line of :data:`RESULTS`, of which
``python -m bench --report`` makes a table.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any, NamedTuple

from playwright.sync_api import Page
from psycopg import Connection
from starlette.testclient import TestClient

from asyncstageout.api.callers import APIHouse
from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.measures import COUNTS, DELAYS
from asyncstageout.catalogue.partitions import ensure_days, ensure_month
from asyncstageout.catalogue.pool import CataloguePool
from asyncstageout.catalogue.rollups import DAY, HOUR
from asyncstageout.ui.app import create_room
from bench.calibrate import where
from client.serving import mounted
from load.bodies import SITES
from load.history import fill
from load.queue import MEMORY, seed
from load.runs import fill_runs
from load.server import loaded_catalogue, say
from ui.browsing import browser, context
from ui.serving import UNLIMITED, by_cookie, room

RESULTS = Path(__file__).resolve().parents[2] / "docs/images/performance/pages.jsonl"
FILES = 10_000_000
TRIES = 5
DAYS, HOURS = 30, 8 * 24
LINK = f"{SITES[1]}/{SITES[34]}"
PAGES = (
    "/", "/?range=1h", "/?range=7d", "/?range=30d", "/links", "/links?range=30d&show=waiting&sites=60",
    f"/links/{LINK}", f"/links/{LINK}?range=30d", "/sites", "/sites?range=30d", f"/sites/{SITES[1]}?range=30d",
    "/users", "/users?range=30d", "/users/user7", "/tasks", "/tasks/seed_7", "/tasks/seed_7?state=FAILED", "/files/{file}",
    "/failures", "/failures?range=30d", "/failures?category=quota", f"/failures?site={SITES[1]}&range=7d",
    f"/failures?source={SITES[1]}&destination={SITES[34]}", "/failures?user=user7&range=7d", "/search?q=user7",
    "/jobs", "/jobs?show=slow", "/jobs?show=ended", f"/jobs?show=ended&range=30d&source={SITES[3]}", "/jobs/{job}",
    "/cycles", "/cycles?range=30d&which=trouble", "/cycles/{cycle}", "/steps", "/steps?range=30d&outcome=failed",
    "/audit", "/audit?range=30d", "/audit?range=30d&who=nobody&kind=kill",
)  # fmt: skip
"""A new page is one more here."""

# The first paint may come after "load": wait for it.
_FIRST_PAINT = """() => new Promise(done => new PerformanceObserver(seen => {
    const first = seen.getEntriesByName("first-contentful-paint")[0];
    if (first) done(first.startTime);
}).observe({type: "paint", buffered: true}))"""

EVENTS, FAILED_SHARE = 2_000_000, 0.06
# Of files that wait, one in so many was tried before, and failed; arrivals and failures of the last day.
_EVENTS = """
INSERT INTO transfer_event (transfer_id, at, from_state, to_state, attempt, step_run, reason, failure_category)
SELECT %(first)s + n %% %(files)s, now() - make_interval(secs => 86400.0 * (%(events)s - n) / %(events)s),
    CASE WHEN failed THEN 'SUBMITTED' END::transfer_state, CASE WHEN failed THEN 'RETRY' ELSE 'NEW' END::transfer_state,
    failed::integer, 1, CASE WHEN failed THEN 'TRANSFER [5] copy of out_' || n || '.root HTTP 507 : no room' END,
    CASE WHEN failed THEN (ARRAY['quota', 'transfer', 'source'])[1 + n %% 3] END
FROM generate_series(1, %(events)s) n, LATERAL (SELECT n %% 100 < 100 * %(share)s AS failed) x
"""
_RETRIES = """
UPDATE transfer SET state = 'RETRY', attempt = 1, failure_category = 'quota',
    failure_reason = 'TRANSFER [5] copy of out_' || id || '.root HTTP 507 : no room'
WHERE id %% 3 = 0 AND task_id IN (SELECT id FROM task WHERE username = 'user7')
"""

# On every link something happens in every hour, and one attempt in eleven fails. In the order in which hours are counted.
_RARE = ("retried", "retried_bytes", "failed", "failed_bytes", "attempts_failed")
_COUNTS = f"""
INSERT INTO statistic_{{table}} (kind, at, subject, other, {", ".join(COUNTS)}, failures, {", ".join(DELAYS)})
SELECT k.kind::statistic_kind, t.at, k.subject, k.other, {", ".join("10" if name in _RARE else "100" for name in COUNTS)},
    '{{{{"quota": 10, "transfer": 10}}}}', {", ".join("'{{{{10,50}},{{20,40}},{{30,10}}}}'" for _ in DELAYS)}
FROM generate_series(%(start)s::timestamptz, %(end)s, %(step)s) AS t(at) CROSS JOIN (
    SELECT 'total' AS kind, '' AS subject, '' AS other
    UNION ALL SELECT 'link', a, b FROM unnest(%(sites)s::text[]) a, unnest(%(sites)s::text[]) b
    UNION ALL SELECT e, a, '' FROM unnest(%(sites)s::text[]) a, unnest('{{{{source,destination}}}}'::text[]) e
    UNION ALL SELECT 'user', 'user' || n, '' FROM generate_series(0, 999) n
) k ORDER BY t.at
"""


def main(files: int = FILES, history: int = 0) -> None:
    with (
        loaded_catalogue(durable=False, settings=MEMORY) as loaded,
        connect(loaded.url) as conn,
    ):
        started_s = perf_counter()
        fill(conn, history)
        seed(conn, files)
        file = _fail(conn, files)
        _count(conn)
        some = fill_runs(conn)
        say(f"{files:,} files wait, {history:,} ended, made in {perf_counter() - started_s:,.0f} s")
        pages = [page.format(file=file, **some) for page in PAGES]
        served = _served(loaded.url, pages)
        painted = _painted(loaded.url, pages)
    lines: list[dict[str, Any]] = [{"measured_on": where(), "waiting": files, "history": history}]
    for page, path, one in zip(PAGES, pages, served, strict=True):
        lines.append({"page": page, **one._asdict(), "painted_ms": round(painted[path])})
        say(
            f"{one.took_ms:6.0f} ms, CPU {one.cpu_ms:4.0f} ms, {one.kb:5.0f} kB, painted {painted[path]:6.0f} ms  {path}"
        )
    RESULTS.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


class Served(NamedTuple):
    """What the server takes for a page: medians."""

    took_ms: float
    cpu_ms: float
    kb: float


def _served(url: str, pages: Sequence[str]) -> list[Served]:
    pool = CataloguePool(lambda: connect(url))
    house = APIHouse(catalogue=pool.connection, authenticate=by_cookie, limits=UNLIMITED)
    client = TestClient(mounted(create_room(house)), cookies={"who": "olga"}, follow_redirects=False)
    try:
        return [_serve(client, page) for page in pages]
    finally:
        pool.close()


def _painted(url: str, pages: Sequence[str]) -> dict[str, float]:
    """Return the milliseconds from asking for each page until something of it was there to be seen: medians."""
    with room(url) as base, browser() as running, context(running, base) as looking:
        page = looking.new_page()
        return {path: median([_paint(page, base + path) for _ in range(TRIES)][1:]) for path in pages}


def _paint(page: Page, url: str) -> float:
    page.goto(url, wait_until="load")
    return float(page.evaluate(_FIRST_PAINT))


def _fail(conn: Connection, files: int) -> int:
    """Let attempts have failed; return the number of a file of which one did."""
    ensure_days(conn, "transfer_event", [(datetime.now(UTC) - DAY).date()])
    (first,) = conn.execute("SELECT min(id) FROM transfer").fetchone() or (1,)
    conn.execute(_EVENTS, {"events": EVENTS, "share": FAILED_SHARE, "files": files, "first": first})
    conn.execute(_RETRIES, {})
    conn.execute("VACUUM ANALYZE transfer")
    conn.execute("ANALYZE transfer_event")
    (file,) = conn.execute("SELECT max(id) FROM transfer WHERE state = 'RETRY'").fetchone() or (1,)
    return int(file)


def _serve(client: TestClient, page: str) -> Served:
    took, own = [], []
    for _ in range(TRIES + 1):
        started_s, used_s = perf_counter(), process_time()
        answer = client.get(f"/stageout/ui{page}")
        assert answer.status_code in (200, 303), answer.text
        took.append(perf_counter() - started_s)
        own.append(process_time() - used_s)
    return Served(
        round(median(took[1:]) * 1000, 1),
        round(median(own[1:]) * 1000, 1),
        round(len(answer.content) / 1000, 1),
    )


def _count(conn: Connection) -> None:
    now = datetime.now(UTC)
    hour = now.replace(minute=0, second=0, microsecond=0)
    midnight = hour.replace(hour=0)
    for month in sorted({(now - number * DAY).date().replace(day=1) for number in range(DAYS + 2)}):
        ensure_month(conn, ("statistic_hour", "statistic_day"), month)
    for table, start, end, step in (
        ("day", midnight - DAYS * DAY, midnight - DAY, DAY),
        ("hour", hour - HOURS * HOUR, hour - HOUR, HOUR),
    ):
        conn.execute(_COUNTS.format(table=table), {"start": start, "end": end, "step": step, "sites": SITES})
    conn.execute(
        "INSERT INTO rolled_hour (hour, until, events, step_run)"
        " SELECT h, h + interval '1 hour', 0, 1 FROM generate_series(%s::timestamptz, %s, '1 hour') h",
        (midnight - DAYS * DAY, hour - HOUR),
    )
    conn.execute(
        "INSERT INTO rolled_hour (hour, until, events, step_run) VALUES (%s, %s, 0, 1) ON CONFLICT DO NOTHING",
        (hour, max(now - timedelta(minutes=1), hour + timedelta(seconds=1))),
    )
    for table in ("statistic_hour", "statistic_day"):
        conn.execute(f"VACUUM ANALYZE {table}")


if __name__ == "__main__":
    main(*(int(float(size)) for size in sys.argv[1:]))
