"""The pages and the API as Airflow serves them, on loopback; who asks is said by a cookie, not proven."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote

from starlette.requests import Request

from asyncstageout.api.callers import APIHouse, not_authenticated
from asyncstageout.api.limits import Limits, Rate
from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.pool import CataloguePool
from asyncstageout.core.callers import Caller, Role
from asyncstageout.ui.app import create_room
from client.serving import serving

OPERATORS = frozenset({"olga", "pietro"})
FTS_MONITOR = "https://{}.example.test:8449/fts3/ftsmon/#/job/{}"
UNLIMITED = Limits(rates=dict.fromkeys(Role, Rate(1e9, 1e9)))


async def by_cookie(request: Request) -> Caller:
    """Take who asks from the cookie ``who``."""
    name = unquote(request.cookies.get("who", ""))
    if not name:
        raise not_authenticated()
    return Caller(name, Role.OPERATOR if name in OPERATORS else Role.USER)


@contextmanager
def room(catalogue_url: str) -> Iterator[str]:
    """Serve a catalogue; yield the URL of the pages, without a slash at its end."""
    pool = CataloguePool(lambda: connect(catalogue_url))
    house = APIHouse(
        catalogue=pool.connection, authenticate=by_cookie, limits=UNLIMITED, fts_monitor=FTS_MONITOR.format
    )
    try:
        with serving(create_room(house)) as url:
            yield f"{url}/stageout/ui"
    finally:
        pool.close()
