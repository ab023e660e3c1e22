"""The API as Airflow serves it, on loopback, in a thread of this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp

STARTS_WITHIN_S = 20


def mounted(app: ASGIApp) -> Starlette:
    """Return the application where the plugin puts it."""
    return Starlette(routes=[Mount("/stageout", app=app)])


@contextmanager
def serving(app: ASGIApp) -> Iterator[str]:
    """Serve an application; yield its URL."""
    server = uvicorn.Server(uvicorn.Config(mounted(app), port=0, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline_s = time.monotonic() + STARTS_WITHIN_S
    while not server.started:
        assert thread.is_alive(), "the API did not start"
        assert time.monotonic() < deadline_s, "the API does not start"
        time.sleep(0.01)
    host, port = server.servers[0].sockets[0].getsockname()[:2]
    try:
        yield f"http://{host}:{port}"
    finally:
        server.should_exit = True
        thread.join(STARTS_WITHIN_S)
