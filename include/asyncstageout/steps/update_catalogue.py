"""Applies what sensing learnt: files are DONE, go again later, or have failed for good."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta

from psycopg import Connection

from asyncstageout.catalogue.history import move_finished
from asyncstageout.catalogue.policies import policy_rows
from asyncstageout.catalogue.rollups import roll_up_open
from asyncstageout.catalogue.sensing import LOST, ReportedFile, take_reports
from asyncstageout.catalogue.transitions import Move, apply_moves
from asyncstageout.core.breaker import Step
from asyncstageout.core.existing import THERE_ALREADY, Content, Existing, identify
from asyncstageout.core.failures import Category, own_failure
from asyncstageout.core.outcomes import Change, after_failure, change
from asyncstageout.core.planning import Link
from asyncstageout.core.policies import LinkPolicy, Policies
from asyncstageout.core.retries import retry_delay_s
from asyncstageout.core.states import TransferState
from asyncstageout.steps.crashpoints import reached
from asyncstageout.steps.judging import Tally, judge_links
from asyncstageout.steps.recording import Summary, files

FILES_PER_STATEMENT = 10_000


def update_catalogue(conn: Connection, *, now: datetime, step_run: int) -> Summary:
    """Apply all staged reports, in transactions of bounded size, and let old finished rows go to history.

    Links whose attempts fail are given a breaker, and lose it, by what was applied (ADR 0007). Every few
    minutes what happened in this hour is counted, for those who look at it (ADR 0018).
    """
    policies = Policies(policy_rows(conn))
    moved: Counter[str] = Counter()
    tally = Tally()
    while True:
        with conn.transaction():
            reported = take_reports(conn, FILES_PER_STATEMENT)
            moves = [(_link(file), move) for file in reported if (move := _move(file, policies, now))]
            moved.update(apply_moves(conn, [move for _, move in moves], step_run))
            tally.add(conn, moves)
            reached("update.before_commit")
        reached("update.after_commit")
        if not reported:
            break
    turned = judge_links(conn, tally, policies.of)
    archived = move_finished(conn)
    roll_up_open(conn, now, step_run=step_run)
    return _summary(moved, turned, archived)


def _link(file: ReportedFile) -> Link:
    return Link(file.source, file.destination)


def _move(file: ReportedFile, policies: Policies, now: datetime) -> Move | None:
    policy = policies.of(file.source, file.destination, file.username, file.activity)
    wanted = _change(file, policy.max_attempts)
    if wanted is None:
        return None
    note = None
    if wanted.failure is not None and wanted.failure.category is Category.DESTINATION_EXISTS:
        wanted, note = _settle_existing(file, wanted, policy)
    due_at = None
    if wanted.to_state is TransferState.RETRY and wanted.failure is not None:
        delay_s = retry_delay_s(
            wanted.failure.category, file.attempt, _spread(file.transfer_id), policy.retry_scale
        )
        due_at = now + timedelta(seconds=delay_s)
    return Move(
        file.transfer_id, file.sid, wanted.to_state, wanted.failure, due_at,
        file.report.fts_file_id, file.report.finished_at, note,
    )  # fmt: skip


def _settle_existing(file: ReportedFile, wanted: Change, policy: LinkPolicy) -> tuple[Change, str | None]:
    """Return what becomes of a file for which another one was in the way, and a note for its history."""
    report = file.report
    existing = identify(
        Content(file.size_bytes, file.adler32),
        Content(report.dst_size_bytes, report.dst_adler32),
        previous=file.previous,
        overwrote=file.overwrote,
        overwrite_wrong=policy.overwrite_wrong,
    )
    if existing is Existing.OURS:
        return Change(TransferState.DONE), THERE_ALREADY
    if existing is Existing.LEFT_OVER:
        return Change(TransferState.RETRY, wanted.failure), None
    return wanted, None


def _change(file: ReportedFile, max_attempts: int) -> Change | None:
    report = file.report
    if report.file_state == LOST:
        lost = own_failure(Category.LOST, report.reason)
        return after_failure(lost, attempt=file.attempt, max_attempts=max_attempts)
    return change(
        report.job_state,
        report.file_state,
        report.reason,
        recoverable=report.recoverable,
        attempt=file.attempt,
        max_attempts=max_attempts,
    )


def _spread(transfer_id: int) -> float:
    """Return a number in [0, 1) that is even over neighbouring files (multiples of the golden ratio)."""
    return transfer_id * 0.6180339887498949 % 1.0


def _summary(moved: Counter[str], turned: Counter[Step], archived: int) -> Summary:
    sentence = (
        f"{files(moved['DONE'])} done, {moved['RETRY']:,} go again later, {moved['FAILED']:,} failed for good"
    )
    if moved["KILLED"]:
        sentence += f", {moved['KILLED']:,} killed"
    opened, closed = turned[Step.OPEN] + turned[Step.REOPEN], turned[Step.CLOSE]
    if opened:
        sentence += f"; breakers opened on {opened} links"
    if closed:
        sentence += f"; breakers closed on {closed} links"
    if archived:
        sentence += f"; {files(archived)} moved to history"
    return Summary(
        sentence,
        {state.lower(): count for state, count in moved.items()}
        | {"archived": archived, "breakers_opened": opened, "breakers_closed": closed},
    )
