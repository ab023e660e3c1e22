"""What DBS wants to know of an output file, read from what its submitter says; and whether it fits the file.

The words are those in which CRAB's ``filemetadata`` gives a record (``DataFileMetadata.getFiles``), or takes
it (``RESTFileMetadata``). What CRAB fills in for want of a value (``null``, ``None``, ``asda``, ``0``) counts
as not said, and what its publisher puts there instead (``prepareDbsPublishingConfigs``) is put there.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from enum import Enum
from itertools import chain, repeat
from operator import itemgetter
from typing import Annotated, Any, NamedTuple

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
)

from asyncstageout.core.blocks import PublicationSettings
from asyncstageout.core.dbs import (
    BlockFile,
    Lumi,
    OutputConfig,
    file_problem,
    is_askable,
    payload_bytes,
    read_user_dataset,
)
from asyncstageout.core.lfn_policy import owner_of
from asyncstageout.core.naming import BadName, normal_adler32
from asyncstageout.core.states import FileType

DEFAULT_GLOBAL_TAG = "crab3_tag"
MAX_NUMBER = 2**32
"""Runs, lumi sections and their events are below."""
LUMI_BYTES = 64
"""What a lumi section takes in the body of a block, about."""

_ABSENT = frozenset({"", "None", "null"})
_MD5 = re.compile(r"[0-9a-fA-F]{32}")


class Unpublishable(ValueError):
    """A record of metadata with which nothing can be published; ``str()`` names the field and says why."""

    def __init__(self, field: str, reason: str) -> None:
        self.field, self.reason = field, reason
        super().__init__(f"{field}: {reason}")


# --- what a submitter says ---


def _absent(value: object) -> object:
    return None if isinstance(value, str) and value.strip() in _ABSENT else value


def _no_checksum(value: object) -> object:
    """CRAB sends ``0`` where the job reported none, ``abc`` for those of logs, and a cksum as a number."""
    value = str(value) if type(value) is int else _absent(value)
    return None if value in ("0", "abc") else value


def _no_md5(value: object) -> object:
    """CRAB sends ``asda``: its jobs make none."""
    return value if isinstance(value, str) and _MD5.fullmatch(value) else None


def _number(value: object, *what: object) -> int:
    number = int(value) if isinstance(value, str) and value.isdecimal() and len(value) <= 10 else value
    if type(number) is not int or not 0 <= number < MAX_NUMBER:
        words = " ".join(map(str, what))
        raise BadName(f"{words} {value!r} is no whole number from 0 to {MAX_NUMBER - 1:,}")
    return number


def _numbers(values: Collection[Any], *what: object) -> Iterable[int]:
    # Nearly always they are texts of digits, by the thousand.
    if all(type(value) is str for value in values) and "".join(values).isdecimal():
        numbers = list(map(int, values))
        if max(numbers) < MAX_NUMBER:
            return numbers
    return [_number(value, *what) for value in values]


def _lumis(value: object) -> tuple[Lumi, ...]:
    """Read runs with their lumi sections: each a list, or with the events of each section.

    >>> _lumis({"1": ["12"]}) == _lumis({"1": {"12": "None"}}) == _lumis({1: [12, 12]}) == (Lumi(1, 12),)
    True
    >>> _lumis({"1": {"12": "100"}})
    (Lumi(run=1, lumi=12, events=100),)
    """
    if not isinstance(value, Mapping):
        raise BadName("must be an object: {run: {lumi: events}} or {run: [lumi, ...]}")
    runs = [_of_run(_number(run, "run"), sections) for run, sections in value.items()]
    return tuple(sorted(chain.from_iterable(runs), key=itemgetter(0, 1)))


def _of_run(run: int, sections: object) -> Iterable[Lumi]:
    if isinstance(sections, (list, tuple)) and all(isinstance(one, (int, str)) for one in sections):
        sections = dict.fromkeys(sections)
    if not isinstance(sections, Mapping):
        raise BadName(f"run {run} must have an object or a list of lumi sections")
    # "None" is what CRAB makes of those that its older clients send without events.
    counts = [None if count == "None" else count for count in sections.values()]
    events = repeat(None) if None in counts else _numbers(counts, "events of run", run)
    return map(Lumi, repeat(run), _numbers(sections.keys(), "lumi section of run", run), events)


def _parents(value: object) -> tuple[str, ...]:
    """Leave out what no DBS can know, such as a PFN (CRABServer issue 6771)."""
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)):
        raise BadName("must be a list of LFNs")
    return tuple(sorted({name for name in value if isinstance(name, str) and is_askable(name)}))


def _says(*names: str, default: Any = ...) -> Any:
    return Field(default, validation_alias=AliasChoices(*names))


Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:\-]{1,100}$")]
OptionalWord = Annotated[Word | None, BeforeValidator(_absent)]
Adler32 = Annotated[str, AfterValidator(normal_adler32)]
Cksum = Annotated[str, Field(pattern=r"^[0-9A-Za-z\-]{1,64}$")]


class OutputFile(BaseModel):
    """One output file, as its submitter describes it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    filetype: Annotated[str, Field(pattern="^EDM$")] = _says("filetype", "outtype", default="EDM")
    dataset: Annotated[str, AfterValidator(lambda name: str(read_user_dataset(name)))] = _says(
        "outdataset", "outdatasetname"
    )
    release: Word = _says("swversion", "appver")
    era: OptionalWord = _says("acquisitionera", default=None)
    global_tag: OptionalWord = _says("globaltag", "globalTag", default=None)
    publishname: OptionalWord = _says("publishname", "publishdataname", default=None)
    events: Annotated[int, Field(ge=0)] = _says("inevents", "events")
    lumis: Annotated[tuple[Lumi, ...], PlainValidator(_lumis)] = _says("runlumi")
    parents: Annotated[tuple[str, ...], PlainValidator(_parents)] = _says(
        "parents", "inparentlfns", default=()
    )
    lfn: Annotated[str | None, BeforeValidator(_absent)] = None
    size_bytes: Annotated[int | None, Field(ge=0, lt=2**63)] = _says("filesize", "outsize", default=None)
    adler32: Annotated[Adler32 | None, BeforeValidator(_no_checksum)] = None
    cksum: Annotated[Cksum | None, BeforeValidator(_no_checksum)] = None
    md5: Annotated[str | None, BeforeValidator(_no_md5)] = None

    @property
    def pset_hash(self) -> str:
        """Hash of the job's configuration: the last part of the publication name."""
        return (self.publishname or self.dataset.split("/")[2]).rpartition("-")[2]

    def of(self, lfn: str, size_bytes: int, adler32: str, parents: Sequence[str]) -> BlockFile:
        """Return what DBS is told of this file, with these of its parents."""
        return BlockFile(
            lfn=lfn,
            size_bytes=size_bytes,
            adler32=adler32,
            events=self.events,
            config=OutputConfig(
                self.release, self.pset_hash, global_tag=self.global_tag or DEFAULT_GLOBAL_TAG
            ),
            lumis=self.lumis,
            parents=tuple(parents),
            cksum=self.cksum,
            md5=self.md5,
        )


def read_metadata(body: Mapping[str, Any]) -> OutputFile:
    """Read what a submitter says of a file.

    Raises:
        Unpublishable: the first field that is wrong.
    """
    try:
        return OutputFile.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "metadata"
        why = first["msg"].removeprefix("Value error, ")
        raise Unpublishable(field, "only EDM files are published" if field == "filetype" else why) from error


# --- what is kept beside it ---


class Facts(NamedTuple):
    """What blocks and checks need to know of a record."""

    dataset: str
    lfn: str | None
    size_bytes: int | None
    adler32: str | None
    lumis: int
    events: int
    payload_bytes: int


_PLACEHOLDER = ("/store/user/somebody/somewhere/file.root", 1, "0")


def facts_of(body: Mapping[str, Any]) -> Facts:
    """Return the facts of a record.

    Raises:
        Unpublishable: nothing can be published with it.
    """
    said = read_metadata(body)
    # What it does not say, the file says when it has arrived.
    lfn, size_bytes, adler32 = _PLACEHOLDER
    file = said.of(said.lfn or lfn, said.size_bytes or size_bytes, said.adler32 or adler32, said.parents)
    if problem := file_problem(file):
        raise Unpublishable("metadata", problem)
    bytes_without_lumis = payload_bytes(replace(file, lumis=()))
    return Facts(
        said.dataset, said.lfn, said.size_bytes, said.adler32, len(said.lumis), said.events,
        bytes_without_lumis + LUMI_BYTES * len(said.lumis),
    )  # fmt: skip


def facts_or_problem(body: Mapping[str, Any]) -> Facts | str:
    """Return the facts of a record, or why nothing can be published with it."""
    try:
        return facts_of(body)
    except Unpublishable as error:
        return str(error)


# --- what becomes of a file that has arrived ---


class Claim(Enum):
    """Whose publisher takes a file (``crab_record``; of others than CRAB's nobody is asked)."""

    OURS = "ours"
    OTHERS = "others"
    NOT_YET = "not yet"
    """CRAB's PostJob says when the file may be published."""


class ArrivedFile(NamedTuple):
    """A file at its destination that is to be published."""

    transfer_id: int
    username: str
    type: FileType
    lfn: str
    size_bytes: int
    """0: not known."""
    adler32: str | None
    ended_at: datetime
    claim: Claim = Claim.OURS


class Verdict(Enum):
    READY = "ready"
    WAIT = "wait"
    FAILED = "failed"
    NOT_WANTED = "not wanted"


class Judgement(NamedTuple):
    verdict: Verdict
    reason: str = ""
    due_at: datetime | None = None
    """WAIT: when to look again, if nothing happens before."""


LOOK_AGAIN = timedelta(days=1)


def judge(
    file: ArrivedFile, facts: Facts | str | None, now: datetime, settings: PublicationSettings
) -> Judgement:
    """Decide on a file that has arrived; the first row that holds counts.

    =====================================  ==========  ==================================================
    of the file                            verdict     reason
    =====================================  ==========  ==================================================
    it is a log                            not wanted  DBS knows data only
    it is an outside publisher's           wait        he may hand it over only with the file's next try
    CRAB has not said that it may          wait        its word wakes the file
    it has no metadata, and came lately    wait        they wake it
    it has no metadata                     failed      whoever owes them is gone
    its metadata cannot be published       failed      new ones wake it
    its metadata are those of other bytes  failed      DBS never changes what it has once
    =====================================  ==========  ==================================================

    Args:
        facts: of its metadata; a text: why nothing can be published with them; None: there are none.
    """
    if file.type is not FileType.OUTPUT:
        return Judgement(Verdict.NOT_WANTED, "only output files are published")
    if file.claim is not Claim.OURS:
        return Judgement(Verdict.WAIT, due_at=now + LOOK_AGAIN)
    if facts is None:
        gives_up_at = file.ended_at + timedelta(seconds=settings.metadata_wait_s)
        if now < gives_up_at:
            return Judgement(Verdict.WAIT, due_at=gives_up_at)
        return Judgement(Verdict.FAILED, "nobody said what is in it (PUT /file-metadata)")
    problem = facts if isinstance(facts, str) else misfit(file, facts)
    return Judgement(Verdict.FAILED, f"metadata: {problem}") if problem else Judgement(Verdict.READY)


def misfit(file: ArrivedFile, facts: Facts) -> str | None:
    """Say why the metadata cannot be those of the file, or may not be used for it; None if they fit.

    A job's retry writes the same LFN: with the metadata of the other try, DBS would describe bytes that are
    not there.
    """
    owners = tuple(f"{name}-" for name in (file.username, owner_of(file.lfn)) if name)
    problems = (
        (
            facts.lfn not in (None, file.lfn),
            f"lfn: they are of {facts.lfn}, the file is {file.lfn}",
        ),
        (
            _differ(facts.size_bytes, file.size_bytes),
            f"filesize: they say {facts.size_bytes}, the file has {file.size_bytes}",
        ),
        (not (facts.size_bytes or file.size_bytes), "filesize: nobody knows how large the file is"),
        (
            _differ(facts.adler32, file.adler32),
            f"adler32: they say {facts.adler32}, the file has {file.adler32}",
        ),
        (not (facts.adler32 or file.adler32), "adler32: DBS wants one, and the file has none either"),
        (
            not read_user_dataset(facts.dataset).processed.startswith(owners),
            f"outdataset: {facts.dataset} is not his: its second part must begin with {file.username}-",
        ),
    )
    return next((problem for is_so, problem in problems if is_so), None)


def _differ(said: object, known: object) -> bool:
    return bool(said and known) and said != known
