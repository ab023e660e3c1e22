"""The pages in this process, against a catalogue of one test alone; who asks is said by a cookie."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TypeAlias

import pytest
from fastapi import FastAPI
from psycopg import Connection
from starlette.testclient import TestClient

from asyncstageout.api.callers import APIHouse
from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.pool import CataloguePool
from asyncstageout.ui.app import create_pages, create_room
from client.serving import mounted
from ui.serving import UNLIMITED, by_cookie

Room: TypeAlias = Callable[..., TestClient]
BASE = "http://stageout.test"
UI = "/stageout/ui"


@pytest.fixture
def pool(catalogue_url: str) -> Iterator[CataloguePool]:
    pool = CataloguePool(lambda: connect(catalogue_url), patience_s=2)
    yield pool
    pool.close()


@pytest.fixture
def house(conn: Connection, pool: CataloguePool) -> APIHouse:
    return APIHouse(catalogue=pool.connection, authenticate=by_cookie, limits=UNLIMITED)


@pytest.fixture
def pages(house: APIHouse) -> FastAPI:
    return create_pages(house)


@pytest.fixture
def room(house: APIHouse) -> Iterator[Room]:
    """Return a browser without a script, as this user; None: as nobody. Paths begin with /stageout."""
    app = mounted(create_room(house))
    with ExitStack() as clients:

        def looking_as(name: str | None = "olga", **options: bool) -> TestClient:
            client = clients.enter_context(TestClient(app, base_url=BASE, follow_redirects=False, **options))
            if name is not None:
                client.cookies.set("who", name)
            return client

        yield looking_as
