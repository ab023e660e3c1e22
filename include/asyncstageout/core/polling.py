"""How often to ask FTS about a job: young jobs often, old ones rarely, since most files end soon."""

from __future__ import annotations

from asyncstageout.core.states import FTS_JOB_FINAL

# (age of the job up to, seconds until the next question). FTS stands about 12,000 files/s of status on two
# cores; 10,000 jobs of 200 files that are over an hour old cost it 170 jobs/s at these rates.
INTERVALS_S: tuple[tuple[float, float], ...] = (
    (60.0, 2.0),
    (600.0, 5.0),
    (3600.0, 20.0),
)
OLDEST_INTERVAL_S = 60.0
ENDED_INTERVAL_S = 5.0
"""A job that is final while a file of it is not: FTS commits the two apart, and repairs it within an hour."""
REFUSED_INTERVAL_S = 300.0
"""FTS does not show us the job: nothing changes until somebody changes the credential."""


def poll_interval_s(age_s: float, job_state: str) -> float:
    """Return the seconds until a job should be asked about again.

    Args:
        age_s: since FTS accepted the job.
        job_state: what FTS last said.
    """
    if job_state in FTS_JOB_FINAL:
        return ENDED_INTERVAL_S if age_s < 3600 else OLDEST_INTERVAL_S
    return next((interval for limit, interval in INTERVALS_S if age_s < limit), OLDEST_INTERVAL_S)
