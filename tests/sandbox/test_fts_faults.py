"""Faults: the same seed is the same failures; the API's misbehaviour; the knobs."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from pydantic import ValidationError

from asyncstageout.sandbox.faults import MIX, FaultPlan, Faults, FileFault, LinkFault, Mix, mixed
from asyncstageout.sandbox.fts.service import Options
from asyncstageout.sandbox.tls import SandboxTLS
from sandbox.harness import Bench, bench, certificates

LINK = ("davs://a", "davs://b")
SOURCES = [f"davs://a/store/temp/user/file_{n}.root" for n in range(4000)]


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> SandboxTLS:
    return certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def at(tls: SandboxTLS, tmp_path: Path) -> Iterator[Bench]:
    with bench(tls, tls.ca.parent, Options(state=tmp_path, with_bytes=False)) as made:
        yield made


def submission(name: str = "x", **params: Any) -> dict[str, Any]:
    file = {"sources": [f"davs://a.test/{name}"], "destinations": [f"davs://b.test/{name}"]}
    return {"files": [file], "params": params}


# -- choosing --------------------------------------------------------------------------------------


def test_two_runs_are_the_same_whatever_their_order() -> None:
    plan = FaultPlan(seed=7, mix=Mix(rate=0.3), links=(LinkFault(reason="SOURCE [5] x", rate=0.1, tries=1),))
    there, back = Faults(plan), Faults(plan)
    for _ in range(3):
        one = {source: there.transfer(source, "davs://b/y", LINK) for source in SOURCES}
        two = {source: back.transfer(source, "davs://b/y", LINK) for source in reversed(SOURCES)}
        assert one == two
    other = Faults(plan.model_copy(update={"seed": 8}))
    assert any(
        other.transfer(s, "davs://b/y", LINK) != Faults(plan).transfer(s, "davs://b/y", LINK) for s in SOURCES
    )


def test_the_mix_is_that_of_production() -> None:
    plan = FaultPlan(seed=1, mix=Mix(rate=1.0, transient=1.0))
    found = [mixed(plan, source) for source in SOURCES]
    shares = Counter(kind.reason for kind, _tries in filter(None, found))
    total = sum(kind.weight for kind in MIX)
    for kind in MIX:
        assert shares[kind.reason] / len(SOURCES) == pytest.approx(kind.weight / total, abs=0.025)
    # By nature, or for a while: quota and permission do not pass, the rest does after one or two tries.
    for kind, tries in filter(None, found):
        assert (tries is None) == kind.is_permanent
        assert tries in (None, 1, 2)


def test_rate_and_tries() -> None:
    plan = FaultPlan(links=(LinkFault(source="davs://a*", reason="r", rate=0.25, tries=2),))
    faults = Faults(plan)
    rounds = [sum(bool(faults.transfer(s, "davs://b/y", LINK)) for s in SOURCES) for _ in range(3)]
    assert rounds[0] == rounds[1] == pytest.approx(1000, rel=0.15)
    assert rounds[2] == 0
    assert faults.transfer(SOURCES[0], "davs://b/y", ("davs://z", "davs://b")) is None


def test_files_come_before_links() -> None:
    plan = FaultPlan(files=(FileFault(path="_7.root", reason="file"),), links=(LinkFault(reason="link"),))
    faults = Faults(plan)
    assert faults.transfer(SOURCES[7], "davs://b/y", LINK) == "file"
    assert faults.transfer(SOURCES[8], "davs://b/y", LINK) == "link"


def test_the_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "faults.json"
    faults = Faults(path=path)
    assert faults.plan == FaultPlan()
    path.write_text(json.dumps({"seed": 3}))
    faults.reload()
    assert faults.plan.seed == 3
    path.write_text('{"sede": 4}')
    os.utime(path, ns=(1, 1))
    with pytest.raises(ValidationError):
        faults.reload()
    assert faults.plan.seed == 3


# -- in the service --------------------------------------------------------------------------------


def test_a_mixed_failure_reaches_the_file(at: Bench) -> None:
    plan = {"links": [{"reason": "DESTINATION [1] HTTP 403 : Permission refused"}]}
    assert at.ask("alice", "PUT", "/sandbox/faults", plan).status_code == 200
    job_id = at.submit(submission())
    at.finish(job_id)
    assert at.status(job_id)["files"][0]["reason"] == "DESTINATION [1] HTTP 403 : Permission refused"


def test_a_queue_timeout_of_the_mix_cancels(at: Bench) -> None:
    reason = MIX[1].reason
    at.ask("alice", "PUT", "/sandbox/faults", {"files": [{"path": "/x", "reason": reason, "tries": 1}]})
    first = at.submit(submission())
    at.finish(first)
    assert at.status(first)["job_state"] == "CANCELED"
    assert at.status(first)["files"][0]["reason"] == reason
    again = at.submit(submission())
    at.finish(again)
    assert at.status(again)["job_state"] == "FINISHED"


def test_tries_are_remembered_over_a_restart(tls: SandboxTLS, tmp_path: Path) -> None:
    path = tmp_path / "faults.json"
    path.write_text(json.dumps({"links": [{"reason": "SOURCE [5] x", "tries": 1}]}))
    options = Options(state=tmp_path, with_bytes=False, faults=path)
    ends = []
    for _ in range(2):
        with bench(tls, tls.ca.parent, options) as at:
            job_id = at.submit(submission())
            at.finish(job_id)
            ends.append(at.status(job_id)["job_state"])
    assert ends == ["FAILED", "FINISHED"]


def test_status_and_html(at: Bench) -> None:
    at.ask("alice", "PUT", "/sandbox/faults", {"api": [{"action": "status", "path": "/jobs.*", "count": 2}]})
    answers = [at.ask("alice", "GET", "/jobs") for _ in range(3)]
    assert [a.status_code for a in answers] == [503, 503, 200]
    assert answers[0].headers["Content-Type"].startswith("text/html")
    assert at.ask("alice", "GET", "/whoami").status_code == 200


def test_a_reset_does_nothing(at: Bench) -> None:
    at.ask("alice", "PUT", "/sandbox/faults", {"api": [{"action": "reset", "method": "POST", "count": 1}]})
    with pytest.raises(requests.ConnectionError):
        at.ask("alice", "POST", "/jobs", submission())
    assert at.ask("alice", "GET", "/sandbox/stats").json()["totals"] == {}


def test_a_lost_reply_is_an_accepted_job(at: Bench) -> None:
    at.ask(
        "alice", "PUT", "/sandbox/faults", {"api": [{"action": "lost_reply", "method": "POST", "count": 1}]}
    )
    body = submission(id_generator="deterministic", sid="s1")
    with pytest.raises(requests.ConnectionError):
        at.ask("alice", "POST", "/jobs", body)
    again = at.ask("alice", "POST", "/jobs", body)
    assert (again.status_code, again.json()["message"]) == (409, "The sid provided by the user is duplicated")


def test_latency(at: Bench) -> None:
    at.ask(
        "alice",
        "PUT",
        "/sandbox/faults",
        {"api": [{"action": "latency", "latency_s": 0.5, "path": "/whoami"}]},
    )
    with pytest.raises(requests.ReadTimeout):
        at.callers["alice"].get(at.url + "/whoami", timeout=0.1)


def test_the_knobs_always_work(at: Bench) -> None:
    at.ask("alice", "PUT", "/sandbox/faults", {"api": [{"action": "reset"}]})
    shown = at.ask("alice", "GET", "/sandbox/faults")
    assert FaultPlan.model_validate(shown.json()).api[0].action == "reset"
    wrong = at.ask("alice", "PUT", "/sandbox/faults", {"api": [{"action": "explode"}]})
    assert wrong.status_code == 400
    assert at.ask("alice", "PUT", "/sandbox/faults", {"seed": 1}).status_code == 200
    assert at.ask("alice", "GET", "/whoami").status_code == 200
