"""The REST interface of dbs2go v00.06 over the instances of one sandbox (``web/handlers.go``, ``server.go``).

Paths are ``/dbs/<instance>/DBSReader|DBSWriter|DBSMigrate/<api>``. Knobs and counts are under ``/sandbox``.
"""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_plus

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from asyncstageout.sandbox.dbs import problems as codes
from asyncstageout.sandbox.dbs import reading
from asyncstageout.sandbox.dbs.bulk import insert_block
from asyncstageout.sandbox.dbs.lexicon import READER, WRITER, check_parameter
from asyncstageout.sandbox.dbs.migration import Migrations
from asyncstageout.sandbox.dbs.problems import Problem
from asyncstageout.sandbox.dbs.store import Store
from asyncstageout.sandbox.faults import FaultPlan, Faults
from asyncstageout.sandbox.front import FaultyFront
from asyncstageout.sandbox.serving import peer_of

VERSION = "v00.06.47-sandbox"
ROUTES: Mapping[str, Mapping[str, frozenset[str]]] = {
    "DBSReader": {
        "GET": frozenset({*reading.APIS, "blockdump"}),
        "POST": frozenset({"fileArray"}),
    },
    "DBSWriter": {
        "GET": frozenset({"datasets", "blocks", "files"}),
        "POST": frozenset({"bulkblocks"}),
        "PUT": frozenset({"files"}),
    },
    "DBSMigrate": {"GET": frozenset({"status"}), "POST": frozenset({"submit", "remove"})},
}
FOR_ALL = frozenset({"serverinfo", "healthz"})


@dataclass(frozen=True, slots=True)
class Instance:
    """One database with its servers, such as ``prod/phys03``."""

    name: str
    store: Store
    migrations: Migrations


class Service:
    """All instances; its handlers are called from one event loop, one after the other."""

    def __init__(self, instances: Mapping[str, Instance], faults: Faults, clock: Callable[[], float]) -> None:
        self.instances = instances
        self.faults = faults
        self._clock = clock

    def routes(self) -> list[Route]:
        return [
            Route(
                "/dbs/{stage}/{name}/{server}/{api}", self.answer, methods=["GET", "POST", "PUT", "DELETE"]
            ),
            Route("/sandbox/faults", self.fault_plan, methods=["GET", "PUT"]),
            Route("/sandbox/stats", self.stats, methods=["GET"]),
        ]

    async def answer(self, request: Request) -> Response:
        """Answer a request to a server of DBS."""
        part = request.path_params
        instance = self.instances.get(f"{part['stage']}/{part['name']}")
        routes = ROUTES.get(part["server"])
        if instance is None or routes is None or not _is_known(routes, part["api"]):
            return PlainTextResponse("404 page not found\n", 404)
        if not _who(request):
            # So does its authentication, whatever is asked.
            return Response(status_code=403)
        if part["api"] in FOR_ALL:
            return _for_all(part["api"])
        if part["api"] not in routes.get(request.method, frozenset()):
            return Response(status_code=405)
        body = await request.body()
        try:
            content = self._content(instance, request, part["server"], part["api"], body)
        except Problem as problem:
            return _refusal(request, problem)
        return _success(request, content)

    def _content(self, instance: Instance, request: Request, server: str, api: str, body: bytes) -> bytes:
        for each in self.instances.values():
            each.migrations.advance()
        if request.method == "GET":
            return _read(instance, _checked_query(request, server, api), api)
        if request.method == "PUT":
            return _update_file(instance.store, request)
        return self._post(instance, api, _posted(request, body), _who(request))

    def _post(self, instance: Instance, api: str, body: bytes, by: str) -> bytes:
        match api:
            case "fileArray":
                return _rows(reading.files(instance.store, _payload(body)))
            case "submit":
                return json.dumps(instance.migrations.submit(body, by)).encode()
            case "remove":
                return json.dumps(instance.migrations.remove(body, by)).encode()
        insert_block(instance.store, body, by, int(self._clock()))
        return b"[]"

    # -- the sandbox's own -------------------------------------------------------------------------

    async def fault_plan(self, request: Request) -> Response:
        if request.method == "PUT":
            try:
                self.faults.replace(FaultPlan.model_validate_json(await request.body()))
            except ValidationError as error:
                return PlainTextResponse(str(error), 400)
        return _json(self.faults.plan.model_dump())

    async def stats(self, _request: Request) -> Response:
        return _json({name: one.store.counts() for name, one in self.instances.items()})


def _read(instance: Instance, query: dict[str, list[str]], api: str) -> bytes:
    if api == "status":
        return _rows(instance.migrations.status(query))
    if api == "blockdump":
        return json.dumps(reading.block_dump(instance.store, (query.get("block_name") or [""])[0])).encode()
    return _rows(reading.APIS[api](instance.store, query))


def _update_file(store: Store, request: Request) -> bytes:
    query = request.query_params
    store.run(
        "UPDATE file SET is_valid = ? WHERE lfn = ?",
        *(int(query.get("is_file_valid") == "1"), query.get("logical_file_name", "")),
    )
    return b"[]"


def _is_known(routes: Mapping[str, frozenset[str]], api: str) -> bool:
    return api in FOR_ALL or any(api in apis for apis in routes.values())


def _who(request: Request) -> str:
    dns = peer_of(request.scope).dns
    return dns[0] if dns else ""


def _for_all(api: str) -> Response:
    if api == "healthz":
        return _json([{"status": 200}])
    return _json([{"server": "AsyncStageOut sandbox", "dbs_version": VERSION}])


def _checked_query(request: Request, server: str, api: str) -> dict[str, list[str]]:
    """Read parameters as the server does: a value in brackets is a list."""
    query: dict[str, list[str]] = {}
    for name, value in request.query_params.multi_items():
        listed = value[1:-1].split(",") if "[" in value else [value]
        query.setdefault(name, []).extend(item.strip().replace("'", "") for item in listed)
    reading.check_parameters(api, query)
    for name, values in query.items():
        for value in values:
            check_parameter(WRITER if server == "DBSWriter" else READER, name, value)
    return query


def _posted(request: Request, body: bytes) -> bytes:
    kind = request.headers.get("content-type", "")
    if kind != "application/json":
        message = f"unsupported Content-Type: '{kind}'"
        raise Problem(
            "content-type error",
            codes.CONTENT_TYPE,
            message,
            "web.DBSPostHandler",
            status=415,
            before_gzip=True,
        )
    if request.headers.get("content-encoding") != "gzip":
        return body
    try:
        return gzip.decompress(body)
    except OSError as error:
        raise Problem(
            "gzip: invalid header", codes.READER, "unable to get gzip reader", "web.DBSPostHandler",
            status=500, before_gzip=True,
        ) from error  # fmt: skip


def _payload(body: bytes) -> dict[str, list[str]]:
    """Read a POST that is a query: brackets go, and spaces part the values, those of an LFN too."""
    try:
        said = json.loads(body)
        items = said.items()
    except (ValueError, AttributeError) as error:
        message = "unable to decode HTTP post payload"
        raise Problem(str(error), codes.DECODE, message, "web.parsePayload", status=500) from error
    return {name: _words(value) for name, value in items}


def _words(value: Any) -> list[str]:
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text.replace("[", "").replace("]", "").split()


def _rows(rows: list[dict[str, Any]]) -> bytes:
    """Write rows one after the other, as they come from the database."""
    if not rows:
        return b"[]"
    lines = (json.dumps(row, sort_keys=True, separators=(",", ":")) + "\n" for row in rows)
    return f"[\n{','.join(lines)}]\n".encode()


def _json(content: object) -> Response:
    return Response(json.dumps(content), media_type="application/json")


def _success(request: Request, content: bytes) -> Response:
    headers = {"Content-Type": "application/json"}
    if _wants_gzip(request):
        content = gzip.compress(content, 1)
        headers["Content-Encoding"] = "gzip"
    return Response(content, headers=headers)


def _refusal(request: Request, problem: Problem) -> Response:
    asked = {
        "method": request.method,
        "path": unquote_plus(request.url.path + (f"?{request.url.query}" if request.url.query else "")),
        "user_agent": request.headers.get("user-agent", ""),
        "remote_addr": f"{request.client.host}:{request.client.port}" if request.client else "",
    }
    content = json.dumps(problem.body(asked)).encode()
    headers = {"Content-Type": "application/json"}
    if _wants_gzip(request) and not problem.before_gzip:
        # dbs2go has said that it comes compressed, writes it as it is, and ends the empty compressed stream.
        headers["Content-Encoding"] = "gzip"
        content += gzip.compress(b"")
    return Response(content, problem.status, headers)


def _wants_gzip(request: Request) -> bool:
    return "gzip" in request.headers.get("accept-encoding", "")


def application(service: Service, *, close: Callable[[], None] = lambda: None) -> ASGIApp:
    """Return the application; ``close`` is called at the end."""

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        rereading = asyncio.create_task(service.faults.keep_reading())
        try:
            yield
        finally:
            rereading.cancel()
            close()

    return FaultyFront(Starlette(routes=service.routes(), lifespan=lifespan), service.faults)
