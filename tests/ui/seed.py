"""A believable catalogue in seconds: ``python -m ui.seed --files N --days D --database URL``, from ``tests``.

The files of :mod:`asyncstageout.sandbox.days` live the day before now, minute by minute, with the failures of
production: every file has its events, jobs, cycles and steps. That day is counted as it is in production; the
weeks before it are that day again, with weekends. Some things are wrong, so that pages have something to say.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import count
from random import Random
from time import perf_counter
from typing import Any, NamedTuple, Self
from uuid import UUID

from psycopg import Connection
from psycopg.types.json import Jsonb

from asyncstageout.catalogue.alert_settings import add_silence
from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.credentials import CredentialNote, note_credentials
from asyncstageout.catalogue.fts_servers import add_server, note_contact, remove_server, set_state
from asyncstageout.catalogue.history import LIVE_COLUMNS
from asyncstageout.catalogue.link_health import open_breaker
from asyncstageout.catalogue.measures import COLUMNS, COUNTS, DELAYS
from asyncstageout.catalogue.partitions import ensure_days, ensure_month, ensure_partitions
from asyncstageout.catalogue.policies import put_policy
from asyncstageout.catalogue.restrictions import Area, restrict
from asyncstageout.catalogue.rollups import HOUR
from asyncstageout.catalogue.step_runs import Actor, end_step, start_step
from asyncstageout.catalogue.storages import current_storages, put_sites
from asyncstageout.core.alert_channels import read_channels
from asyncstageout.core.delays import bucket
from asyncstageout.core.failures import classify
from asyncstageout.core.naming import request_id
from asyncstageout.core.planning import Link
from asyncstageout.core.restrictions import Mode
from asyncstageout.sandbox.days import SITES, Day
from asyncstageout.sandbox.faults import MIX
from asyncstageout.steps.alerts import look
from load.server import say
from ui.seed_runs import fill_runs

CYCLE_S = 120
LIVED = timedelta(hours=26)
BUSY_S = 9 * 3600
"""So much later than the hours of :mod:`asyncstageout.sandbox.days` people work."""
SENT = timedelta(seconds=2)
"""From planning a job to FTS's word that it has it."""
WEEK_DAYS = 7
"""So many days are there hour by hour."""
PAST = timedelta(hours=22)
"""What was done before that is in the history already."""
FAILS = 0.06
"""Share of the attempts that fail, as in a bad week of production."""
MAX_ATTEMPTS = 3
FILES_PER_JOB = 200
SERVERS = ("fts_cern", "fts_fnal")

BROKEN = Link("T2_US_Florida", "T2_FR_IPHC")
"""Every attempt fails on it."""
BROKEN_EVERY = 40
"""One of so many files travels on it."""
PAUSED = "T2_IT_Pisa"
PAUSED_FOR = timedelta(hours=3)
DRAINED = "T2_PL_Cyfronet"
STUCK = {"slow": 5 * HOUR, "unconfirmed": 3 * HOUR, "unpolled": HOUR}
"""For so long a job of a busy link has been at FTS, or on its way there."""
HOSTILE = "<script>alert('LFN')</script>"
"""Part of a reason and of an LFN: it must stay text wherever it is shown."""


START = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class File:
    """One file and what becomes of it."""

    id: int
    request: dict[str, Any]
    at: datetime
    """Arrival."""
    state: str = "NEW"
    attempt: int = 0
    due_at: datetime = START
    sid: UUID | None = None
    updated_at: datetime = START
    fts_finished_at: datetime | None = None
    failure: tuple[Any, ...] = (None, None, None, None, None)

    @property
    def link(self) -> Link:
        return Link(self.request["source"], self.request["destination"])


@dataclass(slots=True)
class Job:
    """One FTS job."""

    sid: UUID
    job_id: UUID
    link: Link
    planned_at: datetime
    cycle: int
    files: list[File] = field(default_factory=list)
    open: int = 0
    ended_at: datetime | None = None
    stuck: str | None = None
    """Why its files stay as they are: a key of :data:`STUCK`."""


@dataclass(frozen=True, slots=True)
class Event:
    """One move of a file."""

    at: datetime
    file: int
    from_state: str | None
    to_state: str
    attempt: int
    sid: UUID | None
    step: str
    reason: str | None = None
    category: str | None = None


class Life:
    """Makes files live until now."""

    def __init__(self, now: datetime, seed: int) -> None:
        self.now, self.random = now, Random(seed)
        self.events: list[Event] = []
        self.jobs: list[Job] = []
        self._jobs: dict[tuple[Link, int], Job] = {}
        self._per_link: Counter[Link] = Counter()
        self._paused_from = now - PAUSED_FOR

    def live(self, file: File) -> None:
        """Take a file through its attempts, up to now."""
        self._move(file, file.at, "NEW", "api: submit")
        due_at = file.due_at = file.at
        while (slot := self._slot(file.link, due_at)) is not None:
            job = self._job(file, slot)
            planned_at = job.planned_at
            if (
                not self._move(file, planned_at, "ACQUIRED", "stageout_transfer.group", job=job)
                or job.stuck == "unconfirmed"
            ):
                return
            file.attempt += 1
            if (
                not self._move(file, planned_at + SENT, "SUBMITTED", "stageout_transfer.submit", job=job)
                or job.stuck
            ):
                return
            took_s = self.random.lognormvariate(math.log(70), 0.8) + file.request["size_bytes"] / 40e6
            ended_at = planned_at + timedelta(seconds=4 + took_s)
            if ended_at > self.now:
                return
            file.fts_finished_at = ended_at
            noticed_at = ended_at + timedelta(seconds=self.random.uniform(1, 6))
            reason = self._reason(file)
            if reason is None:
                file.failure = (None,) * 5
                self._end(file, job, noticed_at, "DONE")
                return
            known = classify(reason)
            state = "FAILED" if known.permanent or file.attempt == MAX_ATTEMPTS else "RETRY"
            file.failure = (known.category.value, known.code, known.scope, known.errno, known.reason)
            self._end(file, job, noticed_at, state, reason=known.reason, category=known.category.value)
            if file.state != "RETRY":
                return
            due_at = file.due_at = noticed_at + timedelta(seconds=600 * 2 ** (file.attempt - 1))

    def kill(self, file: File, at: datetime) -> None:
        """Have a person stop a file that waits."""
        self._move(file, at, "KILL", "api: kill")
        self._move(file, at, "KILLED", "api: kill", reason="killed by olga: wrong dataset")

    def _end(self, file: File, job: Job, at: datetime, state: str, **failure: str) -> bool:
        moved = self._move(file, at, state, "stageout_sense.update_catalogue", job=job, **failure)
        if moved:
            job.open -= 1
            job.ended_at = max(job.ended_at or at, at)
        return moved

    def _move(
        self, file: File, at: datetime, state: str, step: str, *, job: Job | None = None,
        reason: str | None = None, category: str | None = None,
    ) -> bool:  # fmt: skip
        if at > self.now:
            return False
        before = None if state == "NEW" else file.state
        sid = job and job.sid
        self.events.append(Event(at, file.id, before, state, file.attempt, sid, step, reason, category))
        file.state, file.updated_at, file.sid = state, at, sid or file.sid
        return True

    def _slot(self, link: Link, due_at: datetime) -> int | None:
        """Return the number of the cycle that takes a file; None: none has."""
        slot = int(due_at.timestamp()) // CYCLE_S + 1
        at = datetime.fromtimestamp(slot * CYCLE_S, UTC)
        is_held = PAUSED in link and at > self._paused_from
        is_broken = link == BROKEN and at > self.now - timedelta(hours=2)
        return None if at > self.now or is_held or is_broken else slot

    def _job(self, file: File, slot: int) -> Job:
        found = self._jobs.get((file.link, slot))
        if found is None or len(found.files) >= FILES_PER_JOB:
            planned_at = datetime.fromtimestamp(slot * CYCLE_S + self.random.uniform(1, 3), UTC)
            found = Job(self._uuid(), self._uuid(), file.link, planned_at, slot)
            self._jobs[file.link, slot] = found
            self.jobs.append(found)
            self._stick(found)
        found.files.append(file)
        found.open += 1
        return found

    def _stick(self, job: Job) -> None:
        self._per_link[job.link] += 1
        is_usual = self._per_link[job.link] > 8 and job.link != BROKEN
        for why, ago in STUCK.items():
            is_then = timedelta(0) <= job.planned_at - (self.now - ago) < HOUR
            if is_then and is_usual and not any(one.stuck == why for one in self.jobs):
                job.stuck = why

    def _reason(self, file: File) -> str | None:
        if file.link == BROKEN:
            return "DESTINATION [112] DESTINATION SRM_PUT_TURL error on the turl request : Host is down"
        if self.random.random() > FAILS:
            return None
        if self.random.random() < 0.02:
            return f"TRANSFER [5] {HOSTILE}"
        return self.random.choices(MIX, [kind.weight for kind in MIX])[0].reason

    def _uuid(self) -> UUID:
        return UUID(int=self.random.getrandbits(128), version=4)


def fill(conn: Connection, *, files: int = 6_000, days: int = 30, seed: int = 7) -> None:
    """Fill an empty, migrated catalogue: ``files`` of the day before now, and the counts of ``days`` before it."""
    now = datetime.now(UTC)
    put_sites(
        conn,
        {site: f"davs://{site.lower().replace('_', '-')}.example.test:8443/cms" for site in SITES},
        "olga",
    )
    ensure_partitions(conn, now.date())
    ensure_days(conn, "transfer_event", [(now - timedelta(days=ago)).date() for ago in (1, 2)])
    life = _lives(now, files, seed)
    steps = _write_steps(conn, life)
    _write(conn, life, steps, now)
    _count(conn, life, now, days)
    _publish(conn)
    _troubles(conn, now)
    fill_runs(conn, now)
    conn.execute("ANALYZE transfer, transfer_event, fts_job, task, step_run")


def _lives(now: datetime, files: int, seed: int) -> tuple[Life, list[File]]:
    day = Day(
        seed=seed,
        file_count=files,
        user_count=max(20, files // 40),
        median_bytes=300_000_000,
        starts_at=now - LIVED,
    )
    life, lived, numbers = Life(now, seed), [], count(1)
    waiting: defaultdict[str, list[File]] = defaultdict(list)
    for one in day.files():
        # People work now, wherever the clock stands.
        at = now - LIVED + timedelta(seconds=(one.arrives_after_s + BUSY_S) % LIVED.total_seconds())
        if at < now - timedelta(seconds=5):
            file = File(next(numbers), one.request, at, updated_at=at)
            if file.id % BROKEN_EVERY == 0:
                file.request |= BROKEN._asdict()
            if file.id == 1:
                file.request |= {"source_lfn": file.request["source_lfn"] + HOSTILE}
            life.live(file)
            lived.append(file)
            if file.state == "NEW":
                waiting[file.request["task"]].append(file)
    for file in min(waiting.values(), key=len, default=[]):
        life.kill(file, now - timedelta(minutes=5))
    life.events.sort(key=lambda event: event.at)
    return life, lived


def _write_steps(conn: Connection, lives: tuple[Life, list[File]]) -> dict[tuple[str, int], int]:
    """Write cycles and steps; return the number of the step that does a kind of move in a cycle."""
    life, _ = lives
    slots = sorted({int(event.at.timestamp()) // CYCLE_S for event in life.events})
    did = {(event.step, int(event.at.timestamp()) // CYCLE_S) for event in life.events}
    wanted = [(step, slot) for slot in slots for step in STEPS if "." in step or (step, slot) in did]
    rows = []
    for step, slot in wanted:
        at = datetime.fromtimestamp(slot * CYCLE_S, UTC)
        dag_id, _, task_id = step.rpartition(".")
        run_id = f"scheduled__{at:%Y-%m-%dT%H:%M:%S}+00:00" if dag_id else None
        rows.append(
            (dag_id or None, run_id, task_id, PEOPLE.get(step, "airflow"), at, at + timedelta(seconds=1),
             "success", "Done as seeded", Jsonb({}))
        )  # fmt: skip
    _copy(
        conn,
        "step_run",
        "dag_id, run_id, task_id, actor, started_at, ended_at, outcome, sentence, counts",
        rows,
    )
    (first,) = conn.execute("SELECT max(id) - %s + 1 FROM step_run", (len(rows),)).fetchone() or (1,)
    cycles = [
        ("stageout_transfer", f"scheduled__{at:%Y-%m-%dT%H:%M:%S}+00:00", at)
        for at in (datetime.fromtimestamp(slot * CYCLE_S, UTC) for slot in slots)
    ]
    _copy(conn, "cycle", "dag_id, run_id, created_at", cycles)
    return {key: first + place for place, key in enumerate(wanted)}


STEPS = (
    "api: submit", "api: kill", "stageout_transfer.collect", "stageout_transfer.group", "stageout_transfer.submit",
    "stageout_sense.update_catalogue",
)  # fmt: skip
PEOPLE = {"api: submit": "crab", "api: kill": "olga"}


def _write(
    conn: Connection, lives: tuple[Life, list[File]], steps: dict[tuple[str, int], int], now: datetime
) -> None:
    life, files = lives
    tasks = {file.request["task"]: file.request["username"] for file in files}
    with conn.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO task (name, username, created_at) VALUES (%s, %s, %s)",
            [(task, username, now - LIVED) for task, username in tasks.items()],
        )
    ids = dict(conn.execute("SELECT name, id FROM task").fetchall())
    done = [file for file in files if file.state == "DONE" and file.updated_at < now - PAST]
    past = {file.id for file in done}
    _copy(conn, "transfer", LIVE_COLUMNS, (_row(file, ids) for file in files if file.id not in past))
    _copy(conn, "transfer_history", LIVE_COLUMNS, (_row(file, ids) for file in done))
    conn.execute("INSERT INTO past_request SELECT hashtextextended(request_id, 0), id FROM transfer_history")
    conn.execute("SELECT setval(pg_get_serial_sequence('transfer', 'id'), %s)", (len(files) + 1,))
    cycles = dict(
        conn.execute(f"SELECT floor(extract(epoch FROM created_at) / {CYCLE_S})::bigint, id FROM cycle")
    )
    versions = {site: version for site, (version, _) in current_storages(conn).items()}
    _copy(
        conn, "fts_job",
        "sid, job_id, fts_server, cycle_id, shard, source, destination, identity, activity, priority, params,"
        " transfer_ids, open_files, size_bytes, state, fts_state, planned_at, submitted_at, ended_at, polled_at,"
        " next_poll_at, source_storage, source_protocol, destination_storage, destination_protocol, poster",
        (_job_row(job, cycles[job.cycle], versions, now) for job in life.jobs),
    )  # fmt: skip
    _copy(
        conn, "transfer_event", "transfer_id, at, from_state, to_state, attempt, fts_job, step_run, reason, failure_category",
        (
            (event.file, event.at, event.from_state, event.to_state, event.attempt, event.sid,
             steps[event.step, int(event.at.timestamp()) // CYCLE_S], event.reason, event.category)
            for event in life.events
        ),
    )  # fmt: skip


def _row(file: File, tasks: dict[str, int]) -> tuple[Any, ...]:
    request, is_final = file.request, file.state in ("DONE", "FAILED", "KILLED")
    return (
        file.id, request_id(request["source_lfn"]), tasks[request["task"]], request["username"],
        f"{request['username']}@cms", request["source"], request["destination"], request["source_lfn"],
        request["destination_lfn"], request["size_bytes"], request["adler32"], request.get("type", "output"),
        "default", request.get("priority", 3), str(request.get("job_id", "")), 0, file.state, file.due_at,
        file.attempt, file.sid, file.id, *file.failure, "NOT_REQUIRED", file.at, file.updated_at,
        file.fts_finished_at, file.updated_at if is_final else None, None, None, None, None, False,
    )  # fmt: skip


def _job_row(job: Job, cycle: int, versions: dict[str, int], now: datetime) -> tuple[Any, ...]:
    sent_at = job.planned_at + SENT
    state = "PLANNED" if sent_at > now or job.stuck == "unconfirmed" else "SUBMITTED" if job.open else "ENDED"
    failed = sum(file.state in ("FAILED", "RETRY") for file in job.files)
    ended = "FINISHED" if not failed else "FAILED" if failed == len(job.files) else "FINISHEDDIRTY"
    return (
        job.sid, job.job_id if state != "PLANNED" else None, SERVERS[len(job.link.destination) % 2], cycle, 0, *job.link, "service",
        "default", 3, Jsonb({}), [file.id for file in job.files], job.open,
        sum(file.request["size_bytes"] for file in job.files), state,
        {"PLANNED": None, "SUBMITTED": "ACTIVE", "ENDED": ended}[state], job.planned_at,
        None if state == "PLANNED" else sent_at, job.ended_at if state == "ENDED" else None,
        None if state == "PLANNED" else now - timedelta(minutes=35 if job.stuck == "unpolled" else 0.3), now,
        versions[job.link.source], "davs", versions[job.link.destination], "davs", 0,
    )  # fmt: skip


def _copy(conn: Connection, table: str, columns: str, rows: Iterable[Sequence[Any]]) -> None:
    with conn.cursor() as cursor, cursor.copy(f"COPY {table} ({columns}) FROM STDIN") as copy:
        for row in rows:
            copy.write_row(row)


Key = tuple[str, str, str]
"""Kind, subject, other: as the statistics have them."""


@dataclass
class Counts:
    """What happened in an hour or a minute to all files, or to those of a link, site, user or task."""

    sums: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    delays: defaultdict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))

    def add(self, fact: Fact) -> None:
        for name, amount in fact.sums:
            self.sums[name] += amount
        for name, number in fact.waits:
            self.delays[name][number] += 1
        if fact.category:
            self.failures[fact.category] += 1

    def merge(self, other: Counts) -> None:
        self.sums.update(other.sums)
        self.failures.update(other.failures)
        for name, waits in other.delays.items():
            self.delays[name].update(waits)

    def row(self, share: float = 1) -> list[Any]:
        """Return the columns, as of a day with only a share of the traffic that went well."""
        return [
            *(round(self.sums[name] * (1 if name.startswith(UNSCALED) else share)) for name in COUNTS),
            *self.rest,
        ]

    @cached_property
    def rest(self) -> tuple[str | None, ...]:
        """Failures and delays as Postgres writes them: no day has other ones."""
        waits = (
            ",".join(f"{{{one},{files}}}" for one, files in sorted(self.delays[name].items()))
            for name in DELAYS
        )
        return (
            json.dumps(self.failures) if self.failures else None,
            None,
            *(f"{{{one}}}" if one else None for one in waits),
        )


class Fact(NamedTuple):
    """What an event adds to every count that it belongs to, as :mod:`asyncstageout.catalogue.measures` says."""

    sums: list[tuple[str, int]]
    category: str | None
    waits: list[tuple[str, int]]

    @classmethod
    def of(cls, event: Event, file: File, sent_at: datetime | None) -> Self:
        sums, waits = [], []
        for name, (before, after) in MOVES.items():
            if event.to_state == after and (before is None or event.from_state in before):
                sums += [(name, 1), (f"{name}_bytes", file.request["size_bytes"])]
        for name, (states, ends) in ATTEMPTS.items():
            if event.from_state in states and event.to_state in ends:
                sums.append((name, 1))
        finished = file.fts_finished_at
        if event.to_state == "SUBMITTED" and event.attempt == 1:
            waits.append(("accepted_after", event.at - file.at))
        if event.to_state == "DONE" and finished and sent_at:
            waits += [
                ("in_fts", finished - sent_at), ("settled_after", event.at - finished), ("done_after", event.at - file.at),
            ]  # fmt: skip
        return cls(sums, event.category, [(name, bucket(waited.total_seconds())) for name, waited in waits])


UNSCALED = ("failed", "retried", "attempts_failed", "killed")
MOVES: dict[str, tuple[tuple[str | None, ...] | None, str]] = {
    "arrived": ((None,), "NEW"), "accepted": (None, "SUBMITTED"), "retried": (None, "RETRY"), "done": (None, "DONE"),
    "failed": (None, "FAILED"), "killed": (None, "KILLED"),
}  # fmt: skip
ATTEMPTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "attempts_done": (("SUBMITTED", "KILL"), ("DONE",)),
    "attempts_failed": (("SUBMITTED",), ("RETRY", "FAILED")),
}
_COLUMNS = f"kind, at, subject, other, {', '.join(COLUMNS)}"


def _count(conn: Connection, lives: tuple[Life, list[File]], now: datetime, days: int) -> None:
    """Count as the statistics do (a test holds the two together), and repeat the last day before itself."""
    hours, minutes, totals = _counted(lives, now.replace(minute=0, second=0, microsecond=0))
    start = now.replace(minute=0, second=0, microsecond=0)
    for month in sorted({(now - timedelta(days=number)).date().replace(day=1) for number in range(days + 2)}):
        ensure_month(conn, ("statistic_hour", "statistic_day"), month)
    _copy(conn, "statistic_slice", _COLUMNS, _rows(minutes))
    _copy(conn, "statistic_minute", _COLUMNS, _rows(totals))
    _copy(conn, "statistic_hour", _COLUMNS, _rows(hours))
    last_day = {at: counts for at, counts in hours.items() if at >= start - 24 * HOUR}
    first_midnight = (start - LIVED).replace(hour=0)
    for ago in range(1, days + 1):
        share = (0.55 if (now - timedelta(days=ago)).weekday() > 4 else 0.95) + 0.15 * math.sin(ago * 1.7)
        earlier = {at - timedelta(days=ago): counts for at, counts in last_day.items()}
        if ago <= WEEK_DAYS:
            unknown = {at: counts for at, counts in earlier.items() if at not in hours}
            _copy(conn, "statistic_hour", _COLUMNS, _rows(unknown, share))
        day: dict[Key, Counts] = defaultdict(Counts)
        for counts in last_day.values():
            for key, one in counts.items():
                day[key].merge(one)
        _copy(conn, "statistic_day", _COLUMNS, _rows({first_midnight - timedelta(days=ago): day}, share))
    step = start_step(conn, Actor("roll_up", "airflow", "stageout_statistics", "scheduled__seed"))
    end_step(conn, step, outcome="success", sentence="Counted as seeded", counts={})
    known = [start - number * HOUR for number in range(1, 24 * days)]
    rolled = [(hour, hour + HOUR, 0, step) for hour in known]
    if (until := now.replace(second=0, microsecond=0)) > start:
        rolled.append((start, until, 0, step))
    _copy(conn, "rolled_hour", "hour, until, events, step_run", rolled)


ByTime = dict[datetime, dict[Key, Counts]]


def _counted(lives: tuple[Life, list[File]], start: datetime) -> tuple[ByTime, ByTime, ByTime]:
    """Return the hours before ``start``, the minutes since, and the totals of all minutes."""
    life, files = lives
    by_id = {file.id: file for file in files}
    sent = {job.sid: job.planned_at + SENT for job in life.jobs}
    hours, minutes, totals = (defaultdict(lambda: defaultdict(Counts)) for _ in range(3))  # type: ignore[var-annotated]
    whole = life.now.replace(second=0, microsecond=0)
    for event in life.events:
        file, minute = by_id[event.file], event.at.replace(second=0, microsecond=0)
        if minute >= whole:
            continue
        request, sent_at = file.request, sent.get(event.sid) if event.sid else None
        keys: tuple[Key, ...] = (
            ("total", "", ""), ("link", *file.link), ("source", file.link.source, ""),
            ("destination", file.link.destination, ""), ("user", request["username"], ""),
            ("task", request["task"], request["username"]),
        )  # fmt: skip
        place = hours[minute.replace(minute=0)] if minute < start else minutes[minute]
        fact = Fact.of(event, file, sent_at)
        for key in keys:
            place[key].add(fact)
        totals[minute][keys[0]].add(fact._replace(waits=[]))
    return hours, minutes, totals


def _rows(counted: ByTime, share: float = 1) -> Iterator[list[Any]]:
    for at, by_key in counted.items():
        for (kind, subject, other), counts in by_key.items():
            yield [kind, at, subject, other, *counts.row(share)]


def _publish(conn: Connection) -> None:
    """Have the task with the most failures publish what arrived: half is in DBS, some DBS does not take."""
    step = start_step(conn, Actor("publish", "airflow", "stageout_publish", "scheduled__2026"))
    (task,) = conn.execute(
        "SELECT task_id FROM transfer GROUP BY 1 HAVING count(*) FILTER (WHERE state = 'DONE') > 3"
        " ORDER BY count(*) FILTER (WHERE state = 'FAILED') DESC, count(*) DESC, 1 LIMIT 1"
    ).fetchone() or (0,)
    done = [row[0] for row in conn.execute(
        "SELECT id FROM transfer WHERE task_id = %s AND state = 'DONE' ORDER BY id", (task,)
    )]  # fmt: skip
    half = len(done) // 2
    for ids, state, publication, reason in (
        (done[:half], "PUBLISHED", "DONE", None),
        (done[half:-1], "FAILED", "FAILED", f"DBS refused the block: lumi 17 of run 380001 is there twice {HOSTILE}"),
    ):  # fmt: skip
        name = f"{DATASET}#{state.lower()}-{task}"
        values = {"task": task, "ids": ids, "state": state, "publication": publication, "reason": reason,
                  "name": name, "dataset": DATASET, "step": step}  # fmt: skip
        conn.execute(_BLOCK, values)
    conn.execute("UPDATE transfer SET publication = 'NEW' WHERE id = %s", (done[-1],))
    conn.execute(_CRAB, {"task": task})
    end_step(conn, step, outcome="success", sentence="Done as seeded", counts={})


DATASET = "/SingleMuon/somebody-v1-0a1b2c3d4e5f60718293a4b5c6d7e8f9/USER"
_BLOCK = """
WITH block AS (
    INSERT INTO block (name, task_id, dataset, destination, dbs, state, transfer_ids, lumis, payload_bytes,
        size_bytes, opened_at, oldest_at, closed_at, close_reason, tries, reason, settled_at, settled_by)
    SELECT %(name)s, %(task)s, %(dataset)s, min(destination), 'dbs_default', %(state)s::block_state,
        %(ids)s::bigint[], count(*), 1000, sum(size_bytes), now(), now(), now(), 'full',
        CASE WHEN %(reason)s::text IS NULL THEN 0 ELSE 3 END, %(reason)s, now(), %(step)s
    FROM transfer WHERE id = ANY(%(ids)s) RETURNING id
), file AS (
    UPDATE transfer SET publication = %(publication)s::publication_state, block_id = (SELECT id FROM block)
    WHERE id = ANY(%(ids)s) RETURNING id
)
INSERT INTO file_event (transfer_id, kind, from_state, to_state, subject, step_run, reason)
SELECT id, 'publication', 'ACQUIRED', %(publication)s, %(name)s, %(step)s, %(reason)s FROM file ORDER BY id
"""
_CRAB = """
INSERT INTO crab_record (transfer_id, start_time, publish, fts_instance, dbs_blockname, block_complete)
SELECT id, extract(epoch FROM created_at), 1, 'https://fts-cern.example.test:8446', NULL, 'NO'
FROM transfer WHERE task_id = %(task)s AND state = 'FAILED'
"""


def _troubles(conn: Connection, now: datetime) -> None:
    """Let some things be wrong, of different kinds."""
    for name in SERVERS:
        add_server(conn, name, endpoint=f"https://{name.replace('_', '-')}.example.test:8446", by="olga")
    remove_server(conn, "fts3_default", by="olga")
    note_contact(conn, SERVERS[0], None, now, "3.13.2")
    note_contact(conn, SERVERS[1], None, now, "3.13.2")
    set_state(conn, SERVERS[1], "draining", reason="upgrade on Monday", by="olga")
    open_breaker(conn, BROKEN, reason="58 of 60 attempts failed within 10 minutes", openings=3, wait_s=1200)
    conn.execute("UPDATE link_breaker SET opened_at = now() - interval '7 hours'")
    restrict(conn, Mode.PAUSE, Area(site=PAUSED), reason="disk pools are full; ticket 170312", by="olga",
             starts_at=now - PAUSED_FOR, ends_at=now + timedelta(minutes=50))  # fmt: skip
    restrict(conn, Mode.DRAIN, Area(destination=DRAINED), reason="storage is being retired", by="pietro",
             starts_at=now - timedelta(days=40))  # fmt: skip
    restrict(conn, Mode.PAUSE, Area(site="T2_ES_IFCA"), reason="scheduled downtime: dCache upgrade", by="cric",
             starts_at=now + timedelta(hours=14), ends_at=now + timedelta(hours=20), is_downtime=True)  # fmt: skip
    put_policy(conn, None, None, {"max_attempts": MAX_ATTEMPTS}, "olga")
    put_policy(
        conn, BROKEN.source, BROKEN.destination, {"max_files_in_flight": 500, "files_per_job": 50}, "pietro"
    )
    note_credentials(conn, [
        CredentialNote("service", "x509", "/DC=ch/CN=stageout", (), now + timedelta(days=4)),
        CredentialNote("abianchi@cms", "x509", "/DC=ch/CN=abianchi", (), now + timedelta(days=300)),
    ])  # fmt: skip
    failed = start_step(conn, Actor("verdict", "airflow", "stageout_reconcile", "scheduled__2026"))
    end_step(conn, failed, outcome="failed", counts={"unknown_jobs": 2},
             sentence="NeedsAPerson: 2 jobs at FTS that the catalogue does not know (runbooks/unknown-fts-jobs.md)")  # fmt: skip
    add_silence(conn, "link-*", BROKEN.source, reason="their storage is moved; ticket 170298", by="pietro",
                ends_at=now + timedelta(hours=20))  # fmt: skip
    channels, _ = read_channels(
        '[{"name": "chat", "kind": "slack"}, {"name": "nights", "kind": "slack", "severity": "urgent"}]'
    )
    for ago in (timedelta(hours=1), timedelta(0)):
        look(conn, channels, now=now - ago, step_run=failed)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ui.seed", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--files", type=lambda text: int(float(text)), default=6_000)
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--database", required=True, help="postgresql:// URL of a migrated catalogue")
    wanted = parser.parse_args()
    started_s = perf_counter()
    with connect(wanted.database, "seed") as conn:
        fill(conn, files=wanted.files, days=wanted.days)
    say(f"{wanted.files:,} files and {wanted.days} days in {perf_counter() - started_s:.1f} s")


if __name__ == "__main__":
    main()
