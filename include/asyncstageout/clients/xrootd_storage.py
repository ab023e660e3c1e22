"""Storages that are reached over ``root://``, with XRootD's own client: the optional extra ``xrootd``.

Its words are those of the clients 6.2 and 5.5 against a server 5.5. It cannot say "only if unchanged": a file
is looked at once more right before it is deleted.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from asyncstageout.clients.errors import (
    AccessDenied,
    FileChanged,
    NoSuchFile,
    StorageError,
    StorageRefused,
    StorageUnavailable,
    StorageUnreachable,
    shortened,
)
from asyncstageout.clients.storage import Entry, Look

SCHEMES = frozenset({"root", "roots", "xroot", "xroots"})
TIMEOUT_S = 30
"""For one request. XRootD looks at its clocks every 15 s."""

# Of XProtocol.hh: errors of a server, which all have the client's code 400.
_FROM_SERVER = 400
_RULES: dict[int, type[StorageError]] = {3010: AccessDenied, 3011: NoSuchFile, 3030: AccessDenied}
_TRANSIENT = frozenset(
    {3003, 3007, 3012, 3014, 3020, 3024}
)  # locked, I/O, server, no server, busy, overloaded
# Of XrdClStatus.hh: the login or the credential was not taken.
_NOT_LET_IN = frozenset({203, 204})


def is_installed() -> bool:
    """Say whether XRootD's client is there."""
    return find_spec("XRootD") is not None


class XRootDStorage:
    """All ``root://`` storages that one identity can reach. Threads may share it.

    Args:
        proxy_file: the identity's proxy, PEM; None: what XRootD finds by itself.

    Raises:
        StorageError: every call; its subclasses say what happened.
    """

    def __init__(self, proxy_file: str | None = None, *, timeout_s: int = TIMEOUT_S) -> None:
        from XRootD import client  # noqa: PLC0415 - an extra that not everybody has
        from XRootD.client import flags  # noqa: PLC0415

        self._client = client
        self._flags = flags
        self._proxy_file = proxy_file
        self._timeout_s = timeout_s

    def close(self) -> None:
        """Nothing: XRootD keeps its connections for the whole process."""

    def look(self, url: str, *, inside: bool = False) -> Look:
        """Return what is at a URL, or ``inside`` the directory that is there; the clock is not told.

        Raises:
            NoSuchFile: nothing is there.
        """
        if not inside:
            return Look([self._stat(url)], None)
        path = urlsplit(url).path
        status, found = self._system(url).dirlist(
            path, self._flags.DirListFlags.STAT, timeout=self._timeout_s
        )
        self._check(status, "LIST", url)
        return Look(list(self._entries(url, found)), None)

    def delete(self, url: str, *, unmodified_since: datetime | None = None) -> bool:
        """Delete a file; return whether it was there.

        Raises:
            FileChanged: it is younger than ``unmodified_since``.
            ValueError: it is a directory, which XRootD would delete if it is empty.
        """
        try:
            entry = self._stat(url)
            if entry.is_directory:
                raise ValueError(f"{url} is a directory")
            if unmodified_since and entry.modified_at and entry.modified_at > unmodified_since:
                raise FileChanged(*_where("RM", url), None, "it was written anew")
            status, _ = self._system(url).rm(urlsplit(url).path, timeout=self._timeout_s)
            self._check(status, "RM", url)
        except NoSuchFile:
            return False
        return True

    def _stat(self, url: str) -> Entry:
        status, found = self._system(url).stat(urlsplit(url).path, timeout=self._timeout_s)
        self._check(status, "STAT", url)
        return self._entry(url, found)

    def _entries(self, url: str, found: Any) -> Iterator[Entry]:
        for one in found:
            yield self._entry(f"{url.rstrip('/')}/{one.name}", one.statinfo)

    def _entry(self, url: str, stat: Any) -> Entry:
        if stat is None:
            raise StorageRefused(*_where("STAT", url), None, "it says nothing about the file")
        return Entry(
            url=url,
            is_directory=bool(stat.flags & self._flags.StatInfoFlags.IS_DIR),
            size_bytes=int(stat.size),
            modified_at=datetime.fromtimestamp(stat.modtime, UTC) if stat.modtime else None,
        )

    def _system(self, url: str) -> Any:
        parts = urlsplit(url)
        # As gfal2 does it: the parameter names the proxy for this connection alone.
        credential = f"?xrd.gsiusrpxy={self._proxy_file}" if self._proxy_file else ""
        return self._client.FileSystem(f"{parts.scheme}://{parts.netloc}/{credential}")

    def _check(self, status: Any, method: str, url: str) -> None:
        if status.ok:
            return
        where = _where(method, url)
        said = " ".join(str(status.message).split())
        if status.code != _FROM_SERVER:
            if status.code in _NOT_LET_IN:
                raise AccessDenied(*where, None, said)
            raise StorageUnreachable(*where, None, said)
        if status.errno in _TRANSIENT:
            raise StorageUnavailable(*where, None, said)
        raise _RULES.get(status.errno, StorageRefused)(*where, None, said)


def _where(method: str, url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.netloc.rpartition("@")[2], shortened(method, parts.path)
