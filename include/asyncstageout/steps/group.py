"""Second step of a cycle: waiting files become planned FTS jobs, and jobs are shared out over tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple
from uuid import UUID, uuid4

import psycopg
from psycopg import Connection

from asyncstageout.catalogue.claims import lock_grouping, take, write_jobs
from asyncstageout.catalogue.cycles import Cycle, CycleParams, end_stage
from asyncstageout.catalogue.jobs import assign_shards, planned_loads
from asyncstageout.catalogue.link_health import start_probes
from asyncstageout.catalogue.transitions import Move, apply_moves
from asyncstageout.core.failures import Category, own_failure
from asyncstageout.core.planning import JobKey, PendingFile, PlannedJob, Shard, pack_shards, plan_jobs
from asyncstageout.core.routing import Way, job_key
from asyncstageout.core.states import TransferState
from asyncstageout.core.storages.model import Unresolvable
from asyncstageout.steps.board import Board, look
from asyncstageout.steps.crashpoints import reached
from asyncstageout.steps.recording import Summary, files, size

MAX_SHARDS = 4
JOBS_PER_SHARD = 50
"""Fewer jobs than this are submitted faster by one task than a second task takes to start."""


FIRST_ROOM = 60
"""Files of a link at first, where many links wait."""
ROOM_GROWS = 8


class Plan(NamedTuple):
    """What became of the files that were taken."""

    jobs: list[PlannedJob]
    nameless: list[tuple[PendingFile, Unresolvable]]


def group(
    conn: Connection,
    cycle: Cycle,
    *,
    step_run: int,
    new_sid: Callable[[], UUID] = uuid4,
    max_shards: int = MAX_SHARDS,
) -> tuple[Summary, list[Shard]]:
    """Plan the cycle's FTS jobs, once, and return the shards of all its jobs that FTS must still be told.

    The exact file list of each job is written before anybody tells FTS. A file without a name at one of its
    sites fails here, and no other does. On a dry run nothing is written.
    """
    plan = Plan([], [])
    with conn.transaction():
        lock_grouping(conn)
        reached("group.before_intent")
        if cycle.grouped_at is None:
            plan = _plan(conn, cycle, new_sid)
            _write(conn, cycle, plan, step_run)
        if cycle.params.dry_run:
            raise psycopg.Rollback
        end_stage(conn, cycle.cycle_id, "grouped")
        shards = pack_shards(planned_loads(conn, cycle.cycle_id), max_shards, JOBS_PER_SHARD)
        assign_shards(conn, shards)
        reached("group.after_intent")
    reached("group.after_commit")
    if cycle.params.dry_run:
        return _summary("Would plan", plan), []
    return _summary("Planned", plan), shards


def _plan(conn: Connection, cycle: Cycle, new_sid: Callable[[], UUID]) -> Plan:
    board = look(conn, cycle.params)
    taken = _take(conn, cycle.params, board)
    ready: list[tuple[JobKey, PendingFile]] = []
    nameless: list[tuple[PendingFile, Unresolvable]] = []
    files_per_job: dict[JobKey, int] = {}
    for file in taken:
        way = board.routing.way(file.link, file.username, file.activity, file.identity)
        if not isinstance(way, Way):
            continue
        try:
            named = board.routing.name(file, way)
        except Unresolvable as error:
            nameless.append((file, error))
            continue
        if board.start(way, file.size_bytes):
            key = job_key(file, way, named)
            files_per_job[key] = way.policy.files_per_job
            ready.append((key, file))
    jobs = plan_jobs(ready, files_per_job.__getitem__, new_sid)
    _begin_probes(conn, board, jobs)
    return Plan(jobs, nameless)


def _take(conn: Connection, params: CycleParams, board: Board) -> list[PendingFile]:
    """Take the cycle's files, giving each link more room until the cycle is full.

    What is read follows the sum of the rooms: with each link's whole room at once, a long queue on many links
    would be read to its end for a cycle that takes a small part of it.
    """
    entitled = [one for view in board.views for one in board.entitled(view)]
    barred = [one for view in board.views for one in board.barred(view)]
    room = max(FIRST_ROOM, 2 * params.limit // max(len(board.views), 1))
    while True:
        narrowed = [one._replace(room=min(one.room, room)) for one in entitled]
        taken = take(conn, params, narrowed, barred=barred)
        at_their_room = {
            link for link, count in Counter(file.link for file in taken).items() if count >= room
        }
        if len(taken) >= params.limit or not at_their_room:
            return taken
        room *= ROOM_GROWS


def _begin_probes(conn: Connection, board: Board, jobs: list[PlannedJob]) -> None:
    start_probes(conn, [link for link in {job.link for job in jobs} if link in board.breakers])


def _write(conn: Connection, cycle: Cycle, plan: Plan, step_run: int) -> None:
    write_jobs(conn, cycle, plan.jobs, step_run=step_run)
    moves = [
        Move(
            file.transfer_id,
            file.fts_job,
            TransferState.FAILED,
            own_failure(Category.NAME, str(error)),
        )
        for file, error in plan.nameless
    ]
    apply_moves(conn, moves, step_run)


def _summary(did: str, plan: Plan) -> Summary:
    file_count = sum(len(job.transfer_ids) for job in plan.jobs)
    size_bytes = sum(job.size_bytes for job in plan.jobs)
    links = len({job.link for job in plan.jobs})
    sentence = f"{did} {len(plan.jobs)} FTS jobs, {files(file_count)}, {size(size_bytes)} on {links} links"
    if plan.nameless:
        sentence += f"; {files(len(plan.nameless))} failed: {plan.nameless[0][1]}"
    return Summary(
        sentence,
        {"jobs": len(plan.jobs), "files": file_count, "size_bytes": size_bytes, "links": links,
         "nameless_files": len(plan.nameless)},
    )  # fmt: skip
