"""What stands before a service of the sandbox: lets requests through, or misbehaves as its faults say."""

from __future__ import annotations

import asyncio

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from asyncstageout.sandbox.faults import ApiFault, Faults
from asyncstageout.sandbox.serving import peer_of


class FaultyFront:
    """An ASGI application before another one."""

    def __init__(self, app: ASGIApp, faults: Faults) -> None:
        self._app = app
        self._faults = faults

    def refusal(self, scope: Scope) -> Response | None:  # noqa: ARG002 - for those that derive
        """Return the answer to a request that does not come through, whatever the faults."""
        return None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if refused := self.refusal(scope):
            await refused(scope, receive, send)
            return
        path: str = scope["path"]
        # The knobs always work, or nobody could turn a fault off.
        fault = None
        if not path.startswith("/sandbox/"):
            fault = self._faults.api(scope["method"], path, _body_bytes(scope))
        await self._with(fault, scope, receive, send)

    async def _with(self, fault: ApiFault | None, scope: Scope, receive: Receive, send: Send) -> None:
        match fault.action if fault else None:
            case "status" if fault:
                await _read_all(receive)
                kind = "application/json" if fault.body[:1] in ("[", "{") else "text/html"
                await Response(fault.body, fault.status, media_type=kind)(scope, receive, send)
            case "reset":
                peer_of(scope).abort()
            case "lost_reply":
                await self._app(scope, receive, _nowhere)
                peer_of(scope).abort()
            case "latency" if fault:
                # As behind a real front: what has arrived is done, though its caller may be gone by then.
                body = await _read_all(receive)
                await asyncio.sleep(fault.latency_s)
                await self._app(scope, _again(body, receive), send)
            case _:
                await self._app(scope, receive, send)


def _body_bytes(scope: Scope) -> int:
    length = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    return int(length) if length.isdigit() else 0


async def _read_all(receive: Receive) -> bytes:
    """Take the body: a caller that is still sending it would meet a reset in the place of the answer."""
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return bytes(body)


def _again(body: bytes, receive: Receive) -> Receive:
    """Give a body that was taken, and then whatever comes."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def give() -> Message:
        return first.pop() if first else await receive()

    return give


async def _nowhere(_message: Message) -> None:
    """Send nothing."""
