"""Moving real bytes: GET from one site, PUT to the other, sizes and adler32 compared as fts_url_copy does.

A bounded pool of threads, each with one session, so that a copy costs no TLS handshake. Reasons have the
texts of FTS 3.13 and of production.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

import requests
from requests.adapters import HTTPAdapter

from asyncstageout.clients.http import Access, new_session, silence
from asyncstageout.sandbox.fts.simulation import EXISTS, SIZES_DIFFER
from asyncstageout.sandbox.fts.verdicts import Failure

CHUNK_BYTES = 1 << 18
TIMEOUT_S = (5.0, 60.0)
SITE_PORTS = frozenset({None, 443, 8443})
"""Ports that mean "the sites"; any other port of a PFN is tried as it is, so a dead site is easily had."""
CANCELED = Failure("TRANSFER", errno.ECANCELED, "Transfer canceled")


@dataclass(frozen=True, slots=True)
class CopyOrder:
    """One try of one file."""

    file_id: int
    try_number: int
    source: str
    destination: str
    size_bytes: int = 0
    """What the submitter says; 0 is "unknown"."""
    checksum: str | None = None
    """What the submitter says: adler32, eight hexadecimal digits."""
    verify: str = "n"
    """n none, s source, t target, b both."""
    overwrite: bool = False
    checks: bool = True
    """False is ``strict_copy``: no look before or after."""
    cleans: bool = True
    """Remove what a failed copy left at the destination."""
    reports_existing: bool = False
    """``dst_file_report``: describe a destination that exists."""
    source_token: str | None = field(default=None, repr=False)
    destination_token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Copied:
    """How one try ended."""

    failure: Failure | None
    size_bytes: int
    duration_s: float
    dst_file: dict[str, Any] | None = None


class Reports(Protocol):
    """Who wants to know; called from the pool's threads."""

    def copy_started(self, file_id: int, try_number: int, size_bytes: int) -> None: ...
    def copy_ended(self, file_id: int, try_number: int, copied: Copied) -> None: ...


class _Failed(Exception):
    """A copy ends here."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(str(failure))
        self.failure = failure


class PooledCopier:
    """Copies files in a bounded pool of threads."""

    def __init__(self, session: Callable[[], requests.Session], reports: Reports, workers: int) -> None:
        self._new_session = session
        self._reports = reports
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="copy")
        self._mine = threading.local()
        self._stops: dict[int, threading.Event] = {}

    def start(self, order: CopyOrder) -> None:
        """Queue one try."""
        stop = self._stops[order.file_id] = threading.Event()
        self._pool.submit(self._run, order, stop)

    def stop(self, file_id: int) -> None:
        """Ask a copy to stop; it ends at its next chunk."""
        if stop := self._stops.get(file_id):
            stop.set()

    def close(self) -> None:
        """Stop all copies and wait for their threads."""
        for stop in list(self._stops.values()):
            stop.set()
        self._pool.shutdown(cancel_futures=True)

    def _run(self, order: CopyOrder, stop: threading.Event) -> None:
        copy = _Copy(order, self._session(), stop, self._reports)
        started = time.monotonic()
        failure: Failure | None = Failure("GENERAL_FAILURE", errno.EINVAL, "The copy died")
        try:
            copy.run()
            failure = None
        except _Failed as failed:
            failure = failed.failure
        finally:  # also of a defect in here the engine must hear, or the file stays ACTIVE for ever
            self._stops.pop(order.file_id, None)
            copied = Copied(failure, copy.size_bytes, time.monotonic() - started, copy.dst_file)
            self._reports.copy_ended(order.file_id, order.try_number, copied)

    def _session(self) -> requests.Session:
        if not hasattr(self._mine, "session"):
            self._mine.session = self._new_session()
        session: requests.Session = self._mine.session
        return session


class _Copy:
    def __init__(
        self, order: CopyOrder, session: requests.Session, stop: threading.Event, reports: Reports
    ) -> None:
        self.size_bytes = 0
        self.dst_file: dict[str, Any] | None = None
        self._order = order
        self._session = session
        self._stop = stop
        self._reports = reports
        self._source = _https(order.source)
        self._dest = _https(order.destination)
        self._as = {"SOURCE": _bearer(order.source_token), "DESTINATION": _bearer(order.destination_token)}

    def run(self) -> None:
        order = self._order
        self._go_on()
        self._reports.copy_started(order.file_id, order.try_number, 0)
        source_sum = None
        if order.checks:
            source_sum = self._look_at_source()
            self._reports.copy_started(order.file_id, order.try_number, self.size_bytes)
            self._look_at_destination()
        self._transfer()
        if order.checks:
            self._compare(source_sum)

    def _go_on(self) -> None:
        if self._stop.is_set():
            raise _Failed(CANCELED)

    def _look_at_source(self) -> str | None:
        """Check the source's size and checksum; return the checksum if it is wanted."""
        order = self._order
        wanted = order.verify in ("b", "s")
        found = self._head("SOURCE", self._source, digest=wanted)
        if found.status_code != 200:
            raise _Failed(_status_failure("SOURCE", found.status_code))
        self.size_bytes = int(found.headers.get("Content-Length", 0))
        if order.size_bytes and order.size_bytes != self.size_bytes:
            text = (
                f"User specified source file size is {order.size_bytes} but stat returned {self.size_bytes}"
            )
            raise _Failed(Failure("SOURCE", errno.EINVAL, text))
        source_sum = _digest(found) if wanted else None
        if wanted and order.checksum and source_sum != order.checksum:
            raise _Failed(_mismatch("SOURCE", "Source and user-defined", source_sum, order.checksum))
        return source_sum

    def _look_at_destination(self) -> None:
        order = self._order
        found = self._head("DESTINATION", self._dest, digest=order.reports_existing)
        if found.status_code == 404:
            return
        if found.status_code != 200:
            raise _Failed(_status_failure("DESTINATION", found.status_code))
        if not order.overwrite:
            if order.reports_existing:
                self.dst_file = {
                    "file_size": int(found.headers.get("Content-Length", 0)),
                    "checksum_type": "ADLER32",
                    "checksum_value": _digest(found),
                    "file_on_tape": False,
                    "file_on_disk": True,
                }
            raise _Failed(EXISTS)

    def _transfer(self) -> None:
        status = self._pull()
        if status == 409:  # some storages make no directories by themselves
            self._make_parents()
            status = self._pull()
        if status == 403:
            raise _Failed(_status_failure("DESTINATION", status))
        if status >= 300:
            text = f"TRANSFER ERROR: Copy failed (3rd pull). Last attempt: copy {_http_text(status)}"
            raise _Failed(Failure("TRANSFER", errno.EIO, text))

    def _pull(self) -> int:
        with _talking("SOURCE"):
            source = self._session.get(
                self._source, stream=True, headers=self._as["SOURCE"], timeout=TIMEOUT_S
            )
        with source:
            if source.status_code != 200:
                raise _Failed(_status_failure("SOURCE", source.status_code))
            if not self.size_bytes:
                self.size_bytes = int(source.headers.get("Content-Length", 0))
            with _talking("DESTINATION"):
                answer = self._session.put(
                    self._dest,
                    data=self._chunks(source),
                    headers=self._as["DESTINATION"],
                    timeout=TIMEOUT_S,
                )
        return answer.status_code

    def _chunks(self, source: requests.Response) -> Iterator[bytes]:
        with _talking("SOURCE"):
            for chunk in source.iter_content(CHUNK_BYTES):
                self._go_on()
                yield chunk

    def _make_parents(self) -> None:
        parts = urlsplit(self._dest)
        names = parts.path.strip("/").split("/")[:-1]
        for depth in range(1, len(names) + 1):
            url = urlunsplit(parts._replace(path="/" + "/".join(names[:depth])))
            with _talking("DESTINATION"):
                self._session.request("MKCOL", url, headers=self._as["DESTINATION"], timeout=TIMEOUT_S)

    def _compare(self, source_sum: str | None) -> None:
        """Compare what arrived; remove it if it is not what was sent."""
        order = self._order
        wanted = order.verify in ("b", "t")
        found = self._head("DESTINATION", self._dest, digest=wanted)
        failure = None
        if found.status_code != 200:
            failure = _status_failure("DESTINATION", found.status_code)
        elif int(found.headers.get("Content-Length", -1)) != self.size_bytes:
            failure = SIZES_DIFFER
        elif wanted:
            failure = self._sums_differ(source_sum, _digest(found))
        if failure:
            if order.cleans:
                with _talking("DESTINATION"):
                    self._session.delete(self._dest, headers=self._as["DESTINATION"], timeout=TIMEOUT_S)
            raise _Failed(failure)

    def _sums_differ(self, source_sum: str | None, dest_sum: str | None) -> Failure | None:
        said = self._order.checksum
        if said and said != dest_sum:
            return _mismatch("DESTINATION", "User-defined and destination", said, dest_sum)
        if self._order.verify == "b" and source_sum != dest_sum:
            return _mismatch("DESTINATION", "Source and destination", source_sum, dest_sum)
        return None

    def _head(self, scope: str, url: str, *, digest: bool) -> requests.Response:
        with _talking(scope):
            headers = self._as[scope] | ({"Want-Digest": "adler32"} if digest else {})
            return self._session.head(url, headers=headers, timeout=TIMEOUT_S)


class _talking:  # noqa: N801 - reads as a word in a with statement
    """Names the end that a broken connection belongs to."""

    def __init__(self, scope: str) -> None:
        self._scope = scope

    def __enter__(self) -> None: ...

    def __exit__(self, _type: object, error: BaseException | None, _trace: object) -> None:
        if not isinstance(error, requests.RequestException):
            return
        if isinstance(error, requests.Timeout):
            failure = Failure(
                self._scope, errno.ETIMEDOUT, "Result curl error (28): Timeout was reached after 1 attempts"
            )
        elif not silence(error).maybe_delivered:
            failure = Failure(
                self._scope, errno.EHOSTDOWN, "Result Could not connect to server after 1 attempts"
            )
        else:
            text = "Result curl error (56): Failure when receiving data from the peer after 1 attempts"
            failure = Failure(self._scope, errno.EHOSTDOWN, text)
        raise _Failed(failure) from error


_HTTP_TEXTS = {
    401: "Authentication Error",
    403: "Permission refused",
    404: "File not found",
    409: "Conflict",
    507: "Insufficient Storage",
}
_HTTP_ERRNOS = {401: errno.EPERM, 403: errno.EPERM, 404: errno.ENOENT}


def _http_text(status: int) -> str:
    return f"HTTP {status} : {_HTTP_TEXTS.get(status, f'Unexpected server error: {status}')}"


def _status_failure(scope: str, status: int) -> Failure:
    text = _http_text(status)
    if status != 403:
        text = f"Result {text}  after 1 attempts"
    return Failure(scope, _HTTP_ERRNOS.get(status, errno.EIO), text)


def _mismatch(where: str, who: str, one: str | None, other: str | None) -> Failure:
    return Failure(
        "TRANSFER", errno.EIO, f"{where} CHECKSUM MISMATCH {who} ADLER32 do not match ({one} != {other})"
    )


def _digest(answer: requests.Response) -> str | None:
    name, _, value = answer.headers.get("Digest", "").partition("=")
    return value.lower() if name.lower() == "adler32" else None


def _bearer(token: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"} if token else {}


def _https(url: str) -> str:
    return urlunsplit(urlsplit(url)._replace(scheme="https"))


class _OneServer(HTTPAdapter):
    """Sends every request to one address, whatever its host: all sites of a sandbox share one connection."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self._host, _, self._port = address.rpartition(":")

    def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
        parts = urlsplit(request.url or "")
        port = self._port if parts.port in SITE_PORTS else parts.port
        request.headers["Host"] = parts.netloc
        request.url = urlunsplit(parts._replace(netloc=f"{self._host}:{port}"))
        return super().send(request, *args, **options)


def sites_session(ca: str | None, connect_to: str | None) -> requests.Session:
    """Return a session for copies; with ``connect_to`` (``host:port``) all sites are reached there."""
    session = new_session(Access(ca=ca))
    if connect_to:
        session.mount("https://", _OneServer(connect_to))
        session.verify = ca or True  # this adapter does not know whom the others trust
    return session
