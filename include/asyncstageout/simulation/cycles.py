"""Runs of ``stageout_transfer``: from the doorbell to FTS, a few at a time, one of them grouping."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from asyncstageout.simulation.calibration import Calibration
from asyncstageout.simulation.cores import Activity, Cores
from asyncstageout.simulation.scenarios import Deployment
from asyncstageout.simulation.waits import Cohort

TASKS = 3
"""Of a run, beside those that submit."""


@dataclass(slots=True)
class Batch:
    """Files that a cycle took."""

    cohorts: list[Cohort] = field(default_factory=list)
    """Files at their first attempt, with when they arrived."""
    files: list[float] = field(default_factory=list)
    """All of them, by class of link."""
    jobs: list[float] = field(default_factory=list)

    @property
    def count(self) -> float:
        return sum(self.files)

    @property
    def job_count(self) -> float:
        return sum(self.jobs)


Take = Callable[[float], Batch]
Accept = Callable[[Batch, float, float], None]
"""Takes a batch, the part of it that FTS accepted now, and when."""


@dataclass(slots=True)
class Grouping:
    """The lock that keeps cycles in line while they take files (``catalogue.claims.lock_grouping``)."""

    holder: object = None
    held_s: float = 0.0


@dataclass(slots=True)
class Cycle:
    """One run. It knows no clock: :meth:`advance` gives it time."""

    deployment: Deployment
    calibration: Calibration
    lock: Grouping
    take: Take
    accept: Accept
    batch: Batch = field(default_factory=Batch)
    tasks: float = 0.0
    """Tasks of Airflow that it has started."""
    accepted: float = 0.0
    is_over: bool = False
    _now: Activity | None = None
    """What computes or waits now; None: it waits for another cycle to have grouped."""
    _course: Iterator[Activity] = field(init=False)

    def __post_init__(self) -> None:
        self._course = self._phases()
        self._now = next(self._course)

    @property
    def planned(self) -> float:
        """Files that it took and FTS has not accepted yet."""
        return max(0.0, self.batch.count - self.accepted)

    @property
    def fullness(self) -> float:
        """How much of what it may take it took."""
        return self.batch.count / self.deployment.cycle_files

    def advance(self, now_s: float, step_s: float, cores: Cores) -> None:
        """Go on for so long, or until it is over or has to wait for others."""
        left_s = step_s
        while left_s > 1e-9 and not self.is_over:
            if self._now is None and not self._enter_grouping(cores):
                return
            activity = self._now
            assert activity is not None  # noqa: S101 - it has entered
            takes_s = activity.takes_s(cores.slow)
            part = min(1 - activity.done, left_s / takes_s) if takes_s > 0 else 1 - activity.done
            activity.done += part
            left_s -= part * takes_s
            cores.spend(activity.cpu_s(), part)
            if self.lock.holder is self:
                self.lock.held_s += part * takes_s
            elif activity.fts_s:
                self.accepted += self.batch.count * part
                self.accept(self.batch, part, now_s + step_s - left_s)
            if activity.done > 1 - 1e-9:
                self._next(cores)

    def _next(self, cores: Cores) -> None:
        if self.lock.holder is self:
            self.lock.holder = None
        before, upcoming = self._now, next(self._course, None)
        self.is_over = upcoming is None
        self._now = None if upcoming is GROUPING else upcoming
        cores.swap(before, self._now)

    def _enter_grouping(self, cores: Cores) -> bool:
        if self.lock.holder is not None:
            return False
        self.lock.holder = self
        self.batch = self.take(self.deployment.cycle_files)
        cost = self.calibration.steps["group"]
        self._now = Activity(
            python_s=cost.python_s(self.batch.count, self.batch.job_count),
            postgres_s=cost.postgres_s(self.batch.count, self.batch.job_count),
        )
        cores.swap(None, self._now)
        return True

    def _phases(self) -> Iterator[Activity]:
        hop = self.calibration.task_hop_s
        self.tasks = TASKS
        yield Activity(wait_s=self.calibration.run_start_s + hop)
        yield GROUPING
        yield Activity(wait_s=hop)
        if self.batch.count > 0:
            yield self._submission()
        yield Activity(wait_s=2 * hop)

    def _submission(self) -> Activity:
        files, jobs = self.batch.count, self.batch.job_count
        strands = max(1.0, min(float(self.deployment.shards), -(-jobs // self.deployment.jobs_per_shard)))
        self.tasks += strands
        cost, numbers = self.calibration.steps["submit"], self.calibration
        return Activity(
            python_s=cost.python_s(files, jobs) / strands,
            postgres_s=cost.postgres_s(files, jobs) / strands,
            fts_s=(numbers.fts_post_job_s * jobs + numbers.fts_post_file_s * files) / strands,
            threads=self.deployment.submit_threads,
            strands=strands,
        )


GROUPING = Activity()
"""Stands for the moment from which a cycle needs the lock."""
