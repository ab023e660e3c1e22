"""The sandbox's DBS against what dbs2go answers by its sources: same request, same state, same answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from asyncstageout.clients.http import Access, new_session
from asyncstageout.sandbox.tls import SandboxTLS
from contract.dbs.cases import CASES, Case, content_of, differences, filled
from sandbox.dbs_harness import DBSBench, dbs_bench
from sandbox.harness import certificates

POSTED = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> SandboxTLS:
    return certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def bench(tls: SandboxTLS, tmp_path: Path) -> Iterator[DBSBench]:
    with dbs_bench(tls, tmp_path) as made:
        yield made


def prepare(bench: DBSBench, what: str, how: Any) -> None:
    """Bring about what a case is given."""
    match what:
        case "wait":
            bench.clock.now_s += how
        case "fault":
            bench.fault(**how)
        case "invalidate":
            path = "phys03/DBSWriter/files"
            assert bench.ask("PUT", path, params={"logical_file_name": how, "is_file_valid": "0"}).ok
        case "submit":
            asked = {"migration_url": bench.global_reader, "migration_input": how}
            assert bench.ask("POST", "phys03/DBSMigrate/submit", json=asked).ok
        case "refused":
            answer = bench.ask("POST", "phys03/DBSWriter/bulkblocks", data=content_of(how), headers=POSTED)
            assert answer.status_code == 400
        case instance:
            bench.put(instance, json.loads(content_of(how) or b""))


def asked(bench: DBSBench, case: Case) -> tuple[requests.Response, bytes | None]:
    content = content_of(case.request.get("body"), bench.url)
    headers = case.request.get("headers", POSTED if content is not None else {})
    if case.request.get("anonymous"):
        with new_session(Access(ca=bench.access.ca)) as nobody:
            url = f"{bench.url}/dbs/prod/{case.request['path']}"
            return nobody.request(case.request["method"], url, data=content, headers=headers), content
    answer = bench.ask(case.request["method"], case.request["path"], data=content, headers=headers)
    return answer, content


@pytest.mark.parametrize("case", [case for case in CASES if case.sandbox is None], ids=lambda case: case.name)
def test_it_answers_as_dbs2go(bench: DBSBench, case: Case) -> None:
    for what, how in case.given:
        prepare(bench, what, how)
    answer, content = asked(bench, case)
    assert answer.status_code == case.status, answer.text
    if isinstance(case.response, str):
        assert answer.text == case.response if case.response != "<list>" else len(answer.json()) > 1
        return
    expected = filled(case.response, content, bench.url)
    if case.status < 300:
        assert differences(expected, answer.json()) == []
        return
    [found] = answer.json()
    assert differences(expected, found) == []
    error = found["error"]
    text = f"Function:{error['function']} Message:{error['message']} Error: "
    assert found["message"].startswith(f"DBSError Code:{error['code']} Description:")
    assert found["message"].endswith(error["reason"])
    assert text in found["message"]
    assert (found["exception"], found["type"], found["http"]["code"]) == (
        case.status,
        "HTTPError",
        case.status,
    )
    assert (found["http"]["method"], set(error)) == (
        case.request["method"],
        {"reason", "message", "function", "code", "stacktrace"},
    )


def test_every_case_says_where_it_is_from() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
    assert all(case.source for case in CASES)
    assert all(case.client or case.status < 300 or case.sandbox is None for case in CASES)
