"""Finds the regular expression of a stranger that would hold a cycle up, at the cost of a child process.

Nothing in this process can stop a match, and an engine without backtracking (RE2) does not know the
look-aheads that sites use. So each pattern is given the names that suit it worst: every repetition in it is
fed to the longest name, then spoilt. The kernel ends the child when one match has used its CPU time, however
busy the machine is. This file runs as a script, without the package: it starts in milliseconds.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from re import _parser  # type: ignore[attr-defined]
from typing import Any

MATCH_S = 0.05
"""CPU time for one match of one name. An honest pattern needs some microseconds."""
PATTERN_S = 2.0
"""CPU time for everything that is tried on one pattern."""
WALL_S = 120.0
"""For all of them; a machine that is so busy, or a file with so many patterns, can be tried again."""

_MANY = 10
"""A repetition that may go on as long as this is fed to the end."""
_SPOILERS = ("", "~", "/~")
_FILLERS = "a1_/."
_MAX_FILLERS = 10


class SlowPattern(ValueError):
    """A pattern may hold us up for ever."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        super().__init__(f"{pattern!r} takes too long on some names: it repeats what repeats itself")


class Undecided(RuntimeError):
    """The patterns could not be tried."""


def check_patterns(patterns: Sequence[str], longest_chars: int) -> None:
    """Try patterns with hostile names up to a length.

    Raises:
        SlowPattern: one is too slow.
        Undecided: there was not enough time, or no process.
    """
    wanted = list(dict.fromkeys(patterns))
    if not wanted:
        return
    asked = json.dumps({"patterns": wanted, "longest_chars": longest_chars})
    try:
        child = subprocess.run(  # noqa: S603 - this file, by the Python that runs it
            [sys.executable, "-I", "-S", __file__],
            input=asked,
            capture_output=True,
            text=True,
            timeout=WALL_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Undecided(f"the patterns could not be tried: {error}") from error
    begun = child.stdout.split()
    if child.returncode == -signal.SIGPROF and begun:
        raise SlowPattern(wanted[int(begun[-1])])
    if child.returncode != 0:
        raise Undecided(f"the patterns could not be tried: {child.stderr.strip()[-300:]}")


def hostile_names(pattern: str, longest_chars: int) -> Iterator[str]:
    """Yield names that make a pattern work hard."""
    tree = _parser.parse(pattern)
    literals = (char for char in pattern if char.isalnum() or char in "/_-.")
    fillers = list(dict.fromkeys([*_FILLERS, *literals]))[:_MAX_FILLERS]
    for filler in fillers:
        yield "/store/" + filler * longest_chars
        # Alternatives that overlap are fed with the first of them, and with the last.
        for branch in (0, -1) if "|" in pattern else (0,):
            yield from _attacks(tree, filler, branch, "", longest_chars)


def _attacks(items: Any, filler: str, branch: int, before: str, longest_chars: int) -> Iterator[str]:
    for item in items:
        code, value = item
        name = str(code)
        if "REPEAT" in name:
            if value[1] > _MANY:
                unit = _sample(value[2], filler, branch) or filler
                for spoiler in _SPOILERS:
                    yield before + unit * (longest_chars // len(unit)) + spoiler
            yield from _attacks(value[2], filler, branch, before, longest_chars)
        else:
            for inner in _inside(name, value):
                yield from _attacks(inner, filler, branch, before, longest_chars)
        before += _sample([item], filler, branch)


def _inside(name: str, value: Any) -> list[Any]:
    """Return the parts of an item that are sequences of items themselves."""
    if name == "SUBPATTERN":
        return [value[-1]]
    if name == "BRANCH":
        return list(value[1])
    if name == "ASSERT":
        return [value[1]]
    return [value] if name == "ATOMIC_GROUP" else []


def _sample(items: Any, filler: str, branch: int) -> str:
    """Return a short text that a sequence of items matches, as good as can be guessed."""
    return "".join(_sample_of(str(code), value, filler, branch) for code, value in items)


def _sample_of(name: str, value: Any, filler: str, branch: int) -> str:
    if name == "LITERAL":
        return chr(value)
    if name in ("ANY", "NOT_LITERAL"):
        return filler
    if name == "IN":
        return _member(value, filler)
    if "REPEAT" in name:
        return _sample(value[2], filler, branch) * min(int(value[0]), _MANY)
    inside = _inside(name, value)
    return _sample(inside[branch], filler, branch) if inside and name != "ASSERT" else ""


def _member(choices: Any, filler: str) -> str:
    first = ""
    for code, value in choices:
        name = str(code)
        if name in ("NEGATE", "CATEGORY"):
            return filler
        low, high = value if name == "RANGE" else (value, value)
        if low <= ord(filler) <= high:
            return filler
        first = first or chr(low)
    return first


def _try(pattern: str, longest_chars: int) -> None:
    regex = re.compile(pattern)
    began_s = time.process_time()
    for name in hostile_names(pattern, longest_chars):
        signal.setitimer(signal.ITIMER_PROF, MATCH_S)
        regex.match(name)
        signal.setitimer(signal.ITIMER_PROF, 0)
        if time.process_time() - began_s > PATTERN_S:
            signal.raise_signal(signal.SIGPROF)


def _main() -> None:
    asked = json.load(sys.stdin)
    for number, pattern in enumerate(asked["patterns"]):
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()
        _try(pattern, asked["longest_chars"])


if __name__ == "__main__":
    _main()
