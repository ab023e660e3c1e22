"""Transfers without bytes: how long they take and how they end.

``mock://`` follows gfal2's mock plugin, which the recorded answers were made with: ``size``, ``errno`` and
``staging_time`` at the source; ``size_pre``, ``size_post``, ``time`` and ``transfer_errno`` at the
destination.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

from asyncstageout.sandbox.fts.records import File
from asyncstageout.sandbox.fts.verdicts import Failure

SCHEMES = frozenset({"mock", "davs", "https", "root", "gsiftp", "srm", "s3s"})
EXISTS = Failure("DESTINATION", errno.EEXIST, "Destination file exists and overwrite is not enabled")
SIZES_DIFFER = Failure("DESTINATION", errno.EINVAL, "Source and destination file size mismatch")


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a transfer without bytes takes."""

    base_s: float = 0.5
    bandwidth_bytes_s: float | None = None


@dataclass(frozen=True, slots=True)
class Course:
    """What will become of one try."""

    duration_s: float
    size_bytes: int = 0
    """Size of the source; 0 when it could not be told."""
    failure: Failure | None = None


def course(file: File, pace: Pace, *, overwrite: bool) -> Course:
    """Return what becomes of a try that moves no bytes."""
    for url, scope in ((file.source_surl, "SOURCE"), (file.dest_surl, "DESTINATION")):
        if urlsplit(url).scheme not in SCHEMES:
            text = f"Protocol not supported or path/url invalid: {url}"
            return Course(0.0, failure=Failure(scope, errno.EPROTONOSUPPORT, text))
    if file.source_surl.startswith("mock:"):
        return _mock(numbers(file.source_surl), numbers(file.dest_surl), overwrite)
    bandwidth = pace.bandwidth_bytes_s
    return Course(pace.base_s + (file.user_filesize / bandwidth if bandwidth else 0.0), file.user_filesize)


def numbers(url: str) -> dict[str, int]:
    """Return the whole numbers in a URL's query."""
    return {key: int(value) for key, value in parse_qsl(urlsplit(url).query) if value.isdigit()}


def _mock(source: dict[str, int], dest: dict[str, int], overwrite: bool) -> Course:
    if code := source.get("errno"):
        return Course(0.0, failure=Failure("SOURCE", code, os.strerror(code)))
    size_bytes, duration_s = source.get("size", 0), float(dest.get("time", 0))
    if dest.get("size_pre") and not overwrite:
        return Course(0.0, size_bytes, EXISTS)
    if code := dest.get("transfer_errno"):
        return Course(duration_s, size_bytes, Failure("TRANSFER", code, os.strerror(code)))
    return Course(duration_s, size_bytes, SIZES_DIFFER if dest.get("size_post", 0) != size_bytes else None)
