"""What messages of FTS change: they only stage what a poll would stage, or have a job polled now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from uuid import UUID

from psycopg import Connection

from asyncstageout.catalogue.sensing import Report, make_due, open_sids, stage_reports
from asyncstageout.clients.messages import FileNotice


def heed(conn: Connection, notices: Sequence[FileNotice], *, now: datetime) -> int:
    """Take notices into account and return how many files are known to have ended by them.

    A file that arrived is staged at once. For one that failed its job is asked about now, since only a poll
    tells FTS's whole reason and its verdict. A notice of a job that is not ours and open is nothing.
    """
    sids = open_sids(conn, list({notice.job_id for notice in notices})) if notices else {}
    known = [notice for notice in notices if notice.job_id in sids]
    if not known:
        return 0
    make_due(conn, [sids[notice.job_id] for notice in known if not _arrived(notice)], now)
    return stage_reports(conn, list(_reports(known, sids)))


def _arrived(notice: FileNotice) -> bool:
    return notice.file_state == "FINISHED" and notice.transfer_id is not None


def _reports(notices: Sequence[FileNotice], sids: Mapping[UUID, UUID]) -> Iterator[Report]:
    # Every file has at least two messages: one report is enough.
    once = {notice.transfer_id: notice for notice in notices if _arrived(notice)}
    for transfer_id, notice in once.items():
        yield Report(
            sids[notice.job_id], transfer_id, notice.file_id, notice.job_state, notice.file_state,
            "", None, notice.said_at,
        )  # fmt: skip
