"""Job ids that are known before the POST, so that a lost answer loses nothing.

With ``id_generator: deterministic`` the job id is ``uuid5(uuid5(BASE_ID, vo), sid)`` (FTS 3.13, JobBuilder).
"""

from __future__ import annotations

from uuid import UUID, uuid5

BASE_ID = UUID("01874efb-4735-4595-bc9c-591aef8240c9")


def deterministic_job_id(vo: str, sid: str) -> UUID:
    """Return the id that FTS gives to the job with this ``sid``, submitted by a member of ``vo``.

    >>> deterministic_job_id("cms", "abc")
    UUID('4b913369-c5ae-5511-8819-e185faf7e295')
    """
    return uuid5(uuid5(BASE_ID, vo), sid)
