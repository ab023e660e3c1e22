"""Where a temporary copy lives, for its deletion: a URL only where it is certain that nothing else is meant.

A site's description of its names may be wrong, or lead two LFNs to one place. So a URL counts only if

- the LFN is a file in the temporary area of its owner (:mod:`asyncstageout.core.lfn_policy`);
- the URL is the root of the storage's temporary area and the rest of the LFN, letter by letter, and that root
  lies in no other area of the same storage, and no other area in it. Where a description is a prefix, the
  whole LFN must stand at the URL's end instead (behind the hash, where Rucio puts one): then no other name
  can lead there;
- the same description leads from the URL back to this LFN, where it leads back at all;
- it is plain: no query, no escapes, no ``..``, no directory.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

from asyncstageout.core.cleaning import Copy
from asyncstageout.core.lfn_policy import AREAS, Area, below_temporary
from asyncstageout.core.naming import BadName, check_lfn
from asyncstageout.core.storages.model import Protocol, Storage, Unresolvable
from asyncstageout.core.storages.schemes import FAMILIES

_PROBE = "a-folder/a-file.root"
"""Stands for any file of an area, to learn where the area lies."""
_PRODUCTION = tuple(f"/store/{name}/" for name in ("data", "mc", "hidata", "himc", "results", "unmerged"))


class NotTemporary(ValueError):
    """A file must not be deleted under this name; ``str()`` says why, for the operator."""

    def __init__(self, site: str, lfn: str, reason: str) -> None:
        self.site, self.lfn, self.reason = site, lfn, reason
        super().__init__(f"{lfn} at {site} is not deleted: {reason}")


class TemporaryNames:
    """The names of one storage's temporary copies.

    Args:
        schemes: what can be deleted over.
    """

    def __init__(self, storage: Storage, schemes: Collection[str]) -> None:
        self._storage = storage
        self._schemes = frozenset(schemes)
        self._protocols = sorted(
            (one for one in storage.protocols if one.write is not None and one.schemes & self._schemes),
            key=lambda one: (one.write or 0, _place(one)),
        )
        self._roots: dict[tuple[str, str, str | None], str | None] = {}

    def url(self, lfn: str, *, username: str, destination: str | None = None) -> str:
        """Return where a temporary copy lives.

        Args:
            username: whose it is.
            destination: site that it was on its way to, for ``destination-match``.

        Raises:
            NotTemporary: it must not be deleted under this name, or cannot.
        """
        try:
            below = below_temporary(check_lfn(lfn), username)
        except BadName as error:
            raise self._no(lfn, str(error)) from None
        for protocol in self._protocols:
            try:
                url = self._storage.pfn(protocol.name, lfn, username=username, destination=destination).url
            except Unresolvable:
                continue
            if (reason := self._why_not(protocol, url, lfn, below, destination)) is not None:
                raise self._no(lfn, reason)
            return url
        raise self._no(lfn, self._no_way())

    def root(self, area: Area) -> str:
        """Return the URL, with a slash at its end, below which a temporary area lies.

        Raises:
            NotTemporary: its files do not lie below one directory.
        """
        for protocol in self._protocols:
            # Rucio puts a folder of its own before each user's names.
            root = None if protocol.translation else self._temporary_root(protocol, area.prefix, None)
            if root is not None and _not_plain(root + _PROBE, self._schemes) is None:
                return root
        why = "its files do not lie below one directory of their own" if self._protocols else self._no_way()
        raise self._no(area.prefix, why)

    def _no(self, lfn: str, reason: str) -> NotTemporary:
        return NotTemporary(self._storage.site, lfn, reason)

    def _no_way(self) -> str:
        offered = sorted({scheme for one in self._storage.protocols for scheme in one.schemes})
        return f"the site offers {', '.join(offered) or 'nothing'}, and nothing of it can delete"

    def _why_not(
        self, protocol: Protocol, url: str, lfn: str, below: str, destination: str | None
    ) -> str | None:
        if (reason := _not_plain(url, self._schemes)) is not None:
            return f"{url} {reason}"
        if protocol.prefix is not None:
            return None if url.endswith(lfn) else f"{url} does not end as the LFN does"
        prefix = lfn.removesuffix(below)
        root = self._temporary_root(protocol, prefix, destination)
        if root is None or url != root + below:
            return f"{url} does not lie in a directory of temporary files alone"
        try:
            back = self._storage.lfn(protocol.name, url)
        except Unresolvable:  # no rule leads back: that the rest is the LFN's, letter by letter, must do
            return None
        return None if back == lfn else f"{url} leads back to {back}"

    def _temporary_root(self, protocol: Protocol, prefix: str, destination: str | None) -> str | None:
        """Return the root of a temporary area; None if it has none, or shares it with other files."""
        key = (protocol.name, prefix, destination)
        if key not in self._roots:
            self._roots[key] = self._find_root(protocol, prefix, destination)
        return self._roots[key]

    def _find_root(self, protocol: Protocol, prefix: str, destination: str | None) -> str | None:
        root = self._area_root(protocol, prefix, destination)
        if root is None or not root.endswith("/"):
            return None
        if protocol.prefix is not None:
            return root
        for area in AREAS:
            other = None if area.is_temporary else self._area_root(protocol, area.prefix, destination)
            if other is not None and (other.startswith(root) or root.startswith(other)):
                return None
        for production in _PRODUCTION:
            other = self._area_root(protocol, production, destination)
            if other is not None and other.startswith(root):
                return None
        return root

    def _area_root(self, protocol: Protocol, prefix: str, destination: str | None) -> str | None:
        """Return what stands before the name of a file of an area; all of it, if the name is not the end."""
        probe = prefix + _PROBE
        username = _PROBE.partition("/")[0]
        try:
            url = self._storage.pfn(protocol.name, probe, username=username, destination=destination).url
        except Unresolvable:
            return None
        return url.removesuffix(_PROBE)


class CopyNames:
    """The names of temporary copies at many sites.

    Args:
        storages: by site; a site that is not here has no description.
    """

    def __init__(self, storages: Mapping[str, Storage], schemes: Collection[str]) -> None:
        self._names = {site: TemporaryNames(storage, schemes) for site, storage in storages.items()}

    def url(self, copy: Copy) -> str:
        """Return where a copy is.

        Raises:
            NotTemporary: it must not be deleted, or cannot.
        """
        if copy.is_destination:
            raise NotTemporary(copy.source, copy.source_lfn, "a file was moved there")
        names = self._names.get(copy.source)
        if names is None:
            raise NotTemporary(copy.source, copy.source_lfn, "the site has no description (aso sites load)")
        return names.url(copy.source_lfn, username=copy.username, destination=copy.destination)


def _place(protocol: Protocol) -> int:
    return min(
        (place for place, (_, schemes) in enumerate(FAMILIES) if protocol.schemes & schemes), default=9
    )


def _not_plain(url: str, schemes: Collection[str]) -> str | None:
    """Return what is odd about a URL, or None."""
    parts = urlsplit(url)
    if parts.scheme not in schemes or not parts.hostname:
        return "is nothing that can be deleted"
    if parts.query or parts.fragment or "?" in url or "#" in url or "@" in parts.netloc:
        return "holds more than host and path"
    if any(odd in parts.path for odd in ("%", "\\", ";")) or not parts.path.isascii():
        return "holds a character that may mean another path"
    segments = parts.path.split("/")
    if "." in segments or ".." in segments or not segments[-1]:
        return "is a directory, or leads out of one"
    return None
