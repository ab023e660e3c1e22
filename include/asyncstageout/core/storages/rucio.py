"""Reads the protocols of a Rucio RSE, as Rucio's server gives them (``rse_info``)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from asyncstageout.core.storages.model import Protocol, Rule, Storage, Unresolvable
from asyncstageout.core.storages.problems import BadDescription, said
from asyncstageout.core.storages.rucio_paths import scope_of
from asyncstageout.core.storages.storage_json import turned_round

TRANSLATIONS: dict[str, Literal["hash", "identity"] | None] = {
    "hash": "hash",
    "identity": "identity",
    "cmstfc": None,
}
"""Between prefix and LFN, by Rucio's name of the algorithm."""

SAMPLE_USER = "asyncstageout"
SAMPLE_LFN = "/store/user/asyncstageout/sample.root"
SAMPLE = f"{scope_of(SAMPLE_USER)}:{SAMPLE_LFN}"
"""What Rucio is asked about: its answer must be ours, or we would put files where it never looks."""


class _Domain(BaseModel):
    third_party_copy: int | None = None
    """Before Rucio 1.30 one number stood for both."""
    third_party_copy_read: int | None = None
    third_party_copy_write: int | None = None


class _TFCRule(BaseModel):
    proto: str
    path: str
    out: str
    chain: str | None = None


class _Extended(BaseModel):
    web_service_path: str | None = None
    tfc: list[_TFCRule] = Field(default=[])
    tfc_proto: str = ""


class _Protocol(BaseModel):
    scheme: str
    hostname: str
    port: int = 0
    prefix: str = ""
    impl: str = ""
    domains: dict[str, _Domain] = Field(default={})
    extended_attributes: _Extended | None = None

    def preference(self, use: str) -> int | None:
        wan = self.domains.get("wan", _Domain())
        # 0 and null both mean: never.
        return getattr(wan, f"third_party_copy_{use}") or wan.third_party_copy or None


class _RSE(BaseModel):
    model_config = ConfigDict(extra="ignore")

    rse: str
    deterministic: bool = True
    lfn2pfn_algorithm: str = "default"
    fts: str = ""
    """FTS servers by their URL, separated by commas."""
    protocols: list[_Protocol]


def read_rse(
    settings: Mapping[str, Any], samples: Mapping[str, str] | None = None, default_algorithm: str = "hash"
) -> Storage:
    """Return the storage that Rucio describes by an RSE's settings and attributes.

    ``hash`` and ``identity`` are Rucio's own algorithms, ``cmstfc`` is that of CMS's policy package: a prefix
    and the LFN, or rules in ``extended_attributes``.

    Args:
        samples: scheme -> PFN that Rucio's server makes of :data:`SAMPLE`. Ours must be the same.
        default_algorithm: what ``default`` means at this Rucio server.

    Raises:
        BadDescription: it cannot be used.
    """
    try:
        rse = _RSE.model_validate(settings)
    except ValidationError as error:
        where, what = said(error)
        raise BadDescription(what, field=where) from error
    if not rse.deterministic:
        raise BadDescription("only Rucio knows where its files are", field="deterministic")
    named = rse.lfn2pfn_algorithm
    algorithm = default_algorithm if named == "default" else named
    if algorithm not in TRANSLATIONS:
        raise BadDescription(f"{algorithm!r}; there are {', '.join(TRANSLATIONS)}", field="lfn2pfn_algorithm")
    storage = _storage(rse, algorithm)
    _check_samples(storage, samples or {})
    return storage


def _storage(rse: _RSE, algorithm: str) -> Storage:
    protocols: dict[str, Protocol] = {}
    try:
        for protocol in rse.protocols:
            name = protocol.scheme
            if name in protocols:
                name = f"{name}-{len(protocols) + 1}"
            for made in _protocols(name, protocol, algorithm):
                protocols.setdefault(made.name, made)
        servers = tuple(filter(None, (server.strip() for server in rse.fts.split(","))))
        return Storage(
            site=rse.rse, kind="rucio", rse=rse.rse, protocols=tuple(protocols.values()), fts=servers
        )
    except ValidationError as error:
        where, what = said(error)
        raise BadDescription(what, field=f"protocols.{where}") from error


def _protocols(name: str, protocol: _Protocol, algorithm: str) -> list[Protocol]:
    read, write = protocol.preference("read"), protocol.preference("write")
    extended = protocol.extended_attributes or _Extended()
    if algorithm == "cmstfc" and extended.tfc:
        return _by_rules(name, extended, read, write)
    host = protocol.hostname.partition("://")[2] or protocol.hostname
    port = f":{protocol.port}" if protocol.port else ""
    # Rucio sets a slash before and behind a prefix that lacks it; with us the path begins with the latter.
    path = f"{'' if protocol.prefix.startswith('/') else '/'}{protocol.prefix}".removesuffix("/")
    if algorithm == "cmstfc" and protocol.scheme == "root":
        path += "/"
    return [
        Protocol(
            name=name,
            prefix=f"{protocol.scheme}://{host}{port}{extended.web_service_path or ''}{path}",
            translation=TRANSLATIONS[algorithm],
            read=read,
            write=write,
        )
    ]


def _by_rules(name: str, extended: _Extended, read: int | None, write: int | None) -> list[Protocol]:
    """Return the protocol of an RSE with the rules of CMS, and before it those that it builds on."""
    own = extended.tfc_proto.lower()
    made = []
    for proto in dict.fromkeys(rule.proto.lower() for rule in extended.tfc):
        rules = tuple(
            Rule(
                match=rule.path, result=rule.out, chain=f"{name}/{rule.chain.lower()}" if rule.chain else None
            )
            for rule in extended.tfc
            if rule.proto.lower() == proto
        )
        is_own = proto == own
        made.append(
            Protocol(
                name=name if is_own else f"{name}/{proto}",
                to_pfn=rules,
                to_lfn=tuple(turned_round(rules)),
                read=read if is_own else None,
                write=write if is_own else None,
            )
        )
    return made


def _check_samples(storage: Storage, samples: Mapping[str, str]) -> None:
    for protocol in storage.protocols:
        theirs = samples.get(protocol.name)
        if theirs is None:
            continue
        try:
            ours = storage.pfn(protocol.name, SAMPLE_LFN, username=SAMPLE_USER).url
        except Unresolvable as error:
            ours = str(error)
        # Rules leave slashes doubled that Rucio does away with; storages do not tell them apart.
        if _squeezed(ours) != _squeezed(theirs):
            raise BadDescription(f"we make {ours} of {SAMPLE}, and Rucio {theirs}", field=protocol.name)


def _squeezed(url: str) -> str:
    return re.sub(r"(?<!:)/+", "/", url)
