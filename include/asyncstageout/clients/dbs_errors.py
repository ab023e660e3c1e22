"""What goes wrong between us and DBS, each in its own class, and which answer is which.

dbs2go answers nearly every failure with 400, whether it is a block that is there already, a lost race in its
database or a wrong file; its codes were renumbered once (128 and 226 are the same). So its words decide:
those of its sources (``dbs/bulkblocks2.go``, ``dbs/migrate.go``) and of answers that its users have shown.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from asyncstageout.clients.errors import Answer, ServiceError, Transient, one_line, shortened
from asyncstageout.core.dbs_answers import Said, parse_error


@dataclass(eq=False)
class DBSError(ServiceError):
    """Root of what goes wrong with DBS.

    Attributes:
        code: of dbs2go; 0: it gave none.
        function: of dbs2go, where it happened.
    """

    code: int = 0
    function: str = ""


@dataclass(eq=False)
class DBSUnreachable(Transient, DBSError):
    """No answer: refused, reset, timed out, or no such host."""

    maybe_delivered: bool = True
    advice: ClassVar[str] = "Before a block is sent again, ask whether it is there"


class DBSUntrusted(DBSError):
    """The server's certificate is not one that we trust."""

    advice: ClassVar[str] = "Check the directory of certificate authorities, and the server's name"


@dataclass(eq=False)
class DBSUnavailable(Transient, DBSError):
    """DBS, its database or its front has no room or no answer at the moment (429, 5xx, a page)."""

    retry_after_s: float | None = None
    maybe_delivered: bool = True
    advice: ClassVar[str] = "It recovers by itself; before a block is sent again, ask whether it is there"


@dataclass(eq=False)
class DBSRace(Transient, DBSError):
    """Two requests met in DBS's database and this one lost: a row was made, or is locked, by another.

    Nothing of the block is there. The same request succeeds a moment later.
    """

    maybe_delivered: bool = False
    advice: ClassVar[str] = "Send the same block again"


class DBSNotAuthorised(DBSError):
    """DBS or its front does not let us. In production this has passed by itself too."""

    advice: ClassVar[str] = "Check the certificate and its role in CMS's registry; repeat it rarely"


class DBSNotFound(DBSError):
    """There is nothing at this path."""

    advice: ClassVar[str] = (
        "Check the paths of the connection: those of a DBS writer, reader and migrate server"
    )


class DBSBadAnswer(DBSError):
    """A success whose content is not what the contract says, or the way to a login page."""

    advice: ClassVar[str] = "Check the paths of the connection, and what stands in front of DBS"


class DBSRefused(DBSError):
    """The request is wrong and stays wrong."""


# --- of a block ---


@dataclass(eq=False)
class BlockExists(DBSError):
    """DBS has a block of this name. Names are unique, so it is the one that an earlier try sent."""

    block_name: str = ""
    advice: ClassVar[str] = "Take the block as published"


class BlockTooLarge(DBSError):
    """The body is larger than the front of DBS takes (413)."""

    advice: ClassVar[str] = "Publish the same files in smaller blocks"


class FilesNotTaken(DBSError):
    """The whole block was refused because of at least one of its files, and DBS does not say which or why.

    Either DBS has the LFN already, anywhere in this instance; or the file is not as DBS wants it; or an
    earlier try of the same block is still at work.
    """

    advice: ClassVar[str] = (
        "Ask whether the block is there, then which files are; publish the others in a new one"
    )


@dataclass(eq=False)
class ParentUnknown(DBSError):
    """DBS does not know a parent: an LFN, or a dataset."""

    parent: str = ""
    advice: ClassVar[str] = "Migrate the parent's block, or publish without this parent"


class BlockRefused(DBSRefused):
    """DBS does not take this block as it is."""

    advice: ClassVar[str] = "Find the field that is meant; the same body will not be taken"


# --- of a migration ---


class MigrationRefused(DBSRefused):
    """DBS does not copy this block, most often because its dataset is not VALID at the source."""

    advice: ClassVar[str] = "Publish without these parents"


@dataclass(eq=False)
class MigrationAsked(DBSError):
    """There is a request for this block already; :meth:`DBSClient.submit_migration` makes an answer of it."""

    request_id: int = 0


# --- which answer is which error ---


class Rule(NamedTuple):
    """A refusal whose words hold this is that error; the first that fits counts. Group 1 is its key."""

    words: str
    error: type[DBSError]


_DATABASE_PASSES = (
    # A unique row that another made, locks, deadlock, snapshot, session or connection lost, start and stop.
    r"ORA-(?:0000[18]|00018|00020|00028|0005[14]|00060|01012|01013|0103[34]|01089|01092|01555|02049|02391|02396"
    r"|0311[34]|03135|03150|04021|08177|12[1-6]\d\d|25408)\b|UNIQUE constraint failed|database is locked"
)
_NO_DATABASE = r"driver: bad connection|context deadline exceeded"
RULES: dict[str, tuple[Rule, ...]] = {
    "bulkblocks": (
        Rule(r"Block (/\S+) already exists", BlockExists),
        Rule(rf"fail to commit transaction|{_NO_DATABASE}", DBSUnavailable),
        Rule(_DATABASE_PASSES, DBSRace),
        Rule(r"unable to find parent lfn (\S+)", ParentUnknown),
        Rule(r"unable to find dataset_id for ([^,\s]+)", ParentUnknown),
        Rule(r"concurrency error", FilesNotTaken),
        Rule(r"", BlockRefused),
    ),
    "submit": (
        Rule(r"is already exist in DB with id=(\d+)", MigrationAsked),
        # 124: the DBS that it shall be copied from did not answer it.
        Rule(rf"Code:124 |{_NO_DATABASE}", DBSUnavailable),
        Rule(_DATABASE_PASSES, DBSRace),
        Rule(r"", MigrationRefused),
    ),
}
"""By the last part of the path."""
_STATUSES: dict[int, type[DBSError]] = {
    401: DBSNotAuthorised,
    403: DBSNotAuthorised,
    404: DBSNotFound,
    405: DBSNotFound,
}
_PASSES = frozenset({408, 425, 429})


def dbs_error(server: str, method: str, path: str, answer: Answer) -> DBSError:
    """Say which error an answer of DBS is; every status from 300 on is one."""
    said = parse_error(answer.json)
    error, key = _judged(path.partition("?")[0].rpartition("/")[2], answer.status, said)
    detail = one_line(said.text) if said else answer.text
    facts = (said.code, said.function) if said else (0, "")
    row = (server, shortened(method, path), answer.status, detail, *facts)
    if error is DBSUnavailable:
        # The limiter of dbs2go (429) stands before everything else.
        return DBSUnavailable(*row, answer.retry_after_s, maybe_delivered=answer.status != 429)
    if error is BlockExists:
        return BlockExists(*row, block_name=key)
    if error is ParentUnknown:
        return ParentUnknown(*row, parent=key)
    if error is MigrationAsked:
        return MigrationAsked(*row, request_id=int(key))
    return error(*row)


def _judged(api: str, status: int, said: Said | None) -> tuple[type[DBSError], str]:
    if by_status := _by_status(api, status, said):
        return by_status, ""
    if said:
        words = f"{said.function} {said.message} {said.reason}"
        for rule in RULES.get(api, ()):
            if found := re.search(rule.words, words):
                return rule.error, found[1] if found.re.groups else ""
    return DBSRefused, ""


def _by_status(api: str, status: int, said: Said | None) -> type[DBSError] | None:
    """Return the error that a status is, whatever is said; None: the words decide."""
    if status < 400:
        return DBSBadAnswer
    if status in _STATUSES:
        return _STATUSES[status]
    if status == 413:
        return BlockTooLarge if api == "bulkblocks" else DBSRefused
    # A 400 without a word of DBS is of what stands before it.
    passes = status >= 500 or status in _PASSES or (status == 400 and said is None)
    return DBSUnavailable if passes else None
