"""First step of a cycle: see what waits on which link, and why a link must wait longer."""

from __future__ import annotations

from datetime import date

from psycopg import Connection

from asyncstageout.catalogue.claims import (
    LinkView,
    cleaned_failed,
    hasten_retries,
    record_links,
    redrive_failed,
    waiting_files,
    waiting_for,
)
from asyncstageout.catalogue.cycles import CycleParams, end_stage, open_backfill, open_cycle
from asyncstageout.catalogue.jobs import adopt_orphans
from asyncstageout.catalogue.partitions import ensure_partitions
from asyncstageout.steps.board import Board, look
from asyncstageout.steps.crashpoints import reached
from asyncstageout.steps.recording import Summary, files

ORPHAN_AGE_S = 60.0
"""A planned job that FTS did not confirm for so long is taken over by the next cycle."""


def collect(
    conn: Connection,
    *,
    dag_id: str,
    run_id: str,
    params: CycleParams,
    today: date,
    step_run: int,
    is_backfill: bool = False,
) -> Summary:
    """Open the cycle of a DAG run, take over what a dead cycle left, and note each link's waiting work.

    With a window over the arrival of files, those in it that failed go again, and those that wait for their
    next attempt go now.

    Args:
        is_backfill: a run that has run before is run again, for its window.
    """
    ensure_partitions(conn, today)
    with conn.transaction():
        cycle = (open_backfill if is_backfill else open_cycle)(conn, dag_id, run_id, params)
        if cycle.collected_at:
            return Summary(f"Collected before, at {cycle.collected_at:%H:%M:%S}; nothing changed")
        has_window = params.created_from is not None and not params.dry_run
        redriven = redrive_failed(conn, params, step_run) if has_window else 0
        cleaned = cleaned_failed(conn, params) if has_window else 0
        hastened = hasten_retries(conn, params) if has_window else 0
        adopted = 0 if params.dry_run else adopt_orphans(conn, cycle.cycle_id, ORPHAN_AGE_S)
        rows, held_files = _look(conn, params)
        record_links(conn, cycle.cycle_id, rows)
        end_stage(conn, cycle.cycle_id, "collected")
        reached("collect.before_commit")
    reached("collect.after_commit")
    held_links = sum(held is not None for _, _, held in rows)
    sentence = f"{len(rows)} links have waiting files"
    if held_links:
        sentence += f"; {held_links} of them held back with {files(held_files)}"
    if adopted:
        sentence += f"; took over {adopted} FTS jobs that nobody confirmed"
    if redriven:
        sentence += f"; {files(redriven)} that failed go again"
    if cleaned:
        sentence += f"; {files(cleaned)} that failed cannot: their temporary copies are deleted"
    if hastened:
        sentence += f"; {files(hastened)} that wait for their next attempt go now"
    return Summary(
        sentence,
        {"links": len(rows), "held_links": held_links, "held_files": held_files,
         "adopted_jobs": adopted, "redriven_files": redriven, "cleaned_files": cleaned,
         "hastened_files": hastened},
    )  # fmt: skip


def _look(conn: Connection, params: CycleParams) -> tuple[list[tuple[LinkView, int, str | None]], int]:
    """Return (link, room, why it is held or None) of each link with work, and how many files are held."""
    board = look(conn, params)
    rows = []
    held_files = 0
    for view in board.views:
        room = max(one.room for one in board.entitled(view))
        held = board.why_held(view)
        if held:
            room = 0
            held_files += waiting_files(conn, view.link)
        else:
            held, count = _partly_held(conn, board, view)
            held_files += count
        rows.append((view, room, held))
    return rows, held_files


def _partly_held(conn: Connection, board: Board, view: LinkView) -> tuple[str | None, int]:
    """Return why some files of a link that is open wait, and how many they are."""
    users = board.users_held(view)
    identities = {one.identity for one in board.barred(view) if one.identity}
    count = waiting_for(conn, view.link, usernames=users, identities=identities) if users or identities else 0
    if not count:
        return None, 0
    reasons = [f"{username}: {reason}" for username, reason in users.items()]
    reasons += [hold.sentence() for hold in board.holds if hold.identity in identities]
    return "; ".join(reasons), count
