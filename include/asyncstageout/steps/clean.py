"""Deletes the temporary copies of files that have ended: claims them in rounds, and settles what came of it.

Copies are claimed in short transactions, so many as their storage takes in two minutes; threads do the rest
(:mod:`asyncstageout.steps.deleting`) while no transaction is open. Whatever dies, a claim ends, and the next
run finds what was deleted gone.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime

from psycopg import Connection

from asyncstageout.catalogue import cleaning
from asyncstageout.catalogue.cleaning import Word
from asyncstageout.catalogue.policies import policy_rows
from asyncstageout.catalogue.restrictions import restrictions_in_force
from asyncstageout.catalogue.storages import current_storages
from asyncstageout.core.cleaning import Copy, Outcome, Trouble, holds_cleaning, next_look, pause
from asyncstageout.core.identities import Identity
from asyncstageout.core.policies import LinkPolicy, Policies
from asyncstageout.core.temporary_names import CopyNames, NotTemporary
from asyncstageout.steps.crashpoints import reached
from asyncstageout.steps.deleting import Batch, Deleters, NamedCopy, Pace, Storage, Worker, failed
from asyncstageout.steps.recording import Summary, size

logger = logging.getLogger(__name__)

THREADS = 16
PER_SITE = 4
"""Requests under way at one storage."""
ROUND_COPIES = 1000
ROUND_S = 120
"""A round of a site is so many copies, and no more than fit into this time at its rate."""
BATCH_COPIES = 250
"""What one thread works through."""
LEASE_S = 900.0
"""A claim ends after so long."""
BATCH_S = 400.0
"""A batch ends after so long, with what it has not got to given back."""
WORK_S = 600.0
"""After this nothing more is claimed: the next run comes soon."""
SETTLE_S = 1.0
"""What became of copies is written down at least so often."""


def utc_now() -> datetime:
    return datetime.now(UTC)


def delete(
    conn: Connection,
    deleters: Deleters,
    *,
    sites: Collection[str],
    step_run: int,
    username: str | None = None,
    limit: int = 1_000_000,
    clock: Callable[[], datetime] = utc_now,
    threads: int = THREADS,
) -> Summary:
    """Delete what is due at these sites.

    Args:
        username: only this user's copies.
        limit: copies to claim at most.
    """
    work = _Cleaning(conn, deleters, sites, step_run=step_run, username=username, limit=limit, clock=clock)
    work.open(sites)
    work.run(threads)
    return work.close()


class _Site:
    """A site that is being cleaned."""

    def __init__(self, name: str, policy: LinkPolicy) -> None:
        self.name = name
        self.storage = Storage(Pace(policy.deletes_per_s))
        self.round_copies = min(ROUND_COPIES, policy.deletes_per_s * ROUND_S)
        self.batches: deque[Batch] = deque()
        self.running = 0
        self.is_over = False
        """Nothing more is claimed here."""


class _Cleaning:
    """One step at work; it alone speaks to the catalogue."""

    def __init__(
        self,
        conn: Connection,
        deleters: Deleters,
        sites: Collection[str],
        *,
        step_run: int,
        username: str | None,
        limit: int,
        clock: Callable[[], datetime],
    ) -> None:
        self._conn, self._step_run = conn, step_run
        self._username, self._left, self._clock = username, limit, clock
        self._worker = Worker(deleters, clock)
        self._policies = Policies(policy_rows(conn))
        storages = {site: storage for site, (_, storage) in current_storages(conn, list(sites)).items()}
        self._names = CopyNames(storages, deleters.schemes)
        self._ends_at_s = time.monotonic() + WORK_S
        self._sites: list[_Site] = []
        self._held: dict[str, str] = {}
        """Why nothing, or nothing more, is deleted at a site."""
        self._words: list[Word] = []
        self._settled_at_s = time.monotonic()
        self._counts: Counter[Outcome] = Counter()
        self._deleted_bytes = 0

    def open(self, wanted: Collection[str]) -> None:
        """Take the sites that may be cleaned now, and at which nobody else is at work."""
        restrictions = restrictions_in_force(self._conn)
        for name in wanted:
            hold = next((one for one in restrictions if holds_cleaning(one, name)), None)
            if hold is not None:
                self._held[name] = hold.sentence()
            elif not self._keep(name):
                self._held[name] = "another step is at work there"
            else:
                self._sites.append(_Site(name, self._policies.of(name, "")))

    def run(self, threads: int) -> None:
        """Work until nothing more is due, or the limit or the time is over."""
        running: dict[Future[list[Word]], _Site] = {}
        with ThreadPoolExecutor(threads, thread_name_prefix="clean") as pool:
            try:
                while True:
                    for site, batch in self._next_batches(threads - len(running)):
                        running[pool.submit(self._worker.work, site.storage, batch)] = site
                    if not running:
                        break
                    ended, _ = wait(running, timeout=SETTLE_S, return_when=FIRST_COMPLETED)
                    for future in ended:
                        running.pop(future).running -= 1
                        self._words += future.result()
                    if time.monotonic() - self._settled_at_s >= SETTLE_S:
                        self._settle()
            except BaseException:
                for site in self._sites:  # else the pool would wait for all that is under way
                    site.storage.stopped = "the step is over"
                raise
        self._settle()

    def close(self) -> Summary:
        """Leave alone the storages that did not answer, give all sites back, and say what became of it."""
        for site in self._sites:
            if (why := site.storage.stopped) is not None:
                until = self._clock() + pause(cleaning.pauses_of(self._conn, site.name))
                cleaning.pause_site(self._conn, site.name, until=until, reason=why)
                self._held[site.name] = f"{why.rstrip('.')}; left alone until {until:%H:%M} UTC"
            elif site.storage.answered:
                cleaning.site_answers(self._conn, site.name)
        cleaning.leave_sites(self._conn, self._step_run)
        return self._summary()

    def _next_batches(self, free: int) -> Iterator[tuple[_Site, Batch]]:
        """Yield work for free threads, the sites taking turns."""
        is_more = True
        while is_more:
            is_more = False
            for site in self._sites:
                if free and site.running < PER_SITE and (site.batches or self._begin_round(site)):
                    site.running += 1
                    free -= 1
                    is_more = True
                    yield site, site.batches.popleft()

    def _begin_round(self, site: _Site) -> bool:
        """Claim the next copies of a site; return whether there is something to do."""
        while not (site.batches or site.is_over):
            if self._left <= 0 or time.monotonic() > self._ends_at_s or site.storage.stopped:
                site.is_over = True
            elif self._keep(site.name):
                self._claim(site)
            else:
                site.is_over = True
        return bool(site.batches)

    def _claim(self, site: _Site) -> None:
        due = cleaning.due_copies(
            self._conn, site.name, at_most=min(site.round_copies, self._left), username=self._username
        )
        ready = self._ready(due)
        claimed = cleaning.claim(self._conn, ready, step_run=self._step_run, lease_s=LEASE_S)
        reached("clean.after_claim")
        self._left -= len(claimed)
        site.batches += self._batches(claimed)
        # What is due and cannot be claimed is in somebody else's hands at this moment.
        site.is_over = not due or (bool(ready) and not claimed)

    def _keep(self, site: str) -> bool:
        return cleaning.take_site(self._conn, site, step_run=self._step_run, lease_s=LEASE_S)

    def _ready(self, due: Sequence[Copy]) -> list[Copy]:
        """Return the copies that the policy lets go now; the others are looked at again later."""
        ready, later = [], []
        for copy in due:
            look_at = next_look(copy, self._policy(copy), self._clock())
            if look_at is None:
                ready.append(copy)
            else:
                later.append((copy, look_at))
        cleaning.postpone(self._conn, later)
        return ready

    def _policy(self, copy: Copy) -> LinkPolicy:
        return self._policies.of(copy.source, copy.destination, copy.username, copy.activity)

    def _batches(self, copies: Sequence[Copy]) -> Iterator[Batch]:
        """Share copies out, those of an identity and a directory together; what has no name ends here."""
        by_identity: dict[str, list[NamedCopy]] = defaultdict(list)
        for copy in copies:
            owner = Identity.read(copy.identity)
            actor = owner if self._policy(copy).credential == "user" else owner.of_service()
            try:
                by_identity[str(actor)].append(NamedCopy(copy, self._names.url(copy)))
            except NotTemporary as error:
                self._words.append(failed(copy, Trouble.NAME, str(error), self._clock()))
        ends_at_s = time.monotonic() + BATCH_S
        for identity, named in by_identity.items():
            named.sort(key=lambda one: one.url)
            for start in range(0, len(named), BATCH_COPIES):
                yield Batch(identity, named[start : start + BATCH_COPIES], ends_at_s)

    def _settle(self) -> None:
        words, self._words, self._settled_at_s = self._words, [], time.monotonic()
        if not words:
            return
        reached("clean.after_delete")
        cleaning.settle(self._conn, words, self._step_run)
        reached("clean.after_settle")
        for word in words:
            self._counts[word.outcome] += 1
            if word.outcome is Outcome.DELETED:
                self._deleted_bytes += word.copy.size_bytes
            elif word.reason:
                logger.info("%s: %s: %s", word.copy.source_lfn, word.outcome, word.reason)

    def _summary(self) -> Summary:
        counts = self._counts
        sentence = (
            f"Deleted {counts[Outcome.DELETED]:,} temporary copies, {size(self._deleted_bytes)},"
            f" at {len(self._sites)} sites; {counts[Outcome.GONE]:,} were gone"
        )
        for outcome, words in _ALSO.items():
            if counts[outcome]:
                sentence += f", {counts[outcome]:,} {words}"
        if self._held:
            sentence += "; " + "; ".join(f"{site}: {why}" for site, why in sorted(self._held.items()))
        return Summary(
            sentence,
            {outcome.value.lower(): counts[outcome] for outcome in Outcome}
            | {
                "deleted_bytes": self._deleted_bytes,
                "sites": len(self._sites),
                "held_sites": len(self._held),
            },
        )


_ALSO = {
    Outcome.LEFT: "are not what was meant and stay",
    Outcome.WAITING: "are tried again",
    Outcome.FAILED: "were given up",
}
