"""Pictures of every page for the documentation: ``python -m ui.screenshots``, from ``tests`` (`make screenshots`).

Takes them of a seeded catalogue in light and dark, wide and narrow, as PNG of at most 256 colours, and writes
``docs/ui.md``, which shows them.
"""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from psycopg import Connection
from psycopg.rows import dict_row

from asyncstageout.catalogue.connection import connect
from load.server import loaded_catalogue, say
from ui.browsing import Mode, browser, context
from ui.seed import BROKEN, PAUSED, fill
from ui.serving import room

DOCS = Path(__file__).parents[2] / "docs"
IMAGES = DOCS / "images/ui"
SIZES: tuple[tuple[Mode, int, int], ...] = (
    ("light", 1440, 1500),
    ("dark", 1440, 1500),
    ("light", 400, 1800),
    ("dark", 400, 1800),
)
"""Colour mode, width, and up to which height a page is shown."""
COLOURS = 128
MOST_BYTES = 100_000


class Shot(NamedTuple):
    """A page that is shown, and what is said of it."""

    name: str
    title: str
    path: str
    """With what :data:`STORY` returns."""
    words: str
    who: str = "olga"


SHOTS = (
    Shot(
        "overview", "Overview", "/",
        "What needs a person now comes first, each with where to look and what to do. Below: what waits and since"
        " when, what is under way, what came of the chosen time, how long files took. A user sees the same of his"
        " own files.",
    ),
    Shot(
        "own", "Overview of a user", "/?range=7d",
        "What somebody who is no operator sees: his own files and nothing else.", who="",
    ),
    Shot(
        "alerts", "Alerts", "/alerts",
        "What needs a person, each told once to whom it concerns, with its runbook. *Silence* asks for a reason and an"
        " end. Below: what is over, and who is told.",
    ),
    Shot(
        "links", "Links", "/links",
        "Every source and destination; cells show volume, efficiency, what waits, what is in flight, or the oldest;"
        " one that is pointed at says all of it (with 60 sites on a side, which link it is)."
        " The table below holds all links, sorts by any column, and is a CSV file too.",
    ),
    Shot(
        "link", "One link", f"/links/{BROKEN.source}/{BROKEN.destination}",
        "Why it does not move, since when, what failed with FTS's own words, its last jobs and its policy. *Pause or"
        " drain* asks for a reason, which users read while they wait.",
    ),
    Shot("sites", "Sites", "/sites?range=7d&unit=bytes", "Every site at both ends of links."),
    Shot(
        "site", "One site", f"/sites/{PAUSED}",
        "Its pauses and downtimes, its links, what failed at it, and how it describes its own storage.",
    ),
    Shot(
        "users", "Users", "/users?users.sort=-attempts_failed",
        "Whose files wait, since when, what is in flight, what arrived and what failed.",
    ),
    Shot(
        "user", "One user", "/users/{user}",
        "His tasks, and why his files failed. *Kill* and *Send again* say first how many files they would hit, and"
        " ask for a comment, which stays in the history of each file. A user sees his own page.",
    ),
    Shot("tasks", "Tasks", "/tasks", "The newest tasks with their files by state; a user sees his own."),
    Shot(
        "task", "One task", "/tasks/{task}",
        "How far it is, why files failed or are not published, its blocks, and its files, by state. The field at the top"
        " of every page leads there: it takes a task, a user, an LFN (source or destination, also within a URL), a"
        " file's number or request id, or the id of an FTS job.",
    ),
    Shot(
        "file", "One file", "/files/{file}",
        "Where it is and why, what comes next, each attempt with its FTS job and reason, and all that happened to it:"
        " which task of which run did it, with its log. Publication, its temporary copy, who waits to hear of it, and"
        " what CRAB says of it follow. The same for files that ended long ago.",
    ),
    Shot(
        "failures", "Failures", "/failures",
        "Why attempts fail: by category over time, by reason (numbers, hosts and paths left out, so that equal causes"
        " are one line), on which links, whose, and the latest files. From *Failed for good* of the overview it is two"
        " clicks to why a user's file failed.",
    ),
    Shot(
        "jobs", "FTS jobs", "/jobs",
        "What FTS has now: open jobs, those in doubt (FTS has not confirmed them, or nobody asks about them), those"
        " that are slow against the last ones of their link, and those that ended lately; by server and site.",
    ),
    Shot(
        "job", "One FTS job", "/jobs/{job}",
        "When it was planned, told to FTS and last asked about, what FTS said, its files, who did what with it,"
        " with their logs in Airflow, and the FTS monitor's page of it, which has the logs of its copies.",
    ),
    Shot(
        "cycles", "Cycles", "/cycles?range=6h",
        "What each run of `stageout_transfer` looked at, held back, grouped and submitted, and how long each step"
        " took; then what the last run of every other DAG did. *All steps* lists everything that ran.",
    ),
    Shot(
        "cycle", "One cycle", "/cycles/{cycle}",
        "Its steps with what they said and their logs, the links that it held back and why, its FTS jobs. Every task"
        " in Airflow leads here, and back.",
    ),
    Shot(
        "audit", "Audit", "/audit?range=7d",
        "Who changed which configuration, from what to what; and what people did to files.",
    ),
)  # fmt: skip
"""A new page is one more here."""

STORY = """
SELECT k.username AS user, k.name AS task, t.id AS file,
    (SELECT sid FROM fts_job WHERE state = 'SUBMITTED' ORDER BY planned_at LIMIT 1) AS job,
    (SELECT max(cycle_id) - 3 FROM fts_job) AS cycle
FROM transfer t JOIN task k ON k.id = t.task_id
WHERE t.state = 'FAILED' AND k.id IN (SELECT task_id FROM block) ORDER BY t.attempt DESC, t.id DESC LIMIT 1
"""
"""A file that failed for good, of a task that is published, and its owner; a job that FTS has; a cycle."""

PAGE = """# The pages in Airflow

*Stage-out* in Airflow's navigation opens the operators' room: pages over the catalogue, in Airflow's look and colour
mode. Every view has its own address: *Copy link* gives it to somebody else. Every table is a CSV file too. *Refresh*
keeps a page up to date without moving it. Users see what is theirs, operators everything ([who is what](how-to/api-access.md)).

The pictures are of made-up files at made-up sites; `make screenshots` takes them anew.
"""


def main() -> None:
    shutil.rmtree(IMAGES, ignore_errors=True)
    IMAGES.mkdir(parents=True)
    with loaded_catalogue(durable=False) as catalogue:
        with connect(catalogue.url) as conn:
            conn.execute("DELETE FROM site WHERE name LIKE 'T2|_XX|_%' ESCAPE '|'")
            fill(conn, files=12_000, days=31)
            story = _story(conn)
        with room(catalogue.url) as url, browser() as running:
            for shot in SHOTS:
                for mode, width, height in SIZES:
                    with context(
                        running, url, who=shot.who or story["user"], mode=mode, width=width
                    ) as looking:
                        page = looking.new_page()
                        page.goto(url + shot.path.format(**story))
                        taken = page.screenshot(full_page=True, animations="disabled")
                    _keep(taken, height, IMAGES / f"{shot.name}-{mode}-{width}.png")
    (DOCS / "ui.md").write_text(PAGE + "".join(map(_section, SHOTS)))
    total = sum(path.stat().st_size for path in IMAGES.iterdir())
    say(f"{len(SHOTS) * len(SIZES)} pictures, {total / 1e6:.1f} MB, in {IMAGES}")


def _story(conn: Connection) -> dict[str, Any]:
    with conn.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(STORY).fetchone() or {}


def _keep(taken: bytes, height: int, path: Path) -> None:
    """Write a picture, with as few colours as its size allows."""
    image = Image.open(io.BytesIO(taken)).convert("RGB")
    image = image.crop((0, 0, image.width, min(image.height, height)))
    for colours in (COLOURS, COLOURS // 2, COLOURS // 4, COLOURS // 8):
        # So that no colour is lost, however little of it there is.
        few = image.quantize(colours, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        few.save(path, optimize=True)
        if path.stat().st_size <= MOST_BYTES:
            return
    raise SystemExit(f"{path.name} is larger than {MOST_BYTES:,} bytes")


def _section(shot: Shot) -> str:
    def picture(mode: Mode, width: int) -> str:
        return f"![{shot.title}, {mode}, {width} pixels wide](images/ui/{shot.name}-{mode}-{width}.png)"

    return f"""
## {shot.title}

{shot.words}

{picture("light", 1440)}

<details><summary>Dark, and on a narrow screen</summary>

{picture("dark", 1440)}
{picture("light", 400)} {picture("dark", 400)}

</details>
"""


if __name__ == "__main__":
    main()
