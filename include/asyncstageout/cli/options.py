"""Options that several commands share, and what they lead to."""

from __future__ import annotations

import getpass
import os
import re
from datetime import timedelta
from typing import Annotated

import psycopg
import typer

from asyncstageout.catalogue.connection import connect
from asyncstageout.cli import Advice
from asyncstageout.sandbox.airflow_env import catalogue_url
from asyncstageout.sandbox.layout import Layout

CatalogueURL = Annotated[
    str | None,
    typer.Option(
        envvar="ASO_CATALOGUE_URL", show_default="the embedded platform's", help="postgresql:// URL."
    ),
]
_DURATION = re.compile(r"(\d+)\s*([mhd])\Z")
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def catalogue_address(url: str | None) -> str:
    """Return the catalogue's URL: the one given, else the embedded platform's.

    Raises:
        Advice: neither is there.
    """
    try:
        return url or catalogue_url(Layout.load())
    except FileNotFoundError as error:
        raise Advice(
            "There is no catalogue yet.",
            "Start the platform with `aso up`, or name one with --catalogue-url or ASO_CATALOGUE_URL.",
        ) from error


def open_catalogue(url: str | None) -> psycopg.Connection:
    """Return a connection to the catalogue that the options name.

    Raises:
        Advice: there is none, or it does not answer.
    """
    try:
        return connect(catalogue_address(url), "aso")
    except psycopg.OperationalError as error:
        raise Advice(
            f"The catalogue does not answer: {str(error).strip()}",
            "`aso status` shows whether the platform runs, `aso up` starts it; `aso doctor` looks further.",
        ) from error


def duration(text: str) -> timedelta:
    """Return a time that a person wrote: ``30m``, ``2h``, ``3d``.

    Raises:
        Advice: it is none.
    """
    found = _DURATION.match(text.strip())
    if found is None:
        raise Advice(f"{text!r} is no time.", "Write it as 30m, 2h or 3d.")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


def who() -> str:
    """Return the account of the person at the keyboard, for the record."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # A container's user often has no name.
        return f"uid {os.getuid()}"
