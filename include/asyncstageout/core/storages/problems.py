"""What is wrong with a site's description, and where: for the person at the site who can put it right."""

from __future__ import annotations

from pydantic import ValidationError

MAX_RULES = 2000
"""More is no description of one site."""
MAX_DETAIL_CHARS = 400


class BadDescription(ValueError):
    """A description cannot be used. ``line`` and ``field`` say where, as far as that can be known."""

    def __init__(self, detail: str, *, line: int | None = None, field: str | None = None) -> None:
        # What strangers wrote is quoted: it must fit on a line, and into Postgres.
        shown = "".join(
            char if char.isprintable() else repr(char)[1:-1] for char in detail[:MAX_DETAIL_CHARS]
        )
        detail = shown if len(detail) <= MAX_DETAIL_CHARS else f"{shown}…"
        self.detail, self.line, self.field = detail, line, field
        where = [f"line {line}"] if line else []
        super().__init__(
            ": ".join([", ".join(where + ([field] if field else [])), detail]).removeprefix(": ")
        )


def said(error: ValidationError) -> tuple[str, str]:
    """Return (field, what is wrong) of the first thing that a model refuses."""
    first = error.errors(include_url=False)[0]
    cause = first.get("ctx", {}).get("error")
    return ".".join(str(part) for part in first["loc"]), str(cause or first["msg"])
