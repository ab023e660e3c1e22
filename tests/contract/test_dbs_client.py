"""The client of DBS against what dbs2go answers by its sources, and what stands in front of it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest

from asyncstageout.clients import dbs_errors
from asyncstageout.clients.dbs import DBSClient
from asyncstageout.clients.dbs_errors import DBSError, dbs_error
from asyncstageout.clients.errors import Answer, Transient
from asyncstageout.clients.http import Patience, new_session
from clients.answering import Reply, answering, in_turn
from contract.dbs.cases import CASES, Case, filled

ONE_TRY = Patience(tries=1)
BLOCK = "/QCD_Pt-15to20/rossi-skim-00112233445566778899aabbccddeeff/USER#d0f6fa30-af6f-41ba-98b5-d1be98c93664"
DATASET = BLOCK.partition("#")[0]


def content_of(case: Case) -> bytes:
    if isinstance(case.response, str):
        return case.response.encode()
    response = filled(case.response, case.content, "https://dbs.example")
    text = json.dumps(response if case.status < 300 else [response])
    return text.replace('"<number>"', "1700000000").encode()


def ask(client: DBSClient, case: Case) -> Any:
    """Ask what the case is about."""
    calls: dict[str, Any] = {
        "bulkblocks": lambda: client.insert_block(case.content or b"{}"),
        "fileArray": lambda: list(client.files(["/store/user/x/y/z.root"]).values()),
        "blocks": lambda: client.block(BLOCK),
        "datasets": lambda: client.dataset(DATASET),
        "serverinfo": client.server_info,
        "submit": lambda: client.submit_migration("https://dbs.example/DBSReader", BLOCK),
        "status": lambda: client.migration(1),
        "remove": lambda: client.remove_migration(7),
        "nothing": lambda: client.insert_block(b"{}"),
    }
    return calls[case.api]()


@pytest.mark.parametrize("case", [case for case in CASES if case.client], ids=lambda case: case.name)
def test_it_makes_of_it_what_it_should(case: Case) -> None:
    wanted = dict(case.client or {})
    kind = "text/html" if case.response and isinstance(case.response, str) else "application/json"
    reply = Reply(case.status, content_of(case), {"Content-Type": kind})
    with (
        answering(in_turn(reply)) as server,
        DBSClient(f"{server.url}/DBSWriter", new_session(), patience=ONE_TRY) as client,
    ):
        if "returns" in wanted:
            found = ask(client, case)
            listed = found if isinstance(found, list) else [found] if found is not None else []
            expected = filled(wanted["returns"], None, "https://dbs.example")
            assert [asdict(one) for one in listed] == expected
            return
        raised = getattr(dbs_errors, wanted.pop("raises"))
        if raised is dbs_errors.MigrationAsked:
            error: DBSError = dbs_error("s", "POST", "/x/submit", Answer(case.status, reply.body))
        else:
            with pytest.raises(DBSError) as caught:
                ask(client, case)
            error = caught.value
    assert type(error) is raised
    assert {name: getattr(error, name) for name in wanted} == wanted
    # On one line, and without the hash by which only DBS's operators find anything.
    assert "\n" not in str(error)
    assert "46c8f8c2e6b3" not in str(error)


def test_an_ended_race_is_repeated_and_a_refusal_is_not() -> None:
    by_name = {case.name: case for case in CASES}
    race, done = by_name["a lost race for a release"], by_name["a block is inserted"]
    replies = [Reply(case.status, content_of(case)) for case in (race, race, done)]
    with (
        answering(in_turn(*replies)) as server,
        DBSClient(f"{server.url}/DBSWriter", new_session(), sleep=lambda _s: None) as client,
    ):
        client.insert_block(b"{}")
        assert len(server.asked) == 3
        assert {asked.headers["content-type"] for asked in server.asked} == {"application/json"}
        assert {asked.headers["accept-encoding"] for asked in server.asked} == {"identity"}
    refusals = [case for case in CASES if case.status == 400 and (case.client or {}).get("raises")]
    final = [
        case for case in refusals if not issubclass(getattr(dbs_errors, case.client["raises"]), Transient)
    ]  # type: ignore[index]
    for case in final:
        if case.api != "bulkblocks":
            continue
        with (
            answering(in_turn(Reply(case.status, content_of(case)))) as server,
            DBSClient(f"{server.url}/DBSWriter", new_session(), sleep=lambda _s: None) as client,
        ):
            with pytest.raises(DBSError):
                client.insert_block(b"{}")
            assert len(server.asked) == 1
