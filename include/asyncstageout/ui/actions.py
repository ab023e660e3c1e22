"""What a page lets people do: a form in a dialog, which the script sends to the REST API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class Field:
    """One thing that is asked in a dialog."""

    name: str
    """Of the member of the JSON body."""
    label: str
    kind: Literal["text", "lines", "choice", "lasting", "number", "yes"] = "text"
    """``lasting``: seconds from now, of which the time when it ends is sent; ``yes``: a box to tick."""
    required: bool = False
    hint: str = ""
    value: str = ""
    choices: Sequence[tuple[str, str]] = ()
    """(value, what is said) of a choice or of how long it lasts; an empty value is not sent."""


REASON = Field("reason", "Reason", "lines", required=True, hint="Users read it while their files wait.")
COMMENT = Field("comment", "Comment", "lines", required=True, hint="Stays in the history of each file.")


@dataclass(frozen=True, slots=True)
class Action:
    """What a template's ``act`` macro shows: a button and its dialog."""

    name: str
    """Of the dialog in the page."""
    title: str
    """On the button and above the form: ``Pause``."""
    path: str
    """Of the REST API, below ``/api/v1``."""
    sentence: str
    """What it does to what, before anything is sent."""
    fields: Sequence[Field] = ()
    body: Mapping[str, object] = field(default_factory=dict)
    """Members that nobody is asked for."""
    method: Literal["POST", "PUT", "DELETE"] = "POST"
    counts_first: bool = False
    """The API is asked with ``dry_run`` when the dialog opens, and its sentence stands above the button."""
    is_grave: bool = False
    """It stops or deletes something: the button is red."""
