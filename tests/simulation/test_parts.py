"""The parts of the model, each by what must be so."""

from __future__ import annotations

import doctest
from dataclasses import replace
from importlib import import_module
from inspect import signature
from math import exp
from xml.etree import ElementTree as ET

import pytest

from asyncstageout.catalogue.cycles import CycleParams
from asyncstageout.catalogue.history import KEEP_DONE_S, move_finished
from asyncstageout.core.policies import LinkPolicy
from asyncstageout.core.retention import Retention
from asyncstageout.provider.triggers import OpenFTSJobsTrigger, PendingFilesTrigger
from asyncstageout.simulation import sensing, studies
from asyncstageout.simulation.arrivals import DAY_S, HOURLY_SUBMISSIONS, intensity, jobs_of, peak
from asyncstageout.simulation.calibration import STEPS, BadCalibration, Calibration
from asyncstageout.simulation.cores import Activity, Cores, Kind
from asyncstageout.simulation.drawing import chart
from asyncstageout.simulation.headroom import limit, sized, steady
from asyncstageout.simulation.measures import Resource
from asyncstageout.simulation.scenarios import SCENARIOS, Deployment, Scenario
from asyncstageout.simulation.topology import link_classes, site_classes
from asyncstageout.simulation.waits import Cohort, Queue
from asyncstageout.steps.group import JOBS_PER_SHARD, MAX_SHARDS
from asyncstageout.steps.sense import JOBS_PER_ROUND
from asyncstageout.steps.submit import THREADS
from bench import calibrate


@pytest.mark.parametrize("module", ["arrivals", "report"])
def test_examples(module: str) -> None:
    assert doctest.testmod(import_module(f"asyncstageout.simulation.{module}")).failed == 0


@pytest.mark.parametrize("sites", [1, 2, 3, 17, 60, 1000])
def test_classes_hold_all_sites_and_all_files(sites: int) -> None:
    classes = site_classes(sites, 0.7)
    assert sum(one.sites for one in classes) == sites
    assert sum(one.sites * one.share for one in classes) == pytest.approx(1)
    assert [one.share for one in classes] == sorted((one.share for one in classes), reverse=True)
    links = link_classes(classes)
    assert sum(one.links for one in links) == sites**2
    assert sum(one.share for one in links) == pytest.approx(1)


def test_a_day_has_all_its_files_and_its_peak() -> None:
    seconds = [intensity(HOURLY_SUBMISSIONS, at_s) for at_s in range(0, DAY_S, 60)]
    assert sum(seconds) / len(seconds) == pytest.approx(1, rel=1e-3)
    assert max(seconds) == pytest.approx(peak(HOURLY_SUBMISSIONS), rel=0.02)


def test_jobs_are_never_fewer_than_files_need_and_never_more_than_files() -> None:
    for files in (0.5, 1, 10, 200, 5_000, 1e6):
        for busy in (0.5, 1, 30, 10_000):
            assert files / 200 - 1e-9 <= jobs_of(files, busy, 200) <= files + 1e-9


def test_a_core_is_shared_alike() -> None:
    cores = Cores({Kind.PYTHON: 1, Kind.POSTGRES: 1, Kind.FTS: 1})
    first, second = Activity(postgres_s=1), Activity(python_s=1, postgres_s=1)
    cores.swap(None, first)
    assert first.takes_s(cores.slow) == pytest.approx(1)
    cores.swap(None, second)
    used = sum(one.postgres_s / one.takes_s(cores.slow) for one in (first, second))
    assert used == pytest.approx(1, rel=0.01)
    cores.swap(first, None)
    assert cores.slow[Kind.POSTGRES] == 1


def test_a_long_queue_becomes_coarser_and_no_file_younger_than_it_is() -> None:
    queue = Queue()
    for at_s in range(1000):
        queue.put([Cohort(float(at_s), 1.0)])
    assert queue.files == pytest.approx(1000)
    assert len(list(queue)) <= 49
    taken = queue.take(500)
    assert sum(one.files for one in taken) == pytest.approx(500)
    assert all(one.since_s <= 500 for one in taken)
    assert queue.files == pytest.approx(500)


def test_a_calibration_says_what_is_wrong_with_it(costs: Calibration) -> None:
    with pytest.raises(BadCalibration, match="wal_file_bytes"):
        Calibration.of({})
    good = {"wal_file_bytes": 1, "live_file_bytes": 1, "event_file_bytes": 1, "job_bytes": 1}
    with pytest.raises(BadCalibration, match="unknown numbers: speed"):
        Calibration.of({"numbers": good | {"speed": 1}})
    with pytest.raises(BadCalibration, match="steps are missing: intake"):
        Calibration.of({"numbers": good})
    steps = {step: {"python_file_s": 1, "postgres_file_s": 1} for step in STEPS}
    with pytest.raises(BadCalibration, match=r"job_bytes: -1"):
        Calibration.of({"numbers": good | {"job_bytes": -1}, "steps": steps})
    with pytest.raises(BadCalibration, match="ruby_file_s"):
        Calibration.of({"numbers": good, "steps": steps | {"move": {"ruby_file_s": 1}}})
    assert all(one.source for one in costs.numbers())


def test_costs_of_files_and_jobs_come_out_of_the_bench_as_they_went_in() -> None:
    def run(files_per_job: float) -> dict[str, object]:
        cost = {"python": 0.1 + 4 / files_per_job, "postgres": 0.2}
        steps = dict.fromkeys(("group", "submit", "sense", "update_catalogue"), cost)
        steps["intake"] = {"python": 0.1, "postgres": 0.2}  # it knows nothing of jobs
        nothing = {"python": 0.0, "postgres": 0.0}
        return {
            "links": 1, "files_per_job": files_per_job, "steps": steps | {"collect": nothing, "summarise": nothing},
            "bytes_per_file": {"wal": 6000, "transfer": 1, "transfer_event": 2, "fts_job": 50 + 2000 / files_per_job},
            "a_day_later": {"move_finished": {"python": 0.0, "postgres": 0.03}},
        }  # fmt: skip

    found = calibrate.calibration([run(4), run(20), run(100)], "here", run(1))
    assert found["held_out"]["line_file_s"] == pytest.approx(found["held_out"]["measured_file_s"], rel=0.01)
    assert found["steps"]["submit"] == {
        "python_file_s": pytest.approx(1e-4), "postgres_file_s": pytest.approx(2e-4),
        "python_job_s": pytest.approx(4e-3), "postgres_job_s": 0,
    }  # fmt: skip
    assert found["numbers"]["job_bytes"] == 2000
    assert Calibration.of(found).measured_on == "here"


SMALL = Scenario(title="", source="", files_per_day=5e6, sites=8, file_bytes=1e8, least_gbit_s=1e6)


def test_what_is_full_first_is_found(costs: Calibration) -> None:
    tight = Deployment(storage_slots=9e9, link_slots=9e9, fts_hosts=1, fts_host_cores=999)
    most = limit(SMALL, tight, costs)
    assert Resource.FTS_HOSTS in most.full
    # 400 copies of 2.95 s at a time; what ends between two runs of FTS's scheduler leaves its slot empty until then.
    copy_s, turn_s = costs.copy_overhead_s + SMALL.file_bytes / costs.stream_bytes_s, costs.fts_scheduler_s
    attempts_per_s = costs.fts_host_slots * (1 - exp(-turn_s / copy_s)) / turn_s
    per_s = attempts_per_s / (1 + costs.attempts_failing * (1 - costs.failures_for_good))
    assert most.times * SMALL.peak_files_per_s == pytest.approx(per_s, rel=0.2)


def test_what_a_load_needs_carries_it(costs: Calibration) -> None:
    crowded = replace(SMALL, files_per_day=2e7)
    needs = sized(crowded, Deployment(), costs)
    assert needs.fts_hosts > 1
    use = steady(crowded, needs, costs, 1.0).samples[-1].use
    assert max(use[one] for one in (Resource.POSTGRES, Resource.WORKERS, Resource.FTS_HOSTS)) < 0.85


def test_what_the_model_knows_of_the_service_is_what_the_service_does() -> None:
    """The rooms keep these from being imported there; so they are held together here."""
    now, policy = Deployment(), LinkPolicy()
    bell, watch = signature(PendingFilesTrigger.__init__), signature(OpenFTSJobsTrigger.__init__)
    assert now.bell_s == bell.parameters["quiet_s"].default
    assert now.linger_s == watch.parameters["linger_s"].default
    assert now.cycle_files == CycleParams().limit
    assert (now.shards, now.jobs_per_shard, now.submit_threads) == (MAX_SHARDS, JOBS_PER_SHARD, THREADS)
    assert now.files_per_job == policy.files_per_job
    assert sensing.JOBS_PER_ROUND == JOBS_PER_ROUND
    assert studies.LIVE_DAYS * DAY_S == KEEP_DONE_S
    assert now.history_files == signature(move_finished).parameters["at_most"].default
    kept = Retention()
    assert (kept.events_days, kept.history_days) == (studies.EVENT_DAYS, studies.HISTORY_DAYS)


def test_scenarios_have_names_for_the_command_line() -> None:
    assert {"lifecycle", "cms2015", "cms2017", "wlcg", "hundredfold", "internet"} == set(SCENARIOS)


def test_a_chart_is_an_svg_that_holds_its_words() -> None:
    svg = chart("a < b", {"x & y": [(0.0, 1.0), (3600.0, 3.0)]}, lambda value: f"{value:g}")
    root = ET.fromstring(svg)
    words = [one.text for one in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a < b", "x & y", "5", "2.5", "0", "0:00"} <= set(words)
