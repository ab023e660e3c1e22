"""Which protocols of two storages understand each other, and which pair is best."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from asyncstageout.core.storages.model import Protocol, Storage

FAMILIES: tuple[tuple[str, frozenset[str]], ...] = (
    ("davs", frozenset({"davs", "https"})),
    ("root", frozenset({"root", "xroot", "roots"})),
    ("srm", frozenset({"srm", "gsiftp"})),
    # Apart from davs: no file, and no token, travels encrypted on one side and in the clear on the other.
    ("http", frozenset({"http", "dav"})),
)
"""Schemes between which FTS can copy, the family that is preferred first."""

PREFERENCES = {"davs": 1, "https": 1, "root": 2, "xroot": 2, "roots": 2, "srm": 3, "gsiftp": 4}
"""By scheme, where a site states none. Without TLS (http, dav) only where an operator wrote the prefix."""

REDIRECTORS = frozenset(
    {
        "cms-xrd-global.cern.ch",
        "cms-xrd-global01.cern.ch",
        "cms-xrd-global02.cern.ch",
        "cms-xrd-transit.cern.ch",
        "cmsxrootd.fnal.gov",
        "xrootd-cms.infn.it",
        "xrootd.ba.infn.it",
        "xrootd.unl.edu",
    }
)
"""They stand in many sites' files, but are no storage: they send readers to any site that has a file."""

_SRM_V1 = "/srm/managerv1"
"""FTS speaks version 2 only."""

Use = Literal["read", "write"]


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


def preference(results: Iterable[str]) -> int | None:
    """Return how much we like a protocol as an end of a copy, by what its PFNs begin with, 1 most.

    None: it cannot be one. All of its results must be able to, since nobody knows which one a file will have.

    >>> preference(["davs://se.example.org:443/cms$1"]), preference(["dcap://se.example.org/$1"])
    (1, None)
    """
    liked = [_preference_of(result) for result in results]
    known = [one for one in liked if one is not None]
    return max(known) if known and len(known) == len(liked) else None


def best_protocols(
    source: Storage, destination: Storage, preferred: Sequence[str] = ("davs", "root", "srm", "http")
) -> ProtocolPair:
    """Return the names of the protocols for a link.

    The sites' own preferences count first (the sum of both), then the order of the families, then the order
    in which the sites name their protocols.

    Raises:
        NoCommonScheme: there is none.
    """
    pairs = [
        (
            (reading.read + writing.write, preferred.index(family), source_place, destination_place),
            ProtocolPair(reading.name, writing.name),
        )
        for family, schemes in FAMILIES
        if family in preferred
        for source_place, reading in enumerate(source.protocols)
        for destination_place, writing in enumerate(destination.protocols)
        if reading.read is not None and writing.write is not None
        if _speaks(reading, schemes) and _speaks(writing, schemes)
    ]
    if not pairs:
        raise NoCommonScheme(source, destination)
    return min(pairs)[1]


def _preference_of(result: str) -> int | None:
    # A second scheme inside: a proxy before another storage.
    if result.count("://") != 1 or _SRM_V1 in result or (urlsplit(result).hostname or "") in REDIRECTORS:
        return None
    return PREFERENCES.get(result.partition("://")[0])


def _speaks(protocol: Protocol, schemes: frozenset[str]) -> bool:
    return bool(protocol.schemes & schemes)


def _offered(storage: Storage, use: Use) -> str:
    schemes = {
        scheme
        for protocol in storage.protocols
        if getattr(protocol, use) is not None
        for scheme in protocol.schemes
    }
    return ", ".join(sorted(schemes)) or "nothing"
