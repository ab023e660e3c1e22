"""Attempts that failed lately, one by one: a bounded look from the side that is closest. Reads only.

What is asked for says where to look, so that the cost follows neither the queue nor the past:

=================  ==================================================================================
of a task, a user  files whose last attempt failed, of the newest files of the tasks
on a link          the same, of its last FTS jobs
else               the latest failed attempts of each category, by the index ``transfer_event_failed``
=================  ==================================================================================
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from psycopg import Connection
from psycopg.rows import class_row

from asyncstageout.catalogue.link_jobs import JOBS_SHOWN, last_failures
from asyncstageout.core.failures import Category
from asyncstageout.core.planning import Link

EACH = 200
"""So many attempts of each category are looked at; of one category, or at one site, five times as many."""
FILES = 50_000
"""So many of the newest files of tasks are looked at."""
AT_MOST = 1_000


class FailedAttempt(NamedTuple):
    """One file, and why an attempt of it failed."""

    file: int
    state: str
    """Of the file, as it is now."""
    username: str
    task: str
    source: str
    destination: str
    source_lfn: str
    attempt: int
    category: str
    reason: str | None
    at: datetime


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which attempts; None leaves a field open."""

    since: datetime
    usernames: Collection[str] | None = None
    task: str | None = None
    category: str | None = None
    source: str | None = None
    destination: str | None = None
    site: str | None = None
    """At either end."""


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen, the latest first."""

    attempts: Sequence[FailedAttempt]
    words: str
    """What was looked at, and so what is not in it."""
    each: int | None = None
    """There may be more of a category of which so many were seen; None: it is no sample of categories."""


_COLUMNS = """t.id AS file, t.state::text AS state, k.username, k.name AS task, t.source, t.destination,
    t.source_lfn"""
_CONDITIONS = {
    "category": "t.failure_category = %(category)s",
    "source": "t.source = %(source)s",
    "destination": "t.destination = %(destination)s",
    "site": "%(site)s IN (t.source, t.destination)",
}

# A file that ended after an event is in no older partition. LIMIT: by its key, whatever the planner thinks.
_OF_CATEGORIES = f"""
SELECT {_COLUMNS}, e.attempt, e.failure_category AS category, e.reason, e.at
FROM unnest(%(categories)s::text[]) AS c(category) CROSS JOIN LATERAL (
    SELECT transfer_id, attempt, failure_category, reason, at FROM transfer_event
    WHERE failure_category = c.category AND at >= %(since)s ORDER BY at DESC LIMIT %(each)s
) e CROSS JOIN LATERAL (
    SELECT id, state, task_id, source, destination, source_lfn FROM transfer WHERE id = e.transfer_id
    UNION ALL
    SELECT id, state, task_id, source, destination, source_lfn FROM transfer_history
    WHERE id = e.transfer_id AND ended_at >= e.at
    LIMIT 1
) t JOIN task k ON k.id = t.task_id WHERE {{condition}} ORDER BY e.at DESC
"""

_FILE = """id, state, source, destination, source_lfn, attempt, failure_category, failure_reason,
        coalesce(ended_at, updated_at) AS at"""
_PAST = f"""
        UNION ALL
        (SELECT {_FILE} FROM transfer_history WHERE task_id = k.id ORDER BY id DESC LIMIT %(files)s)
"""
_OF_TASKS = f"""
SELECT {_COLUMNS}, t.attempt, t.failure_category AS category, t.failure_reason AS reason, t.at FROM (
    SELECT k.username AS owner, k.name AS task_name, t.* FROM task k CROSS JOIN LATERAL (
        (SELECT {_FILE} FROM transfer WHERE task_id = k.id ORDER BY id DESC LIMIT %(files)s){{past}}
    ) t WHERE {{tasks}} ORDER BY k.id DESC LIMIT %(files)s
) t CROSS JOIN LATERAL (SELECT t.owner AS username, t.task_name AS name) k
WHERE t.state IN ('RETRY', 'FAILED') AND t.failure_category IS NOT NULL AND t.at >= %(since)s
    AND {{condition}}
ORDER BY t.at DESC LIMIT %(at_most)s
"""


def failed_attempts(conn: Connection, wanted: Wanted) -> Look:
    """Return the latest attempts that failed."""
    if wanted.task is not None or wanted.usernames is not None:
        return _of_tasks(conn, wanted)
    if wanted.source and wanted.destination:
        return _on_link(conn, wanted, Link(wanted.source, wanted.destination))
    return _of_categories(conn, wanted)


def _of_tasks(conn: Connection, wanted: Wanted) -> Look:
    tasks = [
        text
        for value, text in (
            (wanted.task, "k.name = %(task)s"),
            (wanted.usernames, "k.username = ANY(%(usernames)s::text[])"),
        )
        if value is not None
    ]
    query = _OF_TASKS.format(
        tasks=" AND ".join(tasks), past=_PAST if wanted.task else "", condition=_condition(wanted)
    )
    usernames = None if wanted.usernames is None else list(wanted.usernames)
    rows = _rows(conn, query, wanted, usernames=usernames, files=FILES, at_most=AT_MOST)
    return Look(rows, f"Files whose last attempt failed, up to the latest {AT_MOST:,}.")


def _on_link(conn: Connection, wanted: Wanted, link: Link) -> Look:
    rows = [
        FailedAttempt(
            row["id"], row["state"], row["username"], row["task"], *link, row["source_lfn"], row["attempt"],
            row["failure_category"], row["failure_reason"], row["updated_at"],
        )
        for row in last_failures(conn, link, limit=AT_MOST)
        if row["updated_at"] >= wanted.since and wanted.category in (None, row["failure_category"])
    ]  # fmt: skip
    return Look(
        rows, f"Files that failed in the last {JOBS_SHOWN} FTS jobs of the link, and were not sent again."
    )


def _of_categories(conn: Connection, wanted: Wanted) -> Look:
    categories = [wanted.category] if wanted.category else [category.value for category in Category]
    is_narrow = bool(wanted.category or wanted.site or wanted.source or wanted.destination)
    each = 5 * EACH if is_narrow else EACH
    query = _OF_CATEGORIES.format(condition=_condition(wanted, "category"))
    rows = _rows(conn, query, wanted, categories=categories, each=each)
    return Look(rows, f"Of the latest {each:,} failed attempts of each category.", each)


def _condition(wanted: Wanted, *but: str) -> str:
    parts = [text for name, text in _CONDITIONS.items() if name not in but and getattr(wanted, name)]
    return " AND ".join(parts) or "true"


def _rows(conn: Connection, query: str, wanted: Wanted, **values: Any) -> list[FailedAttempt]:
    named = {
        "since": wanted.since, "task": wanted.task, "category": wanted.category, "source": wanted.source,
        "destination": wanted.destination, "site": wanted.site,
    }  # fmt: skip
    with conn.cursor(row_factory=class_row(FailedAttempt)) as cursor:
        return cursor.execute(query, named | values).fetchall()
