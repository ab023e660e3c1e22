"""A storage as its site describes it: protocols, and the rules that make a PFN of an LFN.

Three kinds of description are read into this one form: PhEDEx's TrivialFileCatalog, CMS's ``storage.json``
and the protocols of a Rucio RSE. Rules go in order and the first match wins; a pattern is anchored at the
start; a chained rule is given the result of another protocol (PhEDEx ``Core/Catalogue.pm``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property, lru_cache
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from asyncstageout.core.storages.rucio_paths import TRANSLATIONS

MAX_CHAIN = 5
"""Protocols that build on each other, at most; CRAB's own reader stops there too."""

_GROUP = re.compile(r"\$([1-9])")
_SCHEME = re.compile(r"([a-z][a-z0-9+.\-]*)://")


class Unresolvable(ValueError):
    """A site has no name for this file; ``str()`` says which rules were tried."""

    def __init__(self, site: str, protocol: str, name: str) -> None:
        self.site, self.protocol, self.name = site, protocol, name
        super().__init__(f"no rule of {site} matches {name} (protocol {protocol})")


class PhysicalName(NamedTuple):
    """Where a file lives."""

    url: str
    space_token: str | None = None
    """SRM space that the site asks for."""


def _compilable(pattern: str) -> str:
    try:
        _compiled(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
    return pattern


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


Pattern = Annotated[str, Field(max_length=1000), AfterValidator(_compilable)]


class Rule(BaseModel):
    """One line of a site's names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    match: Pattern
    result: Annotated[str, Field(max_length=1000)]
    """With ``$1`` to ``$9`` for what the pattern's groups matched."""
    chain: str | None = None
    """Protocol whose result is matched instead of the LFN; on the way back, that goes on from here."""
    destination_match: Pattern | None = None
    """Only for files on their way to a site that this matches."""
    space_token: str | None = None

    @cached_property
    def _parts(self) -> tuple[str | int, ...]:
        parts = _GROUP.split(self.result)
        return tuple(int(part) if place % 2 else part for place, part in enumerate(parts))

    def apply(self, name: str) -> str | None:
        """Return what the rule makes of a name, or None if it does not match."""
        found = _compiled(self.match).match(name)
        if found is None:
            return None
        return "".join(part if isinstance(part, str) else found[part] or "" for part in self._parts)

    def is_for(self, destination: str | None) -> bool:
        return self.destination_match is None or bool(
            destination and _compiled(self.destination_match).match(destination)
        )


class Protocol(BaseModel):
    """One way to reach a storage."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """As the site calls it: ``srmv2``, ``WebDAV``."""
    prefix: str | None = None
    """The PFN is this and the LFN; used instead of rules."""
    translation: Literal["hash", "identity"] | None = None
    """Between prefix and name: the path that Rucio makes of scope and name."""
    to_pfn: tuple[Rule, ...] = ()
    to_lfn: tuple[Rule, ...] = ()
    read: int | None = None
    """Preference as the source of a copy between sites, 1 first; None: it cannot be."""
    write: int | None = None
    """Preference as the destination of a copy between sites, 1 first; None: it cannot be."""

    @cached_property
    def schemes(self) -> frozenset[str]:
        """URL schemes of its PFNs."""
        results = [self.prefix] if self.prefix is not None else [rule.result for rule in self.to_pfn]
        return frozenset(found[1] for result in results if (found := _SCHEME.match(result)))


class Storage(BaseModel):
    """A storage as its site describes it, in the form that the catalogue keeps."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    site: str
    """What it is called in requests: the CMS site, or the RSE where a site has several."""
    kind: Literal["prefix", "tfc", "storage.json", "rucio"]
    protocols: tuple[Protocol, ...]
    rse: str | None = None
    volume: str | None = None
    fts: tuple[str, ...] = ()
    """FTS servers that the site wants, the first first (URLs)."""

    @cached_property
    def _by_name(self) -> Mapping[str, Protocol]:
        return {protocol.name: protocol for protocol in self.protocols}

    def protocol(self, name: str) -> Protocol:
        """Return a protocol.

        Raises:
            KeyError: the storage does not have it.
        """
        return self._by_name[name]

    def pfn(
        self, protocol: str, lfn: str, *, username: str = "", destination: str | None = None
    ) -> PhysicalName:
        """Return where a file lives.

        Args:
            username: owner of the file, whose scope Rucio's names hang on.
            destination: site that the file is on its way to, for ``destination-match``.

        Raises:
            Unresolvable: no rule gives a name.
        """
        found = self._resolve(protocol, lfn, username, destination, 0)
        if found is None:
            raise Unresolvable(self.site, protocol, lfn)
        return found

    def lfn(self, protocol: str, pfn: str) -> str:
        """Return the LFN of a file by its PFN.

        Raises:
            Unresolvable: no rule leads back.
        """
        found = self._back(protocol, pfn, 0)
        if found is None:
            raise Unresolvable(self.site, protocol, pfn)
        return found

    def _resolve(
        self, name: str, lfn: str, username: str, destination: str | None, depth: int
    ) -> PhysicalName | None:
        protocol = self._by_name.get(name)
        if protocol is None or depth > MAX_CHAIN:
            return None
        if protocol.prefix is not None:
            translate = TRANSLATIONS[protocol.translation] if protocol.translation else None
            return PhysicalName(protocol.prefix + (translate(username, lfn) if translate else lfn))
        for rule in protocol.to_pfn:
            if not rule.is_for(destination):
                continue
            before = PhysicalName(lfn)
            if rule.chain is not None:
                chained = self._resolve(rule.chain, lfn, username, destination, depth + 1)
                if chained is None:
                    continue
                before = chained
            if (url := rule.apply(before.url)) is not None:
                return PhysicalName(url, rule.space_token or before.space_token)
        return None

    def _back(self, name: str, pfn: str, depth: int) -> str | None:
        protocol = self._by_name.get(name)
        if protocol is None or depth > MAX_CHAIN:
            return None
        if protocol.prefix is not None:
            rest = pfn.removeprefix(protocol.prefix)
            return None if rest == pfn or protocol.translation == "hash" else rest
        for rule in protocol.to_lfn:
            before = rule.apply(pfn)
            if before is not None:
                return before if rule.chain is None else self._back(rule.chain, before, depth + 1)
        return None


def prefix_storage(site: str, prefix: str) -> Storage:
    """Return the simplest storage: the PFN of an LFN is ``prefix`` and the LFN.

    >>> prefix_storage("T2_IT_Bari", "davs://se.ba.infn.it:443/cms").pfn("davs", "/store/user/a/x").url
    'davs://se.ba.infn.it:443/cms/store/user/a/x'
    """
    prefix = prefix.rstrip("/")
    scheme = _SCHEME.match(prefix)
    if scheme is None:
        raise ValueError(f"the prefix of {site} must begin with a scheme such as davs://, not {prefix!r}")
    protocol = Protocol(name=scheme[1], prefix=prefix, read=1, write=1)
    return Storage(site=site, kind="prefix", protocols=(protocol,))
