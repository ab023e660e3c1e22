"""Jobs and files as FTS keeps them. Attributes have the names of the columns that its answers show."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any

from asyncstageout.core.states import FTS_FILE_FINAL, FTS_JOB_FINAL

FILE_ACTIVE = frozenset({"STAGING", "STARTED", "SUBMITTED", "READY", "ACTIVE", "ARCHIVING", "FORCE_START"})
"""What a cancel touches; NOT_USED and ON_HOLD files keep their state inside a cancelled job (FTS 3.13)."""
FILE_RUNNING = frozenset({"READY", "ACTIVE"})

JOB_FAILED_REASON = "One or more files failed. Please have a look at the details for more information"
CANCELED_REASON = "Job canceled by the user"
QUEUE_TIMEOUT_REASON = (
    "Job has been canceled because it stayed in the queue for too long (max-time-in-queue timeout)"
)
BANNED_REASON = "Storage banned"


def wire_time(now_s: float) -> str:
    """Return a time (seconds since the epoch) as FTS writes it: UTC, seconds, no zone."""
    return datetime.fromtimestamp(now_s, UTC).strftime("%Y-%m-%dT%H:%M:%S")


@dataclass(slots=True, eq=False)
class Job:
    """One submission."""

    job_id: str
    job_type: str
    """N plain, R replicas, H multihop, Y session reuse."""
    vo_name: str
    user_dn: str
    cred_id: str
    submit_host: str
    submit_time: str
    source_se: str | None
    dest_se: str | None
    job_state: str = "SUBMITTED"
    reason: str | None = None
    job_finished: str | None = None
    cancel_job: bool = False
    priority: int = 3
    retry: int = 0
    retry_delay: int = 0
    """Seconds; 0 is the server's default, 120."""
    max_time_in_queue: int | None = None
    """Seconds since the epoch."""
    verify_checksum: str = "n"
    overwrite_flag: str | None = None
    job_metadata: dict[str, Any] | None = None
    internal_job_params: str | None = None
    dst_file_report: bool = False
    bring_online: int = -1
    copy_pin_lifetime: int = -1
    archive_timeout: int = -1
    source_spacetoken: str | None = None
    destination_spacetoken: str | None = None
    target_qos: str | None = None
    os_project_id: str | None = None
    files: list[File] = field(default_factory=list)

    @property
    def is_final(self) -> bool:
        return self.job_state in FTS_JOB_FINAL


JOB_COLUMNS = tuple(f.name for f in fields(Job) if f.name != "files")


@dataclass(slots=True, eq=False)
class File:
    """One source and one destination of a job."""

    file_id: int
    file_index: int
    source_surl: str
    dest_surl: str
    source_se: str
    dest_se: str
    hashed_id: int
    checksum: str = "ADLER32"
    user_filesize: int = 0
    activity: str = "default"
    selection_strategy: str = "auto"
    scitag: int | None = None
    staging_metadata: dict[str, Any] | None = None
    archive_metadata: dict[str, Any] | None = None
    file_state: str = "SUBMITTED"
    reason: str | None = None
    filesize: int | None = None
    throughput: float | None = None
    """MiB/s."""
    retry: int = 0
    recoverable: bool | None = None
    start_time: str | None = None
    finish_time: str | None = None
    tx_duration: float | None = None
    staging_start: str | None = None
    staging_finished: str | None = None
    transfer_host: str | None = None
    log_file: str | None = None
    log_debug: int | None = None
    pid: int | None = None
    internal_file_params: str | None = None
    file_metadata: dict[str, Any] | None = None
    dest_surl_uuid: str | None = None
    retries: list[dict[str, Any]] = field(default_factory=list)
    interrupted: bool = False
    """The service died while this was being copied; its next try may replace what it left."""
    tries: int = 0
    """How often it was started; tells a late answer of an old try from the present one."""

    @property
    def is_final(self) -> bool:
        return self.file_state in FTS_FILE_FINAL

    @property
    def link(self) -> tuple[str, str]:
        return (self.source_se, self.dest_se)


_FIRST_LIVE = "file_state"
_FILE_ATTRIBUTES = tuple(f.name for f in fields(File))
FIXED_ATTRIBUTES = _FILE_ATTRIBUTES[: _FILE_ATTRIBUTES.index(_FIRST_LIVE)]
"""What a submission fixes for good."""
LIVE_ATTRIBUTES = _FILE_ATTRIBUTES[_FILE_ATTRIBUTES.index(_FIRST_LIVE) :]

_OF_JOB = frozenset({"job_id", "vo_name", "priority"})
_CONSTANT: dict[str, Any] = {
    "bringonline_token": None,
    "archive_start_time": None,
    "archive_finish_time": None,
    "staging_host": None,
    "src_token_id": None,
    "dst_token_id": None,
    "file_state_initial": "",
}
_OWN = frozenset(_FILE_ATTRIBUTES) - {"retries", "interrupted", "tries"}
FILE_COLUMNS = (*sorted(_OWN), *sorted(_OF_JOB), *_CONSTANT)
"""The 42 columns of a file, as ``/jobs/{id}/files`` shows them."""


def wire_job(job: Job, columns: Iterable[str] = JOB_COLUMNS) -> dict[str, Any]:
    """Return what FTS shows of a job; columns that it does not know are left out."""
    return {name: getattr(job, name) for name in columns if name in JOB_COLUMNS}


def wire_file(job: Job, file: File, columns: Iterable[str] = FILE_COLUMNS) -> dict[str, Any]:
    """Return what FTS shows of a file; columns that it does not know are left out."""
    shown: dict[str, Any] = {}
    for name in columns:
        if name in _OWN:
            shown[name] = getattr(file, name)
        elif name in _OF_JOB:
            shown[name] = getattr(job, name)
        elif name == "file_state_initial" and _came_with_tokens(job):
            shown[name] = "SUBMITTED"  # where it goes on after TOKEN_PREP
        elif name in _CONSTANT:
            shown[name] = _CONSTANT[name]
    return shown


def _came_with_tokens(job: Job) -> bool:
    return (job.job_metadata or {}).get("auth_method") == "oauth2"
