"""A client of grid storages over WebDAV, as dCache, EOS, StoRM and XRootD speak it.

URLs are those of the catalogue: ``davs://`` and ``https://`` are the same, ``dav://`` and ``http://`` too.
"""

from __future__ import annotations

import base64
import binascii
import re
import time
from collections.abc import Callable, Iterable, Iterator
from copy import copy
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from posixpath import dirname
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit
from xml.etree import ElementTree as ET

import requests

from asyncstageout.clients.errors import (
    STORAGE_RULES,
    STORAGE_TRANSIENT,
    Answer,
    NoSuchFile,
    ParentMissing,
    StorageBadAnswer,
    StorageError,
    StorageRefused,
    StorageUnavailable,
    StorageUnreachable,
    StorageUntrusted,
    shortened,
)
from asyncstageout.clients.http import Bearer, Caller, Patience, Silence, silence

HTTP_SCHEMES = {"davs": "https", "https": "https", "dav": "http", "http": "http"}
REDIRECTS = frozenset({301, 302, 303, 307, 308})
MAX_REDIRECTS = 5
CHUNK_BYTES = 1 << 20
# Compressed, a length or a checksum would be that of something else.
PLAIN = {"Accept-Encoding": "identity"}
ASK_DIGEST = {**PLAIN, "Want-Digest": "adler32"}
ASK_PROPERTIES = (
    b'<?xml version="1.0"?><propfind xmlns="DAV:"><prop>'
    b"<resourcetype/><getcontentlength/><getlastmodified/></prop></propfind>"
)


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file as its storage knows it. ``adler32``: 8 hexadecimal digits; None when the storage has none."""

    url: str
    size_bytes: int
    adler32: str | None
    modified_at: datetime | None


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a directory listing."""

    url: str
    is_directory: bool
    size_bytes: int
    modified_at: datetime | None


class Look(NamedTuple):
    """What is at a place, and what time it is there: the clock behind ``modified_at``."""

    entries: list[Entry]
    clock_at: datetime | None


class StorageClient:
    """All storages that one identity can reach. A small pool of threads may share it; close it at the end.

    Args:
        session: from :func:`asyncstageout.clients.http.new_session`; closed with the client.

    Raises:
        StorageError: every call; its subclasses say what happened.
    """

    def __init__(
        self,
        session: requests.Session,
        *,
        patience: Patience | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._judge = _StorageJudge()
        self._caller = Caller(session, self._judge, patience, sleep)
        self._bearer: Bearer | None = None

    def with_token(self, token: Callable[[], str]) -> StorageClient:
        """Return a client over the same connections that shows a token, asked for with every request."""
        other = copy(self)
        other._bearer = Bearer(token)
        return other

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._caller.session.close()

    def stat(self, url: str) -> StoredFile:
        """Return size and checksum of a file.

        Raises:
            NoSuchFile: it is not there.
        """
        headers = self._ask("HEAD", url, headers=ASK_DIGEST).headers
        length = headers.get("Content-Length", "")
        if not length.isdigit():
            raise self._bad("HEAD", url, "no length")
        return StoredFile(
            url=url,
            size_bytes=int(length),
            adler32=adler32_in(headers.get("Digest", "")),
            modified_at=_http_time(headers.get("Last-Modified")),
        )

    def exists(self, url: str) -> bool:
        try:
            self._ask("HEAD", url, headers=PLAIN)
        except NoSuchFile:
            return False
        return True

    def read(self, url: str, *, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
        """Yield the content of a file; errors come with the first piece, or with the one where it breaks."""
        with self._ask("GET", url, headers=PLAIN, stream=True) as response:
            try:
                yield from response.iter_content(chunk_bytes)
            except requests.RequestException as error:
                raise self._judge.no_answer("GET", url, silence(error)) from None

    def write(self, url: str, content: bytes | Iterable[bytes]) -> None:
        """Write a file, with the directories that it needs; an existing one is replaced.

        Args:
            content: bytes, or pieces of them. Pieces that can be read only once (a generator) cost a look for
                the directory beforehand, and the write is not repeated when the connection breaks.
        """
        once = iter(content) is content if not isinstance(content, bytes) else False
        if once:
            self.make_directory(_parent(url))
        try:
            self._put(url, content, once=once)
        except (NoSuchFile, ParentMissing):
            if once:
                raise
            self.make_directory(_parent(url))
            self._put(url, content, once=once)

    def make_directory(self, url: str) -> None:
        """Make a directory and those above it; one that exists is fine."""
        try:
            self._ask("MKCOL", url, accept={405})
        except (NoSuchFile, ParentMissing):
            above = _parent(url)
            if urlsplit(above).path in ("", "/"):
                raise
            self.make_directory(above)
            self._ask("MKCOL", url, accept={405})

    def delete(self, url: str, *, unmodified_since: datetime | None = None) -> bool:
        """Delete a file; return whether it was there. Gone already is as good.

        A storage deletes a directory with all that is in it, so a URL that ends in ``/`` is refused here.

        Args:
            unmodified_since: aware; a younger file stays. Not every storage looks at it.

        Raises:
            FileChanged: it is younger.
            ValueError: the URL is that of a directory.
        """
        if urlsplit(url).path.endswith("/") or not urlsplit(url).path:
            raise ValueError(f"{url} is a directory")
        headers = {}
        if unmodified_since is not None:
            headers["If-Unmodified-Since"] = format_datetime(unmodified_since.astimezone(UTC), usegmt=True)
        try:
            self._ask("DELETE", url, headers=headers)
        except NoSuchFile:
            return False
        return True

    def list_directory(self, url: str) -> list[Entry]:
        """Return what is in a directory, without the directory itself."""
        return self.look(url, inside=True).entries

    def look(self, url: str, *, inside: bool = False) -> Look:
        """Return what is at a URL, or ``inside`` the directory that is there.

        Raises:
            NoSuchFile: nothing is there.
        """
        if inside and not urlsplit(url).path.endswith("/"):
            url += "/"  # else some storages redirect and lose the method
        headers = {**PLAIN, "Depth": "1" if inside else "0", "Content-Type": "application/xml"}
        answer = self._ask("PROPFIND", url, data=ASK_PROPERTIES, headers=headers)
        try:
            entries = list(_entries(url, answer.content))
        except (ET.ParseError, ValueError) as error:
            raise self._bad("PROPFIND", url, f"cannot be read: {error}", 207) from error
        here = _path(url)
        wanted = [entry for entry in entries if (_path(entry.url) != here) == inside]
        return Look(wanted, _http_time(answer.headers.get("Date")))

    def _put(self, url: str, content: bytes | Iterable[bytes], *, once: bool) -> None:
        """Write, following the storage to the node that takes the bytes."""
        at = http_url(url)
        options: dict[str, Any] = {}
        for _hop in range(MAX_REDIRECTS):
            response = self._ask(
                "PUT",
                at,
                may_repeat=not once,
                data=content if isinstance(content, bytes) or once else _Again(content),
                accept=REDIRECTS,
                **options,
            )
            if response.status_code not in REDIRECTS:
                return
            if once:
                raise self._refused("PUT", url, response, "redirects, but the content can be read only once")
            before, at = at, urljoin(at, response.headers.get("Location", ""))
            if _another_host(before, at):
                # The other host is let in by what is in its URL; our token is not for it.
                options = {"auth": _no_auth}
        raise self._refused("PUT", url, response, f"more than {MAX_REDIRECTS} redirects")

    def _ask(self, method: str, url: str, *, may_repeat: bool = True, **options: Any) -> requests.Response:
        # Redirected, any other method would become a GET, and its success would mean nothing.
        options["allow_redirects"] = method in ("GET", "HEAD")
        if self._bearer is not None:
            options.setdefault("auth", self._bearer)
        return self._caller.ask(method, http_url(url), may_repeat=may_repeat, **options)

    def _bad(self, method: str, url: str, detail: str, status: int = 200) -> StorageBadAnswer:
        return StorageBadAnswer(*_where(method, url), status, detail)

    def _refused(self, method: str, url: str, response: requests.Response, detail: str) -> StorageRefused:
        return StorageRefused(*_where(method, url), response.status_code, detail)


class _Again:
    """Pieces that start anew with every request; ``requests`` would take a list for a form."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._pieces)


def _another_host(url: str, next_url: str) -> bool:
    before, after = urlsplit(url), urlsplit(next_url)
    return (before.scheme, before.netloc) != (after.scheme, after.netloc)


def _no_auth(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


class _StorageJudge:
    def no_answer(self, method: str, url: str, silence: Silence) -> StorageError:
        where = _where(method, url)
        if silence.untrusted:
            return StorageUntrusted(*where, None, silence.cause)
        return StorageUnreachable(*where, None, silence.cause, silence.maybe_delivered)

    def refusal(self, method: str, url: str, answer: Answer) -> StorageError:
        where = _where(method, url)
        if answer.status in STORAGE_TRANSIENT:
            return StorageUnavailable(*where, answer.status, answer.text, answer.retry_after_s)
        return STORAGE_RULES.get(answer.status, StorageRefused)(*where, answer.status, answer.text)


def http_url(url: str) -> str:
    """Return the URL as HTTP clients know it.

    >>> http_url("davs://se.example.org:8443/store/f")
    'https://se.example.org:8443/store/f'

    Raises:
        ValueError: a scheme that is not WebDAV.
    """
    parts = urlsplit(url)
    if parts.scheme not in HTTP_SCHEMES or not parts.netloc:
        raise ValueError(f"{parts.scheme}://{parts.netloc} is not reached over WebDAV")
    return urlunsplit(parts._replace(scheme=HTTP_SCHEMES[parts.scheme]))


def adler32_in(digest: str) -> str | None:
    """Return the Adler-32 of a ``Digest`` header (RFC 3230) as 8 hexadecimal digits, if there is one.

    dCache, EOS and XRootD write hexadecimal, not all with leading zeros; others take the base64 of other
    algorithms, of the 4 bytes or of the hexadecimal text.

    >>> adler32_in("md5=HUXZLQLMuI/KZ5KDcJPcOA==,adler32=3da0195")
    '03da0195'
    >>> adler32_in("ADLER32=A9oBlQ==")
    '03da0195'
    """
    for part in digest.split(","):
        name, _, value = part.strip().partition("=")
        if name.lower() == "adler32":
            return _hexadecimal(value.strip())
    return None


def _hexadecimal(value: str) -> str | None:
    if re.fullmatch(r"[0-9a-fA-F]{1,8}", value):
        return value.lower().zfill(8)
    try:
        raw = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        return None
    if len(raw) == 4:
        return raw.hex()
    text = raw.decode("latin-1")
    return text.lower() if re.fullmatch(r"[0-9a-fA-F]{8}", text) else None


def _entries(url: str, body: bytes) -> Iterator[Entry]:
    if b"<!DOCTYPE" in body or b"<!ENTITY" in body:
        raise ValueError("an answer with a document type")
    # Without a document type it cannot define entities.
    tree = ET.fromstring(body)  # noqa: S314
    for response in tree.iterfind("{DAV:}response"):
        href = response.findtext("{DAV:}href", "")
        found = {
            tag: response.findtext(f".//{{DAV:}}{tag}") for tag in ("getcontentlength", "getlastmodified")
        }
        yield Entry(
            url=_sibling(url, href.strip()),
            is_directory=response.find(".//{DAV:}resourcetype/{DAV:}collection") is not None,
            size_bytes=int(found["getcontentlength"] or 0),
            modified_at=_http_time(found["getlastmodified"]),
        )


def _sibling(url: str, href: str) -> str:
    """Return a listed name as a URL in the manner of the one that was asked for."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc, urlsplit(href).path, "", ""))


def _path(url: str) -> str:
    return unquote(urlsplit(url).path).rstrip("/")


def _parent(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=dirname(parts.path.rstrip("/")), query="", fragment=""))


def _where(method: str, url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.netloc.rpartition("@")[2], shortened(method, parts.path)


def _http_time(text: str | None) -> datetime | None:
    try:
        return parsedate_to_datetime(text).astimezone(UTC) if text else None
    except ValueError:
        return None
