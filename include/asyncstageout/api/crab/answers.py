"""What CRAB's clients get: ``result``, a list, and for rows ``desc`` with the names of their columns."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from psycopg import Connection
from pydantic import BaseModel, Field
from starlette.responses import Response

from asyncstageout.api.callers import actor
from asyncstageout.api.crab.forms import crab_problem
from asyncstageout.catalogue.crab import Conflict, NoSuchFile, Refused
from asyncstageout.catalogue.crab_rows import Table
from asyncstageout.core.callers import Caller
from asyncstageout.steps.recording import Summary, recorded

HEADERS = {"X-REST-Status": "100"}
"""WMCore's word for success."""


class Description(BaseModel):
    """What the rows hold."""

    columns: list[str]


class CrabAnswer(BaseModel):
    """An answer as WMCore's REST servers give it."""

    desc: Description | None = None
    result: list[Any] = Field(description="Rows, or one object that says what was changed.")


def table(found: Table) -> Response:
    """Return rows."""
    desc = json.dumps({"columns": found.columns})
    return _json(f'{{"desc": {desc}, "result": [\n' + ",\n".join(found.rows) + "\n]}\n")


def result(*items: Any) -> Response:
    """Return a list of objects."""
    return _json(json.dumps({"result": items}))


def modified(count: int) -> Response:
    return result({"modified": count})


def told(asked: list[str], done: list[str]) -> Response:
    """Return how many files were changed, and which were not: CRAB says nothing of those."""
    refused = sorted(set(asked) - set(done))
    return result({"modified": len(done)} | ({"refused": refused} if refused else {}))


def _json(body: str) -> Response:
    return Response(body, media_type="application/json", headers=HEADERS)


def on_record(
    conn: Connection, caller: Caller, subresource: str, do: Callable[[int], tuple[str, int]]
) -> None:
    """Run a change under a record of its own.

    Args:
        do: takes the id of the record, returns a sentence and how many files were changed.

    Raises:
        Problem: 400, 404 or 409.
    """

    def step(step_run: int) -> Summary:
        sentence, count = do(step_run)
        return Summary(sentence, {"files": count})

    try:
        recorded(conn, actor(caller, f"crab {subresource}"), step)
    except NoSuchFile as error:
        raise crab_problem(404, str(error), kind="no-such-file") from error
    except Refused as error:
        raise crab_problem(400, str(error), kind="refused") from error
    except Conflict as error:
        raise crab_problem(409, str(error), kind="conflict") from error
