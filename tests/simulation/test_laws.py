"""What holds for every queue, whatever the load: nothing gets lost, no core is busier than busy, more takes longer."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asyncstageout.simulation.calibration import Calibration
from asyncstageout.simulation.day import Day
from asyncstageout.simulation.measures import Outcome, Place
from asyncstageout.simulation.scenarios import Deployment, Scenario

SECONDS = 120.0
FEW = settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

SCENARIOS = st.builds(
    Scenario,
    title=st.just("any"),
    source=st.just("hypothesis"),
    files_per_day=st.floats(1e3, 1e9),
    sites=st.integers(1, 60),
    site_exponent=st.floats(0, 1.2),
    file_bytes=st.floats(0, 1e10),
    files_per_stream=st.floats(1, 1e4),
    failing=st.booleans(),
)
DEPLOYMENTS = st.builds(
    Deployment,
    postgres_cores=st.floats(0.2, 16),
    worker_cores=st.floats(0.2, 16),
    api_cores=st.floats(0.2, 8),
    cycle_files=st.integers(100, 100_000),
    cycles_at_once=st.integers(1, 5),
    shards=st.integers(1, 8),
    bell_s=st.floats(1, 30),
    fts_servers=st.integers(1, 4),
    fts_hosts=st.integers(1, 50),
    link_slots=st.floats(2, 500),
    storage_slots=st.floats(2, 5000),
    installations=st.integers(1, 4),
)


@FEW
@given(scenario=SCENARIOS, deployment=DEPLOYMENTS, seed=st.integers(0, 99), steady=st.booleans())
def test_no_file_is_lost_or_made_and_nothing_is_busier_than_busy(
    scenario: Scenario, deployment: Deployment, seed: int, steady: bool, costs: Calibration
) -> None:
    day = Day(scenario, deployment, costs, seed=seed, steady=steady)
    outcome = day.run(SECONDS, 60)
    assert outcome.arrived == pytest.approx(
        outcome.done + outcome.failed + sum(outcome.backlog.values()), rel=1e-6, abs=1e-6
    )
    assert all(files >= -1e-6 * outcome.arrived for files in outcome.backlog.values())
    for sample in outcome.samples:
        assert all(0 <= use <= 1 for use in sample.use.values())
    # Before they are cut to 1 for the report.
    for kind, busy_s in day.cores.busy_s.items():
        assert busy_s <= day.cores.count[kind] * SECONDS * 1.1, kind


@FEW
@given(scenario=SCENARIOS, deployment=DEPLOYMENTS, load=st.floats(2, 50))
def test_more_files_never_wait_less_in_all(
    scenario: Scenario, deployment: Deployment, load: float, costs: Calibration
) -> None:
    little, much = (
        Day(scenario, deployment, costs, load=times, steady=True).run(SECONDS, 5) for times in (1.0, load)
    )
    # On average, since at any one moment a cycle may just have gone; a cycle begins with a whole file.
    assert mean_backlog(much) >= mean_backlog(little) * 0.98 - 2


def mean_backlog(outcome: Outcome) -> float:
    return sum(sample.backlog_files for sample in outcome.samples) / len(outcome.samples)


def scenario(files_per_day: float, **more: float) -> Scenario:
    return replace(
        Scenario(title="", source="", files_per_day=files_per_day, sites=20, failing=False, file_bytes=1e8),
        **more,  # type: ignore[arg-type]
    )


def steady(files_per_day: float, costs: Calibration, deployment: Deployment, seconds: float = 300) -> Outcome:
    return Day(scenario(files_per_day), deployment, costs, steady=True).run(seconds, 100)


AMPLE = Deployment(postgres_cores=8, worker_cores=8, fts_hosts=10, link_slots=500, storage_slots=500)


def test_a_delay_rises_with_the_load_and_without_end_beyond_the_limit(costs: Calibration) -> None:
    p95 = [
        outcome.accepted_after.quantile_s(0.95) or 0.0
        for outcome in (steady(files, costs, Deployment(link_slots=9e9, storage_slots=9e9, fts_hosts=999))
                        for files in (1e5, 1e7, 1e8, 1e9))
    ]  # fmt: skip
    # A step of 20 % up or down is one bucket of the delays.
    assert all(more >= less / 1.25 for less, more in pairwise(p95))
    assert p95[-1] > 10 * p95[0]


def test_littles_law(costs: Calibration) -> None:
    """Files on their way to FTS = rate x time that they take, where nothing grows."""
    outcome = steady(2e7, costs, AMPLE, 900)
    settled = outcome.samples[3:]
    on_their_way = sum(s.backlog[Place.WAITING] + s.backlog[Place.PLANNED] for s in settled) / len(settled)
    rate = sum(s.arrived_per_s for s in settled) / len(settled)
    counts = outcome.accepted_after.counts
    mean_s = sum(1.2222**place * files / 1.1111 for place, files in counts.items()) / sum(counts.values())
    # Ends of samples see a cycle anywhere between its beginning and its end; delays are known to 10 %.
    assert on_their_way == pytest.approx(rate * mean_s, rel=0.35)


def test_nobody_starves_behind_a_long_queue(costs: Calibration) -> None:
    """With a queue far longer than a cycle, files of the quietest links go with each cycle all the same."""
    day = Day(scenario(4e8), Deployment(cycle_files=2_000), costs, steady=True)
    day.run(60)
    rare = min(range(len(day.copies.links)), key=lambda place: day.copies.links[place].share)
    assert sum(day.waiting) > 1e5
    before = day.waiting[rare]
    taken = day._take(2_000)
    assert taken.files[rare] >= min(before, 0.9 * 2_000 * day.copies.flows[rare] / sum(day.copies.flows))


def test_the_same_seed_is_the_same_day(costs: Calibration) -> None:
    first, again, other = (
        Day(scenario(1e6), Deployment(), costs, seed=seed).run(120, 60) for seed in (7, 7, 8)
    )
    assert first == again
    assert first != other


def test_more_of_what_is_full_makes_waits_shorter(costs: Calibration) -> None:
    few, many = (
        steady(5e7, costs, replace(AMPLE, worker_cores=cores), 300).accepted_after.quantile_s(0.5) or 0.0
        for cores in (0.5, 8.0)
    )
    assert few > 3 * many
