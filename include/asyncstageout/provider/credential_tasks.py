"""The bodies of the tasks of ``stageout_credentials``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from asyncstageout.clients.credentials.model import Credential
from asyncstageout.clients.fts3 import FTS3Client
from asyncstageout.clients.http import Patience
from asyncstageout.provider.credentials import credential_source
from asyncstageout.provider.fts_clients import open_client
from asyncstageout.provider.running import run_step
from asyncstageout.steps import credentials

PATIENCE = Patience(tries=2, connect_s=5, read_s=20, deadline_s=40)
"""There is a next run: a server that does not answer must not hold this one."""


def renew(context: Mapping[str, Any]) -> dict[str, Any]:
    """Renew what ends soon.

    :raises ValueError: the connection ``stageout_credentials`` is incomplete.
    """
    source = credential_source()
    return run_step(context, lambda conn, _: credentials.renew(conn, source, client_of)).as_xcom()


def verdict(context: Mapping[str, Any]) -> dict[str, Any]:
    return run_step(context, lambda conn, _: credentials.verdict(conn)).as_xcom()


def client_of(server: str, credential: Credential | None) -> FTS3Client:
    return open_client(server, credential=credential, patience=PATIENCE)
