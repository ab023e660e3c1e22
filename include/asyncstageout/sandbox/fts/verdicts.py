"""The judgements of FTS: is a failure worth a retry, and what do the files' states make of the job?

Facts of FTS 3.13: ``url-copy/heuristics.cpp`` for retries, ``updateJobTransferStatusInternal`` for jobs.
"""

from __future__ import annotations

import errno
import re
from collections import Counter
from dataclasses import dataclass

from asyncstageout.sandbox.fts.records import FILE_ACTIVE, File, Job

_RETRY_TEXTS = (
    "performance marker",
    "Name or service not known",
    "Connection timed out",
    "end-of-file was reached",
    "end of file occurred",
    "SRM_INTERNAL_ERROR",
    "was forcefully killed",
    "operation timeout",
)
_FINAL_TEXTS = (
    "proxy expired",
    "with an error 550 File not found",
    "File exists and overwrite",
    "No such file or directory",
    "SRM_INVALID_PATH",
    "The certificate has expired",
    "The available CRL has expired",
    "SRM Authentication failed",
    "SRM_DUPLICATION_ERROR",
    "SRM_AUTHENTICATION_FAILURE",
    "SRM_NO_FREE_SPACE",
    "digest too big for rsa key",
    "Can not determine address of local host",
    "Permission denied",
    "System error in write into HDFS",
    "File exists",
    "checksum do not match",
    "CHECKSUM MISMATCH",
    "The source file is not ONLINE",
)
_EVERYWHERE = {errno.EPERM, errno.EACCES, errno.ENAMETOOLONG, errno.EPROTONOSUPPORT}
_FINAL_ERRNOS = {
    "SOURCE": _EVERYWHERE | {errno.ENOENT, errno.EISDIR, errno.E2BIG, errno.ENOTDIR},
    "DESTINATION": _EVERYWHERE | {errno.EISDIR, errno.E2BIG, errno.EROFS, errno.EFAULT, errno.EEXIST},
    "TRANSFER": _EVERYWHERE | {errno.ENOSPC, errno.EEXIST, errno.EFBIG, errno.EROFS},
}
_REASON = re.compile(r"(SOURCE|DESTINATION|TRANSFER|GENERAL_FAILURE) \[(\d+)\] (.*)\Z", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a copy failed, in FTS's words."""

    scope: str | None
    """SOURCE, DESTINATION, TRANSFER, GENERAL_FAILURE; None for what the server itself decided."""
    code: int
    text: str

    def __str__(self) -> str:
        return f"{self.scope} [{self.code}] {self.text}" if self.scope else self.text

    @property
    def is_recoverable(self) -> bool:
        """Whether FTS would try again."""
        if any(text in self.text for text in _RETRY_TEXTS) or self.code == errno.ETIMEDOUT:
            return True
        if self.code == errno.ECANCELED or any(text in self.text for text in _FINAL_TEXTS):
            return False
        return self.code not in _FINAL_ERRNOS.get(self.scope or "", set())


def failure_of(reason: str) -> Failure:
    """Read a reason (``SCOPE [errno] text``, or a plain sentence of the server)."""
    match = _REASON.match(reason)
    return Failure(match[1], int(match[2]), match[3]) if match else Failure(None, errno.ECANCELED, reason)


def job_state(job: Job) -> str | None:
    """Return the final state that the files give their job; None while it is not over."""
    states = [file.file_state for file in job.files]
    if job.job_type == "R":
        return _of_replicas(states)
    if job.job_type == "H" and "FAILED" in states:
        return "FAILED"
    if any(state in FILE_ACTIVE or state in ("NOT_USED", "ON_HOLD") for state in states):
        return None
    count = Counter(states)
    if count["FINISHED"] and count["FAILED"]:
        return "FINISHEDDIRTY"
    if count["FAILED"]:
        return "FAILED"
    # Finished and canceled files without a failure make a CANCELED job, although bytes were copied.
    return "CANCELED" if count["CANCELED"] else "FINISHED"


def _of_replicas(states: list[str]) -> str | None:
    """One replica is enough: the job is over while further destinations may still be copied."""
    if "FINISHED" in states:
        return "FINISHED"
    if any(state in FILE_ACTIVE or state == "ON_HOLD" for state in states):
        return None
    return "FAILED" if "FAILED" in states else "CANCELED"


def next_unused(job: Job, ended: File) -> File | None:
    """Return the NOT_USED file that the end of another one calls up, if any.

    The next hop after a finished one, the next replica after one that did not finish.
    """
    wanted = (ended.file_state == "FINISHED") == (job.job_type == "H")
    return next((file for file in job.files if wanted and file.file_state == "NOT_USED"), None)
