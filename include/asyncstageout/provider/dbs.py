"""Connections of type ``dbs``: where blocks are published, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from airflow.sdk import BaseHook

from asyncstageout.clients.dbs import DBSClient, DBSReader
from asyncstageout.clients.dbs_errors import DBSError
from asyncstageout.clients.http import Access, Patience, new_session
from asyncstageout.clients.tls import REVOCATIONS, Revocation

if TYPE_CHECKING:
    from airflow.sdk import Connection

DBS_CONN_ID = "dbs_default"
PORT = 8443
WRITER = "/dbs/prod/phys03/DBSWriter"
ONE_TRY = Patience(tries=1, connect_s=5, read_s=10, deadline_s=20)


@dataclass(frozen=True, slots=True)
class PublicationSettings:
    """How blocks are made and closed; the defaults are CRAB's and AsyncStageOut's of old.

    Attributes:
        block_files: most files of a block.
        block_lumis: most luminosity sections of a block (CRABServer issue 6670).
        block_payload_bytes: most bytes of a block as it is sent; DBS's front has a limit (issue 8308).
        close_after_s: a block that is not full is closed so long after the dataset's last one.
        first_after_s: as that, for the first block of a dataset.
        oldest_s: no file waits longer for its block to fill.
        max_tries: refusals until the files of a block fail.
        metadata_wait_s: how long a file waits for its metadata.
    """

    block_files: int = 100
    block_lumis: int = 100_000
    block_payload_bytes: int = 50_000_000
    close_after_s: int = 18_800
    first_after_s: int = 600
    oldest_s: int = 259_200
    max_tries: int = 3
    metadata_wait_s: int = 259_200
    processing_version: int = 1
    acquisition_era: str = "CRAB"
    physics_group: str = "CRAB3"
    primary_dataset_type: str = "mc"


_BOUNDS: Final = {
    "block_files": (1, 10_000),
    "block_lumis": (1, 10_000_000),
    "block_payload_bytes": (10_000, 1_000_000_000),
    "close_after_s": (0, 30 * 86_400),
    "first_after_s": (0, 30 * 86_400),
    "oldest_s": (60, 90 * 86_400),
    "max_tries": (1, 100),
    "metadata_wait_s": (0, 90 * 86_400),
    "processing_version": (1, 999_999),
}
_WORDS: Final = ("acquisition_era", "physics_group", "primary_dataset_type")
_MAX_WORD_CHARS: Final = 100


class DBSHook(BaseHook):
    """Speaks to the DBS instance of a connection.

    Host and port are those of DBS's front; the extra holds the paths (or whole URLs) ``writer``, ``reader``,
    ``migrate`` and ``global_reader``, the certificate, and :class:`PublicationSettings`
    (docs/reference/connections.md).

    :param dbs_conn_id: connection of type ``dbs``.
    :param connection: the connection itself, when it was fetched before.
    """

    conn_name_attr = "dbs_conn_id"
    default_conn_name = DBS_CONN_ID
    conn_type = "dbs"
    hook_name = "DBS"

    def __init__(
        self, dbs_conn_id: str = default_conn_name, connection: Connection | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.dbs_conn_id = dbs_conn_id
        self._connection = connection

    @property
    def connection(self) -> Connection:
        if self._connection is None:
            self._connection = self.get_connection(self.dbs_conn_id)
        return self._connection

    @property
    def settings(self) -> PublicationSettings:
        """Return how blocks are made and closed.

        :raises ValueError: a field is not as it must be.
        """
        values: dict[str, Any] = {
            name: self._number(name, given) for name in _BOUNDS if (given := self._extra(name))
        } | {name: self._word(name, given) for name in _WORDS if (given := self._extra(name))}
        return PublicationSettings(**values)

    @property
    def writer_url(self) -> str:
        return self._url("writer", WRITER)

    def get_conn(self, *, pool_size: int = 10, patience: Patience | None = None) -> DBSClient:
        """Return a client of the instance; close it after use (it is a context manager).

        :raises ValueError: a field is not as it must be.
        """
        instance = self.writer_url.rpartition("/")[0]
        return DBSClient(
            self.writer_url,
            new_session(self._access(), pool_size=pool_size),
            reader_url=self._url("reader", f"{instance}/DBSReader"),
            migrate_url=self._url("migrate", f"{instance}/DBSMigrate"),
            patience=patience,
        )

    def get_global_reader(self, *, pool_size: int = 10, patience: Patience | None = None) -> DBSReader | None:
        """Return a client of the DBS where parents are looked for last; None: there is none."""
        if not self._extra("global_reader"):
            return None
        session = new_session(self._access(), pool_size=pool_size)
        return DBSReader(self._url("global_reader", ""), session, patience=patience)

    def test_connection(self) -> tuple[bool, str]:
        """Ask every server of the connection what it is. DBS cannot say whether we may write."""
        try:
            _ = self.settings
            with self.get_conn(patience=ONE_TRY) as client:
                # Before anything is asked: its URL may be wrong.
                beside = self.get_global_reader(patience=ONE_TRY)
                found = client.server_infos()
            if beside:
                with beside:
                    found[beside.reader_url] = beside.server_info()
        except (DBSError, OSError, ValueError) as error:
            return False, str(error)
        said = ", ".join(f"{urlsplit(url).path} is {info.version}" for url, info in found.items())
        return True, f"DBS at {urlsplit(self.writer_url).netloc} lets us read: {said}"

    def _extra(self, name: str) -> str:
        value = self.connection.extra_dejson.get(name)
        return "" if value is None else str(value).strip()

    def _url(self, name: str, default: str) -> str:
        """Return the URL of a server: a path is one of the connection's host."""
        value = (self._extra(name) or default).rstrip("/")
        if value.startswith("/"):
            conn = self.connection
            if not conn.host:
                raise self._wrong("it has no host; set it to the name of DBS's front")
            return f"{conn.schema or 'https'}://{conn.host}:{conn.port or PORT}{value}"
        parts = urlsplit(value)
        if parts.scheme not in ("https", "http") or not parts.netloc or parts.query:
            raise self._wrong(f"{name} is neither a path such as {WRITER} nor a URL: {value!r}")
        return value

    def _access(self) -> Access:
        crl: Revocation = self.connection.extra_dejson.get("crl") or ""
        if crl not in REVOCATIONS:
            raise self._wrong(f"crl is leaf, chain or empty, not {crl!r}")
        return Access(
            ca=self._extra("ca_file") or None,
            crl=crl,
            cert_file=self._extra("cert_file") or None,
            key_file=self._extra("key_file") or None,
        )

    def _number(self, name: str, value: str) -> int:
        least, most = _BOUNDS[name]
        if not value.isdecimal() or not least <= int(value) <= most:
            raise self._wrong(f"{name} is a whole number from {least:,} to {most:,}, not {value!r}")
        return int(value)

    def _word(self, name: str, value: str) -> str:
        if len(value) > _MAX_WORD_CHARS or not value.isprintable():
            raise self._wrong(f"{name} has at most {_MAX_WORD_CHARS} characters, all of them printable")
        return value

    def _wrong(self, why: str) -> ValueError:
        return ValueError(f"connection {self.dbs_conn_id}: {why}")
