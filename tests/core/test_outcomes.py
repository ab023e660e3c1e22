"""Job state x file state, exhaustively: what each pair means."""

from __future__ import annotations

import pytest

from asyncstageout.core.outcomes import Verdict, change, verdict
from asyncstageout.core.polling import poll_interval_s
from asyncstageout.core.states import FTS_FILE_FINAL, FTS_JOB_FINAL, TransferState

JOB_STATES = ["STAGING", "SUBMITTED", "READY", "ACTIVE", "ARCHIVING", "FINISHED", "FAILED", "FINISHEDDIRTY",
              "CANCELED", "QOS_TRANSITION", "A_STATE_OF_FTS_4"]  # fmt: skip
RUNNING_FILES = ["STAGING", "STARTED", "SUBMITTED", "READY", "ACTIVE", "ARCHIVING", "FORCE_START", "TOKEN_PREP",
                 "ON_HOLD", "ON_HOLD_STAGING", "QOS_TRANSITION", "A_STATE_OF_FTS_4"]  # fmt: skip


@pytest.mark.parametrize("job", JOB_STATES)
def test_a_final_file_counts_whatever_the_job_says(job: str) -> None:
    """A14: 199 files of a running job are done now, not when the last one is."""
    assert verdict(job, "FINISHED") is Verdict.ARRIVED
    assert verdict(job, "FAILED") is Verdict.FAILED
    assert verdict(job, "CANCELED") is Verdict.FAILED


@pytest.mark.parametrize("job", JOB_STATES)
@pytest.mark.parametrize("file", RUNNING_FILES)
def test_a_running_file_is_waited_for(job: str, file: str) -> None:
    """A15 and A35: a final job with a running file is repaired by FTS; an unknown word means running."""
    assert verdict(job, file) is Verdict.WAIT


@pytest.mark.parametrize("job", JOB_STATES)
def test_not_used_is_settled_by_the_end_of_the_job(job: str) -> None:
    """A16: job FINISHED means another replica did it; any other end means nobody did."""
    expected = (
        Verdict.WAIT if job not in FTS_JOB_FINAL else Verdict.ARRIVED if job == "FINISHED" else Verdict.FAILED
    )
    assert verdict(job, "NOT_USED") is expected


def test_change_carries_the_failure() -> None:
    assert change("ACTIVE", "ACTIVE", "", recoverable=None, attempt=1, max_attempts=3) is None
    done = change("ACTIVE", "FINISHED", "", recoverable=None, attempt=1, max_attempts=3)
    assert done is not None
    assert (done.to_state, done.failure) == (TransferState.DONE, None)
    failed = change("FAILED", "FAILED", "SOURCE [2] gone", recoverable=False, attempt=1, max_attempts=3)
    assert failed is not None
    assert failed.failure is not None
    assert (failed.to_state, failed.failure.reason) == (TransferState.FAILED, "SOURCE [2] gone")


def test_final_words_agree() -> None:
    for state in FTS_FILE_FINAL:
        assert verdict("ACTIVE", state) is not Verdict.WAIT


def test_old_jobs_are_asked_about_rarely() -> None:
    intervals = [poll_interval_s(age, "ACTIVE") for age in (0, 59, 61, 601, 3601, 10**6)]
    assert intervals == sorted(intervals)
    assert poll_interval_s(10**6, "FINISHED") == intervals[-1]
    assert poll_interval_s(10, "FINISHED") <= 5
