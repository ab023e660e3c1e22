"""The bodies of the tasks of ``stageout_kill`` and ``stageout_retry``: from a form to a step."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

from psycopg import Connection
from pydantic import ValidationError

from asyncstageout.core.selections import EndedSelection, Selection, read_id
from asyncstageout.provider.fts_clients import HookClients
from asyncstageout.provider.running import run_step
from asyncstageout.steps import acting
from asyncstageout.steps import cancel as cancelling
from asyncstageout.steps.acting import Deed
from asyncstageout.steps.recording import Summary, files

Context = Mapping[str, Any]
XCom = dict[str, Any]
S = TypeVar("S", bound=Selection)

SELECT, APPROVE, KILL, CANCEL, RETRY = "select", "approve", "kill", "cancel", "retry"


class WrongForm(ValueError):
    """A form says something that cannot be; the text names the field."""


def select_kills(context: Context) -> str | None:
    """Return the task that goes on: after an empty form, or none, FTS is told what is to stop already."""
    selection = _selection(context, Selection)
    if selection is None:
        return _select(context, lambda conn: cancelling.to_cancel(conn, now=_now()), then=CANCEL)
    return _select_by_form(context, selection, acting.killing(), then=KILL)


def kill(context: Context) -> XCom:
    # FTS is told by the next task.
    return _do(context, Selection, acting.killing(rings=False), "killed")


def cancel(context: Context) -> XCom:
    """Return the summary, or nothing at all where this run stopped nothing: the rest is skipped then."""

    def step(conn: Connection, step_run: int) -> Summary:
        with HookClients.of(conn) as clients:
            return cancelling.cancel(conn, clients, now=_now(), step_run=step_run)

    summary = run_step(context, step)
    return summary.as_xcom() if summary.counts["jobs"] or context["ti"].xcom_pull(KILL) else {}


def select_retries(context: Context) -> str | None:
    """Return the task that goes on."""
    selection = _selection(context, EndedSelection)
    if selection is None:
        raise WrongForm(f"Say which files: {', '.join(EndedSelection.ways())}")
    return _select_by_form(context, selection, _sending_again(context), then=RETRY)


def retry(context: Context) -> XCom:
    return _do(context, EndedSelection, _sending_again(context), "sent again")


def _sending_again(context: Context) -> Deed:
    return acting.sending_again(killed_too=bool(context["params"]["killed_too"]))


def _select_by_form(context: Context, selection: Selection, deed: Deed, *, then: str) -> str | None:
    params = context["params"]
    if params["dry_run"]:
        then = ""
    return _select(
        context,
        lambda conn: acting.look(conn, deed, selection),
        then=then,
        approve_above=params["approve_above"],
    )


def _select(context: Context, step: Any, *, then: str, approve_above: int | None = None) -> str | None:
    """Look, leave what was found for the tasks that follow, and return which of them does."""
    summary = run_step(context, lambda conn, _: step(conn), name=_who(context))
    count = summary.counts["files"]
    ti = context["ti"]
    ti.xcom_push("summary", summary.as_xcom())
    if not then or not count:
        return None
    if approve_above is None or count <= approve_above:
        return then
    ti.xcom_push("question", f"{then.capitalize()} {files(count)}?")
    return APPROVE


def _do(context: Context, kind: type[Selection], deed: Deed, done: str) -> XCom:
    params, ti = context["params"], context["ti"]
    selection = _selection(context, kind)
    if selection is None:
        raise WrongForm("The form is empty")
    agreed = max(params["approve_above"], ti.xcom_pull(SELECT, key="summary")["files"])
    comment = f"{done} by {_who(context)}" + (f": {params['comment']}" if params["comment"] else "")
    answer = ti.xcom_pull(APPROVE)
    if answer and (approver := (answer.get("responded_by_user") or {}).get("name")):
        comment += f" (approved by {approver})"

    def step(conn: Connection, step_run: int) -> Summary:
        return acting.do(conn, deed, selection, comment=comment, at_most=agreed, step_run=step_run)

    return run_step(context, step, name=_who(context)).as_xcom()


def _selection(context: Context, kind: type[S]) -> S | None:
    """Return which files the form means; None: it says nothing.

    :raises WrongForm: it says something that cannot be.
    """
    given = {name: context["params"].get(name) for name in kind.ways()}
    given = {name: value for name, value in given.items() if value}
    if not given:
        return None
    if "ids" in given:
        given["ids"] = [read_id(str(one)) for one in given["ids"]]
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise WrongForm(f"{field}: {first['msg']}") from error


def _who(context: Context) -> str:
    return context["dag_run"].triggering_user_name or "airflow"


def _now() -> datetime:
    return datetime.now(UTC)
