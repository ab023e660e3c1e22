"""The client: one object for one service and one identity."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from itertools import islice
from typing import Any, Self
from urllib.parse import quote

import requests
from pydantic import ValidationError

from asyncstageout.client.errors import ProblemJudge, bad_answer
from asyncstageout.client.results import (
    Acted,
    Block,
    BlockPage,
    File,
    MetadataAnswer,
    Page,
    Publication,
    PublishedAgain,
    Submitted,
    T,
    Task,
    read,
)
from asyncstageout.clients.http import Access, Caller, Patience, new_session
from asyncstageout.core.requests import TransferRequest

PREFIX = "/stageout/api/v1"
BATCH = 5_000
"""Requests in one call; each call is one transaction of the service."""
METADATA_BATCH = 1_000
PAGE = 1_000
FIRST_POLL_S = 1.0
POLL_GROWTH = 1.5

Request = TransferRequest | Mapping[str, Any]


class NotFinished(TimeoutError):
    """A task has open files when its time is over; ``task`` says where they are."""

    def __init__(self, task: Task) -> None:
        self.task = task
        super().__init__(f"task {task.task}: {task.open_files:,} of {task.files:,} files have not ended")


class Stageout:
    """Speaks to one AsyncStageOut in one name. Not for several threads at a time.

    A call that got no answer, or was put off (429, 503), is repeated for up to 90 s; every call may be, since
    doing it twice is as good as doing it once.

    Args:
        url: of Airflow's api-server, such as ``https://stageout.example.org``.
        token: of Airflow, or what returns the current one; it is asked for each request.
        cert: file with a client certificate or proxy (PEM), or a pair of certificate and key, for services
            behind a TLS front end.
        ca: file or directory of certificate authorities; None: the public ones.
        patience: how long a call may take.
        sleep: waits so many seconds.

    Raises:
        UnreadableCAs: ``ca`` cannot be read.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | Callable[[], str] | None = None,
        cert: str | tuple[str, str] | None = None,
        ca: str | None = None,
        patience: Patience | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        cert_file, key_file = cert if isinstance(cert, tuple) else (cert, None)
        bearer = (lambda: token) if isinstance(token, str) else token
        self._session = new_session(
            Access(ca=ca, cert_file=cert_file, key_file=key_file, bearer=bearer), pool_size=1
        )
        self._caller = Caller(self._session, ProblemJudge(), patience, sleep)
        self._url = url.rstrip("/").removesuffix(PREFIX) + PREFIX
        self._sleep = sleep

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._session.close()

    def submit(self, requests: Iterable[Request], *, batch: int = BATCH) -> Iterator[Submitted]:
        """Hand files in, and yield what became of each, in order, as the batches are answered.

        A batch is sent when its first answer is asked for: iterate to the end. Requests are taken as they are
        needed, so that a list of any length fits. Handing in again what is there already changes nothing.

        Args:
            requests: :class:`TransferRequest`, or dicts with its fields (docs/how-to/rest-api.md).
            batch: requests in one call, at most 10,000.

        Raises:
            StageoutError: the service refuses all of a batch, or does not answer; what was yielded is done.
        """
        remaining = iter(requests)
        start = 0
        while records := list(islice(remaining, batch)):
            for answer in self._submit_batch(records):
                yield replace(answer, position=start + answer.position)
            start += len(records)

    def files(
        self,
        *,
        task: str | None = None,
        username: str | None = None,
        state: str | Iterable[str] = (),
        source: str | None = None,
        destination: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> Iterator[File]:
        """Yield files for which all of this holds, the newest first; pages are fetched as they are needed.

        Args:
            state: one, or several of which any will do.
            since: arrived then or later; with a time zone.
            until: arrived before; with a time zone.

        Raises:
            StageoutError: the service refuses, or does not answer.
        """
        query = {
            "task": task, "username": username, "source": source, "destination": destination, "limit": PAGE,
            "state": [state] if isinstance(state, str) else list(state),
            "since": since and since.isoformat(), "until": until and until.isoformat(),
        }  # fmt: skip
        cursor: str | None = None
        while True:
            page = self._get(Page, "/transfers", params=query | {"cursor": cursor})
            yield from page.transfers
            if not (cursor := page.next_cursor):
                return

    def file(self, wanted: int | str) -> File:
        """Return one file by its number or request id.

        Raises:
            NotFound: there is none that you may see.
        """
        return self._get(File, f"/transfers/{quote(str(wanted), safe='')}")

    def task(self, name: str) -> Task:
        """Return where the files of a task are.

        Raises:
            NotFound: there is none that you may see.
        """
        return self._get(Task, f"/tasks/{quote(name, safe='')}")

    def kill(
        self,
        *,
        ids: Iterable[int | str] = (),
        task: str | None = None,
        username: str | None = None,
        source: str | None = None,
        destination: str | None = None,
        site: str | None = None,
        comment: str = "",
        expected_files: int | None = None,
        dry_run: bool = False,
    ) -> Acted:
        """Stop the files for which everything given holds; at most 10,000 ids.

        What waits is killed at once. What FTS may have is ``being_killed``, and DONE where that is too late.

        Args:
            ids: numbers or request ids.
            site: at either end.
            comment: why; for the history of each file.
            expected_files: how many may be hit; needed for more than 1,000 that are neither named, nor of one
                task, nor your own.
            dry_run: change nothing, say what would happen.

        Raises:
            NeedsApproval: they are more than expected, and none was touched.
            StageoutError: nothing is selected, or you may not.
        """
        chosen = _selection(
            ids, task=task, username=username, source=source, destination=destination, site=site,
            expected_files=expected_files,
        )  # fmt: skip
        return self._act("/transfers/kill", chosen | {"comment": comment, "dry_run": dry_run})

    def retry(
        self,
        *,
        ids: Iterable[int | str] = (),
        task: str | None = None,
        username: str | None = None,
        source: str | None = None,
        destination: str | None = None,
        site: str | None = None,
        category: str | None = None,
        ended_from: datetime | None = None,
        ended_to: datetime | None = None,
        comment: str = "",
        killed_too: bool = False,
        expected_files: int | None = None,
        dry_run: bool = False,
    ) -> Acted:
        """Send the FAILED files again for which everything given holds, with all their attempts.

        Args:
            ids: numbers or request ids, at most 10,000.
            site: at either end.
            category: why they failed, such as ``quota``.
            ended_from: with a time zone; with it, as with a task or ids, past files count too.
            ended_to: with a time zone.
            comment: why; for the history of each file.
            killed_too: also KILLED ones.
            expected_files: as for :meth:`kill`.
            dry_run: change nothing, say what would happen.

        Raises:
            NeedsApproval: they are more than expected, and none was touched.
            StageoutError: nothing is selected, or you may not.
        """
        chosen = _selection(
            ids, task=task, username=username, source=source, destination=destination, site=site,
            category=category, ended_from=ended_from.isoformat() if ended_from else None,
            ended_to=ended_to.isoformat() if ended_to else None, expected_files=expected_files,
        )  # fmt: skip
        wishes = {"comment": comment, "dry_run": dry_run, "killed_too": killed_too}
        return self._act("/transfers/retry", chosen | wishes)

    def put_metadata(self, records: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """Hand in what publication wants to know of files; yield what became of each, batch by batch.

        Args:
            records: ``request_id`` or ``source_lfn``, ``task``, ``body``, and the owner's ``username`` if
                he is another one; at most 1 MiB each (docs/how-to/rest-api.md).

        Raises:
            StageoutError: the service refuses all of a batch, or does not answer.
        """
        remaining = iter(records)
        while batch := list(islice(remaining, METADATA_BATCH)):
            answer = self._ask("PUT", "/file-metadata", json=batch)
            yield from self._read(MetadataAnswer, answer.content, answer).results

    def publication(self, task: str) -> Publication:
        """Return how far the publication of a task is, and why not farther.

        Raises:
            NotFound: there is no such task that you may see.
        """
        return self._get(Publication, f"/tasks/{quote(task, safe='')}/publication")

    def set_publication(
        self,
        task: str,
        *,
        input_dataset: str | None = None,
        dbs: str | None = None,
        with_parents: bool | None = None,
        is_complete: bool | None = None,
    ) -> Publication:
        """Say how a task's files are published; what is None stays.

        Args:
            input_dataset: what its jobs read; empty: nothing.
            dbs: the service's connection of the DBS instance, for new blocks.
            is_complete: no more files will come, so that blocks need not wait for them.

        Raises:
            NotFound: there is no such task that you may see: it is there from its first file on.
            Refused: a name is not as it must be.
        """
        wish = {
            "input_dataset": input_dataset, "dbs": dbs, "with_parents": with_parents,
            "is_complete": is_complete,
        }  # fmt: skip
        said = {name: value for name, value in wish.items() if value is not None}
        answer = self._ask("PUT", f"/tasks/{quote(task, safe='')}/publication", json=said)
        return self._read(Publication, answer.content, answer)

    def blocks(self, task: str) -> Iterator[Block]:
        """Yield the blocks into which a task's files went, the newest first.

        Raises:
            NotFound: there is no such task that you may see.
        """
        cursor: str | None = None
        while True:
            page = self._get(
                BlockPage, f"/tasks/{quote(task, safe='')}/blocks", params={"limit": 200, "cursor": cursor}
            )
            yield from page.blocks
            if not (cursor := page.next_cursor):
                return

    def retry_publication(self, task: str, *, comment: str = "", dry_run: bool = False) -> PublishedAgain:
        """Publish the files of a task again that arrived and whose publication was given up.

        Args:
            comment: why; for the history of each file.
            dry_run: change nothing, say what would happen.

        Raises:
            NotFound: there is no such task that you may see.
        """
        wish = {"comment": comment, "dry_run": dry_run}
        answer = self._ask("POST", f"/tasks/{quote(task, safe='')}/publication/retry", json=wish)
        return self._read(PublishedAgain, answer.content, answer)

    def watch(self, task: str, *, poll_s: float = 10.0) -> Iterator[Task]:
        """Yield where a task's files are, now and again, until all have ended.

        Args:
            poll_s: longest pause between two looks; the first ones come quicker.

        Raises:
            NotFound: there is no such task that you may see.
        """
        pause_s = min(FIRST_POLL_S, poll_s)
        while True:
            status = self.task(task)
            yield status
            if status.open_files == 0:
                return
            self._sleep(pause_s)
            pause_s = min(pause_s * POLL_GROWTH, poll_s)

    def wait(self, task: str, *, timeout_s: float | None = None, poll_s: float = 10.0) -> Task:
        """Return where a task's files ended, once all have.

        Raises:
            NotFinished: ``timeout_s`` is over.
            NotFound: there is no such task that you may see.
        """
        ends_at_s = None if timeout_s is None else time.monotonic() + timeout_s
        for status in self.watch(task, poll_s=poll_s):
            if status.open_files and ends_at_s is not None and time.monotonic() >= ends_at_s:
                raise NotFinished(status)
        return status

    def _submit_batch(self, records: list[Request]) -> Iterator[Submitted]:
        body = b"\n".join(_line(record) for record in records)
        headers = {"Content-Type": "application/x-ndjson", "Accept": "application/x-ndjson"}
        answer = self._ask("POST", "/transfers", data=body, headers=headers)
        found = [self._read(Submitted, line, answer) for line in answer.content.splitlines() if line]
        if len(found) != len(records):
            # The answer is a stream, so its status came before its end.
            raise bad_answer(answer, f"{len(found):,} answers to {len(records):,} requests")
        yield from found

    def _get(self, kind: type[T], path: str, **options: Any) -> T:
        answer = self._ask("GET", path, **options)
        return self._read(kind, answer.content, answer)

    def _act(self, path: str, wishes: Mapping[str, Any]) -> Acted:
        answer = self._ask("POST", path, json=wishes)
        return self._read(Acted, answer.content, answer)

    def _ask(self, method: str, path: str, **options: Any) -> requests.Response:
        return self._caller.ask(method, self._url + path, may_repeat=True, **options)

    def _read(self, kind: type[T], text: bytes, answer: requests.Response) -> T:
        try:
            return read(kind, text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise bad_answer(answer, f"{place}: {first['msg']}" if place else first["msg"]) from error


def _line(request: Request) -> bytes:
    if isinstance(request, TransferRequest):
        return request.model_dump_json(exclude_defaults=True).encode()
    return json.dumps(request).encode()


def _selection(ids: Iterable[int | str], **given: str | int | None) -> dict[str, Any]:
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return chosen | {"ids": named} if (named := list(ids)) else chosen
