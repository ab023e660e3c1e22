"""Reads PhEDEx's TrivialFileCatalog, the XML in which sites described their names until 2021."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple
from xml.parsers import expat

from pydantic import ValidationError

from asyncstageout.core.storages.model import Protocol, Rule, Storage, chain_trouble
from asyncstageout.core.storages.problems import MAX_RULES, BadDescription, said
from asyncstageout.core.storages.schemes import preference

FIELDS = {
    "match": "path-match",
    "result": "result",
    "chain": "chain",
    "destination_match": "destination-match",
    "space_token": "space-token",
}
"""Our field by the site's attribute."""
REQUIRED = ("protocol", "path-match", "result")

_ESCAPED = re.compile(r"\\(\W)")
"""PhEDEx made Perl of a result, where ``\\?`` is a question mark."""


class _Line(NamedTuple):
    number: int
    protocol: str
    rule: Rule


@dataclass
class _Reader:
    to_pfn: list[_Line] = field(default_factory=list)
    to_lfn: list[_Line] = field(default_factory=list)
    is_mapping: bool = False

    def parse(self, content: bytes) -> None:
        parser = expat.ParserCreate()

        def start(name: str, attributes: dict[str, str]) -> None:
            self._element(parser.CurrentLineNumber, name, attributes)

        parser.StartElementHandler = start
        parser.EntityDeclHandler = _no_entities
        try:
            parser.Parse(content, True)
        except expat.ExpatError as error:
            raise BadDescription(f"no XML: {expat.ErrorString(error.code)}", line=error.lineno) from error
        except (ValueError, LookupError) as error:
            if isinstance(error, BadDescription):
                raise
            raise BadDescription(f"no XML: {error}", line=parser.CurrentLineNumber) from error

    def _element(self, line: int, name: str, attributes: dict[str, str]) -> None:
        self.is_mapping |= name == "storage-mapping"
        lines = {"lfn-to-pfn": self.to_pfn, "pfn-to-lfn": self.to_lfn}.get(name)
        # User files are in nobody's custody, and PhEDEx leaves the rules of custodial files to those.
        if lines is None or not self.is_mapping or attributes.get("is-custodial", "n") != "n":
            return
        for required in REQUIRED:
            if not attributes.get(required):
                raise BadDescription(f"a {name} needs it", line=line, field=required)
        if len(self.to_pfn) + len(self.to_lfn) >= MAX_RULES:
            raise BadDescription(f"more than {MAX_RULES:,} rules", line=line)
        lines.append(_Line(line, attributes["protocol"], _rule(line, attributes)))


def read_tfc(content: bytes, site: str) -> Storage:
    """Return the storage that a TrivialFileCatalog describes.

    Rules keep their order within a protocol; those with ``is-custodial="y"`` are not for users' files.
    Protocols whose every result FTS can copy may be ends of a copy: davs before root before srm.

    Raises:
        BadDescription: it cannot be used; line and field are in it.
    """
    reader = _Reader()
    reader.parse(content)
    if not reader.to_pfn:
        raise BadDescription("there is no lfn-to-pfn rule in a storage-mapping")
    names = dict.fromkeys(line.protocol for line in reader.to_pfn + reader.to_lfn)
    try:
        protocols = tuple(_protocol(name, reader) for name in names)
        _check_chains(protocols, reader)
        return Storage(site=site, kind="tfc", protocols=protocols)
    except ValidationError as error:
        where, what = said(error)
        raise BadDescription(what, field=where) from error


def _protocol(name: str, reader: _Reader) -> Protocol:
    to_pfn = tuple(line.rule for line in reader.to_pfn if line.protocol == name)
    to_lfn = tuple(line.rule for line in reader.to_lfn if line.protocol == name)
    liked = preference(rule.result for rule in to_pfn)
    return Protocol(name=name, to_pfn=to_pfn, to_lfn=to_lfn, read=liked, write=liked)


def _rule(line: int, attributes: dict[str, str]) -> Rule:
    values = {ours: attributes[theirs] for ours, theirs in FIELDS.items() if attributes.get(theirs)}
    values["result"] = _ESCAPED.sub(r"\1", values["result"])
    try:
        return Rule.model_validate(values)
    except ValidationError as error:
        where, what = said(error)
        raise BadDescription(what, line=line, field=FIELDS.get(where, where) or "result") from error


def _check_chains(protocols: tuple[Protocol, ...], reader: _Reader) -> None:
    if (trouble := chain_trouble(protocols)) is None:
        return
    lines = [
        line.number
        for line in reader.to_pfn + reader.to_lfn
        if (line.protocol, line.rule.chain) == (trouble.protocol, trouble.chain)
    ]
    raise BadDescription(f"{trouble.chain}: {trouble.why}", line=min(lines, default=None), field="chain")


def _no_entities(name: str, *_rest: object) -> None:
    # They could name files of ours, or grow without end; names need none.
    raise BadDescription(f"it declares the entity {name}, and none may be declared")
