"""One request to move one file: what a submitter must say, checked field by field.

The field set is CRAB's ``filetransfersdb`` record (see docs/glossary), with explicit names and units.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from asyncstageout.core.identities import SERVICE, Identity
from asyncstageout.core.lfn_policy import can_be_published, check_destination, check_source, final_lfn
from asyncstageout.core.naming import BadName, check_lfn, check_site, normal_adler32, request_id
from asyncstageout.core.states import FileType


def _absent(value: object) -> object:
    """CRAB sends ``0`` or an empty text for a checksum that it does not have."""
    return None if value in ("", "0", 0) else value


def _somebody(username: str) -> str:
    if username == SERVICE:
        raise BadName(f"{SERVICE!r} is this service itself, no user")
    return username


Lfn = Annotated[str, AfterValidator(check_lfn)]
SiteName = Annotated[str, Field(max_length=100), AfterValidator(check_site)]
Adler32 = Annotated[str, AfterValidator(normal_adler32)]
Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:/=\-]{0,100}$")]
Username = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.\-]{1,30}$"), AfterValidator(_somebody)]


class TransferRequest(BaseModel):
    """One output file that a job left at ``source`` and that belongs at ``destination``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:+\-]{1,255}$")]
    """CRAB task (workflow) that the file belongs to."""
    username: Username
    """CERN account of the owner."""
    vo: Word = ""
    """Empty: the installation's only one."""
    vo_group: Word = ""
    vo_role: Word = ""
    source: SiteName
    destination: SiteName
    source_lfn: Lfn
    destination_lfn: Annotated[Lfn, Field(validate_default=True)] = ""
    """Where it belongs; follows from a source below /store/temp/ if it is left out (core.lfn_policy)."""
    size_bytes: Annotated[int, Field(ge=0, lt=2**63, strict=True)]
    adler32: Annotated[Adler32 | None, BeforeValidator(_absent)] = None
    type: FileType = FileType.OUTPUT
    activity: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:/\- ]{1,255}$")] = "default"
    """FTS activity: the share of the VO that the transfer counts against."""
    priority: Annotated[int, Field(ge=1, le=5, strict=True)] = 3
    """1 (last) to 5 (first), as in FTS."""
    publish: bool = False
    """Whether the file is to be published in DBS once it arrived; a log never is."""
    already_there: bool = False
    """Its job wrote it straight to its destination: it is noted as DONE, and never moved or deleted."""
    job_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.\-]{0,20}$")] = ""
    job_retry_count: Annotated[int, Field(ge=0, le=32767)] = 0

    # The fields are checked in the order above; ``data`` holds those before that were right.

    @field_validator("source_lfn")
    @classmethod
    def _from_his_area(cls, lfn: str, info: ValidationInfo) -> str:
        return check_source(lfn, info.data["username"]) if "username" in info.data else lfn

    @field_validator("destination_lfn", mode="before")
    @classmethod
    def _where_it_belongs(cls, lfn: object, info: ValidationInfo) -> object:
        known = {"username", "source_lfn"} <= info.data.keys()
        return (
            final_lfn(info.data["source_lfn"], info.data["username"]) if lfn in (None, "") and known else lfn
        )

    @field_validator("destination_lfn")
    @classmethod
    def _to_his_area(cls, lfn: str, info: ValidationInfo) -> str:
        return check_destination(lfn, info.data["username"]) if "username" in info.data else lfn

    @field_validator("publish")
    @classmethod
    def _publishable(cls, publish: bool, info: ValidationInfo) -> bool:
        lfn = info.data.get("destination_lfn")
        if publish and info.data.get("type") is FileType.LOG:
            raise BadName("a log file is never published")
        if publish and lfn and not can_be_published(lfn):
            raise BadName(f"{lfn} cannot be published: it is in a site's own area")
        return publish

    @property
    def identity(self) -> Identity:
        """Whose file it is."""
        return Identity(self.username, self.vo, self.vo_group, self.vo_role)

    @property
    def request_id(self) -> str:
        return request_id(self.source_lfn)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why one request was not taken. The others of its batch go on."""

    position: int
    """Place in the batch, from 0."""
    source_lfn: str
    field: str
    reason: str

    def __str__(self) -> str:
        return f"request {self.position} ({self.source_lfn or 'no source_lfn'}): {self.field}: {self.reason}"


def read_requests(
    records: Iterable[Mapping[str, Any]],
) -> tuple[list[tuple[int, TransferRequest]], list[Refusal]]:
    """Check a batch; return the good ones with their places, and a refusal for each bad one."""
    return _read(records, TransferRequest.model_validate)


def read_json_requests(
    texts: Iterable[bytes],
) -> tuple[list[tuple[int, TransferRequest]], list[Refusal]]:
    """Check a batch of JSON texts, one object each, quicker than parsed: see :func:`read_requests`."""
    return _read(texts, TransferRequest.model_validate_json)


def _read(
    records: Iterable[Any], check: Callable[[Any], TransferRequest]
) -> tuple[list[tuple[int, TransferRequest]], list[Refusal]]:
    good: list[tuple[int, TransferRequest]] = []
    bad: list[Refusal] = []
    for position, record in enumerate(records):
        try:
            good.append((position, check(record)))
        except ValidationError as error:
            bad.append(_refusal(position, record, error))
    return good, bad


def _refusal(position: int, record: object, error: ValidationError) -> Refusal:
    first = error.errors(include_url=False)[0]
    return Refusal(
        position=position,
        source_lfn=_source_lfn(record),
        field=".".join(str(part) for part in first["loc"]) or "request",
        reason=first["msg"].removeprefix("Value error, "),
    )


def _source_lfn(record: object) -> str:
    if isinstance(record, bytes):
        try:
            record = json.loads(record)
        except (ValueError, RecursionError):
            return ""
    return str(record.get("source_lfn", "")) if isinstance(record, Mapping) else ""
