"""A catalogue with a few sites, and makers of requests and steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from psycopg import Connection

from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.intake import Answer, add_transfers
from asyncstageout.catalogue.sites import put_sites
from asyncstageout.catalogue.step_runs import Actor, start_step
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
    """One valid request, told apart by its number."""
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


@pytest.fixture
def add(conn: Connection, step: int) -> Add:
    def add_records(*records: dict[str, Any]) -> list[Answer]:
        good, bad = read_requests(records)
        assert not bad, bad
        return add_transfers(conn, good, step)

    return add_records
