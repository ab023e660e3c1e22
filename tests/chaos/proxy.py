"""A TCP proxy that can be a bad network: it cuts, stalls, trickles, and loses replies."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from enum import Enum

CHUNK_BYTES = 1 << 16
TRICKLE_BYTES = 64
TRICKLE_PAUSE_S = 0.02
HANDSHAKE_BYTES = 6000
"""What a client sends before its first request is about: TLS with a client certificate, or a login."""


class Line(Enum):
    """What the network does."""

    GOOD = "good"
    CUT = "cut"
    """Connections break, and new ones are refused by breaking at once."""
    STALL = "stall"
    """Everything is taken and nothing comes out, in either direction."""
    TRICKLE = "trickle"
    """Replies come in drops of 64 bytes, 50 a second."""
    LOSE_REPLIES = "lose replies"
    """What is asked arrives and is done; the connection breaks in place of the answer."""


class Proxy:
    """Passes connections on to ``port``; thread-safe, served from a thread of its own."""

    def __init__(self, port: int, loop: asyncio.AbstractEventLoop) -> None:
        self.target_port = port
        self.port = 0
        self._hits: Counter[Line] = Counter()
        self._loop = loop
        self._line = Line.GOOD
        self._changed = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._served: asyncio.Server | None = None

    def be(self, line: Line) -> None:
        """Change the network; returns when it has changed."""

        async def change() -> None:
            self._line = line
            self._changed.set()
            self._changed = asyncio.Event()
            if line is Line.CUT:
                self._hits[line] += len(self._writers) // 2
                for writer in list(self._writers):
                    writer.transport.abort()

        asyncio.run_coroutine_threadsafe(change(), self._loop).result(10)

    def hits(self, line: Line) -> int:
        """Return how many requests or answers have met the bad line: an attack that met nobody proves nothing."""
        return self._hits[line]

    async def serve(self) -> None:
        self._served = await asyncio.start_server(self._pass_on, "127.0.0.1", 0)
        self.port = self._served.sockets[0].getsockname()[1]

    async def end(self) -> None:
        """Break every connection and take no more; returns when nothing is left of them."""
        self._line = Line.CUT
        self._changed.set()
        if self._served is not None:
            self._served.close()
        while self._writers:
            for writer in list(self._writers):
                writer.transport.abort()
            await asyncio.sleep(0)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._line is Line.CUT:
            self._hits[Line.CUT] += 1
            writer.transport.abort()
            return
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.target_port)
        except OSError:
            writer.transport.abort()
            return
        ends = {writer, back}
        self._writers |= ends
        asked = _Asked()
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._requests(reader, back, asked))
                both.create_task(self._replies(there, writer, asked))
        except* (OSError, _Over):
            pass
        finally:
            self._writers -= ends
            for end in ends:
                end.transport.abort()

    async def _requests(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, asked: _Asked
    ) -> None:
        while data := await source.read(CHUNK_BYTES):
            await self._while_stalled()
            asked.sent_bytes += len(data)
            sink.write(data)
            await sink.drain()
        raise _Over

    async def _replies(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, asked: _Asked) -> None:
        while data := await source.read(CHUNK_BYTES):
            await self._while_stalled()
            if self._line is Line.LOSE_REPLIES and asked.sent_bytes > HANDSHAKE_BYTES:
                self._hits[self._line] += 1
                raise _Over
            await self._drop_by_drop(data, sink)
        raise _Over

    async def _drop_by_drop(self, data: bytes, sink: asyncio.StreamWriter) -> None:
        while data:
            slow = self._line is Line.TRICKLE
            self._hits[Line.TRICKLE] += slow
            piece, data = (data[:TRICKLE_BYTES], data[TRICKLE_BYTES:]) if slow else (data, b"")
            sink.write(piece)
            await sink.drain()
            if slow:
                await asyncio.sleep(TRICKLE_PAUSE_S)

    async def _while_stalled(self) -> None:
        while self._line is Line.STALL:
            self._hits[Line.STALL] += 1
            await self._changed.wait()


class _Over(Exception):
    """One side has gone: so does the other."""


class _Asked:
    """How much the client of one connection has sent."""

    sent_bytes = 0


@contextmanager
def proxies(*target_ports: int) -> Iterator[list[Proxy]]:
    """Serve a proxy in front of each port of this machine while the block runs."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True, name="proxies")
    thread.start()

    def on_loop(call: Callable[[], Awaitable[object]]) -> None:
        async def run() -> None:
            await call()

        asyncio.run_coroutine_threadsafe(run(), loop).result(10)

    made = [Proxy(port, loop) for port in target_ports]
    try:
        for proxy in made:
            on_loop(proxy.serve)
        yield made
    finally:
        for proxy in made:
            on_loop(proxy.end)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
