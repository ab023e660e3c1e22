"""Connections of type ``fts3``, as an FTS3 client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from uuid import UUID

from airflow.sdk import BaseHook

from asyncstageout.clients.credentials.model import Credential
from asyncstageout.clients.errors import FTSError
from asyncstageout.clients.fts3 import FTS3Client
from asyncstageout.clients.http import Access, Patience, new_session
from asyncstageout.clients.tls import REVOCATIONS, Revocation

if TYPE_CHECKING:
    from airflow.sdk import Connection

REST_PORT = 8446
MONITOR_PORT = 8449


class FTSHook(BaseHook):
    """Speaks to the FTS3 server of a connection.

    Host and port are the REST service's; the extra holds ``ca_file``, ``cert_file``, ``key_file``, ``vo`` and
    ``monitor_url`` (see docs/reference/connections.md). A password is taken as a bearer token.

    :param fts_conn_id: connection of type ``fts3``.
    :param connection: the connection itself, when it was fetched before (in a trigger, asynchronously).
    """

    conn_name_attr = "fts_conn_id"
    default_conn_name = "fts3_default"
    conn_type = "fts3"
    hook_name = "FTS3"

    def __init__(
        self, fts_conn_id: str = default_conn_name, connection: Connection | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.fts_conn_id = fts_conn_id
        self._connection = connection

    @property
    def connection(self) -> Connection:
        if self._connection is None:
            self._connection = self.get_connection(self.fts_conn_id)
        return self._connection

    @property
    def endpoint(self) -> str:
        """Return the URL of the REST service.

        :raises ValueError: the connection has no host.
        """
        conn = self.connection
        if not conn.host:
            raise ValueError(f"connection {self.fts_conn_id} has no host; set it to the FTS3 server's name")
        return f"{conn.schema or 'https'}://{conn.host}:{conn.port or REST_PORT}"

    def get_conn(
        self,
        *,
        pool_size: int = 10,
        patience: Patience | None = None,
        credential: Credential | None = None,
        vo: str | None = None,
    ) -> FTS3Client:
        """Return a client; close it after use (it is a context manager).

        :param credential: whose the client is; None: the connection's own.
        :param vo: as FTS sees it; None: for the connection's own credential as it says, else asked from FTS.
        """
        return FTS3Client(
            self.endpoint,
            new_session(self._access(credential), pool_size=pool_size),
            vo=vo or (None if credential else self.connection.extra_dejson.get("vo")) or None,
            patience=patience,
        )

    def _access(self, credential: Credential | None) -> Access:
        extra = self.connection.extra_dejson
        ca: str | None = extra.get("ca_file") or None
        crl: Revocation = extra.get("crl") or ""
        if crl not in REVOCATIONS:
            raise ValueError(f"connection {self.fts_conn_id}: crl is leaf, chain or empty, not {crl!r}")
        if credential is not None:
            return Access(
                ca=ca,
                crl=crl,
                cert_file=credential.cert_file,
                key_file=credential.key_file,
                bearer=credential.bearer,
            )
        token = self.connection.password
        return Access(
            ca=ca,
            crl=crl,
            cert_file=extra.get("cert_file") or None,
            key_file=extra.get("key_file") or None,
            bearer=(lambda: token) if token else None,
        )

    def monitor_url(self, job_id: UUID | str) -> str:
        """Return the page of a job in the FTS monitor."""
        conn = self.connection
        base = conn.extra_dejson.get("monitor_url") or f"https://{conn.host}:{MONITOR_PORT}/fts3/ftsmon"
        return f"{base.rstrip('/')}/#/job/{quote(str(job_id))}"

    def test_connection(self) -> tuple[bool, str]:
        """Ask FTS who we are: shows that it answers, that TLS is right and that the credential counts."""
        try:
            with self.get_conn(patience=Patience(tries=1, connect_s=5, read_s=10)) as client:
                version = client.version()
                me = client.whoami()
        except (FTSError, OSError, ValueError) as error:
            return False, str(error)
        if me.is_anonymous:
            return (
                False,
                f"FTS {version.api} answers but takes us for nobody: check the certificate or token",
            )
        return True, f"FTS {version.api} knows us as {me.user_dn} of {', '.join(me.vos)}"
