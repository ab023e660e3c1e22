"""Looks at the sources of site descriptions and keeps what is new, so that a broken one changes nothing."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from psycopg import Connection

from asyncstageout.catalogue.site_sources import (
    SiteLoad,
    SiteSource,
    failing,
    looks,
    owners,
    put_source,
    record_looks,
    site_facts,
)
from asyncstageout.catalogue.storages import current_storages, put_storages
from asyncstageout.clients.site_files import Found, SiteFile, SourceUnreadable, find
from asyncstageout.core.storages.model import MAX_NAME_CHARS, Storage
from asyncstageout.core.storages.problems import BadDescription
from asyncstageout.core.storages.rucio import read_rse
from asyncstageout.core.storages.storage_json import read_storage_json
from asyncstageout.core.storages.tfc import read_tfc
from asyncstageout.steps.recording import Summary
from asyncstageout.steps.slow_patterns import SlowPattern, Undecided, check_patterns

logger = logging.getLogger(__name__)

PATIENCE = timedelta(days=1)
"""A site that is being changed may be unreadable for some hours; the version before counts meanwhile."""
NAMED = 5
NOBODY = "?"
"""In place of a site's name, where not even that can be read."""

Outcome = Literal["new", "changed", "same", "failed"]
Finder = Callable[[SiteSource], Found]
Advance = Callable[[int], object]


@dataclass(frozen=True, slots=True)
class Look:
    """What came of looking at one site's description."""

    site: str
    location: str
    """The source."""
    file: str
    outcome: Outcome
    storage: Storage | None = None
    problem: str | None = None
    """With the file, and the line and field in it."""


class SitesFail(Exception):
    """Descriptions could not be read for more than a day; their sites go on with the version before."""

    def __init__(self, loads: Sequence[SiteLoad]) -> None:
        self.loads = tuple(loads)
        named = "; ".join(
            f"{one.site} since {one.failing_since:%Y-%m-%d}: {one.problem}" for one in loads[:NAMED]
        )
        more = f"; and {len(loads) - NAMED} more" if len(loads) > NAMED else ""
        super().__init__(f"{len(loads)} descriptions fail (runbooks/site-description.md): {named}{more}")


def load_sites(
    conn: Connection,
    asked: Sequence[SiteSource],
    *,
    by: str,
    now: datetime,
    dry_run: bool = False,
    site: str | None = None,
    finder: Finder | None = None,
    advance: Advance | None = None,
) -> tuple[Summary, list[Look]]:
    """Look at sources, keep the storages that are new or different, and remember the sources.

    Nothing is written for what is as it was. What is wrong with one site stops neither the others nor the
    version of it that counts.

    Args:
        asked: sources; the kind is found out.
        by: who does it.
        dry_run: only say what would change.
        site: only this one.
        finder: fetches a source.
        advance: called with 1 for each description that was judged.
    """
    this = _Round(conn, by, now, dry_run, site, finder or _find, advance or (lambda _amount: None))
    results = [look for source in asked for look in this.look_at(source)]
    for look in results:
        if look.problem is not None:
            logger.info("%s: %s", look.site, look.problem)
    return _summary(results, len(asked), dry_run), results


def verdict(conn: Connection, *, now: datetime) -> Summary:
    """Say whether people are needed.

    Raises:
        SitesFail: something could not be read for over a day.
    """
    if late := failing(conn, longer_than=PATIENCE, now=now):
        raise SitesFail(late)
    known = looks(conn)
    young = sum(one.problem is not None for one in known)
    return Summary(
        f"{len(known) - young:,} descriptions are good, {young:,} fail for less than a day",
        {"good": len(known) - young, "failing": young},
    )


def _find(source: SiteSource) -> Found:
    return find(source.location, source.site)


@dataclass(frozen=True, slots=True)
class _Round:
    """One round over the sources, with what all of them need."""

    conn: Connection
    by: str
    now: datetime
    dry_run: bool
    site: str | None
    finder: Finder
    advance: Advance

    def look_at(self, source: SiteSource) -> list[Look]:
        try:
            found = self.finder(source)
        except SourceUnreadable as error:
            return self._unreadable(source, str(error))
        current = {name: storage for name, (_, storage) in current_storages(self.conn).items()}
        origins = [(facts.origin, facts.site) for facts in site_facts(self.conn)]
        # In SITECONF a folder belongs to its site, whatever others write into theirs.
        holders = {file.site: file.name for file in found.files if file.site and found.kind == "siteconf"}
        holders |= {name: place for name, place in owners(self.conn).items() if place != found.location}
        results: list[Look] = []
        for file in found.files:
            if self._is_asked_for(file):
                judged = _judged(found.location, file, current)
                results += _unless_held(
                    judged, file, holders, [name for at, name in origins if at == file.name]
                )
                holders |= {look.site: file.name for look in judged}
                self.advance(1)
        if not self.dry_run:
            self._keep(found, source, results)
        return results

    def _is_asked_for(self, file: SiteFile) -> bool:
        # A site's file describes its RSEs too.
        return (
            self.site is None
            or file.site is None
            or self.site == file.site
            or self.site.startswith(f"{file.site}_")
        )

    def _unreadable(self, source: SiteSource, why: str) -> list[Look]:
        """Note it for all sites of a source that is remembered; one that never was is not remembered now."""
        known = [one.site for one in looks(self.conn, source.location)]
        if known and not self.dry_run:
            record_looks(self.conn, source.location, dict.fromkeys(known, why), now=self.now)
        return [
            Look(name, source.location, source.location, "failed", problem=why)
            for name in known or [source.site or NOBODY]
        ]

    def _keep(self, found: Found, source: SiteSource, results: Sequence[Look]) -> None:
        wanted = [
            (look.storage, look.file)
            for look in results
            if look.storage is not None and look.outcome in ("new", "changed")
        ]
        problems: dict[str, str | None] = {}
        if self.site is not None:
            problems = {one.site: one.problem for one in looks(self.conn, found.location)}
        problems |= {look.site: look.problem for look in results}
        with self.conn.transaction():
            put_source(self.conn, SiteSource(found.location, found.kind, source.site), self.by)
            put_storages(self.conn, wanted, self.by)
            record_looks(self.conn, found.location, problems, now=self.now)


def _unless_held(
    judged: list[Look], file: SiteFile, holders: Mapping[str, str], before: Sequence[str]
) -> list[Look]:
    """Return what was judged, or, when it cannot count, the problem for all sites of the file so far."""
    problem = next((look.problem for look in judged if look.problem is not None), None)
    for look in judged:
        holder = holders.get(look.site, file.name)
        if problem is None and holder != file.name:
            problem = (
                f"{file.name}: {look.site} is described by {holder} already; `aso sites forget` one of them"
            )
    if problem is None:
        return judged
    sites = dict.fromkeys([*before, *([file.site] if file.site else [])]) or {judged[0].site: None}
    return [Look(name, judged[0].location, file.name, "failed", problem=problem) for name in sites]


def _judged(location: str, file: SiteFile, current: Mapping[str, Storage]) -> list[Look]:
    storages: list[Storage] = []
    try:
        storages = _read(file)
        # Only what is new: the patterns of the others were tried when they came.
        new = [storage for storage in storages if current.get(storage.site) != storage]
        check_patterns(list(_patterns(new)), MAX_NAME_CHARS)
    except (BadDescription, SlowPattern, Undecided) as error:
        where = f"{_rule_with(storages, error.pattern)}: " if isinstance(error, SlowPattern) else ""
        problem = f"{file.name}: {where}{error}"
        return [Look(file.site or NOBODY, location, file.name, "failed", problem=problem)]
    return [
        Look(storage.site, location, file.name, _outcome(storage, current), storage) for storage in storages
    ]


def _outcome(storage: Storage, current: Mapping[str, Storage]) -> Outcome:
    if storage.site not in current:
        return "new"
    return "same" if current[storage.site] == storage else "changed"


def _read(file: SiteFile) -> list[Storage]:
    """Raises: BadDescription."""
    if file.problem is not None:
        raise BadDescription(file.problem)
    if file.rse is not None:
        return [read_rse(file.rse, file.samples)]
    if file.kind == "storage.json":
        return read_storage_json(file.content, file.site)
    if file.site is None:
        raise BadDescription("it does not say whose it is: name the site with --site")
    return [read_tfc(file.content, file.site)]


def _patterns(storages: Sequence[Storage]) -> Iterator[str]:
    for storage in storages:
        for protocol in storage.protocols:
            for rule in protocol.to_pfn + protocol.to_lfn:
                yield rule.match
                if rule.destination_match is not None:
                    yield rule.destination_match


def _rule_with(storages: Sequence[Storage], pattern: str) -> str:
    places = (
        f"rule {place + 1} of protocol {protocol.name}"
        for storage in storages
        for protocol in storage.protocols
        for rules in (protocol.to_pfn, protocol.to_lfn)
        for place, rule in enumerate(rules)
        if pattern in (rule.match, rule.destination_match)
    )
    return next(places, "a rule")


def _summary(results: Sequence[Look], sources: int, dry_run: bool) -> Summary:
    counts = Counter(look.outcome for look in results)
    broken = [look for look in results if look.outcome == "failed"]
    named = "; ".join(f"{look.site}: {look.problem}" for look in broken[:NAMED])
    more = f"; and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
    sentence = (
        f"{'Would load' if dry_run else 'Loaded'} from {sources:,} source{'' if sources == 1 else 's'}: "
        f"{counts['new']:,} new, {counts['changed']:,} changed, {counts['same']:,} as before"
        + (f"; {len(broken):,} could not be read: {named}{more}" if broken else "")
    )
    return Summary(
        sentence,
        {"sources": sources, **{name: counts[name] for name in ("new", "changed", "same", "failed")}},
    )
