"""Which services make the embedded platform, what each needs, and how each says that it is ready."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import ssl
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from asyncstageout.sandbox import airflow_env, postgres
from asyncstageout.sandbox.layout import LOOPBACK, Layout
from asyncstageout.sandbox.postgres import EmbeddedPostgres
from asyncstageout.sandbox.tls import SandboxTLS, sandbox_tls

DATABASES = ("airflow", "stageout")
AIRFLOW_NEEDS: dict[str, tuple[str, ...]] = {
    "api-server": ("airflow-migrate",),
    # They import Airflow for seconds of CPU each: on several cores, at the same time as the api-server.
    "dag-processor": ("airflow-migrate",),
    "triggerer": ("airflow-migrate", "catalogue-migrate"),
    # After the api-server's first answer, which takes seconds: tasks that meet it then would fail.
    "scheduler": ("api-server", "catalogue-migrate", "sites", "fts", "dbs"),
}
ReadyCheck = Callable[[datetime], Awaitable[bool]]


@dataclass(frozen=True)
class Service:
    """A process to keep, or a step to run once.

    ``is_ready`` is asked, with the aware UTC time the process was started at, until it says True. Without
    one a service is ready as soon as it runs. A step (``once``) is ready when it ended with code 0.
    ``options`` go to ``subprocess``.
    """

    name: str
    command: Sequence[str]
    needs: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    is_ready: ReadyCheck | None = None
    before_start: Callable[[], None] | None = None
    once: bool = False
    port: int | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    ready_timeout_s: float = 180.0
    stop_timeout_s: float = 10.0


def platform_services(layout: Layout) -> list[Service]:
    """Return the services of the platform in ``layout``, and make the secrets and certificates they need."""
    airflow_env.write_local_settings(layout)
    environment = airflow_environment_of(layout)
    return [
        _postgres(EmbeddedPostgres(layout.postgres, layout.ports.postgres, secrets_dir=layout.secrets)),
        *_sandbox(layout, sandbox_tls(layout.tls), airflow_env.inherited_environment(os.environ)),
        *_migrations(environment),
        *_airflow(layout, environment),
    ]


def airflow_environment_of(layout: Layout) -> dict[str, str]:
    """Return the environment of every Airflow process of the platform in ``layout``."""
    server = EmbeddedPostgres(layout.postgres, layout.ports.postgres, secrets_dir=layout.secrets)
    known = airflow_env.load_secrets(
        layout,
        airflow_db_password=server.password("airflow"),
        stageout_db_password=server.password("stageout"),
    )
    inherited = airflow_env.inherited_environment(os.environ)
    return inherited | airflow_env.airflow_environment(layout, known, sandbox_tls(layout.tls))


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
            command=_module("asyncstageout.sandbox.sites", "--root", layout.sites, "--port", ports.sites)
            + certificate,
            environment=environment,
            is_ready=_answers(ports.sites, "/.well-known/ready", trust),
            port=ports.sites,
        ),
        *(
            Service(
                name=name,
                command=_module("asyncstageout.sandbox.fts", "--port", port, "--monitor-port", monitor_port)
                + certificate
                + _words("--ca", tls.ca, "--state", state, "--vo", airflow_env.VO, "--require-delegation")
                + _words("--connect-to", f"{LOOPBACK}:{ports.sites}"),
                environment=environment,
                # Without a certificate FTS answers an error; that it answers is enough.
                is_ready=_answers(port, "/", trust, any_status=True),
                port=port,
            )
            for name, port, monitor_port, state in (
                ("fts", ports.fts, ports.fts_monitor, layout.fts),
                ("fts2", ports.fts2, ports.fts2_monitor, layout.fts2),
            )
        ),
        Service(
            name="dbs",
            command=_module("asyncstageout.sandbox.dbs", "--port", ports.dbs, "--state", layout.dbs)
            + certificate
            + _words("--ca", tls.ca),
            environment=environment,
            # Without a certificate it answers 403.
            is_ready=_answers(ports.dbs, "/dbs/prod/phys03/DBSWriter/healthz", trust, any_status=True),
            port=ports.dbs,
        ),
    ]


def _migrations(environment: Mapping[str, str]) -> list[Service]:
    catalogue = _module("asyncstageout.cli", "migrate")
    return [
        Service("airflow-migrate", _airflow_command("db", "migrate"), ("postgres",), environment, once=True),
        Service("catalogue-migrate", catalogue, ("postgres",), environment, once=True),
    ]


def _airflow(layout: Layout, environment: Mapping[str, str]) -> list[Service]:
    port = layout.ports.api_server
    return [
        Service(
            name=name,
            command=_airflow_command(name),
            needs=needs,
            environment=environment,
            is_ready=_serves(port) if name == "api-server" else _beats(port, name),
            port=port if name == "api-server" else None,
        )
        for name, needs in AIRFLOW_NEEDS.items()
    ]


def _module(name: str, *arguments: object) -> tuple[str, ...]:
    return (sys.executable, "-m", name, *_words(*arguments))


def _airflow_command(*arguments: str) -> tuple[str, ...]:
    return _module("airflow", *arguments)


def _words(*arguments: object) -> tuple[str, ...]:
    return tuple(str(argument) for argument in arguments)


def _answers(
    port: int, path: str, trust: ssl.SSLContext | None = None, *, any_status: bool = False
) -> ReadyCheck:
    async def is_ready(_: datetime) -> bool:
        status, _body = await get(port, path, trust)
        return status == 200 or (any_status and status > 0)

    return is_ready


def _serves(port: int) -> ReadyCheck:
    """Ready when the api-server answers, and our own API in it, whose first answer takes seconds."""
    ours = _answers(port, "/stageout/api/v1/health", any_status=True)
    airflows = _answers(port, "/execution/health")

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


async def get(
    port: int, path: str, trust: ssl.SSLContext | None = None, *, timeout_s: float = 30
) -> tuple[int, bytes]:
    """GET from a server on loopback; status 0: nobody answers. HTTP/1.0, so that no body is chunked."""
    request = f"GET {path} HTTP/1.0\r\nHost: {LOOPBACK}:{port}\r\n\r\n"
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(LOOPBACK, port, ssl=trust)
            try:
                writer.write(request.encode())
                answer = await reader.read()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return 0, b""
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    return (int(words[1]) if len(words) > 1 else 0), body
