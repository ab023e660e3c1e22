"""The engine with real bytes, with time that is told, and over restarts."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import adler32

import pytest

from asyncstageout.sandbox.faults import FaultPlan, SiteFault
from asyncstageout.sandbox.fts.copying import CopyOrder
from asyncstageout.sandbox.fts.engine import Engine, Limits
from asyncstageout.sandbox.fts.identity import Identity
from asyncstageout.sandbox.fts.journal import Journal
from asyncstageout.sandbox.fts.records import QUEUE_TIMEOUT_REASON, Job
from asyncstageout.sandbox.fts.refusals import Refused
from asyncstageout.sandbox.fts.service import Options
from asyncstageout.sandbox.fts.simulation import Pace
from asyncstageout.sandbox.fts.submission import Rules, build_job
from asyncstageout.sandbox.fts.verdicts import Failure, failure_of
from asyncstageout.sandbox.sites.names import site_pfn
from asyncstageout.sandbox.tls import SandboxTLS
from sandbox.harness import Bench, Clock, SiteBench, bench, certificates, site_bench

USER = Identity(("/CN=alice",), ("cms",), "d" * 16)
CONTENT = b"some content " * 50_000
SUM = f"{adler32(CONTENT):08x}"
DIFFER = "ADLER32 do not match"
MISMATCH = "CHECKSUM MISMATCH"
REFUSED = "[1] HTTP 403 : Permission refused"
CURL_56 = "[112] Result curl error (56): Failure when receiving data from the peer after 1 attempts"
PULL_507 = (
    "TRANSFER [5] TRANSFER ERROR: Copy failed (3rd pull). Last attempt: copy HTTP 507 : Insufficient Storage"
)


# -- with bytes ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> SandboxTLS:
    return certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def sites(tls: SandboxTLS, tmp_path: Path) -> Iterator[SiteBench]:
    with site_bench(tls, tmp_path / "sites", "T2_IT_Bari", "T2_DE_DESY") as served:
        yield served


@pytest.fixture
def at(tls: SandboxTLS, sites: SiteBench, tmp_path: Path) -> Iterator[Bench]:
    options = Options(state=tmp_path / "fts", connect_to=sites.address)
    with bench(tls, tls.ca.parent, options) as made:
        yield made


def pair(name: str = "f", **keys: Any) -> dict[str, Any]:
    source = site_pfn("T2_IT_Bari", f"/store/temp/user/{name}")
    return {"sources": [source], "destinations": [site_pfn("T2_DE_DESY", f"/store/user/{name}")], **keys}


def outcome(at: Bench, file: dict[str, Any], **params: Any) -> dict[str, Any]:
    """Submit one file and return how it ended."""
    job_id = at.submit({"files": [file], "params": params})
    at.finish(job_id)
    found: dict[str, Any] = at.status(job_id, "file_state,reason,filesize,retry,recoverable,file_metadata")[
        "files"
    ][0]
    return found


def test_bytes_arrive(at: Bench, sites: SiteBench) -> None:
    sites.put("T2_IT_Bari", "/store/temp/user/f", CONTENT)
    ended = outcome(at, pair(checksum=f"ADLER32:{SUM}", filesize=len(CONTENT)), verify_checksum="both")
    assert (ended["file_state"], ended["reason"], ended["filesize"]) == ("FINISHED", "", len(CONTENT))
    assert sites.read("T2_DE_DESY", "/store/user/f") == CONTENT


@pytest.mark.parametrize(
    ("params", "file_state"),
    [({}, "FAILED"), ({"overwrite": True}, "FINISHED"), ({"overwrite_on_retry": True, "retry": 2}, "FAILED")],
)
def test_destination_exists(at: Bench, sites: SiteBench, params: dict[str, Any], file_state: str) -> None:
    sites.put("T2_IT_Bari", "/store/temp/user/f", CONTENT)
    sites.put("T2_DE_DESY", "/store/user/f", b"old")
    ended = outcome(at, pair(), **params)
    assert ended["file_state"] == file_state
    if file_state == "FAILED":
        assert ended["reason"] == "DESTINATION [17] Destination file exists and overwrite is not enabled"
        assert ended["retry"] == 0
        assert sites.read("T2_DE_DESY", "/store/user/f") == b"old"


def test_a_report_of_the_file_that_exists(at: Bench, sites: SiteBench) -> None:
    sites.put("T2_IT_Bari", "/store/temp/user/f", CONTENT)
    sites.put("T2_DE_DESY", "/store/user/f", CONTENT)
    ended = outcome(at, pair(metadata={"my": 1}), dst_file_report=True)
    found = ended["file_metadata"]["dst_file"]
    assert (found["file_size"], found["checksum_value"]) == (len(CONTENT), SUM)
    assert ended["file_metadata"]["my"] == 1


@pytest.mark.parametrize(
    ("verify", "checksum", "reason"),
    [
        ("source", "deadbeef", f"SOURCE {MISMATCH} Source and user-defined {DIFFER} ({SUM} != deadbeef)"),
        (
            "target",
            "deadbeef",
            f"DESTINATION {MISMATCH} User-defined and destination {DIFFER} (deadbeef != {SUM})",
        ),
        ("none", "deadbeef", ""),
        ("both", SUM.upper(), ""),
    ],
)
def test_checksums(at: Bench, sites: SiteBench, verify: str, checksum: str, reason: str) -> None:
    sites.put("T2_IT_Bari", "/store/temp/user/f", CONTENT)
    ended = outcome(at, pair(checksum=f"ADLER32:{checksum}"), verify_checksum=verify, retry=3)
    assert ended["reason"].removeprefix("TRANSFER [5] ") == reason
    assert ended["retry"] == 0  # FTS does not retry a mismatch
    # A copy that is not what was sent does not stay.
    assert (sites.read("T2_DE_DESY", "/store/user/f") is None) == bool(reason)


@pytest.mark.parametrize(
    ("verify", "reason"),
    [
        ("source", "SOURCE [22] Checksum value required if mode is not end to end"),
        ("target", "DESTINATION [22] Checksum value required if mode is not end to end"),
        ("both", ""),
        ("none", ""),
    ],
)
def test_one_end_alone_is_compared_with_what_was_said(
    at: Bench, sites: SiteBench, verify: str, reason: str
) -> None:
    sites.put("T2_IT_Bari", "/store/temp/user/f", CONTENT)
    assert outcome(at, pair(), verify_checksum=verify, retry=-1)["reason"] == reason


def test_nothing_at_all_is_a_file_too(at: Bench, sites: SiteBench) -> None:
    sites.put("T2_IT_Bari", "/store/temp/user/f", b"")
    ended = outcome(at, pair(checksum="ADLER32:1", filesize=0), verify_checksum="both")
    assert (ended["file_state"], ended["filesize"]) == ("FINISHED", 0)
    assert sites.read("T2_DE_DESY", "/store/user/f") == b""


def test_a_size_that_was_not_announced(at: Bench, sites: SiteBench) -> None:
    sites.put("T2_IT_Bari", "/store/temp/user/f", b"12345")
    ended = outcome(at, pair(filesize=6))
    assert ended["reason"] == "SOURCE [22] User specified source file size is 6 but stat returned 5"


@pytest.mark.parametrize(
    ("fault", "reason", "retries"),
    [
        (SiteFault(site="T2_DE_*", method="PUT", status=507), PULL_507, 1),
        (SiteFault(site="T2_DE_*", method="PUT", status=403), f"DESTINATION {REFUSED}", 0),
        (SiteFault(site="T2_IT_*", status=403), f"SOURCE {REFUSED}", 0),
        (SiteFault(site="T2_IT_*", method="GET", status=0), f"SOURCE {CURL_56}", 1),
        (SiteFault(site="T2_DE_*", method="PUT", status=0), f"DESTINATION {CURL_56}", 1),
    ],
)  # fmt: skip
def test_what_sites_do(at: Bench, sites: SiteBench, fault: SiteFault, reason: str, retries: int) -> None:
    sites.put("T2_IT_Bari", "/store/temp/user/f", CONTENT)
    sites.storage.faults.replace(FaultPlan(sites=(fault,)))
    ended = outcome(at, pair(), retry=1, retry_delay=1)
    assert (ended["file_state"], ended["reason"], ended["retry"]) == ("FAILED", reason, retries)
    assert sites.read("T2_DE_DESY", "/store/user/f") is None


def test_a_retry_helps(at: Bench, sites: SiteBench) -> None:
    sites.put("T2_IT_Bari", "/store/temp/user/f", CONTENT)
    sites.storage.faults.replace(FaultPlan(sites=(SiteFault(method="PUT", status=500, count=1),)))
    ended = outcome(at, pair(), retry=1, retry_delay=1)
    assert (ended["file_state"], ended["retry"]) == ("FINISHED", 1)
    assert sites.read("T2_DE_DESY", "/store/user/f") == CONTENT


def test_folders_are_made_where_the_storage_makes_none(tls: SandboxTLS, tmp_path: Path) -> None:
    with site_bench(tls, tmp_path / "s", "T2_IT_Bari", "T2_DE_DESY", makes_parents=False) as sites:
        options = Options(state=tmp_path / "fts", connect_to=sites.address)
        with bench(tls, tls.ca.parent, options) as at:
            sites.put("T2_IT_Bari", "/store/temp/user/f", CONTENT)
            assert outcome(at, pair())["file_state"] == "FINISHED"


def test_cancel_during_the_copy(at: Bench, sites: SiteBench, tmp_path: Path) -> None:
    """CANCELED at once; the copy is stopped later, and leaves nothing."""
    sites.put("T2_IT_Bari", "/store/temp/user/f", bytes(3_000_000))
    go_on = _block_copies(at)
    job_id = at.submit({"files": [pair()], "params": {}})
    at.tick()
    assert at.status(job_id)["job_state"] == "ACTIVE"
    assert at.ask("alice", "DELETE", f"/jobs/{job_id}").json()["job_state"] == "CANCELED"
    assert at.fts.engine.running_real == 1
    at.tick(3)
    go_on.set()
    at.until(lambda: at.fts.engine.running_real == 0)
    assert at.status(job_id)["files"][0]["file_state"] == "CANCELED"
    assert sites.read("T2_DE_DESY", "/store/user/f") is None
    last = json.loads((tmp_path / "fts" / "transfers.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["reason"]) == ("end", "TRANSFER [125] Transfer canceled")


def test_a_cancel_that_comes_too_late_leaves_the_file(at: Bench, sites: SiteBench) -> None:
    sites.put("T2_IT_Bari", "/store/temp/user/f", CONTENT)
    go_on = _block_copies(at)
    job_id = at.submit({"files": [pair()], "params": {}})
    at.tick()
    at.ask("alice", "DELETE", f"/jobs/{job_id}")
    go_on.set()  # before it is told to stop
    at.until(lambda: at.fts.engine.running_real == 0)
    assert at.status(job_id)["files"][0]["file_state"] == "CANCELED"
    assert sites.read("T2_DE_DESY", "/store/user/f") == CONTENT


def _block_copies(at: Bench) -> threading.Event:
    """Hold every copy at its first step until the event is set."""
    go_on = threading.Event()
    copier = at.fts.engine.copier
    assert copier is not None
    run: Callable[[CopyOrder, threading.Event], None] = copier._run  # type: ignore[attr-defined]

    def held(order: CopyOrder, stop: threading.Event) -> None:
        assert go_on.wait(20)
        run(order, stop)

    copier._run = held  # type: ignore[attr-defined]
    return go_on


def test_a_restart_goes_on_with_what_ran(tls: SandboxTLS, sites: SiteBench, tmp_path: Path) -> None:
    """Its bytes may be there without the service knowing; they must not look like somebody else's."""
    sites.put("T2_IT_Bari", "/store/temp/user/f", CONTENT)
    options = Options(state=tmp_path / "fts", connect_to=sites.address)
    with bench(tls, tls.ca.parent, options) as at:
        go_on = _block_copies(at)
        job_id = at.submit({"files": [pair()], "params": {}})
        at.tick()
        at.fts.call(lambda: setattr(at.fts.engine, "copy_ended", lambda *_: None))
        go_on.set()
    assert sites.read("T2_DE_DESY", "/store/user/f") in (CONTENT, None)
    sites.put("T2_DE_DESY", "/store/user/f", CONTENT)
    with bench(tls, tls.ca.parent, options) as at:
        at.finish(job_id)
        assert at.status(job_id)["job_state"] == "FINISHED"


# -- without bytes: the engine alone ---------------------------------------------------------------


class Alone:
    """An engine without a server."""

    def __init__(self, path: Path, clock: Clock | None = None, **options: Any) -> None:
        self.clock = clock or Clock()
        self.journal = Journal(path / "fts.sqlite")
        self.engine = Engine(self.journal, self.clock, **options)
        self.rules = Rules()

    def submit(self, *files: dict[str, Any], **params: Any) -> Job:
        job = build_job(
            {"files": list(files), "params": params},
            USER,
            now_s=self.clock.now_s,
            rules=self.rules,
            first_file_id=self.engine.next_file_id,
        )
        self.engine.submit(job)
        return job

    def run(self, seconds: float, step: float = 0.25) -> None:
        end = self.clock.now_s + seconds
        while self.clock.now_s < end:
            self.engine.tick()
            self.clock.now_s += step
        self.engine.tick()


@pytest.fixture
def alone(tmp_path: Path) -> Alone:
    return Alone(tmp_path)


def states(job: Job) -> list[str]:
    return [file.file_state for file in job.files]


def test_limits_of_a_link_and_of_the_service(tmp_path: Path) -> None:
    alone = Alone(tmp_path, limits=Limits(per_link=2, workers=5))
    other = {"sources": ["davs://c/x"], "destinations": ["davs://d/y"]}
    job = alone.submit(*[pair(str(n)) for n in range(4)], *[other] * 4)
    alone.engine.tick()
    assert Counter(states(job)) == {"ACTIVE": 4, "SUBMITTED": 4}  # two on each link
    third = alone.submit(*[{"sources": ["davs://e/x"], "destinations": ["davs://f/y"]}] * 4)
    alone.engine.tick()
    assert states(third).count("ACTIVE") == 1  # five in all


def test_priority(alone: Alone) -> None:
    alone.engine.limits = Limits(workers=0)
    low, high, raised = (alone.submit(pair(str(n)), priority=p) for n, p in enumerate((1, 4, 2)))
    alone.engine.set_priority(raised, 5)
    alone.engine.limits = Limits(workers=1)
    alone.engine.tick()
    assert [states(job) for job in (low, high, raised)] == [["SUBMITTED"], ["SUBMITTED"], ["ACTIVE"]]


def test_queue_timeout(alone: Alone) -> None:
    alone.engine.limits = Limits(workers=1)
    job = alone.submit(
        {"sources": ["mock://a/x?size=1"], "destinations": ["mock://b/y?size_post=1&time=100"]},
        pair("waits"),
        max_time_in_queue="30s",
    )
    alone.run(29)
    assert states(job) == ["ACTIVE", "SUBMITTED"]
    alone.run(2)
    assert states(job) == ["ACTIVE", "CANCELED"]
    assert job.files[1].reason == QUEUE_TIMEOUT_REASON
    alone.run(100)
    assert states(job) == ["FINISHED", "CANCELED"]
    assert job.job_state == "CANCELED"


def test_retry_waits_for_its_delay(alone: Alone) -> None:
    bad = {"sources": ["mock://a/x?errno=110"], "destinations": ["mock://b/y?size_post=1"]}
    job = alone.submit(bad, retry=1)
    alone.run(1)
    assert (states(job), job.files[0].retry) == (["SUBMITTED"], 1)
    alone.run(115)
    assert states(job) == ["SUBMITTED"]
    alone.run(10)
    assert states(job) == ["FAILED"]


@pytest.mark.parametrize(("retry", "tries"), [(0, 3), (-1, 1), (1, 2)])
def test_zero_retries_are_the_default_of_the_service(tmp_path: Path, retry: int, tries: int) -> None:
    alone = Alone(tmp_path, limits=Limits(retry=2, retry_delay_s=1))
    bad = {"sources": ["mock://a/x?errno=5"], "destinations": ["mock://b/y?size_post=1"]}
    job = alone.submit(bad, retry=retry)
    alone.run(10)
    assert (states(job), job.files[0].tries) == (["FAILED"], tries)


def test_a_ban_parks_or_cancels(alone: Alone) -> None:
    alone.engine.limits = Limits(workers=0)
    job = alone.submit(pair())
    storage = job.files[0].source_se
    assert alone.engine.ban("cms", storage, "WAIT") == [job.job_id]
    assert states(job) == ["ON_HOLD"]
    with pytest.raises(Refused, match="is banned"):
        alone.submit(pair("g"))
    alone.engine.unban("cms", storage)
    assert states(job) == ["SUBMITTED"]
    assert alone.engine.ban("cms", storage, "CANCEL") == [job.job_id]
    assert (states(job), job.job_state, job.files[0].reason) == (["CANCELED"], "CANCELED", "Storage banned")


def test_a_restart_forgets_nothing(tmp_path: Path) -> None:
    """Nobody says goodbye to the first engine: what a submission answered is on disk already."""
    first = Alone(tmp_path, limits=Limits(workers=1))
    done = first.submit(pair("done"))
    first.run(2)
    running = first.submit(pair("running"), pair("queued"), job_metadata={"my": 1}, retry=2)
    first.engine.tick()
    waiting = first.submit(pair("waiting"), max_time_in_queue=1, priority=1)
    first.clock.now_s += 1
    first.engine.tick()
    first.engine.ban("cms", "davs://bad", "CANCEL")

    second = Alone(tmp_path, first.clock)
    found = [second.engine.jobs[job.job_id] for job in (done, running, waiting)]
    assert [job.job_state for job in found] == ["FINISHED", "ACTIVE", "SUBMITTED"]
    assert states(found[1])[1] == "SUBMITTED"
    assert (found[1].job_metadata, found[1].retry) == ({"my": 1, "auth_method": "certificate"}, 2)
    assert found[2].max_time_in_queue == waiting.max_time_in_queue
    assert second.engine.bans() == [("cms", "davs://bad", "CANCEL")]
    second.run(3)
    assert [job.job_state for job in found] == ["FINISHED"] * 3
    newer = second.submit(pair("new"))
    assert newer.files[0].file_id > waiting.files[0].file_id


def test_a_start_may_be_empty(tmp_path: Path) -> None:
    first = Alone(tmp_path)
    first.submit(pair())
    first.journal.close()
    journal = Journal(tmp_path / "fts.sqlite", start_empty=True)
    assert journal.load() == []


def test_ten_thousand_open_jobs_at_a_thousand_files_a_second(tmp_path: Path) -> None:
    """The engine and its journal need well under half a core for it: CPU is counted, not time."""
    alone = Alone(tmp_path, limits=Limits(per_link=100, workers=2000), pace=Pace(0.5))
    waiting = {"sources": ["davs://q0/x"], "destinations": ["davs://q1/y"]}
    alone.engine.limits = replace(alone.engine.limits, workers=0)
    for _ in range(10_000):
        alone.submit(waiting)
    alone.engine.limits = replace(alone.engine.limits, workers=600)
    seconds = 3
    files = [
        {"sources": [f"davs://s{n % 20}/f{n}"], "destinations": [f"davs://d{n % 20}/f{n}"], "filesize": 10**9}
        for n in range(100)
    ]
    before_s = time.process_time()
    for _ in range(seconds * 10):
        alone.submit(*files)
        alone.run(0.1, 0.01)
    used_s = time.process_time() - before_s
    assert alone.engine.totals["FINISHED"] >= seconds * 1000 * 0.8
    assert used_s / seconds < 0.5


# -- judgements ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "recoverable"),
    [
        ("TRANSFER [5] Input/output error", True),
        ("SOURCE [110] Connection timed out", True),
        ("SOURCE [112] Result Could not connect to server after 1 attempts", True),
        ("DESTINATION [22] Source and destination file size mismatch", True),
        ("SOURCE [2] Result HTTP 404 : File not found  after 1 attempts", False),
        ("DESTINATION [2] no such thing", True),  # ENOENT is final at a source only
        ("TRANSFER [28] No space left on device", False),
        ("DESTINATION [28] No space left on device", True),
        ("TRANSFER [13] Permission denied", False),
        ("DESTINATION [17] Destination file exists and overwrite is not enabled", False),
        (
            "TRANSFER [5] SOURCE CHECKSUM MISMATCH Source and user-defined ADLER32 do not match (a != b)",
            False,
        ),
        ("TRANSFER [125] Transfer canceled", False),
        ("SOURCE [1] HTTP 403 : Permission refused", False),
        ("GENERAL_FAILURE [22] something", True),
        (QUEUE_TIMEOUT_REASON, False),
    ],
)
def test_what_fts_would_try_again(reason: str, recoverable: bool) -> None:
    failure = failure_of(reason)
    assert str(failure) == reason
    assert failure.is_recoverable is recoverable


def test_a_failure_reads_as_fts_writes_it() -> None:
    assert failure_of("SOURCE [2] No such file") == Failure("SOURCE", 2, "No such file")
