"""What goes wrong, told as RFC 9457 (``application/problem+json``): no stack trace, no SQL."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Any
from uuid import uuid4

import psycopg
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from psycopg.errors import QueryCanceled
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from asyncstageout.catalogue.config_changes import UnknownSite
from asyncstageout.catalogue.pool import CatalogueBusy
from asyncstageout.core.policies import UnknownSetting, WrongValue

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
URN = "urn:asyncstageout:problem:"


class Flaw(BaseModel):
    """One thing that is wrong with a request."""

    detail: str
    pointer: str | None = Field(None, description="JSON pointer into the body, such as #/0/source_lfn.")
    parameter: str | None = Field(None, description="Name of the parameter in query, path or header.")


class ProblemBody(BaseModel):
    """An answer that says why a request was not done (RFC 9457)."""

    model_config = ConfigDict(
        title="Problem",
        json_schema_extra={
            "examples": [
                {
                    "type": f"{URN}invalid-request",
                    "title": "Unprocessable Content",
                    "status": 422,
                    "detail": "1 thing is wrong with the request.",
                    "instance": "/stageout/api/v1/restrictions",
                    "errors": [{"detail": "Field required", "pointer": "#/reason"}],
                }
            ]
        },
    )

    type: str = Field("about:blank", description="Kind of problem, for programs.")
    title: str
    status: int
    detail: str = Field(description="What is wrong here, for people.")
    instance: str = Field(description="Path of the request.")
    errors: list[Flaw] | None = None
    files: int | None = Field(None, description="How many files it is about (needs-approval).")
    error_id: str | None = Field(None, description="With this the log tells more (status 500).")


class Problem(HTTPException):
    """An answer that is an error; raise it anywhere in a route.

    Args:
        status: HTTP status, 400 or more.
        detail: what is wrong, for people.
        kind: what is wrong, for programs: last part of the ``type``; empty: the status says it all.
        errors: each thing that is wrong, if there are several.
        files: how many files it is about.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        kind: str = "",
        errors: Iterable[Flaw] = (),
        files: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, detail, headers)
        self.kind, self.errors, self.files = kind, list(errors), files


def answer(request: Request, error: HTTPException, error_id: str | None = None) -> JSONResponse:
    """Return the body for an error."""
    kind = getattr(error, "kind", "")
    body = ProblemBody(
        type=URN + kind if kind else "about:blank",
        title=HTTPStatus(error.status_code).phrase,
        status=error.status_code,
        detail=error.detail,
        instance=request.url.path,
        errors=getattr(error, "errors", None) or None,
        files=getattr(error, "files", None),
        error_id=error_id,
    )
    return JSONResponse(
        body.model_dump(exclude_none=True),
        status_code=error.status_code,
        headers=error.headers,
        media_type=MEDIA_TYPE,
    )


Respond = Callable[[Request, HTTPException, str | None], Response]
"""Makes an answer of an error, and of the id under which the log tells more of it."""


def malformed(error: RequestValidationError) -> Problem:
    """Return what a client is told whose request does not fit: 400 if it is no JSON, else 422."""
    found = error.errors()
    kind = error.body.get("kind") if isinstance(error.body, dict) else None
    flaws = [_flaw(_without(one["loc"], kind), one["msg"]) for one in found]
    if any(one["type"] == "json_invalid" for one in found):
        return Problem(400, "The body is no JSON.", kind="not-json", errors=flaws)
    count = len(flaws)
    detail = f"{count} thing{'s are' if count > 1 else ' is'} wrong with the request."
    return Problem(422, detail, kind="invalid-request", errors=flaws)


def _without(location: tuple[str | int, ...], kind: object) -> tuple[str | int, ...]:
    """Return a place without the kind of the body, which pydantic puts first where there are several."""
    return location[:1] + location[2:] if location[:2] == ("body", kind) else location


def _flaw(location: tuple[str | int, ...], message: str) -> Flaw:
    place, *rest = location
    if place == "body":
        steps = (str(step).replace("~", "~0").replace("/", "~1") for step in rest)
        return Flaw(detail=message, pointer="#" + "".join(f"/{step}" for step in steps))
    return Flaw(detail=message, parameter=".".join(map(str, rest)) or str(place))


def _http(_: Request, error: Exception) -> HTTPException:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for it alone
    return error


def _invalid(_: Request, error: Exception) -> HTTPException:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for it alone
    return malformed(error)


def _too_slow(request: Request, _: Exception) -> HTTPException:
    logger.warning("%s %s took the catalogue too long", request.method, request.url.path)
    return Problem(
        503,
        "The catalogue needs too long for this; narrow the question: one task or user, fewer states,"
        " a later `since`.",
        kind="too-slow",
    )


def _busy(_: Request, __: Exception) -> HTTPException:
    return Problem(503, "Too many ask at once; try again.", kind="busy", headers={"Retry-After": "5"})


def _unreachable(request: Request, error: Exception) -> HTTPException:
    logger.error("%s %s: the catalogue does not answer: %s", request.method, request.url.path, error)
    return Problem(
        503, "The catalogue does not answer; try again.", kind="no-catalogue", headers={"Retry-After": "10"}
    )


def _impossible(request: Request, error: Exception) -> HTTPException:
    logger.warning("%s %s: the catalogue cannot hold a value: %s", request.method, request.url.path, error)
    return Problem(422, "A value cannot be kept, such as a NUL character.", kind="invalid-request")


def _wrong(_: Request, error: Exception) -> HTTPException:
    return Problem(422, str(error), kind="invalid-request", errors=[Flaw(detail=str(error))])


TOLD: dict[type[Exception], Callable[[Request, Exception], HTTPException]] = {
    HTTPException: _http,
    RequestValidationError: _invalid,
    QueryCanceled: _too_slow,
    CatalogueBusy: _busy,
    psycopg.OperationalError: _unreachable,
    psycopg.DataError: _impossible,
    UnknownSetting: _wrong,
    WrongValue: _wrong,
    UnknownSite: _wrong,
}
"""What is raised in a route -> what is answered. Everything else is a defect: 500."""


def tell(app: FastAPI, respond: Respond = answer) -> None:
    """Have an application answer every error as a problem, or as ``respond`` does."""
    for kind, read in TOLD.items():
        app.add_exception_handler(kind, _handler(read, respond))
    app.add_exception_handler(Exception, _handler_of_defects(respond))


def _handler(
    read: Callable[[Request, Exception], HTTPException], respond: Respond
) -> Callable[[Request, Exception], Response]:
    return lambda request, error: respond(request, read(request, error), None)


def _handler_of_defects(respond: Respond) -> Callable[[Request, Exception], Response]:
    def defect(request: Request, error: Exception) -> Response:
        """Answer 500 with an id under which the log has the rest."""
        error_id = str(uuid4())
        logger.error("error %s: %s %s", error_id, request.method, request.url.path, exc_info=error)
        problem = Problem(
            500, "A defect of the service; its operators find it by the error_id.", kind="defect"
        )
        return respond(request, problem, error_id)

    return defect


def described(schema: dict[str, Any]) -> dict[str, Any]:
    """Put problems into an OpenAPI document, as the answer of every operation that does not do it."""
    models = schema.setdefault("components", {}).setdefault("schemas", {})
    own = ProblemBody.model_json_schema(ref_template="#/components/schemas/{model}")
    models |= own.pop("$defs") | {"Problem": own}
    for unused in ("HTTPValidationError", "ValidationError"):
        models.pop(unused, None)
    reference = {"content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}}
    for operations in schema["paths"].values():
        for operation in operations.values():
            answers = operation["responses"]
            answers.pop("422", None)
            answers["4XX"] = {"description": "The request is not right."} | reference
            answers["5XX"] = {"description": "The service cannot."} | reference
    return schema
