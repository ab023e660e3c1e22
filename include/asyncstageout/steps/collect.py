"""First step of a cycle: see what waits on which link, and why a link must wait longer."""

from __future__ import annotations

from datetime import UTC, date, datetime

from psycopg import Connection

from asyncstageout.catalogue.claims import (
    LinkView,
    links_with_work,
    record_links,
    redrive_failed,
    room_on,
    waiting_files,
    waiting_for,
)
from asyncstageout.catalogue.cycles import CycleParams, end_stage, open_cycle
from asyncstageout.catalogue.identity_holds import holds
from asyncstageout.catalogue.jobs import adopt_orphans
from asyncstageout.catalogue.link_health import breakers
from asyncstageout.catalogue.partitions import ensure_partitions
from asyncstageout.catalogue.policies import policy_rows
from asyncstageout.core.policies import LinkPolicy, policy_for
from asyncstageout.steps.crashpoints import reached
from asyncstageout.steps.recording import Summary, files

ORPHAN_AGE_S = 60.0
"""A planned job that FTS did not confirm for so long is taken over by the next cycle."""


def collect(
    conn: Connection, *, dag_id: str, run_id: str, params: CycleParams, today: date, step_run: int
) -> Summary:
    """Open the cycle of a DAG run, take over what a dead cycle left, and note each link's waiting work."""
    ensure_partitions(conn, today)
    with conn.transaction():
        cycle = open_cycle(conn, dag_id, run_id, params)
        if cycle.collected_at:
            return Summary(f"Collected before, at {cycle.collected_at:%H:%M:%S}; nothing changed")
        backfill = params.created_from is not None and not params.dry_run
        redriven = redrive_failed(conn, params, step_run) if backfill else 0
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
    return Summary(
        sentence,
        {"links": len(rows), "held_links": held_links, "held_files": held_files,
         "adopted_jobs": adopted, "redriven_files": redriven},
    )  # fmt: skip


def _look(conn: Connection, params: CycleParams) -> tuple[list[tuple[LinkView, int, str | None]], int]:
    """Return (link, room, why it is held or None) of each link with work, and how many files are held."""
    policies, broken, barred = policy_rows(conn), breakers(conn), holds(conn)
    now = datetime.now(UTC)
    rows = []
    held_files = 0
    for view in links_with_work(conn, params):
        policy, breaker = policy_for(policies, *view.link), broken.get(view.link)
        room = room_on(view, policy)
        held = _why_held(policy, room)
        if held is None and breaker:
            room, held = breaker.room(room, now), breaker.sentence(now)
        if held:
            held_files += waiting_files(conn, view.link)
        elif barred and (count := waiting_for(conn, view.link, [hold.identity for hold in barred])):
            held = "; ".join(hold.sentence() for hold in barred)
            held_files += count
        rows.append((view, room, held))
    return rows, held_files


def _why_held(policy: LinkPolicy, room: int) -> str | None:
    if policy.paused:
        return f"paused: {policy.paused}"
    return None if room else f"full: {policy.max_files_in_flight} files in flight"
