"""Where everything of the embedded platform lives, and on which ports it listens."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Ports:
    """One TCP port per listener, all on loopback. The defaults are tried first."""

    api_server: int = 8080
    postgres: int = 15432
    sites: int = 8443
    fts: int = 8446
    fts_monitor: int = 8449
    fts2: int = 8456
    fts2_monitor: int = 8459
    dbs: int = 8447
    worker_logs: int = 8793
    trigger_logs: int = 8794
    # Only with Celery.
    redis: int = 16379
    pgbouncer: int = 16543
    worker2_logs: int = 8795
    worker_slow_logs: int = 8796
    trigger2_logs: int = 8797


@dataclass(frozen=True)
class Layout:
    """The folders of one platform. ``home`` is readable; what is secret lies in folders of mode 0700."""

    home: Path
    project: Path
    ports: Ports = Ports()

    @classmethod
    def load(cls, home: Path | None = None) -> Layout:
        """Return the layout of ``home``, else ``ASO_HOME``, else ``<project>/.aso``, with its last ports."""
        project = project_root()
        chosen = (home or Path(os.environ.get("ASO_HOME") or project / ".aso")).expanduser().absolute()
        layout = cls(chosen, project)
        return replace(layout, ports=_remembered_ports(layout.ports_file))

    @property
    def postgres(self) -> Path:
        return self.home / "postgres"

    @property
    def airflow(self) -> Path:
        return self.home / "airflow"

    @property
    def sites(self) -> Path:
        return self.home / "sites"

    @property
    def fts(self) -> Path:
        return self.home / "fts"

    @property
    def fts2(self) -> Path:
        return self.home / "fts2"

    @property
    def dbs(self) -> Path:
        return self.home / "dbs"

    @property
    def siteconf(self) -> Path:
        """Descriptions of the sites' storages, as sites publish them."""
        return self.home / "siteconf"

    @property
    def credentials(self) -> Path:
        """Users' proxies."""
        return self.home / "credentials"

    @property
    def tls(self) -> Path:
        return self.home / "tls"

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    @property
    def run(self) -> Path:
        return self.home / "run"

    @property
    def secrets(self) -> Path:
        return self.home / "secrets"

    @property
    def folders(self) -> tuple[Path, ...]:
        """All folders but that of Postgres, which has an owner of its own."""
        return (
            self.airflow, self.sites, self.siteconf, self.fts, self.fts2, self.dbs, self.tls,
            self.credentials, self.logs, self.run, self.secrets,
        )  # fmt: skip

    @property
    def ports_file(self) -> Path:
        return self.run / "ports.json"

    @property
    def state_file(self) -> Path:
        return self.run / "state.json"

    @property
    def lock_file(self) -> Path:
        return self.run / "lock"

    def prepare(self) -> None:
        """Create the folders."""
        # Readable: an embedded Postgres started by root runs as another user below it.
        self.home.mkdir(parents=True, exist_ok=True, mode=0o755)
        for folder in self.folders:
            folder.mkdir(exist_ok=True, mode=0o700)

    @contextmanager
    def with_claimed_ports(self) -> Iterator[Layout]:
        """Choose ports that nobody uses or has claimed, hold them, and remember them for later loads."""
        with ExitStack() as claims:
            chosen: dict[str, int] = {}
            for name, wanted in asdict(self.ports).items():
                chosen[name] = next(port for port in _candidates(wanted) if _is_ours(port, claims))
            write_private(self.ports_file, json.dumps(chosen))
            yield replace(self, ports=Ports(**chosen))


def project_root() -> Path:
    """Return the folder that holds ``dags/`` and ``plugins/``: this checkout, else the working directory."""
    if configured := os.environ.get("ASO_PROJECT"):
        return Path(configured).absolute()
    checkout = Path(__file__).resolve().parents[3]
    return checkout if (checkout / "dags").is_dir() else Path.cwd()


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As the servers do it: without this, a port in TIME_WAIT after a restart would count as taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """Return a port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
    return port


def _candidates(wanted: int) -> Iterator[int]:
    yield wanted
    while True:
        yield free_port()


def _is_ours(port: int, claims: ExitStack) -> bool:
    """Claim a free port for as long as ``claims`` is open.

    A server listens seconds after its port was chosen; another platform that starts meanwhile must not choose
    it too. The claim is a socket in Linux's abstract namespace: the kernel drops it with its owner.
    """
    if not is_free(port):
        return False
    if sys.platform == "linux":
        claim = claims.enter_context(socket.socket(socket.AF_UNIX))
        try:
            claim.bind(f"\0asyncstageout-port-{port}")
        except OSError:
            return False
    return True


def write_private(path: Path, text: str) -> None:
    """Write a file of mode 0600 in one step: a reader sees the old text or the new, never half."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    fresh.replace(path)


def _remembered_ports(path: Path) -> Ports:
    if not path.exists():
        return Ports()
    known = {field.name for field in fields(Ports)}
    return Ports(**{name: port for name, port in json.loads(path.read_text()).items() if name in known})
