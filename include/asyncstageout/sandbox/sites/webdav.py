"""WebDAV as dCache, EOS and XRootD speak it to FTS, over the files of many sites; the ``Host`` says which."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4
from xml.sax.saxutils import escape
from zlib import adler32

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from asyncstageout.sandbox.faults import FaultPlan, Faults, SiteFault
from asyncstageout.sandbox.serving import bearer_of, peer_of
from asyncstageout.sandbox.sites.checksums import Checksums
from asyncstageout.sandbox.sites.names import BadPath, Sites
from asyncstageout.sandbox.sites.tokens import TokenDoor

logger = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 18
READY_PATH = "/.well-known/ready"
METHODS = ("GET", "HEAD", "PUT", "DELETE", "PROPFIND", "MKCOL", "OPTIONS")
_RANGE = re.compile(r"bytes=(\d*)-(\d*)\Z")
_TEMPORARY = ".part-"
"""Start of the names of files that are being written; nobody sees them."""


class Storage:
    """Answers requests for files."""

    def __init__(
        self, sites: Sites, faults: Faults, *, makes_parents: bool = True, tokens: TokenDoor | None = None
    ) -> None:
        """``makes_parents``: a PUT makes the folders above it; else it answers 409, as the RFC has it.

        With ``tokens``, those that callers bring are checked.
        """
        self._sites = sites
        self.faults = faults
        self._makes_parents = makes_parents
        self.tokens = tokens
        self._sums = Checksums()
        self._verbs: dict[str, Callable[[Request, Path], Awaitable[Response]]] = {
            "GET": self._get,
            "HEAD": self._get,
            "PUT": self._put,
            "DELETE": self._delete,
            "PROPFIND": self._propfind,
            "MKCOL": self._mkcol,
            "OPTIONS": self._options,
        }

    async def answer(self, request: Request) -> Response:
        """Answer a request for a path of the site that its ``Host`` names."""
        site = self._sites.at(request.headers.get("host", ""))
        if site is None:
            return PlainTextResponse("no such site", 421)
        path = request.scope["path"]
        if fault := self.faults.site(site, request.method, path):
            return await _faulty(request, fault)
        try:
            file = self._sites.file(site, path)
        except BadPath:
            return PlainTextResponse("bad path", 403)
        if denied := self._denied(request, file):
            return denied
        return await self._verbs[request.method](request, file)

    def _denied(self, request: Request, file: Path) -> Response | None:
        token = bearer_of(request)
        if not (self.tokens and token):
            return None
        host, path = request.headers.get("host", ""), request.scope["path"]
        denied = self.tokens.denied(token, request.method, host, path, exists=file.exists())
        return PlainTextResponse(denied.text, denied.status) if denied else None

    async def _get(self, request: Request, file: Path) -> Response:
        if not file.is_file() or file.name.startswith(_TEMPORARY):
            return PlainTextResponse("not found", 404)
        stat = file.stat()
        headers = {
            "Accept-Ranges": "bytes",
            "Content-Length": str(stat.st_size),
            "Last-Modified": _http_time(stat.st_mtime),
        }
        if "adler32" in request.headers.get("want-digest", "").lower():
            headers["Digest"] = f"adler32={await self._sums.of(file)}"
        span = _span(request.headers.get("range"), stat.st_size)
        if span is None:
            return Response(status_code=416, headers={"Content-Range": f"bytes */{stat.st_size}"})
        start, end = span
        status = 200
        if end - start != stat.st_size:
            status = 206
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{stat.st_size}"
            headers["Content-Length"] = str(end - start)
        if request.method == "HEAD":
            return Response(status_code=status, headers=headers)
        return StreamingResponse(_bytes_of(file, start, end), status, headers, "application/octet-stream")

    async def _put(self, request: Request, file: Path) -> Response:
        if file.is_dir():
            return PlainTextResponse("is a directory", 409)
        if self._makes_parents:
            file.parent.mkdir(parents=True, exist_ok=True)
        elif not file.parent.is_dir():
            return PlainTextResponse("no such directory", 409)
        existed = file.exists()
        temporary = file.parent / f"{_TEMPORARY}{uuid4().hex}"
        try:
            value = await _receive(request, temporary)
            temporary.replace(file)
        except ClientDisconnect:
            logger.info("the upload of %s broke off", file)
            return Response(status_code=400)  # nobody hears it
        finally:
            temporary.unlink(missing_ok=True)
        self._sums.remember(file, value)
        return Response(status_code=204 if existed else 201, headers={"Digest": f"adler32={value:08x}"})

    async def _delete(self, request: Request, file: Path) -> Response:
        if file.is_dir():
            try:
                file.rmdir()
            except OSError:
                return PlainTextResponse("directory not empty", 409)
            return Response(status_code=204)
        if not file.is_file():
            return PlainTextResponse("not found", 404)
        since = request.headers.get("if-unmodified-since")
        if since and file.stat().st_mtime > parsedate_to_datetime(since).timestamp():
            return PlainTextResponse("it is younger", 412)
        file.unlink()
        return Response(status_code=204)

    async def _propfind(self, request: Request, file: Path) -> Response:
        if not file.exists():
            return PlainTextResponse("not found", 404)
        depth = request.headers.get("depth", "1")
        if depth not in ("0", "1"):
            return PlainTextResponse("depth is 0 or 1", 403)
        path = request.scope["path"].rstrip("/")
        entries = [(path or "/", file)]
        if depth == "1" and file.is_dir():
            children = sorted(child for child in file.iterdir() if not child.name.startswith(_TEMPORARY))
            entries += [(f"{path}/{child.name}", child) for child in children]
        body = "".join(_properties(href, entry) for href, entry in entries)
        xml = (
            f'<?xml version="1.0" encoding="utf-8"?>\n<D:multistatus xmlns:D="DAV:">{body}</D:multistatus>\n'
        )
        return Response(xml, 207, media_type="application/xml")

    async def _mkcol(self, _request: Request, file: Path) -> Response:
        if file.exists():
            return PlainTextResponse("exists", 405)
        if not file.parent.is_dir():
            return PlainTextResponse("no such directory", 409)
        file.mkdir()
        return Response(status_code=201)

    async def _options(self, _request: Request, _file: Path) -> Response:
        return Response(status_code=200, headers={"DAV": "1", "Allow": ", ".join(METHODS)})


async def _receive(request: Request, temporary: Path) -> int:
    """Write the body to a file; return its adler32."""
    value = 1
    with temporary.open("wb") as out:
        async for chunk in request.stream():
            value = adler32(chunk, value)
            out.write(chunk)
    return value


async def _bytes_of(file: Path, start: int, end: int) -> AsyncIterator[bytes]:
    with file.open("rb") as source:
        source.seek(start)
        left = end - start
        while left > 0 and (chunk := source.read(min(CHUNK_BYTES, left))):
            left -= len(chunk)
            yield chunk


def _span(header: str | None, size_bytes: int) -> tuple[int, int] | None:
    """Return the asked range as [start, end); None if it lies outside. What cannot be read asks for all."""
    match = _RANGE.match(header or "")
    if not match or match[0] == "bytes=-":
        return 0, size_bytes
    if not match[1]:
        return max(0, size_bytes - int(match[2])), size_bytes
    start, end = int(match[1]), min(int(match[2] or size_bytes - 1) + 1, size_bytes)
    return (start, end) if start < end else None


def _http_time(time_s: float) -> str:
    return format_datetime(datetime.fromtimestamp(time_s, UTC), usegmt=True)


def _properties(href: str, entry: Path) -> str:
    stat = entry.stat()
    if entry.is_dir():
        own = "<D:resourcetype><D:collection/></D:resourcetype>"
    else:
        own = f"<D:resourcetype/><D:getcontentlength>{stat.st_size}</D:getcontentlength>"
    return (
        f"<D:response><D:href>{escape(quote(href))}</D:href><D:propstat><D:prop>"
        f"<D:displayname>{escape(os.fsdecode(entry.name))}</D:displayname>{own}"
        f"<D:getlastmodified>{_http_time(stat.st_mtime)}</D:getlastmodified></D:prop>"
        "<D:status>HTTP/1.1 200 OK</D:status></D:propstat></D:response>"
    )


async def _faulty(request: Request, fault: SiteFault) -> Response:
    if fault.status:
        return PlainTextResponse(f"HTTP {fault.status} on purpose", fault.status)
    if request.method == "PUT":
        await anext(request.stream(), b"")
    peer_of(request.scope).abort()
    return Response(status_code=500)  # nobody hears it


def application(storage: Storage) -> Starlette:
    """Return the application for all sites."""

    async def ready(_request: Request) -> Response:
        return PlainTextResponse("ready\n")

    async def fault_plan(request: Request) -> Response:
        if request.method == "PUT":
            try:
                storage.faults.replace(FaultPlan.model_validate_json(await request.body()))
            except ValidationError as error:
                return PlainTextResponse(str(error), 400)
        return JSONResponse(storage.faults.plan.model_dump())

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        rereading = asyncio.create_task(storage.faults.keep_reading())
        try:
            yield
        finally:
            rereading.cancel()

    return Starlette(
        routes=[
            Route(READY_PATH, ready),
            Route("/sandbox/faults", fault_plan, methods=["GET", "PUT"]),
            Route("/{path:path}", storage.answer, methods=list(METHODS)),
        ],
        lifespan=lifespan,
    )
