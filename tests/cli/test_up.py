"""``aso up``, ``down`` and ``status``: what they say, and what they advise when something is wrong."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from asyncstageout.cli import Advice, app, up
from asyncstageout.sandbox.airflow_env import LOGINS_FILE
from asyncstageout.sandbox.layout import Layout, write_private
from asyncstageout.sandbox.state import (
    Phase,
    PlatformStatus,
    ServiceState,
    ServiceStatus,
    sole_supervisor,
    write_status,
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    monkeypatch.setenv("ASO_HOME", str(tmp_path / "home"))
    layout = Layout.load()
    layout.prepare()
    write_private(layout.secrets / LOGINS_FILE, json.dumps({"admin": "secret-word"}))
    return layout


@pytest.fixture
def running(home: Layout) -> Iterator[PlatformStatus]:
    """A platform that runs: a lock that is held, and what its supervisor wrote."""
    log = home.logs / "fts.log"
    service = ServiceStatus(
        name="fts", log=log, port=8446, state=ServiceState.READY, pid=os.getpid(), ready_at=datetime.now(UTC)
    )
    status = PlatformStatus(
        phase=Phase.RUNNING, pid=os.getpid(), started_at=datetime.now(UTC), services=[service]
    )
    write_status(home.state_file, status)
    with sole_supervisor(home.lock_file):
        yield status


def run(*arguments: str) -> tuple[int, str, BaseException | None]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout, result.exception


def test_status_says_that_nothing_runs(home: Layout) -> None:
    _, _, error = run("status")
    assert isinstance(error, Advice)
    assert "aso up" in error.remedy


def test_status_of_a_healthy_platform_is_0(home: Layout, running: PlatformStatus) -> None:
    code, said, _ = run("status", "--json")
    assert code == 0
    [service] = json.loads(said)["services"]
    assert (service["name"], service["state"], service["port"]) == ("fts", "ready", 8446)
    assert service["memory_bytes"] > 0


def test_status_is_1_when_one_service_is_not_healthy(home: Layout, running: PlatformStatus) -> None:
    running.services[0].state = ServiceState.RESTARTING
    write_status(home.state_file, running)
    code, said, _ = run("status", "--json")
    assert code == 1
    assert json.loads(said)["healthy"] is False


def test_a_second_up_says_that_it_runs_and_where(
    home: Layout, running: PlatformStatus, capsys: pytest.CaptureFixture[str]
) -> None:
    up.up(wait=True)
    said = capsys.readouterr().out
    assert "runs already" in " ".join(said.split())  # long paths wrap
    assert "http://127.0.0.1:8080" in said
    assert "aso down" in said


def test_the_password_is_not_printed_into_a_pipe(
    home: Layout, running: PlatformStatus, capsys: pytest.CaptureFixture[str]
) -> None:
    up.show_entrance(home)
    said = capsys.readouterr().out
    assert "secret-word" not in said
    assert LOGINS_FILE in said


def test_a_full_disk_is_a_sentence(home: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5_000_000))
    with pytest.raises(Advice, match="Only 5 MB are free"):
        up.start(home)


def test_a_supervisor_that_does_not_start_shows_its_log(
    home: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = home.run / "python"
    broken.write_text("#!/bin/sh\necho certificates cannot be made >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    with pytest.raises(Advice, match="certificates cannot be made"):
        up.start(home)


def test_a_service_that_does_not_get_up_is_named_with_its_log(home: Layout, running: PlatformStatus) -> None:
    running.phase, running.problem = (
        Phase.FAILED,
        "fts ended with code 1. The end of fts.log:\nport 8446 taken",
    )
    write_status(home.state_file, running)
    with pytest.raises(Advice, match="port 8446 taken"):
        up.follow(home)


def test_a_supervisor_that_vanishes_during_the_start_is_noticed(home: Layout) -> None:
    with pytest.raises(Advice, match="ended while"):
        up.follow(home)


def test_down_when_nothing_runs_is_fine(home: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    up.down(wipe=False)
    assert "Nothing runs" in capsys.readouterr().out


def test_wiping_spares_what_is_not_ours(home: Layout) -> None:
    (home.home / "thesis.tex").write_text("precious")
    (home.logs / "fts.log").write_text("x")
    up.down(wipe=True)
    assert [path.name for path in home.home.iterdir()] == ["thesis.tex"]
