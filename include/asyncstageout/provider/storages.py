"""Connections of type ``stageout_storage``: how we ourselves reach storages, to delete temporary copies."""

from __future__ import annotations

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast
from urllib.parse import urlsplit

from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowNotFoundException

from asyncstageout.clients import xrootd_storage
from asyncstageout.clients.credentials.model import Credential, CredentialProblem, DeletionTokens
from asyncstageout.clients.deletion import Deleter, deletable_schemes
from asyncstageout.clients.errors import NoSuchFile, StorageError
from asyncstageout.clients.http import Access, Patience, new_session
from asyncstageout.clients.storage import StorageClient
from asyncstageout.clients.tls import REVOCATIONS, Revocation
from asyncstageout.core.identities import SERVICE, Identity
from asyncstageout.provider.fts_clients import HookClients

if TYPE_CHECKING:
    from airflow.sdk import Connection

STORAGE_CONN_ID = "stageout_storage"
PATIENCE = Patience(tries=2, connect_s=10, read_s=30, longest_wait_s=5, deadline_s=60)
"""There is a next run: a storage that does not answer must not hold this one."""
CONNECTIONS = 4
"""Kept to one server, as many as requests are under way there."""
SERVERS = 256
CLIENTS = 24
"""Kept open at a time: each user with a certificate has connections of his own."""


class StorageConnectionMissing(LookupError):
    """Nothing says how storages are reached."""

    def __init__(self, conn_id: str) -> None:
        super().__init__(
            f"there is no Airflow connection {conn_id} of type stageout_storage: make it"
            " (docs/how-to/cleaning.md), or switch cleaning off: aso policy set clean=false"
        )


class StorageHook(BaseHook):
    """Reaches storages as a connection says.

    The extra holds ``ca_file``, ``crl``, ``cert_file``, ``key_file``, and ``hosts`` with these for single
    storages (see docs/reference/connections.md). A password is taken as a bearer token.

    :param storage_conn_id: connection of type ``stageout_storage``.
    :param connection: the connection itself, when it was fetched before.
    """

    conn_name_attr = "storage_conn_id"
    default_conn_name = STORAGE_CONN_ID
    conn_type = "stageout_storage"
    hook_name = "Stage-out storages"

    def __init__(
        self, storage_conn_id: str = default_conn_name, connection: Connection | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.storage_conn_id = storage_conn_id
        self._connection = connection

    @property
    def connection(self) -> Connection:
        """Return the connection.

        :raises StorageConnectionMissing: there is none.
        """
        if self._connection is None:
            try:
                self._connection = self.get_connection(self.storage_conn_id)
            except AirflowNotFoundException:
                raise StorageConnectionMissing(self.storage_conn_id) from None
        return self._connection

    @property
    def hosts(self) -> Mapping[str, Mapping[str, str]]:
        """Return what is set for single storages, by host.

        :raises ValueError: it is no object of objects.
        """
        return cast("Mapping[str, Mapping[str, str]]", self._object("hosts", of=dict))

    def access(self, host: str = "", credential: Credential | None = None) -> Access:
        """Return how a storage is reached.

        :param credential: in whose name; None: the service's own.
        :raises ValueError: the connection is wrong.
        """
        extra = self.connection.extra_dejson | dict(self.hosts.get(host, {}))
        crl: Revocation = extra.get("crl") or ""
        if crl not in REVOCATIONS:
            raise ValueError(f"connection {self.storage_conn_id}: crl is leaf, chain or empty, not {crl!r}")
        token = self.connection.password
        if credential is not None:
            cert_file, key_file, bearer = credential.cert_file, credential.key_file, credential.bearer
        else:
            cert_file, key_file = extra.get("cert_file") or None, extra.get("key_file") or None
            bearer = (lambda: token) if token else None
        return Access(
            ca=extra.get("ca_file") or None,
            crl=crl,
            cert_file=cert_file,
            key_file=key_file,
            bearer=bearer,
            connect_to=cast("Mapping[str, str]", self._object("connect_to", of=str)),
        )

    def get_conn(self, host: str = "", credential: Credential | None = None) -> StorageClient:
        """Return a client over WebDAV; close it after use (it is a context manager)."""
        session = new_session(self.access(host, credential), pool_size=CONNECTIONS, servers=SERVERS)
        return StorageClient(session, patience=PATIENCE)

    def test_connection(self) -> tuple[bool, str]:
        """Look at the extra's ``test_url`` with the service's own credential."""
        url = str(self.connection.extra_dejson.get("test_url") or "")
        try:
            if not url:
                self.get_conn().close()
                return True, "Clients can be made; name a test_url, such as davs://se.example.org/store/temp"
            with HookDeleters(self) as deleters:
                deleters.deleter(SERVICE, url, urlsplit(url).path).look(url)
        except NoSuchFile:
            return True, f"{urlsplit(url).netloc} answers, and there is nothing at this path"
        except (StorageError, CredentialProblem, OSError, ValueError) as error:
            return False, str(error)
        return True, f"{urlsplit(url).netloc} shows us what is there"

    def _object(self, name: str, *, of: type) -> Mapping[str, Any]:
        """Return an object of the extra, which the form writes as a text."""
        value = self.connection.extra_dejson.get(name) or {}
        try:
            found = json.loads(value) if isinstance(value, str) else value
        except ValueError:
            found = None
        if not isinstance(found, dict) or not all(isinstance(one, of) for one in found.values()):
            kind = "objects" if of is dict else "texts"
            raise ValueError(f"connection {self.storage_conn_id}: {name} must be a JSON object of {kind}")
        return found


class HookDeleters:
    """Implements ``steps.deleting.Deleters``, for several threads; a context manager.

    Users come with their own certificates or tokens (connection ``stageout_credentials``), the service with
    what its connection says, or else with tokens of its own.

    :raises StorageConnectionMissing: there is no connection.
    :raises ValueError: it is wrong.
    """

    schemes = deletable_schemes()

    def __init__(self, hook: StorageHook | None = None, users: HookClients | None = None) -> None:
        self._hook = hook or StorageHook()
        self._users = users or HookClients({})
        self._hosts = self._hook.hosts
        self._hook.access()  # what is wrong with it is said before anything is claimed
        self._clients: OrderedDict[tuple[str, str], Deleter] = OrderedDict()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in self._clients.values():
            client.close()

    def deleter(self, identity: str, url: str, lfn: str) -> Deleter:
        """See ``steps.deleting.Deleters``.

        :raises CredentialProblem: the identity has no credential for it.
        """
        who, parts = Identity.read(identity), urlsplit(url)
        host = parts.hostname or ""
        if parts.scheme in xrootd_storage.SCHEMES:
            return self._kept((f"root {identity}", self._own(host)), lambda: self._xrootd(who, host))
        if (tokens := self._tokens(who, host)) is not None:
            client = self._kept(("", self._own(host)), lambda: self._hook.get_conn(host))
            return cast("StorageClient", client).with_token(lambda: tokens.deletion_token(who, url, lfn))
        credential = None if who.is_service else self._users.credential(who)
        return self._kept((identity, self._own(host)), lambda: self._hook.get_conn(host, credential))

    def _own(self, host: str) -> str:
        """Return the host if it has settings of its own: all others share a client."""
        return host if host in self._hosts else ""

    def _tokens(self, who: Identity, host: str) -> DeletionTokens | None:
        """Return who gives tokens for deletions in this name; None: it has a credential of another kind."""
        if who.is_service:
            access = self._hook.access(host)
            if access.cert_file or access.bearer:
                return None
        source = self._users.storage_tokens(str(who))
        return cast("DeletionTokens", source) if hasattr(source, "deletion_token") else None

    def _xrootd(self, who: Identity, host: str) -> Deleter:
        credential = None if who.is_service else self._users.credential(who)
        access = self._hook.access(host, credential)
        if access.ca and Path(access.ca).is_dir():
            os.environ.setdefault("X509_CERT_DIR", access.ca)
        return xrootd_storage.XRootDStorage(access.cert_file)

    def _kept(self, key: tuple[str, str], make: Callable[[], Deleter]) -> Deleter:
        """Return a client that is open, or open it; the one that nobody wanted for longest is closed."""
        with self._lock:
            client = self._clients.pop(key, None) or make()
            self._clients[key] = client
            if len(self._clients) > CLIENTS:
                # Who is still using it goes on: its session opens a connection anew.
                self._clients.popitem(last=False)[1].close()
            return client
