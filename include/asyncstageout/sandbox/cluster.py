"""The embedded platform grown to a cluster on one machine: Celery, redis, PgBouncer, two of Airflow's parts.

For tests of what docker-compose.yaml and the Helm chart deploy. It needs Debian's ``redis-server`` and
``pgbouncer``, and what requirements-production.txt pins.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import psycopg

from asyncstageout.sandbox.airflow_env import SLOW_QUEUE
from asyncstageout.sandbox.layout import LOOPBACK, Layout, write_private
from asyncstageout.sandbox.postgres import UNPRIVILEGED
from asyncstageout.sandbox.service import ReadyCheck, Service, airflow_command, answers

POOL_SIZE = 20
CLIENTS = 400
BROKER = ("redis", "pgbouncer")
WORKER_LOGS = "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT"
TRIGGER_LOGS = "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT"
PROGRAMS = ("redis-server", "pgbouncer")
"""Debian's packages have the same names."""

REDIS = """\
bind {loopback}
port {port}
requirepass {password}
# Nothing is kept: what is queued is only a bell, and Airflow queues again what was lost.
save ""
appendonly no
"""

PGBOUNCER = """\
[databases]
airflow = host={loopback} port={postgres_port} dbname=airflow

[pgbouncer]
listen_addr = {loopback}
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {users_file}
pool_mode = transaction
default_pool_size = {pool_size}
max_client_conn = {clients}
ignore_startup_parameters = extra_float_digits
log_connections = 0
log_disconnections = 0
"""


class ClusterImpossible(Exception):
    """Something that the cluster needs is not installed."""

    def __init__(self, missing: str, remedy: str) -> None:
        super().__init__(f"A platform with Celery needs {missing}: {remedy}")
        self.missing = missing


def grown(table: Sequence[Service], layout: Layout, environment: Mapping[str, str]) -> list[Service]:
    """Return the services of ``table`` and those that make a cluster of them, in the order of their needs.

    Args:
        table: of the platform with a LocalExecutor.
        environment: of every Airflow process.
    """
    known = {service.name: service for service in table}
    ports = layout.ports
    workers = [
        _worker("worker", "default", ports.worker_logs, environment),
        _worker("worker2", "default", ports.worker2_logs, environment),
        _worker("worker-slow", SLOW_QUEUE, ports.worker_slow_logs, environment),
    ]
    for name in ("api-server", "dag-processor", "triggerer", "scheduler"):
        known[name] = replace(known[name], needs=(*known[name].needs, *BROKER))
    scheduler = known.pop("scheduler")
    scheduler = replace(scheduler, needs=(*scheduler.needs, *(worker.name for worker in workers)))
    # Its lock is of a session, which a pool of transactions does not know.
    known["airflow-migrate"] = replace(known["airflow-migrate"], environment=_past_the_pool(environment))
    second_triggerer = replace(
        known["triggerer"],
        name="triggerer2",
        environment={**environment, TRIGGER_LOGS: str(ports.trigger2_logs)},
    )
    return [
        known.pop("postgres"),
        _redis(layout, _path("redis-server")),
        _pgbouncer(layout, _path("pgbouncer")),
        *known.values(),
        second_triggerer,
        *workers,
        scheduler,
        replace(scheduler, name="scheduler2"),
    ]


def require() -> None:
    """See whether a cluster can run here.

    Raises:
        ClusterImpossible: a program or a package is missing.
    """
    if importlib.util.find_spec("celery") is None:
        raise ClusterImpossible("Celery", "pip install -r requirements-production.txt")
    for program in PROGRAMS:
        if not Path(_path(program)).is_absolute():
            raise ClusterImpossible(program, f"apt install {program}")


def _path(program: str) -> str:
    """Return where a program is, or its name alone. Debian's daemons lie where not every PATH leads."""
    return shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin") or program


def _past_the_pool(environment: Mapping[str, str]) -> dict[str, str]:
    direct = environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC"].replace("+asyncpg", "+psycopg2")
    return {**environment, "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": direct}


def _worker(name: str, queue: str, log_port: int, environment: Mapping[str, str]) -> Service:
    return Service(
        name=name,
        command=airflow_command("celery", "worker", "--queues", queue, "--celery-hostname", name),
        needs=("api-server", "catalogue-migrate", "sites", "fts", "dbs", *BROKER),
        environment={**environment, WORKER_LOGS: str(log_port)},
        # It serves its logs before it takes tasks; until then they wait in redis.
        is_ready=answers(log_port, "/", any_status=True),
        port=log_port,
    )


def _redis(layout: Layout, program: str) -> Service:
    port, password = layout.ports.redis, (layout.secrets / "redis").read_text()
    file = layout.secrets / "redis.conf"
    write_private(file, REDIS.format(loopback=LOOPBACK, port=port, password=password))
    return Service(
        name="redis",
        command=(program, str(file)),
        options={"cwd": "/"},
        is_ready=_pongs(port, password),
        port=port,
    )


def _pongs(port: int, password: str) -> ReadyCheck:
    async def is_ready(_: datetime) -> bool:
        try:
            async with asyncio.timeout(2):
                reader, writer = await asyncio.open_connection(LOOPBACK, port)
                try:
                    writer.write(f"AUTH {password}\r\nPING\r\n".encode())
                    said = [await reader.readline() for _ in range(2)]
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return False
        return said == [b"+OK\r\n", b"+PONG\r\n"]

    return is_ready


def _pgbouncer(layout: Layout, program: str) -> Service:
    password = (layout.secrets / "postgres-airflow").read_text()
    users_file, file = layout.secrets / "pgbouncer-users.txt", layout.secrets / "pgbouncer.ini"
    port = layout.ports.pgbouncer
    write_private(users_file, f'"airflow" "{password}"\n')
    write_private(
        file,
        PGBOUNCER.format(
            loopback=LOOPBACK,
            port=port,
            postgres_port=layout.ports.postgres,
            users_file=users_file,
            pool_size=POOL_SIZE,
            clients=CLIENTS,
        ),
    )

    async def is_ready(_: datetime) -> bool:
        url = f"postgresql://airflow:{password}@{LOOPBACK}:{port}/airflow"
        try:
            with closing(psycopg.connect(url, connect_timeout=2)):
                return True
        except psycopg.OperationalError:
            return False

    return Service(
        name="pgbouncer",
        # It does not run as root: it reads these files, then becomes another user.
        command=(program, *(("-u", UNPRIVILEGED) if os.geteuid() == 0 else ()), str(file)),
        needs=("postgres",),
        is_ready=is_ready,
        port=port,
    )
