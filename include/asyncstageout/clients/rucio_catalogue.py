"""Registers arrived files in Rucio: replica at the destination, dataset, attachment. In bulk, and repeatable.

Speaks through ``rucio-clients`` (the extra ``rucio``). What a real Rucio 41.5 answers is recorded in
tests/contract/rucio. What must be known of it:

* ``add_replicas`` passes over what it has already, *also if size or checksum differ*: so both are compared;
* a bulk call is refused as a whole, so that one unknown scope or closed dataset sinks everybody's files: then
  there is a call for each; a name that it does not like is found by halving (steps.deliver);
* nothing can be attached to a closed dataset, not even again what is in it: then its content is looked at.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, NamedTuple, Protocol, TypeVar
from urllib.parse import urlsplit

import requests

from asyncstageout.clients.receivers import (
    ContentRefused,
    Failing,
    Faulty,
    NotLetIn,
    ReceiverError,
    Refusals,
)
from asyncstageout.core.deliveries import Message
from asyncstageout.core.rucio_names import dataset_of, scope_of
from asyncstageout.core.subscriptions import RucioSettings

logger = logging.getLogger(__name__)

K = TypeVar("K")
DID = dict[str, Any]
DIDName = tuple[str, str]
"""Scope and name."""

CALL_TIMEOUT_S = 60
REASON_CHARS = 300
LONGEST_S = 900.0
"""A batch is some five calls; those for other RSEs, scopes and closed datasets come on top."""


class RucioClient(Protocol):
    """What is needed of ``rucio.client.Client``."""

    def get_rse(self, rse: str) -> Mapping[str, Any]: ...

    def add_replicas(self, rse: str, files: list[DID]) -> bool: ...

    def get_metadata_bulk(self, dids: list[DID]) -> Iterable[Mapping[str, Any]]: ...

    def add_datasets(self, dsns: list[DID]) -> bool: ...

    def attach_dids_to_dids(self, attachments: list[DID], ignore_duplicate: bool) -> bool: ...

    def list_content(self, scope: str, name: str) -> Iterable[Mapping[str, Any]]: ...


class Verdict(NamedTuple):
    """What an exception of Rucio is for us; ``error`` None: as good as done."""

    error: type[ReceiverError] | None
    of_group: bool = False
    """All files of the call have this fault: they are refused, each as such."""


VERDICTS: Mapping[str, Verdict] = {
    # The dataset is there already, or somebody else made it at this moment.
    "DataIdentifierAlreadyExists": Verdict(None),
    # For a person at Rucio: an account, scope, RSE or right is missing.
    "ScopeNotFound": Verdict(ContentRefused, of_group=True),
    "RSENotFound": Verdict(ContentRefused, of_group=True),
    "AccountNotFound": Verdict(ContentRefused, of_group=True),
    "AccessDenied": Verdict(ContentRefused, of_group=True),
    "ScopeAccessDenied": Verdict(ContentRefused, of_group=True),
    "RSEAccessDenied": Verdict(ContentRefused, of_group=True),
    "RSEProtocolNotSupported": Verdict(ContentRefused, of_group=True),
    # One name, or one PFN, among many.
    "InvalidObject": Verdict(ContentRefused),
    "InvalidPath": Verdict(ContentRefused),
    "InvalidType": Verdict(ContentRefused),
    "UnsupportedOperation": Verdict(ContentRefused),
    "DataIdentifierNotFound": Verdict(ContentRefused),
    "FileConsistencyMismatch": Verdict(ContentRefused),
    "CannotAuthenticate": Verdict(NotLetIn),
    "NoAuthInformation": Verdict(NotLetIn),
    "MissingClientParameter": Verdict(NotLetIn),
    "IdentityError": Verdict(NotLetIn),
    "ServerConnectionException": Verdict(Failing),
    "ServiceUnavailable": Verdict(Failing),
    "ResourceTemporaryUnavailable": Verdict(Failing),
    # Two who register or attach one file at a time: none of this call was done, and all of it is next time.
    "Duplicate": Verdict(Faulty),
    "FileReplicaAlreadyExists": Verdict(Faulty),
    "FileAlreadyExists": Verdict(Faulty),
    "DuplicateContent": Verdict(Faulty),
    # DatabaseException and the nameless: a lock or a name twice, or itself.
    "RucioException": Verdict(Faulty),
}
"""By the name of the class; of one that is not here, that of the first class above it which is."""


def verdict_on(error: Exception) -> Verdict:
    """Return what an exception of the client is."""
    known = (VERDICTS[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in VERDICTS)
    return next(known, Verdict(Failing))


class _GroupRefused(ContentRefused):
    """All files of one call are refused, for what they have in common."""


class _File(NamedTuple):
    """A file under its names in Rucio."""

    message_id: str
    scope: str
    name: str
    rse: str
    dataset: str
    size_bytes: int
    adler32: str | None
    url: str | None

    @property
    def did_name(self) -> DIDName:
        return self.scope, self.name


@dataclass(frozen=True, slots=True)
class RucioAccess:
    """Where a Rucio server is, and as whom we speak to it."""

    url: str
    auth_url: str
    account: str
    auth_type: str
    """``userpass``, ``x509``, ``x509_proxy``, as Rucio names them."""
    creds: dict[str, str] = field(repr=False)
    ca: str | None = None
    """Certificate authorities, file or directory; None: ``X509_CERT_DIR``, then those of certifi."""


def opened(settings: RucioSettings, access: RucioAccess) -> RucioCatalogue:
    """Return a Rucio server as a receiver, having logged in.

    Raises:
        ReceiverError: ``rucio-clients`` is not installed, or the server does not let us in, or is silent.
    """
    server = urlsplit(access.url).netloc
    try:
        client_module = import_module("rucio.client")
        errors = import_module("rucio.common.exception").RucioException
    except ImportError as error:
        said = "rucio-clients is not installed: pip install 'asyncstageout[rucio]'"
        raise NotLetIn(server, "its client", None, said) from error
    try:
        with _judged(server, "login", errors):
            client = client_module.Client(
                rucio_host=access.url, auth_host=access.auth_url, account=access.account, ca_cert=access.ca,
                auth_type=access.auth_type, creds=dict(access.creds), timeout=CALL_TIMEOUT_S, logger=logger,
            )  # fmt: skip
    except ContentRefused as error:
        raise NotLetIn(server, "login", None, error.detail) from error
    return RucioCatalogue(client, settings, errors=errors, server=server)


class RucioCatalogue:
    """A Rucio server as a receiver of messages.

    Args:
        errors: what the client raises, beside ``requests.RequestException`` and ``OSError``.
        server: for messages to people.
    """

    longest_s = LONGEST_S

    def __init__(
        self, client: RucioClient, settings: RucioSettings, *, errors: type[Exception], server: str
    ) -> None:
        self._client = client
        self._settings = settings
        self._errors = errors
        self._server = server
        self._needs_pfn: dict[str, bool] = {}
        self._datasets: set[DIDName] = set()
        """Those that are known to be there."""
        self.batch = settings.batch

    def send(self, messages: Sequence[Message]) -> Refusals:
        """Register the files of these messages, attached to their datasets; again is as good as once.

        Raises:
            ReceiverError: Rucio took nothing of it, or only a part, which it may be told again.
        """
        files = [self._file(one) for one in messages if self._settings.logs or one.data.file_type != "log"]
        refused = {file.message_id: "its size is not known" for file in files if not file.size_bytes}
        files = [file for file in files if file.size_bytes]
        for rse, group in _grouped(files, lambda file: file.rse):
            self._register_all(refused, rse, group)
        self._attach_all(
            refused, self._as_said(refused, [file for file in files if file.message_id not in refused])
        )
        return refused

    def _file(self, message: Message) -> _File:
        data, names = message.data, self._settings
        scope = scope_of(
            data.destination_lfn, data.username, user_scope=names.user_scope, group_scope=names.group_scope
        )
        return _File(
            message.id,
            scope,
            data.destination_lfn,
            names.rse.format(site=data.destination),
            data.block or dataset_of(names.dataset, data.username, data.task),
            data.size_bytes,
            data.adler32,
            data.destination_url,
        )

    def _register_all(self, refused: dict[str, str], rse: str, group: Sequence[_File]) -> None:
        try:
            self._register(rse, group)
        except _GroupRefused as error:
            by_scope = _grouped(group, lambda file: file.scope)
            if len(by_scope) == 1:
                refused |= {file.message_id: error.detail for file in group}
                return
            for _, files in by_scope:
                self._register_all(refused, rse, files)

    def _register(self, rse: str, group: Sequence[_File]) -> None:
        if rse not in self._needs_pfn:
            self._needs_pfn[rse] = not self._call("get_rse", self._client.get_rse, rse)["deterministic"]
        # Two messages may be about one name: which of them is right is found out when both are compared.
        replicas = {file.did_name: self._replica(file) for file in group}
        self._call("add_replicas", self._client.add_replicas, rse, list(replicas.values()))

    def _replica(self, file: _File) -> DID:
        replica = _did(file.did_name) | {"bytes": file.size_bytes}
        if file.adler32:
            replica["adler32"] = file.adler32
        if self._needs_pfn[file.rse] and file.url:
            replica["pfn"] = file.url
        return replica

    def _as_said(self, refused: dict[str, str], files: Sequence[_File]) -> list[_File]:
        """Return those files that Rucio knows with our size and checksum."""
        if not files:
            return []
        dids = [_did(one.did_name) for one in files]
        metadata = self._call("get_metadata_bulk", lambda: list(self._client.get_metadata_bulk(dids)))
        known = {(row["scope"], row["name"]): (row["bytes"], row["adler32"]) for row in metadata}
        same = []
        for file in files:
            size_bytes, adler32 = known.get(file.did_name, (None, None))
            if size_bytes == file.size_bytes and (not file.adler32 or adler32 in (None, file.adler32)):
                same.append(file)
            else:
                refused[file.message_id] = (
                    f"Rucio knows {file.scope}:{file.name} with {size_bytes} bytes and adler32 {adler32},"
                    f" not with {file.size_bytes} and {file.adler32}: delete the older one there"
                )
        return same

    def _attach_all(self, refused: dict[str, str], files: Sequence[_File]) -> None:
        by_dataset = _grouped(files, lambda file: (file.scope, file.dataset))
        try:
            self._attach(by_dataset)
        except ContentRefused:
            for name, group in by_dataset:
                self._attach_one(refused, name, group)

    def _attach_one(self, refused: dict[str, str], name: DIDName, files: Sequence[_File]) -> None:
        try:
            self._attach([(name, files)])
        except ContentRefused as error:
            inside = self._content(name)
            refused |= {one.message_id: error.detail for one in files if one.did_name not in inside}

    def _attach(self, groups: Sequence[tuple[DIDName, Sequence[_File]]]) -> None:
        if not groups:
            return
        self._make([name for name, _ in groups if name not in self._datasets])
        attachments = [
            {
                "scope": scope,
                "name": dataset,
                "dids": [_did(one) for one in dict.fromkeys(file.did_name for file in files)],
            }
            for (scope, dataset), files in groups
        ]
        self._call("attach_dids_to_dids", self._client.attach_dids_to_dids, attachments, True)

    def _make(self, names: Sequence[DIDName]) -> None:
        """Make sure that these datasets are there."""
        if not names:
            return
        made = self._call("add_datasets", self._client.add_datasets, [_did(name) for name in names])
        if made is None and len(names) > 1:
            # One of them is there, so none was made.
            for name in names:
                self._call("add_datasets", self._client.add_datasets, [_did(name)])
        self._datasets.update(names)

    def _content(self, dataset: DIDName) -> set[DIDName]:
        try:
            rows = self._call("list_content", lambda: list(self._client.list_content(*dataset)))
        except ContentRefused:  # there is no such dataset
            return set()
        return {(row["scope"], row["name"]) for row in rows}

    def _call(self, what: str, call: Callable[..., Any], *arguments: Any) -> Any:
        """Return what the client returns; None where its exception says that it is done already.

        Raises:
            ReceiverError: by :data:`VERDICTS`.
        """
        with _judged(self._server, what, self._errors):
            return call(*arguments)


@contextmanager
def _judged(server: str, what: str, errors: type[Exception]) -> Iterator[None]:
    try:
        yield
    except errors as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"[:REASON_CHARS]
        kind, of_group = verdict_on(error)
        if kind is not None:
            raise (_GroupRefused if of_group else kind)(server, what, None, said) from error
    except (requests.RequestException, OSError) as error:
        said = f"{type(error).__name__}: {error}"[:REASON_CHARS]
        raise Failing(server, what, None, said) from error


def _did(name: DIDName) -> DID:
    return {"scope": name[0], "name": name[1]}


def _grouped(files: Iterable[_File], key: Callable[[_File], K]) -> list[tuple[K, list[_File]]]:
    groups: defaultdict[K, list[_File]] = defaultdict(list)
    for file in files:
        groups[key(file)].append(file)
    return list(groups.items())
