"""What an FTS report means for a file: job state x file state x reason -> change.

The file's state is the truth and the job's a hint: FTS commits them in separate transactions, so all files
can be final while the job is still ACTIVE, and the other way round (FTS 3.13; reference cases A13 to A16).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum

from asyncstageout.core.failures import Failure, classify
from asyncstageout.core.fts import FTSFileStatus
from asyncstageout.core.retries import attempts_allowed
from asyncstageout.core.states import FTS_JOB_FINAL, TransferState

LOST_AFTER_S = 10.0
"""A job is lost when FTS did not know it twice, at least so far apart, and its archive does not either."""
MANY_LOST_AFTER_S = 40.0
"""The same when FTS does not know most jobs: rather an FTS that came up empty for a moment.

Not longer: old jobs are asked about once a minute, and no file may be without a next step for two."""
MANY = 3
STUCK_AFTER = timedelta(hours=1)
"""How long FTS may take to end the files of a job that it ended (its sanity check runs hourly)."""


class Verdict(Enum):
    """What to make of one file of a report."""

    WAIT = "wait"
    ARRIVED = "arrived"
    FAILED = "failed"


# NOT_USED waits in replica jobs for its turn; only the end of the job says whether it was ever needed.
_FINAL_FILE = {"FINISHED": Verdict.ARRIVED, "FAILED": Verdict.FAILED, "CANCELED": Verdict.FAILED}
_NOT_USED_AT_END = {"FINISHED": Verdict.ARRIVED}
_UNEXPLAINED = {"CANCELED": "it was cancelled alone in FTS"}
"""FTS gives no reason for a file that is cancelled and its job is not (recordings 79 to 84)."""


def verdict(job_state: str, file_state: str) -> Verdict:
    """Return what the two states say together. States of a future FTS mean "still running"."""
    if file_state in _FINAL_FILE:
        return _FINAL_FILE[file_state]
    if file_state == "NOT_USED" and job_state in FTS_JOB_FINAL:
        return _NOT_USED_AT_END.get(job_state, Verdict.FAILED)
    return Verdict.WAIT


def said_most(job_state: str, files: Iterable[FTSFileStatus]) -> FTSFileStatus | None:
    """Return what counts among several lines for one of our files, or None while it is under way.

    One that arrived has arrived; while another is under way, a failed one is not the last word.
    """
    seen = [(verdict(job_state, file.state), file) for file in files]
    if arrived := [file for meant, file in seen if meant is Verdict.ARRIVED]:
        return arrived[0]
    if any(meant is Verdict.WAIT for meant, _ in seen):
        return None
    return next((file for _, file in seen), None)


def lost_after_s(missing: int, asked: int) -> float:
    """Return how long a job must have been unknown to FTS before it counts as lost.

    Args:
        missing: how many jobs FTS does not know just now.
        asked: of how many that it was asked about lately.
    """
    return MANY_LOST_AFTER_S if missing >= MANY and 2 * missing > asked else LOST_AFTER_S


def is_stuck(final_at: datetime | None, now: datetime) -> bool:
    """Say whether a job's end was so long ago that its unfinished files never will end in FTS."""
    return final_at is not None and now - final_at >= STUCK_AFTER


@dataclass(frozen=True, slots=True)
class Change:
    """The move that a file makes."""

    to_state: TransferState
    failure: Failure | None = None


def change(
    job_state: str, file_state: str, reason: str, *, recoverable: bool | None, attempt: int, max_attempts: int
) -> Change | None:
    """Return the move that a report asks for, or None while the file is still under way.

    Args:
        attempt: the attempt that the report is about, from 1.
        max_attempts: after this many, a failure that might pass counts as final too.
    """
    seen = verdict(job_state, file_state)
    if seen is Verdict.WAIT:
        return None
    if seen is Verdict.ARRIVED:
        return Change(TransferState.DONE)
    said = reason or _UNEXPLAINED.get(file_state, "")
    return after_failure(classify(said, recoverable), attempt=attempt, max_attempts=max_attempts)


def after_failure(failure: Failure, *, attempt: int, max_attempts: int) -> Change:
    """Return whether a failed file is tried again or has failed for good."""
    again = not failure.permanent and attempt < attempts_allowed(failure.category, max_attempts)
    return Change(TransferState.RETRY if again else TransferState.FAILED, failure)
