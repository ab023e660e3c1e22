"""Python's collector of cycles waits while a step runs: rows that live for a second are no garbage.

A step makes few cycles and very many small objects, and each pass over all of them is in vain: a fifth of the
Python CPU of a file went into that (docs/performance.md). What is in no cycle is freed at once, as ever.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _Hold:
    """How many wait for the end of their work, and whether the collector was on before the first of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders = 0
        self._was_on = True

    def take(self) -> None:
        with self._lock:
            if self._holders == 0:
                self._was_on = gc.isenabled()
                gc.disable()
            self._holders += 1

    def give(self) -> None:
        with self._lock:
            self._holders -= 1
            if self._holders == 0 and self._was_on:
                gc.enable()


_hold = _Hold()


@contextmanager
def waits() -> Iterator[None]:
    """Let the collector wait; with several at a time, in threads, until the last of them has ended."""
    _hold.take()
    try:
        yield
    finally:
        _hold.give()
