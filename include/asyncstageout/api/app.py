"""Puts the API together."""

from __future__ import annotations

from functools import cached_property
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from asyncstageout.api import (
    alerts,
    cleaning,
    configuration,
    crab,
    health,
    metadata,
    metrics,
    outbox,
    publication,
    statistics,
    tasks,
    transfers,
)
from asyncstageout.api.callers import APIHouse
from asyncstageout.api.gate import Gate
from asyncstageout.api.problems import described, tell

PREFIX = "/api/v1"

TAGS = [
    {"name": "transfers", "description": "Files: hand them in, ask for them, kill and retry them."},
    {"name": "tasks", "description": "The tasks that files belong to."},
    {"name": "metadata", "description": "What publication wants to know of a file."},
    {"name": "publication", "description": "Blocks of files on their way into DBS."},
    {"name": "cleaning", "description": "For operators: temporary copies, and what nobody needs."},
    {
        "name": "configuration",
        "description": "For operators: policies, restrictions, servers, changes.",
    },
    {"name": "outbox", "description": "For operators: who is told of what happens, and dead letters."},
    {"name": "alerts", "description": "For operators: what needs a person, who was told, silences."},
    {"name": "monitoring", "description": "What happened; health and metrics."},
    {"name": "crab", "description": "CRAB's own interface."},
]

SECURITY = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "Airflow's token: POST /auth/token.",
    },
    "session": {
        "type": "apiKey",
        "in": "cookie",
        "name": "_token",
        "description": "Airflow's session in a browser; changes need the header X-Requested-With.",
    },
    "certificate": {
        "type": "apiKey",
        "in": "header",
        "name": "cms-authn-hmac",
        "description": "A client certificate, signed by the trusted TLS front end in cms-authn-* headers.",
    },
}

DESCRIPTION = """\
Hands files to AsyncStageOut and tells what becomes of them. Errors are `application/problem+json` (RFC 9457).
Users see and act on their own files, submitting services on those of the users that they may act for,
operators on all. Another user's file does not exist (404)."""


class API(FastAPI):
    """The application, with its errors and security described."""

    @cached_property
    def document(self) -> dict[str, Any]:
        schema = get_openapi(
            title=self.title,
            version=self.version,
            description=self.description,
            routes=self.routes,
            tags=TAGS,
            servers=[{"url": "/stageout"}],
        )
        schema["components"]["securitySchemes"] = SECURITY
        schema["security"] = [{name: []} for name in SECURITY]
        return described(schema)

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI 3.1 document."""
        return self.document


def create_app(house: APIHouse) -> API:
    """Return the application; whoever mounts it decides where."""
    app = API(
        title="AsyncStageOut",
        version=version("asyncstageout"),
        description=DESCRIPTION,
        openapi_url=f"{PREFIX}/openapi.json",
        # Their pages load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.house = house
    app.add_middleware(Gate, house=house)
    tell(app)
    for module in (
        transfers,
        tasks,
        metadata,
        publication,
        cleaning,
        configuration,
        outbox,
        alerts,
        statistics,
        health,
        metrics,
    ):
        app.include_router(module.router, prefix=PREFIX)
    app.include_router(crab.router)
    return app
