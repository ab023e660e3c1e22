"""The search for the files because of which FTS refused a job, and its end when it is no file's fault.

FTS refuses a job as a whole. A file that it names is taken out at once. Otherwise the job is halved, and each
half again: one bad file of n costs about 2 log2 n POSTs. But as long as FTS has taken no part of the job, it
may be that it takes none, whatever the file: then only one part is halved further and the others are kept
aside. If that goes on down to single files, nobody is to blame but the job's parameters, and log2 n POSTs
have shown it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

from asyncstageout.catalogue.jobs import JobToSubmit
from asyncstageout.clients.errors import DestinationBusy, FTSError
from asyncstageout.core.fts import NotSubmittable, destination_hash

Problem = FTSError | NotSubmittable

_OF_ONE_FILE = re.compile(r"\S+://\S+|\d+")
"""What differs between two refusals for the same reason."""


class Refusal(NamedTuple):
    """A part of a job, and why FTS did not take it."""

    job: JobToSubmit
    problem: Problem

    @property
    def words(self) -> str:
        return _OF_ONE_FILE.sub("…", str(self.problem))


class Verdict(NamedTuple):
    """What follows for the refused parts of a job."""

    halve: list[Refusal]
    """Parts to be submitted again, by halves."""
    blamed: list[Refusal]
    """Single files that are at fault."""
    unexplained: list[Refusal]
    """Parts that FTS refuses like all others: no file is at fault."""


@dataclass(eq=False, slots=True)
class Search:
    """What is known about one refused job and its parts."""

    accepted: bool = False
    """FTS took a part of it, so its parameters are right."""
    refused: list[Refusal] = field(default_factory=list)
    """Parts on which nothing was decided yet."""
    kept: list[Refusal] = field(default_factory=list)

    def judge(self) -> Verdict:
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


def _by_size(parts: list[Refusal]) -> tuple[list[Refusal], list[Refusal]]:
    return (
        [part for part in parts if len(part.job.files) > 1],
        [part for part in parts if len(part.job.files) == 1],
    )


def culprit_of(refusal: Refusal) -> int | None:
    """Return the one file (transfer id) that a refusal names, if it names one."""
    problem = refusal.problem
    if isinstance(problem, NotSubmittable):
        return problem.transfer_id
    if isinstance(problem, DestinationBusy) and problem.destination_hash:
        wanted = problem.destination_hash
        named = (f for f in refusal.job.files if destination_hash(f.destination_url) == wanted)
        return next((file.transfer_id for file in named), None)
    return None
