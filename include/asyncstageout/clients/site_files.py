"""Fetches descriptions of sites: from a file, a folder in SITECONF form, an https URL, or Rucio."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import requests

from asyncstageout.clients.errors import Answer, Transient
from asyncstageout.clients.http import Access, Caller, Patience, Silence, new_session
from asyncstageout.core.storages.rucio import SAMPLE

MAX_BYTES = 5_000_000
"""The longest of CMS's files has some ten thousand bytes."""
PATIENCE = Patience(tries=3, connect_s=10, read_s=20, deadline_s=60)
RUCIO = "rucio:"
IN_SITECONF = (Path("storage.json"), Path("PhEDEx/storage.xml"))
"""What is looked for in a site's folder; the first that is there counts."""

_SITE = re.compile(r"T[0-3]_[A-Z]{2}_[A-Za-z0-9_]+\Z")

FileKind = Literal["storage.json", "tfc", "rucio"]


class SourceUnreadable(Exception):
    """A source cannot be read at all; ``location`` says which."""

    def __init__(self, location: str, why: str) -> None:
        self.location, self.why = location, why
        super().__init__(f"{location}: {why}")


class SourceSilent(Transient, SourceUnreadable):
    """A server did not answer, or not properly; it may a little later."""


@dataclass(frozen=True, slots=True)
class SiteFile:
    """One description, or why there is none."""

    name: str
    """For people, and for the record: a path, a URL, ``rucio:RSE``."""
    site: str | None
    """Whose it must be; None: it says so itself."""
    content: bytes = b""
    rse: dict[str, Any] | None = None
    samples: dict[str, str] | None = None
    problem: str | None = None

    @property
    def kind(self) -> FileKind:
        if self.rse is not None or self.name.startswith(RUCIO):
            return "rucio"
        # Perhaps after a byte order mark.
        return "tfc" if b"<" in self.content.lstrip()[:4] else "storage.json"


@dataclass(frozen=True, slots=True)
class Found:
    """What a source holds."""

    location: str
    """As it is remembered: a path is absolute."""
    kind: Literal["siteconf", "storage.json", "tfc", "rucio"]
    files: tuple[SiteFile, ...]


def find(location: str, site: str | None = None, *, ca: str | None = None) -> Found:
    """Return what a source holds.

    Args:
        location: a file; a folder of folders named after sites, each with ``storage.json`` or
            ``PhEDEx/storage.xml``; an https URL; or ``rucio:RSE``.
        site: whose the description is, for a file or URL; otherwise the path may say it.
        ca: certificate authorities for an https URL, file or directory; None: those of certifi.

    Raises:
        SourceUnreadable: it cannot be read, or holds nothing.
    """
    if location.startswith(RUCIO):
        return Found(location, "rucio", (_from_rucio(location),))
    if "://" in location:
        return _single(location, SiteFile(location, site or _site_in(location), _download(location, ca)))
    path = Path(location).expanduser().absolute()
    if path.is_dir():
        return _folder(path, site)
    try:
        content = _read(path)
    except OSError as error:
        raise SourceUnreadable(str(path), error.strerror or str(error)) from error
    return _single(str(path), SiteFile(str(path), site or _site_in(str(path)), content))


def _single(location: str, file: SiteFile) -> Found:
    if len(file.content) > MAX_BYTES:
        raise SourceUnreadable(location, f"more than {MAX_BYTES:,} bytes")
    return Found(location, file.kind, (file,))


def _folder(path: Path, site: str | None) -> Found:
    try:
        if (inside := _description(path)) is not None:
            return find(str(inside), site)
        folders = sorted(one for one in path.iterdir() if _SITE.match(one.name))
    except OSError as error:
        raise SourceUnreadable(str(path), error.strerror or str(error)) from error
    if site is not None:
        folders = [one for one in folders if one.name == site]
    files = tuple(_site_files(folders))
    if not files:
        raise SourceUnreadable(str(path), "no folder of a site with storage.json or PhEDEx/storage.xml")
    return Found(str(path), "siteconf", files)


def _site_files(folders: list[Path]) -> Iterator[SiteFile]:
    for folder in folders:
        try:
            path = _description(folder)
            if path is not None:
                content = _read(path)
                problem = f"more than {MAX_BYTES:,} bytes" if len(content) > MAX_BYTES else None
                yield SiteFile(str(path), folder.name, content, problem=problem)
        except OSError as error:
            yield SiteFile(str(folder), folder.name, problem=error.strerror or str(error))


def _description(folder: Path) -> Path | None:
    return next((folder / name for name in IN_SITECONF if (folder / name).is_file()), None)


def _read(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(MAX_BYTES + 1)


def _site_in(location: str) -> str | None:
    """Return the site that a path names: ``.../T2_XX_Y/PhEDEx/storage.xml``."""
    parents = urlsplit(location).path.split("/")[:-1]
    return next((part for part in reversed(parents) if _SITE.match(part)), None)


class _Judge:
    def no_answer(self, method: str, url: str, silence: Silence) -> Exception:  # noqa: ARG002 - a Judge's form
        if silence.untrusted:
            return SourceUnreadable(url, f"its certificate is not trusted: {silence.cause}")
        return SourceSilent(url, f"no answer: {silence.cause}")

    def refusal(self, method: str, url: str, answer: Answer) -> Exception:  # noqa: ARG002 - a Judge's form
        kind = SourceSilent if answer.status >= 500 or answer.status == 429 else SourceUnreadable
        return kind(url, f"it answered {answer.status}: {answer.text}")


def _download(url: str, ca: str | None) -> bytes:
    if urlsplit(url).scheme != "https":
        raise SourceUnreadable(url, "only https is safe: whoever changes the answer would get the files")
    with new_session(Access(ca=ca)) as session:
        caller = Caller(session, _Judge(), PATIENCE)
        response = caller.ask("GET", url, may_repeat=True, stream=True)
        with response:
            if any(urlsplit(one.url).scheme != "https" for one in (response, *response.history)):
                raise SourceUnreadable(url, "it leads to an address without TLS")
            try:
                return bytes(response.raw.read(MAX_BYTES + 1, decode_content=True))
            except (OSError, requests.RequestException) as error:
                raise SourceSilent(url, f"the answer broke off: {type(error).__name__}") from error


def _from_rucio(location: str) -> SiteFile:
    """Return an RSE's settings and attributes, and what Rucio makes of a sample by each scheme.

    Who we are, and where the server is, stands in Rucio's own configuration (``rucio.cfg``).
    """
    try:
        client_module = import_module("rucio.client")
        errors = import_module("rucio.common.exception")
    except ImportError as error:
        raise SourceUnreadable(
            location, "rucio-clients is not installed: pip install 'asyncstageout[rucio]'"
        ) from error
    rse = location.removeprefix(RUCIO)
    try:
        client = client_module.Client()
        settings = {**client.get_rse(rse), **client.list_rse_attributes(rse), "rse": rse}
        samples = {}
        for scheme in dict.fromkeys(protocol["scheme"] for protocol in settings["protocols"]):
            with suppress(errors.RSEProtocolNotSupported):  # such a protocol is not for reading
                samples[scheme] = client.lfns2pfns(rse, [SAMPLE], operation="read", scheme=scheme)[SAMPLE]
    except (errors.RucioException, requests.RequestException, OSError, KeyError) as error:
        raise SourceUnreadable(location, f"Rucio: {type(error).__name__}: {error}") from error
    return SiteFile(location, rse, rse=settings, samples=samples)
