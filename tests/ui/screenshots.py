"""Pictures of every page for the documentation: ``python -m ui.screenshots``, from ``tests`` (`make screenshots`).

Takes them of a seeded catalogue in light and dark, wide and narrow, as PNG of at most 256 colours, and writes
``docs/ui.md``, which shows them.
"""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import NamedTuple

from PIL import Image

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
        "Every source and destination; cells show volume, efficiency, what waits, what is in flight, or the oldest."
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
)  # fmt: skip
"""A new page is one more here."""

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
            row = conn.execute(
                "SELECT username FROM transfer GROUP BY 1 ORDER BY count(*) DESC LIMIT 1"
            ).fetchone()
        assert row is not None
        with room(catalogue.url) as url, browser() as running:
            for shot in SHOTS:
                for mode, width, height in SIZES:
                    with context(running, url, who=shot.who or row[0], mode=mode, width=width) as looking:
                        page = looking.new_page()
                        page.goto(url + shot.path)
                        taken = page.screenshot(full_page=True, animations="disabled")
                    _keep(taken, height, IMAGES / f"{shot.name}-{mode}-{width}.png")
    (DOCS / "ui.md").write_text(PAGE + "".join(map(_section, SHOTS)))
    total = sum(path.stat().st_size for path in IMAGES.iterdir())
    say(f"{len(SHOTS) * len(SIZES)} pictures, {total / 1e6:.1f} MB, in {IMAGES}")


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
