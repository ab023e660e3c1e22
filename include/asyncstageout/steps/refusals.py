"""The search for the files because of which a job or a block was refused, and its end if no file is at fault.

FTS refuses a job as a whole, DBS a block. A file that it names is taken out at once. Otherwise the job is
halved, and each half again: one bad file of n costs about 2 log2 n POSTs. But as long as no part of it was
taken, it may be that none is, whatever the file: then only one part is halved further and the others are kept
aside. If that goes on down to single files, nobody is to blame but the job's parameters, and log2 n POSTs
have shown it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from asyncstageout.catalogue.jobs import JobToSubmit
from asyncstageout.clients.errors import DestinationBusy, FTSError
from asyncstageout.core.fts import NotSubmittable, destination_hash

Problem = FTSError | NotSubmittable

_OF_ONE_FILE = re.compile(r"\S+://\S+|/store/\S+|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|\d+")
"""What differs between two refusals for the same reason."""


class HasFiles(Protocol):
    @property
    def files(self) -> Sequence[Any]: ...


J = TypeVar("J", bound=HasFiles)
E = TypeVar("E", bound=Exception)


class Refusal(NamedTuple, Generic[J, E]):
    """A part of a job, or of a block, and why it was not taken."""

    job: J
    problem: E

    @property
    def words(self) -> str:
        return _OF_ONE_FILE.sub("…", str(self.problem))


class Verdict(NamedTuple, Generic[J, E]):
    """What follows for the refused parts of a job."""

    halve: list[Refusal[J, E]]
    """Parts to be submitted again, by halves."""
    blamed: list[Refusal[J, E]]
    """Single files that are at fault."""
    unexplained: list[Refusal[J, E]]
    """Parts that are refused like all others: no file is at fault."""


@dataclass(eq=False, slots=True)
class Search(Generic[J, E]):
    """What is known about one refused job and its parts."""

    accepted: bool = False
    """A part of it was taken, so its parameters are right."""
    refused: list[Refusal[J, E]] = field(default_factory=list)
    """Parts on which nothing was decided yet."""
    kept: list[Refusal[J, E]] = field(default_factory=list)

    def judge(self) -> Verdict[J, E]:
        """Decide on all that was refused since the last call."""
        refused, kept = self.refused, self.kept
        self.refused, self.kept = [], []
        if not refused and not (kept and self.accepted):
            self.kept = kept
            return Verdict([], [], [])
        many = [part for part in refused if len(part.job.files) > 1]
        everything = refused + kept
        if self.accepted or len({part.words for part in everything}) > 1:
            return Verdict(*_by_size(everything), [])
        if many:
            self.kept = kept + [part for part in refused if part is not many[0]]
            return Verdict(many[:1], [], [])
        return Verdict([], [], everything)


def _by_size(parts: list[Refusal[J, E]]) -> tuple[list[Refusal[J, E]], list[Refusal[J, E]]]:
    return (
        [part for part in parts if len(part.job.files) > 1],
        [part for part in parts if len(part.job.files) == 1],
    )


JobRefusal = Refusal[JobToSubmit, Problem]
JobSearch = Search[JobToSubmit, Problem]


def culprit_of(refusal: JobRefusal) -> int | None:
    """Return the one file (transfer id) that a refusal of FTS names, if it names one."""
    problem = refusal.problem
    if isinstance(problem, NotSubmittable):
        return problem.transfer_id
    if isinstance(problem, DestinationBusy) and problem.destination_hash:
        wanted = problem.destination_hash
        named = (f for f in refusal.job.files if destination_hash(f.destination_url) == wanted)
        return next((file.transfer_id for file in named), None)
    return None
