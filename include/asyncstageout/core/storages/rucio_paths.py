"""The paths that Rucio makes of a file's scope and name on a deterministic RSE (``rse/translation.py``).

The name of a file is its LFN, so two slashes meet where the name begins. Rucio looks for it just there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from hashlib import md5

_HASHED = re.compile(r"/user/([^/]+)/[0-9a-f]{2}/[0-9a-f]{2}/(/.*)\Z")
_PLAIN = re.compile(r"/user/([^/]+)/(/.*)\Z")


def scope_of(username: str) -> str:
    """Return the scope of a user's files."""
    return f"user.{username}"


def hash_path(username: str, lfn: str) -> str:
    """Spread files over folders by the hash of their name.

    >>> hash_path("alice", "/store/user/alice/x.root")
    '/user/alice/c3/93//store/user/alice/x.root'
    """
    scope = scope_of(username)
    digest = md5(f"{scope}:{lfn}".encode(), usedforsecurity=False).hexdigest()
    return f"/{scope.replace('.', '/')}/{digest[0:2]}/{digest[2:4]}/{lfn}"


def identity_path(username: str, lfn: str) -> str:
    """Put a file below its scope, under its own name."""
    return f"/{scope_of(username).replace('.', '/')}/{lfn}"


def _name_in(pattern: re.Pattern[str], path: str) -> Iterator[tuple[str, str]]:
    if found := pattern.match(path):
        yield found[1], found[2]


TRANSLATIONS: dict[str, Callable[[str, str], str]] = {"hash": hash_path, "identity": identity_path}
NAMES: dict[str, Callable[[str], Iterator[tuple[str, str]]]] = {
    "hash": lambda path: _name_in(_HASHED, path),
    "identity": lambda path: _name_in(_PLAIN, path),
}
"""Back again: (user, LFN) that a path may mean."""
