"""In whose name FTS acts: the service's own, or a user's with his VO, group and role."""

from __future__ import annotations

import re
from typing import NamedTuple, Self

SERVICE = "service"
"""Name of the service's own identity; no user may have it."""

_PARTS = re.compile(
    r"(?P<username>[A-Za-z0-9_.\-]+)(?:@(?P<vo>[^+@]*))?(?:\+(?P<group>[^+]*))?(?:\+(?P<role>.*))?\Z"
)


class Identity(NamedTuple):
    """Whose credential a submission is made with.

    Written ``alice``, ``alice@cms``, ``alice@cms+uscms+production`` (user, VO, VOMS group and role); the
    service's own is ``service`` or ``service@cms``.
    """

    username: str
    vo: str = ""
    """Empty: the installation's only one."""
    vo_group: str = ""
    vo_role: str = ""

    @property
    def is_service(self) -> bool:
        return self.username == SERVICE

    def __str__(self) -> str:
        text = f"{self.username}@{self.vo}" if self.vo else self.username
        if self.vo_role:
            return f"{text}+{self.vo_group}+{self.vo_role}"
        return f"{text}+{self.vo_group}" if self.vo_group else text

    @classmethod
    def read(cls, text: str) -> Self:
        """Return the identity that is written so.

        Raises:
            ValueError: it is not written like one.
        """
        found = _PARTS.match(text)
        if found is None:
            raise ValueError(f"an identity is written user[@vo][+group[+role]]: {text!r}")
        return cls(found["username"], found["vo"] or "", found["group"] or "", found["role"] or "")

    def of_service(self) -> Identity:
        """Return the service's own identity in the same VO."""
        return Identity(SERVICE, self.vo)
