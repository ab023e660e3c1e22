"""What DBS answers, as plain data: rows of its readers, migrations, and the words of its errors.

Shapes are those of dbs2go (``static/sql``, ``dbs/migrate.go``, ``dbs/errors.go``, ``web/handlers.go``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

JSON: TypeAlias = Any
"""Whatever ``json.loads`` gives."""

UNREADABLE: Final = (KeyError, TypeError, ValueError, AttributeError)
"""What the parsers here raise for an answer that is not in the contract."""


# --- readers ---


@dataclass(frozen=True, slots=True)
class DBSFile:
    lfn: str
    block_name: str
    dataset: str
    size_bytes: int
    adler32: str | None
    """8 hexadecimal digits; None when its publisher knew none."""
    is_valid: bool


@dataclass(frozen=True, slots=True)
class DBSBlock:
    """A block, which DBS has with all its files or not at all."""

    name: str
    dataset: str
    origin_site: str
    file_count: int
    size_bytes: int
    is_open: bool


@dataclass(frozen=True, slots=True)
class DBSDataset:
    """``access_type``: VALID, PRODUCTION, INVALID, DEPRECATED, DELETED; blocks of valid ones can migrate."""

    name: str
    primary_dataset_type: str
    access_type: str
    acquisition_era: str | None
    physics_group: str | None


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What a DBS says of itself."""

    version: str
    server: str


def parse_file(row: Mapping[str, JSON]) -> DBSFile:
    """Read one row of ``/files`` or ``/fileArray`` with ``detail``.

    Raises:
        KeyError, TypeError, ValueError: not a file (:data:`UNREADABLE`).
    """
    adler32 = str(row.get("adler32") or "").lower()
    return DBSFile(
        lfn=_text(row["logical_file_name"]),
        block_name=_text(row["block_name"]),
        dataset=_text(row["dataset"]),
        size_bytes=int(row["file_size"]),
        adler32=adler32.zfill(8) if re.fullmatch(r"[0-9a-f]{1,8}", adler32) else None,
        is_valid=int(row["is_file_valid"]) == 1,
    )


def parse_block(row: Mapping[str, JSON]) -> DBSBlock:
    """Read one row of ``/blocks`` with ``detail``."""
    return DBSBlock(
        name=_text(row["block_name"]),
        dataset=_text(row["dataset"]),
        origin_site=str(row.get("origin_site_name") or ""),
        file_count=int(row.get("file_count") or 0),
        size_bytes=int(row.get("block_size") or 0),
        is_open=bool(row.get("open_for_writing")),
    )


def parse_dataset(row: Mapping[str, JSON]) -> DBSDataset:
    """Read one row of ``/datasets`` with ``detail``."""
    return DBSDataset(
        name=_text(row["dataset"]),
        primary_dataset_type=_text(row["primary_ds_type"]),
        access_type=_text(row["dataset_access_type"]),
        acquisition_era=row.get("acquisition_era_name"),
        physics_group=row.get("physics_group_name"),
    )


def parse_server_info(rows: JSON) -> ServerInfo:
    """Read ``/serverinfo``."""
    [row] = rows
    return ServerInfo(version=_text(row["dbs_version"]), server=str(row.get("server") or ""))


# --- migrations ---

PENDING, IN_PROGRESS, COMPLETED, FAILED, EXISTS, QUEUED, TERMINATED = 0, 1, 2, 3, 4, 5, 9

MIGRATION_STATES: Final = {
    QUEUED: "queued: DBS looks up which ancestors must come first",
    PENDING: "pending",
    IN_PROGRESS: "in progress",
    COMPLETED: "completed",
    FAILED: "failed; DBS tries it again by itself",
    EXISTS: "nothing to do: the block was there",
    TERMINATED: "failed for good, or was cancelled",
}


@dataclass(frozen=True, slots=True)
class Migration:
    """A request to copy a block, and the blocks of its ancestors, from another DBS.

    ``state`` stays a number: a newer DBS may have one that this version does not know; it is then neither
    there nor failed.
    """

    request_id: int
    block_name: str
    source_url: str
    state: int
    retries: int = 0

    @property
    def is_at_destination(self) -> bool:
        return self.state in (COMPLETED, EXISTS)

    @property
    def has_failed(self) -> bool:
        """DBS has given up. It takes no second request for this block before the first is removed."""
        return self.state == TERMINATED

    @property
    def meaning(self) -> str:
        return MIGRATION_STATES.get(self.state, f"state {self.state}, which is new to us")


def parse_migration(row: Mapping[str, JSON]) -> Migration:
    """Read one row of ``/status``, or the ``migration_details`` of an answer to ``/submit``."""
    return Migration(
        request_id=int(row["migration_request_id"]),
        block_name=_text(row["migration_input"]),
        source_url=_text(row["migration_url"]),
        state=int(row["migration_status"]),
        retries=int(row.get("retry_count") or 0),
    )


# --- errors ---

_HASH = re.compile(r"^[0-9a-f]{32,64}[ ,]*")
"""Of the request, by which DBS's operators find it in their logs."""


@dataclass(frozen=True, slots=True)
class Said:
    """What DBS says of a request that failed.

    Errors nest: ``reason`` may hold the whole text of an inner one, which is where the cause is.
    """

    code: int
    function: str
    message: str
    reason: str

    @property
    def text(self) -> str:
        """The message and the innermost reason, without the frames between them."""
        message = _HASH.sub("", self.message)
        outer = message.partition(", error DBSError")[0]
        inner = self.reason.rpartition(" Error: ")[2] if "DBSError" in self.reason else self.reason
        parts = [part for part in (outer, inner) if part and part != "nil"]
        return ": ".join(dict.fromkeys(parts)) or f"error {self.code} in {self.function}"


def parse_error(body: JSON) -> Said | None:
    """Read the body of a refusal: a list with one error (dbs2go), or that one alone; None: not DBS's word."""
    row = body[0] if isinstance(body, list) and body else body
    if not isinstance(row, dict) or "error" not in row:
        return None
    error = row["error"]
    if not isinstance(error, dict):
        # Of its middleware, which has no code.
        return Said(0, "", str(error), "")
    code = error.get("code")
    return Said(
        code=code if isinstance(code, int) else 0,
        function=str(error.get("function") or ""),
        message=str(error.get("message") or ""),
        reason=str(error.get("reason") or ""),
    )


def _text(value: JSON) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is no text")
    return value
