"""A server on loopback that answers as a test says, and remembers what it was asked."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal


@dataclass(frozen=True)
class Reply:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    instead: Literal["", "reset", "silence", "cut", "trickle", "trickle headers"] = ""
    """``reset`` the connection, say nothing, ``cut`` the body short, or send a byte now and then for ever."""


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    """With the query."""
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes


Respond = Callable[[Asked], Reply]


class AnsweringServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, respond: Respond) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.respond = respond
        self.asked: list[Asked] = []
        self.closing = threading.Event()
        self.scheme = "http"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.address}"

    def speak_tls(self, context: ssl.SSLContext) -> None:
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.scheme = "https"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: AnsweringServer

    def _answer(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        asked = Asked(self.command, self.path, headers, self._body(headers))
        self.server.asked.append(asked)
        reply = self.server.respond(asked)
        if reply.instead == "silence":
            self.server.closing.wait(30)
        if reply.instead in ("silence", "reset"):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
            return
        if reply.instead == "trickle headers":
            self._trickle(b"HTTP/1.1 200 OK\r\nX-Endless: ")
            return
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if "Content-Length" not in reply.headers and reply.instead != "trickle":
            self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        if reply.instead == "trickle":
            self._trickle(b"")
            return
        if self.command != "HEAD":
            self.wfile.write(reply.body[: len(reply.body) // 2] if reply.instead == "cut" else reply.body)
        self.close_connection = self.close_connection or reply.instead == "cut"

    def _trickle(self, first: bytes) -> None:
        self.close_connection = True
        self.wfile.write(first)
        while not self.server.closing.wait(0.02):
            self.wfile.write(b"x")

    def _body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(headers.get("content-length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PROPFIND = do_MKCOL = _answer  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""


@contextmanager
def answering(respond: Respond, context: ssl.SSLContext | None = None) -> Iterator[AnsweringServer]:
    server = AnsweringServer(respond)
    if context:
        server.speak_tls(context)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        thread.join(10)
        server.server_close()


def in_turn(*replies: Reply) -> Respond:
    """Give these replies one after the other, the last one for ever."""
    left = list(replies)
    return lambda _asked: left.pop(0) if len(left) > 1 else left[0]
