"""``python -m asyncstageout.sandbox.fts``: see docs/sandbox.md."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
from pathlib import Path

from asyncstageout.sandbox.fts.engine import Limits
from asyncstageout.sandbox.fts.service import (
    WORKERS_WITH_BYTES,
    WORKERS_WITHOUT_BYTES,
    Options,
    SandboxFTS,
)
from asyncstageout.sandbox.fts.simulation import Pace
from asyncstageout.sandbox.fts.submission import Rules
from asyncstageout.sandbox.serving import listen, server
from asyncstageout.sandbox.tls import KeyPair, subject_dn

logger = logging.getLogger("asyncstageout.sandbox.fts")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m asyncstageout.sandbox.fts", description=__doc__)
    add = parser.add_argument
    add("--port", type=int, default=8446)
    add("--host", default="127.0.0.1", help="address to listen on")
    add("--cert", type=Path, required=True, help="server certificate, PEM")
    add("--key", type=Path, required=True, help="its key, PEM")
    add("--ca", type=Path, required=True, help="CA of clients and sites, PEM")
    add("--state", type=Path, required=True, help="directory of its memory and of the transfer log")
    add("--start-empty", action="store_true", help="forget all jobs first")
    add("--vo", default="cms", help="VO of callers that the gridmap does not name; '' gives each his own")
    add("--gridmap", type=Path, help="JSON: {DN: VO}")
    add(
        "--root-dn",
        action="append",
        default=[],
        help="may ban and cancel everything; the server's DN may too",
    )
    add("--connect-to", metavar="HOST:PORT", help="where all sites are; without it, names must resolve")
    add("--faults", type=Path, help="fault file, read again when it changes")
    add("--no-bytes", action="store_true", help="transfers take time and move nothing")
    add("--seconds", type=float, default=0.5, help="of a transfer without bytes")
    add("--bandwidth", type=float, help="bytes/s of a transfer without bytes, on top of --seconds")
    add("--workers", type=int, help="copies at the same time (8; 2000 without bytes)")
    add("--link-limit", type=int, default=10, help="copies at the same time on one link")
    add("--retry", type=int, default=0, help="retries of jobs that ask for none or the default")
    add("--retry-delay", type=float, default=120, help="seconds, for jobs that do not say")
    add("--cancel-after", type=float, default=2, help="seconds that a cancelled copy goes on")
    add("--archive-after", type=float, default=7 * 86400, help="seconds until finished jobs are archived")
    add("--require-delegation", action="store_true", help="419 without a delegated proxy")
    add("--check-duplicates", action="store_true", help="409 on a second unfinished file to one destination")
    add("--token-issuer", action="append", default=[], metavar="URL", help="its tokens count, for callers")
    add("--token-audience", action="append", default=[], help="a caller's token may be for it")
    add("--token-prep", type=float, default=1, help="seconds until managed tokens are exchanged (real: 30)")
    add("--broker", metavar="URL", help="send monitoring messages there, such as stomp://127.0.0.1:61613")
    add("--monitor-port", type=int, help="port of the page for people (plain HTTP)")
    return parser


def _options(args: argparse.Namespace) -> Options:
    workers = args.workers or (WORKERS_WITHOUT_BYTES if args.no_bytes else WORKERS_WITH_BYTES)
    return Options(
        state=args.state,
        vo=args.vo or None,
        gridmap=json.loads(args.gridmap.read_text()) if args.gridmap else {},
        root_dns=frozenset([subject_dn(args.cert), *args.root_dn]),
        with_bytes=not args.no_bytes,
        connect_to=args.connect_to,
        ca=str(args.ca),
        faults=args.faults,
        require_delegation=args.require_delegation,
        start_empty=args.start_empty,
        token_issuers=tuple(args.token_issuer),
        token_audiences=tuple(args.token_audience),
        broker=args.broker,
        rules=Rules(check_duplicates=args.check_duplicates),
        limits=Limits(
            per_link=args.link_limit,
            workers=workers,
            retry=args.retry,
            retry_delay_s=args.retry_delay,
            cancel_after_s=args.cancel_after,
            archive_after_s=args.archive_after,
            token_prep_s=args.token_prep,
        ),
        pace=Pace(args.seconds, args.bandwidth),
    )


async def _serve(args: argparse.Namespace) -> None:
    fts = SandboxFTS(_options(args))
    api = server(fts.app, tls=KeyPair(args.cert, args.key), client_ca=args.ca)
    served = []
    if args.monitor_port is not None:
        # First, so that a signal ends the API first and this one after it.
        page = server(fts.monitor, tls=None)
        served.append(asyncio.create_task(page.serve([listen(args.monitor_port, args.host)])))
        await asyncio.sleep(0)
    logger.info("Sandbox FTS listens on https://%s:%d", args.host, args.port)
    served.append(asyncio.create_task(api.serve([listen(args.port, args.host)])))
    await asyncio.gather(*served)


def main() -> None:
    """Serve until a signal comes."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    args = _parser().parse_args()
    import uvloop  # noqa: PLC0415 - after --help

    uvloop.run(_serve(args))


if __name__ == "__main__":
    main()
