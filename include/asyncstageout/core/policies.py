"""What an operator may set for links, users and activities, and which setting counts when several do.

Each setting comes from the most specific row that sets it; :meth:`asyncstageout.core.scopes.Scope.rank` says
which that is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from asyncstageout.core.scopes import ByScope, Scope

Scheme = Literal["davs", "root", "srm"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:/\- ]{1,255}$")]


class LinkPolicy(BaseModel):
    """How files travel: every setting with what is allowed, what it is by default, and what it means."""

    # What a newer version stored is no reason to stop; what is set here is checked by check_settings.
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    files_per_job: int = Field(200, ge=1, le=2000)
    """Files in one FTS job, at most."""
    max_files_in_flight: int = Field(20_000, ge=0, le=1_000_000)
    """Files in FTS at one time, at most: of the link, or of its user or activity if the row names one."""
    max_bytes_in_flight: int | None = Field(None, ge=0)
    """Their bytes, at most; none: no limit."""
    max_attempts: int = Field(3, ge=1, le=100)
    """Attempts for a file; some kinds of failure have more or fewer (docs/explanation/retries.md)."""
    retry_scale: float = Field(1.0, gt=0, le=100)
    """Factor on every waiting time before a retry."""
    verify_checksum: Literal["both", "source", "target", "none"] = "both"
    """At which ends FTS compares checksums."""
    overwrite: bool = True
    """Replace what is at the destination: a task that runs again writes the same names (so ASO and CRAB)."""
    overwrite_wrong: bool = True
    """Where ``overwrite`` is off: once overwrite what an attempt of our own may have left, if it is wrong."""
    fts_retry: int = Field(-1, ge=-1, le=10)
    """Retries inside FTS; -1 is none, since this service retries and shows why; 0: as FTS is set up."""
    retry_delay_s: int | None = Field(None, ge=0, le=86_400)
    """Time between retries inside FTS; none: as FTS is set up."""
    timeout_s: int | None = Field(None, ge=1, le=604_800)
    """Time for the copy of one file; none: FTS works it out from the size."""
    max_time_in_queue_h: int = Field(10, ge=1, le=720)
    """Hours that a file may wait in FTS before it is cancelled there and goes again."""
    priority: int | None = Field(None, ge=1, le=5)
    """Priority in FTS, 5 first; none: the request's own."""
    fts_activity: Name | None = None
    """Activity (share) in FTS; none: the request's own."""
    reuse: bool = False
    """One session for all files of a job: for many small files between storages that can (not over HTTP)."""
    scitag: int | None = Field(None, ge=65, le=65_535)
    """Mark of the flow for the networks (scitags.org); none: as FTS is set up."""
    credential: Literal["service", "user"] = "service"
    """In whose name files travel."""
    schemes: Annotated[tuple[Scheme, ...], Field(strict=False)] = ()
    """Schemes of the copy in the order of preference, no others; empty: the best that both ends have."""
    fts_servers: Annotated[tuple[Name, ...], Field(strict=False)] = ()
    """FTS servers that may be used, by name; empty: all. Which of them is as the destination wants."""
    breaker_attempts: int = Field(20, ge=0, le=1_000_000)
    """The breaker judges a link by at least so many attempts in 10 minutes; 0 switches it off."""
    breaker_failed_share: float = Field(0.8, gt=0, le=1)
    """From this share of failed attempts on, nothing starts but probes."""
    clean: bool = True
    """Delete the temporary copies of files that have ended (docs/how-to/cleaning.md)."""
    clean_waits_for_publication: bool = True
    """Of a file that is to be published, delete it only when that has ended."""
    clean_failed_after_h: int = Field(168, ge=0, le=8760)
    """Hours for which a file that FAILED can be sent again, before its temporary copy is deleted."""
    clean_killed_after_h: int = Field(24, ge=0, le=8760)
    """The same for one that was KILLED."""
    deletes_per_s: int = Field(50, ge=1, le=10_000)
    """Requests to the source's storage in a second while it is cleaned, at most; set for sources only."""


SETTINGS = frozenset(LinkPolicy.model_fields)
LIMITS = frozenset({"max_files_in_flight", "max_bytes_in_flight"})


class UnknownSetting(ValueError):
    """A policy names a setting that does not exist."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = sorted(names)
        super().__init__(f"no such setting: {', '.join(self.names)}; there are {', '.join(sorted(SETTINGS))}")


class WrongValue(ValueError):
    """A setting was given a value that it cannot have."""

    def __init__(self, name: str, value: object) -> None:
        self.name, self.value = name, value
        super().__init__(f"{name} cannot be {value!r}: it must be {allowed(name)}")


def check_settings(settings: Mapping[str, Any]) -> None:
    """Check what somebody wants to set.

    Raises:
        UnknownSetting: a name is no field of :class:`LinkPolicy`.
        WrongValue: a value has the wrong type or is out of range; the first one is told.
    """
    if unknown := settings.keys() - SETTINGS:
        raise UnknownSetting(unknown)
    try:
        LinkPolicy.model_validate(dict(settings))
    except ValidationError as error:
        name = str(error.errors(include_url=False)[0]["loc"][0])
        raise WrongValue(name, settings[name]) from error


_POWERS = {"k": 3, "M": 6, "G": 9, "T": 12, "P": 15}


def read_value(name: str, text: str) -> Any:
    """Return the value that a person wrote: ``none``, ``true``, ``5``, ``2T``, ``0.5``, ``davs,root``.

    Raises:
        UnknownSetting, WrongValue: as :func:`check_settings`.
    """
    for value in _readings(text.strip()):
        try:
            check_settings({name: value})
        except WrongValue:
            continue
        return value
    raise WrongValue(name, text)


def _readings(text: str) -> Iterator[Any]:
    """Yield what a text may mean; the first that the setting can be is meant."""
    if text == "none":
        yield None
    if text in ("true", "false"):
        yield text == "true"
    yield text
    power = _POWERS.get(text[-1:], 0)
    with suppress(ValueError):
        yield int(text)
    with suppress(ValueError, OverflowError):
        number = float(text[:-1] if power else text) * 10**power
        if number == int(number):
            yield int(number)
        yield number
    yield [part.strip() for part in text.split(",") if part.strip()]


def allowed(name: str) -> str:
    """Return in words what a setting may be, from its definition.

    >>> allowed("max_attempts")
    'a whole number from 1 to 100'
    >>> allowed("priority")
    'a whole number from 1 to 5, or none'
    """
    schema = LinkPolicy.model_json_schema()["properties"][name]
    return ", or ".join(_in_words(option) for option in schema.get("anyOf", [schema]))


def _in_words(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return "one of " + ", ".join(schema["enum"])
    match schema["type"]:
        case "null":
            return "none"
        case "boolean":
            return "true or false"
        case "array":
            return f"a list, each {_in_words(schema['items'])}"
        case "integer" | "number" as kind:
            return f"a {'whole ' if kind == 'integer' else ''}number{_range(schema)}"
    return "letters, digits, spaces and _.:/-, at most 255" if "pattern" in schema else "a text"


def _range(schema: Mapping[str, Any]) -> str:
    least = schema.get("minimum")
    start = f" from {least:,}" if least is not None else f" above {schema['exclusiveMinimum']:g}"
    most = schema.get("maximum")
    return start if most is None else f"{start} to {most:,}"


@dataclass(frozen=True, slots=True)
class PolicyRow:
    """One row of configuration: settings for what it names; None names everything."""

    source: str | None
    destination: str | None
    settings: dict[str, Any]
    username: str | None = None
    activity: str | None = None
    updated_by: str = ""
    updated_at: datetime | None = None

    @property
    def scope(self) -> Scope:
        return Scope(self.source, self.destination, self.username, self.activity)


class Bucket(NamedTuple):
    """Whose files count together against a limit: a link's, or only those of a user or activity on it.

    Whoever has a bucket of his own does not count in the wider one.
    """

    source: str
    destination: str
    username: str | None = None
    activity: str | None = None


class Limit(NamedTuple):
    """How much may be in FTS at one time."""

    files: int
    bytes: int | None
    bucket: Bucket


@dataclass(frozen=True, slots=True)
class _Merged:
    """What some rows come to together."""

    rows: tuple[PolicyRow, ...]
    policy: LinkPolicy
    limited_by: PolicyRow | None


class Policies:
    """All rows of policy, indexed."""

    def __init__(self, rows: Iterable[PolicyRow]) -> None:
        self._rows = ByScope((row.scope, row) for row in rows)
        self._answers: dict[tuple[str, str, str, str], _Merged] = {}
        # Most links have the same rows.
        self._merged: dict[tuple[Scope, ...], _Merged] = {}

    def of(self, source: str, destination: str, username: str = "", activity: str = "default") -> LinkPolicy:
        """Return the policy for a file: each setting from the most specific row that sets it."""
        return self._answer((source, destination, username, activity)).policy

    def bucket_of(
        self, source: str, destination: str, username: str = "", activity: str = "default"
    ) -> Bucket:
        """Return whose files count together with this one against its policy's limits.

        Both limits are counted as the most specific row says that sets one of them.
        """
        row = self._answer((source, destination, username, activity)).limited_by
        if row is None:
            return Bucket(source, destination)
        return Bucket(source, destination, row.username, row.activity)

    def limit_of(self, source: str, destination: str, username: str = "", activity: str = "default") -> Limit:
        """Return how much may be in flight, and whose files count."""
        policy = self.of(source, destination, username, activity)
        bucket = self.bucket_of(source, destination, username, activity)
        return Limit(policy.max_files_in_flight, policy.max_bytes_in_flight, bucket)

    def rows_for(
        self, source: str, destination: str, username: str = "", activity: str = "default"
    ) -> tuple[PolicyRow, ...]:
        """Return the rows that cover a file, the most specific last."""
        return self._answer((source, destination, username, activity)).rows

    def _answer(self, file: tuple[str, str, str, str]) -> _Merged:
        found = self._answers.get(file)
        if found is None:
            rows = self._rows.covering(file)
            scopes = tuple(row.scope for row in rows)
            found = self._merged.get(scopes) or _merge(rows)
            self._answers[file] = self._merged[scopes] = found
        return found


def _merge(rows: Sequence[PolicyRow]) -> _Merged:
    settings: dict[str, Any] = {}
    limited_by = None
    for row in rows:
        settings |= row.settings
        if LIMITS & row.settings.keys():
            limited_by = row
    return _Merged(tuple(rows), LinkPolicy.model_validate(settings), limited_by)
