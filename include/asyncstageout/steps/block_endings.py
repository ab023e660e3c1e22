"""What becomes of a closed block: published, split, failed, or told again later; each in one statement."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from uuid import UUID

from psycopg import Connection

from asyncstageout.catalogue.publishing import (
    ClosedBlock,
    FileOutcome,
    Member,
    let_wait,
    record_published,
    settle,
)
from asyncstageout.clients.dbs_errors import DBSError
from asyncstageout.core.blocks import wait_s
from asyncstageout.core.dbs import block_name
from asyncstageout.core.dbs_answers import DBSFile
from asyncstageout.core.states import BlockState, PublicationState
from asyncstageout.steps.block_contents import Spoiled, Told, failed
from asyncstageout.steps.crashpoints import reached
from asyncstageout.steps.parents import DBSInstances
from asyncstageout.steps.recording import Summary, files

ASK_AGAIN_S = 60.0


class Endings:
    """Writes down what becomes of blocks in one run, and counts it."""

    def __init__(
        self, conn: Connection, dbs: DBSInstances, step_run: int, new_uuid: Callable[[], UUID]
    ) -> None:
        self.stopped: dict[str, DBSError] = {}
        """Instances that are told nothing more in this run."""
        self.parts: list[int] = []
        """Blocks made in this run, to be told next."""
        self.counts: Counter[str] = Counter()
        self._conn = conn
        self._dbs = dbs
        self._step_run = step_run
        self._new_uuid = new_uuid

    def published(self, told: Told) -> None:
        """DBS has taken the block."""
        reached("publish.after_post")
        count = record_published(self._conn, [told.block.block_id], self._step_run)
        self.counts["published_blocks"] += 1
        self.counts["published_files"] += count
        reached("publish.after_commit")

    def settle_found(
        self, told: Told, found: Mapping[str, DBSFile], absent: Sequence[Member], *, is_there: bool
    ) -> None:
        """DBS has files of the block, or the block itself; the others go on in a new one."""
        outcomes = [_outcome(one, found[one.lfn]) for one in told.files if one.lfn in found]
        rest = [one.transfer_id for one in absent]
        if is_there or any(file.block_name == told.block.name for file in found.values()):
            self._settle(told.block, BlockState.PUBLISHED, "DBS had it already", outcomes, [rest])
            return
        goes_on = rest or any(one.state is PublicationState.DONE for one in outcomes)
        state = BlockState.SPLIT if goes_on else BlockState.FAILED
        self._settle(told.block, state, f"DBS had {files(len(found))} of it already", outcomes, [rest])

    def halve(self, told: Told, reason: str) -> None:
        """Let the halves of a block go on by themselves; a single file is at fault."""
        ids = [one.transfer_id for one in told.files]
        if len(ids) == 1:
            self._settle(told.block, BlockState.FAILED, reason, failed(told.files, reason))
            return
        middle = len(ids) // 2
        self._settle(told.block, BlockState.SPLIT, reason, parts=[ids[:middle], ids[middle:]])
        self.counts["split_blocks"] += 1

    def take_out(self, block: ClosedBlock, spoiled: Spoiled) -> None:
        """Fail some files of a block; the others go on in a new one."""
        gone = {one.transfer_id for one in spoiled.outcomes}
        rest = [one.transfer_id for one in spoiled.found if one.transfer_id not in gone]
        state = BlockState.SPLIT if rest or not gone else BlockState.FAILED
        self._settle(block, state, str(spoiled), spoiled.outcomes, [rest])

    def _settle(
        self,
        block: ClosedBlock,
        state: BlockState,
        reason: str,
        outcomes: Sequence[FileOutcome] = (),
        parts: Sequence[Sequence[int]] = (),
    ) -> None:
        named = {block_name(block.dataset, self._new_uuid()): ids for ids in parts if ids}
        made = settle(
            self._conn, block.block_id, state, reason, outcomes=outcomes, parts=named, step_run=self._step_run
        )
        reached("publish.after_settle")
        if made is None:
            return
        self.parts += made
        self.counts["published_blocks"] += state is BlockState.PUBLISHED
        for one in outcomes:
            self.counts["published_files" if one.state is PublicationState.DONE else "failed_files"] += 1

    def blame(self, told: Told, reason: str) -> None:
        """Count a refusal that no single file explains; after enough of them the block's files fail."""
        tries = told.block.tries + 1
        if tries >= self.max_tries(told.block):
            why = f"given up after {tries} refusals: {reason}"
            self._settle(told.block, BlockState.FAILED, why, failed(told.files, why))
        else:
            self.wait(told.block, reason, wait_s(tries), tries=1)

    def stop(self, block: ClosedBlock, problem: DBSError) -> None:
        """Tell an instance nothing more in this run."""
        self.stopped.setdefault(block.dbs, problem)
        self.wait(block, str(problem), max(ASK_AGAIN_S, getattr(problem, "retry_after_s", None) or 0.0))

    def wait(self, block: ClosedBlock, reason: str, seconds: float = ASK_AGAIN_S, **counts: int) -> None:
        """Tell DBS of the block later; ``counts`` as of :func:`catalogue.publishing.let_wait`."""
        let_wait(self._conn, [block.block_id], reason, seconds, **counts)
        self.counts["waiting_blocks"] += 1

    def max_tries(self, block: ClosedBlock) -> int:
        """Return after how many refusals a block is given up."""
        return self._dbs.settings(block.dbs).max_tries

    def summary(self) -> Summary:
        """Say what was done."""
        counts = self.counts
        sentence = f"DBS took {counts['published_blocks']:,} blocks with {files(counts['published_files'])}"
        if counts["failed_files"]:
            sentence += f"; {files(counts['failed_files'])} failed for good"
        if counts["waiting_blocks"]:
            sentence += f"; {counts['waiting_blocks']:,} blocks wait, each with its reason"
        for name, error in self.stopped.items():
            sentence += f"; {name} is left alone: {error}"
        return Summary(sentence, dict(counts))


def _outcome(member: Member, there: DBSFile) -> FileOutcome:
    """Say what it means for a file that DBS has its LFN: DBS never changes a file."""
    problem = None
    if not there.is_valid:
        problem = "and marks it as invalid"
    elif member.size_bytes and there.size_bytes != member.size_bytes:
        problem = f"with {there.size_bytes:,} bytes, not {member.size_bytes:,}"
    elif member.adler32 and there.adler32 and there.adler32 != member.adler32:
        problem = f"with adler32 {there.adler32}, not {member.adler32}"
    if problem is None:
        return FileOutcome(member.transfer_id, PublicationState.DONE, there.block_name)
    reason = f"DBS has this LFN in {there.block_name} {problem}; it never changes one"
    return FileOutcome(member.transfer_id, PublicationState.FAILED, reason=reason)
