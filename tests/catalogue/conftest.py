"""A catalogue with a few sites, and makers of requests, steps and planned jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg import Connection

from asyncstageout.catalogue.claims import links_with_work, lock_grouping, take, write_jobs
from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.cycles import Cycle, CycleParams, open_cycle
from asyncstageout.catalogue.intake import Answer, add_transfers
from asyncstageout.catalogue.jobs import record_accepted
from asyncstageout.catalogue.sites import put_sites
from asyncstageout.catalogue.step_runs import Actor, start_step
from asyncstageout.core.planning import PlannedJob, plan_jobs
from asyncstageout.core.policies import LinkPolicy
from asyncstageout.core.requests import read_requests

SITES = {
    name: f"davs://{name.lower().replace('_', '-')}.sandbox.test:8443"
    for name in ("T2_IT_Bari", "T2_CH_CERN", "T2_US_MIT", "T1_DE_KIT", "T2_ES_IFCA")
}


@pytest.fixture
def conn(catalogue_url: str) -> Iterator[Connection]:
    with connect(catalogue_url) as connection:
        put_sites(connection, SITES, "test")
        yield connection


@pytest.fixture
def step(conn: Connection) -> int:
    return start_step(conn, Actor(task_id="test", name="tester"))


def record(number: int = 0, **changes: Any) -> dict[str, Any]:
    """One valid request, told apart by its number and user."""
    username = changes.get("username", "alice")
    return {
        "task": f"261122_{username}_task",
        "username": username,
        "source": "T2_IT_Bari",
        "destination": "T2_CH_CERN",
        "source_lfn": f"/store/temp/user/{username}.abc/mc/out_{number}.root",
        "destination_lfn": f"/store/user/{username}/mc/out_{number}.root",
        "size_bytes": 1000 + number,
        "adler32": f"{number + 1:x}",
    } | changes


Add = Callable[..., list[Answer]]
Plan = Callable[..., list[PlannedJob]]


@pytest.fixture
def add(conn: Connection, step: int) -> Add:
    def add_records(*records: dict[str, Any]) -> list[Answer]:
        good, bad = read_requests(records)
        assert not bad, bad
        return add_transfers(conn, good, step)

    return add_records


@pytest.fixture
def plan(conn: Connection, step: int) -> Plan:
    """Take what waits into planned FTS jobs, as a cycle does."""

    def plan_cycle(room: int = 1000, files_per_job: int = 200, **params: Any) -> list[PlannedJob]:
        cycle = new_cycle(conn, **params)
        with conn.transaction():
            lock_grouping(conn)
            views = links_with_work(conn, cycle.params)
            files = take(conn, cycle.params, {view.link: room for view in views})
            jobs = plan_jobs(files, lambda _: LinkPolicy(files_per_job=files_per_job), uuid4)
            write_jobs(conn, cycle, jobs, fts_server="fts", params_of=lambda _: {}, step_run=step)
        return jobs

    return plan_cycle


@pytest.fixture
def submitted(conn: Connection, plan: Plan, step: int) -> Plan:
    """Plan what waits and have FTS accept it."""

    def submit_all(**options: Any) -> list[PlannedJob]:
        jobs = plan(**options)
        record_accepted(conn, [(job.sid, uuid4()) for job in jobs], step)
        return jobs

    return submit_all


def new_cycle(conn: Connection, **params: Any) -> Cycle:
    return open_cycle(conn, "stageout_transfer", f"manual__{uuid4()}", CycleParams(**params))


def states(conn: Connection) -> dict[str, int]:
    return dict(conn.execute("SELECT state::text, count(*) FROM transfer GROUP BY 1").fetchall())


def file_ids(conn: Connection) -> list[int]:
    return [row[0] for row in conn.execute("SELECT id FROM transfer ORDER BY id")]


def assert_audited(conn: Connection) -> None:
    """Every file's events form one unbroken line that ends in its state."""
    broken = conn.execute(
        """
        WITH line AS (
            SELECT transfer_id, from_state, to_state,
                lag(to_state) OVER w AS before, lead(to_state) OVER w IS NULL AS last
            FROM transfer_event WINDOW w AS (PARTITION BY transfer_id ORDER BY at)
        )
        SELECT t.id, t.state, l.* FROM transfer t LEFT JOIN line l ON l.transfer_id = t.id
        WHERE l.transfer_id IS NULL OR l.before IS DISTINCT FROM l.from_state OR (l.last AND l.to_state <> t.state)
        """
    ).fetchall()
    assert broken == []


def open_files(conn: Connection) -> dict[UUID, int]:
    return dict(conn.execute("SELECT sid, open_files FROM fts_job").fetchall())
