"""The embedded platform with Celery: who needs whom, and what Airflow is told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from asyncstageout.sandbox import airflow_env, cluster, services
from asyncstageout.sandbox.airflow_env import Engine
from asyncstageout.sandbox.layout import Layout
from asyncstageout.sandbox.service import Service
from asyncstageout.sandbox.tls import sandbox_tls


@pytest.fixture
def home(tmp_path: Path) -> Layout:
    found = Layout(tmp_path / "home", tmp_path / "project")
    found.prepare()
    return found


@pytest.fixture
def environment(home: Layout) -> dict[str, str]:
    known = airflow_env.load_secrets(home, airflow_db_password="aa", stageout_db_password="bb")
    return airflow_env.airflow_environment(home, known, sandbox_tls(home.tls), Engine.CELERY)


@pytest.fixture
def table(home: Layout, environment: dict[str, str]) -> list[Service]:
    return cluster.grown(services.platform_services(home), home, environment)


def test_there_are_two_of_what_may_be_there_twice_and_workers_for_both_queues(table: list[Service]) -> None:
    commands = [service.command[3:] for service in table if "airflow" in service.command]
    assert sorted(" ".join(command) for command in commands) == sorted(
        [
            "db migrate", "api-server", "dag-processor", "scheduler", "scheduler", "triggerer", "triggerer",
            "celery worker --queues default --celery-hostname worker",
            "celery worker --queues default --celery-hostname worker2",
            "celery worker --queues slow --celery-hostname worker-slow",
        ]
    )  # fmt: skip


def test_every_service_needs_only_services_before_it(table: list[Service]) -> None:
    before: set[str] = set()
    for service in table:
        assert set(service.needs) <= before, service.name
        before.add(service.name)
    assert len(before) == len(table)


def test_a_scheduler_waits_for_workers_and_they_for_all_that_a_task_needs(table: list[Service]) -> None:
    needs = {service.name: set(service.needs) for service in table}
    tasks_need = {"api-server", "catalogue-migrate", "sites", "fts", "dbs", "redis", "pgbouncer"}
    assert needs["worker"] == needs["worker2"] == needs["worker-slow"] == tasks_need
    assert needs["scheduler"] == needs["scheduler2"] == tasks_need | {"worker", "worker2", "worker-slow"}


def test_no_two_processes_listen_on_the_same_port(table: list[Service]) -> None:
    variables = (cluster.WORKER_LOGS, cluster.TRIGGER_LOGS)
    listening = {
        service.name: service.environment[variables["triggerer" in service.name]]
        for service in table
        if service.name.startswith(("worker", "triggerer"))
    }
    assert len(set(listening.values())) == len(listening) == 5


def test_airflow_goes_through_the_pool_and_migrations_past_it(
    home: Layout, environment: dict[str, str], table: list[Service]
) -> None:
    name = "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"
    ports = home.ports
    assert environment[name] == f"postgresql+psycopg2://airflow:aa@127.0.0.1:{ports.pgbouncer}/airflow"
    assert environment["AIRFLOW__CELERY__RESULT_BACKEND"] == f"db+{environment[name]}"
    migrate = next(service for service in table if service.name == "airflow-migrate")
    assert migrate.environment[name] == f"postgresql+psycopg2://airflow:aa@127.0.0.1:{ports.postgres}/airflow"
    assert f"port={ports.postgres} dbname=airflow" in (home.secrets / "pgbouncer.ini").read_text()


def test_the_catalogue_is_never_pooled(home: Layout, environment: dict[str, str]) -> None:
    assert f'"port": {home.ports.postgres}' in environment["AIRFLOW_CONN_STAGEOUT_DB"]


def test_what_it_writes_is_secret(home: Layout, table: list[Service]) -> None:
    for name in ("redis.conf", "pgbouncer.ini", "pgbouncer-users.txt"):
        assert (home.secrets / name).stat().st_mode & 0o777 == 0o600
    secrets = [(home.secrets / name).read_text() for name in ("redis", "postgres-airflow")]
    assert not any(secret in " ".join(service.command) for secret in secrets for service in table)


def test_the_local_engine_knows_nothing_of_it(home: Layout) -> None:
    known = airflow_env.load_secrets(home, airflow_db_password="aa", stageout_db_password="bb")
    local = airflow_env.airflow_environment(home, known, sandbox_tls(home.tls))
    assert local["AIRFLOW__CORE__EXECUTOR"] == "LocalExecutor"
    assert not [name for name in local if re.match("AIRFLOW__(CELERY|STAGEOUT)", name)]


def test_the_engine_is_what_the_environment_says() -> None:
    assert Engine.chosen({}) is Engine.chosen({"ASO_ENGINE": ""}) is Engine.LOCAL
    assert Engine.chosen({"ASO_ENGINE": "celery"}) is Engine.CELERY
    with pytest.raises(ValueError, match="kubernetes"):
        Engine.chosen({"ASO_ENGINE": "kubernetes"})


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(cluster, "PROGRAMS", ("no-such-daemon",))
    with pytest.raises(
        cluster.ClusterImpossible, match=r"needs (no-such-daemon: apt install|Celery: pip install)"
    ):
        cluster.require()
