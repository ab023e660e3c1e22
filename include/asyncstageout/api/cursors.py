"""Where a page ended, as clients carry it: opaque, so that what it holds may change."""

from __future__ import annotations

import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Annotated

from fastapi import Query

from asyncstageout.api.problems import Flaw, Problem

Cursor = Annotated[
    str | None,
    Query(max_length=200, description="`next_cursor` of the page before; ask for the same as then."),
]


def cursor_after(kind: str, key: str | int) -> str:
    """Return the cursor of the page behind a row.

    >>> key_of_cursor("transfers", cursor_after("transfers", 7))
    '7'
    """
    return urlsafe_b64encode(f"{kind}:{key}".encode()).decode().rstrip("=")


def key_of_cursor(kind: str, cursor: str) -> str:
    """Return the key of the last row of the page before.

    Raises:
        Problem: 422, the cursor is not of such a list.
    """
    try:
        text = urlsafe_b64decode(cursor.encode() + b"=" * (-len(cursor) % 4)).decode()
    except (binascii.Error, UnicodeError) as error:
        raise _not_ours() from error
    found, _, key = text.partition(":")
    if found != kind or not key or "\0" in key:
        raise _not_ours()
    return key


def number_of_cursor(kind: str, cursor: str | None) -> int | None:
    """Return the number of the last row of the page before; None for the first page."""
    if cursor is None:
        return None
    key = key_of_cursor(kind, cursor)
    if not (key.isascii() and key.isdigit() and len(key) < 19):
        raise _not_ours()
    return int(key)


def _not_ours() -> Problem:
    flaw = Flaw(detail="no cursor of this list", parameter="cursor")
    return Problem(422, "The cursor is not from this list.", kind="invalid-request", errors=[flaw])
