"""A client, and the real API over the catalogue of one test alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, TypeAlias

import pytest
from fastapi import FastAPI

from api.conftest import app, house, pool  # noqa: F401 -- fixtures
from asyncstageout.client import Stageout
from client.serving import serving

As: TypeAlias = Callable[..., Stageout]


@pytest.fixture
def service_url(app: FastAPI) -> Iterator[str]:  # noqa: F811
    with serving(app) as url:
        yield url


@pytest.fixture
def asking_as(service_url: str) -> Iterator[As]:
    """Return a client that asks in somebody's name; waiting takes no time."""
    with ExitStack() as clients:

        def client(name: str, **options: Any) -> Stageout:
            pauses = {"sleep": lambda _: None}
            return clients.enter_context(Stageout(service_url, token=name, **(pauses | options)))

        yield client
