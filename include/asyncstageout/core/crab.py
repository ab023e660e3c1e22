"""CRAB's words and numbers (``filetransfersdb``), and what its workers may make of a file.

Facts of CRABServer: ``ServerUtilities.py`` (numbers), ``Databases/FileTransfersDB`` (columns),
``CRABInterface/RESTFileTransfers.py`` and ``RESTFileUserTransfers.py`` (calls).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from asyncstageout.core.deliveries import Message
from asyncstageout.core.lfn_policy import check_source
from asyncstageout.core.naming import BadName, request_id
from asyncstageout.core.requests import Adler32, Lfn, SiteName, Username
from asyncstageout.core.states import PublicationState, TransferState

S = TransferState
P = PublicationState

TRANSFER_NUMBERS = (S.NEW, S.ACQUIRED, S.FAILED, S.DONE, S.RETRY, S.SUBMITTED, S.KILL, S.KILLED)
"""CRAB's number of a state is its place."""
PUBLICATION_NUMBERS = (P.NEW, P.ACQUIRED, P.FAILED, P.DONE, P.RETRY, P.NOT_REQUIRED)

MAX_RETRIES = 2
"""``tm_transfer_max_retry_count`` and ``tm_publication_max_retry_count``: nobody ever sent another value."""

OWN_WORKER = "asyncstageout"
"""Who names himself so leaves the moving to this service; every other worker moves what he claims."""

CLAIM_GRACE_S = 20.0
"""PostJob says who moves a file in the call after the one that inserts it; no cycle takes it before."""

WORKER_PATHS: Mapping[tuple[TransferState, TransferState], tuple[TransferState, ...]] = {
    # PostJob claims a file by saying NEW (again) in the name of its mover.
    (S.NEW, S.NEW): (S.ACQUIRED,),
    (S.NEW, S.ACQUIRED): (S.ACQUIRED,),
    # The claim was lost (PostJob only logs that), and FTS has the file: nobody else may send it too.
    (S.NEW, S.SUBMITTED): (S.ACQUIRED, S.SUBMITTED),
    (S.ACQUIRED, S.NEW): (),
    (S.ACQUIRED, S.ACQUIRED): (),
    (S.ACQUIRED, S.SUBMITTED): (S.SUBMITTED,),
    # The word that FTS accepted it was lost, or never said (Rucio's).
    (S.ACQUIRED, S.DONE): (S.SUBMITTED, S.DONE),
    (S.ACQUIRED, S.FAILED): (S.FAILED,),
    (S.ACQUIRED, S.RETRY): (S.RETRY,),
    (S.ACQUIRED, S.KILLED): (S.KILL, S.KILLED),
    # Said twice, or in another FTS job than before: the later word names the job.
    (S.SUBMITTED, S.SUBMITTED): (),
    (S.SUBMITTED, S.DONE): (S.DONE,),
    (S.SUBMITTED, S.FAILED): (S.FAILED,),
    (S.SUBMITTED, S.RETRY): (S.RETRY,),
    (S.SUBMITTED, S.KILLED): (S.KILL, S.KILLED),
    (S.RETRY, S.RETRY): (),
    (S.RETRY, S.NEW): (S.ACQUIRED,),
    (S.RETRY, S.ACQUIRED): (S.ACQUIRED,),
    (S.RETRY, S.SUBMITTED): (S.ACQUIRED, S.SUBMITTED),
    (S.RETRY, S.FAILED): (S.FAILED,),
    (S.RETRY, S.KILLED): (S.KILL, S.KILLED),
    # Asked to stop: what failed was stopped, what arrived came too late to be.
    (S.KILL, S.DONE): (S.DONE,),
    (S.KILL, S.FAILED): (S.KILLED,),
    (S.KILL, S.RETRY): (S.KILLED,),
    (S.KILL, S.KILLED): (S.KILLED,),
    # Written straight to its destination: PostJob says whose publisher takes it.
    (S.DONE, S.DONE): (),
    (S.FAILED, S.FAILED): (),
    (S.KILLED, S.KILLED): (),
}
"""(state, what a worker says) -> the moves that this makes; what is not here is refused."""

UNCLAIMED = frozenset({(S.NEW, S.NEW), (S.NEW, S.ACQUIRED), (S.NEW, S.SUBMITTED), (S.DONE, S.DONE)})
"""What a worker may say of a file that nobody moves yet: it becomes his."""

PUBLICATION_MOVES: Mapping[PublicationState, frozenset[PublicationState]] = {
    # PostJob, once the file's metadata are there; or a publisher's retry.
    P.NEW: frozenset({P.NOT_REQUIRED, P.NEW, P.RETRY, P.FAILED}),
    P.ACQUIRED: frozenset({P.NEW}),
    P.DONE: frozenset({P.NEW, P.ACQUIRED, P.DONE}),
    P.FAILED: frozenset({P.NEW, P.ACQUIRED, P.RETRY, P.FAILED}),
    P.RETRY: frozenset({P.ACQUIRED, P.RETRY}),
    P.NOT_REQUIRED: frozenset({P.NEW, P.RETRY, P.FAILED, P.NOT_REQUIRED}),
}
"""What a publisher says -> from where. What is published stays published, until the file comes anew."""

OWN_PUBLICATION_WORDS = frozenset({P.NEW, P.NOT_REQUIRED})
"""What may be said in our name of a file's publication; the rest is for our own publisher to say."""

INSERTED = frozenset({S.NEW, S.DONE})
"""In what state a file may arrive (``USER_ALLOWED_TRANSFER_STATUSES``, which CRAB does not enforce)."""


class Reinjection(BaseModel):
    """What a later retry of a job says of a file that was handed over before."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    task: str
    username: Username
    source: SiteName
    source_lfn: Lfn
    size_bytes: Annotated[int, Field(ge=0, lt=2**63)]
    adler32: Annotated[
        Adler32 | None, BeforeValidator(lambda value: None if value in ("", "0") else value)
    ] = None
    job_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.\-]{0,20}$")] = ""
    job_retry_count: Annotated[int, Field(ge=0, le=32767)] = 0

    @field_validator("source_lfn")
    @classmethod
    def _from_his_area(cls, lfn: str, info: ValidationInfo) -> str:
        return check_source(lfn, info.data["username"]) if "username" in info.data else lfn

    @property
    def request_id(self) -> str:
        return request_id(self.source_lfn)


PARAMETERS = {
    "task": "taskname",
    "size_bytes": "filesize",
    "request_id": "id",
    "vo_group": "vogroup",
    "vo_role": "vorole",
}
"""Fields of a request whose parameter has another name at CRAB."""

METADATA_NAMES = {
    "taskname": "taskname",
    "outtype": "filetype",
    "jobid": "jobid",
    "outdatasetname": "outdataset",
    "acquisitionera": "acquisitionera",
    "appver": "swversion",
    "events": "inevents",
    "globalTag": "globaltag",
    "publishdataname": "publishname",
    "outlocation": "location",
    "outtmplocation": "tmplocation",
    "checksumadler32": "adler32",
    "checksumcksum": "cksum",
    "checksummd5": "md5",
    "outlfn": "lfn",
    "outsize": "filesize",
    "inparentlfns": "parents",
    "filestate": "state",
    "outtmplfn": "tmplfn",
}
"""Parameter of a PUT of ``filemetadata`` -> name in the rows that a GET gives (``DataFileMetadata.py``)."""


def run_lumis(runs: Sequence[str], lumis: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return runs with their lumi sections and the events of each, of PUT's two lists of one length.

    >>> run_lumis(["1", "2"], ["12:100,13:100", "7"])
    {'1': {'12': '100', '13': '100'}, '2': {'7': 'None'}}
    """
    found: dict[str, dict[str, str]] = {}
    for run, text in zip(runs, lumis, strict=True):
        sections = (item.partition(":") for item in text.split(","))
        found.setdefault(run, {}).update({lumi: events or "None" for lumi, _, events in sections})
    return found


def metadata_id(task: str, lfn: str) -> str:
    """Return under which id metadata are kept that belong to no file of ours."""
    return request_id(f"{task}:{lfn}")


_TOKEN = re.compile(
    r"""\s*(?:[uUbB]?(?P<quoted>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|(?P<bare>[^,'"\[\]]+?))\s*(?:,|\Z)""",
    re.DOTALL,
)


def read_list(text: str) -> list[str]:
    """Return the items of a list as CRAB's clients write it: Python's own notation, or one bare word.

    >>> read_list("['a', \\"it's, well\\"]"), read_list("a"), read_list("[0, 1]"), read_list("[]")
    (['a', "it's, well"], ['a'], ['0', '1'], [])

    CRAB takes the quotes and brackets out and cuts at every comma, also at those inside reasons.

    Raises:
        BadName: it begins as a list and is none.
    """
    body = text.strip()
    if not body.startswith("["):
        return [body]
    if not body.endswith("]"):
        raise BadName("the list has no end")
    body, place, items = body[1:-1].strip(), 0, []
    while place < len(body):
        token = _TOKEN.match(body, place)
        if token is None:
            raise BadName(f"no list: {body[place : place + 40]!r}")
        quoted = token["quoted"]
        items.append(_unquoted(quoted) if quoted else token["bare"])
        place = token.end()
    return items


def _unquoted(quoted: str) -> str:
    if "\\" not in quoted:
        return quoted[1:-1]
    try:
        return str(ast.literal_eval(quoted.replace("\n", "\\n").replace("\r", "\\r")))
    except (ValueError, SyntaxError) as error:
        raise BadName(f"no text: {quoted[:40]}") from error


def as_record(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a client of CRAB says of a file, in the words of ``core.requests``; None is left out."""
    names = {theirs: ours for ours, theirs in PARAMETERS.items()}
    return {names.get(name, name): value for name, value in values.items() if value is not None}


_NOT_IN_LISTS = str.maketrans({",": ";", "[": "(", "]": ")", "'": "`", '"': "`", "\\": "/"})
REASON_CHARS = 500
"""``tm_transfer_failure_reason`` has 1,000 bytes."""


def written_list(items: Iterable[str]) -> str:
    """Return a list as CRAB's clients write it, such that CRAB reads the same items.

    >>> written_list(["a", "it's [x], well"])
    "['a', 'it`s (x); well']"

    Commas, quotes and brackets inside an item are replaced: CRAB cuts and strips at each of them.
    """
    return str([" ".join(item.translate(_NOT_IN_LISTS).split()) for item in items])


class Call(NamedTuple):
    """A call of ``filetransfers``: which lists it has beside ids and states."""

    subresource: str
    has_job: bool = False
    """``list_of_fts_id`` and ``list_of_fts_instance``."""
    has_reason: bool = False
    """``list_of_failure_reason`` and ``list_of_retry_value``, which CRAB only reads together."""


STATE_LISTS = {"updateTransfers": "list_of_transfer_state", "updatePublication": "list_of_publication_state"}
_WITH_REASON = frozenset({"FAILED", "RETRY", "KILLED"})


def call_for(message: Message) -> Call:
    """Return by which call CRAB is told of an event."""
    has_reason = message.state in _WITH_REASON
    if message.type.startswith("publication."):
        return Call("updatePublication", has_reason=has_reason)
    return Call("updateTransfers", message.state == S.SUBMITTED and bool(message.data.fts_job_id), has_reason)


def lists_of(call: Call, messages: Sequence[Message]) -> dict[str, str]:
    """Return what a call says of files."""
    lists = {
        "list_of_ids": [one.data.request_id for one in messages],
        STATE_LISTS[call.subresource]: [one.state for one in messages],
    }
    if call.has_job:
        lists["list_of_fts_id"] = [one.data.fts_job_id or "" for one in messages]
        lists["list_of_fts_instance"] = [one.data.fts_server or "" for one in messages]
    if call.has_reason:
        reasons = [one.reason or "no reason is known" for one in messages]
        lists["list_of_failure_reason"] = [reason[:REASON_CHARS] for reason in reasons]
        # What its count of retries grows by.
        lists["list_of_retry_value"] = ["1" if one.state == "RETRY" else "0" for one in messages]
    return {name: written_list(items) for name, items in lists.items()}
