"""Reads the cases beside it; see the README."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BODIES: dict[str, Any] = json.loads((HERE / "bodies.json").read_text())


@dataclass(frozen=True)
class Case:
    name: str
    source: str
    seen: str | None
    given: list[list[Any]]
    request: dict[str, Any]
    status: int
    response: Any
    client: dict[str, Any] | None
    sandbox: str | None

    @property
    def api(self) -> str:
        path: str = self.request["path"].partition("?")[0]
        return path.rpartition("/")[2]

    @property
    def content(self) -> bytes | None:
        return content_of(self.request.get("body"))


def read(name: str) -> list[Case]:
    return [Case(**row) for row in json.loads((HERE / f"{name}.json").read_text())]


CASES = [case for name in ("bulkblocks", "readers", "migration") for case in read(name)]


def content_of(body: Any, url: str = "") -> bytes | None:
    """Return a body as it is sent."""
    if body is None:
        return None
    if isinstance(body, dict) and "raw" in body:
        return str(body["raw"]).encode()
    value = body["json"] if isinstance(body, dict) and "json" in body else _built(body)
    return json.dumps(value).replace("<url>", url).encode()


def _built(body: Any) -> Any:
    if isinstance(body, str):
        return deepcopy(BODIES[body])
    built = _built(body["of"])
    for path, value in body["with"].items():
        *above, last = path.split(".")
        at = built
        for part in above:
            at = at[int(part)] if isinstance(at, list) else at[part]
        if value == "<delete>":
            del at[last]
        else:
            at[int(last) if isinstance(at, list) else last] = value
    return built


def filled(expected: Any, content: bytes | None, url: str = "") -> Any:
    """Put the hash of the request and the server's URL where they belong."""
    digest = sha256(content or b"").hexdigest()
    return json.loads(json.dumps(expected).replace("<hash>", digest).replace("<url>", url))


def differences(expected: Any, found: Any, at: str = "") -> list[str]:
    """Say where an answer is not what is expected; of objects in lists, keys beyond those expected are fine."""
    if expected == "<any>":
        return [] if isinstance(found, str) else [f"{at}: {found!r} is no text"]
    if expected == "<number>":
        return [] if isinstance(found, int) else [f"{at}: {found!r} is no number"]
    if expected == "<list>":
        return [] if isinstance(found, list) and found else [f"{at}: {found!r} is no list of something"]
    if isinstance(expected, dict) and isinstance(found, dict):
        return [
            line
            for key, value in expected.items()
            for line in differences(value, found.get(key), f"{at}.{key}")
        ]
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        pairs = enumerate(zip(expected, found, strict=True))
        return [line for number, (one, two) in pairs for line in differences(one, two, f"{at}[{number}]")]
    return [] if expected == found else [f"{at}: {found!r} instead of {expected!r}"]
