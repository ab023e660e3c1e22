"""``python -m asyncstageout.sandbox.dbs``: see docs/sandbox.md."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from asyncstageout.sandbox.dbs.service import INSTANCES, Options, SandboxDBS
from asyncstageout.sandbox.serving import listen, server
from asyncstageout.sandbox.tls import KeyPair

logger = logging.getLogger("asyncstageout.sandbox.dbs")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m asyncstageout.sandbox.dbs", description=__doc__)
    add = parser.add_argument
    add("--port", type=int, default=8447)
    add("--host", default="127.0.0.1", help="address to listen on")
    add("--cert", type=Path, required=True, help="server certificate, PEM")
    add("--key", type=Path, required=True, help="its key, PEM")
    add("--ca", type=Path, required=True, help="CA of clients, PEM")
    add("--state", type=Path, required=True, help="directory of its memory")
    add("--start-empty", action="store_true", help="forget everything first")
    add("--instance", action="append", default=[], help=f"instead of {' and '.join(INSTANCES)}")
    add("--faults", type=Path, help="fault file, read again when it changes")
    add("--migration-step", type=float, default=0.5, help="seconds that a migration is in each state")
    return parser


def main() -> None:
    """Serve until a signal comes."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    args = _parser().parse_args()
    dbs = SandboxDBS(
        Options(
            state=args.state,
            instances=tuple(args.instance) or INSTANCES,
            faults=args.faults,
            start_empty=args.start_empty,
            migration_step_s=args.migration_step,
        )
    )
    import uvloop  # noqa: PLC0415 - after --help

    api = server(dbs.app, tls=KeyPair(args.cert, args.key), client_ca=args.ca)
    logger.info("Sandbox DBS listens on https://%s:%d", args.host, args.port)
    uvloop.run(api.serve([listen(args.port, args.host)]))


if __name__ == "__main__":
    main()
