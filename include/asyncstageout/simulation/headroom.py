"""How much more load something carries, what stops it first, and what a load needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil

from asyncstageout.simulation.calibration import Calibration
from asyncstageout.simulation.day import Day
from asyncstageout.simulation.measures import Outcome, Place, Resource
from asyncstageout.simulation.scenarios import Deployment, Scenario
from asyncstageout.simulation.topology import site_classes

STEADY_S = 900.0
"""So long the busiest moment lasts on trial ..."""
SETTLING_S = 300.0
"""... after which nothing may grow any more."""
GROWS = 0.02
"""Part of what arrives by which a backlog may grow and still count as steady."""
EXACT = 1.15
"""Limits are known to this factor."""
MOST = 4.0**7
TARGET_USE = 0.7
"""How busy what is sized may be at the day's peak."""
PLENTY = 1e7
MOST_INSTALLATIONS = 64
FULL = 0.85
"""Part of the allowance of polls; above it files wait longer to be found, and nothing else happens."""
MOST_SERVERS = 4
ALONE = (Resource.LOCK, Resource.CYCLES, Resource.WATCH, Resource.TRIGGERER, Resource.HISTORY)
"""What is one in an installation, whatever it is given."""


@dataclass(frozen=True, slots=True)
class Limit:
    """Where a deployment stops."""

    times: float
    """The load that it just carries, in times of the scenario's."""
    use: Mapping[Resource, float]
    """At the first load that it does not carry."""
    stuck: Place | None
    """Where files then pile up; None: in the history that is not written."""

    @property
    def full(self) -> list[Resource]:
        """What is full then, the fullest first."""
        ranked = sorted(self.use, key=lambda resource: -self.use[resource])
        return [one for one in ranked if self.use[one] > 0.95] or ranked[:1]


def steady(
    scenario: Scenario, deployment: Deployment, calibration: Calibration, load: float, seed: int = 1
) -> Outcome:
    """Return the busiest moment of a scenario, made to last."""
    day = Day(scenario, deployment, calibration, seed=seed, load=load, steady=True)
    return day.run(STEADY_S, SETTLING_S)


def growth(outcome: Outcome) -> tuple[float, Place | None]:
    """Return by which part of what arrived the backlog grew after it settled, and where most."""
    before, after = outcome.samples[0].backlog, outcome.samples[-1].backlog
    arrived = outcome.arrived * (1 - SETTLING_S / STEADY_S)
    grown = {place: (after[place] - before[place]) / max(arrived, 1.0) for place in Place}
    behind = outcome.behind / max(outcome.arrived, 1.0)
    place = max(grown, key=grown.__getitem__)
    total = sum(grown.values())
    # What the history lags behind in a steady state is gone within a minute.
    return (behind, None) if behind > max(total, GROWS * 2) else (total, place)


def limit(scenario: Scenario, deployment: Deployment, calibration: Calibration, seed: int = 1) -> Limit:
    """Return what a deployment just carries at a day's peak, by halving."""

    def trial(load: float) -> tuple[float, Outcome, Place | None]:
        outcome = steady(scenario, deployment, calibration, load, seed)
        grown, place = growth(outcome)
        return grown, outcome, place

    low, high, factor = 0.0, 1.0, 4.0
    grown, over, stuck = trial(high)
    if grown <= GROWS:
        # What is busiest says where to look: in line with the load, if nothing gets cheaper with it.
        busiest = max(over.samples[-1].use.values())
        low, high = high, min(max(1.5, 1 / max(busiest, 1 / MOST)), MOST)
        grown, over, stuck = trial(high)
    while grown <= GROWS and high < MOST:
        low, high = high, high * factor
        grown, over, stuck = trial(high)
    while not low and high > 1 / MOST:
        grown, outcome, place = trial(high / factor)
        if grown <= GROWS:
            low = high / factor
        else:
            high, over, stuck = high / factor, outcome, place
    low = low or high / factor
    while high / low > EXACT:
        middle = (low * high) ** 0.5
        grown, outcome, place = trial(middle)
        if grown <= GROWS:
            low = middle
        else:
            high, over, stuck = middle, outcome, place
    return Limit(low, over.samples[-1].use, stuck)


def of_the_service(
    scenario: Scenario, deployment: Deployment, calibration: Calibration, seed: int = 1
) -> Limit:
    """Return what a deployment carries where sites and FTS's copies stand anything."""
    open_wide = replace(
        deployment,
        fts_hosts=int(PLENTY),
        link_slots=PLENTY,
        storage_slots=PLENTY,
    )
    return limit(replace(scenario, least_gbit_s=PLENTY), open_wide, calibration, seed)


def carries(scenario: Scenario, deployment: Deployment, calibration: Calibration) -> bool:
    """Say whether nothing piles up at the scenario's busiest moment."""
    return growth(steady(scenario, deployment, calibration, 1.0))[0] <= GROWS


def sized(scenario: Scenario, deployment: Deployment, calibration: Calibration) -> Deployment:
    """Return a deployment that carries the scenario's peak with room to spare.

    What can be bought is bought (cores, FTS hosts, slots). Where something remains that only one task does at
    a time, the sources are shared out over more installations.
    """
    installations = 1
    while True:
        plenty = replace(
            deployment,
            installations=installations,
            postgres_cores=PLENTY,
            worker_cores=PLENTY,
            api_cores=PLENTY,
            schedulers=100,
            fts_servers=max(deployment.fts_servers, installations),
            fts_hosts=int(PLENTY),
            link_slots=PLENTY,
            storage_slots=PLENTY,
        )
        plenty = _watched(scenario, plenty, calibration)
        outcome = steady(scenario, plenty, calibration, 1.0)
        use = outcome.samples[-1].use
        alone = max(use[one] for one in ALONE)
        if alone <= TARGET_USE or installations >= MOST_INSTALLATIONS:
            return _bought(scenario, plenty, calibration, outcome)
        installations *= 2


def _watched(scenario: Scenario, deployment: Deployment, calibration: Calibration) -> Deployment:
    """Return it with as many FTS servers as polls need: more of them, since each may be asked so much."""
    while True:
        use = steady(scenario, deployment, calibration, 1.0).samples[-1].use
        if use[Resource.POLLING] < FULL or deployment.fts_servers >= MOST_SERVERS * deployment.installations:
            return deployment
        deployment = replace(deployment, fts_servers=deployment.fts_servers * 2)


def _bought(scenario: Scenario, plenty: Deployment, calibration: Calibration, outcome: Outcome) -> Deployment:
    use = outcome.samples[-1].use

    def cores(resource: Resource) -> int:
        return max(1, ceil(use[resource] * PLENTY / TARGET_USE))

    copies = outcome.samples[-1].copies
    api_hosts = use[Resource.FTS_API] * PLENTY / TARGET_USE
    largest = site_classes(scenario.sites, scenario.site_exponent)[0].share
    return replace(
        plenty,
        postgres_cores=cores(Resource.POSTGRES),
        worker_cores=cores(Resource.WORKERS),
        api_cores=cores(Resource.API),
        schedulers=max(1, ceil(use[Resource.AIRFLOW] * plenty.schedulers / TARGET_USE)),
        fts_hosts=max(
            1, ceil(copies / TARGET_USE / calibration.fts_host_slots), ceil(api_hosts), plenty.fts_servers
        ),
        storage_slots=max(60, ceil(copies * largest / TARGET_USE)),
        link_slots=max(60, ceil(copies * largest**2 / TARGET_USE)),
    )
