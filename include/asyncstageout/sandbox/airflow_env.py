"""How the Airflow processes of the embedded platform are configured: one pure function, no airflow.cfg."""

from __future__ import annotations

import base64
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from asyncstageout import provider
from asyncstageout.sandbox.layout import LOOPBACK, Layout, write_private
from asyncstageout.sandbox.sites.names import DOMAIN
from asyncstageout.sandbox.tls import SandboxTLS

ADMIN = "admin"
VO = "cms"
SECOND_FTS = "fts3_second"
"""Connection of the FTS server that only a catalogue which lists it uses."""
LOGINS_FILE = "airflow-logins.json"
LOGINS = {ADMIN: "admin", "op": "op", "viewer": "viewer"}
"""User name -> role of Airflow's SimpleAuthManager."""

ENGINE_VARIABLE = "ASO_ENGINE"
SLOW_QUEUE = "slow"


class Engine(StrEnum):
    """Who runs tasks."""

    LOCAL = "local"
    """The scheduler's own LocalExecutor."""
    CELERY = "celery"
    """Celery workers, with two of each part of Airflow that may be there twice."""

    @classmethod
    def chosen(cls, environment: Mapping[str, str]) -> Engine:
        """Return what ``ASO_ENGINE`` says, else ``LOCAL``."""
        return cls(environment.get(ENGINE_VARIABLE) or cls.LOCAL)


@dataclass(frozen=True)
class AirflowSecrets:
    """What all Airflow processes must share and nobody else may know."""

    jwt: str
    fernet: str
    passwords_file: Path
    airflow_db_password: str
    stageout_db_password: str
    redis: str


def load_secrets(layout: Layout, *, airflow_db_password: str, stageout_db_password: str) -> AirflowSecrets:
    """Return the secrets of this platform, made on first use."""
    passwords = layout.secrets / LOGINS_FILE
    if not passwords.exists():
        write_private(passwords, json.dumps({user: secrets.token_urlsafe(12) for user in LOGINS}, indent=1))
    return AirflowSecrets(
        jwt=_remembered(layout.secrets / "jwt", secrets.token_urlsafe(48)),
        fernet=_remembered(
            layout.secrets / "fernet", base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
        ),
        passwords_file=passwords,
        airflow_db_password=airflow_db_password,
        stageout_db_password=stageout_db_password,
        redis=_remembered(layout.secrets / "redis", secrets.token_hex(24)),
    )


def airflow_environment(
    layout: Layout, known: AirflowSecrets, tls: SandboxTLS, engine: Engine = Engine.LOCAL
) -> dict[str, str]:
    """Return the environment variables that every Airflow process of this platform gets."""
    settings = _configuration(layout, known)
    if engine is Engine.CELERY:
        settings |= celery_settings(layout, known)
    places = {"AIRFLOW_HOME": str(layout.airflow), "ASO_HOME": str(layout.home)}
    return _variables(settings) | places | _connections(layout, known, tls)


def inherited_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what a platform process takes over from its caller: no setting of another Airflow or Python."""
    # PYTHONDONTWRITEBYTECODE, common in containers, would make every start compile Airflow anew.
    return {name: value for name, value in environment.items() if not name.startswith(("AIRFLOW", "PYTHON"))}


def write_local_settings(layout: Layout) -> None:
    """Put the module in place by which processes that fork import what their children need."""
    config = layout.airflow / "config"
    config.mkdir(exist_ok=True)
    shutil.copyfile(
        Path(provider.__file__).with_name("local_settings.py"), config / "airflow_local_settings.py"
    )


def catalogue_url(layout: Layout) -> str:
    """Return the catalogue's URL: ``ASO_CATALOGUE_URL``, else the embedded one. It holds the password.

    Raises:
        FileNotFoundError: the embedded platform was never started.
    """
    if configured := os.environ.get("ASO_CATALOGUE_URL"):
        return configured
    password = (layout.secrets / "postgres-stageout").read_text()
    return f"postgresql://stageout:{password}@{LOOPBACK}:{layout.ports.postgres}/stageout"


def _configuration(layout: Layout, known: AirflowSecrets) -> dict[tuple[str, str], object]:
    ports = layout.ports
    base_url = f"http://{LOOPBACK}:{ports.api_server}"
    database = f"airflow:{known.airflow_db_password}@{LOOPBACK}:{ports.postgres}/airflow"
    return {
        ("core", "dags_folder"): layout.project / "dags",
        ("core", "plugins_folder"): layout.project / "plugins",
        ("core", "load_examples"): False,
        ("core", "executor"): "LocalExecutor",
        # Each worker is a forked process; 4 doubled the time of a wide run, 32 bought nothing on two cores.
        ("core", "parallelism"): 8,
        ("core", "dags_are_paused_at_creation"): False,
        ("core", "fernet_key"): known.fernet,
        ("core", "test_connection"): "Enabled",
        ("core", "execution_api_server_url"): f"{base_url}/execution/",
        ("core", "simple_auth_manager_users"): ",".join(f"{user}:{role}" for user, role in LOGINS.items()),
        ("core", "simple_auth_manager_passwords_file"): known.passwords_file,
        ("database", "sql_alchemy_conn"): f"postgresql+psycopg2://{database}",
        ("api", "base_url"): base_url,
        ("api", "host"): LOOPBACK,
        ("api", "port"): ports.api_server,
        ("api", "workers"): 1,
        ("api_auth", "jwt_secret"): known.jwt,
        # A hop between two tasks waits for half of this on average; an idle scheduler looks so often.
        ("scheduler", "scheduler_idle_sleep_time"): 0.5,
        ("scheduler", "task_instance_heartbeat_timeout"): 60,
        ("scheduler", "enable_health_check"): False,
        # A new or changed DAG file is found within 20 s; one that did not change is read for nothing.
        ("dag_processor", "refresh_interval"): 20,
        ("dag_processor", "min_file_process_interval"): 600,
        ("dag_processor", "parsing_processes"): 1,
        ("logging", "base_log_folder"): layout.logs / "airflow",
        ("logging", "worker_log_server_port"): ports.worker_logs,
        ("logging", "trigger_log_server_port"): ports.trigger_logs,
    }


def celery_settings(layout: Layout, known: AirflowSecrets) -> dict[tuple[str, str], object]:
    """Return what is different with Celery; docker-compose.yaml and deploy/helm/values.yaml say the same."""
    ports = layout.ports
    airflow = f"airflow:{known.airflow_db_password}@{LOOPBACK}"
    pooled = f"postgresql+psycopg2://{airflow}:{ports.pgbouncer}/airflow"
    return {
        ("core", "executor"): "CeleryExecutor",
        ("database", "sql_alchemy_conn"): pooled,
        # asyncpg prepares statements: it goes past a PgBouncer that gives connections for one transaction.
        ("database", "sql_alchemy_conn_async"): f"postgresql+asyncpg://{airflow}:{ports.postgres}/airflow",
        ("celery", "broker_url"): f"redis://:{known.redis}@{LOOPBACK}:{ports.redis}/0",
        ("celery", "result_backend"): f"db+{pooled}",
        ("celery", "worker_concurrency"): 4,
        # The longest execution_timeout of a task, and a little: then redis gives it to another worker.
        ("celery_broker_transport_options", "visibility_timeout"): 14_400,
        # What died with a worker or with redis while it was queued is queued again after this.
        ("scheduler", "task_queued_timeout"): 60,
        ("scheduler", "task_queued_timeout_check_interval"): 10,
        # As often as that, and not only twice: a slow task may wait long for a slot, and must not fail by it.
        ("scheduler", "num_stuck_in_queued_retries"): 100,
        ("stageout", "slow_queue"): SLOW_QUEUE,
    }


def _variables(settings: Mapping[tuple[str, str], object]) -> dict[str, str]:
    return {
        f"AIRFLOW__{section.upper()}__{key.upper()}": str(value) for (section, key), value in settings.items()
    }


def _connections(layout: Layout, known: AirflowSecrets, tls: SandboxTLS) -> dict[str, str]:
    stageout_db = _postgres(layout, "stageout", known.stageout_db_password)
    credentials = {
        "conn_type": "stageout_credentials",
        "extra": {"source": "directory", "directory": str(layout.credentials)},
    }
    ports = layout.ports
    connections = {
        "stageout_db": stageout_db,
        # With it a task may clean Airflow's own tables.
        "airflow_db": _postgres(layout, "airflow", known.airflow_db_password),
        "fts3_default": _fts(ports.fts, ports.fts_monitor, tls),
        SECOND_FTS: _fts(ports.fts2, ports.fts2_monitor, tls),
        "dbs_default": _dbs(ports.dbs, tls),
        "stageout_credentials": credentials,
        "stageout_storage": _storage(ports.sites, tls),
    }
    return {f"AIRFLOW_CONN_{name.upper()}": json.dumps(fields) for name, fields in connections.items()}


def _postgres(layout: Layout, role: str, password: str) -> dict[str, Any]:
    return {
        "conn_type": "postgres",
        "host": LOOPBACK,
        "port": layout.ports.postgres,
        "login": role,
        "password": password,
        "schema": role,
    }


def _fts(port: int, monitor_port: int, tls: SandboxTLS) -> dict[str, Any]:
    return _service("fts3", port, tls, monitor_url=f"http://{LOOPBACK}:{monitor_port}/fts3/ftsmon")


def _dbs(port: int, tls: SandboxTLS) -> dict[str, Any]:
    return _service("dbs", port, tls, global_reader="/dbs/prod/global/DBSReader")


def _service(kind: str, port: int, tls: SandboxTLS, **extra: str) -> dict[str, Any]:
    certificates = {
        "ca_file": str(tls.ca),
        "cert_file": str(tls.client.cert),
        "key_file": str(tls.client.key),
    }
    address = {"conn_type": kind, "schema": "https", "host": LOOPBACK, "port": port}
    return address | {"extra": certificates | extra}


def _storage(port: int, tls: SandboxTLS) -> dict[str, Any]:
    return {
        "conn_type": "stageout_storage",
        "extra": {
            "ca_file": str(tls.ca),
            "cert_file": str(tls.client.cert),
            "key_file": str(tls.client.key),
            "connect_to": {f"*.{DOMAIN}": f"{LOOPBACK}:{port}"},
        },
    }


def _remembered(path: Path, fresh: str) -> str:
    if not path.exists():
        write_private(path, fresh)
    return path.read_text()
