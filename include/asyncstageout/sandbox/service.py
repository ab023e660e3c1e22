"""What a service of the embedded platform is, how its command is made, how it says that it is ready."""

from __future__ import annotations

import asyncio
import signal
import ssl
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from asyncstageout.sandbox.layout import LOOPBACK

ReadyCheck = Callable[[datetime], Awaitable[bool]]


@dataclass(frozen=True)
class Service:
    """A process to keep, or a step to run once.

    ``is_ready`` is asked, with the aware UTC time the process was started at, until it says True. Without
    one a service is ready as soon as it runs. A step (``once``) is ready when it ended with code 0.
    ``options`` go to ``subprocess``.
    """

    name: str
    command: Sequence[str]
    needs: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    is_ready: ReadyCheck | None = None
    before_start: Callable[[], None] | None = None
    once: bool = False
    port: int | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    ready_timeout_s: float = 180.0
    stop_timeout_s: float = 10.0


def module(name: str, *arguments: object) -> tuple[str, ...]:
    return (sys.executable, "-m", name, *words(*arguments))


def airflow_command(*arguments: str) -> tuple[str, ...]:
    return module("airflow", *arguments)


def words(*arguments: object) -> tuple[str, ...]:
    return tuple(str(argument) for argument in arguments)


def answers(
    port: int, path: str, trust: ssl.SSLContext | None = None, *, any_status: bool = False
) -> ReadyCheck:
    async def is_ready(_: datetime) -> bool:
        status, _body = await get(port, path, trust)
        return status == 200 or (any_status and status > 0)

    return is_ready


async def get(
    port: int, path: str, trust: ssl.SSLContext | None = None, *, timeout_s: float = 30
) -> tuple[int, bytes]:
    """GET from a server on loopback; status 0: nobody answers. HTTP/1.0, so that no body is chunked."""
    request = f"GET {path} HTTP/1.0\r\nHost: {LOOPBACK}:{port}\r\n\r\n"
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(LOOPBACK, port, ssl=trust)
            try:
                writer.write(request.encode())
                answer = await reader.read()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return 0, b""
    head, _, body = answer.partition(b"\r\n\r\n")
    status_line = head.split(b" ", 2)
    return (int(status_line[1]) if len(status_line) > 1 else 0), body
