"""What the week costs this machine: time, CPU, memory and disk, of all its processes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil


@dataclass
class Cost:
    """Begins to count when it is made."""

    begun_s: float = field(default_factory=time.monotonic)
    memory_bytes: int = 0
    """Own memory of all processes at once, at most, as far as it was looked at; without what they share."""

    @property
    def took_s(self) -> float:
        return time.monotonic() - self.begun_s

    @property
    def cpu_s(self) -> float:
        """CPU time of this process and its children, those that ended too."""
        own = [process.cpu_times() for process in _family()]
        return sum(
            one.user + one.system + getattr(one, "children_user", 0) + getattr(one, "children_system", 0)
            for one in own
        )

    def look(self) -> None:
        """Look at the memory."""
        now_bytes = 0
        for process in _family():
            with suppress(psutil.Error):
                now_bytes += process.memory_full_info().uss
        self.memory_bytes = max(self.memory_bytes, now_bytes)

    def sentence(self, folder: Path) -> str:
        """Say it. What lies in ``folder`` is counted as blocks of the disk."""
        return (
            f"{self.took_s:,.0f} s, {self.cpu_s:,.0f} s of CPU, {self.memory_bytes / 1e9:.1f} GB of memory,"
            f" {_disk_bytes(folder) / 1e9:.1f} GB of disk"
        )


def _family() -> Iterator[psutil.Process]:
    this = psutil.Process()
    yield this
    for process in this.children(recursive=True):
        if process.is_running():
            yield process


def _disk_bytes(folder: Path) -> int:
    found = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            found += path.lstat().st_blocks * 512
    return found
