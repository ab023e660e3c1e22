"""Which files somebody means: those he names, a task's, a user's, a link's, or what is in all of these."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_IDS = 10_000

RequestId = Annotated[str, Field(pattern=r"^[0-9a-f]{56}$")]
"""CRAB's: the sha224 of the source LFN."""
FileNumber = Annotated[int, Field(ge=1, lt=2**63, strict=True)]
TaskName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:+\-]{1,255}$")]
UserName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.\-]{1,30}$")]
SiteName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]{1,100}$")]


class Selection(BaseModel):
    """The files for which everything given holds; at least one thing is given."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ids: Annotated[tuple[FileNumber | RequestId, ...] | None, Field(min_length=1, max_length=MAX_IDS)] = None
    """Numbers or request ids of files, mixed as one likes."""
    task: TaskName | None = None
    username: UserName | None = None
    source: SiteName | None = None
    destination: SiteName | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not any((self.ids, self.task, self.username, self.source, self.destination)):
            raise ValueError("say which files: ids, task, username, source or destination")
        return self

    @property
    def is_of_everybody(self) -> bool:
        """Whether it names neither files nor whose they are: only those who see everybody may mean that."""
        return not (self.ids or self.task or self.username)

    @property
    def numbers(self) -> list[int]:
        return [one for one in self.ids or () if isinstance(one, int)]

    @property
    def request_ids(self) -> list[str]:
        return [one for one in self.ids or () if isinstance(one, str)]
