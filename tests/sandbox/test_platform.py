"""The layout, the Airflow environment and the table of services of the embedded platform."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from asyncstageout.sandbox import airflow_env, layout, services
from asyncstageout.sandbox.layout import LOOPBACK, Layout, Ports, write_private
from asyncstageout.sandbox.tls import SandboxTLS, sandbox_tls


@pytest.fixture
def home(tmp_path: Path) -> Layout:
    found = Layout(tmp_path / "home", tmp_path / "project")
    found.prepare()
    return found


@pytest.fixture
def tls(home: Layout) -> SandboxTLS:
    return sandbox_tls(home.tls)


def environment_of(home: Layout, tls: SandboxTLS) -> dict[str, str]:
    known = airflow_env.load_secrets(home, airflow_db_password="aa", stageout_db_password="bb")
    return airflow_env.airflow_environment(home, known, tls)


def test_a_taken_port_is_replaced_and_remembered(
    home: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as squatter:
        squatter.bind((LOOPBACK, 0))
        squatter.listen()
        taken: int = squatter.getsockname()[1]
        write_private(home.ports_file, json.dumps(asdict(Ports(api_server=taken)) | {"gone_since": 1}))
        monkeypatch.setenv("ASO_HOME", str(home.home))
        with Layout.load().with_claimed_ports() as chosen:
            assert chosen.ports.api_server != taken
    assert Layout.load().ports == chosen.ports


@pytest.mark.skipif(sys.platform != "linux", reason="claims are sockets in Linux's abstract namespace")
def test_two_platforms_never_choose_the_same_port(home: Layout, tmp_path: Path) -> None:
    port = layout.free_port()
    wishes = Ports(api_server=port, postgres=port, sites=port)
    other = Layout(tmp_path / "other", tmp_path, wishes)
    other.prepare()
    with replace(home, ports=wishes).with_claimed_ports() as one, other.with_claimed_ports() as two:
        ports = [*asdict(one.ports).values(), *asdict(two.ports).values()]
    assert one.ports.api_server == port
    assert len(set(ports)) == len(ports)
    with other.with_claimed_ports() as again:
        assert again.ports.api_server == port


def test_only_the_home_itself_is_readable(home: Layout) -> None:
    assert {folder.stat().st_mode & 0o777 for folder in home.folders} == {0o700}
    write_private(home.secrets / "one", "x")
    assert (home.secrets / "one").stat().st_mode & 0o777 == 0o600


def test_secrets_are_made_once(home: Layout, tls: SandboxTLS) -> None:
    first = environment_of(home, tls)
    assert environment_of(home, tls) == first
    logins = home.secrets / airflow_env.LOGINS_FILE
    assert logins.stat().st_mode & 0o777 == 0o600
    assert set(json.loads(logins.read_text())) == {"admin", "op", "viewer"}


def test_urls_follow_the_ports(home: Layout, tls: SandboxTLS) -> None:
    moved = Layout(
        home.home, home.project, Ports(api_server=1111, postgres=2222, fts=3333, fts_monitor=4444, dbs=5555)
    )
    environment = environment_of(moved, tls)
    assert environment["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] == "http://127.0.0.1:1111/execution/"
    assert environment["AIRFLOW__API__PORT"] == "1111"
    assert "@127.0.0.1:2222/airflow" in environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"]
    assert json.loads(environment["AIRFLOW_CONN_STAGEOUT_DB"])["port"] == 2222
    storages = json.loads(environment["AIRFLOW_CONN_STAGEOUT_STORAGE"])
    assert storages["extra"]["connect_to"] == {"*.sandbox.test": f"127.0.0.1:{moved.ports.sites}"}
    fts = json.loads(environment["AIRFLOW_CONN_FTS3_DEFAULT"])
    assert (fts["port"], fts["extra"]["monitor_url"]) == (3333, "http://127.0.0.1:4444/fts3/ftsmon")
    dbs = json.loads(environment["AIRFLOW_CONN_DBS_DEFAULT"])
    assert (dbs["conn_type"], dbs["port"]) == ("dbs", 5555)
    assert fts["extra"]["ca_file"] == dbs["extra"]["ca_file"] == str(tls.ca)
    assert all(isinstance(value, str) for value in environment.values())


def test_airflow_knows_every_setting(home: Layout, tls: SandboxTLS) -> None:
    known = {
        f"AIRFLOW__{section.upper()}__{option.upper()}"
        for section, options in airflow_options().items()
        for option in options
    }
    ours = {name for name in environment_of(home, tls) if re.match("AIRFLOW__", name)}
    assert ours - known == set()


def airflow_options() -> dict[str, list[str]]:
    """Ask a process of its own: importing Airflow here would configure it for all other tests."""
    script = (
        "import json, yaml, importlib.util as u, pathlib as p;"
        "f = p.Path(u.find_spec('airflow').submodule_search_locations[0], 'config_templates/config.yml');"
        "y = yaml.safe_load(f.read_text());"
        "print(json.dumps({s: list(y[s]['options']) for s in y}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    options: dict[str, list[str]] = json.loads(done.stdout)
    return options


def test_nothing_of_another_airflow_or_python_is_inherited() -> None:
    caller = {
        "PATH": "/bin",
        "AIRFLOW_HOME": "/other",
        "AIRFLOW__CORE__X": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    assert airflow_env.inherited_environment(caller) == {"PATH": "/bin"}


def test_the_local_settings_are_a_module_that_exports_nothing(home: Layout) -> None:
    airflow_env.write_local_settings(home)
    names: dict[str, object] = {}
    exec((home.airflow / "config" / "airflow_local_settings.py").read_text(), names)
    assert names["__all__"] == []


def test_the_catalogue_url_is_the_configured_one_or_the_embedded(
    home: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ASO_CATALOGUE_URL", raising=False)
    with pytest.raises(FileNotFoundError):
        airflow_env.catalogue_url(home)
    write_private(home.secrets / "postgres-stageout", "pw")
    assert airflow_env.catalogue_url(home) == "postgresql://stageout:pw@127.0.0.1:15432/stageout"
    monkeypatch.setenv("ASO_CATALOGUE_URL", "postgresql://elsewhere/stageout")
    assert airflow_env.catalogue_url(home) == "postgresql://elsewhere/stageout"


def test_every_service_needs_only_services_before_it(home: Layout) -> None:
    table = services.platform_services(home)
    before: set[str] = set()
    for service in table:
        assert set(service.needs) <= before, service.name
        before.add(service.name)
    assert len(before) == len(table)


def test_the_scheduler_waits_for_everything_a_task_needs(home: Layout) -> None:
    needs = {service.name: service.needs for service in services.platform_services(home)}
    assert set(needs["scheduler"]) == {"api-server", "catalogue-migrate", "sites", "fts", "dbs"}


def test_no_secret_is_on_a_command_line(home: Layout) -> None:
    secrets = [path.read_text() for path in home.secrets.iterdir()]
    for service in services.platform_services(home):
        assert not any(secret in " ".join(service.command) for secret in secrets)


def test_it_uses_its_own_python_environment(home: Layout) -> None:
    api_server = next(s for s in services.platform_services(home) if s.name == "api-server")
    assert api_server.command[:3] == (sys.executable, "-m", "airflow")
    assert api_server.environment["AIRFLOW_HOME"] == str(home.airflow)
    assert os.environ["PATH"] == api_server.environment["PATH"]
