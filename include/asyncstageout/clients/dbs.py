"""A client of DBS, CMS's catalogue of data: dbs2go's readers, writers and migration servers.

What is read may be repeated, and is. A block is sent once a call, unless it cannot have arrived or is known
to have left nothing: a repeat while the first is still at work would wait for its locks, and then be told of
a "concurrency error" that says nothing. After a silence ask :meth:`DBSClient.block`, then send it again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import requests

from asyncstageout.clients.dbs_errors import (
    DBSBadAnswer,
    DBSError,
    DBSUnavailable,
    DBSUnreachable,
    DBSUntrusted,
    MigrationAsked,
    dbs_error,
)
from asyncstageout.clients.errors import Answer, shortened
from asyncstageout.clients.http import Caller, Patience, Silence
from asyncstageout.core.dbs import encoded, is_askable
from asyncstageout.core.dbs_answers import (
    UNREADABLE,
    DBSBlock,
    DBSDataset,
    DBSFile,
    Migration,
    ServerInfo,
    parse_block,
    parse_dataset,
    parse_file,
    parse_migration,
    parse_server_info,
)

T = TypeVar("T")

LFNS_PER_REQUEST = 500
PATIENCE = Patience(read_s=300, tries=3, deadline_s=330)
"""DBS says nothing before a block is in its database, which takes minutes for one of 50 MB."""
STARTED = "Migration request is started"

HEADERS = {
    # Asked for gzip, dbs2go announces it for errors too, and then sends them as they are.
    "Accept-Encoding": "identity",
    "Accept": "application/json",
}
JSON_HEADERS = {**HEADERS, "Content-Type": "application/json"}  # any other, even with a charset, is a 415


class DBSReader:
    """A DBS that is only read. A small pool of threads may share it; close it at the end.

    Args:
        reader_url: such as ``https://cmsweb.cern.ch/dbs/prod/global/DBSReader``.
        session: from :func:`asyncstageout.clients.http.new_session`; closed with the client.

    Raises:
        DBSError: every call; its subclasses say what happened.
    """

    def __init__(
        self,
        reader_url: str,
        session: requests.Session,
        *,
        patience: Patience | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.reader_url = reader_url.rstrip("/")
        self._caller = Caller(session, _DBSJudge(), patience or PATIENCE, sleep)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._caller.session.close()

    def files(self, lfns: Iterable[str]) -> dict[str, DBSFile]:
        """Return what DBS knows of these files, valid or not; those that it does not know are not in it."""
        asked = [lfn for lfn in dict.fromkeys(lfns) if is_askable(lfn)]
        url = f"{self.reader_url}/fileArray"
        found: dict[str, DBSFile] = {}
        for start in range(0, len(asked), LFNS_PER_REQUEST):
            body = {"logical_file_name": asked[start : start + LFNS_PER_REQUEST], "detail": True}
            answers = self._rows("POST", url, parse_file, data=encoded(body), headers=JSON_HEADERS)
            found |= {file.lfn: file for file in answers}
        return found

    def blocks_of_files(self, lfns: Iterable[str]) -> dict[str, str]:
        """Return in which block each of these files is; those that DBS does not know are not in it."""
        return {lfn: file.block_name for lfn, file in self.files(lfns).items()}

    def dataset(self, name: str) -> DBSDataset | None:
        """Return a dataset, valid or not. An insertion that failed may have left one without blocks."""
        query = {"dataset": name, "dataset_access_type": "*", "detail": "true"}
        return self._one(f"{self.reader_url}/datasets", query, parse_dataset)

    def dataset_exists(self, name: str) -> bool:
        return self.dataset(name) is not None

    def block(self, name: str) -> DBSBlock | None:
        """Return a block."""
        return self._block(self.reader_url, name)

    def block_exists(self, name: str) -> bool:
        return self.block(name) is not None

    def server_info(self) -> ServerInfo:
        """Return what the server says of itself. It says nothing of us: who may not read gets a 403."""
        return self._info(self.reader_url)

    def _block(self, url: str, name: str) -> DBSBlock | None:
        return self._one(f"{url}/blocks", {"block_name": name, "detail": "true"}, parse_block)

    def _info(self, url: str) -> ServerInfo:
        rows = self._json(self._ask("GET", f"{url}/serverinfo", may_repeat=True))
        with self._contract("GET", f"{url}/serverinfo"):
            return parse_server_info(rows)

    def _one(self, url: str, query: Mapping[str, str], parse: Callable[[Any], T]) -> T | None:
        rows = self._rows("GET", url, parse, params=query)
        if len(rows) > 1:
            raise self._bad("GET", url, f"{len(rows)} rows for one name")
        return rows[0] if rows else None

    def _rows(self, method: str, url: str, parse: Callable[[Any], T], **options: Any) -> list[T]:
        rows = self._json(self._ask(method, url, may_repeat=True, **options))
        if not isinstance(rows, list):
            raise self._bad(method, url, f"no list but {type(rows).__name__}")
        with self._contract(method, url):
            return [parse(row) for row in rows]

    def _ask(self, method: str, url: str, *, may_repeat: bool, **options: Any) -> requests.Response:
        options.setdefault("headers", HEADERS)
        return self._caller.ask(method, url, may_repeat=may_repeat, allow_redirects=False, **options)

    def _json(self, response: requests.Response) -> Any:
        try:
            # Several rows come as they are found: an error on the way is written behind them.
            return json.loads(response.content)
        except ValueError:
            request = response.request
            kind = response.headers.get("Content-Type", "no content type")
            detail = f"no JSON but {kind}, {len(response.content)} bytes"
            raise self._bad(request.method or "", request.url or "", detail, response.status_code) from None

    @contextmanager
    def _contract(self, method: str, url: str) -> Iterator[None]:
        try:
            yield
        except UNREADABLE as error:
            raise self._bad(method, url, f"cannot be read: {error!r}") from error

    def _bad(self, method: str, url: str, detail: str, status: int = 200) -> DBSBadAnswer:
        return DBSBadAnswer(*_where(method, url), status, detail)


class DBSClient(DBSReader):
    """A DBS instance that is written to, with its reader and its migration server.

    Args:
        writer_url: such as ``https://cmsweb.cern.ch/dbs/prod/phys03/DBSWriter``.
        reader_url, migrate_url: of the same instance; without them the writer's, with its last part replaced.
    """

    def __init__(
        self,
        writer_url: str,
        session: requests.Session,
        *,
        reader_url: str | None = None,
        migrate_url: str | None = None,
        patience: Patience | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.writer_url = writer_url.rstrip("/")
        instance = self.writer_url.rpartition("/")[0]
        self.migrate_url = (migrate_url or f"{instance}/DBSMigrate").rstrip("/")
        super().__init__(reader_url or f"{instance}/DBSReader", session, patience=patience, sleep=sleep)

    def insert_block(self, body: Mapping[str, Any] | bytes) -> None:
        """Insert a block with all its files, or nothing of it.

        Args:
            body: of :func:`asyncstageout.core.dbs.block_body`, or that one ``encoded``.

        Raises:
            BlockExists: the block is there: an earlier try did arrive.
            FilesNotTaken: a file is there already, or is not as DBS wants it; DBS does not say which.
            ParentUnknown: DBS does not know a parent.
            BlockTooLarge: the front takes no body of this size.
            BlockRefused: DBS never takes this body.
            Transient: ``maybe_delivered`` says whether it may be there all the same.
        """
        content = body if isinstance(body, bytes) else encoded(body)
        url = f"{self.writer_url}/bulkblocks"
        rows = self._json(self._ask("POST", url, may_repeat=False, data=content, headers=JSON_HEADERS))
        if rows != []:
            raise self._bad("POST", url, f"no empty list but {rows!r:.80}")

    def block(self, name: str) -> DBSBlock | None:
        """Return a block as the writer has it, which no replica or cache can lag behind."""
        return self._block(self.writer_url, name)

    def submit_migration(self, source_url: str, block_name: str) -> Migration:
        """Ask DBS to copy a block with its ancestors from another DBS; return the request, new or old.

        One for the block may be there already, even one that has failed for good: :meth:`remove_migration`
        makes room for the next. A block that is there already makes a request with nothing to do.

        Args:
            source_url: of the other DBS's reader.

        Raises:
            MigrationRefused: DBS never copies this block.
        """
        url = f"{self.migrate_url}/submit"
        body = encoded({"migration_url": source_url, "migration_input": block_name})
        try:
            answer = self._ask("POST", url, may_repeat=True, data=body, headers=JSON_HEADERS)
        except MigrationAsked as error:
            known = self.migration(error.request_id)
            return known or self._asked_before(source_url, block_name, error.detail)
        rows = self._json(answer)
        with self._contract("POST", url):
            [report] = rows
            if report["migration_report"] == STARTED:
                return parse_migration(report["migration_details"])
        # A second request that came before the first was looked at gets a success that was none.
        return self._asked_before(source_url, block_name, str(report["migration_report"]))

    def migration(self, request_id: int) -> Migration | None:
        """Return where a request is; None: there is no such request (any more)."""
        return self._one(
            f"{self.migrate_url}/status", {"migration_rqst_id": str(request_id)}, parse_migration
        )

    def migrations_of(self, block_name: str) -> list[Migration]:
        """Return the requests for a block, from whatever DBS."""
        query = {"migration_input": block_name}
        return self._rows("GET", f"{self.migrate_url}/status", parse_migration, params=query)

    def remove_migration(self, request_id: int) -> None:
        """Forget a request that we made, so that its block can be asked for again.

        Raises:
            DBSRefused: there is none of this number that was made by us.
        """
        body = encoded({"migration_rqst_id": request_id})
        self._ask("POST", f"{self.migrate_url}/remove", may_repeat=False, data=body, headers=JSON_HEADERS)

    def server_infos(self) -> dict[str, ServerInfo]:
        """Return what writer, reader and migration server say of themselves, by URL."""
        return {url: self._info(url) for url in (self.writer_url, self.reader_url, self.migrate_url)}

    def _asked_before(self, source_url: str, block_name: str, detail: str) -> Migration:
        found = [one for one in self.migrations_of(block_name) if one.source_url == source_url]
        if not found:
            where = _where("POST", f"{self.migrate_url}/submit")
            raise DBSUnavailable(*where, 200, detail, maybe_delivered=False)
        return max(found, key=lambda one: one.request_id)


class _DBSJudge:
    def no_answer(self, method: str, url: str, silence: Silence) -> DBSError:
        where = _where(method, url)
        if silence.untrusted:
            return DBSUntrusted(*where, None, silence.cause)
        return DBSUnreachable(*where, None, silence.cause, maybe_delivered=silence.maybe_delivered)

    def refusal(self, method: str, url: str, answer: Answer) -> DBSError:
        parts = urlsplit(url)
        return dbs_error(parts.netloc.rpartition("@")[2], method, parts.path, answer)


def _where(method: str, url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.netloc.rpartition("@")[2], shortened(method, parts.path)
