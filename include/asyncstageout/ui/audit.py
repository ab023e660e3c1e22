"""*Audit*: who changed which configuration, from what to what, and what people did to files."""

from __future__ import annotations

import re
from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response

from asyncstageout.api.callers import Catalogue, Operator
from asyncstageout.catalogue.config_changes import ConfigChange, config_changes
from asyncstageout.catalogue.run_views import Stretch, acts
from asyncstageout.ui import places
from asyncstageout.ui.jobs import Name
from asyncstageout.ui.page import Looking
from asyncstageout.ui.runs import going_back, step_row
from asyncstageout.ui.tables import Column, Shown

router = APIRouter()

_TIME = re.compile(r"^(\d{4}-\d\d-\d\d)T(\d\d:\d\d)[\d:.]*\+00:00$")
"""As Postgres writes a moment into JSON."""

_CHANGES = (
    Column("subject", "What"),
    Column("did", "Done to it"),
    Column("differences", "From what to what", Shown.LINES),
    Column("actor", "Who"),
    Column("at", "When", Shown.TIME),
)
_ACTS = (
    Column(
        "step", "Act", place=lambda row: places.run(row["dag_id"], row["run_id"]) if row["dag_id"] else None
    ),
    Column("conditions", "Outcome", Shown.CONDITIONS),
    Column("sentence", "What came of it"),
    Column("counts", "Counts", Shown.LINES),
    Column("actor", "Who"),
    Column("started_at", "When", Shown.TIME),
)


@router.get("/audit", name="audit")
def audit(page: Looking, _: Operator, conn: Catalogue, who: Name = "", kind: Name = "") -> Response:
    """Show who did what, in both lists with the same filters."""
    since, actor, part = page.now - page.span.length, who.strip() or None, kind.strip() or None

    def changed(before: int | None, limit: int) -> list[dict[str, Any]]:
        found = config_changes(conn, since=since, actor=actor, kind=part, before=before, limit=limit)
        return [_change_row(one) for one in found]

    def acted(before: int | None, limit: int) -> list[dict[str, Any]]:
        found = acts(conn, Stretch(since, before, limit), actor=actor, kind=part)
        return [step_row(page, one) for one in found]

    tables = [
        going_back(
            page, "changes", f"Changes of the configuration, {page.span.words}", _CHANGES, changed,
            empty="Nothing of the kind was changed. A longer time may show something.",
        ),
        going_back(
            page, "acts", f"What people did, {page.span.words}", _ACTS, acted,
            empty="Nothing of the kind was done. A longer time may show something.",
        ),
    ]  # fmt: skip
    return page.show("audit.html", title="Audit", tables=tables, who=who, kind=kind)


def _change_row(change: ConfigChange) -> dict[str, Any]:
    did = "set" if change.before is None else "removed" if change.after is None else "changed"
    return {
        "id": change.change_id,
        "subject": change.subject(),
        "did": did,
        "differences": [said for one in change.differences() if (said := _difference(did, *one))],
        "actor": change.actor,
        "at": change.at,
    }


def _difference(did: str, name: str, before: Any, after: Any) -> str:
    """Say one difference; of what is new or gone nothing that is empty.

    >>> _difference("changed", "max_attempts", None, 5), _difference("changed", "regions", ["CERN"], [])
    ('max attempts: none → 5', 'regions: CERN → none')
    >>> _difference("set", "reason", None, "upgrade"), _difference("set", "is_downtime", None, False)
    ('reason: upgrade', '')
    """
    name = name.replace("_", " ")
    if did == "changed":
        return f"{name}: {_said(before)} → {_said(after)}"
    value = after if did == "set" else before
    return f"{name}: {_said(value)}" if value or (value == 0 and value is not False) else ""


def _said(value: Any) -> str:
    match value:
        case None | "" | [] | {}:
            return "none"
        case bool():
            return "yes" if value else "no"
        case list():
            return ", ".join(map(_said, value))
        case dict():
            return ", ".join(f"{name}={_said(one)}" for name, one in value.items())
    return _TIME.sub(r"\1 \2 UTC", str(value))
