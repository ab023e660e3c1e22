"""Who asks: found before a request is read, handed to routes by :data:`Asker` and :data:`Operator`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from threading import Lock
from time import monotonic
from typing import Annotated

from fastapi import Depends
from psycopg import Connection
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from asyncstageout.api.limits import Limits
from asyncstageout.api.problems import Problem
from asyncstageout.catalogue.services import submitting_services
from asyncstageout.catalogue.step_runs import Actor
from asyncstageout.core.callers import Caller, Role

SERVICES_FRESH_S = 10.0
"""A service that is added, changed or removed counts after so long."""
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
SIGNED_STATUS = "cms-auth-status"
FORGERY_HEADER = "x-requested-with"


@dataclass(frozen=True, kw_only=True)
class APIHouse:
    """What the API needs from where it lives."""

    catalogue: Callable[[], AbstractContextManager[Connection]]
    """Lends a connection for one request."""
    authenticate: Callable[[Request], Awaitable[Caller]]
    """Returns who asks, as user or operator; raises ``HTTPException`` 401 if nobody says so."""
    limits: Limits = field(default_factory=Limits)
    fts_monitor: Callable[[str, str], str | None] = lambda _server, _job_id: None
    """Returns the page of a job in the monitor of an FTS server; None: nobody knows of one."""
    clock: Callable[[], float] = monotonic


def not_authenticated(detail: str = "Say who you are: a bearer token, or a certificate.") -> Problem:
    return Problem(401, detail, kind="not-authenticated", headers={"WWW-Authenticate": "Bearer"})


def has_bearer(request: Request) -> bool:
    """Say whether a request brings a token of its own, which always counts before what a browser adds."""
    return request.headers.get("authorization", "").lower().startswith("bearer ")


def refuse_forgery(request: Request) -> None:
    """Refuse a change that another site may have made a browser ask for, in its user's name.

    ====================  ==========================================================================
    it comes with         it is let through if
    ====================  ==========================================================================
    a bearer token        always: no browser adds one by itself
    ``X-Requested-With``  always: a browser asks us before it sends this for another site
    a certificate         no browser sent it (no ``Origin``, no ``Sec-Fetch-Site``)
    a cookie              never
    ====================  ==========================================================================

    Raises:
        Problem: 403.
    """
    headers = request.headers
    if request.method in SAFE_METHODS or has_bearer(request) or FORGERY_HEADER in headers:
        return
    if SIGNED_STATUS in headers and "origin" not in headers and "sec-fetch-site" not in headers:
        return
    raise Problem(
        403,
        "From a browser's session, a change needs the header X-Requested-With (any value).",
        kind="forgery",
    )


class Callers:
    """Finds who asks, and knows which accounts are services."""

    def __init__(self, house: APIHouse) -> None:
        self._house = house
        self._lock = Lock()
        self._services: dict[str, frozenset[str]] = {}
        self._read_at_s = -SERVICES_FRESH_S

    async def of(self, request: Request) -> Caller:
        """Return who asks.

        Raises:
            HTTPException: 401, nobody says who; 403, it may be forged.
        """
        caller = await self._house.authenticate(request)
        refuse_forgery(request)
        if caller.role is not Role.USER:
            return caller
        services = await run_in_threadpool(self._fresh_services)
        users = services.get(caller.name)
        return caller if users is None else Caller(caller.name, Role.SERVICE, users)

    def _fresh_services(self) -> dict[str, frozenset[str]]:
        with self._lock:
            now = self._house.clock()
            if now - self._read_at_s >= SERVICES_FRESH_S:
                with self._house.catalogue() as conn:
                    self._services = {one.name: one.may_act_for for one in submitting_services(conn)}
                self._read_at_s = now
            return self._services


def who_asks(request: Request) -> Caller:
    """Return who asks; every route depends on it, at least through :func:`an_operator`."""
    caller: Caller | None = getattr(request.state, "caller", None)
    if caller is None:
        raise not_authenticated()
    return caller


Asker = Annotated[Caller, Depends(who_asks)]
"""Whoever asks, authenticated."""


def an_operator(caller: Asker) -> Caller:
    if not caller.is_operator:
        raise Problem(403, f"{caller.name} is no operator.", kind="operators-only")
    return caller


Operator = Annotated[Caller, Depends(an_operator)]
"""An operator; all others are refused."""


def the_catalogue(request: Request) -> Iterator[Connection]:
    house: APIHouse = request.app.state.house
    with house.catalogue() as conn:
        yield conn


Catalogue = Annotated[Connection, Depends(the_catalogue)]
"""A connection of this request alone, in autocommit; no statement runs longer than the pool allows."""


def actor(caller: Caller, action: str) -> Actor:
    """Return who does something, for the record of the step that does it."""
    return Actor(task_id=f"api: {action}", name=caller.name)
