"""Which of several FTS servers takes a new job: what policies, sites, regions and weights say, in this order.

A job that is planned stays with its server, whatever becomes of it (steps.submit).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Literal

State = Literal["up", "draining", "down"]
"""What operators want: draining takes no new jobs, down is not even contacted."""


@dataclass(frozen=True, slots=True)
class FTSServer:
    """One FTS server, by the name of its Airflow connection."""

    name: str
    endpoint: str | None = None
    """URL as sites write it in their storage.json."""
    vo: str = ""
    """The only VO that it serves; empty: every one."""
    regions: tuple[str, ...] = ()
    """Countries (``IT``) and sites (``T2_DE_*``) whose files are sent with it."""
    weight: int = 100
    state: State = "up"
    failing_since: datetime | None = None
    """None: it answers, as far as is known."""
    problem: str | None = None

    @property
    def is_usable(self) -> bool:
        """Whether it gets new jobs."""
        return self.state == "up" and self.failing_since is None

    def sentence(self) -> str:
        """Say how it is."""
        if self.state == "up" and self.failing_since is not None:
            return f"{self.name} has not answered since {self.failing_since:%H:%M}"
        return f"{self.name} is {self.state}"


def choose_server(
    servers: Sequence[FTSServer],
    *,
    wanted: Sequence[str] = (),
    allowed: Sequence[str] = (),
    destination: str,
    vo: str = "",
    key: str,
) -> FTSServer | None:
    """Return the server for a link's new jobs; None if none is usable, and the link must wait.

    Among usable servers of one rank the weights decide by rendezvous hashing: a link stays with its server
    as long as that one is usable, and links are shared out by weight.

    Args:
        wanted: endpoints in the order in which the destination names them (``fts`` of its storage.json).
        allowed: the names that a policy allows; empty: all.
        destination: the site, such as T2_IT_Bari.
        vo: of the identity; empty: the installation's only one.
        key: the link, written in any way that does not change.
    """
    usable = [
        server
        for server in servers
        if server.is_usable and (not allowed or server.name in allowed) and (not vo or server.vo in ("", vo))
    ]
    rank = _ranking([_address(url) for url in wanted], destination)
    return min(usable, key=lambda server: (rank(server), -_share(server, key), server.name), default=None)


def none_is_up(servers: Sequence[FTSServer]) -> str:
    """Say why a link waits for which there is no server."""
    return "no FTS server is up: " + ("; ".join(map(FTSServer.sentence, servers)) or "none is known")


def _ranking(wanted: list[str], destination: str) -> Callable[[FTSServer], int]:
    def rank(server: FTSServer) -> int:
        address = _address(server.endpoint or "")
        if address in wanted:
            return wanted.index(address)
        return len(wanted) + (not _serves(server, destination))

    return rank


def _address(url: str) -> str:
    return url.strip().rstrip("/").lower()


def _serves(server: FTSServer, site: str) -> bool:
    country = site.split("_")[1] if site.count("_") > 1 else ""
    return any(region == country or fnmatchcase(site, region) for region in server.regions)


def _share(server: FTSServer, key: str) -> float:
    """Weighted rendezvous: with these scores each server is first in proportion to its weight."""
    digest = hashlib.blake2b(f"{server.name}\0{key}".encode(), digest_size=8).digest()
    draw = (int.from_bytes(digest) + 0.5) / 2**64
    return -server.weight / math.log(draw)
