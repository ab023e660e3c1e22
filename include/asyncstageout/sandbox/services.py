"""Which services make the embedded platform, what each needs, and how each says that it is ready."""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import Mapping
from datetime import datetime

from asyncstageout.sandbox import airflow_env, cluster, postgres
from asyncstageout.sandbox.airflow_env import Engine
from asyncstageout.sandbox.layout import LOOPBACK, Layout
from asyncstageout.sandbox.postgres import EmbeddedPostgres
from asyncstageout.sandbox.service import ReadyCheck, Service, airflow_command, answers, get, module, words
from asyncstageout.sandbox.tls import SandboxTLS, sandbox_tls

DATABASES = ("airflow", "stageout")
NO_BYTES = "ASO_SANDBOX_NO_BYTES"
"""Set in the environment: transfers take so many seconds and move nothing, for loads that no disk holds."""
MANY = 1_000_000
AIRFLOW_NEEDS: dict[str, tuple[str, ...]] = {
    "api-server": ("airflow-migrate",),
    # They import Airflow for seconds of CPU each: on several cores, at the same time as the api-server.
    "dag-processor": ("airflow-migrate",),
    "triggerer": ("airflow-migrate", "catalogue-migrate"),
    # After the api-server's first answer, which takes seconds: tasks that meet it then would fail.
    "scheduler": ("api-server", "catalogue-migrate", "sites", "fts", "dbs"),
}


def platform_services(layout: Layout) -> list[Service]:
    """Return the services of the platform in ``layout``, and make the secrets and certificates they need.

    Raises:
        ClusterImpossible: it is to be a cluster, and something that it needs is not installed.
    """
    airflow_env.write_local_settings(layout)
    environment = airflow_environment_of(layout)
    table = [
        _postgres(EmbeddedPostgres(layout.postgres, layout.ports.postgres, secrets_dir=layout.secrets)),
        *_sandbox(layout, sandbox_tls(layout.tls), airflow_env.inherited_environment(os.environ)),
        *_migrations(environment),
        *_airflow(layout, environment),
    ]
    if Engine.chosen(os.environ) is Engine.LOCAL:
        return table
    cluster.require()
    return cluster.grown(table, layout, environment)


def airflow_environment_of(layout: Layout) -> dict[str, str]:
    """Return the environment of every Airflow process of the platform in ``layout``."""
    server = EmbeddedPostgres(layout.postgres, layout.ports.postgres, secrets_dir=layout.secrets)
    known = airflow_env.load_secrets(
        layout,
        airflow_db_password=server.password("airflow"),
        stageout_db_password=server.password("stageout"),
    )
    inherited = airflow_env.inherited_environment(os.environ)
    engine = Engine.chosen(os.environ)
    return inherited | airflow_env.airflow_environment(layout, known, sandbox_tls(layout.tls), engine)


def _postgres(server: EmbeddedPostgres) -> Service:
    def before_start() -> None:
        server.stop()  # one that outlived its supervisor
        server.initialise()
        server.forget_stale_pid()

    async def is_ready(_: datetime) -> bool:
        if server.is_ready():
            server.create_owned_databases(DATABASES)
            return True
        return False

    options = server.spawn_options
    return Service(
        name="postgres",
        command=server.command,
        environment=options.pop("env"),
        options=options,
        before_start=before_start,
        is_ready=is_ready,
        port=server.port,
        stop_signal=postgres.STOP_SIGNAL,
    )


def _sandbox(layout: Layout, tls: SandboxTLS, environment: Mapping[str, str]) -> list[Service]:
    ports = layout.ports
    certificate = ("--cert", str(tls.server.cert), "--key", str(tls.server.key))
    trust = ssl.create_default_context(cafile=str(tls.ca))
    return [
        Service(
            name="sites",
            command=module("asyncstageout.sandbox.sites", "--root", layout.sites, "--port", ports.sites)
            + certificate,
            environment=environment,
            is_ready=answers(ports.sites, "/.well-known/ready", trust),
            port=ports.sites,
        ),
        *(
            Service(
                name=name,
                command=module("asyncstageout.sandbox.fts", "--port", port, "--monitor-port", monitor_port)
                + certificate
                + words("--ca", tls.ca, "--state", state, "--vo", airflow_env.VO, "--require-delegation")
                + words("--connect-to", f"{LOOPBACK}:{ports.sites}")
                + _pace(os.environ),
                environment=environment,
                # Without a certificate FTS answers an error; that it answers is enough.
                is_ready=answers(port, "/", trust, any_status=True),
                port=port,
            )
            for name, port, monitor_port, state in (
                ("fts", ports.fts, ports.fts_monitor, layout.fts),
                ("fts2", ports.fts2, ports.fts2_monitor, layout.fts2),
            )
        ),
        Service(
            name="dbs",
            command=module("asyncstageout.sandbox.dbs", "--port", ports.dbs, "--state", layout.dbs)
            + certificate
            + words("--ca", tls.ca),
            environment=environment,
            # Without a certificate it answers 403.
            is_ready=answers(ports.dbs, "/dbs/prod/phys03/DBSWriter/healthz", trust, any_status=True),
            port=ports.dbs,
        ),
    ]


def _pace(environment: Mapping[str, str]) -> tuple[str, ...]:
    seconds = environment.get(NO_BYTES)
    if not seconds:
        return ()
    return words("--no-bytes", "--seconds", seconds, "--link-limit", MANY, "--workers", MANY)


def _migrations(environment: Mapping[str, str]) -> list[Service]:
    catalogue = module("asyncstageout.cli", "migrate")
    return [
        Service("airflow-migrate", airflow_command("db", "migrate"), ("postgres",), environment, once=True),
        Service("catalogue-migrate", catalogue, ("postgres",), environment, once=True),
    ]


def _airflow(layout: Layout, environment: Mapping[str, str]) -> list[Service]:
    port = layout.ports.api_server
    return [
        Service(
            name=name,
            command=airflow_command(name),
            needs=needs,
            environment=environment,
            is_ready=_serves(port) if name == "api-server" else _beats(port, name),
            port=port if name == "api-server" else None,
        )
        for name, needs in AIRFLOW_NEEDS.items()
    ]


def _serves(port: int) -> ReadyCheck:
    """Ready when the api-server answers, and our own API in it, whose first answer takes seconds."""
    ours = answers(port, "/stageout/api/v1/health", any_status=True)
    airflows = answers(port, "/execution/health")

    async def is_ready(started_at: datetime) -> bool:
        return await airflows(started_at) and await ours(started_at)

    return is_ready


def _beats(port: int, component: str) -> ReadyCheck:
    """Ready when Airflow has seen a heartbeat of the component since it was started."""
    component = component.replace("-", "_")

    async def is_ready(started_at: datetime) -> bool:
        status, body = await get(port, "/api/v2/monitor/health")
        if status != 200:
            return False
        health = json.loads(body).get(component) or {}
        seen = health.get(f"latest_{component}_heartbeat")
        return (
            health.get("status") == "healthy"
            and seen is not None
            and datetime.fromisoformat(seen) >= started_at
        )

    return is_ready
