"""A backup is what was restored from it: the commands of docs/how-to/backup.md, with files under way."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.step_runs import Actor, start_step
from asyncstageout.sandbox.postgres import binaries, create_database, drop_database
from asyncstageout.steps.reconcile import NeedsAPerson, repair, verdict
from conftest import PostgresServer
from fixtures.catalogue import Add, assert_audited, record, states
from fixtures.cycles import House

PROJECT = Path(__file__).parents[1]
DOCUMENT = (PROJECT / "docs" / "how-to" / "backup.md").read_text()
DUMP = "pg_dump --format=custom --no-owner --file"
RESTORE = "pg_restore --exit-on-error --single-transaction --no-owner --dbname"


@dataclass
class Backup:
    """A dump of a test's catalogue, and what is done with it."""

    server: PostgresServer
    url: str
    file: Path
    environment: dict[str, str]
    """With the client programs of the server's own version, and `aso`."""

    def dump(self) -> None:
        self._run(DUMP, str(self.file), self.url)

    def wipe_and_restore(self) -> None:
        name = self.url.rpartition("/")[2]
        drop_database(self.server.admin_url, name)
        create_database(self.server.admin_url, name)
        self._run(RESTORE, self.url, str(self.file))

    def drill(self, url: str) -> subprocess.CompletedProcess[str]:
        command = [str(PROJECT / "deploy" / "restore-drill"), str(self.file), url]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)

    def _run(self, command: str, *arguments: str) -> None:
        assert command in DOCUMENT, "the guide says something else"
        subprocess.run([*command.split(), *arguments], env=self.environment, check=True)


@pytest.fixture
def backup(postgres_server: PostgresServer, catalogue_url: str, tmp_path: Path) -> Backup:
    folders = [str(binaries()), str(Path(sys.executable).parent), os.environ["PATH"]]
    environment = os.environ | {"PATH": os.pathsep.join(folders)}
    version = ["pg_dump", "--version"]
    said = subprocess.run(version, env=environment, capture_output=True, text=True, check=True).stdout
    with psycopg.connect(postgres_server.admin_url) as conn:
        server = conn.info.server_version // 10_000
    if int(said.split()[2].split(".")[0]) < server:
        pytest.skip(f"no pg_dump for Postgres {server} here")
    return Backup(postgres_server, catalogue_url, tmp_path / "stageout.dump", environment)


@pytest.fixture
def scratch(postgres_server: PostgresServer) -> Iterator[str]:
    name, url = postgres_server.fresh_database()
    yield url
    postgres_server.drop(name)


def look(house: House) -> None:
    """Let FTS come to an end with what it has, and see it."""
    house.finish_at_fts()
    house.sense()
    house.update()


def test_a_catalogue_that_was_lost_is_restored_and_every_file_still_ends(
    house: House, add: Add, backup: Backup
) -> None:
    """Of three files one is DONE, one is at FTS and one waits in the backup; then more happens, and all is lost."""
    add(record(1))
    house.run_cycle("first")
    look(house)
    add(record(2))
    house.run_cycle("second")
    add(record(3))
    in_the_backup = {"DONE": 1, "SUBMITTED": 1, "NEW": 1}
    assert states(house.conn) == in_the_backup
    backup.dump()
    look(house)
    house.run_cycle("third")
    assert states(house.conn) == {"DONE": 2, "SUBMITTED": 1}

    house.conn.close()
    backup.wipe_and_restore()
    with connect(backup.url) as house.conn:
        house.step = start_step(house.conn, Actor(task_id="test", name="tester"))
        assert states(house.conn) == in_the_backup
        assert_audited(house.conn)

        # With stageout_transfer paused, reconcile names the job that the catalogue does not know.
        repair(house.conn, house.clients, step_run=house.step)
        with pytest.raises(NeedsAPerson) as told:
            verdict(house.conn, house.clients, step_run=house.step)
        assert told.value.findings.counts["unknown_jobs"] == 1

        # It comes to its end, what FTS did meanwhile is seen, and transfers go on.
        look(house)
        assert states(house.conn) == {"DONE": 2, "NEW": 1}
        verdict(house.conn, house.clients, step_run=house.step)
        house.run_cycle("fourth")
        look(house)
        assert states(house.conn) == {"DONE": 3}
        assert_audited(house.conn)


def test_the_drill_restores_into_an_empty_database_and_audits_it(
    house: House, add: Add, backup: Backup, scratch: str
) -> None:
    add(record(1), record(2))
    house.run_cycle()
    backup.dump()
    done = backup.drill(scratch)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUBMITTED |     2" in done.stdout
    with connect(scratch) as conn:
        assert states(conn) == {"SUBMITTED": 2}
    again = backup.drill(scratch)
    assert again.returncode == 2
    assert "not empty" in again.stderr
