"""Runs of ``stageout_sense``, one after the other: watch, linger, look once more, apply."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from asyncstageout.simulation.calibration import Calibration
from asyncstageout.simulation.cores import Activity, Cores, Kind
from asyncstageout.simulation.scenarios import Deployment
from asyncstageout.simulation.sensing import Looks
from asyncstageout.simulation.waits import Cohort

TASKS = 2
SHIFT_S = 120.0
"""A watch without news ends after so long."""

Apply = Callable[[list[Cohort], float, float], None]
"""Takes what was found, the part of it that is applied now, and when."""
History = Callable[[float], float]
"""Takes how many rows may go to the history, and returns how many do."""


@dataclass(slots=True)
class Watch:
    """The continuous DAG: never more than one run."""

    deployment: Deployment
    calibration: Calibration
    looks: Looks
    apply: Apply
    to_history: History
    found: list[Cohort] = field(default_factory=list)
    """Staged, and not applied yet."""
    files_per_job: float = 1.0
    tasks: float = 0.0
    update_s: float = 0.0
    """For how long it has applied what was found."""
    updates: float = 0.0
    moved: float = 0.0
    sensing_s: float = 0.0
    """CPU of the triggerer."""
    _course: Iterator[Activity | None] = field(init=False)
    _now: Activity | None = field(init=False)
    """What computes or waits now; None: it watches."""
    _watching_s: float = 0.0
    _news_s: float | None = None
    _is_updating: bool = False

    def __post_init__(self) -> None:
        self._course = self._phases()
        self._now = next(self._course)

    @property
    def found_files(self) -> float:
        """Files found whose end is not applied yet."""
        left = 1 - self._now.done if self._is_updating and self._now else 1.0
        return sum(cohort.files for cohort in self.found) * left

    def advance(self, now_s: float, step_s: float, cores: Cores) -> None:
        left_s = step_s
        while left_s > 1e-9:
            at_s = now_s + step_s - left_s
            if self._now is None:
                left_s -= self._watch(at_s, left_s, cores)
                continue
            takes_s = self._now.takes_s(cores.slow)
            part = min(1 - self._now.done, left_s / takes_s) if takes_s > 0 else 1 - self._now.done
            self._now.done += part
            left_s -= part * takes_s
            cores.spend(self._now.cpu_s(), part)
            if self._is_updating:
                self.update_s += part * takes_s
                self.apply(self.found, part, now_s + step_s - left_s)
            if self._now.done > 1 - 1e-9:
                self._next(now_s + step_s - left_s, cores)

    def _watch(self, now_s: float, step_s: float, cores: Cores) -> float:
        """Look for so long at most; return how long it took."""
        if self._news_s is not None:
            step_s = min(step_s, self._news_s + self.deployment.linger_s - now_s)
        self._look(now_s + step_s, step_s, cores)
        self._watching_s += step_s
        if self._news_s is None and self.found:
            self._news_s = now_s + step_s
        is_ripe = (
            self._news_s is not None and now_s + step_s >= self._news_s + self.deployment.linger_s - 1e-9
        )
        if is_ripe or self._watching_s >= SHIFT_S:
            self._next(now_s + step_s, cores)
        return step_s

    def _look(self, now_s: float, step_s: float, cores: Cores) -> None:
        found, rows = self.looks.look(now_s, step_s)
        self._stage(found)
        files, cost = sum(cohort.files for cohort in found), self.calibration.steps["sense"]
        # What a file costs that was found holds one row that was asked for.
        python_s = self.calibration.ask_row_s * max(0.0, rows - files) + cost.python_s(
            files, files / self.files_per_job
        )
        self.sensing_s += python_s
        cores.spend(
            {
                Kind.POSTGRES: cost.postgres_s(files, files / self.files_per_job),
                Kind.FTS: self.calibration.fts_row_s * rows,
            }
        )

    def _stage(self, found: Sequence[Cohort]) -> None:
        """Keep what was found until it is applied; files that ended at the same time are one cohort."""
        files = {cohort.since_s: cohort.files for cohort in self.found}
        for since_s, count in found:
            if count > 0:
                files[since_s] = files.get(since_s, 0.0) + count
        self.found = [Cohort(*item) for item in files.items()]

    def _next(self, now_s: float, cores: Cores) -> None:
        if self._is_updating:
            self.found, self._is_updating = [], False
        before, self._now = self._now, next(self._course)
        if self._now is None:
            self._watching_s, self._news_s = 0.0, now_s if self.found else None
            self.looks.begin()
        elif self._now is UPDATING:
            self._look(now_s, 0.0, cores)
            self._now, self._is_updating = self._update(), True
        cores.swap(before, self._now)

    def _update(self) -> Activity:
        files = sum(cohort.files for cohort in self.found)
        jobs = files / self.files_per_job
        moved = self.to_history(self.deployment.history_files)
        self.updates, self.moved = self.updates + 1, self.moved + moved
        update, move = self.calibration.steps["update"], self.calibration.steps["move"]
        return Activity(
            python_s=update.python_s(files, jobs) + move.python_s(moved),
            postgres_s=update.postgres_s(files, jobs) + move.postgres_s(moved),
        )

    def _phases(self) -> Iterator[Activity | None]:
        numbers = self.calibration
        while True:
            self.tasks += TASKS
            yield Activity(wait_s=numbers.next_run_s + numbers.trigger_start_s)
            yield None
            yield Activity(wait_s=numbers.trigger_end_s + numbers.task_hop_s)
            yield UPDATING


UPDATING = Activity()
"""Stands for the moment at which ``update_catalogue`` begins."""
