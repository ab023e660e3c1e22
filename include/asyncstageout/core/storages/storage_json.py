"""Reads ``storage.json``, in which CMS's sites describe their volumes and protocols."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from asyncstageout.core.storages.model import Protocol, Rule, Storage
from asyncstageout.core.storages.problems import MAX_RULES, BadDescription, said
from asyncstageout.core.storages.schemes import preference

ENDS: dict[str, tuple[bool, bool]] = {
    "global-rw": (True, True),
    "global-ro": (True, False),
    "site-rw": (False, False),
    "site-ro": (False, False),
    "virtual": (False, False),
}
"""(source, destination) of copies between sites, by a protocol's access."""

_OUTSIDE = re.compile(r"(?:\\[^\w]|/\+|[^\\.^$*+?{}\[\]|()])*\Z")
"""What a pattern may hold beside its groups to be turned round: plain characters, and one slash or more."""
_GROUPS = re.compile(r"\(([^()]*)\)")


class _Located(dict[str, Any]):
    """A JSON object that knows the line on which it begins."""

    line: int


class _Decoder(json.JSONDecoder):
    def __init__(self) -> None:
        super().__init__()
        read_object = json.decoder.JSONObject  # type: ignore[attr-defined]

        def located(text_and_end: tuple[str, int], *rest: Any) -> tuple[_Located, int]:
            values, end = read_object(text_and_end, *rest)
            found = _Located(values)
            found.line = text_and_end[0].count("\n", 0, text_and_end[1]) + 1
            return found, end

        self.parse_object = located
        # The scanner in C reads objects by itself.
        self.scan_once = json.scanner.py_make_scanner(self)  # type: ignore[attr-defined]


def read_storage_json(content: bytes, expected_site: str | None = None) -> list[Storage]:
    """Return the storages that a ``storage.json`` describes.

    The first disk volume, or else the first volume, is known by the site's name, as requests use it; every
    volume is known by its RSE's too. Fields that are not ours are left alone.

    Args:
        expected_site: whose file it is; nobody describes somebody else.

    Raises:
        BadDescription: it cannot be used; line and field are in it.
    """
    entries = [_entry(row, number, expected_site) for number, row in enumerate(_rows(content))]
    storages: dict[str, Storage] = {}
    for site in dict.fromkeys(entry.site for entry, _ in entries):
        volumes = [(entry, is_disk) for entry, is_disk in entries if entry.site == site]
        first = next((entry for entry, is_disk in volumes if is_disk), volumes[0][0])
        storages[site] = first
        for entry, _ in volumes:
            if entry.rse in storages and storages[entry.rse] is not entry:
                raise BadDescription(f"two volumes have the RSE {entry.rse}", field="rse")
            if entry.rse is not None:
                storages.setdefault(entry.rse, entry.model_copy(update={"site": entry.rse}))
    return list(storages.values())


def _rows(content: bytes) -> list[Any]:
    try:
        rows = _Decoder().decode(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise BadDescription("not UTF-8", line=content.count(b"\n", 0, error.start) + 1) from error
    except json.JSONDecodeError as error:
        raise BadDescription(f"no JSON: {error.msg}", line=error.lineno) from error
    except RecursionError as error:
        raise BadDescription("no JSON that anybody needs: it is nested too deeply") from error
    if not isinstance(rows, list) or not rows:
        raise BadDescription("there must be a list of volumes")
    return rows


def _entry(row: Any, number: int, expected_site: str | None) -> tuple[Storage, bool]:
    """Return the volume of an entry under the site's name, and whether it is disk."""
    where = f"[{number}]"
    if not isinstance(row, _Located):
        raise BadDescription("a volume must be an object", field=where)
    site = _text(row, "site", where)
    if expected_site is not None and site != expected_site:
        raise BadDescription(f"{site}, but this is the file of {expected_site}", line=row.line, field="site")
    protocols = _list(row, "protocols", where)
    fields = {
        "site": site,
        "kind": "storage.json",
        "rse": row.get("rse") or None,
        "volume": row.get("volume") or None,
        "fts": row.get("fts") or (),
        "protocols": [_protocol(one, f"{where}.protocols[{place}]") for place, one in enumerate(protocols)],
    }
    try:
        return Storage.model_validate(fields), row.get("type") == "DISK"
    except ValidationError as error:
        field, what = said(error)
        raise BadDescription(what, line=row.line, field=f"{where}.{field}".rstrip(".")) from error


def _protocol(row: Any, where: str) -> Protocol:
    if not isinstance(row, _Located):
        raise BadDescription("a protocol must be an object", field=where)
    access = _text(row, "access", where)
    if access not in ENDS:
        raise BadDescription(
            f"{access!r}; there are {', '.join(ENDS)}", line=row.line, field=f"{where}.access"
        )
    prefix = row.get("prefix")
    rules = [] if prefix is not None else _list(row, "rules", where)
    if len(rules) > MAX_RULES:
        raise BadDescription(f"more than {MAX_RULES:,} rules", line=row.line, field=where)
    to_pfn = tuple(_rule(rule, row, f"{where}.rules[{place}]") for place, rule in enumerate(rules))
    is_source, is_destination = ENDS[access]
    liked = preference([str(prefix)] if prefix is not None else (rule.result for rule in to_pfn))
    try:
        return Protocol(
            name=_text(row, "protocol", where),
            prefix=prefix,
            to_pfn=to_pfn,
            to_lfn=tuple(turned_round(to_pfn)),
            read=liked if is_source else None,
            write=liked if is_destination else None,
        )
    except ValidationError as error:
        field, what = said(error)
        raise BadDescription(what, line=row.line, field=f"{where}.{field}") from error


def _rule(row: Any, protocol: Mapping[str, Any], where: str) -> Rule:
    if not isinstance(row, _Located):
        raise BadDescription("a rule must be an object", field=where)
    # In older files the chain belongs to the protocol.
    chain = row.get("chain", protocol.get("chain")) or None
    fields = {"match": _text(row, "lfn", where), "result": _text(row, "pfn", where), "chain": chain}
    try:
        return Rule.model_validate(fields)
    except ValidationError as error:
        field, what = said(error)
        theirs = {"match": "lfn", "result": "pfn"}.get(field, field) or "pfn"
        raise BadDescription(what, line=row.line, field=f"{where}.{theirs}") from error


def turned_round(rules: Iterable[Rule]) -> Iterable[Rule]:
    """Yield rules from PFN to LFN for those from LFN to PFN that have one way back; others are left out.

    What they give may still be wrong, so ``Storage.lfn`` goes the full circle.
    """
    for rule in rules:
        if (back := _back(rule)) is not None:
            yield back


def _back(rule: Rule) -> Rule | None:
    plain = _GROUPS.split(rule.match.removeprefix("^").removesuffix("$"))
    outside, groups = plain[::2], plain[1::2]
    wanted = re.findall(r"\$([1-9])", rule.result)
    # Every group once: then nothing of the LFN is lost on the way, and nothing is doubled.
    if sorted(wanted) != [str(place + 1) for place in range(len(groups))]:
        return None
    if any(group.startswith("?") for group in groups) or not all(map(_OUTSIDE.match, outside)):
        return None
    texts = [re.sub(r"\\(.)", r"\1", text.replace("/+", "/")) for text in outside]
    literals = re.split(r"\$[1-9]", rule.result)
    match = re.escape(literals[0])
    result = texts[0]
    for place, literal in zip(wanted, literals[1:], strict=True):
        match += f"({groups[int(place) - 1]})" + re.escape(literal)
    for place, text in enumerate(texts[1:], start=1):
        result += f"${wanted.index(str(place)) + 1}{text}"
    try:
        return Rule(match=match + r"\Z", result=result, chain=rule.chain)
    except ValidationError:
        return None


def _text(row: _Located, field: str, where: str) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not value:
        raise BadDescription("it must be a text", line=row.line, field=f"{where}.{field}")
    return value


def _list(row: _Located, field: str, where: str) -> list[Any]:
    value = row.get(field)
    if not isinstance(value, list) or not value:
        raise BadDescription("it must be a list", line=row.line, field=f"{where}.{field}")
    return value
