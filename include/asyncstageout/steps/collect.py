"""First step of a cycle: see what waits on which link, and why a link must wait longer."""

from __future__ import annotations

from datetime import date

from psycopg import Connection

from asyncstageout.catalogue.claims import (
    links_with_work,
    record_links,
    redrive_failed,
    room_on,
    waiting_files,
)
from asyncstageout.catalogue.cycles import CycleParams, end_stage, open_cycle
from asyncstageout.catalogue.jobs import adopt_orphans
from asyncstageout.catalogue.partitions import ensure_partitions
from asyncstageout.catalogue.sites import policy_rows
from asyncstageout.core.policies import LinkPolicy, policy_for
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
        policies = policy_rows(conn)
        rows = []
        held_files = 0
        for view in links_with_work(conn, params):
            policy = policy_for(policies, *view.link)
            room = room_on(view, policy)
            held = _why_held(policy, room)
            held_files += waiting_files(conn, view.link) if held else 0
            rows.append((view, room, held))
        record_links(conn, cycle.cycle_id, rows)
        end_stage(conn, cycle.cycle_id, "collected")
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


def _why_held(policy: LinkPolicy, room: int) -> str | None:
    if policy.paused:
        return f"paused: {policy.paused}"
    return None if room else f"full: {policy.max_files_in_flight} files in flight"
