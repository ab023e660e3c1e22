"""Which protocols of two storages understand each other, and which pair is best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from asyncstageout.core.storages.model import Protocol, Storage

FAMILIES: tuple[tuple[str, frozenset[str]], ...] = (
    ("davs", frozenset({"davs", "https", "dav", "http"})),
    ("root", frozenset({"root", "xroot", "roots"})),
    ("srm", frozenset({"srm", "gsiftp"})),
)
"""Schemes between which FTS can copy, the family that is preferred first."""


class NoCommonScheme(ValueError):
    """Two storages share no scheme between which a third party can copy."""

    def __init__(self, source: Storage, destination: Storage) -> None:
        self.source, self.destination = source.site, destination.site
        super().__init__(
            f"{source.site} can be read by {_offered(source, 'read')} and {destination.site} written by "
            f"{_offered(destination, 'write')}: they share no scheme"
        )


class ProtocolPair(NamedTuple):
    source: str
    destination: str


def best_protocols(
    source: Storage, destination: Storage, preferred: Sequence[str] = ("davs", "root", "srm")
) -> ProtocolPair:
    """Return the names of the protocols for a link.

    The sites' own preferences count first (the sum of both), then the order of the families.

    Raises:
        NoCommonScheme: there is none.
    """
    pairs = [
        ((reading.read + writing.write, preferred.index(family)), ProtocolPair(reading.name, writing.name))
        for family, schemes in FAMILIES
        if family in preferred
        for reading in source.protocols
        for writing in destination.protocols
        if reading.read is not None and writing.write is not None
        if _speaks(reading, schemes) and _speaks(writing, schemes)
    ]
    if not pairs:
        raise NoCommonScheme(source, destination)
    return min(pairs)[1]


def _speaks(protocol: Protocol, schemes: frozenset[str]) -> bool:
    return bool(protocol.schemes & schemes)


def _offered(storage: Storage, use: str) -> str:
    schemes = {
        scheme
        for protocol in storage.protocols
        if getattr(protocol, use) is not None
        for scheme in protocol.schemes
    }
    return ", ".join(sorted(schemes)) or "nothing"
