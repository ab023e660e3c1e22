"""For how long the past is kept: every setting with what is allowed, its default, and what it means."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Days = Annotated[int, Field(ge=1, le=36_500)]


class Retention(BaseModel):
    """How many days what is over is kept. Nothing that living work needs is ever deleted."""

    # What a newer version stored is no reason to stop; what is set here is checked by check_retention.
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    events_days: Days = 90
    """Events of files, and records of the steps that made them. What is still under way keeps its events."""
    history_days: Days = 400
    """Files that ended, their FTS jobs, what CRAB and DBS say of them. Not less than `events_days`."""
    minute_statistics_days: Days = 14
    """Totals by the minute."""
    hour_statistics_days: Days = 400
    """Statistics by the hour. Not less than `events_days`, from which they can be counted again."""
    day_statistics_days: Days = 1100
    """Statistics by the day. Not less than `hour_statistics_days`."""
    cycles_days: Days = 14
    """What cycles saw on each link, and cycles that planned nothing."""
    metadata_days: Days = 30
    """Metadata of files, once they are published, or if no file ever came."""
    intake_days: Days = 400
    """Which objects were taken in. An older one that is still offered is read again, and adds nothing."""
    airflow_days: Days = 30
    """Airflow's own runs, task instances and logs in its database."""
    export_to: Annotated[str, Field(pattern=r"^[A-Za-z0-9+]*(://|/)[^\x00]{1,500}$")] | None = None
    """Folder, or URL of an object storage, where each day is written before it is dropped; none: nowhere."""
    export_conn_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.\-]{1,250}$")] | None = None
    """Airflow connection of that storage."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for shorter, longer in ORDERED:
            if getattr(self, shorter) > getattr(self, longer):
                raise ValueError(f"{longer} must not be less than {shorter}")
        return self


SETTINGS = frozenset(Retention.model_fields)
ORDERED = (
    # Every event must find its file.
    ("events_days", "history_days"),
    # An hour that is counted again must not vanish at once.
    ("events_days", "hour_statistics_days"),
    ("hour_statistics_days", "day_statistics_days"),
)


class WrongRetention(ValueError):
    """Something cannot be kept for so long, or has no such setting."""

    def __init__(self, name: str, value: object, problem: str) -> None:
        self.name, self.value = name, value
        super().__init__(f"{name} cannot be {value!r}: {problem}")


def check_retention(settings: Mapping[str, Any]) -> Retention:
    """Return what counts with these settings, and the defaults for the others.

    Raises:
        WrongRetention: a name is unknown, a value is out of range, or two contradict each other.
    """
    for name in settings.keys() - SETTINGS:
        raise WrongRetention(name, settings[name], f"there are {', '.join(sorted(SETTINGS))}")
    try:
        return Retention.model_validate(dict(settings))
    except ValidationError as error:
        flaw = error.errors(include_url=False)[0]
        name = str(flaw["loc"][0]) if flaw["loc"] else _first(settings, flaw["msg"])
        raise WrongRetention(name, settings.get(name), flaw["msg"].removeprefix("Value error, ")) from error


def _first(settings: Mapping[str, Any], message: str) -> str:
    """Return the setting that a contradiction is about."""
    return next((name for name in settings if name in message), next(iter(settings)))


def read_days(name: str, text: str) -> Any:
    """Return the value that a person wrote: a number of days, a URL, or none."""
    if text.strip() == "none":
        return None
    if name.endswith("_days"):
        with suppress(ValueError):
            return int(text)
    return text.strip()
