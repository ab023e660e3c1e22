"""What a row of configuration is for (a link, a user, an activity), and which rows are for a file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Scope(NamedTuple):
    """What a row of configuration is for; None names everything."""

    source: str | None = None
    destination: str | None = None
    username: str | None = None
    activity: str | None = None

    def rank(self) -> int:
        """Return the weight of a row, by what it names; no two rows that cover the same file weigh the same.

        ======  ===============  ==================================================================
        weight  what is named    reason
        ======  ===============  ==================================================================
        8       the user         an exception for one person is meant wherever his files go
        4       the activity     an exception for a kind of work holds on all links
        2       the destination  it is written to: full disks and quotas are there
        1       the source       it is only read from
        ======  ===============  ==================================================================
        """
        return (
            8 * (self.username is not None)
            + 4 * (self.activity is not None)
            + 2 * (self.destination is not None)
            + (self.source is not None)
        )

    def __str__(self) -> str:
        """Say it as an operator does: ``T2_IT_Bari → anywhere, user alice``."""
        parts = []
        if self.source or self.destination:
            parts.append(f"{self.source or 'anywhere'} → {self.destination or 'anywhere'}")
        if self.username:
            parts.append(f"user {self.username}")
        if self.activity:
            parts.append(f"activity {self.activity}")
        return ", ".join(parts) or "everything"


class ByScope(Generic[T]):
    """Rows by their scope; finding those for a file costs one look-up per kind of scope that there is."""

    def __init__(self, rows: Iterable[tuple[Scope, T]]) -> None:
        self._rows = dict(rows)
        by_rank = {scope.rank(): tuple(name is not None for name in scope) for scope in self._rows}
        self._kinds = [kind for _, kind in sorted(by_rank.items())]

    def covering(self, file: tuple[str, str, str, str]) -> tuple[T, ...]:
        """Return the rows for a file's (source, destination, user, activity), the most specific last."""
        scopes = (
            Scope(*(name if named else None for name, named in zip(file, kind, strict=True)))
            for kind in self._kinds
        )
        return tuple(self._rows[scope] for scope in scopes if scope in self._rows)
