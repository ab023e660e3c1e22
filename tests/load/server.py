"""A server of its own for a load: Postgres as the sandbox runs it, sites, the record of a step."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import psutil

from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.migrate import upgrade
from asyncstageout.catalogue.partitions import ensure_partitions
from asyncstageout.catalogue.storages import put_sites
from asyncstageout.sandbox.layout import free_port
from asyncstageout.sandbox.postgres import EmbeddedPostgres, create_database
from load.bodies import SITES


@dataclass(frozen=True)
class LoadedCatalogue:
    """A catalogue with sites, on a server of its own."""

    url: str
    postgres: EmbeddedPostgres

    def cpu_s(self) -> float:
        """CPU time of all its processes that still are."""
        pid = self.postgres.pid()
        return 0.0 if pid is None else sum(map(_cpu_s, family(pid)))


def family(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def cpu_s(pid: int) -> float:
    return sum(map(_cpu_s, family(pid)))


@contextmanager
def loaded_catalogue(
    *, durable: bool = True, settings: Mapping[str, str] | None = None
) -> Iterator[LoadedCatalogue]:
    """Yield an empty catalogue in a temporary folder; it is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="aso-load-"))
    folder.chmod(0o711)
    postgres = EmbeddedPostgres(
        folder / "postgres", free_port(), secrets_dir=folder, durable=durable, settings=settings
    )
    try:
        postgres.start(log=folder / "postgres.log")
        url = create_database(postgres.admin_url, f"load_{uuid4().hex[:8]}")
        upgrade(url)
        with connect(url) as conn:
            put_sites(conn, {site: f"davs://{site.lower()}.sandbox.test:8443" for site in SITES}, "load")
            ensure_partitions(conn, datetime.now(UTC).date())
        yield LoadedCatalogue(url, postgres)
    finally:
        postgres.stop()
        shutil.rmtree(folder)


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
