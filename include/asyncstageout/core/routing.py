"""How a file travels: which server, in whose name, by which protocols; or why it has to wait.

All that operators and sites have said comes together here, once per (link, user, activity, identity).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from asyncstageout.core.identities import Identity
from asyncstageout.core.planning import FileNames, JobKey, Link, PendingFile
from asyncstageout.core.policies import Bucket, LinkPolicy, Policies
from asyncstageout.core.restrictions import Restrictions
from asyncstageout.core.servers import FTSServer, choose_server, none_is_up
from asyncstageout.core.storages.model import PhysicalName, Storage
from asyncstageout.core.storages.schemes import FAMILIES, NoCommonScheme, best_protocols

ANY_SCHEME = tuple(family for family, _ in FAMILIES)

VERIFIABLE_WITHOUT_CHECKSUM = {"both": "both", "source": "none", "target": "none", "none": "none"}
"""Policy -> what FTS can compare for a file of which nobody said a checksum.

With ``both`` the ends are compared with each other. One end alone is compared with what was said: with
nothing FTS fails the file ("Checksum value required if mode is not end to end", gfal2's
``gfalt_set_checksum``).
"""


class Way(NamedTuple):
    """How files of one link, user, activity and identity travel."""

    policy: LinkPolicy
    bucket: Bucket
    """Whose files count together against the policy's limits."""
    fts_server: str
    identity: str
    names: FileNames


class Held(NamedTuple):
    """Why they do not."""

    reason: str
    is_identity: bool = False
    """It is only this identity that waits."""


class NamedFile(NamedTuple):
    """A file with its names at both ends."""

    source: PhysicalName
    destination: PhysicalName


@dataclass(eq=False)
class Routing:
    """What counts in one cycle.

    Attributes:
        storages: (version, storage) by site.
        holds: why an identity waits, by (FTS server, identity); server "" is all of them.
    """

    policies: Policies
    restrictions: Restrictions
    servers: Sequence[FTSServer]
    storages: Mapping[str, tuple[int, Storage]]
    holds: Mapping[tuple[str, str], str]

    def __post_init__(self) -> None:
        self._found: dict[tuple[Link, str, str | None, str], Way | Held] = {}
        # Of a link these are nearly always the same for all of its users.
        self._named: dict[tuple[Link, tuple[str, ...]], FileNames | Held] = {}
        self._served: dict[tuple[Link, tuple[str, ...], str], FTSServer | None] = {}

    @cached_property
    def without_holds(self) -> Routing:
        """The same, as if every identity had a credential."""
        return replace(self, holds={})

    def way(self, link: Link, username: str, activity: str | None, identity: str) -> Way | Held:
        """Return how files travel, or why they wait.

        Args:
            activity: None: whatever is so for every activity.
            identity: whose files they are, as :mod:`asyncstageout.core.identities` writes it.
        """
        asked = (link, username, activity, identity)
        if asked not in self._found:
            self._found[asked] = self._way(*asked)
        return self._found[asked]

    def _way(self, link: Link, username: str, activity: str | None, identity: str) -> Way | Held:
        # No row names the empty activity.
        asked = (*link, username, activity or "")
        if stop := self.restrictions.stops(*asked):
            return Held(stop.sentence())
        policy = self.policies.of(*asked)
        owner = Identity.read(identity)
        actor = owner if policy.credential == "user" else owner.of_service()
        names = self._names(link, tuple(policy.schemes or ANY_SCHEME))
        if isinstance(names, Held):
            return names
        server = self._server(link, tuple(policy.fts_servers), actor.vo)
        if server is None:
            return Held(none_is_up(self.servers))
        reason = self.holds.get((server.name, str(actor))) or self.holds.get(("", str(actor)))
        if reason:
            return Held(reason, is_identity=not actor.is_service)
        return Way(policy, self.policies.bucket_of(*asked), server.name, str(actor), names)

    def _server(self, link: Link, allowed: tuple[str, ...], vo: str) -> FTSServer | None:
        asked = (link, allowed, vo)
        if asked not in self._served:
            self._served[asked] = choose_server(
                self.servers,
                wanted=self.storages[link.destination][1].fts,
                allowed=allowed,
                destination=link.destination,
                vo=vo,
                key=str(link),
            )
        return self._served[asked]

    def _names(self, link: Link, schemes: tuple[str, ...]) -> FileNames | Held:
        asked = (link, schemes)
        if asked not in self._named:
            self._named[asked] = self._find_names(link, schemes)
        return self._named[asked]

    def _find_names(self, link: Link, schemes: tuple[str, ...]) -> FileNames | Held:
        for site in link:
            if site not in self.storages:
                return Held(f"{site} has no description of its names (aso sites load)")
        (from_version, source), (to_version, destination) = (self.storages[site] for site in link)
        try:
            pair = best_protocols(source, destination, schemes)
        except NoCommonScheme as error:
            return Held(str(error))
        return FileNames(from_version, pair.source, to_version, pair.destination)

    def name(self, file: PendingFile, way: Way) -> NamedFile:
        """Return where a file is read and written.

        Raises:
            Unresolvable: a site has no rule for it.
        """
        source, destination = self.storages[file.source][1], self.storages[file.destination][1]
        who = {"username": file.username, "destination": file.destination}
        return NamedFile(
            source.pfn(way.names.source_protocol, file.source_lfn, **who),
            destination.pfn(way.names.destination_protocol, file.destination_lfn, **who),
        )


def job_key(file: PendingFile, way: Way, named: NamedFile) -> JobKey:
    """Return what a file's FTS job must be like."""
    policy = way.policy
    return JobKey(
        file.source,
        file.destination,
        way.fts_server,
        way.identity,
        policy.fts_activity or file.activity,
        policy.priority or file.priority,
        way.names,
        _params(policy, file, named),
    )


def _params(policy: LinkPolicy, file: PendingFile, named: NamedFile) -> tuple[tuple[str, Any], ...]:
    """Return the parameters of ``core.fts.JobParams`` that are not FTS's own choice."""
    overwrite = policy.overwrite or file.overwrite
    verify = policy.verify_checksum
    params = {
        "verify_checksum": verify if file.has_checksum else VERIFIABLE_WITHOUT_CHECKSUM[verify],
        "overwrite": overwrite,
        "retry": policy.fts_retry,
        "retry_delay_s": policy.retry_delay_s,
        "timeout_s": policy.timeout_s,
        "max_time_in_queue": policy.max_time_in_queue_h,
        "reuse": policy.reuse or None,
        "dst_file_report": not overwrite,
        "source_spacetoken": named.source.space_token,
        "destination_spacetoken": named.destination.space_token,
        "scitag": policy.scitag,
    }
    return tuple(sorted((name, value) for name, value in params.items() if value is not None))
