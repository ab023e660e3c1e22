"""``make bench``: all figures of docs/performance.md, and that page: ``python -m bench [--quick]``, from ``tests``.

Each result is a line of ``docs/images/performance/results.jsonl``; the page and its plots are drawn from them alone, so
that ``--report`` draws them again without measuring, and ``--parts`` measures some of them again and keeps the others.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from bench import pipeline, platform, report
from bench.calibrate import where
from bench.yardstick import of_python

FILES, LINKS, CYCLE = 100_000, 100, 20_000
"""So many files that what Postgres writes once after each checkpoint, whole pages, is shared out as on a busy day."""
QUEUES = (1_000_000, 10_000_000)
PASTS = (10_000_000,)
"""100 million take 80 GB of disk: say ``--pasts 10e6 100e6`` where there is so much."""
QUICK = 0.1

Result = dict[str, Any]


def _pipeline(_scale: float, _pasts: Sequence[int]) -> Iterator[Result]:
    yield pipeline.measure(FILES, LINKS, CYCLE)


def _platform(scale: float, _pasts: Sequence[int]) -> Iterator[Result]:
    yield from platform.measure(platform.PHASES, seed=1, scale=scale)


def _flat(scale: float, pasts: Sequence[int]) -> Iterator[Result]:
    """Measure each with the empty case before it and after it: a machine is not as quick from minute to minute."""
    sizes = [(round(pending * scale), 0) for pending in QUEUES] + [(0, round(past * scale)) for past in pasts]
    for pending, past in sizes:
        yield pipeline.measure(FILES, LINKS, CYCLE)
        yield pipeline.measure(FILES, LINKS, CYCLE, pending=pending, past=past)
    yield pipeline.measure(FILES, LINKS, CYCLE)


PARTS: Mapping[str, Callable[[float, Sequence[int]], Iterator[Result]]] = {
    "pipeline": _pipeline, "flat": _flat, "platform": _platform,
}  # fmt: skip


def measure(parts: Sequence[str], scale: float, pasts: Sequence[int]) -> None:
    """Measure parts; each result replaces those that its part had, as soon as it is known."""
    kept = [one for one in report.results() if one["part"] not in parts]
    found: list[Result] = []
    for part in parts:
        at = {"part": part, "measured_on": where(), "yard_python_s": round(of_python(), 4)}
        for result in PARTS[part](scale, pasts):
            found.append(at | result)
            lines = [json.dumps(one) + "\n" for one in kept + found]
            report.RESULTS.write_text("".join(lines), encoding="utf-8")
            sys.stdout.write(lines[-1][:400].rstrip() + "\n")
            sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the time, queue and past")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--pasts", nargs="*", type=lambda text: int(float(text)), default=PASTS, help="files of the history"
    )
    parser.add_argument(
        "--report", action="store_true", help="only draw the page from the results that are there"
    )
    args = parser.parse_args()
    if not args.report:
        report.FOLDER.mkdir(parents=True, exist_ok=True)
        measure(args.parts, QUICK if args.quick else 1.0, args.pasts)
    report.write()


if __name__ == "__main__":
    main()
