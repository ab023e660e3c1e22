"""CRAB's parameters in the OpenAPI document: the routes read them as forms, by themselves."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

FORM = "application/x-www-form-urlencoded"


def form_in_body(*required: str, subresources: Iterable[str] = ()) -> dict[str, Any]:
    """Describe parameters of a form; with subresources, only their name is always required."""
    properties: dict[str, Any] = {name: {"type": "string"} for name in required}
    names = list(required)
    if subresources:
        properties["subresource"] = {"type": "string", "enum": list(subresources)}
        names = ["subresource"]
    schema = {"type": "object", "properties": properties, "required": names}
    return {"requestBody": {"required": True, "content": {FORM: {"schema": schema}}}}


def form_in_query(*optional: str, subresources: Iterable[str]) -> dict[str, Any]:
    """Describe parameters of a query."""
    which = {"type": "string", "enum": list(subresources)}
    return {
        "parameters": [
            {"name": "subresource", "in": "query", "required": True, "schema": which},
            *({"name": name, "in": "query", "schema": {"type": "string"}} for name in optional),
        ]
    }
