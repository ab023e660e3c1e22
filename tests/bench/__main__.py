"""``make bench``: all figures of docs/performance.md, and that page: ``python -m bench [--quick]``, from ``tests``.

Each result is a line of ``docs/images/performance/results.jsonl``; the page and its plots are drawn from them alone, so
that ``--report`` draws them again without measuring.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import Any

from bench import pipeline, platform, report
from bench.calibrate import where
from bench.yardstick import of_python

FILES, LINKS, CYCLE = 20_000, 100, 20_000
QUEUES = (1_000_000, 10_000_000)
PASTS = (10_000_000,)
QUICK = 0.1


def results(scale: float) -> Iterator[dict[str, Any]]:
    yield {"bench": "machine", "measured_on": where(), "yard_python_s": round(of_python(), 4)}
    yield pipeline.measure(FILES, LINKS, CYCLE)
    yield from platform.measure(platform.PHASES, seed=1, scale=scale)
    for pending in QUEUES:
        yield pipeline.measure(FILES, LINKS, CYCLE, pending=round(pending * scale))
    for past in PASTS:
        yield pipeline.measure(FILES, LINKS, CYCLE, past=round(past * scale))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the time, queue and past")
    parser.add_argument(
        "--report", action="store_true", help="only draw the page from the results that are there"
    )
    args = parser.parse_args()
    if not args.report:
        report.FOLDER.mkdir(parents=True, exist_ok=True)
        with report.RESULTS.open("w", encoding="utf-8") as kept:
            for result in results(QUICK if args.quick else 1.0):
                line = json.dumps(result) + "\n"
                kept.write(line)
                kept.flush()
                sys.stdout.write(line[:300].rstrip() + "\n")
                sys.stdout.flush()
    report.write()


if __name__ == "__main__":
    main()
