"""Which files go together: links into FTS jobs, jobs into shards, and whose file is next.

One FTS job holds one identity, activity, priority, source, destination and set of parameters (FTS applies
them to the whole job).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

from asyncstageout.core.policies import LinkPolicy

SHARE = {1: 0.25, 2: 0.5, 3: 1.0, 4: 2.0, 5: 4.0}
"""Weight of a file's priority in its user's share of a link.

Users take turns: the n-th waiting file of a user goes at virtual time ``n / weight``, so a user with 3 files
is served beside one with 100,000, a higher priority is served more often, and nobody waits for ever.
"""


class Link(NamedTuple):
    source: str
    destination: str

    def __str__(self) -> str:
        return f"{self.source} → {self.destination}"


class PendingFile(NamedTuple):
    """A file that was taken for this cycle, as planning needs it."""

    transfer_id: int
    source: str
    destination: str
    identity: str
    """Whose credential FTS sees."""
    activity: str
    priority: int
    size_bytes: int
    overwrite: bool = False
    """Whether it must overwrite what its last attempt met, whatever the policy says."""

    @property
    def link(self) -> Link:
        return Link(self.source, self.destination)


class JobKey(NamedTuple):
    """What must be equal for two files to share an FTS job. The parameters follow from the link."""

    source: str
    destination: str
    identity: str
    activity: str
    priority: int
    overwrite: bool = False
    """Set for a retry that must overwrite; otherwise the policy says."""

    @property
    def link(self) -> Link:
        return Link(self.source, self.destination)

    @classmethod
    def of(cls, file: PendingFile) -> JobKey:
        return cls(file.source, file.destination, file.identity, file.activity, file.priority, file.overwrite)


@dataclass(frozen=True, slots=True)
class PlannedJob:
    """An FTS job with its exact file list, before anybody told FTS about it."""

    sid: UUID
    key: JobKey
    transfer_ids: tuple[int, ...]
    size_bytes: int

    @property
    def link(self) -> Link:
        return self.key.link


def plan_jobs(
    files: Iterable[PendingFile], policy_of: Callable[[Link], LinkPolicy], new_sid: Callable[[], UUID]
) -> list[PlannedJob]:
    """Group files into FTS jobs, keeping their order inside a job.

    Args:
        files: in the order in which they should travel.
        policy_of: gives the policy of a link; its ``files_per_job`` is the size limit.
        new_sid: gives a fresh submission id at each call; one sid is one attempt to submit.
    """
    groups: dict[JobKey, list[PendingFile]] = defaultdict(list)
    for file in files:
        groups[JobKey.of(file)].append(file)
    jobs = []
    for key, group in groups.items():
        size = policy_of(key.link).files_per_job
        for start in range(0, len(group), size):
            part = group[start : start + size]
            jobs.append(
                PlannedJob(
                    sid=new_sid(),
                    key=key,
                    transfer_ids=tuple(file.transfer_id for file in part),
                    size_bytes=sum(file.size_bytes for file in part),
                )
            )
    return jobs


class ShardLoad(NamedTuple):
    """One FTS job, as far as sharing out the work needs it."""

    sid: UUID
    link: Link
    file_count: int


@dataclass(frozen=True, slots=True)
class Shard:
    """FTS jobs that one task submits."""

    sids: tuple[UUID, ...]
    links: tuple[Link, ...]
    file_count: int

    @property
    def label(self) -> str:
        """What operators see on the mapped task: its largest link by name, and how many more there are."""
        rest = len(self.links) - 1
        more = f" and {rest} more link{'' if rest == 1 else 's'}" if rest else ""
        return f"{self.links[0]}{more}"


def pack_shards(jobs: Sequence[ShardLoad], max_shards: int, jobs_per_shard: int) -> list[Shard]:
    """Share jobs out over at most ``max_shards`` tasks of similar size; a link stays in one shard if it can.

    A task costs as much as some tens of POSTs (docs/adr/0004-cycles.md), so a second shard is opened only
    for more than ``jobs_per_shard`` jobs.
    """
    count = min(max_shards, -(-len(jobs) // jobs_per_shard))
    loads: list[list[ShardLoad]] = [[] for _ in range(count)]
    sizes = [0] * count
    for link_jobs in _largest_links_first(jobs, per_piece=jobs_per_shard):
        lightest = sizes.index(min(sizes))
        loads[lightest].extend(link_jobs)
        sizes[lightest] += sum(job.file_count for job in link_jobs)
    return [
        Shard(
            sids=tuple(job.sid for job in load),
            links=tuple(dict.fromkeys(job.link for job in load)),
            file_count=size,
        )
        for load, size in zip(loads, sizes, strict=True)
        if load
    ]


def _largest_links_first(jobs: Sequence[ShardLoad], per_piece: int) -> list[list[ShardLoad]]:
    by_link: dict[Link, list[ShardLoad]] = defaultdict(list)
    for job in jobs:
        by_link[job.link].append(job)
    pieces = [
        link_jobs[start : start + per_piece]
        for link_jobs in by_link.values()
        for start in range(0, len(link_jobs), per_piece)
    ]
    return sorted(pieces, key=lambda piece: -sum(job.file_count for job in piece))
