"""Which files go together: links into FTS jobs, jobs into shards, and whose file is next.

One FTS job holds one identity, activity, priority, source, destination and set of parameters (FTS applies
them to the whole job), and goes to one FTS server.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID

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


class InFlight(NamedTuple):
    """What FTS has of a link, or of somebody's share of it."""

    files: int = 0
    size_bytes: int = 0

    def __add__(self, other: InFlight) -> InFlight:  # type: ignore[override]
        return InFlight(self.files + other.files, self.size_bytes + other.size_bytes)


class PendingFile(NamedTuple):
    """A file that was taken for this cycle, as planning needs it."""

    transfer_id: int
    source: str
    destination: str
    username: str
    identity: str
    """Whose file it is, as :mod:`asyncstageout.core.identities` writes it."""
    activity: str
    priority: int
    size_bytes: int
    source_lfn: str
    destination_lfn: str
    fts_job: UUID | None = None
    """sid of the job of its last attempt."""
    overwrite: bool = False
    """Whether it must overwrite what its last attempt met, whatever the policy says."""
    has_checksum: bool = True

    @property
    def link(self) -> Link:
        return Link(self.source, self.destination)


class FileNames(NamedTuple):
    """How the files of one FTS job are named at both ends: versions of the storages, and their protocols."""

    source_storage: int
    source_protocol: str
    destination_storage: int
    destination_protocol: str


class JobKey(NamedTuple):
    """What must be equal for two files to share an FTS job."""

    source: str
    destination: str
    fts_server: str
    identity: str
    """Whose credential FTS sees."""
    activity: str
    priority: int
    names: FileNames
    params: tuple[tuple[str, Any], ...] = ()
    """(name, value) of ``core.fts.JobParams``, sorted."""

    @property
    def link(self) -> Link:
        return Link(self.source, self.destination)


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
    files: Iterable[tuple[JobKey, PendingFile]],
    files_per_job: Callable[[JobKey], int],
    new_sid: Callable[[], UUID],
) -> list[PlannedJob]:
    """Group files into FTS jobs, keeping their order inside a job.

    Args:
        files: each with what its job must be like, in the order in which they should travel.
        new_sid: gives a fresh submission id at each call; one sid is one attempt to submit.
    """
    groups: dict[JobKey, list[PendingFile]] = defaultdict(list)
    for key, file in files:
        groups[key].append(file)
    return [
        PlannedJob(
            sid=new_sid(),
            key=key,
            transfer_ids=tuple(file.transfer_id for file in part),
            size_bytes=sum(file.size_bytes for file in part),
        )
        for key, group in groups.items()
        for size in (files_per_job(key),)
        for part in (group[start : start + size] for start in range(0, len(group), size))
    ]


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
