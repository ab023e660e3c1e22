"""Which files go together into a block, when a block is closed, and when it is tried again. Pure rules."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class PublicationSettings:
    """How the blocks of a DBS instance are made, closed and given up; defaults as of ASO and CRAB.

    ========================  =======================================================================
    setting                   why
    ========================  =======================================================================
    ``block_files``           the unit in which users' data are looked at and moved
    ``block_lumis``           DBS writes a row for each, in one transaction (CRABServer issue 6670)
    ``block_payload_bytes``   DBS's front has refused 22 MB with a 413 (CRABServer issue 8308)
    ``first_after_s``         a block takes what arrives within this time, whatever else would close it
    ``close_after_s``         since the dataset's last block: users see their data grow with a long task
    ``oldest_s``              no file waits longer for its block to fill
    ``metadata_wait_s``       a submitter that died does not leave files waiting for ever
    ``max_tries``             refusals of a block until its files are given up
    ``processing_version``    as every publisher of users' data says
    ``acquisition_era``       of files that name none, and have no input
    ``physics_group``         as every publisher of users' data says
    ``primary_dataset_type``  of files without input: simulated
    ========================  =======================================================================
    """

    block_files: int = 100
    block_lumis: int = 100_000
    block_payload_bytes: int = 20_000_000
    close_after_s: int = 18_800
    first_after_s: int = 600
    oldest_s: int = 259_200
    max_tries: int = 5
    metadata_wait_s: int = 259_200
    processing_version: int = 1
    acquisition_era: str = "CRAB"
    physics_group: str = "CRAB3"
    primary_dataset_type: str = "mc"


SettingsOf = Callable[[str], PublicationSettings]
"""Gives the settings of a DBS instance, by the name of its connection."""


class BlockKey(NamedTuple):
    """What must be equal for two files to share a block."""

    task_id: int
    dataset: str
    destination: str
    """Site that has the files: the block's origin in DBS."""
    dbs: str
    """Airflow connection of the DBS instance."""


class ReadyFile(NamedTuple):
    """A file that can be published now."""

    transfer_id: int
    key: BlockKey
    size_bytes: int
    lumis: int
    payload_bytes: int
    ended_at: datetime


@dataclass(slots=True)
class Filling:
    """An open block, or one to be made, and what is put into it."""

    key: BlockKey
    block_id: int | None = None
    """None: it is not there yet."""
    files: int = 0
    lumis: int = 0
    payload_bytes: int = 0
    added: list[ReadyFile] = field(default_factory=list)
    close_reason: str | None = None

    def add(self, file: ReadyFile) -> None:
        self.added.append(file)
        self.files += 1
        self.lumis += file.lumis
        self.payload_bytes += file.payload_bytes

    def too_full_for(self, file: ReadyFile, settings: PublicationSettings) -> str | None:
        """Say which limit the file would break; a file that is too large by itself has a block of its own."""
        if not self.files:
            return None
        if self.lumis + file.lumis > settings.block_lumis:
            return f"lumis: the next file would make more than {settings.block_lumis:,}"
        if self.payload_bytes + file.payload_bytes > settings.block_payload_bytes:
            return f"size: the next file would make more than {settings.block_payload_bytes:,} bytes"
        return None


def fill(
    files: Iterable[ReadyFile], open_blocks: Mapping[BlockKey, Filling], settings_of: SettingsOf
) -> list[Filling]:
    """Put files into open blocks, and into new ones where those are full; return all that got any.

    Args:
        files: in the order in which they should go.
        open_blocks: the open block of each key that has one; they are changed.
    """
    by_key: dict[BlockKey, list[ReadyFile]] = defaultdict(list)
    for file in files:
        by_key[file.key].append(file)
    return [
        block
        for key, group in by_key.items()
        for block in _fill(open_blocks.get(key) or Filling(key), group, settings_of(key.dbs))
    ]


def _fill(block: Filling, files: list[ReadyFile], settings: PublicationSettings) -> Iterable[Filling]:
    for file in files:
        if reason := block.too_full_for(file, settings):
            block.close_reason = reason
            yield block
            block = Filling(block.key)
        block.add(file)
        if block.files >= settings.block_files:
            block.close_reason = f"count: {block.files:,} files"
            yield block
            block = Filling(block.key)
    if block.added:
        yield block


class OpenBlock(NamedTuple):
    """An open block, as far as time closes it."""

    block_id: int
    dbs: str
    opened_at: datetime
    oldest_at: datetime
    """When the file arrived that waits for the longest."""
    dataset_closed_at: datetime | None
    """When a block of its dataset was closed last; None: never."""
    task_ended_at: datetime | None


def closing_times(block: OpenBlock, settings: PublicationSettings) -> dict[str, datetime]:
    """Return for each rule when it closes the block; the first one counts.

    The time since the dataset's last block runs from its closing, not from its publication: while DBS is
    down, one block waits for it in each such time, and not hundreds of tiny ones.
    """
    times = {"age: its oldest file waits too long": block.oldest_at + timedelta(seconds=settings.oldest_s)}
    gathered_at = block.opened_at + timedelta(seconds=settings.first_after_s)
    if block.dataset_closed_at is None:
        times["first: nothing of its dataset was published yet"] = gathered_at
    else:
        again_at = block.dataset_closed_at + timedelta(seconds=settings.close_after_s)
        times["time: the dataset's last block was closed long ago"] = max(again_at, gathered_at)
    if block.task_ended_at is not None:
        times["end: the task has no more files"] = block.task_ended_at
    return times


FIRST_WAIT_S, WAIT_GROWS, LONGEST_WAIT_S = 60.0, 4.0, 3600.0


def wait_s(times: int) -> float:
    """Return how long a block waits that was not taken so often, from 1.

    >>> [wait_s(times) for times in (1, 2, 3, 4, 9)]
    [60.0, 240.0, 960.0, 3600.0, 3600.0]
    """
    return min(LONGEST_WAIT_S, FIRST_WAIT_S * WAIT_GROWS ** (times - 1))


class AfterSilence(Enum):
    """What follows when DBS was told of a block some time ago, gave no answer, and does not have it."""

    TELL = "tell it again"
    SPLIT = "split"
    GIVE_UP = "give up"


SILENCES_BEFORE_SPLIT = 2
SILENCES_BEFORE_SPLIT_ANYWAY = 4


def after_silence(
    silences: int, files: int, settings: PublicationSettings, *, others_go: bool
) -> AfterSilence:
    """Decide on a block about which DBS was silent; the first row that holds counts.

    =========================================  =======  ====================================================
    silences, files, others                    follows  why
    =========================================  =======  ====================================================
    2, several, DBS takes others meanwhile     split    it is too much for DBS in the time that its front has
    4, several                                 split    so may be all others: at most one split an hour
    ``max_tries``, one, DBS takes others       give up  no smaller block is possible
    otherwise                                  tell     DBS was down, which is no file's fault
    =========================================  =======  ====================================================

    Args:
        others_go: DBS took another block since the first of them.
    """
    needed = SILENCES_BEFORE_SPLIT if others_go else SILENCES_BEFORE_SPLIT_ANYWAY
    if files > 1 and silences >= needed:
        return AfterSilence.SPLIT
    if files == 1 and silences >= settings.max_tries and others_go:
        return AfterSilence.GIVE_UP
    return AfterSilence.TELL
