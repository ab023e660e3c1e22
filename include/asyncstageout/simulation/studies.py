"""All that is asked about a scenario: what stops it, what it needs, how its day goes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from asyncstageout.simulation.arrivals import DAY_S, peak
from asyncstageout.simulation.calibration import Calibration
from asyncstageout.simulation.day import Day
from asyncstageout.simulation.headroom import Limit, carries, limit, of_the_service, sized
from asyncstageout.simulation.measures import Outcome
from asyncstageout.simulation.scenarios import Deployment, Scenario

LIVE_DAYS = 1.0
"""As ``catalogue.history.KEEP_DONE_S``."""
EVENT_DAYS = 90
HISTORY_DAYS = 400
"""As the defaults of docs/reference/retention.md."""
DAY_STEP_S = 2.0
PAGE_BYTES = 8192
SLOW_BELL_S = 30.0
LARGE_CYCLE_FILES = 200_000


@dataclass(frozen=True, slots=True)
class Disk:
    """What a scenario leaves on the catalogue's disk."""

    written_day_bytes: float
    """Write-ahead log."""
    peak_bytes_s: float
    peak_pages_s: float
    """Of the log alone, 8 kB each: the least IOPS a disk must stand."""
    partition_day_bytes: float
    """Of events."""
    kept_bytes: float
    """Live rows, and events and history for as long as they are kept by default."""


@dataclass(frozen=True, slots=True)
class Study:
    name: str
    scenario: Scenario
    limit: Limit
    """Of its deployment."""
    service_limit: Limit
    """Of the service alone."""
    needs: Deployment
    """What carries it as it runs today ..."""
    needs_tuned: Deployment
    """... and with a doorbell that rings less often, and larger cycles."""
    held: tuple[bool, bool]
    """Whether these two carried it, when they were tried."""
    day: Outcome
    day_deployment: Deployment
    disk: Disk


def tuned(deployment: Deployment) -> Deployment:
    """Return it with larger cycles, rung less often: fewer FTS jobs, at the price of delay."""
    return replace(
        deployment,
        bell_s=SLOW_BELL_S,
        cycle_files=LARGE_CYCLE_FILES,
        history_files=LARGE_CYCLE_FILES,
    )


def disk(scenario: Scenario, calibration: Calibration, files_per_job: float) -> Disk:
    """Return what a day of a scenario writes and what stays of it."""
    files = scenario.files_per_day
    job_bytes = calibration.job_bytes / files_per_job
    per_second = calibration.wal_file_bytes * files / DAY_S * peak(scenario.profile)
    return Disk(
        written_day_bytes=calibration.wal_file_bytes * files,
        peak_bytes_s=per_second,
        peak_pages_s=per_second / PAGE_BYTES,
        partition_day_bytes=calibration.event_file_bytes * files,
        kept_bytes=files
        * (
            calibration.live_file_bytes * LIVE_DAYS
            + calibration.event_file_bytes * EVENT_DAYS
            + (calibration.history_file_bytes + job_bytes) * HISTORY_DAYS
        ),
    )


def study(name: str, scenario: Scenario, calibration: Calibration, seed: int = 1) -> Study:
    """Return everything about a scenario. Its day is of its own deployment, if that carries it."""
    most = limit(scenario, scenario.deployment, calibration, seed)
    needs = sized(scenario, scenario.deployment, calibration)
    needs_tuned = sized(scenario, tuned(scenario.deployment), calibration)
    deployment = scenario.deployment if most.times >= 1 else needs_tuned
    day = Day(scenario, deployment, calibration, seed=seed, step_s=DAY_STEP_S).run()
    return Study(
        name=name,
        scenario=scenario,
        limit=most,
        service_limit=of_the_service(scenario, scenario.deployment, calibration, seed),
        needs=needs,
        needs_tuned=needs_tuned,
        held=(carries(scenario, needs, calibration), carries(scenario, needs_tuned, calibration)),
        day=day,
        day_deployment=deployment,
        disk=disk(scenario, calibration, day.arrived / max(day.jobs, 1.0)),
    )


@dataclass(frozen=True, slots=True)
class WhatIf:
    """What a service alone carries if one assumption is another one."""

    name: str
    """Of the scenario."""
    what: str
    files_per_day: float
    limit: Limit


def what_ifs(name: str, scenario: Scenario, calibration: Calibration, seed: int = 1) -> list[WhatIf]:
    """Return a scenario's limit with its assumptions changed, one at a time."""
    stream, exponent = scenario.files_per_stream, scenario.site_exponent
    slow = replace(scenario.deployment, bell_s=SLOW_BELL_S)
    cases = {
        "as assumed": scenario,
        f"{stream / 5:,.0f} files a stream, not {stream:,.0f}": replace(
            scenario, files_per_stream=stream / 5
        ),
        f"{stream * 5:,.0f} files a stream": replace(scenario, files_per_stream=stream * 5),
        f"all sites alike, not an exponent of {exponent:g}": replace(scenario, site_exponent=0.0),
        "an exponent of 1": replace(scenario, site_exponent=1.0),
        f"a doorbell every {SLOW_BELL_S:.0f} s": replace(scenario, deployment=slow),
        "larger cycles too": replace(scenario, deployment=tuned(scenario.deployment)),
    }
    return [
        WhatIf(name, what, one.files_per_day, of_the_service(one, one.deployment, calibration, seed))
        for what, one in cases.items()
    ]
