"""The ways of jobs into FTS, for all threads of one submit step: one for each server and identity.

A door knows the credential, the tokens for storages, and gives FTS a proxy where it wants one.
"""

from __future__ import annotations

import logging
import threading
from typing import NamedTuple, Protocol
from uuid import UUID

from asyncstageout.catalogue.jobs import FileToSend, JobToSubmit
from asyncstageout.clients.credentials.model import FilePlaces, StorageTokens
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
from asyncstageout.core.identities import Identity

logger = logging.getLogger(__name__)

ISSUER = "ASO"


class FTSClients(Protocol):
    """Clients of FTS servers, made when they are first asked for. Threads may share it."""

    def client(self, server: str, identity: str) -> FTS3Client:
        """Return the client with which an identity, as core.identities writes it, speaks to a server.

        Raises:
            CredentialProblem: the identity has no credential.
            FTSError: there is no way to the server.
        """
        ...

    def storage_tokens(self, identity: str) -> StorageTokens | None:
        """Return who gives tokens for files at storages; None: they take the delegated proxy."""
        ...


class Way(NamedTuple):
    """What all jobs that go through one door have in common."""

    server: str
    identity: str


class Door:
    """One FTS as one identity meets it in one submit step.

    Raises:
        CredentialProblem, FTSError: nothing can be submitted; nothing was.
    """

    def __init__(self, clients: FTSClients, way: Way, installation: UUID) -> None:
        self._client = clients.client(*way)
        # Asked from FTS, if it must be, before any job depends on it.
        self._vo = self._client.vo
        self._identity = Identity.read(way.identity)
        # With a certificate FTS gets a proxy, and storages take that.
        self._tokens = None if self._client.certificate else clients.storage_tokens(way.identity)
        self._installation = installation
        self._lock = threading.Lock()
        self._delegated = False
        self._banned: dict[str, StorageBanned] = {}
        """What FTS said of storages, so that it is not asked with every job of theirs."""

    def submit(self, job: JobToSubmit) -> UUID:
        """Have FTS take a job, and return its id; a job that it has already counts as taken.

        Raises:
            NotSubmittable, FTSError: FTS does not take it, or did not answer.
            CredentialProblem: there is no token for a file; nothing was sent.
        """
        job_id = deterministic_job_id(self._vo, str(job.sid))
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
        submission = self._submission(job)
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

    def _submission(self, job: JobToSubmit) -> JobSubmission:
        params = dict(job.params)
        scitag = params.pop("scitag", None)  # FTS takes it with each file
        return JobSubmission(
            sid=str(job.sid),
            files=tuple(self._file(job, file, scitag) for file in job.files),
            params=JobParams(
                **params,
                priority=job.priority,
                unmanaged_tokens=self._tokens is not None and not self._tokens.managed,
                job_metadata={
                    "issuer": ISSUER,
                    "installation": str(self._installation),
                    "cycle": job.cycle_id,
                    "identity": self._identity.username,
                },
            ),
        )

    def _file(self, job: JobToSubmit, file: FileToSend, scitag: int | None) -> TransferFile:
        source_token = destination_token = None
        if self._tokens:
            places = FilePlaces(file.source_url, file.destination_url, file.source_lfn, file.destination_lfn)
            source_token, destination_token = self._tokens.tokens(self._identity, places)
        return TransferFile(
            transfer_id=file.transfer_id,
            attempt=file.attempt,
            source_url=file.source_url,
            dest_url=file.destination_url,
            size_bytes=file.size_bytes,
            adler32=file.adler32,
            activity=job.activity,
            source_token=source_token,
            destination_token=destination_token,
            scitag=scitag,
        )
