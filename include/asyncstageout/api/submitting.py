"""Takes requests in for a caller: each gets its result, and a bad one never stops the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from psycopg import Connection
from pydantic_core import from_json

from asyncstageout.api.callers import actor
from asyncstageout.api.problems import Problem
from asyncstageout.catalogue.intake import OUTCOMES, add_transfers
from asyncstageout.core.callers import Caller
from asyncstageout.core.naming import request_id
from asyncstageout.core.requests import Refusal, TransferRequest, read_requests
from asyncstageout.steps.recording import Summary, files, recorded

MAX_REQUESTS = 10_000

Result = dict[str, object]
"""A :class:`asyncstageout.api.models.SubmitResult`, which would cost as much as all the rest."""
Numbered = tuple[int, TransferRequest]


def submit(
    conn: Connection, caller: Caller, requests: Sequence[Numbered], refusals: Iterable[Refusal]
) -> list[Result]:
    """Take requests in, in one transaction, and return a result for each, in the order of their positions.

    Args:
        requests: (position, request), checked field by field.
        refusals: of what did not stand the check.
    """
    his, not_his = _his(caller, requests)
    results = [_refused(refusal) for refusal in (*refusals, *not_his)]

    def step(step_run: int) -> Summary:
        results.extend(
            {"position": a.position, "request_id": a.request_id, "outcome": a.outcome, "reason": a.reason,
             "field": None}
            for a in add_transfers(conn, his, step_run)
        )  # fmt: skip
        return _summary(results)

    recorded(conn, actor(caller, "submit"), step)
    return sorted(results, key=lambda result: int(str(result["position"])))


def read_list(body: bytes) -> tuple[list[Numbered], list[Refusal]]:
    """Read a JSON list of requests, or an object with it as ``transfers``.

    Raises:
        Problem: 400, it is no JSON; 413, there are too many; 422, it is no list.
    """
    try:
        said = from_json(body)
    except ValueError as error:
        raise Problem(400, "The body is no JSON.", kind="not-json") from error
    records = said.get("transfers") if isinstance(said, Mapping) else said
    if not isinstance(records, list):
        raise Problem(422, 'Send a list of requests, or {"transfers": [...]}.', kind="invalid-request")
    if len(records) > MAX_REQUESTS:
        raise Problem(
            413,
            f"At most {MAX_REQUESTS:,} requests at once; send more as application/x-ndjson.",
            kind="too-large",
        )
    return read_requests(records)


def _his(caller: Caller, requests: Sequence[Numbered]) -> tuple[list[Numbered], list[Refusal]]:
    """Tell the requests that the caller may make from those that he may not."""
    others = {name for name in {request.username for _, request in requests} if not caller.may_act_for(name)}
    if not others:
        return list(requests), []
    refusals = [
        Refusal(
            position, request.source_lfn, "username", f"{caller.name} may not submit for {request.username}"
        )
        for position, request in requests
        if request.username in others
    ]
    return [one for one in requests if one[1].username not in others], refusals


def _refused(refusal: Refusal) -> Result:
    return {
        "position": refusal.position,
        "request_id": request_id(refusal.source_lfn) if refusal.source_lfn else None,
        "outcome": "refused",
        "reason": refusal.reason,
        "field": refusal.field,
    }


def _summary(results: Iterable[Result]) -> Summary:
    counts = Counter(str(result["outcome"]) for result in results)
    taken, again, known, refused = (counts[outcome] for outcome in OUTCOMES)
    sentence = f"{files(taken)} taken in, {known:,} known already, {refused:,} refused"
    return Summary(sentence + (f", {again:,} sent again" if again else ""), dict(counts))
