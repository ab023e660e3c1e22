"""Writes docs/performance.md and its plots from the results of the bench, and from nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from asyncstageout.simulation.drawing import bars, chart

DOCS = Path(__file__).resolve().parents[2] / "docs"
FOLDER = DOCS / "images" / "performance"
RESULTS = FOLDER / "results.jsonl"
PAGE = DOCS / "performance.md"
PAGES = FOLDER / "pages.jsonl"
"""Of ``python -m load.pages``."""
PROSE = Path(__file__).with_name("performance.md")
"""The page, with a line ``{{name}}`` where a table or plot goes."""

Result = dict[str, Any]

STEPS = ("intake", "collect", "group", "submit", "sense", "update_catalogue")
MINUTE_S = 60.0
PAINTED_MS = 300
KEEPS_UP = 0.98
"""The first file takes as long as the last: a queue that does not grow has this share of what came, or more."""


def results() -> list[Result]:
    """Return what was measured so far."""
    if not RESULTS.exists():
        return []
    return [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]


def write() -> None:
    """Write the page and its plots."""
    found = results()
    text = PROSE.read_text(encoding="utf-8")
    for name, lines in _parts(found).items():
        text = text.replace(f"{{{{{name}}}}}", "\n".join(lines))
    PAGE.write_text(text, encoding="utf-8")
    for name, svg in _plots(found):
        (FOLDER / f"{name}.svg").write_text(svg, encoding="utf-8")


def _of(results: Sequence[Result], part: str) -> list[Result]:
    return [one for one in results if one["part"] == part]


def _parts(results: Sequence[Result]) -> dict[str, list[str]]:
    (cost,) = _of(results, "pipeline")
    flat, phases = _of(results, "flat"), _of(results, "platform")
    loads = [one for one in phases if one["files"]]
    idle = [one for one in phases if not one["files"]]
    places = sorted({one["measured_on"] for one in results})
    yards = [one["yard_python_s"] for one in results]
    return {
        "machine": [f"{' and '.join(places)}; a yard of Python took {min(yards):.3f} to {max(yards):.3f} s"],
        "aims": list(_aims(cost, flat, phases)),
        "cost": list(_cost(cost)),
        "platform": list(_platform(loads)),
        "processes": list(_processes(phases)),
        "delays": list(_delays(loads)),
        "flatness": list(_flatness(flat)),
        "pages": list(_pages()),
        "idle": [_idle(one) for one in idle],
        "memory": [
            f"{max(one['memory_mb'] for one in phases):,} MB, at its most, for everything but FTS and sites."
        ],
    }


def _aims(cost: Result, flat: Sequence[Result], phases: Sequence[Result]) -> Iterator[str]:
    """Hold what was aimed at against what was measured; a phase that was not measured has no line."""
    total = cost["cpu_s_per_1000_files"]["total"]
    by_name = {one["phase"]: one for one in phases}
    aims = [("CPU-seconds per 1,000 files, Python and Postgres", 0.25, total, "{:.2f}")]
    for name, most_s in (("1x", 10.0), ("50x", 30.0)):
        if one := by_name.get(name):
            worst = max(spread["p95"] for spread in one["delays_s"].values())
            aims.append((f"p95 of each delay at {name}, seconds", most_s, worst, "{:.1f}"))
    if flat:
        worst = max(one["cpu_s_per_1000_files"]["total"] / empty for one, empty in _beside(flat))
        aims.append(("cost beside a long queue or past, of the empty case", 1.25, worst, "{:.2f}"))
    if one := by_name.get("idle"):
        aims.append(("cores busy with nothing to do", 0.15, one["cores_busy"], "{:.2f}"))
    aims.append(("memory at its most, MB", 4096.0, max(one["memory_mb"] for one in phases), "{:,.0f}"))
    yield from _table("what", "aim", "measured", "")
    for what, most, found, form in aims:
        met = "met" if found <= most else "**missed**"
        yield _row(what, f"at most {form.format(most)}", form.format(found), met)
    for one in (by_name[name] for name in ("100x", "216x") if name in by_name):
        came = one["files"] / one["seconds"]
        met = "met" if one["done_files_per_s"] >= KEEPS_UP * came else "**missed**"
        yield _row(
            f"files a second DONE at {one['phase']}, for {one['seconds'] / MINUTE_S:.0f} minutes",
            f"all that come: {came:,.0f}", f"{one['done_files_per_s']:,.0f}", met,
        )  # fmt: skip
    if pages := _page_times()[1:]:
        quick = sum(one["painted_ms"] < PAINTED_MS for one in pages)
        met = "met" if quick == len(pages) else "**missed**"
        yield _row(f"views that paint within {PAINTED_MS} ms", f"all {len(pages)}", quick, met)


def _table(*head: str) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _cost(one: Result) -> Iterator[str]:
    yield from _table("step", "Python", "Postgres")
    for step in STEPS:
        each = one["steps"][step]
        yield _row(f"`{step}`", f"{each['python']:.3f}", f"{each['postgres']:.3f}")
    total = one["cpu_s_per_1000_files"]
    yield _row("**all**", f"**{total['python']:.2f}**", f"**{total['postgres']:.2f}**")
    yield ""
    yield (
        f"{total['total']:.2f} in all: {one['files']:,} files on {one['links_used']:,} links, in FTS jobs of"
        f" {one['files_per_job']:.0f}, about as many as a hundred times the reference load makes."
        f" A day later the move to the history costs {sum(one['a_day_later']['move_finished'].values()):.3f} more."
    )


def _platform(loads: Sequence[Result]) -> Iterator[str]:
    yield from _table("load", "for", "offered, files/s", "DONE, files/s", "files", "cores busy", "memory, MB")
    for one in loads:
        yield _row(
            one["phase"], f"{one['seconds']:.0f} s", f"{one['offered_files_per_s']:,.1f}", f"{one['done_files_per_s']:,.1f}",
            f"{one['files']:,}", f"{one['cores_busy']:.2f} of {one['cores']}", f"{one['memory_mb']:,}",
        )  # fmt: skip


def _processes(phases: Sequence[Result]) -> Iterator[str]:
    names = list(phases[0]["cpu_s"])
    yield from _table("load", *names, "all")
    for one in phases:
        if per := one.get("cpu_s_per_1000_files"):
            yield _row(one["phase"], *(f"{per[name]:.2f}" for name in names), f"{sum(per.values()):.2f}")


def _delays(loads: Sequence[Result]) -> Iterator[str]:
    yield from _table(
        "load", "arrival to accepted: p50", "p95", "p99", "final at FTS to DONE: p50", "p95", "p99"
    )
    for one in loads:
        both = one["delays_s"]
        cells = [f"{both[way][part]:.1f} s" for way in both for part in ("p50", "p95", "p99")]
        yield _row(one["phase"], *cells)


def _flatness(runs: Sequence[Result]) -> Iterator[str]:
    yield from _table("waiting", "history", "Python", "Postgres", "all", "with nothing else", "times")
    for one, empty in _beside(runs):
        per = one["cpu_s_per_1000_files"]
        yield _row(
            f"{one['pending']:,}", f"{one['past']:,}", f"{per['python']:.2f}", f"{per['postgres']:.2f}",
            f"{per['total']:.2f}", f"{empty:.2f}", f"{per['total'] / empty:.2f}",
        )  # fmt: skip


def _beside(runs: Sequence[Result]) -> Iterator[tuple[Result, float]]:
    """Yield each that was measured beside much else, with the mean cost of the empty cases before and after it."""
    for before, one, after in zip(runs, runs[1:], runs[2:], strict=False):
        if "pending" in one:
            yield one, mean(empty["cpu_s_per_1000_files"]["total"] for empty in (before, after))


def _page_times() -> list[Result]:
    """Return where pages were timed, and then their times; nothing if they were not."""
    return (
        [json.loads(line) for line in PAGES.read_text(encoding="utf-8").splitlines()]
        if PAGES.exists()
        else []
    )


def _pages() -> Iterator[str]:
    times = _page_times()
    if not times:
        yield "Not measured: `python -m load.pages`."
        return
    head, *rows = times
    yield (
        f"Beside {head['waiting']:,} files that wait and a history of {head['history']:,} ({head['measured_on']}), medians of what the"
        " server takes and of when a browser has painted something (*first contentful paint*), in milliseconds:"
    )
    yield ""
    yield from _table("page", "server", "of it CPU", "first paint")
    for row in rows:
        yield _row(
            f"`{row['page']}`", f"{row['took_ms']:.0f}", f"{row['cpu_ms']:.0f}", f"{row['painted_ms']:.0f}"
        )


def _idle(one: Result) -> str:
    parts = ", ".join(f"{name} {used / one['took_s']:.3f}" for name, used in one["cpu_s"].items())
    return f"{one['cores_busy']:.2f} cores with nothing to do ({parts}); {one['memory_mb']:,} MB."


def _minutes(at_s: float) -> str:
    return f"{at_s / MINUTE_S:.0f} min"


def _plots(results: Sequence[Result]) -> Iterator[tuple[str, str]]:
    (cost,) = _of(results, "pipeline")
    yield (
        "cost",
        bars(
            "CPU-seconds per 1,000 files, by step",
            {step: cost["steps"][step] for step in STEPS},
            lambda x: f"{x:.3f}",
        ),
    )
    loads = [one for one in _of(results, "platform") if one["files"]]
    yield (
        "processes",
        bars(
            "CPU-seconds per 1,000 files, by process",
            {one["phase"]: one["cpu_s_per_1000_files"] for one in loads},
            lambda x: f"{x:.2f}",
        ),
    )
    for one in loads:
        series = one["series"]["t_s, open, done"]
        yield (
            f"load-{one['phase']}",
            chart(
                f"{one['phase']}: files",
                {
                    "not yet DONE": [(float(at_s), float(waiting)) for at_s, waiting, _ in series],
                    "DONE": [(float(at_s), float(done)) for at_s, _, done in series],
                },
                lambda x: f"{x:,.0f}",
                mark_s=MINUTE_S,
                say_time=_minutes,
            ),
        )
