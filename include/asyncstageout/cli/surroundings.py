"""What a doctor can look at: the embedded platform, and whatever the options name in place of its parts."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import psutil
import requests
from psycopg import Connection

from asyncstageout.catalogue.connection import connect
from asyncstageout.cli import Advice
from asyncstageout.cli.options import catalogue_address
from asyncstageout.cli.up import current_status
from asyncstageout.clients.dbs import DBSClient
from asyncstageout.clients.fts3 import FTS3Client
from asyncstageout.clients.http import Access, Patience, new_session
from asyncstageout.sandbox import children
from asyncstageout.sandbox.airflow_env import ADMIN, LOGINS_FILE
from asyncstageout.sandbox.layout import LOOPBACK, Layout
from asyncstageout.sandbox.state import PlatformStatus

ONCE = Patience(tries=1, connect_s=5, read_s=15)
TIMEOUT_S = (5, 15)
CONNECTION_VARIABLE = "AIRFLOW_CONN_{}"


@dataclass(frozen=True)
class FTSAccess:
    """An FTS server and who we are there."""

    url: str
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    token: str | None = None

    def client(self) -> FTS3Client:
        """Return a client that asks once and does not wait long; close it after use."""
        token = self.token
        bearer = (lambda: token) if token else None
        access = Access(ca=self.ca, cert_file=self.cert, key_file=self.key, bearer=bearer)
        return FTS3Client(self.url, new_session(access, pool_size=1), patience=ONCE)


@dataclass(frozen=True)
class DBSAccess:
    """A DBS instance and who we are there; ``reader`` and ``migrate``: where not beside ``writer``."""

    writer: str
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    reader: str | None = None
    migrate: str | None = None

    def client(self) -> DBSClient:
        """Return a client that asks once and does not wait long; close it after use."""
        access = Access(ca=self.ca, cert_file=self.cert, key_file=self.key)
        session = new_session(access, pool_size=1)
        return DBSClient(
            self.writer, session, reader_url=self.reader, migrate_url=self.migrate, patience=ONCE
        )


@dataclass(frozen=True)
class Surroundings:
    """One installation. What an option does not give is that of the embedded platform in ``layout``."""

    layout: Layout
    given_catalogue: str | None = None
    given_fts: FTSAccess | None = None
    given_airflow: str | None = None
    airflow_token: str | None = None
    given_dbs: DBSAccess | None = None

    def close(self) -> None:
        """Close what was opened by looking."""
        for name in ("catalogue", "airflow"):
            if (opened := self.__dict__.get(name)) is not None:
                opened.close()

    @cached_property
    def platform(self) -> PlatformStatus | None:
        """The embedded platform, if it runs."""
        return current_status(self.layout)

    @cached_property
    def environment(self) -> Mapping[str, str]:
        """The environment that tasks get: the running scheduler's, else ours."""
        scheduler = self.platform and self.platform.service("scheduler")
        process = scheduler and children.same_process(scheduler.pid, scheduler.created_at_s)
        try:
            return process.environ() if process else os.environ
        except psutil.Error:  # It ended this moment.
            return os.environ

    @cached_property
    def catalogue(self) -> Connection:
        """A connection to the catalogue.

        Raises:
            Advice: there is no catalogue yet.
            psycopg.OperationalError: it does not answer.
        """
        return connect(self.catalogue_url, "aso doctor")

    @property
    def catalogue_url(self) -> str:
        return catalogue_address(self.given_catalogue)

    @cached_property
    def fts(self) -> FTSAccess:
        """Raises KeyError when nothing says where FTS is, ValueError when it cannot be read."""
        return self.given_fts or self.fts_named("fts3_default")

    def fts_named(self, name: str) -> FTSAccess:
        """Return the FTS of an Airflow connection.

        Raises:
            KeyError: the platform's environment has no such connection.
            ValueError: it cannot be read.
        """
        return fts_access(self.environment[CONNECTION_VARIABLE.format(name.upper())])

    @cached_property
    def dbs(self) -> DBSAccess | None:
        """The DBS where blocks are published; None: nothing says where that is.

        Raises:
            ValueError: its connection cannot be read.
        """
        connection = self.environment.get(CONNECTION_VARIABLE.format("DBS_DEFAULT"))
        return self.given_dbs or (dbs_access(connection) if connection else None)

    @property
    def airflow_url(self) -> str:
        return (self.given_airflow or f"http://{LOOPBACK}:{self.layout.ports.api_server}").rstrip("/")

    @cached_property
    def airflow(self) -> requests.Session:
        """A session that is logged in at Airflow.

        Raises:
            requests.RequestException: Airflow does not answer, or refuses the login.
            Advice: no token is given and there is no embedded platform.
        """
        token = self.airflow_token or self.log_in()
        return new_session(Access(bearer=lambda: token), pool_size=1)

    def ask_airflow(self, path: str) -> Any:
        """GET from Airflow's REST API, as JSON."""
        answer = self.airflow.get(f"{self.airflow_url}/api/v2/{path}", timeout=TIMEOUT_S)
        answer.raise_for_status()
        return answer.json()

    def airflow_health(self) -> Any:
        """Return what Airflow's monitor says; that needs no login."""
        with new_session(pool_size=1) as session:
            answer = session.get(f"{self.airflow_url}/api/v2/monitor/health", timeout=TIMEOUT_S)
        answer.raise_for_status()
        return answer.json()

    def log_in(self) -> str:
        """Return a token of the embedded platform's Airflow.

        Raises:
            requests.RequestException: Airflow does not answer, or refuses the login.
            Advice: there is no embedded platform.
        """
        logins = self.layout.secrets / LOGINS_FILE
        if not logins.exists():
            raise Advice("no login at Airflow is known", "Give --airflow-token, or start the platform.")
        passwords = json.loads(logins.read_text())
        with new_session(pool_size=1) as session:
            answer = session.post(
                f"{self.airflow_url}/auth/token",
                json={"username": ADMIN, "password": passwords[ADMIN]},
                timeout=TIMEOUT_S,
            )
        answer.raise_for_status()
        return str(answer.json()["access_token"])


def fts_access(connection: str) -> FTSAccess:
    """Return what an Airflow connection of type ``fts3`` says, given as JSON.

    Raises:
        ValueError: it is not JSON, or names no host.
    """
    facts, extra = _facts("fts3_default", connection)
    return FTSAccess(
        url=f"{facts.get('schema') or 'https'}://{facts['host']}:{facts.get('port') or 8446}",
        ca=extra.get("ca_file"),
        cert=extra.get("cert_file"),
        key=extra.get("key_file"),
        token=facts.get("password"),
    )


def dbs_access(connection: str) -> DBSAccess:
    """Return what an Airflow connection of type ``dbs`` says, given as JSON.

    Raises:
        ValueError: it is not JSON, or names no host.
    """
    facts, extra = _facts("dbs_default", connection)
    front = f"{facts.get('schema') or 'https'}://{facts['host']}:{facts.get('port') or 8443}"
    writer, reader, migrate = (
        f"{front}{path}" if path and path.startswith("/") else path or None
        for path in (extra.get(name) for name in ("writer", "reader", "migrate"))
    )
    return DBSAccess(
        writer=writer or f"{front}/dbs/prod/phys03/DBSWriter",
        ca=extra.get("ca_file"),
        cert=extra.get("cert_file"),
        key=extra.get("key_file"),
        reader=reader,
        migrate=migrate,
    )


def _facts(name: str, connection: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a connection and its extra."""
    facts = json.loads(connection)
    if not isinstance(facts, dict) or not facts.get("host"):
        raise ValueError(f"the connection {name} names no host")
    extra = facts.get("extra") or {}
    return facts, json.loads(extra) if isinstance(extra, str) else extra
