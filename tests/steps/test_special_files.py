"""Files that are not like the others, with real bytes where bytes matter: each goes its whole way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zlib import adler32

import pytest
from psycopg import Connection

from asyncstageout.catalogue.audit import audit
from asyncstageout.catalogue.policies import put_policy
from asyncstageout.catalogue.questions import TransferFilter, newest_transfers, task_summary
from asyncstageout.clients.fts3 import FTS3Client
from asyncstageout.core.existing import THERE_ALREADY
from asyncstageout.core.requests import read_requests
from asyncstageout.core.selections import Selection
from asyncstageout.sandbox.fts.service import Options
from asyncstageout.sandbox.tls import client_certificate
from asyncstageout.steps.acting import do, killing, sending_again
from asyncstageout.steps.cancel import cancel
from fixtures.catalogue import SITES, Add, assert_audited, record, states
from fixtures.cycles import IMPATIENT, House, jobs_at_fts
from sandbox.harness import ALICE, SiteBench, bench, caller, certificates, site_bench

CONTENT = b"some events" * 1000
BARI, CERN = "T2_IT_Bari", "T2_CH_CERN"


@dataclass
class Grid:
    """A house whose FTS moves bytes between sites."""

    house: House
    sites: SiteBench

    def leave(self, number: int, content: bytes = CONTENT, **changes: Any) -> dict[str, Any]:
        """Leave a file at its source, and return its request."""
        said = {"size_bytes": len(content), "adler32": f"{adler32(content):08x}"}
        request = record(number, **(said | changes))
        self.sites.put(request["source"], request["source_lfn"], content)
        return request

    def go(self, run_id: str = "run") -> dict[str, int]:
        """Let everything that waits come to its end."""
        self.house.make_due()
        self.house.run_cycle(run_id)
        self.house.finish_at_fts()
        self.house.sense()
        self.house.update()
        assert_audited(self.house.conn)
        return states(self.house.conn)

    def arrived(self, request: dict[str, Any]) -> bytes | None:
        return self.sites.read(request["destination"], request["destination_lfn"])


@pytest.fixture
def grid(conn: Connection, step: int, tls_folder: Path, tmp_path: Path) -> Iterator[Grid]:
    tls = certificates(tls_folder)
    with (
        site_bench(tls, tmp_path / "sites", *SITES) as sites,
        bench(tls, tls_folder, Options(state=tmp_path / "fts", connect_to=sites.address)) as fts,
    ):
        session = caller(tls, client_certificate(tls_folder, "alice", ALICE))
        with FTS3Client(fts.url, session, patience=IMPATIENT) as client:
            yield Grid(House(conn, client, fts, step), sites)


def test_a_log_file_is_moved_and_never_published(grid: Grid, add: Add) -> None:
    log = grid.leave(1, b"exit code 0\n", type="log", source_lfn="/store/temp/user/alice.abc/mc/log/cmsRun_1.log.tar.gz",
                     destination_lfn="/store/user/alice/mc/log/cmsRun_1.log.tar.gz")  # fmt: skip
    _, (refusal,) = read_requests([log | {"publish": True}])
    assert str(refusal).endswith("publish: a log file is never published")
    add(log)
    assert grid.go() == {"DONE": 1}
    assert grid.arrived(log) == b"exit code 0\n"
    row = grid.house.conn.execute("SELECT type::text, publication::text FROM transfer").fetchone()
    assert row == ("log", "NOT_REQUIRED")


@pytest.mark.parametrize("checksum", ["1", None])
def test_a_file_of_no_bytes_arrives(grid: Grid, add: Add, checksum: str | None) -> None:
    empty = grid.leave(1, b"", adler32=checksum)
    add(empty)
    assert grid.go() == {"DONE": 1}
    assert grid.arrived(empty) == b""


def test_a_file_of_no_bytes_that_is_there_already_is_known_by_its_checksum(grid: Grid, add: Add) -> None:
    put_policy(grid.house.conn, None, None, {"overwrite": False}, "test")
    empty, other = grid.leave(1, b""), grid.leave(2, b"")
    grid.sites.put(CERN, empty["destination_lfn"], b"")
    grid.sites.put(CERN, other["destination_lfn"], b"not empty")
    add(empty, other)
    assert grid.go() == {"DONE": 1, "FAILED": 1}
    reasons = grid.house.conn.execute("SELECT reason FROM transfer_event WHERE to_state = 'DONE'").fetchall()
    assert reasons == [(THERE_ALREADY,)]
    assert grid.arrived(other) == b"not empty"


@pytest.mark.parametrize(("verify", "jobs"), [("both", 1), ("source", 2), ("target", 2), ("none", 1)])
def test_a_file_without_a_checksum_is_verified_as_far_as_can_be(
    grid: Grid, add: Add, verify: str, jobs: int
) -> None:
    put_policy(grid.house.conn, None, None, {"verify_checksum": verify}, "test")
    unknown, known = grid.leave(1, adler32=None), grid.leave(2)
    add(unknown, known)
    assert grid.go() == {"DONE": 2}
    assert len(jobs_at_fts(grid.house)) == jobs
    assert grid.arrived(unknown) == grid.arrived(known) == CONTENT


def test_a_files_checksum_is_padded_as_storages_write_it(grid: Grid, add: Add) -> None:
    add(grid.leave(1, b"\x01", adler32="20002"))
    assert grid.go() == {"DONE": 1}


def test_a_groups_area_takes_files_if_its_storage_lets_us_in(grid: Grid, add: Add) -> None:
    group = {"vo_group": "/cms/phys_higgs", "destination_lfn": "/store/group/phys_higgs/mc/out_1.root"}
    open_to_us = grid.leave(1, **group)
    of_others = grid.leave(2, destination_lfn="/store/group/phys_susy/mc/out_2.root")
    fault = {"site": CERN, "method": "PUT", "path": "phys_susy", "status": 403}
    grid.sites.storage.faults.replace(grid.sites.storage.faults.plan.model_validate({"sites": [fault]}))
    add(open_to_us, of_others)
    assert grid.go() == {"DONE": 1, "FAILED": 1}
    assert grid.arrived(open_to_us) == CONTENT
    failed = grid.house.conn.execute(
        "SELECT destination_lfn, failure_category FROM transfer WHERE state = 'FAILED'"
    )
    assert failed.fetchall() == [(of_others["destination_lfn"], "permission")]
    _, (refusal,) = read_requests([open_to_us | {"destination_lfn": "/store/group/phys_higgs"}])
    assert "is in no area of users, groups or sites" in refusal.reason


def test_what_a_job_wrote_straight_to_its_destination_is_registered_and_left_alone(
    grid: Grid, add: Add
) -> None:
    lfn = "/store/user/alice/mc/out_1.root"
    direct = grid.leave(1, source=CERN, source_lfn=lfn, destination_lfn=lfn, publish=True, already_there=True)
    elsewhere = record(2, source="T3_XX_Cluster", already_there=True)
    _, (refusal,) = read_requests([direct | {"destination_lfn": "/store/user/bob/out_1.root"}])
    assert "is bob's" in refusal.reason
    assert [answer.outcome for answer in add(direct, elsewhere, direct)] == ["created", "created", "exists"]
    assert grid.go() == {"DONE": 2}
    assert jobs_at_fts(grid.house) == []
    assert grid.arrived(direct) == CONTENT
    rows = grid.house.conn.execute(
        "SELECT already_there, publication::text, attempt FROM transfer ORDER BY id"
    )
    assert rows.fetchall() == [(True, "NEW", 0), (True, "NOT_REQUIRED", 0)]
    moved = record(3, source=CERN, source_lfn=lfn, destination_lfn=lfn)
    assert add(moved | {"source_lfn": f"{lfn}x", "destination_lfn": f"{lfn}x"})[0].reason == (
        "source and destination are the same file"
    )


def test_a_later_retry_replaces_what_the_earlier_one_wrote(grid: Grid, add: Add) -> None:
    """Elsewhere, with other bytes: what arrives in the end is what the last attempt of the job wrote."""
    add(grid.leave(1))
    assert grid.go() == {"DONE": 1}
    later = grid.leave(1, b"better events", source="T2_US_MIT", job_retry_count=1)
    assert [answer.outcome for answer in add(later)] == ["again"]
    assert grid.go("later") == {"DONE": 1}
    assert grid.arrived(later) == b"better events"


def test_a_cancelled_copy_leaves_nothing_behind_and_the_file_can_go_again(grid: Grid, add: Add) -> None:
    house = grid.house
    request = grid.leave(1)
    add(request)
    house.fts.hold()
    house.run_cycle()
    deed = killing(rings=False)
    everything = Selection(username="alice")
    do(house.conn, deed, everything, comment="", at_most=9, step_run=house.step)
    cancel(house.conn, house.clients, now=datetime.now(UTC), step_run=house.step)
    house.fts.release()
    house.sense()
    house.update()
    assert states(house.conn) == {"KILLED": 1}
    assert grid.arrived(request) is None
    again = sending_again(killed_too=True)
    assert do(house.conn, again, everything, comment="", at_most=9, step_run=house.step).counts["files"] == 1
    assert grid.go("again") == {"DONE": 1}
    assert grid.arrived(request) == CONTENT


def test_a_task_of_ten_thousand_files(house: House, add: Add) -> None:
    """Taken in, paged through, partly at FTS when it is killed, told to FTS in a few calls, sent again."""
    put_policy(house.conn, None, None, {"max_files_in_flight": 1000}, "test")
    task = record()["task"]
    answers = add(*(record(number) for number in range(10_000)))
    assert {answer.outcome for answer in answers} == {"created"}
    house.run_cycle()
    summary = task_summary(house.conn, task, None)
    assert summary is not None
    assert summary["states"] == {"SUBMITTED": 1000, "NEW": 9000}
    where = TransferFilter(None, task, None, None, None, None, None, None)
    seen: list[int] = []
    while page := newest_transfers(house.conn, where, limit=4000, before_id=seen[-1] if seen else None):
        seen += [row["id"] for row in page]
    assert seen == sorted(set(seen), reverse=True)
    assert len(seen) == 10_000
    everything = Selection(task=task)
    killed = do(house.conn, killing(), everything, comment="", at_most=10_000, step_run=house.step)
    assert killed.sentence.startswith("10,000 files hit: 9,000 killed, 1,000 being killed; ")
    calls: list[str] = []
    ask = house.client.ask
    house.client.ask = lambda *args, **options: (calls.append(args[0]), ask(*args, **options))[1]  # type: ignore[method-assign]
    told = cancel(house.conn, house.clients, now=datetime.now(UTC), step_run=house.step)
    assert told.sentence == "FTS was told to stop 1,000 files (5 whole jobs)"
    assert calls.count("DELETE") == 1
    house.sense()
    house.update()
    assert states(house.conn) == {"KILLED": 10_000}
    again = sending_again(killed_too=True)
    sent = do(house.conn, again, everything, comment="", at_most=10_000, step_run=house.step)
    assert sent.sentence.startswith("10,000 files hit: 10,000 sent again; ")
    assert [result for result in audit(house.conn) if result.violations] == []
