"""What goes wrong on purpose: at the sites, in transfers, in the FTS and in the DBS, from one JSON file.

Everything is chosen by hashes of the seed and of names, never by a random generator or a clock: two runs over
the same files fail alike, whatever the order in which things happen. The reference is docs/sandbox.md.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatchcase
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from asyncstageout.sandbox.fts.records import QUEUE_TIMEOUT_REASON

logger = logging.getLogger(__name__)

Rate = Annotated[float, Field(ge=0, le=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Mix(_Strict):
    """The failures of production, in their proportions (CMS, summer 2026)."""

    rate: Rate = 0.0
    """Share of all source URLs that fail at least once."""
    transient: Rate = 0.8
    """Of those that are not permanent by nature, the share that succeeds after one or two failed tries."""


class LinkFault(_Strict):
    """Transfers between storage elements (patterns with ``*`` over ``davs://host``) fail."""

    source: str = "*"
    destination: str = "*"
    reason: str
    rate: Rate = 1.0
    tries: int | None = Field(None, ge=1)
    """So many first tries of each source URL fail; null is all."""


class FileFault(_Strict):
    """Transfers whose source or destination URL holds ``path`` fail."""

    path: str
    reason: str
    rate: Rate = 1.0
    tries: int | None = Field(None, ge=1)


class ApiFault(_Strict):
    """The API of the FTS or of the DBS misbehaves."""

    action: Literal["status", "latency", "reset", "lost_reply"]
    """``reset``: nothing is done, the connection drops. ``lost_reply``: it is done, the connection drops."""
    method: str = "*"
    path: str = ".*"
    """Regular expression over the whole path."""
    over_bytes: int | None = Field(None, ge=0)
    """Only requests with a larger body."""
    status: int = 503
    body: str = "<html><head><title>503</title></head><body><h1>Service Unavailable</h1></body></html>"
    latency_s: float = Field(1.0, ge=0)
    rate: Rate = 1.0
    count: int | None = Field(None, ge=1)
    """So many matching requests, then never again; null is no end."""


class SiteFault(_Strict):
    """A site answers with an error."""

    site: str = "*"
    """Pattern over the site's name."""
    method: str = "*"
    path: str = ""
    """Part of the path."""
    status: int = 500
    """0 drops the connection; of a PUT, after its first bytes."""
    rate: Rate = 1.0
    count: int | None = Field(None, ge=1)


class MigrationFault(_Strict):
    """The DBS copies a block from another one late, or not at all."""

    block: str = "*"
    """Pattern over the block's name."""
    latency_s: float = Field(0.0, ge=0)
    """Each of its steps takes so much longer."""
    failures: int | None = Field(0, ge=0)
    """So many tries fail; null: all, until DBS gives up."""


class FaultPlan(_Strict):
    """One fault file."""

    seed: int = 0
    mix: Mix = Mix()
    links: tuple[LinkFault, ...] = ()
    files: tuple[FileFault, ...] = ()
    api: tuple[ApiFault, ...] = ()
    sites: tuple[SiteFault, ...] = ()
    migrations: tuple[MigrationFault, ...] = ()


class Kind(NamedTuple):
    """One line of the production mix."""

    weight: float
    reason: str
    is_permanent: bool


_PULL = "TRANSFER [5] TRANSFER ERROR: Copy failed (3rd pull). Last attempt: copy HTTP"
_CURL_56 = "[112] Result curl error (56): Failure when receiving data from the peer after 1 attempts"
MIX = (
    # CRABServer #9363 and #9400: 2.04 million failures of 12 June to 12 August 2026.
    Kind(43.40, f"{_PULL} 507 : Insufficient Storage", True),
    Kind(18.62, QUEUE_TIMEOUT_REASON, False),
    Kind(7.25, "DESTINATION [1] HTTP 403 : Permission refused", True),
    Kind(6.87, f"{_PULL} 500 : Unexpected server error: 500", False),
    Kind(
        6.84,
        f"SOURCE {_CURL_56}",
        False,
    ),
    Kind(
        4.42,
        f"DESTINATION {_CURL_56}",
        False,
    ),
    Kind(1.58, "SOURCE [1] HTTP 403 : Permission refused", True),
    # The rest is 300 kinds, most of them a destination that could not be reached.
    Kind(11.02, "DESTINATION [112] Result Could not connect to server after 1 attempts", False),
)


def share(*parts: object) -> float:
    """Return a number in [0, 1) that only depends on ``parts``."""
    digest = blake2b("|".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def mixed(plan: FaultPlan, source: str) -> tuple[Kind, int | None] | None:
    """Return how this source URL fails in the production mix, and for how many tries (None: all)."""
    if share(plan.seed, "fails", source) >= plan.mix.rate:
        return None
    point = share(plan.seed, "kind", source) * sum(kind.weight for kind in MIX)
    kind = next(kind for kind, end in zip(MIX, _ends(), strict=True) if point < end)
    if kind.is_permanent or share(plan.seed, "passes", source) >= plan.mix.transient:
        return kind, None
    return kind, 1 + int(share(plan.seed, "tries", source) * 2)


def _ends() -> Iterator[float]:
    end = 0.0
    for kind in MIX:
        end += kind.weight
        yield end


class Faults:
    """The fault plan in force, with its file and its counts."""

    def __init__(self, plan: FaultPlan | None = None, path: Path | None = None) -> None:
        self.plan = plan or FaultPlan()
        self.tries: dict[str, int] = {}
        """Tries so far of each source URL that ever had a fault chosen for it."""
        self._path = path
        self._read_mtime_ns = 0
        self._matches: Counter[tuple[str, int]] = Counter()
        self.reload()

    def replace(self, plan: FaultPlan) -> None:
        """Put another plan in force; counts of its API and site faults start anew."""
        self.plan = plan
        self._matches.clear()

    def reload(self) -> None:
        """Read the file again if it changed.

        Raises:
            pydantic.ValidationError: it is not a fault file; the plan in force stays.
        """
        if self._path is None or not self._path.exists():
            return
        mtime_ns = self._path.stat().st_mtime_ns
        if mtime_ns != self._read_mtime_ns:
            self._read_mtime_ns = mtime_ns
            self.replace(FaultPlan.model_validate_json(self._path.read_bytes()))

    async def keep_reading(self) -> None:
        """Read the file again whenever it changes, until cancelled."""
        while True:
            try:
                self.reload()
            except ValidationError as error:
                logger.error("the fault file is not valid, the plan before it stays: %s", error)
            await asyncio.sleep(1)

    def transfer(self, source: str, destination: str, link: tuple[str, str]) -> str | None:
        """Return why the next try of this transfer fails; None if it may succeed. Counts the try."""
        chosen = self._chosen(source, destination, link)
        if chosen is None:
            return None
        reason, failing_tries = chosen
        tried = self.tries.get(source, 0)
        self.tries[source] = tried + 1
        return reason if failing_tries is None or tried < failing_tries else None

    def _chosen(self, source: str, dest: str, link: tuple[str, str]) -> tuple[str, int | None] | None:
        plan = self.plan
        for number, file in enumerate(plan.files):
            named = file.path in source or file.path in dest
            if named and share(plan.seed, "file", number, source) < file.rate:
                return file.reason, file.tries
        for number, rule in enumerate(plan.links):
            matches = fnmatchcase(link[0], rule.source) and fnmatchcase(link[1], rule.destination)
            if matches and share(plan.seed, "link", number, source) < rule.rate:
                return rule.reason, rule.tries
        mix = mixed(plan, source)
        return (mix[0].reason, mix[1]) if mix else None

    def api(self, method: str, path: str, body_bytes: int = 0) -> ApiFault | None:
        """Return the fault for this request, and count it."""
        for number, rule in enumerate(self.plan.api):
            matches = rule.method in ("*", method) and re.fullmatch(rule.path, path)
            large = rule.over_bytes is None or body_bytes > rule.over_bytes
            if matches and large and self._falls("api", number, rule.rate, rule.count):
                return rule
        return None

    def site(self, site: str, method: str, path: str) -> SiteFault | None:
        """Return the fault for this request to a site, and count it."""
        for number, rule in enumerate(self.plan.sites):
            matches = fnmatchcase(site, rule.site) and rule.method in ("*", method) and rule.path in path
            if matches and self._falls("site", number, rule.rate, rule.count):
                return rule
        return None

    def migration(self, block: str) -> MigrationFault | None:
        """Return the fault for the migration of this block."""
        return next((rule for rule in self.plan.migrations if fnmatchcase(block, rule.block)), None)

    def _falls(self, what: str, number: int, rate: float, count: int | None) -> bool:
        """Say whether the rule takes this match; the n-th match has the same answer in every run."""
        if count is not None and self._matches[what, number] >= count:
            return False
        self._matches[f"{what} seen", number] += 1
        seen = self._matches[f"{what} seen", number]
        if share(self.plan.seed, what, number, seen) >= rate:
            return False
        self._matches[what, number] += 1
        return True
