"""What the API answers, as a program wants it. Fields that a newer service adds are passed over."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter

from asyncstageout.core.states import FINAL_STATES

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Submitted:
    """What became of one request."""

    position: int
    """Place among those that were handed over, from 0."""
    outcome: Literal["created", "again", "exists", "refused"]
    """``again``: a later retry of its job sends it again. ``exists``: it was there already, and nothing
    changed; perhaps an earlier try did get through."""
    request_id: str | None = None
    """What the file is known by; None if that could not be read."""
    reason: str | None = None
    field: str | None = None
    """Of the request, if one is to blame."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened to a file."""

    at: datetime
    to_state: str
    from_state: str | None = None
    attempt: int = 0
    reason: str | None = None
    actor: str | None = None
    """Who did it: airflow, or an account."""
    step: str | None = None
    """What did it: a task of a DAG, or what somebody asked for."""


@dataclass(frozen=True, slots=True)
class File:
    """One file on its way, or at its end."""

    id: int
    request_id: str
    task: str
    username: str
    source: str
    destination: str
    source_lfn: str
    destination_lfn: str
    size_bytes: int
    state: str
    created_at: datetime
    adler32: str | None = None
    attempt: int = 0
    publication: str = "NOT_REQUIRED"
    failure_category: str | None = None
    failure_reason: str | None = None
    updated_at: datetime | None = None
    ended_at: datetime | None = None
    what_next: str | None = None
    """What happens next, or what somebody has to do; this and ``events`` only of a file asked for alone."""
    events: list[Event] = field(default_factory=list)
    """What happened to it, in order."""

    @property
    def is_final(self) -> bool:
        return self.state in FINAL_STATES


@dataclass(frozen=True, slots=True)
class Task:
    """Where the files of a task are."""

    task: str
    username: str
    states: dict[str, int]
    """State -> number of files; what is 0 may be absent."""
    size_bytes: int = 0
    publications: dict[str, int] = field(default_factory=dict)
    """State of publication -> number of files."""
    created_at: datetime | None = None
    oldest_waiting_at: datetime | None = None
    """When the oldest file that waits arrived."""

    @property
    def files(self) -> int:
        return sum(self.states.values())

    @property
    def open_files(self) -> int:
        """Files that have not ended: neither DONE, FAILED nor KILLED."""
        return sum(count for state, count in self.states.items() if state not in FINAL_STATES)


@dataclass(frozen=True, slots=True)
class FileOutcome:
    """What an action did with one file that was named."""

    id: int | str
    outcome: str
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Acted:
    """What a kill or a retry did, or would do."""

    sentence: str
    counts: dict[str, int]
    """Outcome (``killed``, ``being_killed``, ``too_late``, ``sent_again``, ``not_yours``, ...) -> files."""
    reasons: dict[str, int] = field(default_factory=dict)
    """Why files were refused -> how many."""
    files: list[FileOutcome] = field(default_factory=list)
    """Each file, where ids were given."""
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """Files, and where the next page begins."""

    transfers: list[File]
    next_cursor: str | None = None


@dataclass(frozen=True, slots=True)
class Publication:
    """How far the publication of a task is in DBS."""

    task: str
    username: str
    dbs: str
    with_parents: bool
    files: dict[str, int]
    """State of publication -> number of files."""
    blocks: dict[str, int]
    """State -> number of blocks."""
    input_dataset: str | None = None
    complete_at: datetime | None = None
    """Since when no more files come."""
    waiting_files: int = 0
    """Arrived, and in no block: most often without metadata."""
    failures: list[dict[str, Any]] = field(default_factory=list)
    """``reason`` and ``files``, the most frequent first."""
    waiting: list[dict[str, Any]] = field(default_factory=list)
    """``reason`` and ``blocks``: why DBS has not taken them."""


@dataclass(frozen=True, slots=True)
class Block:
    """Files that are published together."""

    id: int
    name: str
    dataset: str
    destination: str
    dbs: str
    state: str
    files: int
    lumis: int
    size_bytes: int
    opened_at: datetime
    due_at: datetime
    tries: int = 0
    closed_at: datetime | None = None
    close_reason: str | None = None
    reason: str | None = None
    """Why DBS has not taken it."""
    settled_at: datetime | None = None
    parents_unknown: int = 0
    split_from: str | None = None


@dataclass(frozen=True, slots=True)
class BlockPage:
    """Blocks, and where the next page begins."""

    blocks: list[Block]
    next_cursor: str | None = None


@dataclass(frozen=True, slots=True)
class PublishedAgain:
    """How many files whose publication failed go to DBS again, or would."""

    sentence: str
    files: int
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class MetadataAnswer:
    """What became of each record of metadata."""

    results: list[dict[str, Any]]


_READERS: dict[type, TypeAdapter[Any]] = {
    kind: TypeAdapter(kind)
    for kind in (Submitted, File, Page, Task, Acted, MetadataAnswer, Publication, BlockPage, PublishedAgain)
}


def read(kind: type[T], text: bytes) -> T:
    """Return what an answer in JSON says.

    Raises:
        ValueError: something is missing, or has another type.
    """
    result: T = _READERS[kind].validate_json(text)
    return result
