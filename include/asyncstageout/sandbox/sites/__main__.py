"""``python -m asyncstageout.sandbox.sites``: see docs/sandbox.md."""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path

from asyncstageout.clients.http import Access, new_session
from asyncstageout.sandbox.faults import Faults
from asyncstageout.sandbox.jwts import Verifier
from asyncstageout.sandbox.serving import listen, server
from asyncstageout.sandbox.sites.names import DEFAULT_PORT, Sites
from asyncstageout.sandbox.sites.tokens import TokenDoor
from asyncstageout.sandbox.sites.webdav import Storage, application
from asyncstageout.sandbox.tls import KeyPair

logger = logging.getLogger("asyncstageout.sandbox.sites")


def main() -> None:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser(prog="python -m asyncstageout.sandbox.sites", description=__doc__)
    add = parser.add_argument
    add("--root", type=Path, required=True, help="folder with a folder per site")
    add("--port", type=int, default=DEFAULT_PORT)
    add("--host", default="127.0.0.1", help="address to listen on")
    add("--cert", type=Path, required=True, help="server certificate for *.sandbox.test, PEM")
    add("--key", type=Path, required=True, help="its key, PEM")
    add("--sites-file", type=Path, help="JSON: list of site names; without it, the folders under --root")
    add("--faults", type=Path, help="fault file, read again when it changes")
    add("--no-parents", action="store_true", help="a PUT into a missing folder is a 409")
    add("--token-issuer", action="append", default=[], metavar="URL", help="check the tokens of callers")
    add("--ca", help="CA of the token issuers, PEM")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    sites = Sites.found(args.root, args.sites_file)
    verifier = Verifier(args.token_issuer, new_session(Access(ca=args.ca)), time.time)
    door = TokenDoor(verifier) if args.token_issuer else None
    faults = Faults(path=args.faults)
    storage = Storage(sites, faults, makes_parents=not args.no_parents, tokens=door)
    logger.info("%d sites listen on https://%s:%d", len(sites.names), args.host, args.port)
    server(application(storage), tls=KeyPair(args.cert, args.key)).run([listen(args.port, args.host)])


if __name__ == "__main__":
    main()
