"""Failures by category, with what they mean and what helps: the same lines on every page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from asyncstageout.core.prospects import remedy
from asyncstageout.ui.tables import Column, Shown

COLUMNS = (
    Column("category", "Category"),
    Column("attempts", "Attempts", Shown.NUMBER),
    Column("share", "Of all failures", Shown.SHARE),
    Column("meaning", "What it means"),
    Column("action", "What helps"),
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
