"""The words for where a file, a job and a publication are, and which moves between them are legal.

CRAB's words for a file's state (``filetransfersdb``), FTS's words for its jobs and files (FTS 3.13). The
catalogue applies :data:`TRANSITIONS` by compare-and-set: a move that is not in the table never happens.
"""

from __future__ import annotations

from enum import StrEnum


class TransferState(StrEnum):
    """Where one output file is. The values are CRAB's."""

    NEW = "NEW"
    """Arrived, waiting for a cycle."""
    ACQUIRED = "ACQUIRED"
    """In the exact file list of an FTS job that FTS has not yet confirmed."""
    SUBMITTED = "SUBMITTED"
    """Accepted by FTS."""
    RETRY = "RETRY"
    """Failed in a way that may pass; waiting until ``due_at`` for its next attempt."""
    DONE = "DONE"
    FAILED = "FAILED"
    """Failed for good; only an operator or a new request for the same file moves it on."""
    KILL = "KILL"
    """Someone asked for it to stop; FTS may still be copying."""
    KILLED = "KILLED"

    @property
    def is_final(self) -> bool:
        return self in FINAL_STATES


S = TransferState
FINAL_STATES = frozenset({S.DONE, S.FAILED, S.KILLED})
PENDING_STATES = frozenset({S.NEW, S.RETRY})
IN_FLIGHT_STATES = frozenset({S.ACQUIRED, S.SUBMITTED})

TRANSITIONS: dict[TransferState, frozenset[TransferState]] = {
    # FAILED straight from NEW and RETRY: a name that does not resolve never reaches a job.
    S.NEW: frozenset({S.ACQUIRED, S.FAILED, S.KILL}),
    S.RETRY: frozenset({S.ACQUIRED, S.FAILED, S.KILL}),
    # Back to NEW: the job was never accepted, through no fault of the file, so no attempt is used.
    # To itself: FTS refused the job because of one file, so its files go on in smaller jobs.
    S.ACQUIRED: frozenset({S.SUBMITTED, S.ACQUIRED, S.NEW, S.RETRY, S.FAILED, S.KILL}),
    S.SUBMITTED: frozenset({S.DONE, S.RETRY, S.FAILED, S.KILL}),
    # A kill may come too late: the file is DONE and the record says so.
    S.KILL: frozenset({S.KILLED, S.DONE, S.FAILED}),
    # Re-driven by an operator, or asked for again by a later job attempt.
    S.FAILED: frozenset({S.NEW}),
    S.KILLED: frozenset({S.NEW}),
    S.DONE: frozenset({S.NEW}),
}


def is_legal(from_state: TransferState | None, to_state: TransferState) -> bool:
    """Say whether the move may happen. ``None`` is the state before arrival.

    A file that was written straight to its destination arrives as DONE (direct stage-out).
    """
    if from_state is None:
        return to_state in (S.NEW, S.DONE)
    return to_state in TRANSITIONS[from_state]


class PublicationState(StrEnum):
    """Where a file's publication in DBS is. The values are CRAB's."""

    NOT_REQUIRED = "NOT_REQUIRED"
    NEW = "NEW"
    """To be published once it has arrived and its metadata are there."""
    ACQUIRED = "ACQUIRED"
    """In a block of ours, or with a publisher outside."""
    DONE = "DONE"
    FAILED = "FAILED"
    """Given up; only a person, or other metadata, move it on."""
    RETRY = "RETRY"
    """A publisher outside waits with it; ours lets the block wait."""


P = PublicationState
PUBLICATION_ARRIVALS = frozenset({P.NOT_REQUIRED, P.NEW})
PUBLICATION_TRANSITIONS: dict[PublicationState, frozenset[PublicationState]] = {
    P.NOT_REQUIRED: frozenset({P.NEW}),
    # DONE at once: a publisher outside says it of a file that he never acquired. FAILED: no usable metadata.
    P.NEW: frozenset({P.ACQUIRED, P.DONE, P.FAILED, P.NOT_REQUIRED}),
    # To itself: it goes on in another block. Back to NEW: its block is gone, or a job retry sends it again.
    P.ACQUIRED: frozenset({P.ACQUIRED, P.DONE, P.FAILED, P.RETRY, P.NEW, P.NOT_REQUIRED}),
    P.RETRY: frozenset({P.NEW, P.FAILED, P.NOT_REQUIRED}),
    P.FAILED: frozenset({P.NEW, P.NOT_REQUIRED}),
    # What is in DBS stays there; a later job retry brings the file anew.
    P.DONE: frozenset({P.NEW, P.NOT_REQUIRED}),
}


class BlockState(StrEnum):
    """Where a block of files is on its way to DBS."""

    OPEN = "OPEN"
    """Takes files."""
    CLOSED = "CLOSED"
    """Its list is final and written; DBS has not confirmed it. Telling DBS again is always safe."""
    PUBLISHED = "PUBLISHED"
    """DBS has it."""
    FAILED = "FAILED"
    """Given up, with all its files."""
    SPLIT = "SPLIT"
    """DBS never took it: its files went on in other blocks, were in DBS already, or failed."""


class FileType(StrEnum):
    OUTPUT = "output"
    LOG = "log"


class JobState(StrEnum):
    """Where one FTS job is, as the catalogue knows it."""

    PLANNED = "PLANNED"
    """Written with its exact file list; FTS has not confirmed it. Repeating its POST is always safe."""
    SUBMITTED = "SUBMITTED"
    """Accepted by FTS and watched."""
    ENDED = "ENDED"
    """Every file of it has an outcome."""
    REFUSED = "REFUSED"
    """FTS refused it; its files went on in other jobs, or failed."""


class FTSJobState(StrEnum):
    """Job states of FTS 3.13. A state that is not here is treated as still running."""

    STAGING = "STAGING"
    SUBMITTED = "SUBMITTED"
    READY = "READY"
    ACTIVE = "ACTIVE"
    ARCHIVING = "ARCHIVING"
    QOS_TRANSITION = "QOS_TRANSITION"
    QOS_REQUEST_SUBMITTED = "QOS_REQUEST_SUBMITTED"
    FINISHED = "FINISHED"
    FAILED = "FAILED"
    FINISHEDDIRTY = "FINISHEDDIRTY"
    CANCELED = "CANCELED"


FTS_JOB_FINAL = frozenset({"FINISHED", "FAILED", "FINISHEDDIRTY", "CANCELED"})
FTS_FILE_FINAL = frozenset({"FINISHED", "FAILED", "CANCELED"})
"""NOT_USED is neither final nor running in FTS; :mod:`asyncstageout.core.outcomes` decides on it."""
