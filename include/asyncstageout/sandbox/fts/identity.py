"""Who is calling, and what he may do: DN, VO, delegation id, level, as FTS has them from a certificate."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha1
from typing import Any
from uuid import uuid5

from asyncstageout.core.fts_ids import BASE_ID
from asyncstageout.sandbox.fts.records import Job

_USER_LEVEL = {"transfer": "vo", "datamanagement": "all"}
_ROOT_LEVEL = dict.fromkeys(("transfer", "deleg", "config", "admin", "datamanagement"), "all")


@dataclass(frozen=True, slots=True)
class Identity:
    """The caller of one request."""

    dns: tuple[str, ...] = ("anon",)
    vos: tuple[str, ...] = ()
    delegation_id: str | None = None
    is_root: bool = False
    fqans: tuple[str, ...] = ()
    """What VOMS says of him."""
    token_scopes: frozenset[str] | None = None
    """Of the bearer; None: he came with a certificate."""

    @property
    def user_dn(self) -> str:
        return self.dns[0]

    @property
    def is_anonymous(self) -> bool:
        return self.delegation_id is None

    @property
    def method(self) -> str:
        if self.is_anonymous:
            return "unauthenticated"
        return "certificate" if self.token_scopes is None else "oauth2"

    def may_see(self, job: Job) -> bool:
        """Any member of a VO may see and cancel the VO's jobs (FTS's shipped ``Public = vo:transfer``)."""
        return self.is_root or job.vo_name in self.vos

    def whoami(self) -> dict[str, Any]:
        """The answer of ``GET /whoami``."""
        level: Any = [] if self.is_anonymous else _ROOT_LEVEL if self.is_root else _USER_LEVEL
        return {
            "user_dn": self.user_dn,
            "dn": list(self.dns),
            "base_id": str(BASE_ID),
            "voms_cred": list(self.fqans),
            "vos": list(self.vos),
            "vos_id": [str(uuid5(BASE_ID, vo)) for vo in self.vos],
            "roles": _roles(self.fqans),
            "level": level,
            "delegation_id": self.delegation_id,
            "method": self.method,
            "is_root": self.is_root,
        } | self._of_token()

    def _of_token(self) -> dict[str, Any]:
        if self.token_scopes is None:
            return {}
        return {
            "oauth2_scope": " ".join(sorted(self.token_scopes)),
            "wlcg_profile": True,
            "get_granted_level_for_overriden": {},
            "get_granted_level_for": {},
        }


ANONYMOUS = Identity()


class Identities:
    """Turns the DNs of a connection into an identity."""

    def __init__(
        self,
        default_vo: str | None = None,
        gridmap: Mapping[str, str] | None = None,
        root_dns: frozenset[str] = frozenset(),
    ) -> None:
        """``default_vo`` is for DNs that ``gridmap`` does not name; None makes a VO of each such DN's own."""
        self._default_vo = default_vo
        self._gridmap = dict(gridmap or {})
        self._root_dns = root_dns
        self.of = lru_cache(maxsize=1024)(self._of)

    def _of(self, dns: tuple[str, ...], fqans: tuple[str, ...] = ()) -> Identity:
        if not dns:
            return ANONYMOUS
        delegation_id = sha1("".join((dns[0], *fqans)).encode(), usedforsecurity=False).hexdigest()[:16]
        vos = _vos(fqans) or (self._gridmap.get(dns[0], self._default_vo or delegation_id),)
        return Identity(dns, vos, delegation_id, dns[0] in self._root_dns, fqans)

    def of_token(self, issuer: str, subject: str, scopes: frozenset[str]) -> Identity:
        """Return whom FTS takes the bearer of a token for; ``gridmap`` may name his subject."""
        delegation_id = sha1(f"{issuer}{subject}".encode(), usedforsecurity=False).hexdigest()[:16]
        vo = self._gridmap.get(subject, self._default_vo or delegation_id)
        return Identity((subject,), (vo,), delegation_id, token_scopes=scopes)


def _vos(fqans: tuple[str, ...]) -> tuple[str, ...]:
    """Return the VOs as FTS makes them of FQANs: with the group, without the role."""
    return tuple(dict.fromkeys(re.split(r"/(?:Role|Capability)=", fqan)[0].strip("/") for fqan in fqans))


def _roles(fqans: tuple[str, ...]) -> list[str]:
    roles = (role for fqan in fqans for role in re.findall(r"/Role=([^/]+)", fqan))
    return [role for role in dict.fromkeys(roles) if role != "NULL"]
