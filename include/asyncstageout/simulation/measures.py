"""What a simulated day is told by: places where files are, resources and how busy they were, delays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from asyncstageout.simulation.waits import Delays


class Place(StrEnum):
    """Where a file is that arrived and is neither DONE nor FAILED."""

    INBOX = "inbox"
    WAITING = "waiting"
    PLANNED = "planned"
    QUEUED = "queued at FTS"
    ACTIVE = "being copied"
    ENDED = "ended, not found"
    FOUND = "found, not applied"
    RETRY = "retry"


class Resource(StrEnum):
    """What may be full."""

    API = "API server"
    POSTGRES = "Postgres"
    WORKERS = "step workers"
    AIRFLOW = "Airflow's scheduler"
    LOCK = "grouping lock"
    CYCLES = "room of the cycles"
    WATCH = "update_catalogue"
    TRIGGERER = "triggerer"
    POLLING = "polls of FTS"
    HISTORY = "moves to the history"
    FTS_API = "FTS API"
    FTS_HOSTS = "slots of FTS hosts"
    LINKS = "slots of a link"
    STORAGES = "slots of a storage"
    NETWORK = "network of a site"


@dataclass(frozen=True, slots=True)
class Sample:
    """Some minutes of a day, of all installations together; delays in seconds."""

    at_s: float
    """Their end."""
    arrived_per_s: float
    done_per_s: float
    use: Mapping[Resource, float]
    """Busy part of each: 1 is full."""
    backlog: Mapping[Place, float]
    copies: float
    """That ran at a time, on average."""
    accepted_after: tuple[float | None, float | None]
    """p50, p95."""
    settled_after: tuple[float | None, float | None]

    @property
    def backlog_files(self) -> float:
        return sum(self.backlog.values())


@dataclass(frozen=True, slots=True)
class Outcome:
    """A day, or a part of one; files of all installations together."""

    samples: Sequence[Sample]
    arrived: float
    done: float
    failed: float
    jobs: float
    """FTS jobs."""
    backlog: Mapping[Place, float]
    """At the end."""
    behind: float
    """Files of yesterday that are not in the history at the end, and should be."""
    accepted_after: Delays
    settled_after: Delays

    def busiest(self) -> dict[Resource, float]:
        """Return the greatest use of each resource in any sample."""
        return {
            resource: max((sample.use[resource] for sample in self.samples), default=0.0)
            for resource in Resource
        }

    def average(self) -> dict[Resource, float]:
        count = max(len(self.samples), 1)
        return {
            resource: sum(sample.use[resource] for sample in self.samples) / count for resource in Resource
        }

    @property
    def largest_backlog(self) -> float:
        return max((sample.backlog_files for sample in self.samples), default=0.0)
