"""Who asks, and for whom he may act."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from enum import StrEnum

EVERYBODY = "*"


class Role(StrEnum):
    USER = "user"
    """Sees and acts on his own files."""
    SERVICE = "service"
    """Submits for the users that it may act for."""
    OPERATOR = "operator"
    """Sees and acts on everything."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody who was authenticated."""

    name: str
    """CERN account, or the service's; stands in the record of what he does."""
    role: Role = Role.USER
    acts_for: Collection[str] = field(default_factory=frozenset)
    """For a service: user names, or :data:`EVERYBODY`."""

    @property
    def is_operator(self) -> bool:
        return self.role is Role.OPERATOR

    @property
    def sees_everybody(self) -> bool:
        return self.is_operator or (self.role is Role.SERVICE and EVERYBODY in self.acts_for)

    def may_act_for(self, username: str) -> bool:
        """Say whether he may see, submit, kill and retry this user's files."""
        return (
            self.sees_everybody
            or username == self.name
            or (self.role is Role.SERVICE and username in self.acts_for)
        )
