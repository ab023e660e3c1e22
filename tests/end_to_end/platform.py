"""A running platform, as tests of this folder use it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import requests
from psycopg import Connection

from asyncstageout.catalogue.connection import connect
from asyncstageout.sandbox.airflow_env import catalogue_url
from asyncstageout.sandbox.layout import Layout

Seen = TypeVar("Seen")


@dataclass
class Platform:
    """A running platform of these tests alone."""

    home: Path
    outputs: dict[str, subprocess.CompletedProcess[str]] = field(default_factory=dict)

    @property
    def layout(self) -> Layout:
        return Layout.load(self.home)

    def aso(self, *arguments: str, timeout_s: float = 400) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "asyncstageout.cli", *arguments],
            env=os.environ | {"ASO_HOME": str(self.home), "AIRFLOW_HOME": "", "COLUMNS": "120"},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def connect(self) -> Connection:
        return connect(catalogue_url(self.layout))

    def api(self, method: str, path: str, body: Any = None) -> Any:
        """Ask Airflow's API; return its JSON, None if there is none."""
        base = f"http://127.0.0.1:{self.layout.ports.api_server}"
        logins = json.loads((self.home / "secrets" / "airflow-logins.json").read_text())
        token = requests.post(
            f"{base}/auth/token", json={"username": "admin", "password": logins["admin"]}, timeout=30
        ).json()["access_token"]
        answer = requests.request(
            method,
            f"{base}/api/v2{path}",
            json=body,
            headers={"Authorization": f"Bearer {token}"},
            timeout=30,
        )
        assert answer.ok, answer.text
        return answer.json() if answer.content else None

    def runs(self, dag_id: str) -> list[dict[str, Any]]:
        """Return the latest runs, also those that are not over."""
        return list(self.api("GET", f"/dags/{dag_id}/dagRuns?limit=100&order_by=-start_date")["dag_runs"])


def until(look: Callable[[], Seen | None], *, within_s: float, what: str) -> Seen:
    """Look again and again; return what is seen as soon as there is anything."""
    deadline = time.monotonic() + within_s
    while (seen := look()) is None:
        assert time.monotonic() < deadline, f"{what}: not within {within_s:g} s"
        time.sleep(0.5)
    return seen
