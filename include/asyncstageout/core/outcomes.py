"""What an FTS report means for a file: job state x file state x reason -> change.

The file's state is the truth and the job's a hint: FTS commits them in separate transactions, so all files
can be final while the job is still ACTIVE, and the other way round (FTS 3.13; reference cases A13 to A16).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from asyncstageout.core.failures import Failure, classify
from asyncstageout.core.states import FTS_JOB_FINAL, TransferState


class Verdict(Enum):
    """What to make of one file of a report."""

    WAIT = "wait"
    ARRIVED = "arrived"
    FAILED = "failed"


# NOT_USED waits in replica jobs for its turn; only the end of the job says whether it was ever needed.
_FINAL_FILE = {"FINISHED": Verdict.ARRIVED, "FAILED": Verdict.FAILED, "CANCELED": Verdict.FAILED}
_NOT_USED_AT_END = {"FINISHED": Verdict.ARRIVED}


def verdict(job_state: str, file_state: str) -> Verdict:
    """Return what the two states say together. States of a future FTS mean "still running"."""
    if file_state in _FINAL_FILE:
        return _FINAL_FILE[file_state]
    if file_state == "NOT_USED" and job_state in FTS_JOB_FINAL:
        return _NOT_USED_AT_END.get(job_state, Verdict.FAILED)
    return Verdict.WAIT


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
    return after_failure(classify(reason, recoverable), attempt=attempt, max_attempts=max_attempts)


def after_failure(failure: Failure, *, attempt: int, max_attempts: int) -> Change:
    """Return whether a failed file is tried again or has failed for good."""
    again = not failure.permanent and attempt < max_attempts
    return Change(TransferState.RETRY if again else TransferState.FAILED, failure)
