"""Records what a file costs, for the smoke test to hold later changes against: ``python -m bench.baseline``, from ``tests``."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

from asyncstageout.catalogue.connection import connect
from bench import yardstick
from bench.calibrate import where
from bench.pipeline import measure
from load.server import loaded_catalogue

BASELINE = Path(__file__).with_name("baseline.json")
FILES, LINKS, CYCLE = 5_000, 50, 5_000
RUNS = 5


def in_yards() -> dict[str, float]:
    """Return what 1,000 files cost, in Python and in Postgres, as multiples of the yardstick's CPU time."""
    python_s = yardstick.of_python()
    with loaded_catalogue() as catalogue, connect(catalogue.url) as conn:
        postgres_s = yardstick.of_postgres(conn)
    cost = measure(FILES, LINKS, CYCLE)["cpu_s_per_1000_files"]
    # Before and after: what was quicker is what the machine can.
    python_s = min(python_s, yardstick.of_python())
    return {
        "python": round(cost["python"] / python_s, 2),
        "postgres": round(cost["postgres"] / postgres_s, 2),
    }


def main() -> None:
    runs = [in_yards() for _ in range(RUNS)]
    yards = {who: median(run[who] for run in runs) for who in runs[0]}
    found = {"measured_on": where(), "files": FILES, "yards_per_1000_files": yards}
    BASELINE.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(BASELINE.read_text(encoding="utf-8"), end="")  # noqa: T201


if __name__ == "__main__":
    main()
