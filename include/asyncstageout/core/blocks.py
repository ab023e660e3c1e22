"""Which files go together into a block, when a block is closed, and when it is tried again. Pure rules."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1, strict=True)]
Seconds = Annotated[float, Field(ge=0, le=10**8)]


class BlockRules(BaseModel):
    """When blocks are closed and given up; the defaults are those of ASO and CRAB, where they had any.

    ==========================  =====================================================================
    rule                        why
    ==========================  =====================================================================
    ``files_per_block``         the unit in which data of users are looked at and moved
    ``lumis_per_block``         DBS writes a row for each, in one transaction (CRABServer issue 6670)
    ``payload_per_block_bytes`` its front refuses large bodies with a 413 (CRABServer issue 6656)
    ``first_after_s``           a block takes what arrives within this time, whatever else says to close
    ``close_after_s``           users see their data grow while a long task runs
    ``oldest_s``                no file waits for longer
    ``metadata_wait_s``         a submitter that died must not leave files waiting for ever
    ``max_tries``               refusals of one block before its files are given up
    ==========================  =====================================================================
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    files_per_block: Count = 100
    lumis_per_block: Count = 100_000
    payload_per_block_bytes: Count = 20_000_000
    first_after_s: Seconds = 600.0
    close_after_s: Seconds = 18_800.0
    oldest_s: Seconds = 3 * 86_400.0
    metadata_wait_s: Seconds = 3 * 86_400.0
    max_tries: Count = 5


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

    def too_full_for(self, file: ReadyFile, rules: BlockRules) -> str | None:
        """Say which limit the file would break; a file that is too large by itself has a block of its own."""
        if not self.files:
            return None
        if self.lumis + file.lumis > rules.lumis_per_block:
            return f"lumis: the next file would make more than {rules.lumis_per_block:,}"
        if self.payload_bytes + file.payload_bytes > rules.payload_per_block_bytes:
            return f"size: the next file would make more than {rules.payload_per_block_bytes:,} bytes"
        return None


def fill(
    files: Iterable[ReadyFile], open_blocks: Mapping[BlockKey, Filling], rules: BlockRules
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
        block for key, group in by_key.items() for block in _fill(key, group, open_blocks.get(key), rules)
    ]


def _fill(
    key: BlockKey, files: list[ReadyFile], block: Filling | None, rules: BlockRules
) -> Iterable[Filling]:
    block = block or Filling(key)
    for file in files:
        if reason := block.too_full_for(file, rules):
            block.close_reason = reason
            yield block
            block = Filling(key)
        block.add(file)
        if block.files >= rules.files_per_block:
            block.close_reason = f"count: {block.files:,} files"
            yield block
            block = Filling(key)
    if block.added:
        yield block


class OpenBlock(NamedTuple):
    """An open block, as far as time closes it."""

    block_id: int
    opened_at: datetime
    oldest_at: datetime
    """When the file arrived that waits for the longest."""
    dataset_closed_at: datetime | None
    """When a block of its dataset was closed last; None: never."""
    task_ended_at: datetime | None


def closing_times(block: OpenBlock, rules: BlockRules) -> dict[str, datetime]:
    """Return for each rule when it closes the block; the first one counts.

    The time since the dataset's last block runs from its closing, not from its publication: while DBS is
    down, one block waits for it in each such time, and not hundreds of tiny ones.
    """
    times = {"age: its oldest file waits too long": block.oldest_at + timedelta(seconds=rules.oldest_s)}
    gathered_at = block.opened_at + timedelta(seconds=rules.first_after_s)
    if block.dataset_closed_at is None:
        times["first: nothing of its dataset was published yet"] = gathered_at
    else:
        again_at = block.dataset_closed_at + timedelta(seconds=rules.close_after_s)
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
