"""What a later retry of a job makes of a file that was handed over before: the rules of all doors.

A job that runs again leaves output under the same names (CRAB's temporary LFNs know no retries), so its
files come with the same request id, another size and checksum, and a higher ``job_retry_count``.
"""

from __future__ import annotations

from collections.abc import Mapping

from asyncstageout.core.states import PublicationState, TransferState

S = TransferState
P = PublicationState

REINJECTIONS: Mapping[tuple[TransferState, TransferState], tuple[TransferState, ...]] = {
    # Not under way: the request itself is changed.
    (S.NEW, S.NEW): (),
    (S.RETRY, S.NEW): (),
    (S.DONE, S.DONE): (),
    # Only while a worker of CRAB has it and FTS does not; one in an FTS job of ours has to end first.
    (S.ACQUIRED, S.NEW): (S.NEW,),
    (S.FAILED, S.NEW): (S.NEW,),
    (S.KILLED, S.NEW): (S.NEW,),
    (S.DONE, S.NEW): (S.NEW,),
    # Written straight to its destination this time: no transfer is wanted any more, and there it is.
    (S.NEW, S.DONE): (S.KILL, S.DONE),
    (S.RETRY, S.DONE): (S.KILL, S.DONE),
    (S.ACQUIRED, S.DONE): (S.KILL, S.DONE),
    (S.FAILED, S.DONE): (S.NEW, S.KILL, S.DONE),
    (S.KILLED, S.DONE): (S.NEW, S.KILL, S.DONE),
}
"""(state, how the later retry hands it over) -> the moves that this makes; what is not here is refused."""

REPUBLICATIONS: Mapping[PublicationState, tuple[PublicationState, PublicationState]] = {
    P.NOT_REQUIRED: (P.NOT_REQUIRED, P.NEW),
    P.NEW: (P.NOT_REQUIRED, P.NEW),
    P.RETRY: (P.NOT_REQUIRED, P.NEW),
    P.FAILED: (P.NOT_REQUIRED, P.NEW),
    # In a block that is still open; in any other way of being published it has to end first.
    P.ACQUIRED: (P.NOT_REQUIRED, P.NEW),
    # DBS knows a file by its LFN and cannot change its record: published again it would be refused, or twice.
    P.DONE: (P.DONE, P.DONE),
}
"""State of publication -> what it becomes, if the later retry (does not want, wants) the file published."""
