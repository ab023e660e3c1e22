"""What happens in the week, and when."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from functools import partial
from typing import NamedTuple

from asyncstageout.steps.crashpoints import POINTS
from week.manifest import DAYS
from week.world import World

AGAIN_SHARE = 0.003
"""Of all files; their jobs run again, at noon of every day but the first."""


class Phase(Enum):
    """Where in a tick something happens."""

    WAITING = "before a cycle takes what waits"
    MOVING = "while FTS copies what a cycle has submitted"


class Entry(NamedTuple):
    """One line of the diary."""

    at_h: float
    """Hours since Monday, 0:00 UTC."""
    phase: Phase
    act: Callable[[World], object]


def at(day: int, hour: int, phase: Phase, act: Callable[..., object], **options: object) -> Entry:
    return Entry(24 * day + hour, phase, partial(act, **options))


def _user_kills(world: World, states: tuple[str, ...]) -> None:
    world.user_kills(*states)


W, M = Phase.WAITING, Phase.MOVING
AT_FTS, IN_QUEUE = ("SUBMITTED",), ("NEW", "RETRY")
MONDAY, TUESDAY, WEDNESDAY, THURSDAY, FRIDAY, SATURDAY, SUNDAY = range(DAYS)
DIARY = (
    at(MONDAY, 12, M, _user_kills, states=AT_FTS),
    at(MONDAY, 20, W, _user_kills, states=IN_QUEUE),
    at(TUESDAY, 9, M, World.operator_kills),
    at(TUESDAY, 11, M, _user_kills, states=AT_FTS),
    # It dies while it copies, and is away for an hour: what it has, it has when it is back.
    at(TUESDAY, 16, M, World.kill_server, name="fts"),
    at(TUESDAY, 17, W, World.start_server, name="fts"),
    at(WEDNESDAY, 0, W, World.lose_site),
    at(WEDNESDAY, 15, W, _user_kills, states=IN_QUEUE),
    at(THURSDAY, 0, W, World.find_site),
    at(THURSDAY, 8, W, World.kill_server, name="dbs"),
    at(THURSDAY, 20, W, World.start_server, name="dbs"),
    at(THURSDAY, 10, W, World.kill_server, name="hook"),
    at(THURSDAY, 13, W, World.start_server, name="hook"),
    at(FRIDAY, 9, W, World.backfill),
    at(FRIDAY, 14, M, World.operator_kills),
    at(FRIDAY, 15, W, World.users_retry),
    at(FRIDAY, 18, W, World.users_retry, killed_too=True),
    at(SATURDAY, 12, M, World.kill_server, name="fts"),
    at(SATURDAY, 12, M, World.start_server, name="fts"),
    *(at(day, 12, M, World.jobs_run_again, share_of_files=AGAIN_SHARE) for day in range(TUESDAY, DAYS)),
)

RISKY = {
    "transfer": ("collect", "group", "submit"),
    "sense": ("sense", "update"),
    "kill": ("cancel",),
    "reconcile": ("reconcile",),
    "publish": ("assemble", "publish"),
    "deliver": ("deliver",),
    "clean": ("clean",),
}
"""What the house does -> the points between two effects that it comes by, by their first names."""
FIRST_DEATH_H, HOURS_BETWEEN_DEATHS = 9.0, 4.5


def points() -> list[str]:
    """Return the points between two effects that somebody comes by in the week."""
    firsts = {first for group in RISKY.values() for first in group}
    return [point for point in POINTS if point.partition(".")[0] in firsts]


def deaths(count: int | None = None) -> Mapping[str, list[tuple[float, str]]]:
    """Return at which hours, and points, whoever does something is killed.

    Args:
        count: at so many points, evenly spread over all; None: once at each.
    """
    names = {first: name for name, firsts in RISKY.items() for first in firsts}
    every = points()
    many = len(every) if count is None else min(count, len(every))
    planned: dict[str, list[tuple[float, str]]] = {name: [] for name in RISKY}
    for number in range(many):
        place = number * len(every) // many
        hour = FIRST_DEATH_H + place * HOURS_BETWEEN_DEATHS
        planned[names[every[place].partition(".")[0]]].append((hour, every[place]))
    return planned
