"""FTS clients by server and identity, made from Airflow's connections."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Self, cast

from airflow.sdk.exceptions import AirflowNotFoundException
from psycopg import Connection

from asyncstageout.catalogue.fts_servers import servers
from asyncstageout.clients.credentials.model import (
    Credential,
    CredentialMissing,
    CredentialSource,
    StorageTokens,
)
from asyncstageout.clients.errors import FTSError
from asyncstageout.clients.fts3 import FTS3Client
from asyncstageout.clients.http import Patience
from asyncstageout.core.identities import Identity
from asyncstageout.provider.hooks import FTSHook

if TYPE_CHECKING:
    from airflow.sdk import Connection as AirflowConnection


class NotConfigured(FTSError):
    """There is no usable Airflow connection for an FTS server."""

    maybe_delivered = False
    advice = "Make or mend the Airflow connection of this name, or take the server out with `aso servers`"


def open_client(
    server: str,
    *,
    connection: AirflowConnection | None = None,
    credential: Credential | None = None,
    vo: str | None = None,
    pool_size: int = 10,
    patience: Patience | None = None,
) -> FTS3Client:
    """Return the client of one server; close it after use.

    :param connection: the connection of that name, when it was fetched before.
    :param credential: whose the client is; None: the service's own.
    :raises NotConfigured: the connection is missing, or cannot be used.
    """
    try:
        hook = FTSHook(server, connection=connection)
        return hook.get_conn(pool_size=pool_size, patience=patience, credential=credential, vo=vo)
    except (AirflowNotFoundException, ValueError, OSError) as error:
        raise NotConfigured(server, "its connection", detail=str(error)) from error


def _source() -> CredentialSource | None:
    from asyncstageout.provider.credentials import credential_source  # noqa: PLC0415 - not needed by all

    return credential_source()


class HookClients:
    """Implements ``steps.door.FTSClients``, for several threads; a context manager, which closes all clients.

    :param vos: the VO of each server that has a row.
    :param pool_size: connections kept per client, so about the number of threads.
    :param source: gives the source of users' credentials, asked for once.
    """

    def __init__(
        self,
        vos: Mapping[str, str],
        *,
        pool_size: int = 10,
        patience: Patience | None = None,
        source: Callable[[], CredentialSource | None] = _source,
    ) -> None:
        self._vos = vos
        self._pool_size = pool_size
        self._patience = patience
        self._make_source = source
        self._source: CredentialSource | None = None
        self._has_source = False
        self._clients: dict[tuple[str, str], FTS3Client] = {}
        self._lock = threading.Lock()
        self._open = ExitStack()

    @classmethod
    def of(cls, conn: Connection, *, pool_size: int = 10, patience: Patience | None = None) -> Self:
        """Return clients for the servers of a catalogue."""
        vos = {server.name: server.vo for server in servers(conn)}
        return cls(vos, pool_size=pool_size, patience=patience)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def client(self, server: str, identity: str) -> FTS3Client:
        """Return the client with which an identity speaks to a server.

        :raises CredentialProblem: the identity has no credential.
        :raises NotConfigured: the server has no usable connection.
        """
        key = (server, identity)
        with self._lock:
            if key in self._clients:
                return self._clients[key]
        client = self._make(server, Identity.read(identity))
        with self._lock:
            # Two threads may have made it at once: the first one's is everybody's.
            kept = self._clients.setdefault(key, client)
            self._open.callback(client.close)
        return kept

    def storage_tokens(self, identity: str) -> StorageTokens | None:
        """Return who gives tokens for files at storages; None: nobody does."""
        source = self._credentials(Identity.read(identity))
        return cast("StorageTokens", source) if hasattr(source, "tokens") else None

    def _make(self, server: str, identity: Identity) -> FTS3Client:
        return open_client(
            server,
            credential=None if identity.is_service else self.credential(identity),
            # A user's VO, as FTS sees it, hangs on his attributes (cms/uscms): only FTS can say.
            vo=(identity.vo or self._vos.get(server) or None) if identity.is_service else None,
            pool_size=self._pool_size,
            patience=self._patience,
        )

    def credential(self, identity: Identity) -> Credential:
        """Return the credential of a user.

        :raises CredentialProblem: there is none.
        """
        source = self._credentials(identity)
        if source is None:
            raise CredentialMissing(identity, "no connection says where users' credentials come from")
        return source.credential(identity)

    def _credentials(self, identity: Identity) -> CredentialSource | None:
        """Return the source; a connection that is wrong stops those who need it, and nobody else."""
        with self._lock:
            if not self._has_source:
                try:
                    self._source, self._has_source = self._make_source(), True
                except ValueError as error:
                    raise CredentialMissing(identity, str(error)) from error
            return self._source
