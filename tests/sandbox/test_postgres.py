"""The embedded Postgres: made once, closed to strangers, survives a crash, cheap databases for tests."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import psycopg
import pytest

from asyncstageout.sandbox import postgres
from asyncstageout.sandbox.layout import free_port
from asyncstageout.sandbox.postgres import (
    EmbeddedPostgres,
    PostgresUnavailable,
    create_database,
    with_database,
)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="aso-test-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[EmbeddedPostgres]:
    embedded = EmbeddedPostgres(folder / "postgres", free_port(), secrets_dir=folder, durable=False)
    embedded.start(log=folder / "postgres.log")
    embedded.create_owned_databases(["airflow", "stageout"])
    yield embedded
    embedded.stop()


def ask(url: str, question: str) -> object:
    with closing(psycopg.connect(url, autocommit=True)) as connection:
        row = connection.execute(question).fetchone()
        return row[0] if row else None


def test_two_databases_of_two_roles(server: EmbeddedPostgres) -> None:
    for name in ("airflow", "stageout"):
        assert ask(server.url(name), "SELECT current_user") == name
        assert (
            ask(server.url(name), "SELECT pg_encoding_to_char(encoding) FROM pg_database LIMIT 1") == "UTF8"
        )
        assert ask(server.url(name), "SHOW timezone") == "UTC"


def test_making_the_databases_again_changes_nothing(server: EmbeddedPostgres) -> None:
    server.create_owned_databases(["airflow", "stageout"])
    assert (
        ask(server.admin_url, "SELECT count(*) FROM pg_roles WHERE rolname IN ('airflow', 'stageout')") == 2
    )


def test_a_role_does_not_reach_the_other_database(server: EmbeddedPostgres) -> None:
    with pytest.raises(psycopg.OperationalError, match="permission denied"):
        ask(server.url("airflow", "stageout"), "SELECT 1")


def test_a_wrong_password_is_refused(server: EmbeddedPostgres) -> None:
    wrong = server.url("stageout").replace(server.password("stageout"), "wrong")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        ask(wrong, "SELECT 1")


def test_passwords_are_private_and_listeners_are_local(server: EmbeddedPostgres, folder: Path) -> None:
    modes = {path.stat().st_mode & 0o777 for path in folder.glob("postgres-*")}
    assert modes == {0o600}
    assert ask(server.admin_url, "SHOW listen_addresses") == "127.0.0.1"
    assert ask(server.admin_url, "SHOW unix_socket_directories") == ""


def test_it_never_runs_as_root(server: EmbeddedPostgres) -> None:
    pid = server.pid()
    assert pid is not None
    assert psutil.Process(pid).uids().real != 0


def test_a_running_server_is_used_again(server: EmbeddedPostgres, folder: Path) -> None:
    twin = EmbeddedPostgres(folder / "postgres", server.port, secrets_dir=folder)
    twin.start()
    assert twin.pid() == server.pid()


def test_a_template_makes_a_database_with_its_tables(server: EmbeddedPostgres) -> None:
    create_database(server.admin_url, "original")
    original = with_database(server.admin_url, "original")
    with closing(psycopg.connect(original, autocommit=True)) as connection:
        connection.execute("CREATE TABLE site (name text)")
    copy = create_database(server.admin_url, "copied", template="original")
    assert ask(copy, "SELECT count(*) FROM site") == 0
    postgres.drop_database(server.admin_url, "copied")
    assert ask(server.admin_url, "SELECT count(*) FROM pg_database WHERE datname = 'copied'") == 0


def test_it_starts_again_after_a_crash_although_its_pid_is_in_use(folder: Path) -> None:
    crashing = EmbeddedPostgres(folder / "crashing", free_port(), secrets_dir=folder, durable=False)
    crashing.start()
    pid = crashing.pid()
    assert pid is not None
    victims = psutil.Process(pid).children(recursive=True)
    os.kill(pid, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(pid), *victims], timeout=20)
    stale = folder / "crashing" / "postmaster.pid"
    stale.write_text(stale.read_text().replace(str(pid), str(os.getpid()), 1))

    again = EmbeddedPostgres(folder / "crashing", crashing.port, secrets_dir=folder, durable=False)
    assert again.pid() is None
    again.start()
    assert again.is_ready()
    again.stop()
    assert not again.is_ready()


def test_a_failing_initdb_is_a_plain_sentence_and_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = folder / "bin" / "initdb"
    failing.parent.mkdir()
    failing.write_text("#!/bin/sh\necho No space left on device >&2\nexit 1\n")
    failing.chmod(0o755)
    monkeypatch.setattr(postgres, "binaries", lambda _: failing.parent)
    with pytest.raises(PostgresUnavailable, match="No space left on device"):
        EmbeddedPostgres(folder / "full", 1, secrets_dir=folder).initialise()
    assert not list(folder.glob("full*"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root hands Postgres to another user")
def test_a_closed_parent_moves_data_and_binaries_to_a_reachable_place(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "REACHABLE_PLACE", folder)
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    server = EmbeddedPostgres(closed / "postgres", 1, secrets_dir=closed)
    server.initialise()
    assert server.data_dir.parent.parent == folder
    assert not (closed / "postgres").exists()
    server.delete()
    assert not server.data_dir.parent.exists()

    program = closed / "pginstall18" / "bin" / "postgres"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o700)
    copy = postgres._copied(closed / "pginstall18")
    assert (copy / "bin" / "postgres").stat().st_mode & 0o055 == 0o055
    assert closed.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("version", "has_builtin_locale", "has_io_method"),
    [(15, False, False), (17, True, False), (18, True, True)],
)
def test_another_postgres_is_told_only_what_it_knows(
    folder: Path, monkeypatch: pytest.MonkeyPatch, version: int, has_builtin_locale: bool, has_io_method: bool
) -> None:
    """Whichever ``ASO_POSTGRES_BIN`` names; here one that only repeats what it is told."""
    programs = folder / f"bin{version}"
    programs.mkdir()
    for name, line in (
        ("postgres", f'echo "postgres (PostgreSQL) {version}.4"'),
        ("initdb", 'echo "$@" >&2; exit 1'),
    ):
        (programs / name).write_text(f"#!/bin/sh\n{line}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("ASO_POSTGRES_BIN", str(programs))
    server = EmbeddedPostgres(folder / f"other{version}", 1, secrets_dir=folder)
    assert server.command[0] == str(programs / "postgres")
    assert ("io_method=sync" in server.command) == has_io_method
    with pytest.raises(PostgresUnavailable) as told:
        server.initialise()
    assert ("--builtin-locale" in str(told.value)) == has_builtin_locale
