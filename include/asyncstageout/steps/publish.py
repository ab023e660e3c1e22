"""Second step of publication: DBS is told of closed blocks, so that each file is in it exactly once.

A block stays CLOSED until DBS is known to have it, or never to take it. Its name and list were written before
anybody told DBS, and DBS takes a block with all its files or not at all, each name and LFN once. So the same
block may be told again by anybody at any time. What is there already is looked up and counts as published.

====================================  ====================================================================
DBS                                   what follows
====================================  ====================================================================
takes the block                       its files are DONE
has the block, or a file of it        its files are looked up: those that are there are DONE (FAILED if they
                                      are other bytes), the rest goes on in a new block
gives no answer                       asked whether it has the block; if not, the block waits, and is split
                                      if DBS takes others meanwhile (``core.blocks.after_silence``)
finds it too large (413)              split in halves
does not know a parent                the parents are looked for again
refuses it                            halved until the file is found (``steps.refusals``); if no file is at
                                      fault, it waits, and its files fail after ``max_tries`` refusals
lost a race in its database           it waits a minute
does not work, or not for us          nothing more is told to it in this run; no try is used
====================================  ====================================================================
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import NamedTuple
from uuid import UUID, uuid4

from psycopg import Connection

from asyncstageout.catalogue.input_blocks import forget_parents
from asyncstageout.catalogue.publishing import ClosedBlock, lease, members, others_go
from asyncstageout.clients.dbs_errors import (
    BlockExists,
    BlockRefused,
    BlockTooLarge,
    DBSError,
    DBSRace,
    FilesNotTaken,
    ParentUnknown,
)
from asyncstageout.clients.errors import Transient
from asyncstageout.core.blocks import AfterSilence, after_silence, wait_s
from asyncstageout.steps.block_contents import Contents, InputAwaited, Spoiled, Told, failed
from asyncstageout.steps.block_endings import Endings
from asyncstageout.steps.crashpoints import reached
from asyncstageout.steps.parents import DBSInstances, InputMissing
from asyncstageout.steps.recording import Summary, files
from asyncstageout.steps.refusals import Refusal, Search

logger = logging.getLogger(__name__)

THREADS = 3
"""POSTs under way at once; DBS writes each in one transaction, and those of a dataset meet in its rows."""
LEASE_S = 900.0
"""Longer than a POST may take, with the questions after it (``clients.dbs.PATIENCE``)."""
BUDGET_S = 300.0
"""No new block is taken after this time: the task must end before Airflow ends it."""
SILENCES_PER_RUN = 2
"""A DBS that so often takes no block in its time is left alone for the rest of the run."""
IN_FLIGHT_S = 600.0
"""What DBS was told and did not answer may be at work in it for so long."""


class PublishingStopped(Exception):
    """An instance does not work, or not for us. Its blocks wait, and no file has lost anything."""

    def __init__(self, problems: Mapping[str, DBSError]) -> None:
        self.problems = dict(problems)
        super().__init__("; ".join(f"{name}: {error}" for name, error in problems.items()))


class _Answer(NamedTuple):
    told: Told
    problem: DBSError | None


BlockSearch = Search[Told, DBSError]
BlockRefusal = Refusal[Told, DBSError]


def publish(
    conn: Connection,
    dbs: DBSInstances,
    block_ids: Sequence[int],
    *,
    step_run: int,
    threads: int = THREADS,
    new_uuid: Callable[[], UUID] = uuid4,
    clock: Callable[[], float] = time.monotonic,
) -> Summary:
    """Tell DBS of blocks; what stops one instance does not stop the others.

    Raises:
        PublishingStopped: an instance needs a person: it does not let us in, or its connection is wrong.
    """
    ends = Endings(conn, dbs, step_run, new_uuid)
    step = _Publication(conn, dbs, ends)
    ends_at_s = clock() + BUDGET_S
    waiting = deque(block_ids)
    while waiting and clock() < ends_at_s:
        wave = [waiting.popleft() for _ in range(min(threads, len(waiting)))]
        for answer in step.post(step.prepare(wave), threads):
            step.hear(answer)
        waiting.extendleft(step.decide())
    step.give_back()
    summary = ends.summary()
    for_a_person = {name: error for name, error in ends.stopped.items() if not isinstance(error, Transient)}
    if for_a_person:
        logger.warning("%s", summary.sentence)
        raise PublishingStopped(for_a_person)
    return summary


class _Publication:
    """One run of the step: what DBS answered, and what follows from it."""

    def __init__(self, conn: Connection, dbs: DBSInstances, ends: Endings) -> None:
        self._conn = conn
        self._dbs = dbs
        self._ends = ends
        self._silences: Counter[str] = Counter()
        self._searches: dict[tuple[str, str], BlockSearch] = {}
        """By instance and dataset: is it a file that DBS refuses, or what all of them have in common?"""
        self._contents = Contents(conn, dbs)

    # --- before DBS is told ---

    def prepare(self, block_ids: Sequence[int]) -> list[Told]:
        """Take blocks for this run, and return those of which DBS can be told now."""
        blocks = lease(self._conn, block_ids, LEASE_S)
        reached("publish.after_lease")
        return [told for block in blocks if (told := self._prepare(block)) is not None]

    def _prepare(self, block: ClosedBlock) -> Told | None:
        if stopped := self._ends.stopped.get(block.dbs):
            self._ends.wait(block, str(stopped))
            return None
        try:
            told = self._contents.of(block)
            if not block.silences or self._may_be_told_again(told):
                return told
        except InputAwaited as waiting:
            self._ends.wait(block, str(waiting))
        except Spoiled as spoiled:
            self._ends.take_out(block, spoiled)
        except InputMissing as missing:
            found = members(self._conn, block.block_id)
            self._ends.take_out(block, Spoiled(found, failed(found, str(missing))))
        except DBSError as error:
            self._ends.stop(block, error)
        return None

    def _may_be_told_again(self, told: Told) -> bool:
        """Look what became of a block about which DBS was silent before; False: it is settled now.

        Nothing is given up right after a silence: what DBS was told then may still be at work in it.
        """
        block = told.block
        if self._dbs.client(block.dbs).block_exists(block.name):
            self._look_up(told, is_there=True)
            return False
        others = block.silent_since is not None and others_go(self._conn, block.dbs, block.silent_since)
        settings = self._dbs.settings(block.dbs)
        follows = after_silence(block.silences, len(told.files), settings, others_go=others)
        if follows is not AfterSilence.TELL:
            self._ends.halve(told, f"DBS gave no answer {block.silences} times, and does not have it")
        return follows is AfterSilence.TELL

    # --- DBS is told ---

    def post(self, told: Sequence[Told], threads: int) -> Iterable[_Answer]:
        """Yield answers in the order in which they come."""
        if not told:
            return
        with ThreadPoolExecutor(threads, thread_name_prefix="publish") as pool:
            running = [pool.submit(self._post, one) for one in told]
            for future in as_completed(running):
                yield future.result()

    def _post(self, told: Told) -> _Answer:
        reached("publish.before_post")
        try:
            self._dbs.client(told.block.dbs).insert_block(told.body)
        except DBSError as error:
            logger.warning("block %s: %s", told.block.name, error)
            return _Answer(told, error)
        return _Answer(told, None)

    # --- what its answer means ---

    def hear(self, answer: _Answer) -> None:
        """Write down what DBS said of one block, as far as it needs no other answer to be understood."""
        told, problem = answer
        try:
            if problem is None:
                self._ends.published(told)
                self._search(told.block).accepted = True
            else:
                self._refused(told, problem)
        except DBSError as error:
            # It was asked what it has, and did not say.
            self._ends.stop(told.block, error)

    def _refused(self, told: Told, problem: DBSError) -> None:
        if isinstance(problem, (BlockExists, FilesNotTaken)):
            if not self._look_up(told, is_there=isinstance(problem, BlockExists)):
                self._none_is_there(told, problem)
        elif isinstance(problem, BlockTooLarge):
            self._ends.halve(told, str(problem))
        elif isinstance(problem, BlockRefused):
            self._search(told.block).refused.append(BlockRefusal(told, problem))
        elif isinstance(problem, ParentUnknown):
            forget_parents(self._conn, told.block.block_id)
            self._ends.blame(told, str(problem))
        elif isinstance(problem, DBSRace):
            self._ends.wait(told.block, str(problem))
        elif isinstance(problem, Transient) and problem.maybe_delivered:
            self._silent(told, problem)
        else:
            self._ends.stop(told.block, problem)

    def _look_up(self, told: Told, *, is_there: bool) -> bool:
        """Ask which files DBS has, and let the others go on; False: it has none, nothing was done."""
        found = self._dbs.client(told.block.dbs).files(one.lfn for one in told.files)
        absent = [one for one in told.files if one.lfn not in found]
        if not found and not is_there:
            return False
        if absent and is_there and told.block.tries + 1 < self._ends.max_tries(told.block):
            # It has a block with all its files: what tells us of files lags behind.
            self._ends.blame(told, f"DBS has the block, and does not show {files(len(absent))} of it")
        else:
            self._ends.settle_found(told, found, absent, is_there=is_there)
        return True

    def _none_is_there(self, told: Told, problem: DBSError) -> None:
        if told.block.silences and told.block.silent_s < IN_FLIGHT_S:
            self._ends.wait(told.block, f"what DBS was told before may be at work in it: {problem}")
        else:
            self._search(told.block).refused.append(BlockRefusal(told, problem))

    def _silent(self, told: Told, problem: DBSError) -> None:
        """DBS may have the block: it is asked, and if not, perhaps not yet."""
        block = told.block
        self._silences[block.dbs] += 1
        if self._silences[block.dbs] >= SILENCES_PER_RUN:
            self._ends.stopped.setdefault(block.dbs, problem)
        if self._dbs.client(block.dbs).block_exists(block.name):
            self._look_up(told, is_there=True)
            return
        silences = block.silences + 1
        longest_s = IN_FLIGHT_S if silences >= self._ends.max_tries(block) else 0.0
        self._ends.wait(block, str(problem), max(wait_s(silences), longest_s), silences=1)

    # --- what follows from it ---

    def decide(self) -> list[int]:
        """Decide on what was refused, and return the blocks that came out of it, to be told next."""
        for search in self._searches.values():
            verdict = search.judge()
            for refusal in verdict.halve:
                self._ends.halve(refusal.job, str(refusal.problem))
            for refusal in verdict.blamed:
                if isinstance(refusal.problem, BlockRefused):
                    self._ends.halve(refusal.job, str(refusal.problem))
                else:
                    self._ends.blame(refusal.job, str(refusal.problem))
            for refusal in verdict.unexplained:
                self._ends.blame(refusal.job, f"DBS refuses every block of the dataset: {refusal.problem}")
        parts, self._ends.parts = self._ends.parts, []
        return parts

    def give_back(self) -> None:
        """Let those wait on which nothing was decided."""
        for search in self._searches.values():
            for refusal in search.kept:
                self._ends.wait(refusal.job.block, str(refusal.problem))

    def _search(self, block: ClosedBlock) -> BlockSearch:
        return self._searches.setdefault((block.dbs, block.dataset), BlockSearch(accepted=block.dataset_goes))
