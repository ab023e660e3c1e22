"""The bad network, without anything behind it but an echo."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Iterator

import pytest

from chaos.proxy import HANDSHAKE_BYTES, Line, Proxy, proxies

DEADLINE_S = 10


class Echo(socketserver.BaseRequestHandler):
    received = b""

    def handle(self) -> None:
        while data := self.request.recv(1 << 16):
            type(self).received += data
            self.request.sendall(data)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    Echo.received = b""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        with proxies(server.server_address[1]) as (made,):
            yield made
        server.shutdown()


def connected(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=DEADLINE_S)


def answer(client: socket.socket, size_bytes: int) -> bytes:
    got = b""
    while len(got) < size_bytes and (data := client.recv(1 << 16)):
        got += data
    return got


@pytest.mark.parametrize("line", [Line.GOOD, Line.TRICKLE])
def test_everything_arrives(proxy: Proxy, line: Line) -> None:
    proxy.be(line)
    with connected(proxy) as client:
        client.sendall(b"x" * 300)
        assert answer(client, 300) == b"x" * 300
    assert (proxy.hits(line) > 0) == (line is Line.TRICKLE)


def is_broken(client: socket.socket) -> bool:
    try:
        return not client.recv(1)
    except ConnectionError:
        return True


def test_a_cut_breaks_what_is_open_and_what_comes(proxy: Proxy) -> None:
    with connected(proxy) as client:
        client.sendall(b"x")
        assert answer(client, 1) == b"x"
        proxy.be(Line.CUT)
        assert is_broken(client)
    with connected(proxy) as client:
        assert is_broken(client)
    assert proxy.hits(Line.CUT) == 2


def test_what_is_stalled_comes_later(proxy: Proxy) -> None:
    with connected(proxy) as client:
        client.sendall(b"x")
        answer(client, 1)
        proxy.be(Line.STALL)
        client.sendall(b"y")
        client.settimeout(0.05)
        with pytest.raises(TimeoutError):
            client.recv(1)
        proxy.be(Line.GOOD)
        client.settimeout(DEADLINE_S)
        assert answer(client, 1) == b"y"


def test_a_lost_reply_was_a_request_that_arrived(proxy: Proxy) -> None:
    proxy.be(Line.LOSE_REPLIES)
    request = b"x" * (HANDSHAKE_BYTES + 1)
    with connected(proxy) as client:
        client.sendall(request)
        assert len(answer(client, len(request))) < len(request)
    assert Echo.received == request
    assert proxy.hits(Line.LOSE_REPLIES) == 1
