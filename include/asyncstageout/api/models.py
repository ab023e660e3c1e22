"""What clients send and get, as the OpenAPI document describes it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from asyncstageout.core.dbs import read_dataset
from asyncstageout.core.naming import request_id
from asyncstageout.core.requests import Lfn
from asyncstageout.core.selections import EndedSelection, RequestId, Selection, TaskName, UserName
from asyncstageout.core.states import BlockState, FileType, JobState, PublicationState, TransferState

Comment = Annotated[str, Field(max_length=500, pattern=r"^[^\x00]*$")]

# --- handing in ---


class SubmitResult(BaseModel):
    """What became of one request."""

    position: int = Field(description="Place among the requests sent, from 0.")
    request_id: str | None = Field(description="By this the file is known from now on.")
    outcome: Literal["created", "again", "exists", "refused"] = Field(
        description="again: a later retry of its job sends it again. exists: nothing changed."
    )
    reason: str | None = Field(None, description="Why it was refused, for people.")
    field: str | None = Field(None, description="The field at fault, where it is one.")


class SubmitAnswer(BaseModel):
    """What became of all requests."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "created": 1,
                    "again": 0,
                    "exists": 0,
                    "refused": 1,
                    "results": [
                        {"position": 0, "request_id": "5f0e…", "outcome": "created"},
                        {
                            "position": 1,
                            "request_id": None,
                            "outcome": "refused",
                            "reason": "Field required",
                            "field": "size_bytes",
                        },
                    ],
                }
            ]
        }
    )

    created: int
    again: int
    exists: int
    refused: int
    results: list[SubmitResult]


# --- files ---


class Transfer(BaseModel):
    """One file."""

    id: int
    request_id: str
    state: TransferState
    task: str
    username: str
    source: str
    destination: str
    source_lfn: str
    destination_lfn: str
    size_bytes: int
    adler32: str | None
    type: FileType
    activity: str
    priority: int
    job_id: str
    job_retry_count: int
    attempt: int = Field(description="Attempts that FTS has taken.")
    publication: PublicationState
    already_there: bool = Field(description="Its job wrote it straight to its destination.")
    failure_category: str | None = Field(description="Of the last attempt that failed.")
    failure_code: int | None = Field(description="CMS exit code, 60317 to 60328.")
    failure_reason: str | None
    fts_job_id: UUID | None
    fts_server: str | None
    due_at: datetime = Field(description="While it waits: when the next attempt may start.")
    created_at: datetime
    updated_at: datetime
    ended_at: datetime | None


class TransferPage(BaseModel):
    """Files, the newest first."""

    transfers: list[Transfer]
    next_cursor: str | None = Field(description="Null: this is the last page.")


class Event(BaseModel):
    """One thing that happened to a file."""

    at: datetime
    from_state: TransferState | None
    to_state: TransferState
    attempt: int
    reason: str | None
    fts_job_id: UUID | None
    actor: str = Field(description="Who did it: airflow, or an account.")
    step: str = Field(description="What did it: a task of a DAG, or what somebody asked for.")
    run_id: str | None = Field(description="Of the DAG.")


class SideEvent(BaseModel):
    """One thing that happened around a file, beside its moves."""

    at: datetime
    kind: Literal["publication", "cleaning", "delivery", "request"]
    from_state: str | None
    to_state: str
    subject: str | None = Field(description="Of a publication: the block.")
    reason: str | None
    actor: str = Field(description="Who did it: airflow, or an account.")
    step: str = Field(description="What did it: a task of a DAG, or what somebody asked for.")
    run_id: str | None = Field(description="Of the DAG.")


class FTSJob(BaseModel):
    """One FTS job that a file was in."""

    fts_job_id: UUID | None
    fts_server: str
    state: JobState
    fts_state: str | None = Field(description="What FTS last said.")
    planned_at: datetime
    submitted_at: datetime | None
    ended_at: datetime | None
    reason: str | None = Field(description="Why FTS refused it.")


class TransferDetail(Transfer):
    """One file with all that is known of it."""

    source_url: str | None
    destination_url: str | None
    what_next: str = Field(description="What happens next, or what somebody has to do.")
    failure_meaning: str | None = Field(description="What the failure means.")
    failure_remedy: str | None = Field(description="What helps.")
    waits_because: str | None = Field(description="Why no cycle takes it now; null: one does.")
    jobs: list[FTSJob] = Field(description="FTS jobs it was in, the oldest first.")
    events: list[Event] = Field(description="All that happened to it, the oldest first.")
    side_events: list[SideEvent] = Field(description="All that happened around it, the oldest first.")


# --- tasks ---


class TaskLine(BaseModel):
    """One task in a list."""

    task: str
    username: str
    created_at: datetime
    files: int
    states: dict[TransferState, int] = Field(description="Files by state.")


class TaskPage(BaseModel):
    """Tasks, the newest first."""

    tasks: list[TaskLine]
    next_cursor: str | None = Field(description="Null: this is the last page.")


class FailureGroup(BaseModel):
    """Files of a task whose last attempt failed alike."""

    state: TransferState = Field(description="FAILED: for good. RETRY: they go again.")
    category: str
    files: int
    example: str | None = Field(description="The reason of one of them.")


class TaskSummary(BaseModel):
    """What there is to say about a task."""

    task: str
    username: str
    vo_group: str
    vo_role: str
    created_at: datetime
    files: int
    size_bytes: int
    states: dict[TransferState, int] = Field(description="Files by state.")
    bytes_by_state: dict[TransferState, int]
    publication: dict[PublicationState, int] = Field(description="Files by state of publication.")
    is_final: bool = Field(description="Whether every file has ended.")
    oldest_waiting_at: datetime | None = Field(description="When the oldest file that waits arrived.")
    last_ended_at: datetime | None
    failures: list[FailureGroup] = Field(description="The most frequent first.")


# --- acting ---


class TaskAct(BaseModel):
    """What to do with a task's files."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    comment: Comment = Field("", description="Why; for the history of each file.")
    dry_run: bool = Field(False, description="Only say what would happen.")
    expected_files: int | None = Field(
        None,
        ge=0,
        le=1_000_000_000,
        description="How many files may be hit. More than 1,000 that are neither named, nor one task's, nor"
        " one's own are not touched without it (409 `needs-approval`, with their number).",
    )


class TaskRetry(TaskAct):
    killed_too: bool = Field(False, description="Also files that somebody killed.")


class KillRequest(Selection, TaskAct):
    """Which files to stop: those for which all that is given holds."""


class RetryRequest(EndedSelection, TaskRetry):
    """Which files to send again: those for which all that is given holds."""


class FileOutcome(BaseModel):
    """What became of one file that was named."""

    id: int | str
    outcome: str
    reason: str | None = Field(None, description="Why it was refused.")


class ActAnswer(BaseModel):
    """What became, or would become, of the files."""

    sentence: str
    dry_run: bool
    counts: dict[str, int] = Field(description="Files by outcome.")
    reasons: dict[str, int] = Field(description="Why files were refused, and how many.")
    files: list[FileOutcome] = Field(description="Each file, if they were named by id.")


# --- publication ---


def _dataset(name: str) -> str:
    return str(read_dataset(name)) if name else name


class PublicationWish(BaseModel):
    """How a task's files are to be published; what is missing stays as it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input_dataset: Annotated[str | None, AfterValidator(lambda name: name and _dataset(name))] = Field(
        None,
        description="What its jobs read; empty: nothing. DBS takes the kind and era of the data from it.",
    )
    dbs: str | None = Field(
        None, pattern="^dbs_[a-z0-9_]{1,50}$", description="Connection of the DBS instance, for new blocks."
    )
    with_parents: bool | None = Field(
        None, description="Whether files are published with their parents; input blocks are migrated first."
    )
    is_complete: bool | None = Field(
        None, description="No more files will come: blocks are closed as they are."
    )


class PublicationFailure(BaseModel):
    """Files of a task that are not published for the same reason."""

    reason: str | None
    files: int


class BlocksWaiting(BaseModel):
    """Blocks of a task that DBS has not taken for the same reason."""

    reason: str
    blocks: int


class TaskPublication(BaseModel):
    """How far the publication of a task is."""

    task: str
    username: str
    dbs: str
    input_dataset: str | None
    with_parents: bool
    complete_at: datetime | None = Field(description="Since when no more files come.")
    files: dict[PublicationState, int] = Field(description="Files by state of publication.")
    blocks: dict[BlockState, int] = Field(description="Blocks by state.")
    waiting_files: int = Field(description="Arrived, and in no block: most often without metadata.")
    failures: list[PublicationFailure] = Field(description="Of up to 1,000 files; the most frequent first.")
    waiting: list[BlocksWaiting] = Field(description="The most frequent first.")


class Block(BaseModel):
    """Files that are published together."""

    id: int
    name: str
    dataset: str
    destination: str
    dbs: str
    state: BlockState
    files: int
    lumis: int
    size_bytes: int
    opened_at: datetime
    closed_at: datetime | None
    close_reason: str | None
    due_at: datetime = Field(description="OPEN: when it is looked at; CLOSED: when DBS is told (again).")
    tries: int = Field(description="Refusals that blame it.")
    reason: str | None = Field(description="Why DBS has not taken it.")
    settled_at: datetime | None
    parents_unknown: int = Field(description="Parents that no DBS knows: they were left out.")
    split_from: str | None = Field(description="Name of the block whose files these were.")


class BlockPage(BaseModel):
    """Blocks, the newest first."""

    blocks: list[Block]
    next_cursor: str | None = Field(description="Null: this is the last page.")


class PublicationRetried(BaseModel):
    """What became, or would become, of the files whose publication failed."""

    sentence: str
    dry_run: bool
    files: int


# --- metadata ---


class FileMetadata(BaseModel):
    """What publication wants to know of one file."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "source_lfn": "/store/temp/user/alice.0a1b/mc/out_1.root",
                    "task": "261122_alice_task",
                    "username": "alice",
                    "body": {
                        "outdataset": "/Mc/alice-v1-0a1b2c3d/USER",
                        "swversion": "CMSSW_14_0_1",
                        "inevents": 100,
                        "runlumi": {"1": {"12": "100"}},
                        "adler32": "0a1b2c3d",
                        "parents": [],
                    },
                }
            ]
        },
    )

    request_id: RequestId | None = None
    source_lfn: Lfn | None = Field(None, description="Instead of the request_id.")
    task: TaskName
    username: UserName | None = Field(None, description="The owner; missing: who sends it.")
    body: dict[str, Any] = Field(description="At most 1 MiB as JSON.")

    @model_validator(mode="after")
    def _names_one_file(self) -> Self:
        if (self.request_id is None) == (self.source_lfn is None):
            raise ValueError("give either request_id or source_lfn")
        return self

    @property
    def key(self) -> str:
        return self.request_id or request_id(self.source_lfn or "")


class MetadataResult(BaseModel):
    """What became of one record."""

    position: int
    request_id: str
    outcome: Literal["stored", "replaced", "unchanged", "refused"]
    reason: str | None = Field(
        None, description="Why it was refused, or why nothing can be published with it."
    )


class MetadataAnswer(BaseModel):
    results: list[MetadataResult]


class KeptMetadata(BaseModel):
    """One record, as it is kept."""

    request_id: str
    task: str
    username: str
    body: dict[str, Any]
    received_at: datetime
    received_by: str


class MetadataPage(BaseModel):
    """Records in the order of their request ids."""

    file_metadata: list[KeptMetadata]
    next_cursor: str | None = Field(description="Null: this is the last page.")


# --- statistics ---


class Quantiles(BaseModel):
    """Seconds that half, 95 % and 99 % of the files did not exceed; at most 10 % off the true ones."""

    p50_s: float
    p95_s: float
    p99_s: float


class StatisticsRow(BaseModel):
    """What happened: of a link, site, user or task, or in a piece of time."""

    at: datetime | None = Field(
        None, description="Beginning of the piece of time, where `every_s` was asked."
    )
    source: str | None = None
    destination: str | None = None
    username: str | None = None
    task: str | None = None
    arrived: int
    arrived_bytes: int
    sent_again: int
    sent_again_bytes: int
    accepted: int = Field(description="Files that FTS accepted, once for each attempt.")
    accepted_bytes: int
    retried: int = Field(description="Attempts that failed, after which the file goes again.")
    retried_bytes: int
    done: int
    done_bytes: int
    failed: int = Field(description="Files that failed for good.")
    failed_bytes: int
    killed: int
    killed_bytes: int
    attempts_done: int
    attempts_failed: int
    efficiency: float | None = Field(description="Share of the attempts in FTS that went well.")
    failures: dict[str, int] = Field(description="Attempts that failed, by category.")
    around: dict[str, int] = Field(
        description="Publications, deletions and deliveries, by what came of them."
    )
    accepted_after: Quantiles | None = Field(None, description="From arrival to the first acceptance by FTS.")
    in_fts: Quantiles | None = Field(None, description="From acceptance to the end in FTS, if it went well.")
    settled_after: Quantiles | None = Field(None, description="From the end in FTS to DONE.")
    done_after: Quantiles | None = Field(None, description="From arrival to DONE.")


class Statistics(BaseModel):
    """What happened in a time."""

    start: datetime = Field(description="As asked, or before: hours (or pieces of time) count as a whole.")
    end: datetime
    counted_until: datetime | None = Field(
        description="Up to then roll-ups have it; after it what happened in the last minutes is counted live."
    )
    rows: list[StatisticsRow]
