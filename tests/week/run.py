"""Lets the week pass: tick by tick, the world acts and the house does what its DAGs do."""

from __future__ import annotations

import os
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from asyncstageout.steps.crashpoints import CONTROL_FILE
from week.clock import WeekClock
from week.diary import DIARY, Phase, deaths
from week.house import House
from week.manifest import DAYS, START
from week.town import Stuck, Town
from week.world import World

QUIET_TICK = timedelta(days=1)
LONGEST = timedelta(days=DAYS + 21)
"""By then every file has ended, and every temporary copy is gone, or something is wrong."""
HOUR = timedelta(hours=1)
_OPEN = """
SELECT (SELECT count(*) FROM transfer WHERE state NOT IN ('DONE', 'FAILED', 'KILLED')),
    (SELECT count(*) FROM transfer WHERE state = 'DONE' AND publication NOT IN ('NOT_REQUIRED', 'DONE', 'FAILED')),
    (SELECT count(*) FROM cleaning), (SELECT count(*) FROM outbox)
"""


@dataclass
class Run:
    """One week under way."""

    town: Town
    clock: WeekClock
    house: House
    world: World
    tick: timedelta
    to_die: int | None = None
    """Workers that are killed; None: one at each point."""
    deaths: Counter[str] = field(default_factory=Counter)
    """By the point at which a worker died."""
    _at: datetime = START
    _counted: datetime = START
    _entries: list[tuple[datetime, Phase, Callable[[World], object]]] = field(default_factory=list)
    _planned: dict[str, list[tuple[datetime, str]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._entries = sorted(
            ((START + one.at_h * HOUR, one.phase, one.act) for one in DIARY), key=lambda one: one[0]
        )
        self._planned = {
            name: [(START + hour * HOUR, point) for hour, point in planned]
            for name, planned in deaths(self.to_die).items()
        }

    @property
    def at(self) -> datetime:
        return self._at

    @property
    def spared(self) -> list[str]:
        """Points at which somebody was to die, and nobody came by."""
        return [point for planned in self._planned.values() for _, point in planned]

    def live(self, on_tick: Callable[[Run], object] = lambda _: None) -> None:
        """Live through the week, and the quiet time after it, until nothing is left to do."""
        end = START + timedelta(days=DAYS)
        while self._at < end or not self._is_over():
            self._at += self.tick if self._at < end or not self.world.is_over else QUIET_TICK
            if self._at > START + LONGEST:
                return
            self.clock.jump_to(self._at)
            self._pass()
            on_tick(self)

    def _is_over(self) -> bool:
        row = self.house.conn.execute(_OPEN).fetchone()
        return self.world.is_over and not any(row or ())

    def _pass(self) -> None:
        run = f"scheduled__{self._at:%Y-%m-%dT%H:%M}"
        self.world.hand_over(run, self._at - self.tick)
        self._happen(Phase.WAITING)
        self._do("transfer", run, House.transfer)
        self._happen(Phase.MOVING)
        self._do("kill", run, House.kill)
        self.town.rest_fts()
        self._do("sense", run, House.sense)
        self._do("reconcile", run, House.reconcile)
        self._do("publish", run, House.publish)
        self._do("deliver", run, House.deliver)
        self._do("clean", run, House.clean)
        if self._at - self._counted >= HOUR:
            self.house.statistics(run, self._counted)
            self._counted = self._at

    def _happen(self, phase: Phase) -> None:
        for entry in [one for one in self._entries if one[0] <= self._at and one[1] is phase]:
            self._entries.remove(entry)
            entry[2](self.world)

    def _do(self, name: str, run: str, body: Callable[[House, str], None]) -> None:
        """Do something; where it is planned, a worker dies of it first, and another one goes on."""
        planned = self._planned[name]
        if planned and planned[0][0] <= self._at and self._dies(planned[0][1], run, body):
            self.deaths[planned.pop(0)[1]] += 1
        body(self.house, run)

    def _dies(self, point: str, run: str, body: Callable[[House, str], None]) -> bool:
        """Let a worker of its own do it, which is killed at a point; return whether it came by."""
        self.town.control_file.write_text(f"{point}\n")
        pid = os.fork()
        if pid == 0:
            self._work(run, body)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        self.town.control_file.write_text("")
        if code > 0:
            raise Stuck(f"a worker that should have died at {point} failed before; see above")
        return code < 0

    def _work(self, run: str, body: Callable[[House, str], None]) -> None:
        """Live as a worker, in a process of its own, and end."""
        os.environ[CONTROL_FILE] = str(self.town.control_file)
        try:
            body(House(self.town), run)
        except BaseException:  # noqa: BLE001 -- what its parent does after a block is not for it
            traceback.print_exc(file=sys.stderr)
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
