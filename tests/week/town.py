"""What stands around the house: its Postgres, and the servers that may be killed and started again."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import requests

from asyncstageout.catalogue.migrate import upgrade
from asyncstageout.clients.http import Access, new_session
from asyncstageout.sandbox import children
from asyncstageout.sandbox.faults import FaultPlan
from asyncstageout.sandbox.layout import free_port
from asyncstageout.sandbox.postgres import EmbeddedPostgres, create_database
from asyncstageout.sandbox.sites.names import site_host
from asyncstageout.sandbox.state import tail
from asyncstageout.sandbox.tls import SandboxTLS, sandbox_tls
from week.clock import prepare_catalogue
from week.hands import Hands
from week.servers import FTS_FAULTS, SITES

TESTS = Path(__file__).parents[1]
DEADLINE_S = 300.0
LOOK_PAUSE_S = 0.1


class Stuck(AssertionError):
    """Something did not happen that does not depend on the week's clock."""


@dataclass
class Served:
    """One server's process."""

    name: str
    port: int
    command: list[str]
    log: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def is_up(self) -> bool:
        return self.process is not None

    def start(self) -> None:
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=TESTS,
                preexec_fn=children.die_with_parent(signal.SIGKILL),  # noqa: PLW1509 -- loads nothing
            )

    def kill(self) -> None:
        """``kill -9``."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@dataclass
class Town:
    """All of it."""

    folder: Path
    tls: SandboxTLS
    catalogue: str
    """URL."""
    hands: Hands
    servers: dict[str, Served]
    session: requests.Session = field(init=False)

    def __post_init__(self) -> None:
        self.session = self.new_session()

    @property
    def sites_root(self) -> Path:
        return self.folder / SITES

    @property
    def control_file(self) -> Path:
        return self.folder / "crash"

    def port(self, name: str) -> int:
        return self.servers[name].port

    def url(self, name: str) -> str:
        scheme = "http" if name == "hook" else "https"
        return f"{scheme}://127.0.0.1:{self.port(name)}"

    def new_session(self, pool_size: int = 16) -> requests.Session:
        """Return the service's session to the servers, by their ports or the sites' names."""
        pair = self.tls.client
        hosts = (folder.name for folder in self.sites_root.iterdir())
        access = Access(
            ca=str(self.tls.ca),
            cert_file=str(pair.cert),
            key_file=str(pair.key),
            connect_to={site_host(name): f"127.0.0.1:{self.port('sites')}" for name in hosts},
        )
        return new_session(access, pool_size=pool_size)

    def start(self, name: str) -> None:
        """Start a server; returns when it answers."""
        self.servers[name].start()
        path = {"fts": "/sandbox/stats", "dbs": "/sandbox/stats", "sites": "/.well-known/ready", "hook": "/"}

        def answers() -> bool:
            try:
                return self.session.get(self.url(name) + path[name], timeout=5).status_code < 500
            except requests.ConnectionError:
                process = self.servers[name].process
                if process is None or process.poll() is not None:
                    raise Stuck(f"{name} does not start: {tail(self.servers[name].log)}") from None
                return False

        until(f"{name} answers", answers)

    def kill(self, name: str) -> None:
        self.servers[name].kill()

    def break_site(self, site: str | None) -> None:
        """Let a site answer nothing but 503; None: all are well."""
        rules = [{"site": site, "status": 503}] if site else []
        answer = self.session.put(f"{self.url('sites')}/sandbox/faults", json={"sites": rules}, timeout=20)
        answer.raise_for_status()

    def rest_fts(self) -> None:
        """Wait until FTS has nothing to do any more, as far as it can without the clock going on."""
        if not self.servers["fts"].is_up:
            return

        def is_idle() -> bool:
            files = self.session.get(f"{self.url('fts')}/sandbox/stats", timeout=60).json()["files"]
            return not (files["queued"] or files["running"])

        until("FTS has done its work", is_idle)

    def close(self) -> None:
        for one in self.servers.values():
            one.kill()
        self.session.close()


def until(what: str, is_so: Callable[[], object]) -> None:
    """Wait, by the world's clock, until something is so.

    Raises:
        Stuck: it did not become so.
    """
    ends_at_s = time.monotonic() + DEADLINE_S
    while not is_so():
        if time.monotonic() > ends_at_s:
            raise Stuck(f"{what}: not within {DEADLINE_S:.0f} s")
        time.sleep(LOOK_PAUSE_S)


@contextmanager
def town(sites: list[str], faults: FaultPlan) -> Iterator[Town]:
    """Start everything; ends and deletes it after the block."""
    # Not below pytest's own folder: it is closed to the user that Postgres runs as under root.
    folder = Path(tempfile.mkdtemp(prefix="aso-week-"))
    folder.chmod(0o711)
    for site in sites:
        (folder / SITES / site).mkdir(parents=True)
    (folder / FTS_FAULTS).write_text(faults.model_dump_json())
    (folder / "crash").write_text("")
    tls, hands = sandbox_tls(folder / "tls"), Hands(folder / "clock")
    postgres = EmbeddedPostgres(folder / "postgres", free_port(), secrets_dir=folder, durable=False)
    made: Town | None = None
    try:
        postgres.start(log=folder / "postgres.log")
        catalogue = create_database(postgres.admin_url, "stageout")
        prepare_catalogue(catalogue)
        upgrade(catalogue)
        made = Town(folder, tls, catalogue, hands, _servers(folder))
        for name in made.servers:
            made.start(name)
        yield made
    finally:
        if made is not None:
            made.close()
        postgres.stop()
        postgres.delete()
        shutil.rmtree(folder, ignore_errors=True)


def _servers(folder: Path) -> dict[str, Served]:
    ports = {name: free_port() for name in ("sites", "fts", "dbs", "hook")}
    return {
        name: Served(
            name,
            port,
            [
                *(sys.executable, "-m", "week.servers", name, "--folder", str(folder)),
                *("--port", str(port), "--sites-port", str(ports["sites"])),
            ],
            folder / f"{name}.log",
        )
        for name, port in ports.items()
    }
