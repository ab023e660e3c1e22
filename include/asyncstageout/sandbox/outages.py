"""Services that are down on purpose: the supervisor starts them again only when their outage is over."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from asyncstageout.sandbox import children
from asyncstageout.sandbox.state import read_status


class NoSuchService(ValueError):
    """The platform has no service of this name, or does not run."""

    def __init__(self, name: str, names: list[str]) -> None:
        self.name = name
        super().__init__(f"no service {name} runs here; there are {', '.join(names) or 'none'}")


def outage_file(run: Path, service: str) -> Path:
    """Return the file that keeps a service down as long as it is there."""
    return run / f"outage-{service}"


@contextmanager
def outage(state_file: Path, service: str) -> Iterator[None]:
    """Kill a service and keep it down for as long as the block lasts; then the supervisor starts it again.

    Args:
        state_file: of the supervisor.

    Raises:
        NoSuchService: see there.
    """
    status = read_status(state_file)
    names = [one.name for one in status.services] if status else []
    if status is None or service not in names:
        raise NoSuchService(service, names)
    file = outage_file(state_file.parent, service)
    file.touch()
    try:
        known = status.service(service)
        if process := children.same_process(known.pid, known.created_at_s):
            children.send(process, signal.SIGKILL)
        yield
    finally:
        file.unlink(missing_ok=True)


def forget_outages(run: Path) -> None:
    """Remove what a killed command left behind."""
    for file in run.glob("outage-*"):
        file.unlink(missing_ok=True)
