"""Files that CRAB's REST holds for whoever moves them (``filetransfers``, CRABServer's RESTFileTransfers)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar
from urllib.parse import urlsplit

from airflow.sdk import BaseHook

from asyncstageout.clients.errors import Answer, ServiceError, Transient
from asyncstageout.clients.http import Access, Caller, Patience, Silence, new_session
from asyncstageout.clients.tls import REVOCATIONS, Revocation
from asyncstageout.steps.intake import Interval, Record, Report, SourceUnreadable

PAGE = 1000
"""CRAB's limit of one answer; it gives up to one file less."""
TRANSIENT = frozenset({429, 502, 503, 504})

FIELDS = MappingProxyType(
    {
        "tm_taskname": "task",
        "tm_username": "username",
        "tm_user_group": "vo_group",
        "tm_user_role": "vo_role",
        "tm_source": "source",
        "tm_destination": "destination",
        "tm_source_lfn": "source_lfn",
        "tm_destination_lfn": "destination_lfn",
        "tm_filesize": "size_bytes",
        "tm_publish": "publish",
        "tm_type": "type",
        "tm_jobid": "job_id",
        "tm_job_retry_count": "job_retry_count",
    }
)
"""CRAB's columns, and a request's fields. CRAB keeps no checksums there."""


class CRABError(ServiceError):
    """CRAB's REST did not do what it was asked."""

    advice: ClassVar[str] = "Check host, instance and certificate of the connection"


class CRABSilent(Transient, CRABError):
    """No answer, or none at the moment."""

    advice: ClassVar[str] = "Check that CRAB's REST is up and the network lets us through"


def crab_rest(conn_id: str, instance: str, *, for_whom: str) -> tuple[str, Caller]:
    """Return the address of CRAB's REST, and who speaks to it, of an Airflow connection.

    :raises SourceUnreadable: a field of the connection is wrong.
    """
    conn = BaseHook.get_connection(conn_id)
    if not conn.host:
        raise SourceUnreadable(for_whom, f"connection {conn_id} has no host")
    extra = conn.extra_dejson
    crl: Revocation = extra.get("crl") or ""
    if crl not in REVOCATIONS:
        raise SourceUnreadable(for_whom, f"connection {conn_id}: crl is leaf, chain or empty, not {crl!r}")
    access = Access(
        ca=extra.get("ca_file") or None,
        cert_file=extra.get("cert_file") or None,
        key_file=extra.get("key_file") or None,
        crl=crl,
    )
    port = f":{conn.port}" if conn.port else ""
    base = f"{conn.schema or 'https'}://{conn.host}{port}/crabserver/{instance}"
    return base, Caller(new_session(access), _Judge(), Patience(deadline_s=180))


class CRABSource:
    """Acquires users' NEW files under our name, so that nobody else moves them, and takes them in.

    What was taken is SUBMITTED there, or every answer would hold the same first thousand. What is refused
    stays ACQUIRED by us and is tried again in every run.

    :param base: ``https://HOST/crabserver/INSTANCE``.
    :param worker: our name there (``tm_aso_worker``).
    :param acquires: whether to acquire; else only what is ours already is seen.
    """

    has_times = False

    def __init__(
        self, name: str, base: str, caller: Caller, worker: str, *, vo: str = "", acquires: bool = True
    ) -> None:
        self.name = name
        self.worker = worker
        self._url = f"{base}/filetransfers"
        self._caller = caller
        self._vo = vo
        self._acquires = acquires

    @classmethod
    def of(
        cls, name: str, conn_id: str, instance: str, worker: str, *, vo: str = "", acquires: bool = True
    ) -> CRABSource:
        """Return the source of an Airflow connection."""
        base, caller = crab_rest(conn_id, instance, for_whom=name)
        return cls(name, base, caller, worker, vo=vo, acquires=acquires)

    def batches(self, _interval: Interval) -> Iterator[Page]:
        """Yield page after page of each user's files, until none is new."""
        users = {str(row["tm_username"]) for row in self._get("activeUsers")}
        for username in sorted(users):
            seen: set[str] = set()
            while page := self._page(username, seen):
                yield page
                seen.update(page.ids)

    def hand_over(self, ids: Sequence[str]) -> None:
        """Have CRAB know that these files are on their way."""
        if ids:
            # As CRAB's own clients write lists.
            states = ["SUBMITTED"] * len(ids)
            self._post("updateTransfers", list_of_ids=str(list(ids)), list_of_transfer_state=str(states))

    def _page(self, username: str, seen: set[str]) -> Page | None:
        if self._acquires:
            self._post("acquireTransfers", username=username)
        rows = self._get("acquiredTransfers", grouping=1, username=username, limit=PAGE)
        new = [row for row in rows if str(row["tm_id"]) not in seen]
        return Page(self, username, new, self._vo) if new else None

    def _get(self, subresource: str, grouping: int = 0, **params: str | int) -> list[Mapping[str, Any]]:
        asked = {"subresource": subresource, "asoworker": self.worker, "grouping": grouping, **params}
        response = self._caller.ask("GET", self._url, may_repeat=True, params=asked)
        try:
            body = response.json()
            columns = [str(column).lower() for column in body["desc"]["columns"]]
            return [dict(zip(columns, row, strict=True)) for row in body["result"]]
        except (ValueError, KeyError, TypeError) as error:
            raise SourceUnreadable(self.name, f"{subresource}: not an answer of CRAB's REST") from error

    def _post(self, subresource: str, **fields: str) -> None:
        """Repeated at will: acquiring twice and saying a state twice is as good as once."""
        data = {"subresource": subresource, "asoworker": self.worker, **fields}
        self._caller.ask("POST", self._url, may_repeat=True, data=data)


class Page:
    """Files of one user that are acquired by us."""

    digest = None
    again = True

    def __init__(self, source: CRABSource, username: str, rows: Sequence[Mapping[str, Any]], vo: str) -> None:
        self.name = username
        self.ids = [str(row["tm_id"]) for row in rows]
        self._source = source
        self._rows = rows
        self._vo = vo

    def records(self) -> Iterator[Record]:
        for position, row in enumerate(self._rows, start=1):
            yield Record(position, request_of(row, self._vo))

    def done(self, _report: Report) -> None:
        self._source.hand_over(self.ids)

    def refused(self, report: Report) -> None:
        refused = {refusal.position for refusal in report.refusals}
        self._source.hand_over([one for at, one in enumerate(self.ids, start=1) if at not in refused])


def request_of(row: Mapping[str, Any], vo: str = "") -> dict[str, Any]:
    """Return a request of a row of CRAB; other columns and empty ones say nothing."""
    fields = {
        FIELDS[column]: value for column, value in row.items() if column in FIELDS and value is not None
    }
    if "job_id" in fields:
        fields["job_id"] = str(fields["job_id"])
    return {"vo": vo} | fields


class _Judge:
    def no_answer(self, method: str, url: str, silence: Silence) -> CRABError:
        kind = CRABError if silence.untrusted else CRABSilent
        return kind(*_where(method, url), None, silence.cause)

    def refusal(self, method: str, url: str, answer: Answer) -> CRABError:
        kind = CRABSilent if answer.status in TRANSIENT else CRABError
        return kind(*_where(method, url), answer.status, answer.text)


def _where(method: str, url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.netloc, f"{method} {parts.path}"
