"""*Audit*: who changed which configuration, from what to what, and what people did to files."""

from __future__ import annotations

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
            empty="Nobody did anything of the kind. A longer time may show something.",
        ),
    ]  # fmt: skip
    return page.show("audit.html", title="Audit", tables=tables, who=who, kind=kind)


def _change_row(change: ConfigChange) -> dict[str, Any]:
    did = "set" if change.before is None else "removed" if change.after is None else "changed"
    return {
        "id": change.change_id,
        "subject": change.subject(),
        "did": did,
        "differences": [_difference(*one) for one in change.differences()],
        "actor": change.actor,
        "at": change.at,
    }


def _difference(name: str, before: Any, after: Any) -> str:
    """Say one difference.

    >>> _difference("max_attempts", None, 5), _difference("regions", ["CERN"], [])
    ('max_attempts: none → 5', 'regions: CERN → empty')
    """
    return f"{name}: {_said(before)} → {_said(after)}"


def _said(value: Any) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case list():
            return ", ".join(map(_said, value)) or "empty"
        case dict():
            return ", ".join(f"{name}={_said(one)}" for name, one in value.items()) or "empty"
    return str(value)
