"""The pages of the room, in the order in which the navigation shows them."""

from __future__ import annotations

from typing import NamedTuple

from asyncstageout.ui import places


class Entry(NamedTuple):
    """One page in the navigation."""

    title: str
    place: str
    is_for_operators: bool = False


PAGES = (
    Entry("Overview", places.OVERVIEW),
    Entry("Alerts", places.ALERTS, is_for_operators=True),
    Entry("Links", places.LINKS, is_for_operators=True),
    Entry("Sites", places.SITES, is_for_operators=True),
    Entry("Users", places.USERS, is_for_operators=True),
    Entry("Tasks", places.TASKS),
    Entry("Failures", places.FAILURES),
    Entry("FTS jobs", places.JOBS, is_for_operators=True),
    Entry("Cycles", places.CYCLES, is_for_operators=True),
    Entry("Audit", places.AUDIT, is_for_operators=True),
)
