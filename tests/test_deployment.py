"""The files by which it is deployed: no container engine runs here, so what can be checked is checked."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[1]
COMPOSE = yaml.safe_load((PROJECT / "docker-compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
SANDBOX = ("sandbox-tls", "sites", "fts", "dbs")
AIRFLOW = ("api-server", "scheduler", "dag-processor", "triggerer")


def words(service: dict[str, Any]) -> str:
    command = service.get("command", "")
    return command if isinstance(command, str) else " ".join(command)


def test_the_services_are_those_of_the_embedded_platform() -> None:
    assert set(SERVICES) == {"postgres", "airflow-init", *AIRFLOW, *SANDBOX}
    assert {name for name in SERVICES if SERVICES[name].get("profiles")} == set(SANDBOX)
    assert all(SERVICES[name]["command"] == name for name in AIRFLOW)


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
    [script] = re.findall(r"python -c '(.*?)'", words(SERVICES["sandbox-tls"]), re.DOTALL)
    compile("\n".join(line.strip() for line in script.splitlines()), "sandbox-tls", "exec")


def test_every_volume_and_config_that_is_used_is_declared() -> None:
    for service in SERVICES.values():
        assert {volume.split(":")[0] for volume in service.get("volumes", [])} <= set(COMPOSE["volumes"])
        assert {config["source"] for config in service.get("configs", [])} <= set(COMPOSE["configs"])


def test_secrets_come_from_the_environment_and_have_no_default() -> None:
    text = (PROJECT / "docker-compose.yaml").read_text()
    example = (PROJECT / ".env.example").read_text()
    required = set(re.findall(r"\$\{(\w+):\?", text))
    assert required == set(re.findall(r"^(\w+)=$", example, re.MULTILINE))
    assert set(re.findall(r"\$\{(\w+)", text)) - required == {
        "AIRFLOW_CONN_DBS_DEFAULT",
        "AIRFLOW_CONN_FTS3_DEFAULT",
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
    [image] = re.findall(r"^FROM apache/airflow:(\S+)$", (PROJECT / "Dockerfile").read_text(), re.MULTILINE)
    assert f"apache-airflow=={image}\n" in (PROJECT / "requirements.txt").read_text()


def test_what_the_image_copies_exists_and_reaches_the_builder() -> None:
    copied = re.findall(r"^COPY --chown=\S+ (.+) \S+$", (PROJECT / "Dockerfile").read_text(), re.MULTILINE)
    sources = {source for line in copied for source in line.split()}
    allowed = {
        line[1:] for line in (PROJECT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    assert sources == allowed
    assert all((PROJECT / source).exists() for source in sources)


def test_make_alone_explains_itself() -> None:
    said = subprocess.run(["make"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    for target in ("demo", "test", "up", "down", "lint", "lock", "clean", "help"):
        assert f"make {target} " in said


def test_ci_runs_the_tests_and_nothing_else() -> None:
    script = PROJECT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert script.read_text().splitlines()[-1] == "exec make test"
