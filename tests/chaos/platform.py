"""The whole embedded platform, with Airflow, as something to be killed in every part."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import psycopg
import requests
from psycopg import Connection

from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.policies import put_policy
from asyncstageout.catalogue.step_runs import Actor
from asyncstageout.catalogue.storages import put_sites
from asyncstageout.cli.load import day_lines, load_requests
from asyncstageout.sandbox import children
from asyncstageout.sandbox.airflow_env import ADMIN, LOGINS_FILE, catalogue_url
from asyncstageout.sandbox.days import Day, write_files
from asyncstageout.sandbox.layout import LOOPBACK, Layout, free_port
from asyncstageout.sandbox.sites.names import site_pfn
from asyncstageout.sandbox.state import ServiceStatus, read_status
from asyncstageout.steps.crashpoints import CONTROL_FILE
from chaos.bed import POLICY, SITES, Load
from chaos.evidence import Findings, Lives, examine, now

LOOK_PAUSE_S = 0.2
UP_TIMEOUT_S = 300.0
END_TIMEOUT_S = 240.0
"""Twice what is promised for one file: then a fault counts as one that was not survived."""
MEDIAN_BYTES = 50_000
SECONDS = ("scheduler", "triggerer")
CELERY_WORKERS = ("worker", "worker2")
TASK_TITLE = "airflow worker -- "
PORTS_OF_SECONDS = (
    "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT",
    "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT",
)


class NotSeen(AssertionError):
    """Something did not happen in time."""

    def __init__(self, what: str, timeout_s: float) -> None:
        super().__init__(f"{what}: not within {timeout_s:.0f} s")


@dataclass
class Platform:
    """One running ``aso up`` of our own."""

    home: Path
    random: random.Random
    files: int
    lives: Lives = field(default_factory=Lives)
    seconds: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _days: int = 0

    @property
    def layout(self) -> Layout:
        return Layout.load(self.home)

    @property
    def control_file(self) -> Path:
        return self.home / "crash"

    def up(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        self.control_file.write_text("")
        self._aso("up")
        layout = self.layout
        sites = Day(site_count=SITES).sites
        with self.connect() as conn:
            put_sites(conn, {site: site_pfn(site, "", layout.ports.sites) for site in sites}, "chaos")
            put_policy(conn, None, None, POLICY, "chaos")
        for site in sites:
            (layout.sites / site).mkdir(exist_ok=True)

    def down(self) -> None:
        for process in self.seconds:
            # Theirs too: tasks leave the process group.
            children.end(children.family(process.pid), signal.SIGTERM, timeout_s=10)
        self._aso("down")

    def _aso(self, command: str) -> None:
        own = {"ASO_HOME": str(self.home), "AIRFLOW_HOME": "", CONTROL_FILE: str(self.control_file)}
        subprocess.run(
            [sys.executable, "-m", "asyncstageout.cli", command],
            env=os.environ | own,
            timeout=UP_TIMEOUT_S,
            check=True,
            stdout=subprocess.DEVNULL,
        )

    def connect(self) -> Connection:
        return connect(catalogue_url(self.layout), "chaos")

    def service(self, name: str) -> ServiceStatus:
        seen = read_status(self.layout.state_file)
        assert seen is not None
        return seen.service(name)

    def process(self, name: str) -> psutil.Process:
        """Return the living process of a service; waits for one that is being started again."""
        found: list[psutil.Process] = []

        def look() -> bool:
            status = self.service(name)
            if process := children.same_process(status.pid, status.created_at_s):
                found.append(process)
            return bool(found)

        self.until(f"{name} runs", look, 60)
        return found[0]

    def until(self, what: str, is_so: Callable[[], object], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                if is_so():
                    return
            except (psycopg.OperationalError, requests.RequestException):
                pass  # Whoever is asked may be what was killed.
            if time.monotonic() > deadline:
                raise NotSeen(what, timeout_s)
            time.sleep(LOOK_PAUSE_S)

    def until_healthy(self) -> None:
        def is_healthy() -> bool:
            seen = read_status(self.layout.state_file)
            return seen is not None and seen.is_healthy

        self.until("the platform is healthy", is_healthy, UP_TIMEOUT_S)

    # --- files ---

    def load(self) -> Load:
        self._days += 1
        label = f"chaos{self._days}"
        day = Day(
            seed=self.random.randrange(1 << 30), file_count=self.files, user_count=6, site_count=SITES,
            median_bytes=MEDIAN_BYTES, label=label, starts_at=datetime.now(UTC).replace(hour=0, minute=0),
        )  # fmt: skip
        manifest = list(day.files())
        write_files(manifest, day.filling, self.layout.sites)
        with self.connect() as conn:
            load_requests(conn, day_lines(manifest), Actor("load", "chaos"))
        return Load(day, manifest)

    def in_flight(self, load: Load) -> int:
        with self.connect() as conn:
            row = conn.execute(
                "SELECT count(*) FROM transfer t JOIN task k ON k.id = t.task_id"
                " WHERE k.name LIKE %s AND t.ended_at IS NULL",
                (load.day.task_pattern,),
            ).fetchone()
        return int(row[0]) if row else 0

    def at_fts(self, load: Load) -> int:
        """Return how many of the files FTS has and has not ended, as far as the catalogue knows."""
        with self.connect() as conn:
            row = conn.execute(
                "SELECT count(*) FROM transfer t JOIN task k ON k.id = t.task_id"
                " WHERE k.name LIKE %s AND t.state = 'SUBMITTED'",
                (load.day.task_pattern,),
            ).fetchone()
        return int(row[0]) if row else 0

    def until_final(self, load: Load) -> Findings:
        problem: tuple[str, ...] = ()
        try:
            self.until("every file is final", lambda: self.in_flight(load) == 0, END_TIMEOUT_S)
        except NotSeen as late:
            problem = (str(late),)
        with self.connect() as conn:
            found = examine(
                conn,
                load.day,
                load.manifest,
                sites=self.layout.sites,
                log=self.layout.fts / "transfers.jsonl",
                lives=self.lives,
            )
        return replace(found, problems=problem + found.problems)

    # --- faults ---

    def arm(self, point: str, visits: int = 1) -> None:
        self.control_file.write_text(f"{point}:{visits}\n")

    def has_fired(self) -> bool:
        return not self.control_file.read_text()

    def kill(self, name: str) -> None:
        """``kill -9`` of a service's process; its supervisor starts it again."""
        self._kill([self.process(name)])

    def kill_postgres(self) -> None:
        self._kill(children.family(self.process("postgres").pid))

    def kill_worker(self) -> None:
        """Kill a process of the LocalExecutor: a worker, or what runs a task for it."""
        victims: list[psutil.Process] = []

        def look() -> bool:
            victims[:] = self.process("scheduler").children(recursive=True)
            return bool(victims)

        self.until("the executor has a worker", look, 60)
        self._kill([self.random.choice(victims)])

    def kill_celery_worker(self) -> None:
        """Kill a worker of the queue that files wait for, while it runs a task; with all that it started."""
        victims: list[psutil.Process] = []

        def look() -> bool:
            names = self.random.sample(CELERY_WORKERS, len(CELERY_WORKERS))
            victims[:] = next((f for f in map(self._celery_family, names) if _runs_a_task(f)), [])
            return bool(victims)

        self.until("a Celery worker runs a task", look, 60)
        self._kill(victims)

    def kill_celery_workers(self) -> None:
        self._kill([one for name in CELERY_WORKERS for one in self._celery_family(name)])

    def _celery_family(self, name: str) -> list[psutil.Process]:
        return children.family(self.process(name).pid)

    def kill_fts(self, *, forget: bool = False) -> None:
        """Kill the FTS; to make it forget, take its memory before the supervisor has it again (0.5 s)."""
        self._kill([self.process("fts")])
        self.lives.deaths.append(now())
        if forget:
            for part in self.layout.fts.glob("fts.sqlite*"):
                part.unlink()
            self.lives.emptied.append(now())
        self.process("fts")
        self.lives.starts.append(now())

    def _kill(self, victims: Sequence[psutil.Process]) -> None:
        for victim in victims:
            children.send(victim, signal.SIGKILL)
        psutil.wait_procs(victims, timeout=10)

    def start_seconds(self) -> None:
        """Start a second scheduler and a second triggerer, with the environment of the first ones."""
        for name in SECONDS:
            environment = self.process(name).environ() | {
                variable: str(free_port()) for variable in PORTS_OF_SECONDS
            }
            with (self.layout.logs / f"second-{name}.log").open("ab") as output:
                self.seconds.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "airflow", name],
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=output,
                        env=environment,
                        start_new_session=True,
                    )
                )

    # --- Airflow's API ---

    def trigger(self, dag_id: str) -> None:
        """Start a run of a DAG now."""
        base = f"http://{LOOPBACK}:{self.layout.ports.api_server}"
        password = json.loads((self.layout.secrets / LOGINS_FILE).read_text())[ADMIN]
        login = {"username": ADMIN, "password": password}
        token = requests.post(f"{base}/auth/token", json=login, timeout=30).json()["access_token"]
        body: dict[str, Any] = {"logical_date": None}
        answer = requests.post(
            f"{base}/api/v2/dags/{dag_id}/dagRuns",
            json=body,
            headers={"Authorization": f"Bearer {token}"},
            timeout=30,
        )
        answer.raise_for_status()


def _runs_a_task(family: Sequence[psutil.Process]) -> bool:
    """Say whether one of the processes runs a task: Airflow names it after what it runs."""
    return any(TASK_TITLE in " ".join(_command(one)) for one in family)


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []
