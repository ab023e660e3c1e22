"""Walks the temporary areas of sites and counts what no file of ours needs; deletes it only when told to.

A walk keeps its place in the catalogue: a step visits as many directories as it may, the next one goes on.
Nothing is an orphan whose name a file on its way has, or a deletion that waits, at whatever site; nor what is
young, or has no time.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from psycopg import Connection

from asyncstageout.catalogue import cleaning, sweeps
from asyncstageout.catalogue.policies import policy_rows
from asyncstageout.catalogue.restrictions import restrictions_in_force
from asyncstageout.catalogue.storages import current_storages
from asyncstageout.catalogue.sweeps import Found, Orphan, SweepView
from asyncstageout.clients.credentials.model import CredentialProblem
from asyncstageout.clients.errors import FileChanged, NoSuchFile, StorageError
from asyncstageout.clients.storage import Entry
from asyncstageout.core.cleaning import Outcome, holds_cleaning
from asyncstageout.core.identities import SERVICE
from asyncstageout.core.lfn_policy import AREAS, owner_of_folder
from asyncstageout.core.naming import MAX_LFN_CHARS
from asyncstageout.core.policies import Policies
from asyncstageout.core.temporary_names import NotTemporary, TemporaryNames
from asyncstageout.steps.clean import utc_now
from asyncstageout.steps.crashpoints import reached
from asyncstageout.steps.deleting import SILENT, Deleters, Pace
from asyncstageout.steps.recording import Summary, files, size

logger = logging.getLogger(__name__)

LEASE_S = 900.0
AT_ONCE = 40
"""Directories that are visited between two words with the catalogue."""
THREADS = 4


class SweepStopped(Exception):
    """A sweep could not go on; it goes on from there when it is started again."""

    def __init__(self, site: str, reason: str) -> None:
        self.site, self.reason = site, reason
        super().__init__(f"the sweep of {site} stopped: {reason}")


class _Visit(NamedTuple):
    """What a directory held; ``entries`` None: the storage does not tell."""

    folder: str
    entries: Sequence[Entry] | None
    ahead: timedelta = timedelta(0)
    """Of the storage's clock before ours."""


class _Tally:
    """What lies in one area."""

    def __init__(self) -> None:
        self.files = self.size_bytes = self.orphans = self.orphan_bytes = 0
        self.oldest_at: datetime | None = None

    def add(self, entry: Entry) -> None:
        self.files += 1
        self.size_bytes += entry.size_bytes
        if entry.modified_at and (self.oldest_at is None or entry.modified_at < self.oldest_at):
            self.oldest_at = entry.modified_at

    def add_orphan(self, orphan: Orphan) -> None:
        self.orphans += 1
        self.orphan_bytes += orphan.size_bytes


def sweep(
    conn: Connection,
    deleters: Deleters,
    *,
    site: str,
    step_run: int,
    older_than_days: int = 30,
    requests: int = 2000,
    delete: int = 0,
    clock: Callable[[], datetime] = utc_now,
) -> Summary:
    """Go on with the sweep of a site, or begin one, and say what it has found.

    Args:
        requests: directories to visit at most.
        delete: orphans to delete at most; 0: it only counts.

    Raises:
        NotTemporary: the site's temporary files do not lie in a directory of their own.
        SweepStopped: the storage does not answer, or the site must be left alone.
    """
    age = timedelta(days=older_than_days)
    walk = _Walk(conn, deleters, site, step_run=step_run, age=age, clock=clock)
    walk.keep()
    try:
        sweeps.begin_or_go_on(
            conn, site, older_than_days=older_than_days, roots=list(walk.roots), step_run=step_run
        )
        with ThreadPoolExecutor(THREADS, thread_name_prefix="sweep") as pool:
            while requests > 0 and (folders := sweeps.next_directories(conn, site, min(AT_ONCE, requests))):
                walk.keep()
                requests -= len(folders)
                walk.go(pool, folders, delete - walk.counts["deleted"])
    finally:
        if not conn.closed:
            cleaning.leave_sites(conn, step_run)
    return _summary(sweeps.sweep_views(conn, site)[0], walk.counts)


class _Walk:
    """A sweep at one site."""

    def __init__(
        self,
        conn: Connection,
        deleters: Deleters,
        site: str,
        *,
        step_run: int,
        age: timedelta,
        clock: Callable[[], datetime],
    ) -> None:
        self._conn, self._site, self._step_run = conn, site, step_run
        self._age, self._clock = age, clock
        self._pace = Pace(Policies(policy_rows(conn)).of(site, "").deletes_per_s)
        self.counts: Counter[str] = Counter()
        if hold := next((one for one in restrictions_in_force(conn) if holds_cleaning(one, site)), None):
            raise SweepStopped(site, hold.sentence())
        storages = current_storages(conn, [site])
        if site not in storages:
            raise NotTemporary(site, AREAS[0].prefix, "the site has no description (aso sites load)")
        self._names = TemporaryNames(storages[site][1], deleters.schemes)
        self.roots = self._find_roots()
        try:
            lfn, url = next(iter(self.roots.items()))
            self._deleter = deleters.deleter(SERVICE, url, lfn)
        except (CredentialProblem, StorageError) as problem:
            raise SweepStopped(site, str(problem)) from problem

    def _find_roots(self) -> dict[str, str]:
        """Return the URL of each temporary area that lies in a directory of its own.

        Raises:
            NotTemporary: none does.
        """
        roots: dict[str, str] = {}
        why: NotTemporary | None = None
        for area in AREAS:
            if area.is_temporary:
                try:
                    roots[area.prefix] = self._names.root(area)
                except NotTemporary as error:
                    why = error
        if not roots and why:
            raise why
        return roots

    def keep(self) -> None:
        """Keep the site for this step, so that its rate holds."""
        if not cleaning.take_site(self._conn, self._site, step_run=self._step_run, lease_s=LEASE_S):
            raise SweepStopped(self._site, "another step is at work there")

    def go(self, pool: ThreadPoolExecutor, folders: Sequence[str], delete: int) -> None:
        """Visit directories, delete so many of the orphans in them, and note what is there."""
        tallies: dict[str, _Tally] = defaultdict(_Tally)
        more: list[str] = []
        closed = 0
        old: list[Orphan] = []
        for visit in pool.map(self._visit, folders):
            closed += visit.entries is None
            for entry in visit.entries or ():
                lfn = visit.folder + _name(entry.url)
                if not entry.is_directory:
                    tallies[_area(lfn)].add(entry)
                    old += self._if_old(lfn, entry, visit.ahead)
                elif len(lfn) < MAX_LFN_CHARS:
                    more.append(f"{lfn}/")
        in_use = sweeps.needed(self._conn, [orphan.lfn for orphan in old])
        orphans = [orphan for orphan in old if orphan.lfn not in in_use]
        stay = orphans[max(0, delete) :] + self._delete(pool, orphans[: max(0, delete)])
        for orphan in stay:
            tallies[_area(orphan.lfn)].add_orphan(orphan)
        found = [Found(area, *vars(tally).values()) for area, tally in tallies.items()]
        sweeps.advance(
            self._conn, self._site, visited=len(folders), closed=closed, more=more, found=found,
            step_run=self._step_run,
        )  # fmt: skip

    def _visit(self, folder: str) -> _Visit:
        prefix = next(prefix for prefix in self.roots if folder.startswith(prefix))
        self._pace.wait()
        try:
            look = self._deleter.look(self.roots[prefix] + folder.removeprefix(prefix), inside=True)
        except NoSuchFile:
            return _Visit(folder, ())
        except StorageError as error:
            if isinstance(error, SILENT):
                raise SweepStopped(self._site, str(error)) from error
            logger.info("%s", error)
            return _Visit(folder, None)
        return _Visit(folder, look.entries, look.clock_at - self._clock() if look.clock_at else timedelta(0))

    def _if_old(self, lfn: str, entry: Entry, ahead: timedelta) -> Iterator[Orphan]:
        """Yield a file as an orphan if it is old enough, and its name is one that may be deleted."""
        if entry.modified_at is None or entry.modified_at - ahead > self._clock() - self._age:
            return
        try:
            url = self._names.url(lfn, username=owner_of_folder(_area(lfn).rpartition("/")[2]))
        except NotTemporary as error:
            logger.info("%s", error)
            return
        if unquote(urlsplit(entry.url).path) == urlsplit(url).path:
            yield Orphan(lfn, url, entry.size_bytes, entry.modified_at)

    def _delete(self, pool: ThreadPoolExecutor, orphans: Sequence[Orphan]) -> list[Orphan]:
        """Delete orphans, each written down before; return those that are still there."""
        if not orphans:
            return []
        numbers = sweeps.intend(self._conn, self._site, orphans, self._step_run)
        reached("sweep.after_intent")
        outcomes = list(pool.map(self._delete_one, orphans))
        reached("sweep.after_delete")
        sweeps.note_outcomes(
            self._conn,
            [(numbers[orphan.lfn], *outcome) for orphan, outcome in zip(orphans, outcomes, strict=True)],
        )
        self.counts.update(outcome.value.lower() for outcome, _ in outcomes)
        gone = {Outcome.DELETED, Outcome.GONE}
        return [one for one, (outcome, _) in zip(orphans, outcomes, strict=True) if outcome not in gone]

    def _delete_one(self, orphan: Orphan) -> tuple[Outcome, str | None]:
        self._pace.wait()
        try:
            unmodified = orphan.modified_at + timedelta(seconds=1)
            was_there = self._deleter.delete(orphan.url, unmodified_since=unmodified)
        except FileChanged:
            return Outcome.LEFT, "it was written anew at this moment"
        except StorageError as error:
            return Outcome.FAILED, str(error)
        return (Outcome.DELETED if was_there else Outcome.GONE), None


def _name(url: str) -> str:
    return unquote(urlsplit(url).path).rstrip("/").rpartition("/")[2]


def _area(lfn: str) -> str:
    """Return the area of a user or group: ``/store/temp/user/alice.0a1b``."""
    return "/".join(lfn.split("/")[:5])


def _summary(view: SweepView, deleted: Counter[str]) -> Summary:
    sentence = (
        f"{view.site}: {files(view.files)}, {size(view.size_bytes)}, in {view.areas:,} areas;"
        f" {view.orphans:,} orphans older than {view.older_than_days} days, {size(view.orphan_bytes)}"
    )
    if deleted:
        sentence += f"; deleted {files(deleted['deleted'])}"
    for outcome, words in (("left", "were written anew"), ("failed", "were not deleted")):
        if deleted[outcome]:
            sentence += f", {deleted[outcome]:,} {words}"
    if view.closed:
        sentence += f"; {view.closed:,} directories are closed to us"
    if view.ended_at is None:
        sentence += f"; not over, {view.left:,} directories are known to be left"
    return Summary(
        sentence,
        {"files": view.files, "orphans": view.orphans, "orphan_bytes": view.orphan_bytes,
         "visited": view.visited, "left": view.left, "deleted": deleted["deleted"]},
    )  # fmt: skip
