"""The model beside what was measured on the real platform: none of these numbers went into it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from asyncstageout.simulation.arrivals import DAY_S, FLAT
from asyncstageout.simulation.calibration import Calibration
from asyncstageout.simulation.day import Day
from asyncstageout.simulation.scenarios import Deployment, Scenario

SHARE: Final = 2 / 3
"""Of a core, for each of Postgres, tasks and FTS, which share two. An assumption: none was measured apart."""
LONG_S: Final = 120.0


class Measured(NamedTuple):
    """A burst of files that arrived at once at an idle platform, and what was seen."""

    files: int
    links: int
    accepted_s: tuple[float | None, float | None]
    """From arrival to FTS, p50 and p95."""
    settled_s: tuple[float | None, float | None]
    """From the end at FTS to DONE."""
    source: str


class Check(NamedTuple):
    what: str
    measured_s: float
    model_s: float
    source: str

    @property
    def off(self) -> float:
        """How far off the model is: 0.1 is 10 % too much."""
        return self.model_s / self.measured_s - 1


MEASURED: Final = (
    Measured(2_000, 298, (4.5, 5.6), (4.9, 8.3), "README: make demo"),
    Measured(300, 20, (2.1, None), (None, None), "ADR 0004"),
    Measured(500, 150, (None, None), (3.5, 6.3), "ADR 0005: aso demo --files 500; links estimated"),
)


def burst(files: int, links: int, calibration: Calibration, share: float = SHARE) -> Day:
    """Return two minutes in which so many files come at once, on so many links."""
    # The requests come from outside, at once.
    shared = Deployment(postgres_cores=share, worker_cores=share, fts_host_cores=share, api_cores=100)
    scenario = Scenario(
        title="a burst",
        source="",
        files_per_day=files * DAY_S,
        sites=60,
        profile=FLAT,
        file_bytes=1e5,
        files_per_stream=files / links,
        stream_s=1.0,
        failing=False,
    )
    day = Day(scenario, shared, calibration)
    day.run(1.0)
    day.load = 0.0
    day.run(LONG_S)
    return day


def checks(calibration: Calibration, share: float = SHARE) -> Iterator[Check]:
    """Yield each measured delay with the model's."""
    for one in MEASURED:
        day = burst(one.files, one.links, calibration, share)
        what = f"{one.files:,} files at once"
        for name, measured, delays in (
            ("arrival to accepted by FTS", one.accepted_s, day.accepted_after),
            ("end at FTS to DONE", one.settled_s, day.settled_after),
        ):
            for quantile, seen_s in zip((0.5, 0.95), measured, strict=True):
                if seen_s is not None:
                    model_s = delays.quantile_s(quantile) or 0.0
                    yield Check(f"{what}: {name}, p{quantile * 100:.0f}", seen_s, model_s, one.source)
