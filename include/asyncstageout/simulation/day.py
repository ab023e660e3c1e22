"""A day of a scenario, second by second or a little coarser."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

from asyncstageout.core.retries import DEFAULT_BACKOFF
from asyncstageout.simulation.arrivals import (
    DAY_S,
    LOUDNESS_S,
    busy_links,
    intensity,
    jobs_of,
    loudness,
    streams,
)
from asyncstageout.simulation.calibration import Calibration
from asyncstageout.simulation.cores import Cores, Kind
from asyncstageout.simulation.cycles import Batch, Cycle, Grouping
from asyncstageout.simulation.measures import Outcome, Place, Resource, Sample
from asyncstageout.simulation.scenarios import Deployment, Scenario
from asyncstageout.simulation.sensing import Looks
from asyncstageout.simulation.topology import link_classes, site_classes
from asyncstageout.simulation.transfers import Copies, Fullness
from asyncstageout.simulation.waits import Cohort, Delays, Queue
from asyncstageout.simulation.watches import Watch

LEARN_S = 10.0
"""How often the watch's view of open jobs follows FTS."""
INTAKE_SHARE = 0.5
"""Of Postgres, that taking requests in has at most beside everything else."""
RETRY_GRAIN_S = 30.0


@dataclass(slots=True)
class Day:
    """One installation of a scenario's deployment, with its part of the load.

    Args:
        load: times the scenario's files.
        steady: only the day's busiest moment, made to last, with an FTS that knows its links.
        step_s: how finely arrivals, polls and FTS are reckoned; tasks end when they end. A whole number that
            divides 10.
    """

    scenario: Scenario
    deployment: Deployment
    calibration: Calibration
    seed: int = 1
    load: float = 1.0
    steady: bool = False
    step_s: float = 1.0

    now_s: float = field(init=False, default=0.0)
    copies: Copies = field(init=False)
    looks: Looks = field(init=False)
    watch: Watch = field(init=False)
    cycles: list[Cycle] = field(init=False, default_factory=list)
    lock: Grouping = field(init=False, default_factory=Grouping)
    cores: Cores = field(init=False)
    inbox: Queue = field(init=False, default_factory=Queue)
    """Requests that nobody has taken in yet."""
    fresh: Queue = field(init=False, default_factory=Queue)
    """Files that wait for their first attempt."""
    waiting: list[float] = field(init=False)
    """Files that wait for an attempt, by class of link."""
    again: deque[tuple[float, list[float]]] = field(init=False, default_factory=deque)
    """Files that wait for another attempt, with when it is due."""
    past: float = field(init=False, default=0.0)
    """Files of yesterday that should be in the history."""
    arrived: float = field(init=False, default=0.0)
    done: float = field(init=False, default=0.0)
    failed: float = field(init=False, default=0.0)
    jobs: float = field(init=False, default=0.0)
    accepted_after: Delays = field(init=False, default_factory=Delays)
    settled_after: Delays = field(init=False, default_factory=Delays)

    def __post_init__(self) -> None:
        sites = site_classes(self.scenario.sites, self.scenario.site_exponent)
        links = link_classes(sites, self.deployment.installations)
        self.copies = Copies(
            self.scenario, self.deployment, self.calibration, sites, links, is_warm=self.steady
        )
        self.looks = Looks(self.deployment, self.calibration)
        self.watch = Watch(self.deployment, self.calibration, self.looks, self._apply, self._to_history)
        host_cores = self.deployment.fts_hosts * self.deployment.fts_host_cores
        self.cores = Cores(
            {
                Kind.PYTHON: self.deployment.worker_cores,
                Kind.POSTGRES: self.deployment.postgres_cores,
                Kind.FTS: host_cores / self.deployment.installations,
            }
        )
        self.waiting = [0.0] * len(links)
        self._shares = [one.share for one in links]
        self._files_per_job = [1.0] * len(links)
        self._random = Random(self.seed)  # noqa: S311 - the same seed is the same day
        self._rung_s = -self.deployment.bell_s
        self._before = self._counters(0.0)

    _shares: list[float] = field(init=False)
    _files_per_job: list[float] = field(init=False)
    _random: Random = field(init=False)
    _rung_s: float = field(init=False)
    _before: dict[Resource, tuple[float, float]] = field(init=False)
    _accepted_lately: Delays = field(init=False, default_factory=Delays)
    _settled_lately: Delays = field(init=False, default_factory=Delays)
    _unsorted: float = field(init=False, default=0.0)
    """Files that wait for their first attempt and are not in ``waiting`` yet."""
    _posted: list[tuple[Batch, float]] = field(init=False, default_factory=list)
    """What FTS accepted and has not looked at yet."""
    _sampled_s: float = field(init=False, default=0.0)
    _api_s: float = field(init=False, default=0.0)
    _room_s: float = field(init=False, default=0.0)
    _tasks: float = field(init=False, default=0.0)
    _copies_before: float = field(init=False, default=0.0)
    _done_before: float = field(init=False, default=0.0)
    _arrived_before: float = field(init=False, default=0.0)

    def run(self, seconds: float = DAY_S, sample_s: float = 900.0) -> Outcome:
        """Let so much (more) time pass, and tell what happened."""
        samples: list[Sample] = []
        parts, fts_s = self.deployment.installations, self.calibration.fts_scheduler_s
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            now_s = self.now_s
            if now_s % LOUDNESS_S == 0:
                self._draw(now_s)
            if now_s % LEARN_S == 0:
                self.looks.learn(self.copies, self._files_per_job)
            if now_s % fts_s < self.step_s:
                for batch, part in self._posted:
                    self.copies.accept(batch.files, part)
                self._posted.clear()
                self.looks.end(self.copies.advance(max(fts_s, self.step_s)), now_s)
            self._step(now_s)
            self.now_s += self.step_s
            if self.now_s % sample_s == 0 or self.now_s >= until_s:
                samples.append(self._sampled(self.now_s))
        return Outcome(
            samples=samples,
            arrived=self.arrived * parts,
            done=self.done * parts,
            failed=self.failed * parts,
            jobs=self.jobs * parts,
            backlog={place: files * parts for place, files in self.backlog().items()},
            behind=self.past * parts,
            accepted_after=self.accepted_after,
            settled_after=self.settled_after,
        )

    def backlog(self) -> dict[Place, float]:
        """Return how many files are where."""
        return {
            Place.INBOX: self.inbox.files,
            Place.WAITING: self._waiting_files,
            Place.PLANNED: sum(cycle.planned for cycle in self.cycles),
            Place.QUEUED: sum(self.copies.queued) + sum(batch.count * part for batch, part in self._posted),
            Place.ACTIVE: sum(self.copies.active),
            Place.ENDED: self.looks.files,
            Place.FOUND: self.watch.found_files,
            Place.RETRY: sum(sum(files) for _, files in self.again),
        }

    # What happens in a step

    def _step(self, now_s: float) -> None:
        intake = self._arrive(now_s)
        while self.again and self.again[0][0] <= now_s:
            _, files = self.again.popleft()
            self.waiting = [have + more for have, more in zip(self.waiting, files, strict=True)]
        self._ring(now_s)
        self.cores.flow(intake / self.step_s)
        for cycle in list(self.cycles):
            cycle.advance(now_s, self.step_s, self.cores)
            if cycle.is_over:
                self._tasks += cycle.tasks
                self.cycles.remove(cycle)
        self.watch.advance(now_s, self.step_s, self.cores)
        self._room_s += sum(cycle.fullness for cycle in self.cycles) * self.step_s

    def _arrive(self, now_s: float) -> float:
        """Let requests arrive and be taken in; return what that cost Postgres, in seconds of CPU."""
        cost, parts = self.calibration.steps["intake"], self.deployment.installations
        daily = self.scenario.files_per_day * self.load / parts / DAY_S
        busiest = self.scenario.peak_files_per_s * self.load / parts
        rate = busiest if self.steady else daily * intensity(self.scenario.profile, now_s)
        self.arrived += rate * self.step_s
        # The day before was the same, and what it left goes to the history today.
        self.past += rate * self.step_s
        self.inbox.put([Cohort(now_s + self.step_s / 2, rate * self.step_s)])
        room = min(
            self.deployment.api_cores / cost.python_file_s,
            self.deployment.postgres_cores * INTAKE_SHARE / cost.postgres_file_s,
        )
        taken = self.inbox.take(room * self.step_s)
        files = sum(cohort.files for cohort in taken)
        self.fresh.put(taken)
        self._unsorted += files
        self._api_s += cost.python_s(files)
        self.cores.spend({Kind.POSTGRES: cost.postgres_s(files)})
        return cost.postgres_s(files)

    def _sort(self) -> None:
        """Give files that were taken in to their classes of links."""
        files, self._unsorted = self._unsorted, 0.0
        if files:
            self.waiting = [
                have + files * share for have, share in zip(self.waiting, self._shares, strict=True)
            ]

    def _draw(self, now_s: float) -> None:
        """Draw how loud each class of links is for the next while, and on how many links files come."""
        self._sort()
        at_s = 0.0 if self.steady else now_s
        rate = self.scenario.files_per_day * self.load / DAY_S
        rate *= 1.0 if self.steady else intensity(self.scenario.profile, at_s)
        flows = [
            streams(
                one,
                rate / self.deployment.installations,
                self.scenario.files_per_stream,
                self.scenario.stream_s,
            )
            for one in self.copies.links
        ]
        loud = [
            one.share * loudness(flow, self._random)
            for one, flow in zip(self.copies.links, flows, strict=True)
        ]
        total = sum(loud)
        self._shares = [share / total for share in loud]
        self.copies.flows = [
            max(1.0, busy_links(one.links, flow)) if one.links >= 1 else one.links
            for one, flow in zip(self.copies.links, flows, strict=True)
        ]

    def _ring(self, now_s: float) -> None:
        """Start a cycle if files wait, the doorbell may ring and Airflow lets it."""
        if (
            len(self.cycles) < self.deployment.cycles_at_once
            and now_s - self._rung_s >= self.deployment.bell_s
            and self._waiting_files >= 1
        ):
            self._rung_s = now_s
            self.cycles.append(Cycle(self.deployment, self.calibration, self.lock, self._take, self._accept))

    @property
    def _waiting_files(self) -> float:
        return sum(self.waiting) + self._unsorted

    def _take(self, limit: float) -> Batch:
        """Take what waits, up to a limit; if more waits, every link has the same room."""
        self._sort()
        there = sum(self.waiting)
        files = list(self.waiting) if there <= limit else self._fair(limit)
        self.waiting = [have - taken for have, taken in zip(self.waiting, files, strict=True)]
        jobs = [
            jobs_of(count, flows, self.deployment.files_per_job)
            for count, flows in zip(files, self.copies.flows, strict=True)
        ]
        for place, (count, number) in enumerate(zip(files, jobs, strict=True)):
            if number > 0:
                self._files_per_job[place] = count / number
        count = sum(files)
        self.jobs += (planned := sum(jobs))
        self.watch.files_per_job = count / planned if planned else 1.0
        fresh = self.fresh.files / there if there > 0 else 0.0
        return Batch(self.fresh.take(count * min(1.0, fresh)), files, jobs)

    def _fair(self, limit: float) -> list[float]:
        low, high = 0.0, limit
        for _ in range(40):
            room = (low + high) / 2
            sums = sum(
                min(have, room * flows) for have, flows in zip(self.waiting, self.copies.flows, strict=True)
            )
            low, high = (room, high) if sums < limit else (low, room)
        return [min(have, low * flows) for have, flows in zip(self.waiting, self.copies.flows, strict=True)]

    def _accept(self, batch: Batch, part: float, now_s: float) -> None:
        self._posted.append((batch, part))
        for since_s, files in batch.cohorts:
            self._accepted_lately.note(now_s - since_s, files * part)

    def _apply(self, found: Sequence[Cohort], part: float, now_s: float) -> None:
        failing = self.calibration.attempts_failing if self.scenario.failing else 0.0
        files = sum(cohort.files for cohort in found) * part
        self.failed += files * failing * self.calibration.failures_for_good
        self._try_again(files * failing * (1 - self.calibration.failures_for_good), now_s)
        self.done += files * (1 - failing)
        for since_s, count in found:
            self._settled_lately.note(now_s - since_s, count * part * (1 - failing))

    def _try_again(self, files: float, now_s: float) -> None:
        total = sum(self.copies.rate)
        if files <= 0 or total <= 0:
            return
        due_s = (now_s + DEFAULT_BACKOFF.first_s) // RETRY_GRAIN_S * RETRY_GRAIN_S + RETRY_GRAIN_S
        by_class = [files * rate / total for rate in self.copies.rate]
        if self.again and self.again[-1][0] >= due_s:
            due_s, before = self.again.pop()
            by_class = [one + more for one, more in zip(by_class, before, strict=True)]
        self.again.append((due_s, by_class))

    def _to_history(self, at_most: float) -> float:
        moved = min(at_most, self.past)
        self.past -= moved
        return moved

    # What is told of it

    def _counters(self, now_s: float) -> dict[Resource, tuple[float, float]]:
        """Return what was used of each resource so far, and what there was."""
        deployment, cores, watch = self.deployment, self.cores, self.watch
        tasks = self._tasks + watch.tasks
        return {
            Resource.API: (self._api_s, deployment.api_cores * now_s),
            Resource.POSTGRES: (cores.busy_s[Kind.POSTGRES], cores.count[Kind.POSTGRES] * now_s),
            Resource.WORKERS: (cores.busy_s[Kind.PYTHON], cores.count[Kind.PYTHON] * now_s),
            Resource.AIRFLOW: (tasks, deployment.schedulers * self.calibration.scheduler_tasks_per_s * now_s),
            Resource.LOCK: (self.lock.held_s, now_s),
            Resource.CYCLES: (self._room_s, deployment.cycles_at_once * now_s),
            Resource.WATCH: (watch.update_s, now_s),
            Resource.TRIGGERER: (watch.sensing_s, now_s),
            Resource.POLLING: (self.looks.rows, self.looks.allowed_rows),
            Resource.HISTORY: (watch.moved, watch.updates * deployment.history_files),
            Resource.FTS_API: (cores.busy_s[Kind.FTS], cores.count[Kind.FTS] * now_s),
        }

    def _sampled(self, now_s: float) -> Sample:
        width_s, self._sampled_s = now_s - self._sampled_s, now_s
        counters, parts = self._counters(now_s), self.deployment.installations
        use = {
            resource: _part(used - self._before[resource][0], could - self._before[resource][1])
            for resource, (used, could) in counters.items()
        }
        full, self.copies.full = self.copies.full, Fullness()
        use |= {
            Resource.FTS_HOSTS: full.hosts,
            Resource.LINKS: full.links,
            Resource.STORAGES: full.storages,
            Resource.NETWORK: full.network,
        }
        sample = Sample(
            at_s=now_s,
            arrived_per_s=(self.arrived - self._arrived_before) / width_s * parts,
            done_per_s=(self.done - self._done_before) / width_s * parts,
            use=use,
            backlog={place: files * parts for place, files in self.backlog().items()},
            copies=(self.copies.active_s - self._copies_before) / width_s * parts,
            accepted_after=(self._accepted_lately.quantile_s(0.5), self._accepted_lately.quantile_s(0.95)),
            settled_after=(self._settled_lately.quantile_s(0.5), self._settled_lately.quantile_s(0.95)),
        )
        self._before, self._arrived_before, self._done_before = counters, self.arrived, self.done
        self._copies_before = self.copies.active_s
        self.accepted_after.add(self._accepted_lately)
        self.settled_after.add(self._settled_lately)
        self._accepted_lately, self._settled_lately = Delays(), Delays()
        return sample


def _part(used: float, could: float) -> float:
    return min(1.0, used / could) if could > 0 else 0.0
