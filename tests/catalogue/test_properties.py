"""Any interleaving of what happens to a catalogue, with deaths in between, keeps every invariant of the audit.

Hypothesis plays the house: files arrive, also as later retries of their jobs or written straight to their
destinations, cycles plan, an FTS (a model: it copies nothing) takes jobs, refuses them, loses replies or itself;
users kill, FTS is told so, operators drive again, reconcile mends. Each operation runs alone or
beside another one, on two connections, and may die before its commit. After each the whole audit holds, and no
file is in two jobs at FTS. At the end everything left can be brought to its end.

``ASO_LONG_TESTS=1`` plays for some twenty minutes instead of less than one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from datetime import UTC, datetime
from itertools import count
from typing import Any, cast
from uuid import UUID

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from psycopg import Connection

from asyncstageout.catalogue.audit import audit
from asyncstageout.catalogue.claims import (
    Entitled,
    links_with_work,
    lock_grouping,
    redrive_failed,
    take,
    write_jobs,
)
from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.cycles import CycleParams, open_cycle
from asyncstageout.catalogue.fts_servers import installation_id, set_state
from asyncstageout.catalogue.given_up import give_up
from asyncstageout.catalogue.history import move_finished
from asyncstageout.catalogue.intake import add_transfers
from asyncstageout.catalogue.jobs import adopt_orphans, close_refused, record_accepted, release, split
from asyncstageout.catalogue.kills import kill
from asyncstageout.catalogue.retries_by_people import retry_files
from asyncstageout.catalogue.sensing import LOST, Report, stage_reports
from asyncstageout.catalogue.step_runs import Actor, start_step
from asyncstageout.catalogue.transitions import Move, apply_moves
from asyncstageout.core.failures import Category, own_failure
from asyncstageout.core.fts import FTSFileStatus, FTSJobStatus, JobAnswer, JobMissing
from asyncstageout.core.fts_ids import deterministic_job_id
from asyncstageout.core.planning import plan_jobs
from asyncstageout.core.requests import read_requests
from asyncstageout.core.selections import Selection
from asyncstageout.core.states import TransferState
from asyncstageout.steps import reconcile
from asyncstageout.steps.cancel import cancel
from asyncstageout.steps.door import ISSUER
from asyncstageout.steps.update_catalogue import update_catalogue
from fixtures.catalogue import file_names, key_of, record
from fixtures.cycles import Clients

S = TransferState
LONG = bool(os.environ.get("ASO_LONG_TESTS"))
PLAY = settings(
    max_examples=600 if LONG else 25,
    stateful_step_count=80 if LONG else 40,
    derandomize=not LONG,
    deadline=None,
    database=None,
    phases=tuple(Phase) if LONG else (Phase.generate,),  # to make a finding small takes minutes
    suppress_health_check=list(HealthCheck),
)
PATIENCE_S = 30
FOR_EVER_AGO, FOR_EVER = datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
FILES = 12
DESTINATIONS = 9
"""Fewer than files: some requests want a destination that another one writes."""


class ModelFTS:
    """What an FTS has: jobs with files that run, end, or are forgotten. It answers reconcile as a client does."""

    vo = "cms"

    def __init__(self, installation: UUID) -> None:
        self.installation = installation
        self.jobs: dict[UUID, dict[int, str]] = {}
        self.copied: set[int] = set()

    def id_of(self, sid: UUID) -> UUID:
        return deterministic_job_id(self.vo, str(sid))

    def post(self, sid: UUID, transfer_ids: Sequence[int]) -> UUID:
        self.jobs.setdefault(self.id_of(sid), dict.fromkeys(transfer_ids, "ACTIVE"))
        return self.id_of(sid)

    def running(self) -> list[tuple[UUID, int]]:
        return [(job, file) for job, files in self.jobs.items() for file, s in files.items() if s == "ACTIVE"]

    def end(self, job_id: UUID, transfer_id: int, state: str) -> None:
        self.jobs[job_id][transfer_id] = state
        if state == "FINISHED":
            self.copied.add(transfer_id)

    def statuses(self, job_ids: Sequence[UUID], *, with_files: bool = True) -> list[JobAnswer]:
        return [self._status(job_id) if job_id in self.jobs else JobMissing(job_id) for job_id in job_ids]

    def cancel_jobs(self, job_ids: Sequence[UUID]) -> list[JobAnswer]:
        for job_id in job_ids:
            self.cancel_files(job_id, list(self.jobs.get(job_id, ())))
        return self.statuses(job_ids)

    def cancel_files(self, job_id: UUID, file_ids: Sequence[int]) -> None:
        """What runs is cancelled; our own numbers of files are FTS's, too."""
        for file in file_ids:
            if self.jobs[job_id][file] == "ACTIVE":
                self.end(job_id, file, "CANCELED")

    def archived(self, job_id: UUID) -> JobMissing:
        return JobMissing(job_id)

    def list_jobs(self, *, limit: int) -> list[FTSJobStatus]:
        return [self._status(job_id) for job_id in dict.fromkeys(job for job, _ in self.running())][:limit]

    def _status(self, job_id: UUID) -> FTSJobStatus:
        metadata = {"issuer": ISSUER, "installation": str(self.installation)}
        files = tuple(
            FTSFileStatus(file, state, transfer_id=file) for file, state in self.jobs[job_id].items()
        )
        return FTSJobStatus(job_id, "ACTIVE", None, None, None, files, metadata=metadata)


class House(RuleBasedStateMachine):
    """A catalogue, an FTS, and everybody who works on them."""

    def __init__(self, one: Connection, other: Connection, observer: Connection) -> None:
        super().__init__()
        self.one, self.other, self.observer = one, other, observer
        self.fts = ModelFTS(installation_id(one))
        self.numbers = count(1)
        _empty(one)
        self.step = start_step(one, Actor(task_id="test", name="hypothesis"))

    # --- what happens in the catalogue: each as one transaction of somebody ---

    def arrive(self, conn: Connection, n: int) -> None:
        places = [(n + offset) % FILES for offset in range(3)]
        records = [
            record(place, destination_lfn=f"/store/user/alice/mc/out_{place % DESTINATIONS}.root")
            for place in places
        ]
        add_transfers(conn, read_requests(records)[0], self.step)

    def arrive_again(self, conn: Connection, n: int) -> None:
        """Later retries of jobs, one of which wrote straight to its destination."""
        places = [(n + offset) % FILES for offset in range(3)]
        known = dict(conn.execute("SELECT request_id, job_retry_count FROM transfer").fetchall())
        records = [
            record(
                place,
                destination_lfn=f"/store/user/alice/mc/out_{place % DESTINATIONS}.root",
                already_there=place == n,
            )
            for place in places
        ]
        good, _ = read_requests(records)
        good = [
            (
                position,
                request.model_copy(update={"job_retry_count": known.get(request.request_id, 0) + n % 3}),
            )
            for position, request in good
        ]
        add_transfers(conn, good, self.step)

    def cycle(self, conn: Connection, n: int) -> None:
        cycle = open_cycle(conn, "stageout_transfer", f"run {next(self.numbers)}", CycleParams(limit=n + 1))
        adopt_orphans(conn, cycle.cycle_id, older_than_s=-1)
        with conn.transaction():
            lock_grouping(conn)
            views = links_with_work(conn, cycle.params)
            entitled = [Entitled(*view.link, user, 100) for view in views for user in view.usernames]
            names = file_names(conn)
            files = [(key_of(file, names), file) for file in take(conn, cycle.params, entitled)]
            jobs = plan_jobs(files, lambda _: 4, lambda: UUID(int=next(self.numbers)))
            write_jobs(conn, cycle, jobs, step_run=self.step)

    def _answer(self, conn: Connection, n: int, refused: Callable[[UUID, list[int]], object] | None) -> None:
        """FTS takes a planned job, or refuses it; one that it has is a duplicate, and so accepted."""
        planned = conn.execute(
            "SELECT sid, transfer_ids FROM fts_job WHERE state = 'PLANNED' ORDER BY sid"
        ).fetchall()
        if not planned:
            return
        sid, transfer_ids = planned[n % len(planned)]
        if refused and self.fts.id_of(sid) not in self.fts.jobs:
            refused(sid, transfer_ids)
        else:
            record_accepted(conn, [(sid, self.fts.post(sid, transfer_ids))], self.step)

    def accept(self, conn: Connection, n: int) -> None:
        self._answer(conn, n, None)

    def serve(self, conn: Connection, n: int) -> None:
        """A cycle as it mostly goes."""
        self.cycle(conn, n)
        for _ in range(n):
            self.accept(conn, 0)

    def lose_reply(self, conn: Connection, n: int) -> None:
        self._answer(conn, n, self.fts.post)

    def split(self, conn: Connection, n: int) -> None:
        parts = UUID(int=next(self.numbers)), UUID(int=next(self.numbers))
        self._answer(conn, n, lambda sid, _: split(conn, sid, parts, "400", self.step))

    def release(self, conn: Connection, n: int) -> None:
        self._answer(conn, n, lambda sid, _: release(conn, [sid], "banned", wait_s=-1, step_run=self.step))

    def refuse(self, conn: Connection, n: int) -> None:
        def fail(sid: UUID, transfer_ids: list[int]) -> None:
            failure = own_failure(Category.REFUSED, "400")
            with conn.transaction():
                apply_moves(conn, [Move(file, sid, S.FAILED, failure) for file in transfer_ids], self.step)
                close_refused(conn, sid, "400")

        self._answer(conn, n, fail)

    def sense(self, conn: Connection, n: int) -> None:
        stage_reports(conn, self._reports(conn))

    def _reports(self, conn: Connection) -> list[Report]:
        rows = conn.execute(
            "SELECT sid, job_id, state::text FROM fts_job WHERE job_id IS NOT NULL ORDER BY sid"
        )
        reports = []
        for sid, job_id, state in rows.fetchall():
            if job_id in self.fts.jobs:  # of ended jobs too: late answers
                reports += [
                    Report(sid, file, None, "ACTIVE", seen, "SOURCE [112] no answer", None, None)
                    for file, seen in self.fts.jobs[job_id].items()
                    if seen != "ACTIVE"
                ]
            elif state == "SUBMITTED":
                reports.append(Report(sid, None, None, LOST, LOST, "gone", None, None))
        return reports

    def update(self, conn: Connection, n: int) -> None:
        update_catalogue(conn, now=FOR_EVER_AGO, step_run=self.step)

    def sense_and_update(self, conn: Connection, n: int) -> None:
        self.sense(conn, n)
        self.update(conn, n)

    def accept_again(self, conn: Connection, n: int) -> None:
        """A second submitter of a job hears late that FTS has it."""
        rows = conn.execute(
            "SELECT sid, job_id FROM fts_job WHERE job_id IS NOT NULL ORDER BY sid"
        ).fetchall()
        if rows:
            record_accepted(conn, [rows[n % len(rows)]], self.step)

    def late_word(self, conn: Connection, n: int) -> None:
        """Somebody still speaks for a job that the file has left."""
        rows = conn.execute(
            "SELECT DISTINCT e.transfer_id, e.fts_job FROM transfer_event e JOIN transfer t ON t.id = e.transfer_id"
            " WHERE e.fts_job IS DISTINCT FROM t.fts_job AND e.fts_job IS NOT NULL ORDER BY 1, 2"
        ).fetchall()
        if rows:
            moves = [Move(*rows[n % len(rows)], state) for state in (S.DONE, S.KILL, S.NEW)]
            for move in moves:
                apply_moves(conn, [move], self.step)

    def kill(self, conn: Connection, n: int) -> None:
        rows = conn.execute(
            "SELECT id, fts_job FROM transfer WHERE state IN ('NEW', 'RETRY', 'ACQUIRED', 'SUBMITTED') ORDER BY id"
        ).fetchall()
        if rows:
            apply_moves(conn, [Move(*rows[n % len(rows)], S.KILL)], self.step)

    def kill_some(self, conn: Connection, n: int) -> None:
        """As people do it: whatever state it is in."""
        ids = Selection(ids=tuple(range(n + 1, n + 4)))
        kill(conn, ids, None, comment="", step_run=self.step)

    def tell_fts(self, conn: Connection, n: int) -> None:
        cancel(conn, Clients({"fts": cast("Any", self.fts)}), now=datetime.now(UTC), step_run=self.step)

    def retry_some(self, conn: Connection, n: int) -> None:
        ids = Selection(ids=tuple(range(n + 1, n + 4)))
        retry_files(conn, ids, None, comment="", step_run=self.step, killed_too=bool(n % 2))

    def give_up_server(self, conn: Connection, n: int) -> None:
        """Who is sure that FTS is gone says so: here it is only right when it has forgotten everything."""
        if not self.fts.jobs:
            set_state(conn, "fts", "down", reason=None, by="test")
            give_up(conn, "fts", reason="gone", step_run=self.step, may_still_write=True)
            set_state(conn, "fts", "up", reason=None, by="test")

    def redrive(self, conn: Connection, n: int) -> None:
        redrive_failed(conn, CycleParams(created_from=FOR_EVER_AGO, created_to=FOR_EVER), self.step)

    def reconcile(self, conn: Connection, n: int) -> None:
        reconcile.repair(conn, Clients({"fts": cast("Any", self.fts)}), step_run=self.step)

    def archive(self, conn: Connection, n: int) -> None:
        move_finished(conn, keep_done_s=-1, keep_failed_s=-1 if n % 2 else 1e6)

    def advance(self, conn: Connection, n: int) -> None:
        """What mostly happens: files fail, and go again."""
        for job_id, file in self.fts.running()[: n + 1]:
            self.fts.end(job_id, file, "FINISHED" if n % 3 == 0 else "FAILED")
        self.sense_and_update(conn, n)
        self.serve(conn, n)

    def end_kills(self, conn: Connection, n: int) -> None:
        """Once FTS was told and asked, no file of an accepted job hangs."""
        self.tell_fts(conn, n)
        self.sense_and_update(conn, n)
        hanging = conn.execute(
            "SELECT t.id FROM transfer t JOIN fts_job j ON j.sid = t.fts_job"
            " WHERE t.state = 'KILL' AND j.state = 'SUBMITTED'"
        )
        assert hanging.fetchall() == []

    OPERATIONS = (
        arrive, arrive_again, cycle, accept, lose_reply, split, release, refuse, sense, update, sense_and_update,
        kill, kill_some, tell_fts, retry_some, give_up_server, accept_again, late_word, redrive, reconcile,
        archive,
    )  # fmt: skip
    # Never in one transaction that dies: what FTS is told was committed before.
    SEQUENCES = (serve, advance, advance, end_kills)

    # --- how it happens ---

    operations = st.tuples(st.sampled_from(OPERATIONS), st.integers(0, FILES - 1))
    deaths = st.sampled_from([False, False, False, True])

    @initialize(n=st.integers(0, FILES - 1))
    def some_files_are_under_way(self, n: int) -> None:
        for start in range(0, FILES, 3):
            self.arrive(self.one, start)
        self.serve(self.one, n)

    @rule(n=st.integers(0, FILES - 1))
    def work_goes_on(self, n: int) -> None:
        self.advance(self.one, n)

    @rule(what=operations, dies=deaths)
    def alone(self, what: tuple[Any, int], dies: bool) -> None:
        self._in_transaction(self.one, what, dies)

    @rule(what=st.tuples(st.sampled_from(SEQUENCES + OPERATIONS), st.integers(0, FILES - 1)))
    def unbroken(self, what: tuple[Any, int]) -> None:
        """As the steps do it: in as many transactions as they make themselves."""
        operation, n = what
        operation(self, self.one, n)

    @rule(first=operations, second=operations, dies=deaths)
    def beside(self, first: tuple[Any, int], second: tuple[Any, int], dies: bool) -> None:
        """The second one begins while the first has not committed, and goes on when it has to wait no more."""
        with ThreadPoolExecutor(1) as pool:
            with self.one.transaction(force_rollback=dies):
                first[0](self, self.one, first[1])
                following = pool.submit(self._in_transaction, self.other, second, False)
                self._until_it_waits(following)
            # Two writers of one destination, say: the second one dies, and is run again some day.
            with suppress(psycopg.errors.UniqueViolation):
                following.result(timeout=PATIENCE_S)

    @rule(n=st.integers(0, 30), state=st.sampled_from(["FINISHED", "FINISHED", "FAILED", "CANCELED"]))
    def a_file_ends_at_fts(self, n: int, state: str) -> None:
        if running := self.fts.running():
            self.fts.end(*running[n % len(running)], state)

    @rule(state=st.sampled_from(["FINISHED", "FAILED"]))
    def all_files_end_at_fts(self, state: str) -> None:
        for job_id, file in self.fts.running():
            self.fts.end(job_id, file, state)

    @rule(n=st.integers(0, 30))
    def fts_forgets_a_job(self, n: int) -> None:
        if jobs := list(self.fts.jobs):
            del self.fts.jobs[jobs[n % len(jobs)]]

    def _in_transaction(self, conn: Connection, what: tuple[Any, int], dies: bool) -> None:
        operation, n = what
        with conn.transaction(force_rollback=dies):
            operation(self, conn, n)

    def _until_it_waits(self, following: Future[None]) -> None:
        pid = self.other.info.backend_pid
        while not following.done():
            blockers = self.observer.execute("SELECT cardinality(pg_blocking_pids(%s))", (pid,)).fetchone()
            if blockers and blockers[0]:
                return
            wait([following], timeout=0.002)

    # --- what must hold ---

    @invariant()
    def audit_holds(self) -> None:
        assert {one.name: one.samples for one in audit(self.observer) if one.violations} == {}

    @invariant()
    def no_file_is_in_two_jobs_at_fts(self) -> None:
        files = [file for _, file in self.fts.running()]
        assert len(files) == len(set(files)), self.fts.jobs

    @invariant()
    def done_is_copied(self) -> None:
        rows = self.observer.execute(
            "SELECT id FROM transfer WHERE state = 'DONE' AND NOT already_there"
            " UNION SELECT id FROM transfer_history WHERE state = 'DONE' AND NOT already_there"
        )
        assert {file for (file,) in rows} <= self.fts.copied

    @rule(n=st.integers(0, FILES - 1))
    def the_same_request_comes_while_its_file_goes_to_history(self, n: int) -> None:
        """Found by chance once: in neither place for a moment, it was taken in again."""
        self.beside(first=(House.archive, 1), second=(House.arrive, n), dies=False)

    def teardown(self) -> None:
        """Whatever was played, everything left comes to its end when nothing dies any more."""
        for _ in range(5):
            self.reconcile(self.one, 0)
            # What waits for a cancelled copy to die has waited.
            self.one.execute("UPDATE transfer SET due_at = now() WHERE state = 'NEW'")
            self.cycle(self.one, 1000)
            while self.one.execute("SELECT 1 FROM fts_job WHERE state = 'PLANNED'").fetchone():
                self.accept(self.one, 0)
            for job_id, file in self.fts.running():
                self.fts.end(job_id, file, "FINISHED")
            self.sense_and_update(self.one, 0)
        self.audit_holds()
        left = self.one.execute(
            "SELECT id, state::text FROM transfer WHERE state NOT IN ('DONE', 'FAILED', 'KILLED')"
        )
        assert left.fetchall() == []
        assert (
            self.one.execute("SELECT sid FROM fts_job WHERE state IN ('PLANNED', 'SUBMITTED')").fetchall()
            == []
        )


def _empty(conn: Connection) -> None:
    row = conn.execute(
        "SELECT string_agg(format('%I', relname), ', ') FROM pg_class WHERE relkind IN ('r', 'p')"
        " AND NOT relispartition AND relnamespace = 'public'::regnamespace"
        " AND relname NOT IN ('alembic_version', 'site', 'storage', 'fts_server', 'fts_server_health',"
        " 'site_source', 'site_load', 'installation')"
    ).fetchone()
    assert row is not None
    conn.execute(f"TRUNCATE {row[0]} RESTART IDENTITY")


def test_any_interleaving_keeps_the_invariants(
    conn: Connection, catalogue_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A job is in doubt at once: whether FTS has it is the same question after a minute.
    monkeypatch.setattr(reconcile, "IN_DOUBT_S", -1.0)
    with connect(catalogue_url) as other, connect(catalogue_url) as observer:
        run_state_machine_as_test(lambda: House(conn, other, observer), settings=PLAY)  # type: ignore[no-untyped-call]
