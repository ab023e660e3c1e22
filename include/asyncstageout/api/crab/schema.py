"""CRAB's parameters in the OpenAPI document: the routes read them as forms, by themselves."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

FORM = "application/x-www-form-urlencoded"


def form_in_body(
    *required: str, optional: Iterable[str] = (), subresources: Iterable[str] = ()
) -> dict[str, Any]:
    """Describe parameters of a form; with subresources, only their name is always required."""
    properties: dict[str, Any] = {name: {"type": "string"} for name in (*required, *optional)}
    names = list(required)
    if subresources:
        properties["subresource"] = {"type": "string", "enum": list(subresources)}
        names = ["subresource"]
    schema = {"type": "object", "properties": properties, "required": names}
    return {"requestBody": {"required": True, "content": {FORM: {"schema": schema}}}}


def form_in_query(
    *optional: str, required: Iterable[str] = (), subresources: Iterable[str] = ()
) -> dict[str, Any]:
    """Describe parameters of a query; the name of a subresource is always required."""
    text = {"type": "string"}
    which = [("subresource", True, text | {"enum": names})] if (names := list(subresources)) else []
    others = [(name, True, text) for name in required] + [(name, False, text) for name in optional]
    return {
        "parameters": [
            {"name": name, "in": "query", "required": is_required, "schema": schema}
            for name, is_required, schema in which + others
        ]
    }
