"""Which host is which site, and which file is which path."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

DOMAIN = "sandbox.test"
DEFAULT_PORT = 8443


def site_host(site: str) -> str:
    """Return the host of a site's storage.

    >>> site_host("T2_IT_Bari")
    't2-it-bari.sandbox.test'
    """
    return f"{site.lower().replace('_', '-')}.{DOMAIN}"


def site_pfn(site: str, lfn: str, port: int = DEFAULT_PORT) -> str:
    """Return where an LFN lives at a site.

    >>> site_pfn("T2_IT_Bari", "/store/user/a/x.root")
    'davs://t2-it-bari.sandbox.test:8443/store/user/a/x.root'
    """
    return f"davs://{site_host(site)}:{port}{lfn}"


class BadPath(ValueError):
    """A path that leads out of its site."""


class Sites:
    """The sites under one root; each is a folder of its own name."""

    def __init__(self, root: Path, names: Iterable[str] | None = None) -> None:
        """Without ``names``, every folder is a site, also one that is made later."""
        root.mkdir(parents=True, exist_ok=True)
        self.root = root.resolve()
        self._follows_folders = names is None
        self._by_host = {site_host(name): name for name in names or self._folders()}
        for name in self._by_host.values():
            (self.root / name).mkdir(exist_ok=True)

    @classmethod
    def found(cls, root: Path, sites_file: Path | None = None) -> Sites:
        """Take the names from a JSON file (a list, or an object's keys), or else from the folders."""
        return cls(root, json.loads(sites_file.read_text()) if sites_file else None)

    def _folders(self) -> list[str]:
        return sorted(path.name for path in self.root.iterdir() if path.is_dir())

    @property
    def names(self) -> list[str]:
        return list(self._by_host.values())

    def at(self, host: str) -> str | None:
        """Return the site behind a ``Host`` header, if there is one."""
        name = host.partition(":")[0].lower()
        if name not in self._by_host and self._follows_folders:
            self._by_host = {site_host(folder): folder for folder in self._folders()}
        return self._by_host.get(name)

    def file(self, site: str, path: str) -> Path:
        """Return the file of a site's path.

        Raises:
            BadPath: it would lead out of the site, also through a link.
        """
        parts = path.split("/")
        if ".." in parts or "\0" in path:
            raise BadPath(path)
        home = self.root / site
        found = home.joinpath(*(part for part in parts if part not in ("", ".")))
        if not found.resolve().is_relative_to(home):
            raise BadPath(path)
        return found
