"""What FTS is asked and what it answers, as plain data: the FTS 3.13 contract without its transport.

States stay ``str``: a newer FTS may say a word that this version does not know, which must not stop the rest.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal, TypeAlias, TypeVar
from urllib.parse import urlsplit
from uuid import UUID, uuid5

from asyncstageout.core.fts_ids import BASE_ID

T = TypeVar("T")

JSON: TypeAlias = Any
"""Whatever ``json.loads`` gives."""

FILE_FIELDS: Final = (
    "file_id,file_state,reason,recoverable,file_metadata,source_surl,dest_surl,start_time,finish_time,"
    "filesize,throughput,retry,transfer_host"
)
"""Columns asked for in ``?files=``: what :class:`FTSFileStatus` holds, but for the log's long path."""

MAX_URL_CHARS: Final = 1100
"""A longer URL does not fit FTS's column, and the answer is a 500 that never goes away."""
MAX_JOB_METADATA_BYTES: Final = 2048
ADDED_BY_FTS: Final = {"auth_method": "certificate"}
"""FTS puts this into the job's metadata before it measures them."""
ADLER32: Final = re.compile(r"[0-9A-Fa-f]{1,8}")
SCITAGS: Final = range(65, 65536)
"""Experiment and activity of a flow, as network monitoring reads them (scitags.org); FTS refuses others."""
SCHEMES_REFUSED: Final = frozenset({"", "file"})

UNREADABLE: Final = (KeyError, TypeError, ValueError, AttributeError)
"""What the parsers here raise for an answer that is not in the contract."""


class NotSubmittable(ValueError):
    """FTS would refuse this submission, or do something else than what is meant.

    Attributes:
        transfer_id: the one file that is to blame; ``None`` when it is the job.
    """

    def __init__(self, why: str, transfer_id: int | None = None) -> None:
        super().__init__(why, transfer_id)
        self.why = why
        self.transfer_id = transfer_id

    def __str__(self) -> str:
        return self.why if self.transfer_id is None else f"transfer {self.transfer_id}: {self.why}"


# --- what FTS answers ---


@dataclass(frozen=True, slots=True)
class FTSFileStatus:
    """Where one file of a job is. ``transfer_id`` and ``attempt`` are ours, sent as ``file_metadata``."""

    file_id: int | None
    state: str
    reason: str = ""
    recoverable: bool | None = None
    transfer_id: int | None = None
    attempt: int | None = None
    source_url: str = ""
    dest_url: str = ""
    started_at: datetime | None = None
    finished_at: datetime | None = None
    size_bytes: int | None = None
    """As the source reported it to FTS."""
    throughput_mib_s: float | None = None
    retries: int = 0
    """How often FTS itself has tried again."""
    host: str | None = None
    """The FTS machine that copies."""
    log_file: str | None = None
    """On ``host``; only in the answers that hold every column."""
    dst_size_bytes: int | None = None
    """Of the file that was there already (``dst_file_report``)."""
    dst_adler32: str | None = None


@dataclass(frozen=True, slots=True)
class FTSJobStatus:
    job_id: UUID
    state: str
    reason: str | None
    submitted_at: datetime | None
    finished_at: datetime | None
    files: tuple[FTSFileStatus, ...] = ()
    metadata: Mapping[str, JSON] = field(default_factory=dict)
    """What the submitter said about the job; empty if it said something else than a mapping."""


@dataclass(frozen=True, slots=True)
class JobMissing:
    """FTS does not know this job (any more: it archives jobs 7 days after their end)."""

    job_id: UUID


@dataclass(frozen=True, slots=True)
class JobForbidden:
    """The job exists and belongs to others."""

    job_id: UUID
    message: str


JobAnswer: TypeAlias = FTSJobStatus | JobMissing | JobForbidden


@dataclass(frozen=True, slots=True)
class FTSRetry:
    """One earlier try of a file, by FTS itself."""

    attempt: int
    reason: str
    tried_at: datetime | None
    host: str | None
    log_file: str | None


@dataclass(frozen=True, slots=True)
class BannedStorage:
    """A storage that FTS refuses. ``status`` is CANCEL, WAIT or WAIT_AS (submission allowed)."""

    storage: str
    status: str
    message: str


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom FTS takes us for."""

    user_dn: str
    vos: tuple[str, ...]
    delegation_id: str | None
    method: str
    """``certificate``, ``oauth2`` or ``unauthenticated``."""
    is_root: bool = False

    @property
    def is_anonymous(self) -> bool:
        """An expired or unknown token is not refused: FTS just sees nobody."""
        return self.method == "unauthenticated" or not self.vos


@dataclass(frozen=True, slots=True)
class ServerVersion:
    api: str
    schema: str
    core: str | None


def utc(text: str | None) -> datetime | None:
    """Read a time of FTS: UTC without saying so, and to the second.

    >>> utc("2026-11-22T08:37:20")
    datetime.datetime(2026, 11, 22, 8, 37, 20, tzinfo=datetime.timezone.utc)
    """
    return datetime.fromisoformat(text).replace(tzinfo=UTC) if text else None


def parse_file(row: Mapping[str, JSON]) -> FTSFileStatus:
    """Read one element of ``files``; columns that were not asked for may be missing.

    Raises:
        KeyError, TypeError, ValueError: not a file (:data:`UNREADABLE`).
    """
    get = row.get
    ours = _dict(get("file_metadata"))
    dst_size_bytes, dst_adler32 = _found_there(_dict(ours.get("dst_file")))
    return FTSFileStatus(
        file_id=get("file_id"),
        state=_word(row["file_state"]),
        reason=get("reason") or "",
        recoverable=get("recoverable"),
        transfer_id=_int_or_none(ours.get("id")),
        attempt=_int_or_none(ours.get("attempt")),
        source_url=get("source_surl") or "",
        dest_url=get("dest_surl") or "",
        started_at=utc(get("start_time")),
        finished_at=utc(get("finish_time")),
        size_bytes=get("filesize"),
        throughput_mib_s=get("throughput"),
        retries=get("retry") or 0,
        host=get("transfer_host"),
        log_file=get("log_file"),
        dst_size_bytes=dst_size_bytes,
        dst_adler32=dst_adler32,
    )


def _dict(value: object) -> Mapping[str, JSON]:
    return value if isinstance(value, dict) else {}


def _found_there(report: Mapping[str, JSON]) -> tuple[int | None, str | None]:
    """Return size and Adler-32 of what FTS found at the destination; None for what it does not say."""
    value = str(report.get("checksum_value") or "")
    if str(report.get("checksum_type")).upper() != "ADLER32" or not ADLER32.fullmatch(value):
        value = ""
    return _int_or_none(report.get("file_size")), value.lower().zfill(8) if value else None


def parse_job(row: JSON) -> JobAnswer:
    """Read one job, or what FTS says in the place of one.

    An element that FTS cannot show has only ``http_status``; one that it left alone (``304``) is still the
    whole job.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: neither (:data:`UNREADABLE`).
    """
    job_id = UUID(row["job_id"])
    if "job_state" not in row:
        return _instead_of_job(job_id, row)
    return FTSJobStatus(
        job_id=job_id,
        state=_word(row["job_state"]),
        reason=row.get("reason"),
        submitted_at=utc(row.get("submit_time")),
        finished_at=utc(row.get("job_finished")),
        files=tuple([parse_file(file) for file in row.get("files") or ()]),
        metadata=_mapping(row.get("job_metadata")),
    )


def _instead_of_job(job_id: UUID, row: Mapping[str, JSON]) -> JobMissing | JobForbidden:
    status = str(row["http_status"])
    if status.startswith("404"):
        return JobMissing(job_id)
    if status.startswith("403"):
        return JobForbidden(job_id, str(row.get("http_message", "")))
    raise ValueError(f"job {job_id} came with {status!r} and no state")


def parse_retry(row: Mapping[str, JSON]) -> FTSRetry:
    return FTSRetry(
        attempt=int(row["attempt"]),
        reason=row.get("reason") or "",
        tried_at=utc(row.get("datetime")),
        host=row.get("transfer_host"),
        log_file=row.get("log_file"),
    )


def parse_banned(row: Mapping[str, JSON]) -> BannedStorage:
    return BannedStorage(storage=row["se"], status=row["status"], message=row.get("message") or "")


def parse_identity(row: Mapping[str, JSON]) -> Identity:
    return Identity(
        user_dn=row["user_dn"],
        vos=tuple(row["vos"]),
        delegation_id=row["delegation_id"],
        method=row["method"],
        is_root=row.get("is_root", False),
    )


def parse_version(row: Mapping[str, JSON]) -> ServerVersion:
    api, schema = (
        ".".join(str(row[part][step]) for step in ("major", "minor", "patch")) for part in ("api", "schema")
    )
    return ServerVersion(api=api, schema=schema, core=_version_or_none(row.get("core")))


def _version_or_none(core: JSON) -> str | None:
    if isinstance(core, dict):
        return ".".join(str(core.get(step, "?")) for step in ("major", "minor", "patch"))
    return str(core) if core else None


def _word(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no state")
    return value


def _mapping(value: object) -> Mapping[str, JSON]:
    return value if isinstance(value, dict) else {}


def _int_or_none(value: object) -> int | None:
    """Metadata are whatever the submitter sent: only a number can be one of ours."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


# --- what FTS is asked ---


@dataclass(frozen=True, slots=True)
class TransferFile:
    """One file to copy.

    Attributes:
        adler32: hexadecimal; leading zeros may be missing.
        source_token: with which FTS reads the source; a file has both tokens or none.
        destination_token: with which FTS writes, and looks at what it wrote.
        scitag: one of :data:`SCITAGS`.
    """

    transfer_id: int
    attempt: int
    source_url: str
    dest_url: str
    size_bytes: int
    adler32: str | None = None
    activity: str = "default"
    source_token: str | None = field(default=None, repr=False)
    destination_token: str | None = field(default=None, repr=False)
    scitag: int | None = None


@dataclass(frozen=True, slots=True)
class JobParams:
    """How FTS shall copy. ``None`` leaves a choice to the FTS server.

    Attributes:
        retry: how often FTS itself tries again: negative never, 0 as its server is configured.
        max_time_in_queue: hours, or a text such as ``"10h"``, ``"30m"``, ``"6d"``.
        timeout_s: of one copy; FTS's own is 600 s and 2 s more per MiB.
        reuse: one connection for all files, which must share one link.
        dst_file_report: where a file is in the way, say its size and checksum.
        job_metadata: shown by FTS's own monitoring; at most 2 kB.
        source_spacetoken: SRM space to read from.
        destination_spacetoken: SRM space to write to.
        unmanaged_tokens: FTS shall use the tokens as they are, and neither exchange nor refresh them (3.14).
    """

    verify_checksum: Literal["both", "source", "target", "none"] = "both"
    overwrite: bool = False
    retry: int = -1
    retry_delay_s: int | None = None
    priority: int = 3
    max_time_in_queue: str | int | None = None
    timeout_s: int | None = None
    reuse: bool = False
    bring_online_s: int | None = None
    archive_timeout_s: int | None = None
    dst_file_report: bool = False
    job_metadata: Mapping[str, JSON] = field(default_factory=dict)
    source_spacetoken: str | None = None
    destination_spacetoken: str | None = None
    unmanaged_tokens: bool = False


@dataclass(frozen=True, slots=True)
class JobSubmission:
    """An exact file list under one ``sid``, never used for another list: the job's id hangs on it."""

    sid: str
    files: tuple[TransferFile, ...]
    params: JobParams = field(default_factory=JobParams)


def submission_body(submission: JobSubmission) -> dict[str, JSON]:
    """Return the JSON of ``POST /jobs``.

    Raises:
        NotSubmittable: what FTS refuses with an answer that does not say which file, answers with a 500 for
            ever, or accepts and should not (two files for one destination).
    """
    _check_job(submission)
    return {
        "files": [_file_body(file) for file in submission.files],
        "params": _params_body(submission.params) | {"id_generator": "deterministic", "sid": submission.sid},
    }


def _file_body(file: TransferFile) -> dict[str, JSON]:
    for url in (file.source_url, file.dest_url):
        _check_url(url, file.transfer_id)
    body: dict[str, JSON] = {
        "sources": [file.source_url],
        "destinations": [file.dest_url],
        "filesize": file.size_bytes,
        "activity": file.activity,
        "metadata": {"id": file.transfer_id, "attempt": file.attempt},
    }
    if file.adler32:
        body["checksum"] = f"ADLER32:{adler32_text(file.adler32, file.transfer_id)}"
    if file.scitag is not None:
        body["scitag"] = _scitag(file)
    return body | _tokens_body(file)


def _tokens_body(file: TransferFile) -> dict[str, JSON]:
    if file.source_token and file.destination_token:
        return {"source_tokens": [file.source_token], "destination_tokens": [file.destination_token]}
    if file.source_token or file.destination_token:
        raise NotSubmittable("only one of its two tokens is there", file.transfer_id)
    return {}


def _scitag(file: TransferFile) -> int | None:
    if file.scitag not in SCITAGS:
        why = f"scitag {file.scitag} is not between {SCITAGS.start} and {SCITAGS.stop - 1}"
        raise NotSubmittable(why, file.transfer_id)
    return file.scitag


def _params_body(params: JobParams) -> dict[str, JSON]:
    body = {
        "verify_checksum": params.verify_checksum,
        "overwrite": params.overwrite,
        "retry": params.retry,
        "retry_delay": params.retry_delay_s,
        "priority": params.priority,
        "max_time_in_queue": params.max_time_in_queue,
        "timeout": params.timeout_s,
        "reuse": params.reuse or None,
        "bring_online": params.bring_online_s,
        "archive_timeout": params.archive_timeout_s,
        "dst_file_report": params.dst_file_report or None,
        "job_metadata": dict(params.job_metadata) or None,
        "source_spacetoken": params.source_spacetoken or None,
        "destination_spacetoken": params.destination_spacetoken or None,
        "unmanaged_tokens": params.unmanaged_tokens or None,
    }
    return {name: value for name, value in body.items() if value is not None}


def _check_job(submission: JobSubmission) -> None:
    if not submission.sid or not submission.files:
        raise NotSubmittable("a job needs a sid and at least one file")
    if not 1 <= submission.params.priority <= 5:
        raise NotSubmittable(f"priority {submission.params.priority} is not between 1 and 5")
    metadata = json.dumps({**submission.params.job_metadata, **ADDED_BY_FTS})
    if len(metadata) > MAX_JOB_METADATA_BYTES:
        raise NotSubmittable(f"job metadata have {len(metadata)} bytes, FTS takes {MAX_JOB_METADATA_BYTES}")
    seen: set[str] = set()
    for file in submission.files:
        if file.dest_url in seen:
            raise NotSubmittable(f"{file.dest_url} is written by two files of this job", file.transfer_id)
        seen.add(file.dest_url)


# What nearly all look like; the rest is taken apart.
_PLAIN_URL = re.compile(r"(?:davs|https|root)://[a-zA-Z0-9][a-zA-Z0-9._\-]*(?::[0-9]{1,5})?/[^/?#]")


def _check_url(url: str, transfer_id: int) -> None:
    if _PLAIN_URL.match(url) and len(url) <= MAX_URL_CHARS:
        return
    parts = urlsplit(url)
    if parts.scheme in SCHEMES_REFUSED or not parts.hostname or parts.path in ("", "/"):
        raise NotSubmittable(f"{url[:200]!r} is not scheme://host/path of a remote file", transfer_id)
    if len(url) > MAX_URL_CHARS:
        raise NotSubmittable(f"a URL of {len(url)} characters; FTS keeps {MAX_URL_CHARS}", transfer_id)


_ADLER32 = re.compile("[0-9a-f]{8}")


def adler32_text(value: str, transfer_id: int | None = None) -> str:
    """Return the checksum as FTS and storages compare it, as text: 8 lower-case digits.

    >>> adler32_text("1A2b3C")
    '001a2b3c'
    """
    text = value.strip().lower().zfill(8)
    if not _ADLER32.fullmatch(text):
        raise NotSubmittable(f"{value!r} is not an Adler-32 checksum", transfer_id)
    return text


def destination_hash(dest_url: str) -> UUID:
    """Return the key that FTS holds unique per active destination (only where ``CheckDuplicates`` is on).

    A refusal names this key and not the URL, so this finds the file to blame.
    """
    return uuid5(BASE_ID, dest_url)


# --- how much is asked at once ---


def chunks(
    items: Sequence[T], *, max_items: int, max_weight: int, weight: Callable[[T], int]
) -> Iterator[list[T]]:
    """Cut a list, in order, into pieces of at most so many items and so much weight.

    An item heavier than ``max_weight`` goes alone: it cannot be cut here.
    """
    chunk: list[T] = []
    total = 0
    for item in items:
        heavy = weight(item)
        if chunk and (len(chunk) == max_items or total + heavy > max_weight):
            yield chunk
            chunk, total = [], 0
        chunk.append(item)
        total += heavy
    if chunk:
        yield chunk
