"""A client of the FTS3 REST service, for FTS 3.13 and newer.

Every call of it may be repeated, submission too: its id is deterministic, so a repeat meets the same job.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit
from uuid import UUID

import requests
from pydantic_core import from_json, to_json

from asyncstageout.clients.errors import (
    Answer,
    BadAnswer,
    FTSError,
    JobNotFound,
    NotAuthorised,
    SidDuplicated,
    Unreachable,
    Untrusted,
    fts_error,
    shortened,
)
from asyncstageout.clients.http import Caller, Patience, Silence, answer_of
from asyncstageout.core.fts import (
    FILE_FIELDS,
    UNREADABLE,
    BannedStorage,
    FTSFileStatus,
    FTSJobStatus,
    FTSRetry,
    Identity,
    JobAnswer,
    JobForbidden,
    JobMissing,
    JobSubmission,
    ServerVersion,
    chunks,
    parse_banned,
    parse_file,
    parse_identity,
    parse_job,
    parse_retry,
    parse_version,
    submission_body,
)
from asyncstageout.core.fts_ids import deterministic_job_id

T = TypeVar("T")

MAX_IDS_PER_REQUEST = 100
"""The front of a real FTS takes 109 job ids; from 110 on it answers 404, as if it knew none of them."""
MAX_FILES_PER_REQUEST = 5000
"""About half a second of work for FTS, and 2 MB of answer."""
FILES_OF_UNKNOWN_JOB = 50
MAX_PATH_CHARS = 3700

NOT_OF_THIS_JOB = "File does not belong to the job"
JSON_BODY = {"Content-Type": "application/json"}


class FTS3Client:
    """One FTS server, seen by one identity. A small pool of threads may share it; close it at the end.

    Args:
        endpoint: such as ``https://fts3.example.org:8446``.
        session: from :func:`asyncstageout.clients.http.new_session`; closed with the client.
        vo: the VO that FTS takes us for; asked from FTS (once) when it is needed and not given.

    Raises:
        FTSError: every call; its subclasses say what happened.
    """

    def __init__(
        self,
        endpoint: str,
        session: requests.Session,
        *,
        vo: str | None = None,
        patience: Patience | None = None,
        ids_per_request: int = MAX_IDS_PER_REQUEST,
        files_per_request: int = MAX_FILES_PER_REQUEST,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.endpoint = endpoint.rstrip("/")
        self.server = urlsplit(endpoint).netloc
        self._judge = _FTSJudge(self.server, self.endpoint)
        self._caller = Caller(session, self._judge, patience, sleep)
        self._vo = vo
        self._vo_lock = threading.Lock()
        self._ids_per_request = min(ids_per_request, MAX_IDS_PER_REQUEST)
        self._files_per_request = files_per_request

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._caller.session.close()

    @property
    def certificate(self) -> tuple[str, str | None] | None:
        """Files of our certificate and key (None: in the same file); None if we have another credential."""
        cert = self._caller.session.cert
        return (cert, None) if isinstance(cert, str) else cert

    def whoami(self) -> Identity:
        """Return whom FTS takes us for; anonymous is an answer, not an error."""
        return self._read("/whoami", parse_identity)

    def version(self) -> ServerVersion:
        return self._read("/", parse_version)

    @property
    def vo(self) -> str:
        """The VO on which job ids hang: the first that FTS sees in the credential.

        Raises:
            NotAuthorised: FTS sees nobody.
        """
        with self._vo_lock:
            if self._vo is None:
                me = self.whoami()
                if me.is_anonymous:
                    raise NotAuthorised(
                        self.server, "GET /whoami", 200, f"FTS takes us for {me.user_dn}, of no VO"
                    )
                self._vo = me.vos[0]
            return self._vo

    def submit(self, submission: JobSubmission) -> UUID:
        """Submit a job and return its id, which was known before.

        Raises:
            NotSubmittable: nothing was sent; ``transfer_id`` names the file to take out.
            SidDuplicated: the job exists already. The caller knows whether it is its own earlier try.
            BadAnswer: FTS made another id of this ``sid``: it takes us for another VO.
        """
        body = submission_body(submission)
        expected = deterministic_job_id(self.vo, submission.sid)
        try:
            row = self._json(self.ask("POST", "/jobs", body=body))
        except SidDuplicated as error:
            error.sid, error.job_id = submission.sid, expected
            raise
        job_id = row.get("job_id") if isinstance(row, dict) else None
        if job_id != str(expected):
            raise self._bad("POST", "/jobs", f"the job got id {job_id}, not {expected} (VO {self.vo})")
        return expected

    def statuses(
        self,
        job_ids: Sequence[UUID],
        *,
        with_files: bool = True,
        files_per_job: Mapping[UUID, int] | None = None,
    ) -> list[JobAnswer]:
        """Return where jobs are, in the order asked.

        Args:
            files_per_job: how many files a job has, so that no answer gets too large.
        """
        sizes = files_per_job or {}
        query = {"files": FILE_FIELDS} if with_files else None
        found: dict[UUID, JobAnswer] = {}
        for part in chunks(
            list(dict.fromkeys(job_ids)),
            max_items=self._ids_per_request,
            max_weight=self._files_per_request,
            weight=lambda job_id: sizes.get(job_id, FILES_OF_UNKNOWN_JOB) if with_files else 0,
        ):
            found |= self._jobs("GET", part, query=query)
        return [found[job_id] for job_id in job_ids]

    def job_status(self, job_id: UUID, *, with_files: bool = True) -> JobAnswer:
        return self.statuses([job_id], with_files=with_files)[0]

    def archived(self, job_id: UUID) -> FTSJobStatus | JobMissing:
        """Return a job that FTS has put away (7 days after its end)."""
        try:
            answer = self._read(f"/archive/{job_id}", parse_job)
        except JobNotFound:
            return JobMissing(job_id)
        if isinstance(answer, JobForbidden):
            raise NotAuthorised(self.server, f"GET /archive/{job_id}", 403, answer.message)
        return answer

    def files(self, job_id: UUID) -> list[FTSFileStatus]:
        """Return the files of one job with every column.

        Raises:
            JobNotFound: FTS does not know the job.
        """
        return self._read_list(f"/jobs/{job_id}/files", parse_file)

    def retries(self, job_id: UUID, file_id: int) -> list[FTSRetry]:
        """Return the earlier tries of one file, by FTS itself."""
        return self._read_list(f"/jobs/{job_id}/files/{file_id}/retries", parse_retry)

    def cancel_jobs(self, job_ids: Sequence[UUID]) -> list[JobAnswer]:
        """Cancel jobs and return what became of them, in the order asked.

        CANCELED is said at once, but a copy may run some 10 s longer and still leave its file. A job that had
        ended keeps its state.
        """
        return self._change("DELETE", job_ids)

    def set_priority(self, job_ids: Sequence[UUID], priority: int) -> list[JobAnswer]:
        """Give jobs another priority (1 to 5, 5 first); those that have ended stay as they are."""
        if not 1 <= priority <= 5:
            raise ValueError(f"priority {priority} is not between 1 and 5")
        return self._change("POST", job_ids, body={"params": {"priority": priority}})

    def cancel_files(self, job_id: UUID, file_ids: Sequence[int]) -> dict[int, str | None]:
        """Cancel single files; return the state of each, or ``None`` for one that is not in the job.

        Raises:
            JobNotFound: FTS does not know the job.
            Refused: the files of this job cannot be cancelled singly (reuse, multi-hop).
        """
        states: dict[int, str | None] = {}
        for part in self._id_chunks(file_ids):
            path = f"/jobs/{job_id}/files/{_joined(part)}"
            row = self._json(self.ask("DELETE", path))
            # One file: a bare string. More: a list.
            said = [row] if isinstance(row, str) else row
            if not isinstance(said, list) or len(said) != len(part):
                raise self._bad(
                    "DELETE", path, f"{len(part)} files were cancelled, the answer is {row!r:.80}"
                )
            states |= {
                file_id: None if state == NOT_OF_THIS_JOB else state
                for file_id, state in zip(part, said, strict=True)
            }
        return states

    def list_jobs(
        self,
        *,
        states: Sequence[str] = (),
        vo: str | None = None,
        limit: int | None = None,
        time_window_h: int | None = None,
    ) -> list[FTSJobStatus]:
        """List jobs, without their files.

        Args:
            states: with none, or with neither ``limit`` nor ``time_window_h``, only unfinished jobs come.
            limit: at most 500; the newest come first.
            time_window_h: only jobs that ended within so many hours.
        """
        query = {
            "state_in": ",".join(states) or None,
            "vo_name": vo,
            "limit": limit,
            "time_window": time_window_h,
        }
        answers = self._read_list("/jobs", parse_job, query=query)
        return [answer for answer in answers if isinstance(answer, FTSJobStatus)]

    def banned_storages(self) -> list[BannedStorage]:
        return self._read_list("/ban/se", parse_banned)

    def active_file_by_destination(self, dest_url: str) -> tuple[UUID, FTSFileStatus] | None:
        """Return the unfinished file that FTS would write to this URL, with its job, if there is one."""
        path = "/files"
        for row in self._list(path, {"dest_surl": dest_url}):
            with self._contract("GET", path):
                return UUID(row["job_id"]), parse_file(row)
        return None

    def ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        accept: Container[int] = (),
        **options: Any,
    ) -> requests.Response:
        """Send one request, for what this class has no method for.

        Args:
            body: sent as JSON.
            accept: statuses from 300 on that shall be returned.
            options: as ``requests.Session.request`` takes them, such as ``data`` for another content.
        """
        if body is not None:
            options |= {"data": to_json(body), "headers": JSON_BODY}
        return self._caller.ask(
            method,
            self.endpoint + path,
            may_repeat=True,
            accept=accept,
            params=query,
            allow_redirects=False,
            **options,
        )

    def _change(self, method: str, job_ids: Sequence[UUID], body: Any = None) -> list[JobAnswer]:
        found: dict[UUID, JobAnswer] = {}
        for part in self._id_chunks(list(dict.fromkeys(job_ids))):
            found |= self._jobs(method, part, body=body)
        return [found[job_id] for job_id in job_ids]

    def _id_chunks(self, ids: Sequence[T]) -> Iterator[list[T]]:
        return chunks(
            ids,
            max_items=self._ids_per_request,
            max_weight=MAX_PATH_CHARS,
            weight=lambda item: len(str(item)) + 1,
        )

    def _jobs(
        self,
        method: str,
        job_ids: Sequence[UUID],
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
    ) -> dict[UUID, JobAnswer]:
        """Return one answer per job. One id gets an object or a 404, several get a list with 200 or 207."""
        path = f"/jobs/{_joined(job_ids)}"
        response = self.ask(method, path, query=query, body=body, accept={403, 404})
        if response.status_code >= 300 and not _is_about_a_job(response):
            raise fts_error(self.server, method, path, answer_of(response))
        row = self._json(response)
        with self._contract(method, path):
            answers = [parse_job(job) for job in (row if isinstance(row, list) else [row])]
        found = {answer.job_id: answer for answer in answers}
        if len(found) != len(job_ids) or not found.keys() >= set(job_ids):
            raise self._bad(method, path, f"{len(job_ids)} jobs were asked for, {len(found)} came")
        return found

    def _read(self, path: str, parse: Callable[[Any], T]) -> T:
        row = self._json(self.ask("GET", path))
        with self._contract("GET", path):
            return parse(row)

    def _read_list(
        self, path: str, parse: Callable[[Any], T], query: Mapping[str, Any] | None = None
    ) -> list[T]:
        rows = self._list(path, query)
        with self._contract("GET", path):
            return [parse(row) for row in rows]

    def _list(self, path: str, query: Mapping[str, Any] | None) -> list[Any]:
        rows = self._json(self.ask("GET", path, query=query))
        if not isinstance(rows, list):
            raise self._bad("GET", path, f"no list but {type(rows).__name__}")
        return rows

    def _json(self, response: requests.Response) -> Any:
        try:
            return from_json(response.content)
        except ValueError:
            request = response.request
            kind = response.headers.get("Content-Type", "no content type")
            detail = f"no JSON but {kind}, {len(response.content)} bytes"
            raise self._bad(
                request.method or "", self._judge.path(request.url or ""), detail, response.status_code
            ) from None

    @contextmanager
    def _contract(self, method: str, path: str) -> Iterator[None]:
        try:
            yield
        except UNREADABLE as error:
            raise self._bad(method, path, f"cannot be read: {error!r}") from error

    def _bad(self, method: str, path: str, detail: str, status: int = 200) -> BadAnswer:
        return BadAnswer(self.server, shortened(method, path), status, detail)


class _FTSJudge:
    def __init__(self, server: str, endpoint: str) -> None:
        self._server = server
        self._prefix = urlsplit(endpoint).path

    def path(self, url: str) -> str:
        return urlsplit(url).path.removeprefix(self._prefix)

    def no_answer(self, method: str, url: str, silence: Silence) -> FTSError:
        asked = shortened(method, self.path(url))
        if silence.untrusted:
            return Untrusted(self._server, asked, None, silence.cause)
        return Unreachable(self._server, asked, None, silence.cause, silence.maybe_delivered)

    def refusal(self, method: str, url: str, answer: Answer) -> FTSError:
        return fts_error(self._server, method, self.path(url), answer)


def _is_about_a_job(response: requests.Response) -> bool:
    row = answer_of(response).json
    return isinstance(row, dict) and "job_id" in row


def _joined(ids: Sequence[object]) -> str:
    return ",".join(map(str, ids))
