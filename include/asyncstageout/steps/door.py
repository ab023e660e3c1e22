"""The way of a job into FTS, for all threads of one submit step: with a proxy where FTS wants one."""

from __future__ import annotations

import logging
import threading
from uuid import UUID

from asyncstageout.catalogue.jobs import JobToSubmit
from asyncstageout.clients.delegation import delegate
from asyncstageout.clients.errors import (
    DelegationNeeded,
    DestinationBusy,
    FTSError,
    SidDuplicated,
    StorageBanned,
)
from asyncstageout.clients.fts3 import FTS3Client
from asyncstageout.core.fts import FTSJobStatus, JobParams, JobSubmission, TransferFile
from asyncstageout.core.fts_ids import deterministic_job_id

logger = logging.getLogger(__name__)


class Door:
    """One FTS as one submit step meets it."""

    def __init__(self, client: FTS3Client) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._delegated = False
        self._banned: dict[str, StorageBanned] = {}
        """What FTS said of storages, so that it is not asked with every job of theirs."""

    def submit(self, job: JobToSubmit) -> UUID:
        """Have FTS take a job, and return its id; a job that it has already counts as taken.

        Raises:
            NotSubmittable, FTSError: FTS does not take it, or did not answer.
        """
        job_id = deterministic_job_id(self._client.vo, str(job.sid))
        try:
            self._refuse_banned(job)
            self._submit(job)
        except SidDuplicated:
            # Our own earlier POST arrived and its answer was lost.
            pass
        except StorageBanned as ban:
            self._banned[ban.storage] = ban
            # FTS looks at bans first: it may have taken the job before the ban, in a POST without an answer.
            if not isinstance(self._client.job_status(job_id, with_files=False), FTSJobStatus):
                raise
        return job_id

    def why_busy(self, job: JobToSubmit, busy: DestinationBusy) -> str:
        """Say who is writing where the one file of this job shall go."""
        file = job.files[0]
        try:
            active = self._client.active_file_by_destination(file.destination_url)
        except FTSError as error:
            logger.warning("cannot tell who writes to %s: %s", file.destination_url, error)
            return str(busy)
        if active is None:
            return "another transfer was writing to the destination; it has ended meanwhile"
        job_id, writer = active
        whose = "our own earlier" if writer.transfer_id == file.transfer_id else "the"
        return f"{whose} FTS job {job_id} is still writing to the destination"

    def _submit(self, job: JobToSubmit) -> None:
        submission = _submission(job)
        try:
            self._client.submit(submission)
        except DelegationNeeded as needed:
            self._delegate(needed)
            self._client.submit(submission)

    def _delegate(self, needed: DelegationNeeded) -> None:
        """Delegate once in a step, whichever thread comes first."""
        with self._lock:
            if self._delegated:
                return
            if self._client.certificate is None:
                raise needed
            delegate(self._client, *self._client.certificate)
            self._delegated = True

    def _refuse_banned(self, job: JobToSubmit) -> None:
        for url in (job.files[0].source_url, job.files[0].destination_url):
            for storage, ban in self._banned.items():
                if url.startswith((f"{storage}:", f"{storage}/")):
                    raise ban


def _submission(job: JobToSubmit) -> JobSubmission:
    return JobSubmission(
        sid=str(job.sid),
        files=tuple(
            TransferFile(
                transfer_id=file.transfer_id,
                attempt=file.attempt,
                source_url=file.source_url,
                dest_url=file.destination_url,
                size_bytes=file.size_bytes,
                adler32=file.adler32,
                activity=job.activity,
            )
            for file in job.files
        ),
        params=JobParams(
            **job.params,
            priority=job.priority,
            job_metadata={"issuer": "ASO", "cycle": job.cycle_id, "identity": job.identity},
        ),
    )
