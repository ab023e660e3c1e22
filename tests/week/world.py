"""The world of the house: jobs that write files, people who stop them and send them again, services that fail."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import count
from random import Random
from typing import Any

from asyncstageout.catalogue.cycles import CycleParams
from asyncstageout.catalogue.file_metadata import put_metadata
from asyncstageout.catalogue.step_runs import Actor
from asyncstageout.core.selections import EndedSelection, Selection
from asyncstageout.sandbox.faults import share
from asyncstageout.steps.acting import killing, sending_again
from asyncstageout.steps.intake import Interval, Record, Report
from asyncstageout.steps.recording import Summary, recorded
from week.clock import WeekClock
from week.house import House
from week.manifest import Output, sites
from week.town import Town

LATE_SHARE = 0.05
"""Of the files: their metadata come six hours after them."""
LATE = timedelta(hours=6)


@dataclass
class Offer:
    """What jobs hand over at one tick: a source, and its only batch."""

    name: str
    requests: Sequence[dict[str, Any]]
    digest: str | None = None
    has_times: bool = False
    again: bool = False

    def batches(self, _interval: Interval) -> Iterator[Offer]:
        if self.requests:
            yield self

    def records(self) -> Iterator[Record]:
        for position, request in enumerate(self.requests, start=1):
            yield Record(position, request)

    def done(self, report: Report) -> None:
        """Nothing is to be marked."""

    def refused(self, report: Report) -> None:
        """What is refused, the world sees in the catalogue."""


@dataclass
class World:
    """Everything that happens to the house, and what it should come to."""

    town: Town
    clock: WeekClock
    house: House
    coming: list[Output]
    """Those that arrive, the next one last."""
    random: Random
    truth: dict[str, Output] = field(default_factory=dict)
    """What was handed over, and taken, by request id: the latest of each."""
    happened: Counter[str] = field(default_factory=Counter)
    lost_site: str = ""
    lost: list[datetime] = field(default_factory=list)
    """When it was lost, and when it came back."""
    _rewritten: list[Output] = field(default_factory=list)
    _late: list[tuple[datetime, int, Output]] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=count)

    def __post_init__(self) -> None:
        destinations = Counter(one.request["destination"] for one in self.coming)
        self.lost_site = destinations.most_common(1)[0][0]

    @property
    def is_over(self) -> bool:
        return not (self.coming or self._late or self._rewritten)

    # -- jobs --------------------------------------------------------------------------------------

    def hand_over(self, run: str, since: datetime) -> None:
        """Let jobs that ended until now write their files and ask for their transfer."""
        fresh: list[Output] = []
        while self.coming and self.coming[-1].arrives_at <= self.clock.now:
            fresh.append(self.coming.pop())
        again, self._rewritten = self._rewritten, []
        for output in fresh:
            output.write(self.town.sites_root, output.arrives_at)
        for output in again:
            output.write(self.town.sites_root, self.clock.now)
        self.house.intake(run, Offer("jobs", [one.request for one in (*fresh, *again)]), since)
        taken = [*fresh, *self._taken(again)]
        self.truth.update((one.request_id, one) for one in taken)
        self.happened["files handed over"] += len(fresh)
        self.happened["of them written straight to their destination"] += sum(one.is_direct for one in fresh)
        self.happened["files written again by a later retry of their job"] += len(taken) - len(fresh)
        self._describe(taken)

    def _taken(self, again: Sequence[Output]) -> list[Output]:
        """Return what was taken again; of what was not, no copy may stay, as its job would see to."""
        counts = dict(
            self.house.conn.execute(
                "SELECT request_id, job_retry_count FROM transfer WHERE request_id = ANY(%s)",
                ([one.request_id for one in again],),
            ).fetchall()
        )
        taken = []
        for one in again:
            if counts.get(one.request_id) == one.request["job_retry_count"]:
                taken.append(one)
            else:
                (self.town.sites_root / one.source_path).unlink(missing_ok=True)
                self.happened["later retries that had to wait, and gave up"] += 1
        return taken

    def _describe(self, outputs: Sequence[Output]) -> None:
        wanted = [one for one in outputs if one.is_wanted]
        for one in wanted:
            is_late = share("late", one.request_id) < LATE_SHARE
            due_at = self.clock.now + (LATE if is_late else timedelta(0))
            heapq.heappush(self._late, (due_at, next(self._numbers), one))
            self.happened["metadata that came six hours late"] += is_late
        due = []
        while self._late and self._late[0][0] <= self.clock.now:
            one = heapq.heappop(self._late)[2]
            # Of what was written again meanwhile nobody describes the old bytes.
            if self.truth[one.request_id] is one:
                due.append(one.metadata())
        if due:
            recorded(
                self.house.conn,
                Actor("metadata", "jobs"),
                lambda step: Summary(
                    f"{len(put_metadata(self.house.conn, due, by='jobs', step_run=step))} files"
                ),
            )

    def jobs_run_again(self, share_of_files: float) -> None:
        """Let jobs whose files have ended run once more; their files come with the next tick."""
        rows = self.house.conn.execute(
            "SELECT request_id FROM transfer WHERE state IN ('DONE', 'FAILED', 'KILLED') AND NOT already_there"
            " ORDER BY request_id"
        ).fetchall()
        many = min(len(rows), max(1, int(share_of_files * (len(self.truth) + len(self.coming)))))
        for (name,) in self.random.sample(rows, many):
            self._rewritten.append(self.truth[name].written_again(self.random.choice(sites())))

    # -- people ------------------------------------------------------------------------------------

    def user_kills(self, *states: str) -> None:
        """Let the user with most files in these states stop the task that has them."""
        row = self.house.conn.execute(
            "SELECT k.name, t.username FROM transfer t JOIN task k ON k.id = t.task_id"
            " WHERE t.state::text = ANY(%s) GROUP BY 1, 2 ORDER BY count(*) DESC, 1 LIMIT 1",
            (list(states),),
        ).fetchone()
        if row:
            where = "at FTS" if "SUBMITTED" in states else "waiting"
            hit = self.house.act(killing(), Selection(task=row[0]), row[1])
            self.happened[f"files killed by users, {where}"] += hit

    def operator_kills(self) -> None:
        """Let an operator stop what moves on the link that moves most."""
        row = self.house.conn.execute(
            "SELECT source, destination FROM transfer WHERE state IN ('NEW', 'RETRY', 'SUBMITTED')"
            " GROUP BY 1, 2 ORDER BY count(*) DESC, 1, 2 LIMIT 1"
        ).fetchone()
        if row:
            hit = self.house.act(killing(), Selection(source=row[0], destination=row[1]), "operator")
            self.happened["files killed by operators"] += hit

    def users_retry(self, *, killed_too: bool = False) -> None:
        """Let three users send again what failed, or was killed."""
        rows = self.house.conn.execute(
            "SELECT k.name, min(t.username) FROM transfer t JOIN task k ON k.id = t.task_id"
            " WHERE t.state = %s GROUP BY 1 ORDER BY count(*) DESC, 1 LIMIT 3",
            ("KILLED" if killed_too else "FAILED",),
        ).fetchall()
        for task, username in rows:
            deed = sending_again(killed_too=killed_too)
            self.happened["files sent again by users"] += self.house.act(
                deed, EndedSelection(task=task), username
            )

    def backfill(self) -> None:
        """Drive the day of the lost site once more, in four runs, as ``airflow backfill`` does."""
        start, end = self.lost
        width = (end - start) / 4
        before = self._redriven()
        for number in range(4):
            first = start + number * width
            params = CycleParams(created_from=first, created_to=first + width)
            self.house.transfer(f"backfill__{first:%Y-%m-%dT%H:%M}", params, is_backfill=True)
        self.happened["files that the backfill drove again"] += self._redriven() - before

    def _redriven(self) -> int:
        row = self.house.conn.execute(
            "SELECT count(*) FROM transfer_event e JOIN step_run s ON s.id = e.step_run"
            " WHERE e.from_state = 'FAILED' AND e.to_state = 'NEW' AND s.run_id LIKE 'backfill%'"
        ).fetchone()
        return int(row[0]) if row else 0

    # -- services ----------------------------------------------------------------------------------

    def lose_site(self) -> None:
        self.town.break_site(self.lost_site)
        self.lost.append(self.clock.now)
        self.happened["sites lost for a day"] += 1

    def find_site(self) -> None:
        self.town.break_site(None)
        self.lost.append(self.clock.now)

    def kill_server(self, name: str) -> None:
        self.town.kill(name)
        self.happened[f"deaths of {name}"] += 1

    def start_server(self, name: str) -> None:
        self.town.start(name)
