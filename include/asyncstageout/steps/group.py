"""Second step of a cycle: waiting files become planned FTS jobs, and jobs are shared out over tasks."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import psycopg
from psycopg import Connection

from asyncstageout.catalogue.claims import links_with_work, lock_grouping, room_on, take, write_jobs
from asyncstageout.catalogue.cycles import Cycle, end_stage
from asyncstageout.catalogue.identity_holds import holds
from asyncstageout.catalogue.jobs import assign_shards, planned_loads
from asyncstageout.catalogue.link_health import breakers, start_probes
from asyncstageout.catalogue.policies import policy_rows
from asyncstageout.core.planning import JobKey, Link, PlannedJob, Shard, pack_shards, plan_jobs
from asyncstageout.core.policies import LinkPolicy, policy_for
from asyncstageout.steps.crashpoints import reached
from asyncstageout.steps.recording import Summary, files, size

MAX_SHARDS = 4
JOBS_PER_SHARD = 50
"""Fewer jobs than this are submitted faster by one task than a second task takes to start."""


def group(
    conn: Connection,
    cycle: Cycle,
    *,
    fts_server: str,
    step_run: int,
    new_sid: Callable[[], UUID] = uuid4,
    max_shards: int = MAX_SHARDS,
) -> tuple[Summary, list[Shard]]:
    """Plan the cycle's FTS jobs, once, and return the shards of all its jobs that FTS must still be told.

    The exact file list of each job is written before anybody tells FTS. On a dry run nothing is written.
    """
    planned: list[PlannedJob] = []
    with conn.transaction():
        lock_grouping(conn)
        reached("group.before_intent")
        if cycle.grouped_at is None:
            planned = _plan(conn, cycle, fts_server=fts_server, step_run=step_run, new_sid=new_sid)
        if cycle.params.dry_run:
            raise psycopg.Rollback
        end_stage(conn, cycle.cycle_id, "grouped")
        shards = pack_shards(planned_loads(conn, cycle.cycle_id), max_shards, JOBS_PER_SHARD)
        assign_shards(conn, shards)
        reached("group.after_intent")
    reached("group.after_commit")
    if cycle.params.dry_run:
        return _summary("Would plan", planned), []
    return _summary("Planned", planned), shards


def _plan(
    conn: Connection, cycle: Cycle, *, fts_server: str, step_run: int, new_sid: Callable[[], UUID]
) -> list[PlannedJob]:
    rows = policy_rows(conn)
    policies: dict[Link, LinkPolicy] = {}
    rooms: dict[Link, int] = {}
    broken = breakers(conn)
    now = datetime.now(UTC)
    for view in links_with_work(conn, cycle.params):
        policies[view.link] = policy_for(rows, *view.link)
        rooms[view.link] = room_on(view, policies[view.link])
        if breaker := broken.get(view.link):
            rooms[view.link] = breaker.room(rooms[view.link], now)
    held = {hold.identity for hold in holds(conn, fts_server)}
    jobs = plan_jobs(take(conn, cycle.params, rooms, held=held), policies.__getitem__, new_sid)
    start_probes(conn, [link for link in {job.link for job in jobs} if link in broken])
    write_jobs(
        conn,
        cycle,
        jobs,
        fts_server=fts_server,
        params_of=lambda key: _fts_params(policies[key.link], key),
        step_run=step_run,
    )
    return jobs


def _fts_params(policy: LinkPolicy, key: JobKey) -> dict[str, Any]:
    """Return the policy's part of ``core.fts.JobParams``."""
    overwrite = policy.overwrite or key.overwrite
    return {
        "verify_checksum": policy.verify_checksum,
        "overwrite": overwrite,
        "retry": policy.fts_retry,
        "max_time_in_queue": policy.max_time_in_queue_h,
        "dst_file_report": not overwrite,
    }


def _summary(did: str, jobs: list[PlannedJob]) -> Summary:
    file_count = sum(len(job.transfer_ids) for job in jobs)
    size_bytes = sum(job.size_bytes for job in jobs)
    links = len({job.link for job in jobs})
    return Summary(
        f"{did} {len(jobs)} FTS jobs, {files(file_count)}, {size(size_bytes)} on {links} links",
        {"jobs": len(jobs), "files": file_count, "size_bytes": size_bytes, "links": links},
    )
