"""The costs that ``aso simulate`` reckons with, from the bench: ``python -m bench.calibrate``, from ``tests``.

The bench runs with many and with few files in an FTS job; a line through its results says what a file costs and
what a job costs. ``--runs FILE`` takes the bench's lines from a file instead of running it.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.pipeline import measure

FILES = 20_000
SHAPES = ((60, 20_000), (300, 20_000), (900, 20_000), (300, 2_000))
"""(links, files that a cycle takes): from 60 files a job down to 4."""
HELD_OUT = (3_000, 300, 300)
"""(files, links, files of a cycle): about one file a job. The line is not drawn from it, but held against it."""
# Step of the simulation -> steps of the bench.
STEPS = {
    "intake": ("intake",),
    "group": ("collect", "group", "summarise"),
    "submit": ("submit",),
    "sense": ("sense",),
    "update": ("update_catalogue",),
}


def calibration(
    runs: Sequence[dict[str, Any]], measured_on: str, held_out: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return what ``aso simulate --calibration`` reads."""
    jobs = [1 / run["files_per_job"] for run in runs]
    steps = {}
    for step, parts in STEPS.items():
        cost = {}
        for who in ("python", "postgres"):
            each = [sum(run["steps"][part][who] for part in parts) / 1000 for run in runs]
            # An arrival knows no job.
            per_file, per_job = (sum(each) / len(each), 0.0) if step == "intake" else line(jobs, each)
            cost |= {f"{who}_file_s": per_file, f"{who}_job_s": per_job}
        steps[step] = {name: float(f"{value:.3g}") for name, value in cost.items()}
    later = [run for run in runs if "a_day_later" in run]
    moved = {
        who: sum(run["a_day_later"]["move_finished"][who] for run in later) / len(later) / 1000
        for who in ("python", "postgres")
    }
    steps["move"] = {f"{who}_file_s": float(f"{value:.3g}") for who, value in moved.items()}
    disk = [(1 / run["files_per_job"], run["bytes_per_file"]) for run in runs if "bytes_per_file" in run]
    per_job = line([share for share, _ in disk], [one["fts_job"] for _, one in disk])[1]

    def average(name: str) -> int:
        return round(sum(one[name] for _, one in disk) / len(disk))

    beside = {"held_out": _beside(held_out, steps)} if held_out else {}
    return beside | {
        "measured_on": measured_on,
        "runs": [{"links": run["links"], "files_per_job": run["files_per_job"]} for run in runs],
        "numbers": {
            "wal_file_bytes": average("wal"),
            "live_file_bytes": average("transfer"),
            "event_file_bytes": average("transfer_event"),
            "job_bytes": round(per_job),
        },
        "steps": steps,
    }


def _beside(run: dict[str, Any], steps: dict[str, dict[str, float]]) -> dict[str, float]:
    """Return what a file cost in a run, and what it costs by the line."""
    by_line = sum(
        cost[f"{who}_file_s"] + cost.get(f"{who}_job_s", 0.0) / run["files_per_job"]
        for step, cost in steps.items()
        if step in STEPS
        for who in ("python", "postgres")
    )
    seen = sum(
        run["steps"][part][who]
        for parts in STEPS.values()
        for part in parts
        for who in ("python", "postgres")
    )
    return {
        "files_per_job": run["files_per_job"],
        "measured_file_s": float(f"{seen / 1000:.3g}"),
        "line_file_s": float(f"{by_line:.3g}"),
    }


def line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Return offset and slope of the line that fits best, neither below 0.

    >>> line([0, 1, 2], [1, 3, 5])
    (1.0, 2.0)
    """
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((one - mean_x) ** 2 for one in x)
    slope = sum((one - mean_x) * (other - mean_y) for one, other in zip(x, y, strict=True)) / spread
    slope = min(max(slope, 0.0), mean_y / mean_x)
    return mean_y - slope * mean_x, slope


def where() -> str:
    """Name machine, commit and date."""
    facts = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((one.partition(":")[2].strip() for one in facts if one.startswith("model name")), "")
    cores = sum(one.startswith("processor") for one in facts)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    return f"{cores} cores {model or platform.machine()}, commit {commit}, {datetime.now(UTC):%Y-%m-%d}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.calibrate", description=__doc__)
    parser.add_argument("--runs", type=Path, help="lines of the bench, the last of them held out")
    parser.add_argument("--files", type=int, default=FILES)
    args = parser.parse_args()
    if args.runs:
        *runs, held_out = (json.loads(one) for one in args.runs.read_text(encoding="utf-8").splitlines())
    else:
        runs = [measure(args.files, links, limit) for links, limit in SHAPES]
        held_out = measure(*HELD_OUT)
    sys.stdout.write(json.dumps(calibration(runs, where(), held_out), indent=2) + "\n")


if __name__ == "__main__":
    main()
