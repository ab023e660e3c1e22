"""Puts the room together."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated
from urllib.parse import urlencode

from fastapi import FastAPI, Path
from fastapi.responses import RedirectResponse, Response
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Mount, Route

from asyncstageout.api.app import create_app
from asyncstageout.api.callers import APIHouse, Asker
from asyncstageout.api.gate import Gate
from asyncstageout.api.problems import Problem, tell
from asyncstageout.core.callers import Caller
from asyncstageout.ui import (
    alerts,
    audit,
    causes,
    files,
    finding,
    jobs,
    links,
    overview,
    runs,
    sites,
    tasks,
    users,
)
from asyncstageout.ui.assets import ASSETS
from asyncstageout.ui.page import Page
from asyncstageout.ui.rendering import rendered
from asyncstageout.ui.spans import SPANS

FOR_A_YEAR = {"Cache-Control": "private, max-age=31536000, immutable"}
LOGIN = "/api/v2/auth/login"
"""Airflow's, whatever its auth manager is; ``next`` is where it leads back to."""
_BY_NAME = {asset.name: asset for asset in ASSETS.values()}
_SAFE = frozenset({"GET", "HEAD"})


def create_room(house: APIHouse) -> Starlette:
    """Return the pages and the REST API side by side; the plugin mounts them as ``/stageout``."""
    return Starlette(
        routes=[
            Route("/ui", lambda request: RedirectResponse(f"{request.url.path}/", 308)),
            Mount("/ui", create_pages(house)),
            Mount("", create_app(house)),
        ]
    )


def create_pages(house: APIHouse) -> FastAPI:
    """Return the application of the pages."""
    app = FastAPI(title="AsyncStageOut pages", openapi_url=None)
    app.state.house = house
    app.add_middleware(Gate, house=house, respond=error_page)
    tell(app, error_page)
    for module in (overview, alerts, links, sites, users, tasks, files, causes, finding, jobs, runs, audit):
        app.include_router(module.router)
    app.add_api_route("/assets/{name}", asset, methods=["GET"])
    return app


def error_page(request: Request, error: HTTPException, error_id: str | None) -> Response:
    """Return the page for an error; whoever has not logged in is sent to do so, and comes back."""
    if error.status_code == HTTPStatus.UNAUTHORIZED and request.method in _SAFE:
        page = _page(request, Caller(""))
        here = f"{request.url.path}?{request.url.query}".removesuffix("?")
        return RedirectResponse(f"{page.airflow(LOGIN)}?{urlencode({'next': here})}", 303)
    caller = getattr(request.state, "caller", Caller(""))
    answer = rendered(
        "error.html", status=error.status_code, page=_page(request, caller),
        title=HTTPStatus(error.status_code).phrase, detail=error.detail, error_id=error_id,
        flaws=getattr(error, "errors", []),
    )  # fmt: skip
    answer.headers.update(error.headers or {})
    return answer


def _page(request: Request, caller: Caller) -> Page:
    return Page(request, caller, span=SPANS["24h"], unit="files", is_csv=False)


def asset(_: Asker, name: Annotated[str, Path(pattern=r"^[a-z.0-9-]{1,60}$")]) -> Response:
    """Return a style, script or picture; what has another content has another name."""
    found = _BY_NAME.get(name)
    if found is None:
        raise Problem(404, f"There is no {name}; load the page again.")
    return Response(found.body, media_type=found.media_type, headers=FOR_A_YEAR)
