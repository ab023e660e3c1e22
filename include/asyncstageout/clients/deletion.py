"""How files are deleted, whatever the protocol: one small interface, chosen by the scheme of a URL."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from asyncstageout.clients import xrootd_storage
from asyncstageout.clients.storage import HTTP_SCHEMES, Look


class Deleter(Protocol):
    """One identity at storages of one protocol, as :class:`asyncstageout.clients.storage.StorageClient`."""

    def look(self, url: str, *, inside: bool = False) -> Look:
        """Return what is at a URL, or ``inside`` the directory that is there.

        Raises:
            NoSuchFile: nothing is there.
            StorageError: anything else.
        """
        ...

    def delete(self, url: str, *, unmodified_since: datetime | None = None) -> bool:
        """Delete a file, unless it is younger (not all can tell); return whether it was there.

        Raises:
            FileChanged: it is younger.
            StorageError: anything else.
        """
        ...

    def close(self) -> None: ...


def deletable_schemes() -> frozenset[str]:
    """Return the schemes of URLs that can be deleted here."""
    return frozenset(HTTP_SCHEMES) | (
        xrootd_storage.SCHEMES if xrootd_storage.is_installed() else frozenset()
    )
