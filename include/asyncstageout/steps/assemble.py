"""First step of publication: arrived files go into blocks, and closed blocks are shared out over tasks."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID, uuid4

from psycopg import Connection

from asyncstageout.catalogue.blocks import (
    Candidate,
    close_blocks,
    keep_facts,
    lock_assembling,
    look_later,
    open_and_due,
    open_blocks,
    put_off,
    take_due_files,
    turn_down,
    write_fillings,
)
from asyncstageout.catalogue.publishing import DueBlock, due_blocks
from asyncstageout.core.blocks import BlockKey, ReadyFile, SettingsOf, closing_times, fill
from asyncstageout.core.dbs import block_name
from asyncstageout.core.publication import Facts, Verdict, facts_or_problem, judge
from asyncstageout.core.states import PublicationState
from asyncstageout.steps.crashpoints import reached
from asyncstageout.steps.recording import Summary, files

FILES_AT_ONCE = 2_000
"""Of one transaction: others that assemble, or act on these files, wait that long."""
OPEN_AT_ONCE = 5_000
MAX_SHARDS = 3
BLOCKS_PER_SHARD = 20
"""Fewer blocks than this are published faster by one task than a second task takes to start."""
BLOCK_BYTES = 100_000
"""What a block costs by itself, as if it were that much larger."""
BLOCKS_AT_ONCE = 600
"""What some tasks publish in their time; the next run is a minute away."""


class Shard(NamedTuple):
    """Blocks that one task publishes."""

    block_ids: tuple[int, ...]
    datasets: tuple[str, ...]
    """The largest first."""
    files: int

    @property
    def label(self) -> str:
        """What operators see on the mapped task."""
        rest = len(self.datasets) - 1
        return self.datasets[0] + (f" and {rest} more dataset{'' if rest == 1 else 's'}" if rest else "")


def assemble(
    conn: Connection,
    settings_of: SettingsOf,
    *,
    now: datetime,
    step_run: int,
    new_uuid: Callable[[], UUID] = uuid4,
) -> tuple[Summary, list[Shard]]:
    """Put what is ready into blocks, close those that time closes, and return the shards of closed ones.

    Nobody outside hears of it. Two at once put no file into two blocks.
    """
    assembly = _Assembly(conn, settings_of, now, step_run, new_uuid)
    while assembly.assemble_some() == FILES_AT_ONCE:
        pass
    while assembly.close_due() == OPEN_AT_ONCE:
        pass
    due = due_blocks(conn, BLOCKS_AT_ONCE)
    assembly.counts["due_blocks"] = len(due)
    return assembly.summary(), share_out(due)


class _Assembly:
    """One run of the step."""

    def __init__(
        self,
        conn: Connection,
        settings_of: SettingsOf,
        now: datetime,
        step_run: int,
        new_uuid: Callable[[], UUID],
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._conn = conn
        self._settings_of = settings_of
        self._now = now
        self._step_run = step_run
        self._new_uuid = new_uuid

    def assemble_some(self) -> int:
        """Judge some of the files that are due, and put the ready ones into blocks; return how many."""
        conn = self._conn
        with conn.transaction():
            lock_assembling(conn)
            candidates = self._read(take_due_files(conn, FILES_AT_ONCE))
            ready = self._sort_out(candidates)
            fillings = fill(ready, open_blocks(conn, {file.key for file in ready}), self._settings_of)
            names = [block_name(one.key.dataset, self._new_uuid()) for one in fillings]
            write_fillings(conn, fillings, names, self._step_run)
            reached("assemble.before_commit")
        reached("assemble.after_commit")
        self.counts["ready_files"] += len(ready)
        self.counts["closed_blocks"] += sum(one.close_reason is not None for one in fillings)
        return len(candidates)

    def close_due(self) -> int:
        """Look at some of the open blocks that are due, close them by the rules of time; return how many."""
        with self._conn.transaction():
            lock_assembling(self._conn)
            closing: dict[int, str] = {}
            later: dict[int, datetime] = {}
            for block in open_and_due(self._conn, OPEN_AT_ONCE):
                times = closing_times(block, self._settings_of(block.dbs))
                reason = min(times, key=times.__getitem__)
                if times[reason] <= self._now:
                    closing[block.block_id] = reason
                else:
                    later[block.block_id] = times[reason]
            close_blocks(self._conn, closing)
            look_later(self._conn, later)
        self.counts["closed_blocks"] += len(closing)
        return len(closing) + len(later)

    def summary(self) -> Summary:
        counts = self.counts
        sentence = f"{files(counts['ready_files'])} went into blocks"
        if counts["failed_files"]:
            sentence += f"; {files(counts['failed_files'])} cannot be published, each with its reason"
        sentence += (
            f"; {counts['closed_blocks']:,} blocks were closed, {counts['due_blocks']:,} go to DBS now"
        )
        return Summary(sentence, dict(counts))

    def _read(self, candidates: list[Candidate]) -> list[Candidate]:
        """Read metadata that came before this version, and keep what is in them."""
        read = {
            one.request_id: facts_or_problem(one.unread)
            for one in candidates
            if one.request_id and one.unread is not None
        }
        keep_facts(self._conn, read)
        return [one._replace(facts=read.get(one.request_id or "", one.facts)) for one in candidates]

    def _sort_out(self, candidates: Sequence[Candidate]) -> list[ReadyFile]:
        """Write down what becomes of the files that are not ready, and return those that are."""
        ready: list[ReadyFile] = []
        waiting: list[tuple[int, datetime]] = []
        refused: list[tuple[int, str, str]] = []
        for one in candidates:
            judgement = judge(one.file, one.facts, self._now, self._settings_of(one.dbs))
            if judgement.verdict is Verdict.READY:
                ready.append(_ready(one))
            elif judgement.due_at is not None:
                waiting.append((one.file.transfer_id, judgement.due_at))
            else:
                refused.append((one.file.transfer_id, _STATES[judgement.verdict], judgement.reason))
        put_off(self._conn, waiting)
        turn_down(self._conn, refused, self._step_run)
        self.counts["failed_files"] += sum(state == PublicationState.FAILED for _, state, _ in refused)
        return ready


_STATES = {Verdict.FAILED: PublicationState.FAILED, Verdict.NOT_WANTED: PublicationState.NOT_REQUIRED}


def _ready(one: Candidate) -> ReadyFile:
    file, facts = one.file, one.facts
    assert isinstance(facts, Facts)  # noqa: S101 - nothing else is judged ready
    key = BlockKey(one.task_id, facts.dataset, one.destination, one.dbs)
    size_bytes = file.size_bytes or facts.size_bytes or 0
    return ReadyFile(file.transfer_id, key, size_bytes, facts.lumis, facts.payload_bytes, file.ended_at)


def share_out(blocks: Sequence[DueBlock]) -> list[Shard]:
    """Share blocks out over a few tasks of similar size; a dataset stays in one of them.

    So one task searches for what DBS refuses in a dataset, and DBS's rows of it are not fought for.
    """
    by_dataset: dict[str, list[DueBlock]] = defaultdict(list)
    for block in blocks:
        by_dataset[block.dataset].append(block)
    loads: list[list[list[DueBlock]]] = [
        [] for _ in range(min(MAX_SHARDS, -(-len(blocks) // BLOCKS_PER_SHARD)))
    ]
    sizes = [0] * len(loads)
    for group in sorted(by_dataset.values(), key=_weight, reverse=True):
        lightest = sizes.index(min(sizes))
        loads[lightest].append(group)
        sizes[lightest] += _weight(group)
    return [
        Shard(
            tuple(block.block_id for group in load for block in group),
            tuple(group[0].dataset for group in load),
            sum(block.files for group in load for block in group),
        )
        for load in loads
        if load
    ]


def _weight(blocks: Sequence[DueBlock]) -> int:
    return sum(BLOCK_BYTES + block.payload_bytes for block in blocks)
