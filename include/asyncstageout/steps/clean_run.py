"""What a run of ``stageout_clean`` does around the deletions: which sites, a dry run, what came of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from psycopg import Connection

from asyncstageout.catalogue import cleaning
from asyncstageout.catalogue.cleaning import SiteDue
from asyncstageout.catalogue.cleaning_views import (
    FailingSite,
    Failures,
    failed_since,
    failing_sites,
    previous_step_at,
)
from asyncstageout.catalogue.intake_objects import collect_records
from asyncstageout.catalogue.policies import policy_rows
from asyncstageout.catalogue.storages import current_storages
from asyncstageout.core.cleaning import Copy, next_look
from asyncstageout.core.policies import Policies
from asyncstageout.core.temporary_names import CopyNames, NotTemporary
from asyncstageout.steps.recording import Summary, size

MAX_SHARDS = 4
COPIES_PER_SHARD = 20_000
"""A second task costs more than it brings for fewer: one deletes some hundred copies a second."""
NAMED = 10
DAY = timedelta(days=1)

TOTALS = ("deleted", "gone", "left", "waiting", "failed", "deleted_bytes")


class Shard(NamedTuple):
    """Sites that one task cleans."""

    sites: tuple[str, ...]
    copies: int

    @property
    def label(self) -> str:
        rest = len(self.sites) - 1
        return self.sites[0] + (f" and {rest} more site{'' if rest == 1 else 's'}" if rest else "")


def look(
    conn: Connection, *, site: str | None = None, username: str | None = None, by_hand: bool = False
) -> tuple[Summary, list[Shard]]:
    """Return which sites have copies that are due, shared out over a few tasks.

    Args:
        by_hand: somebody wants it now: policies are asked anew, and storages that are left alone are tried.
    """
    if by_hand:
        cleaning.look_again(conn, site=site, username=username)
    due = cleaning.due_sites(conn, site=site, username=username, paused_too=by_hand)
    shards = share_out(due)
    copies = sum(one.copies for one in due)
    sentence = (
        f"{copies:,} temporary copies at {len(due)} sites are to be looked at" if due else "Nothing is due"
    )
    return Summary(sentence, {"sites": len(due), "copies": copies, "shards": len(shards)}), shards


def share_out(due: Sequence[SiteDue]) -> list[Shard]:
    """Share sites out over tasks of similar size; a site is one task's."""
    copies = sum(one.copies for one in due)
    loads: list[list[SiteDue]] = [
        [] for _ in range(min(MAX_SHARDS, len(due), -(-copies // COPIES_PER_SHARD)))
    ]
    for one in sorted(due, key=lambda one: -one.copies):
        min(loads, key=lambda load: sum(other.copies for other in load)).append(one)
    return [Shard(tuple(one.site for one in load), sum(one.copies for one in load)) for load in loads]


def would_delete(
    conn: Connection,
    schemes: frozenset[str],
    sites: Sequence[str],
    *,
    now: datetime,
    username: str | None = None,
    limit: int,
) -> Summary:
    """Say what would be deleted, as far as the catalogue knows, and change nothing; no storage is asked."""
    policies = Policies(policy_rows(conn))
    storages = {site: storage for site, (_, storage) in current_storages(conn, list(sites)).items()}
    names = CopyNames(storages, schemes)
    counts: Counter[str] = Counter()
    nameless: list[str] = []
    deleted_bytes = 0

    def is_ready(copy: Copy) -> bool:
        policy = policies.of(copy.source, copy.destination, copy.username, copy.activity)
        return next_look(copy, policy, now) is None

    for site in sites:
        at_most = max(0, limit - counts["would_delete"])
        for copy in cleaning.due_copies(conn, site, at_most=at_most, username=username):
            if not is_ready(copy):
                counts["later"] += 1
                continue
            try:
                names.url(copy)
            except NotTemporary as error:
                counts["nameless"] += 1
                nameless.append(str(error))
                continue
            counts["would_delete"] += 1
            deleted_bytes += copy.size_bytes
    sentence = (
        f"Would delete {counts['would_delete']:,} temporary copies, {size(deleted_bytes)},"
        f" at {len(sites)} sites; {counts['later']:,} must wait longer"
    )
    if nameless:
        sentence += f"; {counts['nameless']:,} cannot be deleted, such as {nameless[0]}"
    return Summary(sentence, {name: counts[name] for name in ("would_delete", "later", "nameless")})


class CleaningNeedsPeople(Exception):
    """Deletions were given up, or a storage has not let anything be deleted for a day; all else goes on."""

    def __init__(self, failures: Sequence[Failures], silent: Sequence[FailingSite]) -> None:
        self.failures, self.silent = tuple(failures), tuple(silent)
        parts = [f"{one.site}: {one.copies:,} given up, such as: {one.example}" for one in failures[:NAMED]]
        parts += [
            f"{one.site} since {one.failing_since:%Y-%m-%d %H:%M} UTC: {one.reason}" for one in silent[:NAMED]
        ]
        if (more := len(failures) + len(silent) - len(parts)) > 0:
            parts.append(f"and {more} more sites")
        super().__init__("Cleaning needs people (runbooks/cleaning.md): " + "; ".join(parts))


def summarise(conn: Connection, dag_id: str, run_id: str, *, now: datetime, step_run: int) -> Summary:
    """Say what a run deleted.

    Raises:
        CleaningNeedsPeople: something was given up since the last run that ended, or a storage has been
            failing for another whole day.
    """
    records = collect_records(conn, dag_id, run_id, "delete").values()
    counts = {name: sum(int(record.counts.get(name, 0)) for record in records) for name in TOTALS}
    since = previous_step_at(conn, step_run)
    failures = failed_since(conn, since)
    failing = failing_sites(conn)
    silent = [one for one in failing if _passes_a_day(one.failing_since, since, now)]
    if failures or silent:
        raise CleaningNeedsPeople(failures, silent)
    sentence = f"Deleted {counts['deleted']:,} temporary copies, {size(counts['deleted_bytes'])}"
    if counts["gone"]:
        sentence += f"; {counts['gone']:,} were gone"
    if counts["left"]:
        sentence += f"; {counts['left']:,} are not what was meant and stay"
    if counts["waiting"]:
        sentence += f"; {counts['waiting']:,} are tried again"
    if failing:
        sentence += f"; left alone: {', '.join(one.site for one in failing[:NAMED])}"
    return Summary(sentence, counts | {"failing_sites": len(failing)})


def _passes_a_day(failing_since: datetime, since: datetime | None, now: datetime) -> bool:
    """Say whether another whole day of failing was over between two moments."""
    before = (since - failing_since) // DAY if since and since > failing_since else 0
    return (now - failing_since) // DAY > before


def as_xcom(number: int, shard: Shard) -> dict[str, Any]:
    return {"shard": number, "label": shard.label, "sites": list(shard.sites), "copies": shard.copies}
