"""Schemathesis against the whole API: whatever is sent, no 5xx, and answers as the OpenAPI document says."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import unquote

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, assume, given, settings
from starlette.applications import Starlette
from starlette.routing import Mount

from api.conftest import OPERATOR
from asyncstageout.api.__main__ import document
from fixtures.catalogue import Add, record

HEADERS = {"Authorization": f"Bearer {OPERATOR.name}"}
EXAMPLES = 6
"""For each operation, so that all take well under a minute."""
NOT_CHECKED = [schemathesis.checks.positive_data_acceptance]
"""What fits the document may still name a site, a file or a user that there is not."""

OPERATIONS = [
    (path, method) for path, methods in json.loads(document())["paths"].items() for method in methods
]


@pytest.fixture
def fuzzed(app: FastAPI, add: Add) -> Any:
    """The API where it is in production, with a few files."""
    add(*(record(number) for number in range(3)))
    mounted = Starlette(routes=[Mount("/stageout", app)])
    return schemathesis.openapi.from_asgi("/stageout/api/v1/openapi.json", mounted, headers=HEADERS)


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_nothing_that_is_sent_breaks_it(path: str, method: str, fuzzed: Any) -> None:
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=fuzzed[path][method].as_strategy())
    def send(case: Any) -> None:
        # A line break in a path matches no mount, and so never reaches us.
        assume(not any("\n" in unquote(str(value)) for value in (case.path_parameters or {}).values()))
        case.call_and_validate(headers=HEADERS, excluded_checks=NOT_CHECKED)

    send()
