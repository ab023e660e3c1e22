"""Failures by category and by reason, with what they mean and what helps: the same lines on every page."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from asyncstageout.catalogue.failed_attempts import FailedAttempt, Look
from asyncstageout.core.prospects import remedy
from asyncstageout.core.reasons import common_words
from asyncstageout.ui import places
from asyncstageout.ui.tables import Column, Shown


def columns(**where: str | None) -> tuple[Column, ...]:
    """Return the columns of failures by category; each leads to its failures, of what ``where`` says."""
    return (
        Column(
            "category",
            "Category",
            place=lambda row: places.failures(**where, category=row["category"]),
        ),
        Column("attempts", "Attempts", Shown.NUMBER),
        Column("share", "Of all failures", Shown.SHARE),
        Column("meaning", "What it means"),
        Column("action", "What helps"),
    )


COLUMNS = columns()
REASONS = (
    Column("category", "Category"),
    Column("reason", "Reason", Shown.CODE, hint="Without what differs from file to file"),
    Column("attempts", "Failures", Shown.NUMBER, hint="Where only the latest were looked at: estimated"),
    Column("users", "Users", Shown.NUMBER, hint="Of those that were looked at"),
    Column("links", "Links", Shown.NUMBER, hint="Of those that were looked at"),
    Column("last_at", "Last", Shown.TIME),
    Column("example", "Example", place=lambda row: places.file(row["file"])),
    Column("action", "What helps"),
)
OWN_REASONS = tuple(column for column in REASONS if column.name != "users")
"""Of one user."""
ATTEMPTS = (
    Column("source_lfn", "File", Shown.CODE, place=lambda row: places.file(row["file"])),
    Column("state", "State now", Shown.STATE),
    Column("username", "User", place=lambda row: places.user(row["username"])),
    Column("link", "Link"),
    Column("category", "Category"),
    Column("reason", "Reason", Shown.CODE),
    Column("at", "When", Shown.TIME),
)


def by_category(failures: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return a row for each category of a map of ``statistics``."""
    total = sum(failures.values())
    rows = []
    for category, attempts in failures.items():
        known = remedy(category)
        rows.append(
            {
                "category": category,
                "attempts": attempts,
                "share": attempts / total,
                "meaning": known.meaning,
                "action": known.action,
            }
        )
    return rows


def by_reason(look: Look, counted: Mapping[str, int] | None = None) -> list[dict[str, Any]]:
    """Return a row for each category and reason, without what differs from file to file.

    Args:
        counted: attempts by category; where a look saw as many as it looks at, a reason's part of them.
    """
    groups: defaultdict[tuple[str, str], list[FailedAttempt]] = defaultdict(list)
    for one in look.attempts:
        groups[one.category, common_words(one.reason or "no reason was given")].append(one)
    seen = Counter(one.category for one in look.attempts)
    return [
        {
            "category": category,
            "reason": reason,
            "attempts": _of_all(len(found), seen[category], look.each, (counted or {}).get(category, 0)),
            "users": len({one.username for one in found}),
            "links": len({(one.source, one.destination) for one in found}),
            "last_at": found[0].at,
            "example": f"file {found[0].file}",
            "file": found[0].file,
            "action": remedy(category).action,
        }
        for (category, reason), found in groups.items()
    ]


def rows_of(look: Look) -> list[dict[str, Any]]:
    """Return a row for each attempt."""
    return [{**one._asdict(), "link": f"{one.source} → {one.destination}"} for one in look.attempts]


def _of_all(found: int, seen: int, each: int | None, counted: int) -> int:
    return found if each is None or seen < each else max(found, round(found / seen * counted))
