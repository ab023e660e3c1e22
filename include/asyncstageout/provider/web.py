"""The pages and the REST API inside Airflow's api-server: its users, its connections."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from ipaddress import ip_network
from pathlib import Path
from threading import Lock
from time import monotonic
from typing import Any, cast

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.api_fastapi.core_api.security import bearer_scheme, get_user
from airflow.configuration import conf
from airflow.models.dag import DagModel
from airflow.providers.postgres.hooks.postgres import PostgresHook
from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowNotFoundException
from psycopg import Connection
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request

from asyncstageout.api.callers import APIHouse, has_bearer, not_authenticated
from asyncstageout.api.front_end import FrontEnd, checked_key, read_key, speaks_for
from asyncstageout.catalogue.connection import prepared
from asyncstageout.catalogue.pool import CataloguePool
from asyncstageout.core.callers import Caller, Role
from asyncstageout.provider.hooks import FTSHook
from asyncstageout.provider.running import CATALOGUE_CONN_ID
from asyncstageout.ui.app import create_room

logger = logging.getLogger(__name__)

OPERATORS_DAG = "stageout_transfer"
"""Whoever may trigger this DAG is an operator."""
FRONT_END_CONN_ID = "stageout_front_end"
FRONT_END_FRESH_S = 60.0
"""A change of the front end's connection or keys counts after so long."""


@cache
def stageout_room() -> Starlette:
    """Return the application of this process."""
    pool = CataloguePool(open_catalogue)
    house = APIHouse(
        catalogue=pool.connection,
        authenticate=Authentication(front_end).caller,
        fts_monitor=fts_monitor,
    )
    return create_room(house)


def open_catalogue() -> Connection:
    """Open the catalogue of the Airflow connection ``stageout_db``."""
    # With SQLAlchemy 2 the hook's connections are psycopg 3's.
    return prepared(cast("Connection", PostgresHook(postgres_conn_id=CATALOGUE_CONN_ID).get_conn()))


def fts_monitor(server: str, job_id: str) -> str | None:
    """Return the page of a job in the FTS monitor, or None without a connection of the server."""
    try:
        return FTSHook(server).monitor_url(job_id)
    except AirflowNotFoundException:
        return None


def front_end() -> FrontEnd | None:
    """Return the front end that the connection ``stageout_front_end`` describes, or None without one.

    :raises ValueError: the connection or a key is wrong; nobody is let in by it then.
    """
    try:
        connection = BaseHook.get_connection(FRONT_END_CONN_ID)
    except AirflowNotFoundException:
        return None
    extra: dict[str, Any] = connection.extra_dejson
    keys = [read_key(Path(path)) for path in extra.get("key_files", [])]
    if connection.password:
        keys.append(checked_key(connection.password.encode(), "in the password"))
    return FrontEnd(
        keys=tuple(keys),
        peers=tuple(ip_network(peer) for peer in extra.get("peers", [])),
        operators=frozenset(extra.get("operators", [])),
    )


class Authentication:
    """Says who asks: by Airflow's token, by the front end's word, or by Airflow's session, in this order.

    :param read_front_end: returns the front end; asked again every minute, so that keys can be changed.
    """

    def __init__(
        self, read_front_end: Callable[[], FrontEnd | None], clock: Callable[[], float] = monotonic
    ) -> None:
        self._read, self._clock = read_front_end, clock
        self._lock = Lock()
        self._front_end: FrontEnd | None = None
        self._read_at_s = -FRONT_END_FRESH_S

    async def caller(self, request: Request) -> Caller:
        """Return who asks.

        :raises HTTPException: 401, nobody whom anybody vouches for.
        """
        if speaks_for(request) and not has_bearer(request):
            trusted = await run_in_threadpool(self._fresh_front_end)
            if trusted is None:
                raise not_authenticated("No front end is trusted here.")
            return trusted.caller(request)
        try:
            user = await get_user(request, None, await bearer_scheme(request))
        except HTTPException as error:
            raise not_authenticated(str(error.detail)) from error
        return await run_in_threadpool(_caller, user)

    def _fresh_front_end(self) -> FrontEnd | None:
        with self._lock:
            now = self._clock()
            if now - self._read_at_s >= FRONT_END_FRESH_S:
                self._front_end, self._read_at_s = None, now
                try:
                    self._front_end = self._read()
                except (ValueError, OSError) as error:
                    logger.error("connection %s: nobody is let in: %s", FRONT_END_CONN_ID, error)
            return self._front_end


def _caller(user: Any) -> Caller:
    """Return a user of Airflow as operator or plain user, by what Airflow's auth manager lets him do."""
    team = DagModel.get_team_name(OPERATORS_DAG) if conf.getboolean("core", "multi_team") else None
    is_operator = get_auth_manager().is_authorized_dag(
        method="POST",
        access_entity=DagAccessEntity.RUN,
        details=DagDetails(id=OPERATORS_DAG, team_name=team),
        user=user,
    )
    return Caller(user.get_name(), Role.OPERATOR if is_operator else Role.USER)
