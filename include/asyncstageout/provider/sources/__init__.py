"""Sources that ``stageout_intake`` collects from, as the Airflow variable ``stageout_sources`` lists them.

A new kind is a class that fulfils :class:`asyncstageout.steps.intake.Source`, named in the list by its path.
"""

from __future__ import annotations

import json
from pathlib import Path
from pkgutil import resolve_name
from typing import Annotated, Any, Literal

from airflow.sdk import Variable
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from asyncstageout.steps.intake import Source

VARIABLE = "stageout_sources"


class SourcesInvalid(ValueError):
    """The list of sources is wrong; the text names the entry and the field."""

    def __init__(self, where: str, why: str) -> None:
        self.where = where
        super().__init__(f"Airflow variable {VARIABLE}: {where}: {why}")


class UnknownSource(ValueError):
    """There is no source of this name."""

    def __init__(self, name: str, known: list[str]) -> None:
        self.name = name
        super().__init__(
            f"no source {name!r}; the Airflow variable {VARIABLE} has {', '.join(known) or 'none'}"
        )


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.\-]{1,60}$")]
    """Under which consumed objects are remembered."""


class InboxEntry(_Entry):
    kind: Literal["inbox"]
    path: Annotated[str, Field(pattern=r"^([a-z0-9+]+://.+|/.+)$")]
    """Folder of object storage that holds ``inbox/``; ``done/`` and ``quarantine/`` are made beside it."""
    conn_id: str | None = None
    consumed: Literal["move", "keep"] = "move"
    """``keep``: nothing is moved or written there; what was taken in is only remembered in the catalogue."""

    def source(self, *, dry_run: bool) -> Source:  # noqa: ARG002 - nothing is touched unless it is told to
        from asyncstageout.provider.sources.inbox import Inbox  # noqa: PLC0415 - not needed by all

        return Inbox(self.name, self.path, conn_id=self.conn_id, keeps=self.consumed == "keep")


class CRABEntry(_Entry):
    kind: Literal["crab"]
    conn_id: str
    """Connection: host, port, extra as of type ``fts3``."""
    instance: Annotated[str, Field(pattern=r"^[A-Za-z0-9_\-]+$")] = "prod"
    worker: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.\-]{1,100}$")] = "asyncstageout"
    """Under which name files are acquired."""
    vo: str = ""

    def source(self, *, dry_run: bool) -> Source:
        from asyncstageout.provider.sources.crab import CRABSource  # noqa: PLC0415 - not needed by all

        return CRABSource.of(
            self.name, self.conn_id, self.instance, self.worker, vo=self.vo, acquires=not dry_run
        )


class QueryEntry(_Entry):
    kind: Literal["query"]
    conn_id: str
    sql: Annotated[str, Field(pattern=r"(?is)^\s*(select|with)\b")] | None = None
    sql_file: Path | None = None
    overlap_min: Annotated[int, Field(ge=0, le=100_000)] = 60
    """How much later than its time a row may become visible."""

    @model_validator(mode="after")
    def _one_of_both(self) -> QueryEntry:
        if (self.sql is None) == (self.sql_file is None):
            raise ValueError("give either sql or sql_file")
        return self

    def source(self, *, dry_run: bool) -> Source:  # noqa: ARG002 - it only reads
        from asyncstageout.provider.sources.query import QuerySource  # noqa: PLC0415 - not needed by all

        sql = self.sql if self.sql is not None else self._read_sql()
        return QuerySource(self.name, self.conn_id, sql, overlap_min=self.overlap_min)

    def _read_sql(self) -> str:
        assert self.sql_file is not None  # noqa: S101 - one of both is there
        try:
            return self.sql_file.read_text()
        except OSError as error:
            raise SourcesInvalid(self.name, f"{self.sql_file} cannot be read: {error.strerror}") from error


class ClassEntry(_Entry):
    kind: Literal["class"]
    path: Annotated[str, Field(pattern=r"^[\w.]+:\w+$")]
    """``package.module:Class``; called with the name, ``dry_run`` and the options."""
    options: dict[str, Any] = {}

    def source(self, *, dry_run: bool) -> Source:
        try:
            made: Source = resolve_name(self.path)(self.name, dry_run=dry_run, **self.options)
        except (ImportError, AttributeError, TypeError) as error:
            raise SourcesInvalid(self.name, f"{self.path}: {error}") from error
        return made


Entry = InboxEntry | CRABEntry | QueryEntry | ClassEntry
_ENTRY: TypeAdapter[Entry] = TypeAdapter(Annotated[Entry, Field(discriminator="kind")])


def configured() -> dict[str, Entry]:
    """Return the sources by name; empty without the variable.

    :raises SourcesInvalid: the list is wrong.
    """
    text = Variable.get(VARIABLE, default=None)
    return read_entries(text) if text else {}


def read_entries(text: str) -> dict[str, Entry]:
    """Read the list of sources.

    :raises SourcesInvalid: it is no JSON list, an entry is wrong, or two have one name.
    """
    try:
        entries = json.loads(text)
    except ValueError as error:
        raise SourcesInvalid("the whole", f"not JSON: {error}") from error
    if not isinstance(entries, list):
        raise SourcesInvalid("the whole", "not a list")
    found: dict[str, Entry] = {}
    for number, raw in enumerate(entries, start=1):
        label = f"entry {number}"
        if isinstance(raw, dict) and raw.get("name"):
            label += f" ({raw['name']})"
        try:
            entry = _ENTRY.validate_python(raw)
        except ValidationError as error:
            raise SourcesInvalid(label, _words(error)) from error
        if entry.name in found:
            raise SourcesInvalid(label, "another entry has the same name")
        found[entry.name] = entry
    return found


def _words(error: ValidationError) -> str:
    # The first part of a place is the kind, once that is known.
    wrong = {
        ".".join(map(str, one["loc"][1:])) or "entry": one["msg"].removeprefix("Value error, ")
        for one in error.errors(include_url=False)
    }
    return "; ".join(f"{place}: {why}" for place, why in wrong.items())
