"""Airflow connections as HTTP clients use them: address, trust, credential."""

from __future__ import annotations

from typing import TYPE_CHECKING

import requests
from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowNotFoundException

from asyncstageout.clients.http import Access, new_session
from asyncstageout.clients.tls import REVOCATIONS, Revocation, UnreadableCAs

if TYPE_CHECKING:
    from airflow.sdk import Connection


class ConnectionUnusable(ValueError):
    """A connection is missing, or something in it is; the text names both, and no secret."""

    def __init__(self, conn_id: str, why: str) -> None:
        self.conn_id = conn_id
        super().__init__(f"connection {conn_id}: {why}")


def connection(conn_id: str, *, needs_host: bool = True) -> Connection:
    """Return a connection.

    :raises ConnectionUnusable: there is none, or it has no host and needs one.
    """
    try:
        conn = BaseHook.get_connection(conn_id)
    except AirflowNotFoundException as error:
        raise ConnectionUnusable(conn_id, "there is no such connection") from error
    if needs_host and not conn.host:
        raise ConnectionUnusable(conn_id, "it has no host")
    return conn


def session_of(conn: Connection) -> requests.Session:
    """Return a session with the trust and the client certificate that the extra names.

    :raises ConnectionUnusable: it cannot be used.
    """
    extra = conn.extra_dejson
    crl: Revocation = extra.get("crl") or ""
    if crl not in REVOCATIONS:
        raise ConnectionUnusable(conn.conn_id, f"crl is leaf, chain or empty, not {crl!r}")
    try:
        return new_session(
            Access(
                ca=extra.get("ca_file") or None,
                cert_file=extra.get("cert_file") or None,
                key_file=extra.get("key_file") or None,
                crl=crl,
            )
        )
    except UnreadableCAs as error:
        raise ConnectionUnusable(conn.conn_id, str(error)) from error


def address_of(conn: Connection) -> str:
    """Return ``https://HOST[:PORT]``, or what the connection has as its schema in place of https."""
    port = f":{conn.port}" if conn.port else ""
    return f"{conn.schema or 'https'}://{conn.host}{port}"


def crab_at(conn_id: str, instance: str) -> tuple[str, requests.Session]:
    """Return the base of CRAB's REST and a session for it.

    :raises ConnectionUnusable: it cannot be used.
    """
    conn = connection(conn_id)
    return f"{address_of(conn)}/crabserver/{instance}", session_of(conn)
