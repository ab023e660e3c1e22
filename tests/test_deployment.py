"""The files by which it is deployed: no container engine runs here, so what can be checked is checked."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from asyncstageout.sandbox import airflow_env
from asyncstageout.sandbox.layout import Layout

PROJECT = Path(__file__).resolve().parents[1]
COMPOSE = yaml.safe_load((PROJECT / "docker-compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
SANDBOX = ("sandbox-tls", "sites", "fts", "dbs")
MONITORING = ("metrics-token", "prometheus", "grafana")
AIRFLOW = ("api-server", "scheduler", "dag-processor", "triggerer")
WORKERS = {"worker": "default", "worker-slow": "slow"}
"""Service -> the queue that it listens on."""
HELM = yaml.safe_load((PROJECT / "deploy" / "helm" / "values.yaml").read_text())
ENVIRONMENT: dict[str, str] = SERVICES["scheduler"]["environment"]
MEANT_FOR_COMPOSE_ALONE = (
    "SQL_ALCHEMY_CONN",
    "BROKER_URL",
    "RESULT_BACKEND",
    "SIMPLE_AUTH",
    "JWT",
    "FERNET",
    "EXECUTION_API",
)


def words(service: dict[str, Any]) -> str:
    command = service.get("command", "")
    return command if isinstance(command, str) else " ".join(command)


def test_the_services_are_those_of_the_embedded_cluster() -> None:
    own = {"postgres", "redis", "pgbouncer", "airflow-init", *AIRFLOW, *WORKERS}
    assert set(SERVICES) == {*own, *SANDBOX, *MONITORING}
    profiles = {name: SERVICES[name]["profiles"] for name in SERVICES if SERVICES[name].get("profiles")}
    assert profiles == {name: ["sandbox"] for name in SANDBOX} | {name: ["monitoring"] for name in MONITORING}
    assert all(SERVICES[name]["command"] == name for name in AIRFLOW)


def test_what_may_be_there_twice_is() -> None:
    copies = {name: SERVICES[name].get("deploy", {}).get("replicas", 1) for name in (*AIRFLOW, *WORKERS)}
    assert copies == {
        "api-server": 1, "scheduler": 2, "dag-processor": 1, "triggerer": 2, "worker": 2, "worker-slow": 1,
    }  # fmt: skip


def test_somebody_listens_on_every_queue_that_tasks_are_sent_to() -> None:
    listened = {re.findall(r"--queues (\S+)", SERVICES[name]["command"])[0] for name in WORKERS}
    assert {"default", ENVIRONMENT["AIRFLOW__STAGEOUT__SLOW_QUEUE"]} == listened == set(WORKERS.values())


def test_airflow_goes_through_the_pool_and_the_catalogue_past_it() -> None:
    pooled = "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"
    for name in (*AIRFLOW, *WORKERS):
        environment = SERVICES[name]["environment"]
        assert "@pgbouncer:6543/airflow" in environment[pooled]
        assert "@pgbouncer:6543/airflow" in environment["AIRFLOW__CELERY__RESULT_BACKEND"]
        for direct in (
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC",
            "AIRFLOW_CONN_STAGEOUT_DB",
            "ASO_CATALOGUE_URL",
        ):
            assert "@postgres/" in environment[direct], (name, direct)
    # Migrations hold a lock of a session.
    assert "@postgres/airflow" in SERVICES["airflow-init"]["environment"][pooled]


def test_a_worker_may_end_its_tasks() -> None:
    for name in WORKERS:
        assert SERVICES[name]["stop_grace_period"] == "300s"
        assert SERVICES[name]["environment"]["DUMB_INIT_SETSID"] == "0"


def test_the_embedded_cluster_is_told_the_same_as_the_containers() -> None:
    """What `make cluster` tries is what is deployed."""
    known = airflow_env.AirflowSecrets("j", "f", Path("p"), "a", "b", "r")
    settings = airflow_env.celery_settings(Layout(Path("h"), Path("p")), known)
    for (section, key), value in settings.items():
        name = f"AIRFLOW__{section.upper()}__{key.upper()}"
        if not any(part in name for part in MEANT_FOR_COMPOSE_ALONE):
            assert ENVIRONMENT[name] == str(value), name


def test_prometheus_finds_its_rules_and_grafana_its_dashboards() -> None:
    config = yaml.safe_load(COMPOSE["configs"]["prometheus"]["content"])
    [rules] = config["rule_files"]
    mounts = [volume.split(":")[:2] for name in MONITORING for volume in SERVICES[name].get("volumes", [])]
    places = {place: source for source, place in mounts if source.startswith("./")}
    assert rules == "/etc/prometheus/stageout/rules.yml"
    assert set(places) == {
        "/etc/prometheus/stageout",
        "/etc/grafana/provisioning",
        "/etc/grafana/dashboards/stageout",
    }
    for place in (*places.values(), f"{places['/etc/prometheus/stageout']}/rules.yml"):
        assert (PROJECT / place).exists(), place
    theirs = yaml.safe_load((PROJECT / "deploy" / "prometheus" / "prometheus.yml").read_text())[
        "scrape_configs"
    ][0]
    ours = config["scrape_configs"][0]
    assert (ours["job_name"], ours["metrics_path"]) == (theirs["job_name"], theirs["metrics_path"])


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_depends_on_services_whose_condition_can_come_true(name: str) -> None:
    for other, wish in SERVICES[name].get("depends_on", {}).items():
        if wish["condition"] == "service_healthy":
            assert "healthcheck" in SERVICES[other]
        else:
            assert SERVICES[other]["restart"] == "no"


def test_what_runs_on_has_a_health_check() -> None:
    assert all("healthcheck" in service for service in SERVICES.values() if service["restart"] != "no")


def test_every_module_named_in_a_command_exists() -> None:
    modules = {found for service in SERVICES.values() for found in re.findall(r"-m ([\w.]+)", words(service))}
    sandbox = {f"asyncstageout.sandbox.{name}" for name in ("sites", "fts", "dbs")}
    assert modules == {"asyncstageout.cli", *sandbox}
    assert all(importlib.util.find_spec(module) for module in modules)


def test_the_inline_python_compiles() -> None:
    for name in ("sandbox-tls", "metrics-token"):
        [script] = re.findall(r"python -c '(.*?)'", words(SERVICES[name]), re.DOTALL)
        compile("\n".join(line.strip() for line in script.splitlines()), name, "exec")


def test_every_volume_and_config_that_is_used_is_declared() -> None:
    for service in SERVICES.values():
        volumes = {volume.split(":")[0] for volume in service.get("volumes", [])}
        assert {volume for volume in volumes if not volume.startswith("./")} <= set(COMPOSE["volumes"])
        assert {config["source"] for config in service.get("configs", [])} <= set(COMPOSE["configs"])


def test_secrets_come_from_the_environment_and_have_no_default() -> None:
    text = (PROJECT / "docker-compose.yaml").read_text()
    example = (PROJECT / ".env.example").read_text()
    required = set(re.findall(r"\$\{(\w+):\?", text))
    assert required == set(re.findall(r"^(\w+)=$", example, re.MULTILINE))
    assert set(re.findall(r"\$\{(\w+)", text)) - required == {
        "AIRFLOW_CONN_DBS_DEFAULT",
        "AIRFLOW_CONN_FTS3_DEFAULT",
        "AIRFLOW_CONN_STAGEOUT_STORAGE",
        "AIRFLOW_PORT",
    }


def test_the_default_connections_are_such_that_airflow_reads(tmp_path: Path) -> None:
    environment = SERVICES["scheduler"]["environment"]
    uris = [
        environment[name].removeprefix(f"${{{name}:-").removesuffix("}")
        for name in ("AIRFLOW_CONN_FTS3_DEFAULT", "AIRFLOW_CONN_DBS_DEFAULT")
    ]
    script = (
        "import json, sys; from airflow.sdk import Connection as C\n"
        "for uri in sys.argv[1:]:\n"
        "    c = C.from_uri(uri, conn_id='x')\n"
        "    print(json.dumps([c.conn_type, c.host, c.port, c.schema, c.extra_dejson]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *uris],
        env=os.environ | {"AIRFLOW_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    certificates = {"ca_file": "/tls/ca.pem", "cert_file": "/tls/client.pem", "key_file": "/tls/client.key"}
    assert [json.loads(line) for line in done.stdout.splitlines()[-2:]] == [
        ["fts3", "fts", 8446, "https", certificates | {
            "vo": "cms", "monitor_url": "http://localhost:8449/fts3/ftsmon",
        }],
        ["dbs", "dbs", 8447, "https", certificates | {"global_reader": "/dbs/prod/global/DBSReader"}],
    ]  # fmt: skip


def test_ports_are_open_on_this_machine_only() -> None:
    assert all(
        port.startswith("127.0.0.1:") for service in SERVICES.values() for port in service.get("ports", [])
    )


def test_the_image_is_of_the_airflow_that_is_pinned() -> None:
    text = (PROJECT / "Dockerfile").read_text()
    [image] = re.findall(r"^ARG AIRFLOW_IMAGE=apache/airflow:slim-([\d.]+)-python3\.13$", text, re.MULTILINE)
    assert f"apache-airflow=={image}\n" in (PROJECT / "requirements.txt").read_text()
    assert HELM["airflowVersion"] == HELM["defaultAirflowTag"] == image


def test_what_the_image_has_besides_agrees_with_what_everything_else_runs() -> None:
    """Both locks are installed at once; Celery and all of our optional extras are in one of them."""
    base, production = (pins(PROJECT / f"requirements{kind}.txt") for kind in ("", "-production"))
    assert {name: base[name] for name in base.keys() & production.keys()} == {
        name: production[name] for name in base.keys() & production.keys()
    }
    extras = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = {
        re.split(r"[\[>=]", one)[0] for name, extra in extras.items() if name != "sandbox" for one in extra
    }
    celery = {"apache-airflow-providers-celery", "celery", "redis", "statsd"}
    assert wanted | celery <= {name.replace("stomp-py", "stomp.py") for name in base | production}


def pins(lock: Path) -> dict[str, str]:
    """Return package -> version. Of a package with one for each Python, the last."""
    return dict(re.findall(r"^([\w.-]+)==([^\s;]+)", lock.read_text(), re.MULTILINE))


def test_what_the_image_copies_exists_and_reaches_the_builder() -> None:
    copied = re.findall(r"^COPY --chown=\S+ (.+) \S+$", (PROJECT / "Dockerfile").read_text(), re.MULTILINE)
    sources = {source for line in copied for source in line.split()}
    allowed = {
        line[1:] for line in (PROJECT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    assert sources == allowed
    assert all((PROJECT / source).exists() for source in sources)


def test_helm_takes_every_secret_by_its_name() -> None:
    """Nothing that looks like a password, key or URL with one stands in the values."""
    text = (PROJECT / "deploy" / "helm" / "values.yaml").read_text()
    values = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    assert not re.search(r"://[^\s/]*:[^\s/]*@|(?i:password|passwd|token):\s*\S", values)
    assert not {"fernetKey", "apiSecretKey", "jwtSecret", "extraSecrets"} & set(HELM)
    assert not {"metadataConnection", "brokerUrl"} & set(HELM["data"])
    named = {HELM["fernetKeySecretName"], HELM["apiSecretKeySecretName"], HELM["jwtSecretName"],
             HELM["data"]["metadataSecretName"], HELM["data"]["brokerUrlSecretName"], HELM["pgbouncer"]["configSecretName"],
             HELM["volumes"][0]["secret"]["secretName"], HELM["ingress"]["apiServer"]["hosts"][0]["tls"]["secretName"],
             *(one["secretName"] for one in HELM["secret"]),
             *(one["secretRef"]["name"] for one in yaml.safe_load(HELM["extraEnvFrom"]))}  # fmt: skip
    described = set(re.findall(r"^#   (stageout-[\w-]+) ", text, re.MULTILINE))
    assert named <= described


def test_helm_deploys_what_compose_does() -> None:
    assert HELM["executor"] == ENVIRONMENT["AIRFLOW__CORE__EXECUTOR"] == "CeleryExecutor"
    assert (HELM["scheduler"]["replicas"], HELM["triggerer"]["replicas"]) == (2, 2)
    celery = HELM["workers"]["celery"]
    queues = {celery["queue"]: celery["replicas"]} | {one["queue"]: one["replicas"] for one in celery["sets"]}
    assert queues == {"default": 2, "slow": 1}
    assert not HELM["postgresql"]["enabled"]
    assert not HELM["redis"]["enabled"]
    assert HELM["pgbouncer"]["enabled"]
    assert HELM["migrateDatabaseJob"]["args"][-1] == "airflow db migrate && aso migrate"
    for section, options in HELM["config"].items():
        for key, value in options.items():
            name = f"AIRFLOW__{section.upper()}__{key.upper()}"
            if name in ENVIRONMENT:
                assert ENVIRONMENT[name].lower() == str(value).lower(), name
    told = {
        f"AIRFLOW__{section.upper()}__{key.upper()}"
        for section, keys in HELM["config"].items()
        for key in keys
    }
    ours = {
        name for name in ENVIRONMENT if re.match("AIRFLOW__(CELERY|STAGEOUT|SCHEDULER|DAG_PROCESSOR)", name)
    }
    assert {name for name in ours if "URL" not in name and "BACKEND" not in name} - told == {
        "AIRFLOW__SCHEDULER__ENABLE_HEALTH_CHECK"  # the chart has probes of its own
    }


def test_every_pod_has_its_share() -> None:
    for part in (HELM["apiServer"], HELM["scheduler"], HELM["dagProcessor"], HELM["triggerer"], HELM["statsd"],
                 HELM["pgbouncer"], HELM["migrateDatabaseJob"], HELM["workers"]["celery"]):  # fmt: skip
        assert set(part["resources"]["requests"]) == {"cpu", "memory"}
        assert "memory" in part["resources"]["limits"]


def test_make_alone_explains_itself() -> None:
    said = subprocess.run(["make"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    for target in ("demo", "test", "cluster", "up", "down", "lint", "lock", "clean", "help"):
        assert f"make {target} " in said


def test_ci_runs_the_tests_and_nothing_else() -> None:
    script = PROJECT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert script.read_text().splitlines()[-1] == "exec make test"
