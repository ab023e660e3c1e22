"""The steps in processes of their own, around a Postgres, an FTS and sites that can be killed. No Airflow."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import psycopg
from psycopg import Connection

from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.migrate import upgrade
from asyncstageout.catalogue.partitions import ensure_partitions
from asyncstageout.catalogue.policies import put_policy
from asyncstageout.catalogue.step_runs import Actor
from asyncstageout.catalogue.storages import put_sites
from asyncstageout.cli.load import day_lines, load_requests
from asyncstageout.sandbox import children
from asyncstageout.sandbox.days import Day, DayFile, write_files
from asyncstageout.sandbox.layout import free_port
from asyncstageout.sandbox.postgres import EmbeddedPostgres, create_database
from asyncstageout.sandbox.sites.names import site_pfn
from asyncstageout.sandbox.state import tail
from asyncstageout.sandbox.tls import SandboxTLS, sandbox_tls
from asyncstageout.steps.crashpoints import CONTROL_FILE
from chaos.evidence import Findings, Lives, examine, now
from chaos.proxy import Proxy, proxies

TESTS = Path(__file__).parents[1]
SITES = 6
POLICY = {"retry_scale": 0.01, "max_attempts": 50, "breaker_attempts": 0}
"""Every file can arrive, so every file must: what fails here passes. A breaker would hold files on purpose."""
DEADLINE_S = 100.0
LOOK_PAUSE_S = 0.02
ZONES = ("UTC", "Asia/Kolkata", "America/St_Johns", "Pacific/Chatham")
"""Each worker lives in another one."""


class Late(AssertionError):
    """Something did not become true in time."""

    def __init__(self, what: str, seen: object) -> None:
        super().__init__(f"{what} did not come within {DEADLINE_S:.0f} s: {seen}")


def _python_path() -> str:
    return os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])


class Kept:
    """A process that is started again whenever it dies, as a supervisor does."""

    def __init__(self, command: Sequence[str], log: Path, **environment: str) -> None:
        self._command = command
        self._log = log
        self._environment = os.environ | {"PYTHONPATH": _python_path()} | environment
        self._process: subprocess.Popen[bytes] | None = None
        self._is_wanted = False
        self._keeper: threading.Thread | None = None
        self.deaths = 0

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, *extra: str) -> None:
        self._is_wanted = True
        self._spawn(*extra)

    def keep(self) -> None:
        """Start, and from now on start again at once."""
        self.start()
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    def kill(self) -> None:
        """``kill -9``; returns when it is dead."""
        assert self._process is not None
        process = self._process
        process.kill()
        process.wait()

    def stop(self) -> None:
        self._is_wanted = False
        if self._process is not None:
            self.kill()
        if self._keeper is not None:
            self._keeper.join()
            self.kill()

    def _keep(self) -> None:
        while self._is_wanted:
            assert self._process is not None
            self._process.wait()
            self.deaths += 1
            if self._is_wanted:
                self._spawn()

    def _spawn(self, *extra: str) -> None:
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, *self._command, *extra],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environment,
            )


@dataclass
class Load:
    """A day's files that are on their way."""

    day: Day
    manifest: list[DayFile]


@dataclass
class Bed:
    """Everything that a fault may hit, and how to look at what became of the files."""

    folder: Path
    postgres: EmbeddedPostgres
    catalogue: str
    """Its URL, not through the proxy."""
    fts: Kept
    fts_port: int
    sites: Kept
    workers: dict[str, Kept]
    postgres_line: Proxy
    fts_line: Proxy
    random: random.Random
    lives: Lives = field(default_factory=Lives)
    _days: int = 0

    @property
    def sites_root(self) -> Path:
        return self.folder / "sites"

    @property
    def control_file(self) -> Path:
        return self.folder / "crash"

    def connect(self) -> Connection:
        return connect(self.catalogue, "chaos")

    def load(self, files: int = 40) -> Load:
        """Leave a day's files at their sources, and ask for their transfer."""
        self._days += 1
        day = Day(
            seed=self.random.randrange(1 << 30), file_count=files, user_count=4, site_count=SITES,
            median_bytes=20_000, label=f"chaos{self._days}",
        )  # fmt: skip
        manifest = list(day.files())
        write_files(manifest, day.filling, self.sites_root)
        with self.connect() as conn:
            load_requests(conn, day_lines(manifest), Actor("load", "chaos"))
        return Load(day, manifest)

    def in_flight(self, load: Load, *states: str) -> int:
        """Return how many files of a day are in one of the states (default: anywhere but at an end)."""
        wanted = states or ("NEW", "ACQUIRED", "SUBMITTED", "RETRY")
        with self.connect() as conn:
            row = conn.execute(
                "SELECT count(*) FROM transfer t JOIN task k ON k.id = t.task_id"
                " WHERE k.name LIKE %s AND t.state::text = ANY(%s)",
                (load.day.task_pattern, list(wanted)),
            ).fetchone()
        return int(row[0]) if row else 0

    def until(self, what: str, is_so: Callable[[], object], deadline_s: float = DEADLINE_S) -> None:
        """Wait until something is so. A Postgres that is down has nothing to say yet."""
        deadline = time.monotonic() + deadline_s
        seen: object = None
        while True:
            try:
                if seen := is_so():
                    return
            except psycopg.OperationalError as error:
                seen = error
            if time.monotonic() > deadline:
                raise Late(what, seen)
            time.sleep(LOOK_PAUSE_S)

    def until_moving(self, load: Load) -> int:
        """Wait until FTS has some of the files, and return how many are on their way."""
        self.until("a file at FTS", lambda: self.in_flight(load, "SUBMITTED"))
        return self.in_flight(load)

    def until_final(self, load: Load) -> Findings:
        """Wait for every file's end and look at the evidence."""
        self.until("the end of all files", lambda: self.in_flight(load) == 0)
        with self.connect() as conn:
            return examine(
                conn,
                load.day,
                load.manifest,
                sites=self.sites_root,
                log=self.folder / "fts" / "transfers.jsonl",
                lives=self.lives,
            )

    def arm(self, point: str, visits: int = 1) -> None:
        self.control_file.write_text(f"{point}:{visits}\n")

    def has_fired(self) -> bool:
        return not self.control_file.read_text()

    def kill_fts(self, *, forget: bool = False) -> None:
        """Kill the FTS and start it again, with its memory or without."""
        self.fts.kill()
        self.lives.deaths.append(now())
        self.lives.starts.append(now())
        if forget:
            self.lives.emptied.append(now())
        self.fts.start(*(["--start-empty"] if forget else []))

    def kill_postgres(self) -> None:
        """Kill the server with all its backends, and start it again."""
        pid = self.postgres.pid()
        assert pid is not None
        for process in children.family(pid):
            children.send(process, signal.SIGKILL)
        self.postgres.stop()
        self.postgres.start(log=self.folder / "postgres.log")

    def kill_backend(self) -> None:
        """Kill one backend of a worker: Postgres throws everybody out and recovers."""
        with self.connect() as conn:
            rows = conn.execute(
                "SELECT pid FROM pg_stat_activity WHERE application_name = ANY(%s)", (list(self.workers),)
            ).fetchall()
        (pid,) = self.random.choice(rows)
        children.send(psutil.Process(pid), signal.SIGKILL)

    def kill_worker(self) -> None:
        self.random.choice(list(self.workers.values())).kill()


@contextmanager
def bed(seed: int) -> Iterator[Bed]:
    """Start everything; ends and deletes it after the block."""
    # Not below pytest's own folder: it is closed to the user that Postgres runs as under root.
    folder = Path(tempfile.mkdtemp(prefix="aso-chaos-"))
    folder.chmod(0o711)
    tls = sandbox_tls(folder / "tls")
    postgres = EmbeddedPostgres(folder / "postgres", free_port(), secrets_dir=folder)
    fts_port, sites_port = free_port(), free_port()
    for name in ("fts", "sites"):
        (folder / name).mkdir()
    kept: list[Kept] = []
    try:
        postgres.start(log=folder / "postgres.log")
        catalogue = create_database(postgres.admin_url, "stageout")
        upgrade(catalogue)
        _configure(catalogue, folder)
        with proxies(postgres.port, fts_port) as (postgres_line, fts_line):
            fts, sites = _fts(folder, tls, fts_port, sites_port), _sites(folder, tls, sites_port)
            kept += [fts, sites]
            made = Bed(
                folder, postgres, catalogue, fts, fts_port, sites,
                _workers(folder, tls, catalogue, (postgres_line, fts_line), {"cycles": 4, "sense": 2, "reconcile": 2}),
                postgres_line, fts_line, random.Random(seed),
            )  # fmt: skip
            made.control_file.write_text("")
            fts.start()
            sites.start()
            kept += made.workers.values()
            for worker in made.workers.values():
                worker.keep()
            yield made
    except BaseException:
        _tell(folder)
        raise
    finally:
        for process in reversed(kept):
            process.stop()
        postgres.stop()
        postgres.delete()
        shutil.rmtree(folder, ignore_errors=True)


def _tell(folder: Path) -> None:
    """Show what the processes said, before it is deleted."""
    for log in sorted(folder.glob("*.log")):
        sys.stderr.write(f"== {log.name}\n{tail(log)}\n")


def _configure(catalogue: str, folder: Path) -> None:
    with connect(catalogue) as conn:
        day = Day(site_count=SITES)
        put_sites(conn, {site: site_pfn(site, "") for site in day.sites}, "chaos")
        put_policy(conn, None, None, POLICY, "chaos")
        ensure_partitions(conn, now().date())
    for site in day.sites:
        (folder / "sites" / site).mkdir()


def _fts(folder: Path, tls: SandboxTLS, port: int, sites_port: int) -> Kept:
    command = [
        "-m", "asyncstageout.sandbox.fts", "--port", str(port), "--state", str(folder / "fts"),
        "--cert", str(tls.server.cert), "--key", str(tls.server.key), "--ca", str(tls.ca),
        "--connect-to", f"127.0.0.1:{sites_port}",
        # Slow enough that a fault finds files on their way.
        "--workers", "2",
    ]  # fmt: skip
    return Kept(command, folder / "fts.log")


def _sites(folder: Path, tls: SandboxTLS, port: int) -> Kept:
    command = [
        "-m", "asyncstageout.sandbox.sites", "--root", str(folder / "sites"), "--port", str(port),
        "--cert", str(tls.server.cert), "--key", str(tls.server.key),
    ]  # fmt: skip
    return Kept(command, folder / "sites.log")


def _workers(
    folder: Path,
    tls: SandboxTLS,
    catalogue: str,
    lines: tuple[Proxy, Proxy],
    counts: dict[str, int],
) -> dict[str, Kept]:
    made = {}
    postgres_line, fts_line = lines
    address = f":{postgres_line.target_port}/"
    names = [(work, f"{work}{number}") for work, count in counts.items() for number in range(count)]
    for position, (work, name) in enumerate(names):
        command = [
            "-m", "chaos.worker", work, "--name", name,
            "--catalogue", catalogue.replace(address, f":{postgres_line.port}/"),
            "--fts", f"https://127.0.0.1:{fts_line.port}",
            "--ca", str(tls.ca), "--cert", str(tls.client.cert), "--key", str(tls.client.key),
        ]  # fmt: skip
        environment = {"TZ": ZONES[position % len(ZONES)], CONTROL_FILE: str(folder / "crash")}
        made[name] = Kept(command, folder / f"{name}.log", **environment)
    return made
