"""What reasons of failures have in common: the same words, whichever file, host and time they are about."""

from __future__ import annotations

import re
from functools import lru_cache

MAX_CHARS = 240
"""So much of a reason tells it from others; what follows is most often a trace."""
REMEMBERED = 4096

# Of a word; the first match wins.
_KINDS = (
    ("kept", r"\[-?\d{1,4}\]"),  # an errno
    ("url", r"[a-z][a-z0-9+.\-]*://[^,;'\")>\]]+"),
    ("id", r"\b[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}\b"),
    ("path", r"(?<![\w<])/(?:[\w.+~=%@\-]+/*)+"),
    ("host", r"\[[0-9a-fA-F]*:[0-9a-fA-F:.]+\](?::\d+)?|\b\d{1,3}(?:\.\d{1,3}){3}\b(?::\d+)?"),
    ("host", r"(?<![\w\-])[A-Za-z0-9][A-Za-z0-9\-]*(?:\.[A-Za-z0-9\-]+)*\.[A-Za-z]{2,24}\b(?::\d+)?"),
    ("time", r"\b\d{4}-\d\d-\d\d(?:T[\d:.]+)?(?:Z|[+-]\d\d:?\d\d)?\b|\b\d\d:\d\d:\d\d\b(?:[.,]\d+)?Z?"),
    ("id", r"\b(?=[a-fA-F]*\d)[0-9a-fA-F]{8,}\b"),
    ("N", r"(?<![\w.])[+-]?\d+(?:(?:st|nd|rd|th)\b|(?:[.,]\d+)*(?=(?:[kMGT]?i?B|m?s|min|h)?\b))|(?<=_)\d+\b"),
)  # fmt: skip
_PATTERN = re.compile("|".join(f"(?P<{kind}_{place}>{text})" for place, (kind, text) in enumerate(_KINDS)))
_MAY_DIFFER = re.compile(r"[\d/]|\w\.\w")
_CODE = re.compile(r"\(?\d{1,3}\)?[.,:;)]*\Z")
_BEFORE_CODES = frozenset({"http", "code", "error", "errno", "status"})
"""The number after these words tells one cause from another."""


@lru_cache(REMEMBERED)
def common_words(reason: str) -> str:
    """Return a reason with ``<url>``, ``<path>``, ``<host>``, ``<id>``, ``<time>``, ``<N>`` for what differs.

    Codes stay: they tell one cause from another.

    >>> common_words("Copy failed (3rd pull). Last attempt: copy HTTP 507 : Insufficient Storage")
    'Copy failed (<N> pull). Last attempt: copy HTTP 507 : Insufficient Storage'
    >>> common_words("SOURCE [2] davs://se.example.test:8443/cms/out_7.root No such file, after 12 attempts")
    'SOURCE [2] <url> No such file, after <N> attempts'
    >>> common_words("Result curl error (56): no data from se-1.example.test:1094 (192.0.2.7) in 30.5s")
    'Result curl error (56): no data from <host> (<host>) in <N>s'
    >>> common_words("mkdir() of /store/user/a/b failed at 2026-11-27T10:00:00Z for out_17.root")
    'mkdir() of <path> failed at <time> for out_<N>.root'
    >>> common_words("checksum mismatch: 0a1b2c3d is not ad12ff90; size 1,234,567 is not 12")
    'checksum mismatch: <id> is not <id>; size <N> is not <N>'
    """
    words, before = [], ""
    for word in reason[: 2 * MAX_CHARS].split():
        is_code = before in _BEFORE_CODES and _CODE.match(word)
        before = word.strip(":,;(").lower()
        words.append(word if is_code or not _MAY_DIFFER.search(word) else _PATTERN.sub(_kind, word))
    return " ".join(words)[:MAX_CHARS]


def _kind(found: re.Match[str]) -> str:
    kind = (found.lastgroup or "").rpartition("_")[0]
    return found.group() if kind == "kept" else f"<{kind}>"
