"""One sandbox DBS, put together; a program or a test serves its application."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from starlette.types import ASGIApp

from asyncstageout.sandbox.dbs.api import Instance, Service, application
from asyncstageout.sandbox.dbs.migration import Migrations
from asyncstageout.sandbox.dbs.store import Store
from asyncstageout.sandbox.faults import Faults

INSTANCES = ("prod/phys03", "prod/global")


@dataclass(frozen=True, slots=True)
class Options:
    """What one sandbox DBS is like."""

    state: Path
    """Directory of one SQLite file an instance."""
    instances: tuple[str, ...] = INSTANCES
    faults: Path | None = None
    start_empty: bool = False
    migration_step_s: float = 0.5
    """How long a migration is in each of its three states before it ends."""


class SandboxDBS:
    """A running service without a socket: ``app`` is its API."""

    def __init__(self, options: Options, clock: Callable[[], float] = time.time) -> None:
        self.faults = Faults(path=options.faults)
        self._stores = {
            name: Store(options.state / f"{name.replace('/', '-')}.sqlite", start_empty=options.start_empty)
            for name in options.instances
        }
        instances = {
            name: Instance(
                name, store, Migrations(store, self._source, self.faults, clock, options.migration_step_s)
            )
            for name, store in self._stores.items()
        }
        self.app: ASGIApp = application(Service(instances, self.faults, clock), close=self.close)

    def close(self) -> None:
        for store in self._stores.values():
            store.close()

    def _source(self, path: str) -> Store | None:
        """Return the instance whose reader has this path."""
        name = path.strip("/").removeprefix("dbs/").removesuffix("/DBSReader")
        return self._stores.get(name) if path.rstrip("/").endswith("/DBSReader") else None
