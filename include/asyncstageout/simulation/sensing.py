"""How the end of a copy is noticed: polls of open jobs, as often and as many as a real watch may.

A file that ended is found when its job is asked about the next time. Looks are due once an interval, at any
moment of it; where fewer jobs can be asked about than are due, everybody waits longer alike (core.polling).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from asyncstageout.core.polling import (
    BURST_S,
    INTERVALS_S,
    OLDEST_INTERVAL_S,
    WORK_PER_JOB,
    WORK_PER_REQUEST,
    WORK_PER_SECOND,
    poll_interval_s,
)
from asyncstageout.simulation.calibration import Calibration
from asyncstageout.simulation.scenarios import Deployment
from asyncstageout.simulation.transfers import Copies
from asyncstageout.simulation.waits import Cohort, Queue

JOBS_PER_ROUND = 1000
"""Of ``steps.sense``: asked about in one round, at one server ..."""
ROUNDS_PER_S = 2.0
"""... of which there are so many at most (``pause_s`` of the watch)."""
JOBS_PER_REQUEST = 100
WHOLE = 1 - 1e-9
INTERVALS = sorted({*(interval for _, interval in INTERVALS_S), OLDEST_INTERVAL_S})


@dataclass(slots=True)
class Demand:
    """What a look at all jobs of an interval would take."""

    jobs: float = 0.0
    rows: float = 0.0


@dataclass(slots=True)
class Looks:
    """Files that ended at FTS and are not found yet, by the interval of their jobs."""

    deployment: Deployment
    calibration: Calibration
    ended: dict[float, Queue] = field(default_factory=lambda: {interval: Queue() for interval in INTERVALS})
    rows: float = 0.0
    """Asked for so far ..."""
    allowed_rows: float = 0.0
    """... and how many might have been."""
    _demand: dict[float, Demand] = field(default_factory=dict)
    _interval: list[float] = field(default_factory=list)
    _looked_s: float = 0.0
    _room_rows: float = 0.0

    @property
    def files(self) -> float:
        return sum(queue.files for queue in self.ended.values())

    def learn(self, copies: Copies, files_per_job: Sequence[float]) -> None:
        """Note which jobs are open, and how old they get, by class of link."""
        self._demand = {interval: Demand() for interval in INTERVALS}
        self._interval = []
        for queued, active, rate, each in zip(
            copies.queued, copies.active, copies.rate, files_per_job, strict=True
        ):
            age_s = (queued + active) / rate if rate > 0 else 0.0
            interval = poll_interval_s(age_s, "ACTIVE", lively=each > 1.5)
            self._interval.append(interval)
            # Half the files of a job that is being copied have ended; all are in the answer.
            running = min(active, 2 * active / each)
            resting = queued / each
            demand = self._demand[interval]
            demand.jobs += running + resting
            demand.rows += running * each
            demand.rows += (running + resting) * (WORK_PER_JOB + WORK_PER_REQUEST / JOBS_PER_REQUEST)

    def end(self, files: Sequence[float], now_s: float) -> None:
        """Note that files ended, by class of link."""
        sums = dict.fromkeys(INTERVALS, 0.0)
        for interval, count in zip(self._interval, files, strict=True):
            sums[interval] += count
        for interval, count in sums.items():
            self.ended[interval].put([Cohort(now_s, count)])

    def begin(self) -> None:
        """Begin a shift: its allowance is full."""
        self._room_rows = self._servers * WORK_PER_SECOND * BURST_S
        self.allowed_rows += self._room_rows

    def look(self, now_s: float, step_s: float) -> tuple[list[Cohort], float]:
        """Ask about what is due; return the files that were found and the rows that were asked for.

        Args:
            step_s: for which the allowance fills; 0: the last look of ``update_catalogue``, whose is full.
        """
        passed_s, self._looked_s = now_s - self._looked_s, now_s
        if step_s:
            more = self._servers * WORK_PER_SECOND * step_s
            self._room_rows = min(self._servers * WORK_PER_SECOND * BURST_S, self._room_rows + more)
            self.allowed_rows += more
        else:
            self.begin()
        parts = {interval: min(1.0, passed_s / interval) for interval in self._demand}
        rows = sum(one.rows * parts[interval] for interval, one in self._demand.items())
        jobs = sum(one.jobs * parts[interval] for interval, one in self._demand.items())
        jobs_room = self._servers * JOBS_PER_ROUND * (max(1.0, ROUNDS_PER_S * step_s) if step_s else 1.0)
        cpu_room = (step_s or BURST_S) / self.calibration.ask_row_s
        served = min(
            1.0,
            self._room_rows / rows if rows else 1.0,
            jobs_room / jobs if jobs else 1.0,
            cpu_room / rows if rows else 1.0,
        )
        self._room_rows -= rows * served
        self.rows += rows * served
        found: list[Cohort] = []
        for interval, queue in self.ended.items():
            found.extend(self._found(queue, interval, now_s, passed_s, served))
        return found, rows * served

    def _found(
        self, queue: Queue, interval: float, now_s: float, passed_s: float, served: float
    ) -> list[Cohort]:
        if not queue.files:
            return []
        kept, found = [], []
        for since_s, files in queue.take(queue.files):
            seen_s = now_s - since_s - self.calibration.fts_visible_s
            if seen_s < 0:
                kept.append(Cohort(since_s, files))
                continue
            # Asked about at any moment of an interval, for certain at its end.
            passed = min(passed_s, seen_s) or passed_s
            left_s = max(passed, interval - (seen_s - passed))
            part = min(1.0, passed / left_s) * served
            found.append(Cohort(since_s, files * part))
            if part < WHOLE:
                kept.append(Cohort(since_s, files * (1 - part)))
        queue.put(kept)
        return found

    @property
    def _servers(self) -> float:
        """Each installation watches all servers, and has its jobs at each; what a server stands is shared."""
        return self.deployment.fts_servers / self.deployment.installations
