"""What CRAB's clients send: forms in query and body, lists in Python's own notation or as repeated keys."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated, NoReturn, TypeVar
from urllib.parse import parse_qs

from fastapi import Depends
from starlette.requests import Request

from asyncstageout.api.problems import Flaw, Problem
from asyncstageout.core.crab import read_list
from asyncstageout.core.naming import BadName

MAX_ITEMS = 10_000
"""Of one list; CRAB's own clients send at most some hundred."""
MAX_FIELDS = 20_000

ID = re.compile(r"[0-9a-f]{56}")
USERNAME = re.compile(r"[A-Za-z0-9_.:\-]{1,100}")
TASK = re.compile(r"[A-Za-z0-9_.:+\-]{1,255}")
WORKER = re.compile(r"[A-Za-z0-9_.%\-]{1,100}")
SITE = re.compile(r"[A-Za-z0-9_]{1,100}")
BLOCK = re.compile(r"[A-Za-z0-9_.:/#+\-]{1,1000}")
STATUS = re.compile(r"[A-Za-z_]{1,20}")
ANYTHING = re.compile(r".{0,4000}", re.DOTALL)

ABSENT = ("", "None")
"""Python's None reaches us as text."""

E = TypeVar("E", bound=StrEnum)


def crab_problem(status: int, detail: str, *, kind: str, parameter: str | None = None) -> Problem:
    """Return an error that CRAB's clients can tell people: they look at headers only."""
    printable = "".join(char if " " <= char <= "~" else "?" for char in detail)[:500]
    headers = {"X-Error-HTTP": str(status), "X-Error-ID": kind, "X-Error-Detail": printable}
    errors = [Flaw(detail=detail, parameter=parameter)] if parameter else []
    return Problem(status, detail, kind=kind, errors=errors, headers=headers)


def bad(parameter: str, reason: str) -> NoReturn:
    """Refuse a parameter.

    Raises:
        Problem: 400.
    """
    raise crab_problem(400, f"{parameter}: {reason}", kind="invalid-parameter", parameter=parameter)


class Form:
    """The parameters of one call."""

    def __init__(self, values: Mapping[str, Sequence[str]]) -> None:
        self._values = values
        for name, texts in values.items():
            if any("\x00" in text for text in (name, *texts)):
                bad(name.replace("\x00", ""), "holds a NUL")

    def text(self, name: str, pattern: re.Pattern[str] = ANYTHING) -> str | None:
        """Return a parameter, None if it is not there; refuse one that is not of the pattern."""
        texts = [text for text in self._values.get(name, ()) if text not in ABSENT]
        if not texts:
            return None
        if len(texts) > 1:
            bad(name, "is given more than once")
        if not pattern.fullmatch(texts[0]):
            bad(name, "is malformed")
        return texts[0]

    def required(self, name: str, pattern: re.Pattern[str] = ANYTHING) -> str:
        text = self.text(name, pattern)
        return bad(name, "is missing") if text is None else text

    def number(self, name: str, *, most: int = 2**63 - 1) -> int | None:
        """Return a number from 0 to ``most``, None if it is not there."""
        text = self.text(name)
        return None if text is None else _number(name, text, most)

    def required_number(self, name: str, *, most: int = 2**63 - 1) -> int:
        number = self.number(name, most=most)
        return bad(name, "is missing") if number is None else number

    def word(self, name: str, words: type[E], default: E | None = None) -> E:
        text = self.text(name)
        if text is None and default is not None:
            return default
        return _word(name, text or "", words)

    def items(self, name: str) -> list[str] | None:
        """Return a list, None if it is not there."""
        texts = self._values.get(name)
        if texts is None or list(texts) == ["None"]:
            return None
        try:
            items = [item for text in texts for item in read_list(text)]
        except BadName as error:
            bad(name, str(error))
        if len(items) > MAX_ITEMS:
            bad(name, f"has {len(items):,} items, more than {MAX_ITEMS:,}")
        return items

    def column(self, name: str, count: int) -> list[str | None]:
        """Return a list that goes with another one of so many items; if it is not there, of as many None."""
        items = self.items(name)
        if items is None:
            return [None] * count
        if len(items) != count:
            bad(name, f"has {len(items):,} items, and list_of_ids has {count:,}")
        return [None if item in ABSENT else item for item in items]

    def words(self, name: str, words: type[E], count: int) -> list[E]:
        return [_word(name, item or "", words) for item in self.column(name, count)]

    def numbers(self, name: str, count: int, *, most: int) -> list[int]:
        return [0 if item is None else _number(name, item, most) for item in self.column(name, count)]


def _number(name: str, text: str, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20) or int(text) > most:
        bad(name, f"is no whole number from 0 to {most:,}")
    return int(text)


def _word(name: str, text: str, words: type[E]) -> E:
    try:
        return words(text)
    except ValueError:
        bad(name, f"is none of {', '.join(words)}")


async def read_form(request: Request) -> Form:
    """Return the parameters of a call, of the query and of the body alike."""
    query = request.scope.get("query_string", b"")
    body = await request.body()
    values: dict[str, list[str]] = {}
    for part in (query, body):
        for name, texts in _parsed(part).items():
            values.setdefault(name, []).extend(texts)
    return Form(values)


def _parsed(part: bytes) -> dict[str, list[str]]:
    try:
        return parse_qs(part.decode("latin-1"), keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except ValueError as error:
        raise crab_problem(400, f"More than {MAX_FIELDS:,} parameters.", kind="invalid-parameter") from error


Parameters = Annotated[Form, Depends(read_form)]
