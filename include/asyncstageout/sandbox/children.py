"""Child processes that do not outlive us, and ending what they started."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Sequence

import psutil

PR_SET_PDEATHSIG = 1
# Loaded here: between fork and exec a child must not load anything.
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def die_with_parent(number: signal.Signals) -> Callable[[], None]:
    """Return a ``preexec_fn``: the kernel sends ``number`` to the child when the thread that made it ends.

    It must run after any change of user, which clears the wish (prctl(2)): ``subprocess`` keeps that order.
    Elsewhere than on Linux it does nothing.
    """
    parent = os.getpid()

    def before_exec() -> None:
        if _libc is None:
            return
        _libc.prctl(PR_SET_PDEATHSIG, int(number))
        if os.getppid() != parent:  # It died before we could ask.
            os.kill(os.getpid(), number)

    return before_exec


def created_at_s(pid: int) -> float | None:
    """Return when the process was created (seconds since the epoch), or None if it is gone."""
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return None


def same_process(pid: int | None, created_at_s: float | None) -> psutil.Process | None:
    """Return the running process with this pid and creation time, or None: it is gone, or its pid reused."""
    if pid is None or created_at_s is None:
        return None
    try:
        process = psutil.Process(pid)
        alive = abs(process.create_time() - created_at_s) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return None
    return process if alive else None


def family(pid: int) -> list[psutil.Process]:
    """Return the process and all that descend from it, whatever process groups they made for themselves."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def memory_bytes(pid: int | None) -> int:
    """Return the memory of a process and all below it; what they share counts once (PSS, on Linux)."""
    return sum(_own_memory_bytes(process) for process in family(pid)) if pid is not None else 0


def _own_memory_bytes(process: psutil.Process) -> int:
    try:
        memory = process.memory_full_info()
    except psutil.NoSuchProcess:
        return 0
    except psutil.AccessDenied:  # another user's, Postgres under root's eyes excepted
        return 0
    return int(getattr(memory, "pss", memory.rss))


def end(processes: Sequence[psutil.Process], number: signal.Signals, *, timeout_s: float) -> None:
    """Signal the first (the head of a family), wait for all, and kill what is left after ``timeout_s``."""
    if not processes:
        return
    send(processes[0], number)
    _, left = psutil.wait_procs(processes, timeout=timeout_s)
    for process in left:
        send(process, signal.SIGKILL)
    psutil.wait_procs(left, timeout=5)


def send(process: psutil.Process, number: signal.Signals) -> None:
    """Signal a process that may be gone already."""
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return
