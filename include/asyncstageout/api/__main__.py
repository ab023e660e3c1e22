"""Prints the OpenAPI document: ``python -m asyncstageout.api > docs/reference/api/openapi.json``."""

from __future__ import annotations

import json
import sys
from contextlib import AbstractContextManager

from psycopg import Connection
from starlette.requests import Request

from asyncstageout.api.app import create_app
from asyncstageout.api.callers import APIHouse
from asyncstageout.core.callers import Caller


async def _nobody(_: Request) -> Caller:
    raise LookupError("only the document is wanted")


def _nothing() -> AbstractContextManager[Connection]:
    raise LookupError("only the document is wanted")


def document() -> str:
    """Return the document as text, always the same for the same code."""
    app = create_app(APIHouse(catalogue=_nothing, authenticate=_nobody))
    return json.dumps(app.openapi(), indent=1, ensure_ascii=False, sort_keys=True) + "\n"


if __name__ == "__main__":
    sys.stdout.write(document())
