"""A catalogue, a sandbox FTS that moves no bytes and a clock that stands still: cycles without waiting."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from psycopg import Connection

from asyncstageout.catalogue.cycles import CycleParams, open_cycle
from asyncstageout.clients.fts3 import FTS3Client
from asyncstageout.clients.http import Patience
from asyncstageout.core.planning import Shard
from asyncstageout.sandbox.fts.service import Options
from asyncstageout.sandbox.tls import client_certificate
from asyncstageout.steps.collect import collect
from asyncstageout.steps.group import group
from asyncstageout.steps.recording import Summary
from asyncstageout.steps.sense import Round, sense_once
from asyncstageout.steps.submit import submit
from asyncstageout.steps.summarise import summarise
from asyncstageout.steps.update_catalogue import update_catalogue
from catalogue.conftest import add, conn, step  # noqa: F401 - fixtures
from sandbox.harness import ALICE, Bench, bench, caller, certificates

IMPATIENT = Patience(tries=1, connect_s=5, read_s=5)


@dataclass
class House:
    """The steps, with their collaborators."""

    conn: Connection
    client: FTS3Client
    fts: Bench
    step: int

    def collect(self, run_id: str = "run", **params: Any) -> Summary:
        return collect(
            self.conn,
            dag_id="stageout_transfer",
            run_id=run_id,
            params=CycleParams(**params),
            today=datetime.now(UTC).date(),
            step_run=self.step,
        )

    def group(self, run_id: str = "run", **options: Any) -> tuple[Summary, list[Shard]]:
        return group(self.conn, self.cycle(run_id), fts_server="fts", step_run=self.step, **options)

    def cycle(self, run_id: str = "run") -> Any:
        return open_cycle(self.conn, "stageout_transfer", run_id, CycleParams())

    def submit(self, run_id: str = "run", shard: int = 0) -> Summary:
        cycle_id = self.cycle(run_id).cycle_id
        return submit(self.conn, self.client, cycle_id=cycle_id, shard=shard, step_run=self.step)

    def summarise(self, run_id: str = "run") -> Summary:
        return summarise(self.conn, self.cycle(run_id))

    def run_cycle(self, run_id: str = "run", **params: Any) -> Summary:
        self.collect(run_id, **params)
        _, shards = self.group(run_id)
        for shard in range(len(shards)):
            self.submit(run_id, shard)
        return self.summarise(run_id)

    def sense(self) -> Round:
        self.conn.execute("UPDATE fts_job SET next_poll_at = now()")
        return sense_once(self.conn, self.client, now=datetime.now(UTC))

    def update(self) -> Summary:
        return update_catalogue(self.conn, now=datetime.now(UTC), step_run=self.step)

    def finish_at_fts(self) -> None:
        """Let every job that FTS has come to its end."""
        self.fts.finish(*self.fts.fts.call(lambda: list(self.fts.fts.engine.jobs)))

    def make_due(self) -> None:
        self.conn.execute(
            "UPDATE transfer SET due_at = now() - interval '1 s' WHERE state IN ('NEW', 'RETRY')"
        )

    def set_faults(self, **faults: Any) -> None:
        answer = self.fts.ask("alice", "PUT", "/sandbox/faults", faults)
        assert answer.status_code < 300, answer.text


@pytest.fixture(scope="session")
def tls_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture
def house(conn: Connection, step: int, tls_folder: Path, tmp_path: Path) -> Iterator[House]:  # noqa: F811
    tls = certificates(tls_folder)
    with bench(tls, tls_folder, Options(state=tmp_path, with_bytes=False)) as fts:
        session = caller(tls, client_certificate(tls_folder, "alice", ALICE))
        with FTS3Client(fts.url, session, patience=IMPATIENT) as client:
            yield House(conn, client, fts, step)


def jobs_at_fts(house: House) -> list[Any]:
    return house.fts.fts.call(lambda: list(house.fts.fts.engine.jobs.values()))
