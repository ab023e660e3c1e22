"""The service behind the API: queues, limits, retries, cancels, timeouts. No thread, socket or clock inside.

Whoever owns the clock calls :meth:`Engine.tick`, which does all that is due and says when it wants to be
called again; everything that happens in time is an entry of one heap. Only one thread may call an engine.
"""

from __future__ import annotations

import errno
import heapq
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from itertools import count
from typing import Any, Protocol
from urllib.parse import urlsplit

from asyncstageout.sandbox.faults import Faults
from asyncstageout.sandbox.fts.copying import Copied, CopyOrder
from asyncstageout.sandbox.fts.journal import Journal
from asyncstageout.sandbox.fts.records import (
    BANNED_REASON,
    CANCELED_REASON,
    FILE_ACTIVE,
    FILE_RUNNING,
    JOB_FAILED_REASON,
    QUEUE_TIMEOUT_REASON,
    File,
    Job,
    wire_file,
    wire_time,
)
from asyncstageout.sandbox.fts.refusals import Refused
from asyncstageout.sandbox.fts.simulation import Course, Pace, course, numbers
from asyncstageout.sandbox.fts.tokens import FileTokens, Submitted
from asyncstageout.sandbox.fts.transfer_log import TransferLog
from asyncstageout.sandbox.fts.verdicts import failure_of, job_state, next_unused

Link = tuple[str, str]
GRAIN_S = 0.01
"""Simulated transfers end on this grain, so that one tick ends many."""
FLUSH_S = 0.25
"""How long a change of a simulated transfer may stay in memory only."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How the engine behaves; the defaults are a real FTS's, except where it would be slow to test with."""

    per_link: int = 10
    workers: int = 8
    retry: int = 0
    """Retries of jobs that ask for 0, which means the server's default."""
    retry_delay_s: float = 120
    cancel_after_s: float = 2
    """A running copy lives on for so long after its cancel (a real FTS: up to 10)."""
    archive_after_s: float = 7 * 86400
    staging_s: float = 1
    token_prep_s: float = 1
    """How long tokens are exchanged before the first copy (a real FTS: up to 30)."""
    fault_s: float = 0.05
    """How long a transfer takes that fails by the fault plan."""


class Copier(Protocol):
    """What copies bytes; it answers through :meth:`Engine.copy_started` and :meth:`Engine.copy_ended`."""

    def start(self, order: CopyOrder) -> None: ...
    def stop(self, file_id: int) -> None: ...


@dataclass(slots=True)
class _Running:
    """One try under way."""

    job: Job
    file: File
    started_s: float
    real: bool


@dataclass(order=True, slots=True)
class _Timer:
    due_s: float
    number: int
    act: Callable[[], None] = field(compare=False)


class Engine:
    """All jobs of one FTS."""

    def __init__(
        self,
        journal: Journal,
        clock: Callable[[], float],
        *,
        limits: Limits | None = None,
        pace: Pace | None = None,
        faults: Faults | None = None,
        copier: Copier | None = None,
        log: TransferLog | None = None,
    ) -> None:
        """``clock`` gives seconds since the epoch. Without a ``copier`` no bytes move."""
        self.limits = limits or Limits()
        self.faults = faults or Faults()
        self.copier = copier
        self.jobs: dict[str, Job] = {}
        self.totals: Counter[str] = Counter()
        self.ema: dict[Link, float] = {}
        """Smoothed throughput of each link, MiB/s."""
        self.on_change: Callable[[Job, File | None], None] = lambda _job, _file: None
        self.on_work: Callable[[], None] = lambda: None
        """Called when a tick should come soon."""
        self._journal = journal
        self._clock = clock
        self._pace = pace or Pace()
        self._log = log
        self._numbers = count()
        self._timers: list[_Timer] = []
        self._queues: dict[Link, list[tuple[int, int, int, int, File, Job]]] = defaultdict(list)
        """Heaps of (-priority, file id, number, tries of the file by then, file, job)."""
        self._turns: deque[Link] = deque()
        """Links with queued files, in the order of their turns."""
        self._running: dict[int, _Running] = {}
        self._active: Counter[Link] = Counter()
        self._orders: list[CopyOrder] = []
        self._destinations: dict[str, int] = {}
        self._flush_at: float | None = None
        self._tokens: dict[int, FileTokens] = {}
        """By file id, of files that are not final."""
        self._bans: dict[tuple[str, str], str] = {}
        self._next_file_id = journal.last_file_id() + 1
        self._restore()

    # -- what a restart finds ----------------------------------------------------------------------

    def _restore(self) -> None:
        self.faults.tries.update(self._journal.memos("tries"))
        for key, status in self._journal.memos("ban").items():
            vo, _, storage = key.partition(" ")
            self._bans[vo, storage] = status
        for job in self._journal.load():
            for file in job.files:
                if file.file_state in FILE_RUNNING:
                    file.file_state, file.interrupted = "SUBMITTED", True
                    self._journal.note_file(file)
            self._admit(job)

    # -- submissions -------------------------------------------------------------------------------

    @property
    def now_s(self) -> float:
        return self._clock()

    @property
    def next_file_id(self) -> int:
        return self._next_file_id

    def submit(self, job: Job, tokens: Submitted | None = None) -> None:
        """Take a job. It is on disk when this returns.

        Raises:
            Refused: 409 (its id, or a destination, is taken), 403 (a storage is banned).
        """
        self._check_bans(job)
        if job.job_id in self.jobs:
            raise Refused(409, "The sid provided by the user is duplicated")
        self._check_duplicates(job)
        if tokens and tokens.files:
            self._take_tokens(job, tokens)
        self._journal.add(job)
        self._next_file_id = max(self._next_file_id, job.files[-1].file_id + 1)
        self.totals["jobs"] += 1
        self.totals["files"] += len(job.files)
        self._admit(job)
        self.on_work()

    def _take_tokens(self, job: Job, tokens: Submitted) -> None:
        for file, own in zip(job.files, tokens.files, strict=True):
            self._tokens[file.file_id] = own
            if tokens.managed and file.file_state == "SUBMITTED":
                file.file_state = "TOKEN_PREP"

    def _check_bans(self, job: Job) -> None:
        if not self._bans:
            return
        for file in job.files:
            for storage in file.link:
                status = self._bans.get((job.vo_name, storage))
                if status not in (None, "WAIT_AS"):
                    raise Refused(403, f"{storage} is banned")
                if status and file.file_state == "SUBMITTED":
                    file.file_state = "ON_HOLD"

    def _check_duplicates(self, job: Job) -> None:
        seen = set(self._destinations)
        for file in job.files:
            if file.dest_surl_uuid in seen:
                raise Refused(409, _duplicate_message(job, file.dest_surl_uuid))
            if file.dest_surl_uuid:
                seen.add(file.dest_surl_uuid)

    def _admit(self, job: Job) -> None:
        self.jobs[job.job_id] = job
        for file in job.files:
            if file.dest_surl_uuid:
                self._destinations[file.dest_surl_uuid] = file.file_id
            if file.file_state == "SUBMITTED":
                self._enqueue(job, file)
            elif file.file_state in ("STAGING", "STARTED"):
                self._stage(job, file)
            elif file.file_state == "TOKEN_PREP":
                self._at(self.now_s + self.limits.token_prep_s, partial(self._tokens_are_ready, job, file))
        if job.is_final:
            self._at(self.now_s + self.limits.archive_after_s, lambda: self._archive(job))
        elif job.max_time_in_queue:
            self._at(job.max_time_in_queue, lambda: self._expire(job))

    def _tokens_are_ready(self, job: Job, file: File) -> None:
        if file.file_state == "TOKEN_PREP" and not job.is_final:
            self._move(job, file, "SUBMITTED")
            self._enqueue(job, file)

    def _stage(self, job: Job, file: File) -> None:
        staging_s = numbers(file.source_surl).get("staging_time", self.limits.staging_s)

        def begin() -> None:
            if file.file_state == "STAGING":
                file.staging_start = wire_time(self.now_s)
                self._move(job, file, "STARTED")

        def end() -> None:
            if file.file_state == "STARTED":
                file.staging_finished = wire_time(self.now_s)
                self._move(job, file, "SUBMITTED")
                self._enqueue(job, file)

        self._at(self.now_s, begin)
        self._at(self.now_s + staging_s, end)

    # -- time --------------------------------------------------------------------------------------

    def tick(self) -> float | None:
        """Do what is due; return when to come back (seconds since the epoch), None: when there is work."""
        now_s = self.now_s
        while self._timers and self._timers[0].due_s <= now_s:
            heapq.heappop(self._timers).act()
        self._start_queued()
        self._write(now_s)
        due = [timer.due_s for timer in self._timers[:1]]
        return min(due + ([self._flush_at] if self._flush_at is not None else []), default=None)

    def _at(self, due_s: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._timers, _Timer(due_s, next(self._numbers), act))

    def _write(self, now_s: float) -> None:
        """Write changes: at once before and after real copies, else every :data:`FLUSH_S`."""
        if self._journal.has_notes:
            self._flush_at = self._flush_at or now_s + FLUSH_S
        if self._orders or (self._flush_at is not None and self._flush_at <= now_s):
            self.flush()
        orders, self._orders = self._orders, []
        for order in orders:
            assert self.copier is not None  # noqa: S101
            self.copier.start(order)

    def flush(self) -> None:
        """Write all changes now."""
        self._journal.flush()
        self._flush_at = None

    # -- the queue ---------------------------------------------------------------------------------

    def _enqueue(self, job: Job, file: File) -> None:
        queue = self._queues[file.link]
        if not queue:
            self._turns.append(file.link)
        heapq.heappush(queue, (-job.priority, file.file_id, next(self._numbers), file.tries, file, job))

    def _start_queued(self) -> None:
        """Start files, one per link and turn, until the limits are reached."""
        full = 0
        while self._turns and full < len(self._turns) and len(self._running) < self.limits.workers:
            link = self._turns.popleft()
            if self._active[link] >= self.limits.per_link:
                self._turns.append(link)
                full += 1
                continue
            full = 0
            queue = self._queues[link]
            *_, tries, file, job = heapq.heappop(queue)
            if queue:
                self._turns.append(link)
            else:
                del self._queues[link]
            if file.file_state == "SUBMITTED" and file.tries == tries:  # else cancelled, or a stale entry
                self._start(job, file)

    def _start(self, job: Job, file: File) -> None:
        file.tries += 1
        real = self.copier is not None and urlsplit(file.source_surl).scheme in ("davs", "https")
        reason = self._fault(file) or _without_checksum(job, file)
        running = _Running(job, file, self.now_s, real and reason is None)
        self._running[file.file_id] = running
        self._active[file.link] += 1
        file.transfer_host = job.submit_host
        file.log_file = _log_path(job, file, self.now_s)
        if job.job_type == "R":
            job.source_se, job.dest_se = file.source_se, file.dest_se
        self._move(job, file, "READY")
        if self._log:
            self._log.start(job, file)
        if running.real:
            self._orders.append(_order(job, file, self._tokens.get(file.file_id)))
        else:
            self._simulate(job, file, reason)

    def _fault(self, file: File) -> str | None:
        reason = self.faults.transfer(file.source_surl, file.dest_surl, file.link)
        if tries := self.faults.tries.get(file.source_surl):
            self._journal.note_memo("tries", file.source_surl, tries)
        return reason

    def _simulate(self, job: Job, file: File, reason: str | None) -> None:
        if reason is None:
            end = course(file, self._pace, overwrite=_may_overwrite(job, file))
        else:
            end = Course(self.limits.fault_s, file.user_filesize, failure_of(reason))
        file_id, number = file.file_id, file.tries
        self.copy_started(file_id, number, end.size_bytes)
        copied = Copied(end.failure, end.size_bytes, end.duration_s)
        due_s = self.now_s + end.duration_s
        grain_s = -(-due_s // GRAIN_S) * GRAIN_S
        self._at(grain_s, lambda: self.copy_ended(file_id, number, copied))

    # -- what copies report ------------------------------------------------------------------------

    def copy_started(self, file_id: int, try_number: int, size_bytes: int) -> None:
        """Learn that a copy began (READY to ACTIVE), or of one that did, how large its file is."""
        running = self._running.get(file_id)
        if running is None or running.file.tries != try_number:
            return
        file = running.file
        file.filesize = size_bytes
        if file.file_state != "READY":
            return
        file.start_time = wire_time(self.now_s)
        file.finish_time, file.reason, file.throughput, file.pid = None, "", 0.0, 10_000 + file_id % 50_000
        file.log_debug = 0
        file.internal_file_params = f"nostreams:0,timeout:{600 + 2 * (size_bytes >> 20) + 1},buffersize:0"
        self._move(running.job, file, "ACTIVE")

    def copy_ended(self, file_id: int, try_number: int, copied: Copied) -> None:
        """Learn how a copy ended. Of one that was cancelled meanwhile only its place is taken back."""
        running = self._running.get(file_id)
        if running is None or running.file.tries != try_number:
            return
        job, file = running.job, running.file
        self._release(running)
        if file.file_state in FILE_RUNNING:
            self._judge(job, file, copied)
        if self._log:
            self._log.end(job, file, copied)
        if running.real:
            self.flush()  # bytes may be at the destination: a restart must know
        self.on_change(job, file)

    def _judge(self, job: Job, file: File, copied: Copied) -> None:
        file.filesize, file.tx_duration, file.interrupted = copied.size_bytes, copied.duration_s, False
        if copied.dst_file:
            file.file_metadata = {**(file.file_metadata or {}), "dst_file": copied.dst_file}
        if copied.failure is None:
            self._finished(job, file, copied)
        elif str(copied.failure) == QUEUE_TIMEOUT_REASON:
            self._end(job, file, "CANCELED", QUEUE_TIMEOUT_REASON)
        else:
            self._failed(job, file, copied)

    def _finished(self, job: Job, file: File, copied: Copied) -> None:
        mib = copied.size_bytes / 2**20
        file.throughput = round(mib / max(copied.duration_s, 0.001), 6)
        file.recoverable = False
        old = self.ema.get(file.link, file.throughput)
        self.ema[file.link] = 0.9 * old + 0.1 * file.throughput
        self._end(job, file, "FINISHED", "")

    def _failed(self, job: Job, file: File, copied: Copied) -> None:
        assert copied.failure is not None  # noqa: S101
        reason, recoverable = str(copied.failure), copied.failure.is_recoverable
        file.recoverable = recoverable
        file.throughput = 0.0
        if not recoverable or file.retry >= self._retries_of(job):
            self._end(job, file, "FAILED", reason)
            return
        file.retry += 1
        file.retries.append(
            {
                "attempt": file.retry,
                "datetime": wire_time(self.now_s),
                "reason": reason,
                "transfer_host": file.transfer_host,
                "log_file": file.log_file,
                "file_id": file.file_id,
            }
        )
        file.start_time = file.transfer_host = file.log_file = file.pid = None
        self._move(job, file, "SUBMITTED")
        delay_s = job.retry_delay or self.limits.retry_delay_s
        self._at(self.now_s + delay_s, lambda: self._enqueue(job, file))

    def _retries_of(self, job: Job) -> int:
        if job.job_type in ("R", "H") or job.retry < 0:
            return 0
        return job.retry or self.limits.retry

    def _release(self, running: _Running) -> None:
        del self._running[running.file.file_id]
        self._active[running.file.link] -= 1

    # -- ends --------------------------------------------------------------------------------------

    def _end(self, job: Job, file: File, state: str, reason: str | None, finish: bool = True) -> None:
        """Give a file its final state, and its job too if that was the last one."""
        file.reason = reason
        file.finish_time = wire_time(self.now_s) if finish else None
        if file.dest_surl_uuid:
            self._destinations.pop(file.dest_surl_uuid, None)
            file.dest_surl_uuid = None
        self.totals[state] += 1
        self._move(job, file, state)
        if job.is_final:
            return
        if unused := next_unused(job, file):
            self._move(job, unused, "SUBMITTED")
            self._enqueue(job, unused)
        self._settle(job)

    def _settle(self, job: Job) -> None:
        state = self._verdict(job)
        if state:
            self._end_job(job, state, "" if state == "FINISHED" else JOB_FAILED_REASON)

    @staticmethod
    def _verdict(job: Job) -> str | None:
        # The usual answer of a large job is "not yet": say so at its first unfinished file.
        if job.job_type in ("N", "Y") and any(not f.is_final for f in reversed(job.files)):
            return None
        return job_state(job)

    def _end_job(self, job: Job, state: str, reason: str) -> None:
        job.job_state, job.reason, job.job_finished = state, reason, wire_time(self.now_s)
        self.totals[f"jobs {state}"] += 1
        self._journal.note_job(job)
        self.on_change(job, None)
        self._at(self.now_s + self.limits.archive_after_s, lambda: self._archive(job))

    def _archive(self, job: Job) -> None:
        if any(file.file_id in self._running for file in job.files):
            self._at(self.now_s + 1, lambda: self._archive(job))
            return
        self._journal.archive(job)
        del self.jobs[job.job_id]

    def _move(self, job: Job, file: File, state: str) -> None:
        file.file_state = state
        if file.is_final:
            self._tokens.pop(file.file_id, None)
        self._journal.note_file(file)
        if state in FILE_RUNNING and job.job_state != "ACTIVE" and not job.is_final:
            job.job_state = "ACTIVE"
            self._journal.note_job(job)
        self.on_change(job, file)

    # -- cancels -----------------------------------------------------------------------------------

    def cancel_job(self, job: Job) -> None:
        """Cancel a job that is not over: its state says so at once, running copies stop a little later."""
        for file in job.files:
            if file.file_state in FILE_ACTIVE:
                # FTS leaves finish_time empty where there is a process to signal.
                self._cancel(job, file, CANCELED_REASON, finish=file.pid is None)
        job.cancel_job = True
        self._end_job(job, "CANCELED", CANCELED_REASON)
        self.on_work()

    def cancel_file(self, job: Job, file: File) -> None:
        """Cancel one file of a plain job."""
        self._cancel(job, file, None, finish=True)
        if all(f.file_state not in FILE_ACTIVE for f in job.files):
            job.cancel_job = True
            self._end_job(job, "CANCELED", JOB_FAILED_REASON)
        self.on_work()

    def _cancel(self, job: Job, file: File, reason: str | None, *, finish: bool) -> None:
        self.totals["CANCELED"] += 1
        file.reason = reason
        file.finish_time = wire_time(self.now_s) if finish else None
        if file.dest_surl_uuid:
            self._destinations.pop(file.dest_surl_uuid, None)
            file.dest_surl_uuid = None
        self._move(job, file, "CANCELED")
        if running := self._running.get(file.file_id):
            number = file.tries
            self._at(self.now_s + self.limits.cancel_after_s, lambda: self._kill(running, number))

    def _kill(self, running: _Running, try_number: int) -> None:
        if self._running.get(running.file.file_id) is not running or running.file.tries != try_number:
            return
        if running.real:
            assert self.copier is not None  # noqa: S101
            self.copier.stop(running.file.file_id)  # it answers through copy_ended
        else:
            failure = failure_of("TRANSFER [125] Transfer canceled")
            self.copy_ended(running.file.file_id, try_number, Copied(failure, 0, 0.0))

    def _expire(self, job: Job) -> None:
        """End the queued files of a job that waited too long; what is being copied goes on."""
        for file in job.files:
            if file.file_state in ("SUBMITTED", "STAGING", "STARTED", "ON_HOLD"):
                self._end(job, file, "CANCELED", QUEUE_TIMEOUT_REASON)

    # -- bans, priority ----------------------------------------------------------------------------

    def ban(self, vo: str, storage: str, status: str) -> list[str]:
        """Ban a storage for a VO (CANCEL, WAIT, WAIT_AS); return the ids of the jobs that it touches."""
        self._bans[vo, storage] = status
        self._journal.note_memo("ban", f"{vo} {storage}", status)
        touched = []
        for job, file in self._queued_at(vo, storage, "SUBMITTED"):
            touched.append(job.job_id)
            if status == "CANCEL":
                self._end(job, file, "CANCELED", BANNED_REASON)
            else:
                self._move(job, file, "ON_HOLD")
        self.flush()
        return list(dict.fromkeys(touched))

    def unban(self, vo: str, storage: str) -> None:
        """Lift a ban; parked files go on."""
        self._bans.pop((vo, storage), None)
        self._journal.note_memo("ban", f"{vo} {storage}", None)
        for job, file in self._queued_at(vo, storage, "ON_HOLD"):
            self._move(job, file, "SUBMITTED")
            self._enqueue(job, file)
        self.flush()
        self.on_work()

    def bans(self) -> list[tuple[str, str, str]]:
        """Return (VO, storage, status) of each ban."""
        return [(vo, storage, status) for (vo, storage), status in sorted(self._bans.items())]

    def _queued_at(self, vo: str, storage: str, state: str) -> list[tuple[Job, File]]:
        jobs: Iterable[Job] = (j for j in self.jobs.values() if j.vo_name == vo and not j.is_final)
        return [(j, f) for j in jobs for f in j.files if f.file_state == state and storage in f.link]

    def set_priority(self, job: Job, priority: int) -> None:
        """Change the priority of a job and of what it has queued."""
        job.priority = priority
        self._journal.note_job(job)
        for file in job.files:
            if file.file_state == "SUBMITTED":
                self._enqueue(job, file)  # its older entry is passed over when its turn comes
        self.flush()

    # -- reports -----------------------------------------------------------------------------------

    def archived(self, job_id: str) -> dict[str, Any] | None:
        """Return a job from the archive."""
        return self._journal.archived(job_id)

    @property
    def running_real(self) -> int:
        """Copies of bytes under way."""
        return sum(running.real for running in self._running.values())

    def links(self) -> dict[Link, int]:
        """Return the copies that run on each link that ever had one."""
        return dict(self._active)

    def stats(self) -> dict[str, Any]:
        """Return counts since the start, and what is queued and running now."""
        open_jobs = [job for job in self.jobs.values() if not job.is_final]
        queued = sum(len(queue) for queue in self._queues.values())
        return {
            "totals": dict(self.totals),
            "jobs": {"open": len(open_jobs), "kept": len(self.jobs)},
            "files": {"queued": queued, "running": len(self._running)},
            "links": {" ".join(link): n for link, n in self._active.items() if n},
            "limits": {"per_link": self.limits.per_link, "workers": self.limits.workers},
        }


def _may_overwrite(job: Job, file: File) -> bool:
    last_hop = file is job.files[-1]
    return (
        file.interrupted
        or job.overwrite_flag == "Y"
        or (job.overwrite_flag == "R" and file.retry > 0)
        or (job.overwrite_flag in ("M", "Q") and not last_hop)
    )


def _without_checksum(job: Job, file: File) -> str | None:
    """gfal2 compares one end alone only with a checksum that the submitter said."""
    scope = {"s": "SOURCE", "t": "DESTINATION"}.get(job.verify_checksum)
    if scope is None or file.checksum.partition(":")[2]:
        return None
    return f"{scope} [{errno.EINVAL}] Checksum value required if mode is not end to end"


def _order(job: Job, file: File, tokens: FileTokens | None) -> CopyOrder:
    algorithm, _, value = file.checksum.partition(":")
    params = (job.internal_job_params or "").split(",")
    return CopyOrder(
        file_id=file.file_id,
        try_number=file.tries,
        source=file.source_surl,
        destination=file.dest_surl,
        size_bytes=file.user_filesize,
        checksum=value.lower().zfill(8) if value and algorithm.upper() == "ADLER32" else None,
        verify=job.verify_checksum,
        overwrite=_may_overwrite(job, file),
        checks="strict" not in params,
        cleans="disable-cleanup" not in params,
        reports_existing=job.dst_file_report,
        source_token=tokens.source if tokens else None,
        destination_token=tokens.destination if tokens else None,
    )


def _log_path(job: Job, file: File, now_s: float) -> str:
    at = datetime.fromtimestamp(now_s, UTC)
    pair = "__".join(se.split("://", 1)[1] for se in file.link)
    name = f"{at:%Y-%m-%d-%H%M}__{pair}__{file.file_id}__{job.job_id}"
    return f"/var/log/fts3/transfers/{at:%Y-%m-%d}/{pair}/{name}"


def _duplicate_message(job: Job, duplicate: str | None) -> str:
    """FTS shows the error of its database, rows and all."""
    rows = tuple(
        (
            *(f.hashed_id, f.file_index, job.job_id, f.dest_surl_uuid, job.vo_name, f.source_se, f.dest_se),
            *(job.priority, f.file_state, f.source_surl, f.dest_surl, f.checksum, float(f.user_filesize)),
            *(None, None, None, f.selection_strategy, f.activity, f.scitag, None, None, ""),
        )
        for f in job.files
    )
    columns = (
        "hashed_id, file_index, job_id, dest_surl_uuid, vo_name, source_se, dest_se, priority, file_state, "
        "source_surl, dest_surl, checksum, user_filesize, file_metadata, staging_metadata, archive_metadata, "
        "selection_strategy, activity, scitag, src_token_id, dst_token_id, file_state_initial"
    )
    places = ", ".join(["%s"] * 22)
    return (
        f"The submission is duplicated (MySQLdb.IntegrityError) (1062, \"Duplicate entry '{duplicate}' "
        f"for key 'dest_surl_uuid'\")\n[SQL: INSERT INTO t_file ({columns}) VALUES ({places})]\n"
        f"[parameters: {rows[0] if len(rows) == 1 else rows}]\n"
        "(Background on this error at: https://sqlalche.me/e/14/gkpj)"
    )


def wire_retries(job: Job, file: File) -> list[dict[str, Any]]:
    """Return the answer of ``/retries``: each failed try, with the file as it is now."""
    shown = wire_file(job, file)
    return [{**retry, "file": shown} for retry in file.retries]
