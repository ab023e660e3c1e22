"""The services around the house, each a process on the week's clock: ``python -m week.servers fts|dbs|sites|hook``.

Each imports what it needs itself: the week starts them more than once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

import uvloop
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from asyncstageout.sandbox.serving import listen, server
from asyncstageout.sandbox.tls import sandbox_tls
from week.hands import Hands

HEARD = "heard.ndjson"
FTS_FAULTS = "fts-faults.json"
FTS_WORKERS = 16
SITES = "sites"


def fts(folder: Path, clock: Hands, sites_port: int) -> ASGIApp:
    from asyncstageout.sandbox.fts.engine import Limits  # noqa: PLC0415
    from asyncstageout.sandbox.fts.service import Options, SandboxFTS  # noqa: PLC0415

    options = Options(
        state=folder,
        ca=str(sandbox_tls(folder / "tls").ca),
        connect_to=f"127.0.0.1:{sites_port}",
        faults=folder / FTS_FAULTS,
        limits=Limits(workers=FTS_WORKERS),
    )
    return SandboxFTS(options, clock).app


def dbs(folder: Path, clock: Hands, _sites_port: int) -> ASGIApp:
    from asyncstageout.sandbox.dbs.service import Options, SandboxDBS  # noqa: PLC0415

    return SandboxDBS(Options(state=folder), clock).app


def sites(folder: Path, clock: Hands, _sites_port: int) -> ASGIApp:
    """Storages whose answers bear the week's time: who cleans compares it with that of their files."""
    from starlette.datastructures import MutableHeaders  # noqa: PLC0415

    from asyncstageout.sandbox.faults import Faults  # noqa: PLC0415
    from asyncstageout.sandbox.sites.names import Sites  # noqa: PLC0415
    from asyncstageout.sandbox.sites.webdav import Storage, application  # noqa: PLC0415

    app = application(Storage(Sites.found(folder / SITES), Faults()))

    async def dated(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_dated(message: Message) -> None:
            if message["type"] == "http.response.start":
                date = format_datetime(datetime.fromtimestamp(clock(), UTC), usegmt=True)
                MutableHeaders(scope=message)["Date"] = date
            await send(message)

        await app(scope, receive, send_dated)

    return dated


def hook(folder: Path, _clock: Hands, _sites_port: int) -> ASGIApp:
    """Somebody who is told of everything, and keeps it."""
    from starlette.applications import Starlette  # noqa: PLC0415
    from starlette.requests import Request  # noqa: PLC0415
    from starlette.responses import Response  # noqa: PLC0415
    from starlette.routing import Route  # noqa: PLC0415

    heard = (folder / HEARD).open("ab", buffering=0)

    async def hear(request: Request) -> Response:
        heard.write(await request.body() + b"\n")
        return Response(status_code=204)

    return Starlette(routes=[Route("/", hear, methods=["POST"])])


APPLICATIONS: dict[str, Callable[[Path, Hands, int], ASGIApp]] = {
    "fts": fts,
    "dbs": dbs,
    "sites": sites,
    "hook": hook,
}


def main() -> None:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser(prog="python -m week.servers")
    parser.add_argument("name", choices=APPLICATIONS)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--sites-port", type=int, required=True)
    args = parser.parse_args()
    tls = sandbox_tls(args.folder / "tls")
    app = APPLICATIONS[args.name](args.folder, Hands(args.folder / "clock"), args.sites_port)
    secure = args.name != "hook"
    srv = server(app, tls=tls.server if secure else None, client_ca=tls.ca if secure else None)
    srv.config.date_header = args.name != "sites"
    uvloop.run(srv.serve([listen(args.port)]))


if __name__ == "__main__":
    main()
