"""The API in this process, against a catalogue of one test alone; who asks is said, not proven."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TypeAlias

import pytest
from fastapi import FastAPI
from psycopg import Connection
from starlette.requests import Request
from starlette.testclient import TestClient

from asyncstageout.api.app import create_app
from asyncstageout.api.callers import APIHouse, not_authenticated
from asyncstageout.api.limits import Limits, Rate
from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.pool import CataloguePool
from asyncstageout.core.callers import Caller, Role

ALICE = Caller("alice")
BOB = Caller("bob")
OPERATOR = Caller("olga", Role.OPERATOR)
SERVICE = Caller("crab", Role.SERVICE, frozenset({"alice"}))
"""Acts for alice alone."""
ANY_SERVICE = Caller("wmagent", Role.SERVICE, frozenset({"*"}))

CALLERS = {caller.name: caller for caller in (ALICE, BOB, OPERATOR, SERVICE, ANY_SERVICE)}
UNLIMITED = Limits(rates=dict.fromkeys(Role, Rate(1e9, 1e9)))

API: TypeAlias = Callable[..., TestClient]


async def by_name(request: Request) -> Caller:
    """Take who asks from the token, which is his name."""
    name = request.headers.get("authorization", "").removeprefix("Bearer ")
    if name not in CALLERS:
        raise not_authenticated()
    return CALLERS[name]


@pytest.fixture
def pool(catalogue_url: str) -> Iterator[CataloguePool]:
    pool = CataloguePool(lambda: connect(catalogue_url), patience_s=2)
    yield pool
    pool.close()


@pytest.fixture
def house(conn: Connection, pool: CataloguePool) -> APIHouse:
    """An API without limits of rate, over the catalogue of ``conn`` with its sites."""
    return APIHouse(catalogue=pool.connection, authenticate=by_name, limits=UNLIMITED)


@pytest.fixture
def app(house: APIHouse) -> FastAPI:
    return create_app(house)


@pytest.fixture
def api(app: FastAPI) -> Iterator[API]:
    """Return a client that asks as this caller; None: as nobody. Paths begin with /api/v1."""
    with ExitStack() as clients:

        def asking_as(caller: Caller | None = OPERATOR, **options: bool) -> TestClient:
            client = clients.enter_context(TestClient(app, base_url="http://stageout.test", **options))
            if caller is not None:
                CALLERS.setdefault(caller.name, caller)
                client.headers["Authorization"] = f"Bearer {caller.name}"
            return client

        yield asking_as
