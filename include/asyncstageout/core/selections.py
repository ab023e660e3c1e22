"""Which files somebody means: those he names, a task's, a user's, a site's, or what is in all of these."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from asyncstageout.core.failures import Category

MAX_IDS = 10_000
APPROVE_ABOVE = 1000
"""Who acts on more files than these, and neither names them, nor one task, is asked whether he means it."""

RequestId = Annotated[str, Field(pattern=r"^[0-9a-f]{56}$")]
"""CRAB's: the sha224 of the source LFN."""
FileNumber = Annotated[int, Field(ge=1, lt=2**63, strict=True)]
TaskName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:+\-]{1,255}$")]
UserName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.\-]{1,30}$")]
SiteName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]{1,100}$")]


def read_id(text: str) -> int | str:
    """Return a file's number or request id, as a person writes it.

    >>> read_id("42"), read_id("0" * 56)
    (42, '00000000000000000000000000000000000000000000000000000000')
    """
    return int(text) if text.isdecimal() and len(text) < 20 else text


class Selection(BaseModel):
    """The files for which everything given holds; at least one thing is given."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ids: Annotated[tuple[FileNumber | RequestId, ...] | None, Field(min_length=1, max_length=MAX_IDS)] = None
    """Numbers or request ids of files, mixed as one likes."""
    task: TaskName | None = None
    username: UserName | None = None
    source: SiteName | None = None
    destination: SiteName | None = None
    site: SiteName | None = None
    """At either end."""

    @classmethod
    def ways(cls) -> tuple[str, ...]:
        """Return the names of the fields that say which files."""
        return tuple(Selection.model_fields)

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not any(getattr(self, name) for name in self.ways()):
            raise ValueError(f"say which files: {', '.join(self.ways())}")
        return self

    @property
    def is_of_everybody(self) -> bool:
        """Whether it names neither files nor whose they are: only those who see everybody may mean that."""
        return not (self.ids or self.task or self.username)

    @property
    def reaches_back(self) -> bool:
        """Whether it means past files too: all that a user or a site ever had is nobody's question."""
        return bool(self.ids or self.task)

    @property
    def numbers(self) -> list[int]:
        return [one for one in self.ids or () if isinstance(one, int)]

    @property
    def request_ids(self) -> list[str]:
        return [one for one in self.ids or () if isinstance(one, str)]


class EndedSelection(Selection):
    """The same, of files that have ended, also by how and when they did."""

    category: Category | None = None
    """Why they failed."""
    ended_from: AwareDatetime | None = None
    """Ended then or later."""
    ended_to: AwareDatetime | None = None
    """Ended earlier."""

    @classmethod
    def ways(cls) -> tuple[str, ...]:
        return tuple(EndedSelection.model_fields)

    @property
    def reaches_back(self) -> bool:
        return bool(super().reaches_back or self.ended_from)
