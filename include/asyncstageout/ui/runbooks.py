"""Runbooks as pages: Markdown of the repository, without any HTML of its own."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from importlib.metadata import files
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt
from markupsafe import Markup

import asyncstageout
from asyncstageout.ui import places

BESIDE = Path(asyncstageout.__file__).parents[2] / "runbooks"
"""In the repository."""
INSTALLED = "share/asyncstageout/runbooks"
"""Among the data of the installed package."""
_TITLE = re.compile(r"\A# (.+)\n")
_LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]*)\)")


class NoRunbook(LookupError):
    """There is no runbook of this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"There is no runbook {name}.")


class Runbook(NamedTuple):
    """A runbook for a page."""

    title: str
    html: Markup


def rendered_runbook(name: str, url: Callable[[str], str]) -> Runbook:
    """Return a runbook as HTML.

    Args:
        url: makes an address of a place; links to other runbooks become such, all others their words.

    Raises:
        NoRunbook: see there.
    """
    found = _TITLE.match(text := _text(name))
    title = found[1] if found else name

    def address(link: re.Match[str]) -> str:
        words, target = link.groups()
        is_runbook = re.fullmatch(r"[a-z0-9-]+\.md", target)
        return (
            f"[{words}]({url(places.runbook(target))})"
            if is_runbook
            else f"{words} ({target.removeprefix('../')})"
        )

    body = _LINK.sub(address, _TITLE.sub("", text))
    return Runbook(title, Markup(_MARKDOWN.render(body)))  # noqa: S704 - HTML in it was escaped


_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")


@cache
def _text(name: str) -> str:
    found = [path for path in files("asyncstageout") or () if path.match(f"{INSTALLED}/{name}")]
    for path in (BESIDE / name, *(Path(str(one.locate())) for one in found)):
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise NoRunbook(name)
