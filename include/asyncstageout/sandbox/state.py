"""What the supervisor tells the world about its services, in one small file."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel

from asyncstageout.sandbox.layout import write_private


class Phase(StrEnum):
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


class ServiceState(StrEnum):
    WAITING = "waiting"
    """For a service it needs."""
    STARTING = "starting"
    READY = "ready"
    UNHEALTHY = "unhealthy"
    """It runs, and its readiness check fails."""
    RESTARTING = "restarting"
    OUTAGE = "outage"
    """It is kept down on purpose."""
    DONE = "done"
    """A step that ran once and succeeded."""
    STOPPED = "stopped"
    FAILED = "failed"


TAIL_LINES = 15
HEALTHY = frozenset({ServiceState.READY, ServiceState.DONE})


class ServiceStatus(BaseModel):
    """One service, as the supervisor last saw it. ``created_at_s`` unmasks a process that reuses its pid."""

    name: str
    log: Path
    port: int | None = None
    state: ServiceState = ServiceState.WAITING
    pid: int | None = None
    created_at_s: float | None = None
    ready_at: datetime | None = None
    restarts: int = 0
    problem: str | None = None


class PlatformStatus(BaseModel):
    """The platform, as its supervisor last saw it."""

    phase: Phase
    pid: int
    started_at: datetime
    ready_at: datetime | None = None
    problem: str | None = None
    services: list[ServiceStatus]

    @property
    def is_healthy(self) -> bool:
        return self.phase is Phase.RUNNING and all(service.state in HEALTHY for service in self.services)

    def service(self, name: str) -> ServiceStatus:
        return next(service for service in self.services if service.name == name)


class AlreadyRunning(Exception):
    """Another supervisor looks after this platform."""

    def __init__(self, lock_file: Path) -> None:
        super().__init__(f"A platform runs already from {lock_file.parent.parent}")
        self.lock_file = lock_file


def read_status(path: Path) -> PlatformStatus | None:
    """Return what the last supervisor wrote, or None if there never was one."""
    return PlatformStatus.model_validate_json(path.read_text()) if path.exists() else None


def write_status(path: Path, status: PlatformStatus) -> None:
    write_private(path, status.model_dump_json(indent=1))


@contextmanager
def sole_supervisor(lock_file: Path) -> Iterator[None]:
    """Hold the platform's lock. The kernel frees it with the process, however that ends: it is never stale.

    Raises:
        AlreadyRunning: another process holds it.
    """
    descriptor = os.open(lock_file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise AlreadyRunning(lock_file) from error
    finally:
        os.close(descriptor)


def has_supervisor(lock_file: Path) -> bool:
    """Say whether a supervisor is alive."""
    if not lock_file.exists():
        return False
    try:
        with sole_supervisor(lock_file):
            return False
    except AlreadyRunning:
        return True


def tail(path: Path, lines: int = TAIL_LINES) -> str:
    """Return the last lines of a log, or a word when there is none."""
    if not path.exists():
        return "(no log)"
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 16_384))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
