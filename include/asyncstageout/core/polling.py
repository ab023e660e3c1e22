"""How often to ask FTS about a job and how much at once: young and lively jobs often, quiet ones rarely.

FTS 3.13 stands 11,000 status rows of files a second on two busy cores; at most about a quarter is ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from asyncstageout.core.fts import FTSJobStatus
from asyncstageout.core.states import FTS_JOB_FINAL

# (age of the job up to, seconds until the next question)
INTERVALS_S: tuple[tuple[float, float], ...] = (
    (20.0, 1.0),
    (60.0, 2.0),
    (600.0, 5.0),
    (3600.0, 20.0),
)
OLDEST_INTERVAL_S = 60.0
LIVELY_S = 60.0
"""A job of which a file ended so recently ..."""
LIVELY_INTERVAL_S = 5.0
"""... is asked about at least so often, whatever its age."""
ENDED_INTERVAL_S = 5.0
"""A job that is final while a file of it is not: FTS commits the two apart, and repairs it within an hour."""
REFUSED_INTERVAL_S = 300.0
"""FTS does not show us the job: nothing changes until somebody changes the credential."""
UNREADABLE_INTERVAL_S = 60.0
"""FTS answers nonsense for the job, or fails on it."""
MISSING_INTERVAL_S = 15.0
"""FTS does not know the job; longer than :data:`asyncstageout.core.outcomes.LOST_AFTER_S`."""

QUEUED = frozenset({"SUBMITTED", "STAGING"})
"""Job states in which no file of a plain job can have ended: its first file makes it ACTIVE."""
WHOLE_LOOK_S = 600.0
"""Even of a queued job the files are looked at so often: one of them may have been cancelled alone."""

WORK_PER_SECOND = 2500.0
"""What one FTS is asked for at most, in rows of files."""
BURST_S = 2.0
WORK_PER_REQUEST = 100
WORK_PER_JOB = 10
"""A job costs FTS a query of its own, before any file."""


def poll_interval_s(age_s: float, job_state: str, *, lively: bool = False) -> float:
    """Return the seconds until a job should be asked about again.

    Args:
        age_s: since FTS accepted the job.
        job_state: what FTS last said.
        lively: a file of it ended just now.
    """
    if job_state in FTS_JOB_FINAL:
        return ENDED_INTERVAL_S if age_s < 3600 else OLDEST_INTERVAL_S
    interval_s = next((interval for limit, interval in INTERVALS_S if age_s < limit), OLDEST_INTERVAL_S)
    return min(interval_s, LIVELY_INTERVAL_S) if lively else interval_s


def is_lively(answer: FTSJobStatus, now: datetime) -> bool:
    """Say whether a file of the job ended within the last minute."""
    since = now - timedelta(seconds=LIVELY_S)
    return any(file.finished_at and file.finished_at > since for file in answer.files)


def wants_files(
    fts_state: str | None, *, submitted_at: datetime, polled_at: datetime | None, now: datetime
) -> bool:
    """Say whether to ask for a job's files too, which is what costs, or first for its state alone."""
    if fts_state not in QUEUED or polled_at is None:
        return True
    looks = ((moment - submitted_at).total_seconds() // WHOLE_LOOK_S for moment in (polled_at, now))
    return next(looks) != next(looks)


def work(file_counts: Iterable[int], *, with_files: bool = True, requests: int = 1) -> int:
    """Return what asking for jobs with so many files costs FTS, in rows of files."""
    per_job = [WORK_PER_JOB + (files if with_files else 0) for files in file_counts]
    return sum(per_job) + WORK_PER_REQUEST * requests


@dataclass(slots=True)
class Allowance:
    """How much FTS may be asked for now: a bucket that fills with time and may be overdrawn once.

    Nothing piles up when it is empty: jobs wait, and who waited longest in its own intervals goes first
    (``catalogue.sensing.jobs_to_poll``), so that all intervals stretch alike.
    """

    per_second: float = WORK_PER_SECOND
    burst_s: float = BURST_S
    _room: float | None = None
    _at: datetime | None = None

    def room(self, now: datetime) -> float:
        """Return the work that may begin now; zero or less: none."""
        full = self.per_second * self.burst_s
        if self._room is None or self._at is None:
            self._room = full
        else:
            passed_s = max(0.0, (now - self._at).total_seconds())
            self._room = min(full, self._room + passed_s * self.per_second)
        self._at = now
        return self._room

    def spend(self, amount: float) -> None:
        """Take what was asked for out of the bucket."""
        self._room = (self.per_second * self.burst_s if self._room is None else self._room) - amount
