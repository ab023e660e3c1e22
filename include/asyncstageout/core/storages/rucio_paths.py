"""The paths that Rucio makes of a file's scope and name on a deterministic RSE (``rse/translation.py``)."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import md5


def scope_of(username: str) -> str:
    """Return the scope of a user's files."""
    return f"user.{username}"


def hash_path(username: str, lfn: str) -> str:
    """Spread files over folders by the hash of their name.

    >>> hash_path("alice", "/store/user/alice/x.root")
    '/user/alice/c3/93/store/user/alice/x.root'
    """
    scope = scope_of(username)
    digest = md5(f"{scope}:{lfn}".encode(), usedforsecurity=False).hexdigest()
    return f"/{scope.replace('.', '/')}/{digest[0:2]}/{digest[2:4]}/{lfn.lstrip('/')}"


def identity_path(username: str, lfn: str) -> str:
    """Put a file below its scope, under its own name."""
    return f"/{scope_of(username).replace('.', '/')}/{lfn.lstrip('/')}"


TRANSLATIONS: dict[str, Callable[[str, str], str]] = {"hash": hash_path, "identity": identity_path}
