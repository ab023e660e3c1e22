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
)
