"""What a storage lets the bearer of a token do: WLCG's scopes, an action and the path that it is for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from asyncstageout.sandbox.jwts import BadToken, Claims, Verifier

ACTIONS: Final = {
    "GET": {"storage.read"},
    "HEAD": {"storage.read", "storage.stat"},
    "PROPFIND": {"storage.read", "storage.stat"},
    "PUT": {"storage.create", "storage.modify"},
    "MKCOL": {"storage.create", "storage.modify"},
    "DELETE": {"storage.modify"},
}
"""Any of these will do."""
REPLACE: Final = frozenset({"storage.modify"})
"""For a PUT where there is a file."""


@dataclass(frozen=True, slots=True)
class Denied:
    """Why not."""

    status: int
    text: str


class TokenDoor:
    """Checks the tokens that callers bring; who brings none is no business of this door."""

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier

    def denied(self, token: str, method: str, host: str, path: str, *, exists: bool) -> Denied | None:
        """Return why a request is refused, None if it is not.

        Args:
            host: as in the request's ``Host``, with the port.
            exists: there is something at the path.
        """
        try:
            claims = self._verifier.verified(token)
        except BadToken as error:
            return Denied(401, f"bad token: {error}")
        if not claims.is_for(f"https://{host.lower()}", f"https://{host.lower().partition(':')[0]}"):
            return Denied(403, "the token is for another storage")
        wanted = REPLACE if method == "PUT" and exists else ACTIONS.get(method)
        if wanted and not any(_covers(claims, action, path) for action in wanted):
            return Denied(403, f"the token gives no {' or '.join(sorted(wanted))} of {path}")
        return None


def _covers(claims: Claims, action: str, path: str) -> bool:
    """A scope is for its path and what is below it (WLCG token profile)."""
    for scope in claims.scopes:
        name, _, allowed = scope.partition(":")
        allowed = allowed.rstrip("/")
        if name == action and (path == allowed or path.startswith(f"{allowed}/")):
            return True
    return False
