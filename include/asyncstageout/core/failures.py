"""Why a transfer failed, from what FTS says: a category, CMS's exit code, and whether trying again can help.

FTS writes ``SCOPE [errno] text`` (SOURCE, DESTINATION, TRANSFER or GENERAL_FAILURE); its own sweeps write
plain sentences. The patterns and the codes 60317 to 60328 are those of CRAB (CRABServer #9400), the mix in
production of summer 2026 is in tests/core/test_failures.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

MAX_REASON_CHARS = 1000


class Category(StrEnum):
    """What kind of failure it was. Operators see these words; retries are decided by them."""

    QUOTA = "quota"
    PERMISSION = "permission"
    QUEUE_TIMEOUT = "queue-timeout"
    SOURCE_MISSING = "source-missing"
    SOURCE_CHECKSUM = "source-checksum"
    DESTINATION_CHECKSUM = "destination-checksum"
    DESTINATION_EXISTS = "destination-exists"
    SOURCE = "source"
    DESTINATION = "destination"
    TRANSFER = "transfer"
    CANCELED = "canceled"
    CREDENTIAL = "credential"
    NAME = "name"
    """No rule of the site makes a PFN of the LFN."""
    REFUSED = "refused"
    """FTS refused to take the file at all."""
    LOST = "lost"
    """FTS accepted the job and does not know it any more."""
    OTHER = "other"


class Kind(StrEnum):
    """Who can help."""

    TRANSIENT = "transient"
    """Time: it is tried again."""
    NEEDS_HUMAN = "needs-human"
    """A person, who gives room or permission; then it can go again as it is."""
    PERMANENT = "permanent"
    """Nobody, as the file is: the job has to run again, or the request has to be another one."""


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed attempt, in the words that go on record."""

    category: Category
    code: int
    """CMS exit code, 60317 to 60328."""
    kind: Kind
    scope: str | None
    errno: int | None
    reason: str
    """FTS's text, cut at 1,000 characters."""

    @property
    def permanent(self) -> bool:
        """Whether trying again without a person's help is a waste."""
        return self.kind is not Kind.TRANSIENT


class _Rule(NamedTuple):
    category: Category
    code: int
    kind: Kind
    patterns: tuple[str, ...]
    """Regular expressions, without regard to case, anywhere in the reason unless anchored."""


# First match wins, so the particular stands above the general.
_RULES = (
    _Rule(Category.QUOTA, 60323, Kind.NEEDS_HUMAN, (
        r"HTTP 507", r"status code 507", r"insufficient storage", r"disk quota exceeded", r"no space left",
        r"not have enough space", r"NO_FREE_SPACE", r"\[28\]", r"all pools are full",
    )),
    _Rule(Category.QUEUE_TIMEOUT, 60325, Kind.TRANSIENT, (r"stayed in the queue for too long",)),
    # The source's own bytes are wrong: copying them again gives the same wrong bytes.
    _Rule(Category.SOURCE_CHECKSUM, 60326, Kind.PERMANENT, (
        r"source and user-defined", r"source checksum mismatch",
        r"^SOURCE\b.*checksum.*(mismatch|not match)",
    )),
    _Rule(Category.DESTINATION_CHECKSUM, 60327, Kind.TRANSIENT, (
        r"checksum do not match", r"checksum mismatch", r"user-defined and destination",
    )),
    _Rule(Category.DESTINATION_EXISTS, 60327, Kind.PERMANENT, (r"file exists",)),
    _Rule(Category.CREDENTIAL, 60322, Kind.TRANSIENT, (
        r"proxy.*expired", r"certificate has expired", r"CRL has expired", r"token.*expired",
        r"authentication (failed|failure)",
    )),
    _Rule(Category.PERMISSION, 60322, Kind.NEEDS_HUMAN, (
        r"HTTP 40[13]", r"permission (denied|refused)", r"operation not permitted", r"mkdir\(\) fail",
        r"cannot create directory", r"open/create error", r"530-login incorrect", r"\[13\]",
    )),
    _Rule(Category.SOURCE_MISSING, 60326, Kind.PERMANENT, (
        r"^SOURCE \[2\]", r"^SOURCE.*(no such file|HTTP 404|file not found)",
    )),
    _Rule(Category.TRANSFER, 60328, Kind.TRANSIENT, (
        r"forced-canceled", r"probably stalled", r"force failure due to file state", r"terminated abruptly",
    )),
    _Rule(Category.CANCELED, 60317, Kind.TRANSIENT, (r"cancell?ed", r"storage banned")),
    _Rule(Category.SOURCE, 60326, Kind.TRANSIENT, (r"^SOURCE\b",)),
    _Rule(Category.DESTINATION, 60327, Kind.TRANSIENT, (r"^DESTINATION\b",)),
    _Rule(Category.TRANSFER, 60328, Kind.TRANSIENT, (r"^TRANSFER\b",)),
)  # fmt: skip
_FALLBACK = _Rule(Category.OTHER, 60324, Kind.TRANSIENT, ())
_COMPILED = tuple((re.compile("|".join(rule.patterns), re.IGNORECASE | re.DOTALL), rule) for rule in _RULES)
_SCOPED = re.compile(r"(SOURCE|DESTINATION|TRANSFER|GENERAL_FAILURE) \[(\d+)\]")

SPEAKS_OF_LINK = frozenset(
    {Category.SOURCE, Category.DESTINATION, Category.TRANSFER, Category.QUEUE_TIMEOUT, Category.OTHER}
)
"""What counts for a link's breaker. The others speak of one file, one user's space, or a credential."""

LEAVES_BYTES = frozenset(
    {Category.DESTINATION, Category.TRANSFER, Category.DESTINATION_CHECKSUM, Category.CANCELED, Category.LOST}
)
"""After such a failure, what lies at the destination may be what our own attempt left there."""

GOES_WITH_OVERWRITE = frozenset({Category.DESTINATION_CHECKSUM, Category.DESTINATION_EXISTS})
"""A retry after such a failure overwrites, whatever the policy says: else it meets the same bytes again."""

# Where the text alone says little, FTS's own verdict decides (its heuristics know the errno).
_FTS_DECIDES = frozenset({Category.SOURCE, Category.DESTINATION, Category.TRANSFER, Category.OTHER})


def classify(reason: str, recoverable: bool | None = None) -> Failure:
    """Return what an FTS reason means.

    Args:
        reason: the file's ``reason`` as FTS gives it; empty is a failure without a reason.
        recoverable: FTS's own verdict on the file, when it was asked for.
    """
    text = reason.strip() or "FTS gave no reason"
    rule = next((rule for pattern, rule in _COMPILED if pattern.search(text)), _FALLBACK)
    unhelpful = rule.category in _FTS_DECIDES and recoverable is False
    scoped = _SCOPED.match(text)
    return Failure(
        category=rule.category,
        code=rule.code,
        kind=Kind.PERMANENT if unhelpful else rule.kind,
        scope=scoped.group(1) if scoped else None,
        errno=int(scoped.group(2)) if scoped else None,
        reason=text[:MAX_REASON_CHARS],
    )


def own_failure(category: Category, reason: str) -> Failure:
    """Return a failure that this service found itself, before or instead of FTS."""
    code, kind = {
        Category.NAME: (60324, Kind.NEEDS_HUMAN),
        Category.REFUSED: (60324, Kind.PERMANENT),
        Category.LOST: (60328, Kind.TRANSIENT),
    }[category]
    return Failure(category, code, kind, None, None, reason[:MAX_REASON_CHARS])
