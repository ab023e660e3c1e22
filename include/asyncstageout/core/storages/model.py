"""A storage as its site describes it: protocols, and the rules that make a PFN of an LFN.

Three kinds of description are read into this one form: PhEDEx's TrivialFileCatalog, CMS's ``storage.json``
and the protocols of a Rucio RSE. Rules go in order and the first match wins; a pattern is anchored at the
start, and what it leaves over at the end of a name stays there; a chained rule is given the result of another
protocol (PhEDEx ``Core/Catalogue.pm``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from asyncstageout.core.storages.rucio_paths import NAMES, TRANSLATIONS

MAX_CHAIN = 5
"""Protocols that build on each other, at most; CRAB's own reader stops there too."""
MAX_NAME_CHARS = 1100
"""FTS takes no longer URL. Patterns of strangers are tried with names as long as this."""

_GROUP = re.compile(r"\$([1-9])")
_SCHEME = re.compile(r"([a-z][a-z0-9+.\-]*)://")
_SITE = r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$"


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


def _printable(text: str) -> str:
    # Postgres keeps no NUL and no half of a surrogate pair, and FTS splits at line ends.
    if not text.isprintable():
        raise ValueError(f"{text!r} holds a character that cannot be printed")
    return text


def _without_space(text: str) -> str:
    if " " in text:
        raise ValueError(f"{text!r} holds a space, which no URL may")
    return text


Text = Annotated[str, Field(max_length=1000), AfterValidator(_printable)]
Name = Annotated[Text, Field(min_length=1, max_length=100)]
Pattern = Annotated[Text, AfterValidator(_compilable)]
Result = Annotated[Text, Field(min_length=1), AfterValidator(_without_space)]


class Rule(BaseModel):
    """One line of a site's names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    match: Pattern
    result: Result
    """With ``$1`` to ``$9`` for what the pattern's groups matched."""
    chain: Name | None = None
    """Protocol whose result is matched instead of the LFN; on the way back, that goes on from here."""
    destination_match: Pattern | None = None
    """Only for files on their way to a site that this matches; anything goes while that is not known."""
    space_token: Name | None = None

    @model_validator(mode="after")
    def _has_its_groups(self) -> Self:
        groups = _compiled(self.match).groups
        for wanted in _GROUP.findall(self.result):
            if int(wanted) > groups:
                raise ValueError(
                    f"{self.result!r} asks for ${wanted}, but {self.match!r} has {groups} groups"
                )
        return self

    @cached_property
    def regex(self) -> re.Pattern[str]:
        return _compiled(self.match)

    @cached_property
    def _template(self) -> tuple[str, tuple[int, ...]]:
        text, *rest = _GROUP.split(self.result.replace("%", "%%"))
        return text + "".join("%s" + after for after in rest[1::2]), tuple(map(int, rest[::2]))

    def apply(self, name: str) -> str | None:
        """Return what the rule makes of a name, or None if it does not match."""
        found = self.regex.match(name)
        return None if found is None else self.fill(found)

    def fill(self, found: re.Match[str]) -> str:
        """Return what the rule makes of a name that it matches."""
        template, groups = self._template
        made = template % tuple([found[group] or "" for group in groups])
        # PhEDEx replaces what matched. To drop the rest would give two files one name.
        return made + found.string[found.end() :]

    def is_for(self, destination: str | None) -> bool:
        # Not anchored, unlike path-match: so it is in PhEDEx.
        return (
            self.destination_match is None
            or destination is None
            or _compiled(self.destination_match).search(destination) is not None
        )


class Protocol(BaseModel):
    """One way to reach a storage."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    """As the site calls it: ``srmv2``, ``WebDAV``."""
    prefix: Result | None = None
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
    def tries(self) -> tuple[tuple[Callable[[str], re.Match[str] | None], Rule], ...]:
        """Each rule with its match, which is most of the work for 100,000 names."""
        return tuple((rule.regex.match, rule) for rule in self.to_pfn)

    @cached_property
    def schemes(self) -> frozenset[str]:
        """URL schemes of its PFNs."""
        results = [self.prefix] if self.prefix is not None else [rule.result for rule in self.to_pfn]
        return frozenset(found[1] for result in results if (found := _SCHEME.match(result)))


class Storage(BaseModel):
    """A storage as its site describes it, in the form that the catalogue keeps."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    site: Annotated[str, Field(pattern=_SITE, max_length=100)]
    """What it is called in requests: the CMS site, or the RSE where a site has several."""
    kind: Literal["prefix", "tfc", "storage.json", "rucio"]
    protocols: Annotated[tuple[Protocol, ...], Field(min_length=1)]
    rse: Name | None = None
    volume: Name | None = None
    fts: tuple[Text, ...] = ()
    """FTS servers that the site wants, the first first (URLs)."""

    @model_validator(mode="after")
    def _hangs_together(self) -> Self:
        if (trouble := chain_trouble(self.protocols)) is not None:
            raise trouble
        return self

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
        found = None
        if len(lfn) <= MAX_NAME_CHARS:
            found = self._resolve(protocol, lfn, username, destination, {})
        if found is None:
            raise Unresolvable(self.site, protocol, lfn)
        return found

    def lfn(self, protocol: str, pfn: str) -> str:
        """Return the LFN of a file by its PFN.

        Raises:
            Unresolvable: no rule leads back.
        """
        for username, lfn in self._back(protocol, pfn) if len(pfn) <= MAX_NAME_CHARS else ():
            # A TFC says itself what leads back. Where we turned its rules round, only a full circle counts.
            if self.kind == "tfc" or self._resolve(protocol, lfn, username, None, {}) == PhysicalName(pfn):
                return lfn
        raise Unresolvable(self.site, protocol, pfn)

    def _resolve(
        self,
        name: str,
        lfn: str,
        username: str,
        destination: str | None,
        known: dict[str, PhysicalName | None],
    ) -> PhysicalName | None:
        protocol = self._by_name.get(name)
        if protocol is None:
            return None
        # All rules that chain to this protocol are given the same: it is worked out once.
        if protocol.prefix is not None:
            path = TRANSLATIONS[protocol.translation](username, lfn) if protocol.translation else lfn
            found: PhysicalName | None = PhysicalName(protocol.prefix + path)
        else:
            found = self._by_rules(protocol, lfn, username, destination, known)
        known[name] = found
        return found

    def _by_rules(
        self,
        protocol: Protocol,
        lfn: str,
        username: str,
        destination: str | None,
        known: dict[str, PhysicalName | None],
    ) -> PhysicalName | None:
        start: PhysicalName | None = PhysicalName(lfn)
        for match, rule in protocol.tries:
            chain = rule.chain
            if chain is None:
                before = start
            elif chain in known:
                before = known[chain]
            else:
                before = self._resolve(chain, lfn, username, destination, known)
            if before is None or (found := match(before.url)) is None or not rule.is_for(destination):
                continue
            return PhysicalName(rule.fill(found), rule.space_token or before.space_token)
        return None

    def _back(self, name: str, pfn: str) -> Iterator[tuple[str, str]]:
        """Yield (user, LFN) that may be meant, the likeliest first; the user only where it is in the name."""
        protocol = self._by_name.get(name)
        if protocol is None:
            return
        if protocol.prefix is not None:
            rest = pfn.removeprefix(protocol.prefix)
            if rest != pfn and protocol.translation:
                yield from NAMES[protocol.translation](rest)
            elif rest != pfn and rest.startswith("/"):
                yield "", rest
        for rule in protocol.to_lfn:
            before = rule.apply(pfn)
            if before is not None and rule.chain is None:
                yield "", before
            elif before is not None and rule.chain is not None:
                yield from self._back(rule.chain, before)


class ChainTrouble(ValueError):
    """Protocols name each other in a way that leads nowhere; ``chain`` is what ``protocol`` builds on."""

    def __init__(self, protocol: str, chain: str, why: str) -> None:
        self.protocol, self.chain, self.why = protocol, chain, why
        super().__init__(f"protocol {protocol}, chain {chain}: {why}")


def chain_trouble(protocols: Sequence[Protocol]) -> ChainTrouble | None:
    """Return what is wrong with the chains of protocols: a missing one, a circle, or too many."""
    names = [protocol.name for protocol in protocols]
    if twice := [name for name in names if names.count(name) > 1]:
        return ChainTrouble(twice[0], "", "two protocols have this name")
    return _trouble({protocol.name: _chained(protocol.to_pfn) for protocol in protocols}) or _trouble(
        {protocol.name: _chained(protocol.to_lfn) for protocol in protocols}
    )


def _chained(rules: Sequence[Rule]) -> list[str]:
    return list(dict.fromkeys(rule.chain for rule in rules if rule.chain is not None))


def _trouble(chains: Mapping[str, Sequence[str]]) -> ChainTrouble | None:
    for name, targets in chains.items():
        for target in targets:
            if target not in chains:
                return ChainTrouble(name, target, "there is no such protocol")
    # What still grows after as many rounds as a chain may be long is a circle, or a longer chain.
    depths = dict.fromkeys(chains, 0)
    for _ in range(MAX_CHAIN + 1):
        depths = {
            name: max((depths[target] + 1 for target in targets), default=0)
            for name, targets in chains.items()
        }
    for name, depth in depths.items():
        if depth > MAX_CHAIN:
            return ChainTrouble(name, chains[name][0], f"a circle, or more than {MAX_CHAIN} protocols")
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
