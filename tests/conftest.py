"""Real Postgres for every test that wants one: one server a session, one fresh database a test."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest

from fixtures.folders import temporary_folder

os.environ.setdefault("TMPDIR", temporary_folder())
# Before anything imports Airflow: its home must be of this run alone, never somebody's own.
os.environ["AIRFLOW_HOME"] = tempfile.mkdtemp(prefix="aso-test-airflow-")
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
os.environ["AIRFLOW__USAGE_DATA_COLLECTION__ENABLED"] = "False"

from asyncstageout.sandbox.layout import free_port
from asyncstageout.sandbox.postgres import EmbeddedPostgres, create_database, drop_database

pytest_plugins = ["fixtures.catalogue", "fixtures.cycles", "fixtures.publication", "fixtures.cleaning"]

_numbers = count(1)


LONGEST = ("end_to_end/test_demo.py", "ui/test_browser.py", "chaos/test_faults.py", "ui/test_browser_jobs.py")
"""Begun first, so that no process is left alone with one of them in the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.path.as_posix().endswith(LONGEST))


def pytest_collection_finish() -> None:
    # Thousands of tests, and Airflow, are here to stay: no collection has to look through them again.
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["AIRFLOW_HOME"], ignore_errors=True)


@dataclass(frozen=True)
class PostgresServer:
    """A server on which tests may create databases: ours, or the one ``ASO_TEST_POSTGRES_URL`` names."""

    admin_url: str

    def fresh_database(self, template: str = "template1") -> tuple[str, str]:
        """Return the name and the URL of a new database."""
        name = f"aso_test_{os.getpid()}_{next(_numbers)}"
        return name, create_database(self.admin_url, name, template=template)

    def drop(self, name: str) -> None:
        drop_database(self.admin_url, name)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    if external := os.environ.get("ASO_TEST_POSTGRES_URL"):
        yield PostgresServer(external)
        return
    # Not below pytest's own folder: it is closed to the user that Postgres runs as under root.
    folder = Path(tempfile.mkdtemp(prefix="aso-test-"))
    folder.chmod(0o711)
    server = EmbeddedPostgres(folder / "postgres", free_port(), secrets_dir=folder, durable=False)
    try:
        server.start(log=folder / "postgres.log")
        yield PostgresServer(server.admin_url)
    finally:
        server.stop()
        shutil.rmtree(folder)


@pytest.fixture
def empty_database_url(postgres_server: PostgresServer) -> Iterator[str]:
    """The URL of a database with nothing in it, of this test alone."""
    name, url = postgres_server.fresh_database()
    yield url
    postgres_server.drop(name)


@pytest.fixture(scope="session")
def _catalogue_template(postgres_server: PostgresServer) -> Iterator[str]:
    from asyncstageout.catalogue.migrate import upgrade  # noqa: PLC0415 -- only for tests that want the catalogue

    name, url = postgres_server.fresh_database()
    upgrade(url)
    yield name
    postgres_server.drop(name)


@pytest.fixture
def catalogue_url(postgres_server: PostgresServer, _catalogue_template: str) -> Iterator[str]:
    """The URL of an empty catalogue of this test alone: a copy of a template that has the migrations."""
    name, url = postgres_server.fresh_database(template=_catalogue_template)
    yield url
    postgres_server.drop(name)
