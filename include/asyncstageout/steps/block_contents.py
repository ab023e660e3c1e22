"""What DBS is told of a closed block: its files with their metadata, and no parent that is not there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from psycopg import Connection

from asyncstageout.catalogue.publishing import ClosedBlock, FileOutcome, Member, members
from asyncstageout.core.dbs import (
    BlockContent,
    BlockFile,
    NotPublishable,
    block_body,
    encoded,
    file_problem,
)
from asyncstageout.core.dbs_answers import DBSDataset
from asyncstageout.core.publication import OutputFile, Unpublishable, read_metadata
from asyncstageout.core.states import PublicationState
from asyncstageout.steps.parents import DBSInstances, look_for_parents, migrate, why_waiting


@dataclass(frozen=True, slots=True)
class Told:
    """A block as DBS is told of it."""

    block: ClosedBlock
    files: tuple[Member, ...]
    body: bytes


class InputAwaited(Exception):
    """The block has to wait for its input blocks."""


class Spoiled(Exception):
    """Some files of a block cannot be published; the others can."""

    def __init__(self, found: Sequence[Member], outcomes: Sequence[FileOutcome]) -> None:
        self.found, self.outcomes = found, outcomes
        super().__init__(outcomes[0].reason if outcomes else "all its files have left it")


class _Described(NamedTuple):
    member: Member
    output: OutputFile


class Contents:
    """Makes the bodies of blocks, for one run."""

    def __init__(self, conn: Connection, dbs: DBSInstances) -> None:
        self._conn = conn
        self._dbs = dbs
        self._inputs: dict[tuple[str, str], DBSDataset | None] = {}

    def of(self, block: ClosedBlock) -> Told:
        """Return what DBS is to be told of a block; the same block gives the same.

        Raises:
            Spoiled: not with all its files.
            InputAwaited, InputMissing: its parents are not where they must be, yet or for ever.
            DBSError: what has to be known first could not be asked.
        """
        found = members(self._conn, block.block_id)
        described = _read(found)
        block = self._with_parents(block, described)
        content = self._content(block, found, described)
        try:
            body = block_body(content)
        except NotPublishable as error:
            raise Spoiled(found, _unfit(found, content.files, error)) from error
        return Told(block, tuple(found), encoded(body))

    def _with_parents(self, block: ClosedBlock, described: Sequence[_Described]) -> ClosedBlock:
        """Return the block with what is known of its parents, once they are all there."""
        if not block.with_parents:
            return block
        if block.parent_blocks is None:
            parents = {parent for one in described for parent in one.output.parents}
            block = look_for_parents(self._conn, self._dbs, block, sorted(parents))
        if block.parent_blocks:
            migrate(self._conn, self._dbs, block.dbs, block.parent_blocks)
            if waits_for := why_waiting(self._conn, block):
                raise InputAwaited(waits_for)
        return block

    def _content(
        self, block: ClosedBlock, found: Sequence[Member], described: Sequence[_Described]
    ) -> BlockContent:
        settings = self._dbs.settings(block.dbs)
        kind, era = settings.primary_dataset_type, described[0].output.era
        if block.input_dataset:
            source = self._input(block.dbs, block.input_dataset)
            if source is None:
                raise Spoiled(found, failed(found, f"no DBS knows its input dataset {block.input_dataset}"))
            kind, era = source.primary_dataset_type, source.acquisition_era
        return BlockContent(
            name=block.name,
            origin_site=block.destination,
            files=tuple(_block_file(block, one) for one in described),
            primary_dataset_type=kind,
            acquisition_era=era or settings.acquisition_era,
            processing_version=settings.processing_version,
            physics_group=settings.physics_group,
            parent_datasets=tuple(block.parent_datasets) if block.with_parents else (),
        )

    def _input(self, dbs: str, name: str) -> DBSDataset | None:
        if (dbs, name) not in self._inputs:
            reader = self._dbs.global_reader(dbs)
            found = self._dbs.client(dbs).dataset(name)
            self._inputs[dbs, name] = found or (reader.dataset(name) if reader else None)
        return self._inputs[dbs, name]


def failed(found: Iterable[Member], reason: str) -> list[FileOutcome]:
    """Return the outcomes of files that are given up."""
    return [FileOutcome(one.transfer_id, PublicationState.FAILED, reason=reason) for one in found]


def _read(found: Sequence[Member]) -> list[_Described]:
    """Read the metadata of a block's files.

    Raises:
        Spoiled: those of some cannot be read (any more), or no file is left.
    """
    described: list[_Described] = []
    spoiled: list[FileOutcome] = []
    for one in found:
        try:
            described.append(_Described(one, read_metadata(one.metadata or {})))
        except Unpublishable as error:
            spoiled += failed([one], f"metadata: {error}")
    if spoiled or not found:
        raise Spoiled(found, spoiled)
    return described


def _block_file(block: ClosedBlock, one: _Described) -> BlockFile:
    member, output = one
    parents = [parent for parent in output.parents if parent not in block.parents_unknown]
    return output.of(
        member.lfn,
        member.size_bytes or output.size_bytes or 0,
        member.adler32 or output.adler32 or "",
        parents if block.with_parents else (),
    )


def _unfit(found: Sequence[Member], told: Sequence[BlockFile], error: NotPublishable) -> list[FileOutcome]:
    """Return all files that DBS would not take, where one is to blame; else none of them can go."""
    if error.lfn is None:
        return failed(found, error.why)
    problems = {file.lfn: file_problem(file) for file in told} | {error.lfn: error.why}
    return [outcome for one in found if (why := problems[one.lfn]) for outcome in failed([one], why)]
