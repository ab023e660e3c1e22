"""FTS: files queue per link, and copies run within the limits of links, storages, hosts and networks.

Durations of copies are exponential around the time that overhead and bytes take; a class of links is reckoned
by its averages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp

from asyncstageout.simulation.arrivals import DAY_S, busy_links
from asyncstageout.simulation.calibration import Calibration
from asyncstageout.simulation.scenarios import Deployment, Scenario
from asyncstageout.simulation.topology import LinkClass, SiteClass

BITS = 8
GIGA = 1e9
SMOOTHED_S = 60.0


@dataclass(slots=True)
class Fullness:
    """Greatest part of a limit that is in use, over all classes: 1 is full."""

    links: float = 0.0
    storages: float = 0.0
    hosts: float = 0.0
    network: float = 0.0


@dataclass(slots=True)
class Copies:
    """All copies at FTS."""

    scenario: Scenario
    deployment: Deployment
    calibration: Calibration
    sites: Sequence[SiteClass]
    links: Sequence[LinkClass]
    is_warm: bool = False
    """Whether FTS's optimizer starts with what it would learn in hours."""

    queued: list[float] = field(init=False)
    active: list[float] = field(init=False)
    flows: list[float] = field(init=False)
    """Links of each class that have traffic at a time."""
    rate: list[float] = field(init=False)
    """Files that ended, for each second, smoothed over a minute."""
    full: Fullness = field(default_factory=Fullness)
    active_s: float = 0.0
    """Copies that ran, times how long."""
    _limit: list[float] = field(init=False)
    _optimized_s: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        count, learnt = len(self.links), self.deployment.link_slots if self.is_warm else 0.0
        self.queued, self.active, self.rate = [0.0] * count, [0.0] * count, [0.0] * count
        self.flows = [one.links for one in self.links]
        self._limit = [max(learnt, self.calibration.fts_min_active)] * count

    def accept(self, files: Sequence[float], part: float) -> None:
        """Queue this part of files, by class of link."""
        self.queued = [queued + more * part for queued, more in zip(self.queued, files, strict=True)]

    def advance(self, step_s: float) -> list[float]:
        """Start and end copies; return how many ended, by class of link."""
        ended = self._end(step_s)
        self._start()
        self.active_s += sum(self.active) * step_s
        self._optimize(step_s)
        return ended

    def _end(self, step_s: float) -> list[float]:
        bytes_s = self.scenario.file_bytes / self.calibration.stream_bytes_s
        slow_out, slow_in = self._slowness()
        weight = min(1.0, step_s / SMOOTHED_S)
        ended = []
        for place, link in enumerate(self.links):
            slow = max(slow_out[link.source], slow_in[link.destination])
            copy_s = self.calibration.copy_overhead_s + bytes_s * slow
            files = self.active[place] * (1 - exp(-step_s / copy_s))
            self.active[place] -= files
            self.rate[place] += (files / step_s - self.rate[place]) * weight
            ended.append(files)
        return ended

    def _start(self) -> None:
        slots = [
            limit * busy_links(min(link.links, flows), queued + active)
            for limit, link, flows, queued, active in zip(
                self._limit, self.links, self.flows, self.queued, self.active, strict=True
            )
        ]
        wanted = [
            max(0.0, min(queued, room - active))
            for queued, room, active in zip(self.queued, slots, self.active, strict=True)
        ]
        part_out, part_in = (
            [
                _part(limit - used, asked)
                for limit, used, asked in zip(self._storages, have, want, strict=True)
            ]
            for have, want in zip(self._sums(self.active), self._sums(wanted), strict=True)
        )
        starting = [
            want * min(part_out[link.source], part_in[link.destination])
            for want, link in zip(wanted, self.links, strict=True)
        ]
        part = _part(self._host_slots - sum(self.active), sum(starting))
        for place, files in enumerate(starting):
            self.queued[place] -= files * part
            self.active[place] += files * part
        self._note(slots)

    @property
    def _host_slots(self) -> float:
        return self.calibration.fts_host_slots * self.deployment.fts_hosts / self.deployment.installations

    def _sums(self, values: Sequence[float]) -> tuple[list[float], list[float]]:
        """Add up by class of source and of destination."""
        out, into = [0.0] * len(self.sites), [0.0] * len(self.sites)
        for value, link in zip(values, self.links, strict=True):
            out[link.source] += value
            into[link.destination] += value
        return out, into

    @property
    def _storages(self) -> list[float]:
        """Copies that the sites of each class stand, in each direction.

        Sources are shared out over installations, and so is what a destination stands.
        """
        parts = self.deployment.installations
        return [self.deployment.storage_slots * one.sites / parts for one in self.sites]

    def _slowness(self) -> tuple[list[float], list[float]]:
        """Return how many times longer bytes take from and to sites whose network is full, by class."""
        moving_s = self.scenario.file_bytes / self.calibration.stream_bytes_s
        # While it opens and closes files, a copy moves nothing.
        copy_bytes_s = self.scenario.file_bytes / (moving_s + self.calibration.copy_overhead_s)
        bands = [self._site_bytes_s(one) * one.sites / self.deployment.installations for one in self.sites]
        out, into = (
            [used * copy_bytes_s / band for used, band in zip(sums, bands, strict=True)]
            for sums in self._sums(self.active)
        )
        self.full.network = max(self.full.network, min(1.0, max(*out, *into)))
        return [max(1.0, load) for load in out], [max(1.0, load) for load in into]

    def _site_bytes_s(self, one: SiteClass) -> float:
        needed = self.scenario.files_per_day * one.share * self.scenario.file_bytes / DAY_S
        return max(self.scenario.least_gbit_s * GIGA / BITS, needed * self.scenario.network_headroom)

    def _optimize(self, step_s: float) -> None:
        """Give links that have a queue another copy now and then, as FTS does while all goes well."""
        self._optimized_s += step_s
        if self._optimized_s < self.calibration.fts_optimizer_s:
            return
        self._optimized_s = 0.0
        for place, queued in enumerate(self.queued):
            if queued >= self.active[place] > 0 and self._limit[place] < self.deployment.link_slots:
                self._limit[place] += self.calibration.fts_step

    def _note(self, slots: Sequence[float]) -> None:
        full = self.full
        for active, room, limit in zip(self.active, slots, self._limit, strict=True):
            if room > 0:
                full.links = max(full.links, min(1.0, active / room) * limit / self.deployment.link_slots)
        for sums in self._sums(self.active):
            for used, limit in zip(sums, self._storages, strict=True):
                full.storages = max(full.storages, min(1.0, used / limit))
        full.hosts = max(full.hosts, min(1.0, sum(self.active) / self._host_slots))


def _part(room: float, asked: float) -> float:
    """Return what part of what is asked for there is room for."""
    return min(1.0, max(0.0, room) / asked) if asked > 0 else 1.0
