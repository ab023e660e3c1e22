"""Files that CRAB's REST holds for whoever moves them (``filetransfers``, CRABServer's RESTFileTransfers)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from asyncstageout.clients.crab import PATIENCE, CRABClient, CRABJudge
from asyncstageout.clients.http import Caller
from asyncstageout.core.crab import written_list
from asyncstageout.provider.connections import ConnectionUnusable, crab_at
from asyncstageout.steps.intake import Interval, Record, Report, SourceUnreadable

PAGE = 1000
"""CRAB's limit of one answer; it gives up to one file less."""

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


class CRABSource:
    """Acquires users' NEW files under our name, so that nobody else moves them, and takes them in.

    What was taken is SUBMITTED there, or every answer would hold the same first thousand. What is refused
    stays ACQUIRED by us and is tried again in every run.

    :param client: speaks for our name there (``tm_aso_worker``).
    :param acquires: whether to acquire; else only what is ours already is seen.
    """

    has_times = False

    def __init__(self, name: str, client: CRABClient, *, vo: str = "", acquires: bool = True) -> None:
        self.name = name
        self._client = client
        self._vo = vo
        self._acquires = acquires

    @classmethod
    def of(
        cls, name: str, conn_id: str, instance: str, worker: str, *, vo: str = "", acquires: bool = True
    ) -> CRABSource:
        """Return the source of an Airflow connection."""
        try:
            base, session = crab_at(conn_id, instance)
        except ConnectionUnusable as error:
            raise SourceUnreadable(name, str(error)) from error
        client = CRABClient(base, Caller(session, CRABJudge(), PATIENCE), worker)
        return cls(name, client, vo=vo, acquires=acquires)

    def batches(self, _interval: Interval) -> Iterator[Page]:
        """Yield page after page of each user's files, until none is new."""
        users = {str(row["tm_username"]) for row in self._client.rows("activeUsers")}
        for username in sorted(users):
            seen: set[str] = set()
            while page := self._page(username, seen):
                yield page
                seen.update(page.ids)

    def hand_over(self, ids: Sequence[str]) -> None:
        """Have CRAB know that these files are on their way."""
        if ids:
            states = written_list(["SUBMITTED"] * len(ids))
            self._client.change(
                "updateTransfers", list_of_ids=written_list(ids), list_of_transfer_state=states
            )

    def _page(self, username: str, seen: set[str]) -> Page | None:
        if self._acquires:
            self._client.change("acquireTransfers", username=username)
        rows = self._client.rows("acquiredTransfers", grouping=1, username=username, limit=PAGE)
        new = [row for row in rows if str(row["tm_id"]) not in seen]
        return Page(self, username, new, self._vo) if new else None


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
