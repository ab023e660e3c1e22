"""Files as they arrive: in bursts, since a task's jobs end together, and more of them by day than by night."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from load.bodies import SITES

REFERENCE_PER_S = 400_000 / 86_400
"""Files a second of the reference day (CHEP 2015)."""
TASKS, USERS, SOURCES = 500, 200, 4
"""Tasks under way at a time, their users, and at how many sites a task runs."""
MEAN_BURST, SPREAD = 20.0, 1.0
TIDE = 0.5
"""The busiest moment has 1.5 times the average, the quietest half of it; a phase is one day."""


class Burst(NamedTuple):
    at_s: float
    lines: list[bytes]
    """Requests, as JSON."""


@dataclass
class World:
    """Makes files, all different, from a seed."""

    seed: int
    made: int = 0

    def __post_init__(self) -> None:
        self.random = Random(self.seed)

    def day(self, rate: float, seconds: float) -> Iterator[Burst]:
        """Yield bursts in the order of time, ``rate`` files a second on average."""
        at_s = 0.0
        while True:
            now = rate * (1 - TIDE * math.cos(2 * math.pi * at_s / seconds))
            at_s += self.random.expovariate(now / MEAN_BURST)
            if at_s >= seconds:
                return
            # The mean of what is drawn is MEAN_BURST.
            size = self.random.lognormvariate(math.log(MEAN_BURST) - SPREAD**2 / 2, SPREAD)
            yield Burst(at_s, self.burst(max(1, round(size))))

    def burst(self, files: int) -> list[bytes]:
        """Return requests of one task at one site."""
        task = self.random.randrange(TASKS)
        place = self.random.randrange(SOURCES)
        first, self.made = self.made, self.made + files
        return [request_line(number, task, place) for number in range(first, first + files)]


def request_line(number: int, task: int, place: int) -> bytes:
    username = f"user{task % USERS}"
    tail = f"mc/bench/QCD_Pt-15to7000_13TeV/261122_101112/{number // 1000:04d}/out_{number}.root"
    return json.dumps(
        {
            "task": f"bench_{username}_{task}",
            "username": username,
            "source": SITES[(task * 7 + place * 13) % 30],
            "destination": SITES[30 + task % USERS % 30],
            "source_lfn": f"/store/temp/user/{username}.0123456789abcdef0123456789abcdef01234567/{tail}",
            "destination_lfn": f"/store/user/{username}/{tail}",
            "size_bytes": 1_000_000_000 + number,
            "adler32": f"{number + 1:08x}",
        }
    ).encode()
