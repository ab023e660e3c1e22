"""Whether the service can work: for load balancers, so without authentication, and telling no secret."""

from __future__ import annotations

import logging
from typing import Literal

import psycopg
from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from asyncstageout.api.callers import APIHouse
from asyncstageout.catalogue.pool import CatalogueBusy
from asyncstageout.catalogue.schema_version import is_current

logger = logging.getLogger(__name__)
router = APIRouter(tags=["monitoring"])


class Health(BaseModel):
    """What works."""

    status: Literal["ok", "failing"]
    catalogue: Literal["reachable", "unreachable", "busy"]
    schema_version: Literal["current", "other", "unknown"]


@router.get(
    "/health",
    response_model=Health,
    responses={503: {"model": Health, "description": "It cannot."}},
    openapi_extra={"security": []},
)
def health(request: Request) -> Response:
    """Say whether the catalogue answers and has the right schema. Anybody may ask."""
    found = _look(request.app.state.house)
    return JSONResponse(found.model_dump(), 200 if found.status == "ok" else 503)


def _look(house: APIHouse) -> Health:
    try:
        with house.catalogue() as conn:
            current = is_current(conn)
    except CatalogueBusy:
        return Health(status="failing", catalogue="busy", schema_version="unknown")
    except psycopg.OperationalError as error:
        logger.error("health: the catalogue does not answer: %s", error)
        return Health(status="failing", catalogue="unreachable", schema_version="unknown")
    return Health(
        status="ok" if current else "failing",
        catalogue="reachable",
        schema_version="current" if current else "other",
    )
