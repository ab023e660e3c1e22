"""What DBS is told of a block of files, as plain data: the body of ``POST /bulkblocks`` without transport.

Names and shapes are those of dbs2go, CMS's server (``dbs/bulkblocks.go``, ``static/lexicon_writer.json``).
A file that breaks them is refused here, by name: of a whole block that holds it, DBS says no more than
"concurrency error".
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias
from uuid import UUID

JSON: TypeAlias = Any
"""Whatever ``json.loads`` gives."""

MAX_LFN_CHARS: Final = 500
MAX_DATASET_CHARS: Final = 301
MAX_EVENTS: Final = 2**63 - 1

NO_CHECKSUM: Final = "NOTSET"
"""DBS wants a ``check_sum`` of every file; where there is none, CMS's own publishers say so."""
USER_TIER: Final = "USER"
FILE_TYPE: Final = "EDM"
COLUMN_CHARS: Final = {
    "release": 100,
    "pset_hash": 128,
    "app": 100,
    "label": 100,
    "global_tag": 255,
    "primary_dataset_type": 100,
    "acquisition_era": 120,
    "physics_group": 100,
    "origin_site": 100,
}
"""What DBS's schema has room for; nothing of it may be empty."""

LFN_FORM: Final = "/store/user|group/<name>/<two folders or more>/<file>.root of letters, digits, - and _"
_USER_LFN = re.compile(
    r"/store/(?:temp/)*(?:user|group)/(?:[a-zA-Z0-9.]+|[a-zA-Z0-9_-]+)/[a-zA-Z][a-zA-Z0-9_-]*"
    r"(?:/[a-zA-Z0-9_-]+){2,}\.root\Z"
)
_PRIMARY = re.compile(r"[a-zA-Z][a-zA-Z0-9_-]{0,98}\Z")
_PROCESSED = re.compile(r"[a-zA-Z][a-zA-Z0-9._-]{0,198}\Z")
_TIER = re.compile(r"[A-Z-]{3,50}\Z")
_ADLER32 = re.compile(r"[0-9a-fA-F]{1,8}\Z")
_BLOCK_KEY = re.compile(r"[a-fA-F0-9-]{1,99}\Z")
_ASKABLE = re.compile(r"/[^\s\[\]*%']+\Z")


class BadDataset(ValueError):
    """A name of a dataset or block that DBS would not take; ``str()`` of it says which rule it breaks."""


class NotPublishable(ValueError):
    """DBS would refuse this block.

    Attributes:
        lfn: the one file that is to blame; ``None`` when it is the block.
    """

    def __init__(self, why: str, lfn: str | None = None) -> None:
        super().__init__(why, lfn)
        self.why = why
        self.lfn = lfn

    def __str__(self) -> str:
        return self.why if self.lfn is None else f"{self.lfn}: {self.why}"


# --- names ---


class DatasetName(NamedTuple):
    """``/<primary>/<processed>/<tier>``; a user's own is ``/<primary>/<user>-<name>-<pset hash>/USER``."""

    primary: str
    processed: str
    tier: str

    def __str__(self) -> str:
        return f"/{self.primary}/{self.processed}/{self.tier}"


def read_dataset(name: str) -> DatasetName:
    """Return the parts of a dataset's name.

    Raises:
        BadDataset: DBS would not take it.

    >>> read_dataset("/QCD/rossi-skim-00112233445566778899aabbccddeeff/USER").tier
    'USER'
    """
    if len(name) > MAX_DATASET_CHARS:
        raise BadDataset(f"a dataset's name has at most {MAX_DATASET_CHARS} characters, not {len(name)}")
    parts = name.split("/")
    if len(parts) != 4 or parts[0]:
        raise BadDataset(f"a dataset's name is /primary/processed/TIER: {name!r}")
    dataset = DatasetName(*parts[1:])
    rules = (("primary dataset", _PRIMARY), ("processed dataset", _PROCESSED), ("data tier", _TIER))
    for (what, rule), part in zip(rules, dataset, strict=True):
        if not rule.match(part):
            raise BadDataset(f"{what} {part!r} of {name} is not as DBS wants it: {rule.pattern[:-2]}")
    return dataset


def read_user_dataset(name: str, username: str | None = None) -> DatasetName:
    """Return the parts of the name of a user's dataset.

    Args:
        username: whose it must be; ``None``: anybody's.

    Raises:
        BadDataset: it is not a user's, or not his.
    """
    dataset = read_dataset(name)
    if dataset.tier != USER_TIER:
        raise BadDataset(f"the data tier of a user's dataset is {USER_TIER}: {name}")
    if "-" not in dataset.processed or (username and not dataset.processed.startswith(f"{username}-")):
        raise BadDataset(f"the second part of {name} must begin with {username or 'the user'} and a dash")
    return dataset


def block_name(dataset: str, key: UUID) -> str:
    """Return the name of a block; chosen before DBS is told of it, so that a repeat meets the same block.

    >>> block_name("/a/b-c/USER", UUID(int=1))
    '/a/b-c/USER#00000000-0000-0000-0000-000000000001'
    """
    return f"{dataset}#{key}"


def is_askable(lfn: str) -> bool:
    """Say whether DBS can be asked for this LFN at all: in its lists some characters mean something else."""
    return len(lfn) <= MAX_LFN_CHARS and bool(_ASKABLE.match(lfn))


# --- what is published ---


@dataclass(frozen=True, slots=True)
class OutputConfig:
    """With what a file was made."""

    release: str
    pset_hash: str
    app: str = "cmsRun"
    label: str = "o"
    """Of the output module."""
    global_tag: str = "crab3_tag"

    @property
    def body(self) -> dict[str, JSON]:
        return {
            "release_version": self.release,
            "pset_hash": self.pset_hash,
            "app_name": self.app,
            "output_module_label": self.label,
            "global_tag": self.global_tag,
        }


class Lumi(NamedTuple):
    """A luminosity section with the events that the file has of it, where that is known."""

    run: int
    lumi: int
    events: int | None = None


@dataclass(frozen=True, slots=True)
class BlockFile:
    lfn: str
    size_bytes: int
    adler32: str
    events: int
    config: OutputConfig
    lumis: tuple[Lumi, ...] = ()
    parents: tuple[str, ...] = ()
    """LFNs; DBS must know every one of them."""
    cksum: str | None = None
    md5: str | None = None


@dataclass(frozen=True, slots=True)
class BlockContent:
    """A block with everything that DBS wants to know. The same content gives the same body, always."""

    name: str
    origin_site: str
    files: tuple[BlockFile, ...]
    primary_dataset_type: str = "mc"
    acquisition_era: str = "CRAB"
    processing_version: int = 1
    physics_group: str = "CRAB3"
    parent_datasets: tuple[str, ...] = ()
    """DBS must know every one of them, and takes only the first that a dataset ever gets."""

    @property
    def dataset(self) -> str:
        return self.name.partition("#")[0]


def block_body(content: BlockContent) -> dict[str, JSON]:
    """Return the body of ``POST /bulkblocks``.

    Dates and authors are left to DBS. So is ``block_parent_list``: the server reads and ignores it.

    Raises:
        NotPublishable: DBS would refuse it; ``lfn`` names the file to take out.
    """
    _check(content)
    name = read_dataset(content.dataset)
    configs = dict.fromkeys(file.config for file in content.files)
    return {
        "dataset_conf_list": [config.body for config in configs],
        "file_conf_list": [_file_config(file) for file in content.files],
        "files": [_file(file) for file in content.files],
        "file_parent_list": [row for file in content.files for row in _parents(file)],
        "dataset_parent_list": list(content.parent_datasets),
        "primds": {"primary_ds_name": name.primary, "primary_ds_type": content.primary_dataset_type},
        "processing_era": {
            "processing_version": content.processing_version,
            "description": "CRAB3_processing_era",
        },
        "acquisition_era": {"acquisition_era_name": content.acquisition_era, "start_date": 0},
        "dataset": {
            "dataset": content.dataset,
            "processed_ds_name": name.processed,
            "data_tier_name": name.tier,
            "dataset_access_type": "VALID",
            "physics_group_name": content.physics_group,
        },
        "block": {
            "block_name": content.name,
            "origin_site_name": content.origin_site,
            "open_for_writing": 0,
            "file_count": len(content.files),
            "block_size": sum(file.size_bytes for file in content.files),
        },
    }


def encoded(body: Mapping[str, JSON]) -> bytes:
    """Return a body as it is sent."""
    return json.dumps(body, separators=(",", ":"), allow_nan=False).encode()


def payload_bytes(file: BlockFile) -> int:
    """Return by how much a file makes the body of its block longer: for packing, without making the body."""
    rows = (_file(file), _file_config(file), *_parents(file))
    return sum(len(encoded(row)) + 1 for row in rows)


def _file(file: BlockFile) -> dict[str, JSON]:
    row: dict[str, JSON] = {
        "logical_file_name": file.lfn,
        "file_type": FILE_TYPE,
        "check_sum": file.cksum or NO_CHECKSUM,
        "adler32": file.adler32.lower().zfill(8),
        "file_size": file.size_bytes,
        "event_count": file.events,
        "file_lumi_list": _lumis(file.lumis),
    }
    return row | ({"md5": file.md5} if file.md5 else {})


def _lumis(lumis: Sequence[Lumi]) -> list[dict[str, int]]:
    # DBS's tables hold a section once a file.
    unique: dict[tuple[int, int], int | None] = {}
    for run, lumi, events in lumis:
        unique.setdefault((run, lumi), events)
    rows = [{"run_num": run, "lumi_section_num": lumi} for run, lumi in unique]
    # Some with and some without would read as "none" for those without: all of them, or none.
    known = [events for events in unique.values() if events is not None]
    if len(known) < len(rows):
        return rows
    return [row | {"event_count": events} for row, events in zip(rows, known, strict=True)]


def _file_config(file: BlockFile) -> dict[str, JSON]:
    return file.config.body | {"lfn": file.lfn}


def _parents(file: BlockFile) -> Iterator[dict[str, JSON]]:
    for parent in dict.fromkeys(file.parents):
        yield {"logical_file_name": file.lfn, "parent_logical_file_name": parent}


# --- what DBS would refuse ---


def _check(content: BlockContent) -> None:
    try:
        read_dataset(content.dataset)
    except BadDataset as error:
        raise NotPublishable(str(error)) from error
    if problem := _block_problem(content):
        raise NotPublishable(problem)
    for lfn, times in Counter(file.lfn for file in content.files).items():
        if times > 1:
            raise NotPublishable(f"it is {times} times in its block", lfn)
    for file in content.files:
        if problem := file_problem(file):
            raise NotPublishable(problem, file.lfn)


def _block_problem(content: BlockContent) -> str | None:
    if not _BLOCK_KEY.match(content.name.partition("#")[2]):
        return f"a block's name is <dataset>#<uuid>: {content.name!r}"
    if not content.files:
        return f"block {content.name} has no files"
    if content.processing_version < 1:
        return f"processing version {content.processing_version} is not a positive number"
    names = ("origin_site", "primary_dataset_type", "acquisition_era", "physics_group")
    return _unfit({name: getattr(content, name) for name in names})


def file_problem(file: BlockFile) -> str | None:
    """Return why DBS would not take this file; None if it would."""
    negative = any(number < 0 for lumi in file.lumis for number in lumi if number is not None)
    config_words = ("release", "pset_hash", "app", "label", "global_tag")
    problems = (
        (
            len(file.lfn) > MAX_LFN_CHARS,
            f"an LFN has at most {MAX_LFN_CHARS} characters, not {len(file.lfn)}",
        ),
        (not _USER_LFN.match(file.lfn), f"DBS takes LFNs {LFN_FORM}"),
        (file.size_bytes < 1, "DBS takes no empty file"),
        (not _ADLER32.match(file.adler32), f"adler32 {file.adler32!r} is not up to eight hexadecimal digits"),
        (not 0 <= file.events <= MAX_EVENTS, f"it cannot have {file.events} events"),
        (negative, "a run, a luminosity section or its number of events is negative"),
    )
    found = next((problem for is_so, problem in problems if is_so), None)
    return found or _unfit({name: getattr(file.config, name) for name in config_words})


def _unfit(words: Mapping[str, str]) -> str | None:
    for name, word in words.items():
        if not 0 < len(word) <= COLUMN_CHARS[name]:
            return f"{name} {word!r} has no characters, or more than {COLUMN_CHARS[name]}"
    return None
