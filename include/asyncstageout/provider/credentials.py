"""Connections of type ``stageout_credentials``: where users' credentials come from."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowNotFoundException

from asyncstageout.clients.credentials.directory import DirectoryCredentials
from asyncstageout.clients.credentials.model import CredentialProblem, CredentialSource
from asyncstageout.core.identities import Identity

if TYPE_CHECKING:
    from airflow.sdk import Connection

    from asyncstageout.clients.tls import Revocation

CREDENTIALS_CONN_ID = "stageout_credentials"


def credential_source(conn_id: str = CREDENTIALS_CONN_ID) -> CredentialSource | None:
    """Return where users' credentials come from; None without such a connection: all files travel in the
    service's name.

    :raises ValueError: the connection is incomplete, or names a source that does not exist.
    """
    try:
        connection = BaseHook.get_connection(conn_id)
    except AirflowNotFoundException:
        return None
    return CredentialsHook(conn_id, connection).source()


class CredentialsHook(BaseHook):
    """Makes the credential source of a connection.

    The extra's ``source`` is ``directory``, ``myproxy`` or ``oidc``; see docs/how-to/credentials.md.

    :param credentials_conn_id: connection of type ``stageout_credentials``.
    :param connection: the connection itself, when it was fetched before.
    """

    conn_name_attr = "credentials_conn_id"
    default_conn_name = CREDENTIALS_CONN_ID
    conn_type = "stageout_credentials"
    hook_name = "Stage-out credentials"

    def __init__(
        self,
        credentials_conn_id: str = default_conn_name,
        connection: Connection | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.credentials_conn_id = credentials_conn_id
        self._connection = connection

    @property
    def connection(self) -> Connection:
        if self._connection is None:
            self._connection = self.get_connection(self.credentials_conn_id)
        return self._connection

    def source(self) -> CredentialSource:
        """Return the source.

        :raises ValueError: the connection is incomplete, or names a source that does not exist.
        """
        kind = str(self.connection.extra_dejson.get("source") or "directory")
        make = self._SOURCES.get(kind)
        if make is None:
            raise ValueError(
                f"connection {self.credentials_conn_id}: source is {kind!r}, not {', '.join(self._SOURCES)}"
            )
        return make(self)

    def get_conn(self) -> CredentialSource:
        """Return the source, as hooks do."""
        return self.source()

    def test_connection(self) -> tuple[bool, str]:
        """Get the credential of the identity in the extra's ``test_identity``."""
        try:
            source = self.source()
            name = self.connection.extra_dejson.get("test_identity")
            if not name:
                return True, "The source can be made; name a test_identity to have its credential looked at"
            found = source.credential(Identity.read(name))
        except (CredentialProblem, ValueError, OSError) as error:
            return False, str(error)
        return True, f"{found.identity} is {found.subject} until {found.expires_at:%Y-%m-%d %H:%M} UTC"

    def _directory(self) -> CredentialSource:
        return DirectoryCredentials(Path(self._need("directory")), subjects=self._subjects())

    def _need(self, name: str) -> str:
        value = self.connection.extra_dejson.get(name)
        if not value:
            raise ValueError(f"connection {self.credentials_conn_id}: {name} is missing in the extra")
        return str(value)

    def _subjects(self) -> dict[str, str]:
        path = self.connection.extra_dejson.get("subjects_file")
        if not path:
            return {}
        try:
            subjects = json.loads(Path(path).read_text())
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
        if not isinstance(subjects, dict) or not all(isinstance(dn, str) for dn in subjects.values()):
            raise ValueError(f"{path} is not an object of username: DN")
        return subjects

    def _myproxy(self) -> CredentialSource:
        from asyncstageout.clients.credentials.myproxy import MyProxyCredentials  # noqa: PLC0415
        from asyncstageout.clients.credentials.myproxy_protocol import PORT, MyProxyServer  # noqa: PLC0415
        from asyncstageout.clients.tls import Trust  # noqa: PLC0415

        connection, extra = self.connection, self.connection.extra_dejson
        if not connection.host:
            raise ValueError(
                f"connection {self.credentials_conn_id} has no host; set it to the MyProxy server"
            )
        server = MyProxyServer(
            connection.host,
            connection.port or PORT,
            self._need("cert_file"),
            extra.get("key_file") or None,
            Trust(extra.get("ca_file") or None, self._revocation()),
            extra.get("server_name") or None,
        )
        return MyProxyCredentials(
            server,
            Path(self._need("directory")),
            passphrase=connection.password or "",
            account=extra.get("account") or "{username}",
            lifetime=timedelta(hours=float(extra.get("lifetime_h") or 168)),
            subjects=self._subjects(),
        )

    def _revocation(self) -> Revocation:
        crl = self.connection.extra_dejson.get("crl") or ""
        if crl not in ("", "leaf", "chain"):
            raise ValueError(f"connection {self.credentials_conn_id}: crl is {crl!r}, not leaf or chain")
        return cast("Revocation", crl)

    def _oidc(self) -> CredentialSource:
        from asyncstageout.clients.credentials.oidc_settings import OIDCSettings  # noqa: PLC0415

        connection = self.connection
        if not (connection.login and connection.password):
            raise ValueError(
                f"connection {self.credentials_conn_id} has no login and password: client id and secret"
            )
        settings = OIDCSettings.of(connection.extra_dejson)
        return settings.credentials(connection.login, connection.password)

    _SOURCES: ClassVar[dict[str, Callable[[CredentialsHook], CredentialSource]]] = {
        "directory": _directory,
        "myproxy": _myproxy,
        "oidc": _oidc,
    }
