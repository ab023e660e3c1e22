"""Stands before every route: who asks, how often, how much; and what browsers must not do with answers."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from asyncstageout.api.callers import APIHouse, Callers
from asyncstageout.api.limits import FORM, JSON_LIKE, Buckets, limited, too_large
from asyncstageout.api.problems import TOLD, Problem, Respond, answer

OPEN_PATHS = ("/api/v1/health",)
"""Ends of paths that anybody may ask for: they tell no secret."""
HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


class Gate:
    """ASGI middleware: nothing of a request's body is read before it is known who sends it."""

    def __init__(self, app: ASGIApp, house: APIHouse, respond: Respond = answer) -> None:
        self._app, self._limits, self._respond = app, house.limits, respond
        self._callers = Callers(house)
        self._buckets = Buckets(house.limits.rates, house.clock)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        try:
            most_bytes = await self._admit(request)
        except tuple(TOLD) as error:
            read = next(TOLD[kind] for kind in type(error).__mro__ if kind in TOLD)
            refusal = self._respond(request, read(request, error), None)
            await refusal(scope, receive, _with_headers(send))
            return
        await self._app(scope, limited(receive, most_bytes), _with_headers(send))

    async def _admit(self, request: Request) -> int:
        """Return how many bytes the body may have.

        Raises:
            HTTPException: the request is refused.
        """
        if request.method == "GET" and request.url.path.endswith(OPEN_PATHS):
            return 0
        caller = await self._callers.of(request)
        self._buckets.take(caller)
        request.state.caller = caller
        return self._body_bytes(request)

    def _body_bytes(self, request: Request) -> int:
        headers = request.headers
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        most_bytes = self._limits.of_body(request.url.path, media_type)
        announced = headers.get("content-length", "0")
        if not announced.isascii() or not announced.isdigit():
            raise HTTPException(400, "Content-Length is no number.")
        if int(announced) > most_bytes:
            raise too_large(most_bytes)
        has_body = int(announced) > 0 or "transfer-encoding" in headers
        if has_body and media_type not in JSON_LIKE | {FORM}:
            raise Problem(415, "Send application/json.", kind="unsupported-media-type")
        return most_bytes


def _with_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return send_with_headers
