"""What the servers of the sandbox share: uvicorn with TLS that tells the application who is calling.

uvicorn gives an ASGI application neither the client's certificate nor a way to drop a connection; both are in
``scope["extensions"]["sandbox"]`` here (:class:`Peer`).
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import uvicorn
from cryptography import x509
from starlette.requests import Request
from starlette.types import ASGIApp, Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from asyncstageout.clients.credentials import voms
from asyncstageout.sandbox.tls import KeyPair

_SHORT = {
    "domainComponent": "DC",
    "commonName": "CN",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "countryName": "C",
    "stateOrProvinceName": "ST",
    "localityName": "L",
    "userId": "UID",
}
_PROXY_CN = re.compile(r"(/CN=.+)/CN=(\d+|proxy|limited proxy)\Z")
"""Of a proxy; a name before it is the person's own, which may be a number too (CERN)."""


@dataclass(frozen=True, slots=True)
class Peer:
    """The other end of a connection."""

    dns: tuple[str, ...]
    """The subject, in the form ``/DC=test/CN=alice``; after it, the proxy's own when it came with a proxy."""
    abort: Callable[[], None]
    """Close the connection at once, without an answer."""
    fqans: tuple[str, ...] = ()
    """What VOMS says of him, the primary one first."""


def peer_of(scope: Scope) -> Peer:
    """Return who sent the request of this ASGI scope."""
    peer: Peer = scope["extensions"]["sandbox"]
    return peer


def bearer_of(request: Request) -> str:
    """Return the token that a request brings; empty: none."""
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else ""


def certificate_dns(cert: dict[str, Any] | None) -> tuple[str, ...]:
    """Return the end entity's DN, and the proxy's behind it (``ssl.SSLObject.getpeercert`` form in)."""
    if not cert:
        return ()
    subject, issuer = _dn(cert["subject"]), _dn(cert["issuer"])
    if not subject.startswith(issuer) or not _PROXY_CN.search(subject):
        return (subject,)
    person = subject
    while _PROXY_CN.search(person):
        person = _PROXY_CN.sub(r"\1", person)
    return (person, subject)


def peer_fqans(tls: Any) -> tuple[str, ...]:
    """Return what VOMS says in the verified chain of a client (``ssl.SSLObject`` in)."""
    chain = [x509.load_der_x509_certificate(der) for der in _verified_chain(tls)]
    try:
        found = voms.attributes(chain)
    except ValueError:
        return ()  # mod_gridsite passes over what it cannot read
    return found.fqans if found else ()


def _verified_chain(tls: Any) -> list[bytes]:
    if hasattr(tls, "get_verified_chain"):  # from Python 3.13 on
        return list(tls.get_verified_chain())
    return [ssl.PEM_cert_to_DER_cert(cert.public_bytes()) for cert in tls._sslobj.get_verified_chain()]


def _dn(name: tuple[tuple[tuple[str, str], ...], ...]) -> str:
    return "".join(f"/{_SHORT.get(key, key)}={value}" for rdn in name for key, value in rdn)


class PeerProtocol(HttpToolsProtocol):
    """HTTP/1.1 that knows its peer."""

    peer: Peer

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        tls = transport.get_extra_info("ssl_object")
        cert = tls.getpeercert() if tls else None
        self.peer = Peer(certificate_dns(cert), transport.abort, peer_fqans(tls) if cert else ())

    def shutdown(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            # A polite end of TLS waits for a client that may be idle for minutes.
            self.transport.abort()
        else:
            super().shutdown()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        cast("Scope", self.scope)["extensions"] = {"sandbox": self.peer}


def server(app: ASGIApp, *, tls: KeyPair | None, client_ca: Path | None = None) -> uvicorn.Server:
    """Return a server for ``app``; without ``tls`` it is plain HTTP. Client certificates are optional."""
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=PeerProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        ssl_certfile=tls.cert if tls else None,
        ssl_keyfile=tls.key if tls else None,
        ssl_ca_certs=str(client_ca) if client_ca else None,
        ssl_cert_reqs=ssl.CERT_OPTIONAL if client_ca else ssl.CERT_NONE,
        timeout_graceful_shutdown=3,
    )
    config.load()
    if config.ssl:
        # Grid clients come with RFC 3820 proxies, which OpenSSL refuses unless told.
        config.ssl.verify_flags |= ssl.VERIFY_ALLOW_PROXY_CERTS
    return uvicorn.Server(config)


def listen(port: int, host: str = "127.0.0.1") -> socket.socket:
    """Return a bound socket; port 0 takes a free one."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, port))
    return sock


@contextmanager
def running(srv: uvicorn.Server, *, port: int = 0, deadline_s: float = 20) -> Iterator[int]:
    """Serve from a thread of this process while the block runs; gives the port.

    Raises:
        TimeoutError: it did not start or stop in ``deadline_s``.
    """
    sock = listen(port)
    started = threading.Event()

    async def main() -> None:
        serve = asyncio.create_task(srv.serve([sock]))
        while not srv.started and not serve.done():
            await asyncio.sleep(0.005)
        started.set()
        await serve

    def run() -> None:
        with asyncio.Runner(loop_factory=srv.config.get_loop_factory()) as runner:
            runner.run(main())

    thread = threading.Thread(target=run, daemon=True, name="sandbox-server")
    thread.start()
    if not started.wait(deadline_s) or not srv.started:
        raise TimeoutError("the server did not start")
    try:
        yield sock.getsockname()[1]
    finally:
        srv.should_exit = True
        thread.join(deadline_s)
        sock.close()
        if thread.is_alive():
            raise TimeoutError("the server did not stop")
