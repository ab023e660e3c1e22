"""The sandbox's DBS with the client: what stays after a failure, faults, migrations, a restart."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from asyncstageout.clients.dbs_errors import (
    BlockExists,
    BlockTooLarge,
    DBSRace,
    DBSUnavailable,
    DBSUnreachable,
    FilesNotTaken,
    ParentUnknown,
)
from asyncstageout.clients.http import Patience
from asyncstageout.core.dbs import Lumi, encoded, file_problem
from asyncstageout.sandbox.dbs.__main__ import _parser
from asyncstageout.sandbox.dbs.service import Options, SandboxDBS
from asyncstageout.sandbox.tls import SandboxTLS
from sandbox.dbs_harness import DATASET, PARENTS, DBSBench, a_block, a_file, body_of, dbs_bench, lfn
from sandbox.harness import certificates

STEP_S = 10
HURRIED = Patience(tries=3, connect_s=5, read_s=0.3, deadline_s=20)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> SandboxTLS:
    return certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def at(tls: SandboxTLS, tmp_path: Path) -> Iterator[DBSBench]:
    with dbs_bench(tls, tmp_path) as made:
        yield made


# --- blocks ---


def test_a_block_and_its_files_are_there(at: DBSBench) -> None:
    with at.client() as client:
        client.insert_block(body_of(0))
        block = client.block(a_block(0).name)
        assert block is not None
        assert (block.origin_site, block.file_count, block.size_bytes) == ("T2_IT_Bari", 2, 2001)
        files = client.files([lfn(0), lfn(1), lfn(2)])
        assert {name: (file.size_bytes, file.adler32, file.is_valid) for name, file in files.items()} == {
            lfn(0): (1000, "00000000", True),
            lfn(1): (1001, "00000001", True),
        }
        dataset = client.dataset(DATASET)
        assert dataset is not None
        assert (dataset.primary_dataset_type, dataset.access_type) == ("mc", "VALID")
        assert (dataset.acquisition_era, dataset.physics_group) == ("CRAB", "CRAB3")


def test_a_repeated_block_is_there_and_there_once(at: DBSBench) -> None:
    with at.client() as client:
        client.insert_block(body_of(0))
        before = at.counts()
        with pytest.raises(BlockExists) as caught:
            client.insert_block(body_of(0))
    assert caught.value.block_name == a_block(0).name
    assert at.counts() == before


def test_one_file_that_is_there_refuses_the_block_with_all_of_it(at: DBSBench) -> None:
    with at.client() as client:
        client.insert_block(body_of(0))
        before = at.counts()
        with pytest.raises(FilesNotTaken):
            client.insert_block(body_of(1, a_file(7), a_file(0)))
        # What somebody does who was told: ask, and publish the others.
        assert not client.block_exists(a_block(1).name)
        assert list(client.files([lfn(7), lfn(0)])) == [lfn(0)]
        assert at.counts() == before
        client.insert_block(body_of(1, a_file(7)))


def test_a_refused_block_leaves_its_dataset_without_blocks(at: DBSBench) -> None:
    at.put("phys03", body_of(9, a_file(0), dataset=PARENTS))
    with at.client() as client:
        with pytest.raises(FilesNotTaken):
            client.insert_block(body_of(0, a_file(0)))
        assert client.dataset_exists(DATASET)
        assert not client.block_exists(a_block(0).name)


def test_a_parent_that_nobody_knows_is_found_before_anything_is_made(at: DBSBench) -> None:
    with at.client() as client:
        with pytest.raises(ParentUnknown) as caught:
            client.insert_block(body_of(0, a_file(0, parents=("/store/mc/nobody.root",))))
        assert caught.value.parent == "/store/mc/nobody.root"
        assert not client.dataset_exists(DATASET)
        assert client.files([lfn(0)]) == {}
        client.insert_block(body_of(0, a_file(0)))


def test_parents_that_are_there_are_taken(at: DBSBench) -> None:
    at.put("phys03", body_of(1, a_file(1), dataset=PARENTS))
    with at.client() as client:
        client.insert_block(body_of(0, a_file(0, parents=(lfn(1),)), parent_datasets=(PARENTS,)))
    answer = at.ask("GET", "phys03/DBSReader/blockparents", params={"block_name": a_block(0).name})
    assert [row["parent_block_name"] for row in answer.json()] == [a_block(1, dataset=PARENTS).name]


def test_two_instances_know_nothing_of_each_other(at: DBSBench) -> None:
    at.put("global", body_of(0))
    with at.client() as client, at.client("global") as other:
        assert client.files([lfn(0)]) == {}
        assert other.blocks_of_files([lfn(0)]) == {lfn(0): a_block(0).name}
        client.insert_block(body_of(0))


def test_it_remembers_over_a_restart(tls: SandboxTLS, tmp_path: Path) -> None:
    with dbs_bench(tls, tmp_path) as first:
        first.put("phys03", body_of(0))
        first.put("global", body_of(1))
        with first.client() as client:
            submitted = client.submit_migration(first.global_reader, a_block(1).name)
        clock = first.clock
    with dbs_bench(tls, tmp_path, clock) as second, second.client() as client:
        with pytest.raises(BlockExists):
            client.insert_block(body_of(0))
        clock.now_s += 3 * STEP_S
        after = client.migration(submitted.request_id)
        assert after is not None
        assert after.is_at_destination
    with dbs_bench(tls, tmp_path, start_empty=True) as empty:
        assert set(empty.counts().values()) == {0}


def test_a_block_of_100_files_is_quick(at: DBSBench) -> None:
    files = [a_file(n, lumis=tuple(Lumi(1, 10 * n + i, 5) for i in range(10))) for n in range(300)]
    took_s = []
    with at.client() as client:
        for number in range(3):
            body = encoded(body_of(number, *files[100 * number : 100 * (number + 1)]))
            start_s = time.process_time()
            client.insert_block(body)
            took_s.append(time.process_time() - start_s)
    # Of a processor, the client's side included.
    assert min(took_s) < 0.05


@pytest.mark.parametrize(
    "name",
    [
        *("/store/user/rossi/a/b.root", "/store/user/rossi/a/b/c.root", "/store/user/rossi/1/b/c.root"),
        *(
            "/store/group/phys-x/a/b/c.root",
            "/store/temp/user/r.b/a/0000/c_1.root",
            "/store/user/r_b/a/b.c/d.root",
        ),
        *("/store/user/rossi/a/b/c.txt", "/store/user/rossi/a/b/c.d.root", "/store/user/rossi/a//b/c.root"),
        *("/store/mc/rossi/a/b/c.root", f"/store/user/rossi/a/b/{'c' * 468}.root"),
    ],
)
def test_we_refuse_the_names_that_it_refuses(at: DBSBench, name: str) -> None:
    body = body_of(0)
    body["files"][0]["logical_file_name"] = body["file_conf_list"][0]["lfn"] = name
    with at.client() as client:
        if file_problem(a_file(lfn=name)) is None:
            client.insert_block(body)
            return
        with pytest.raises(FilesNotTaken):
            client.insert_block(body)


# --- faults ---

BULK = ".*/bulkblocks"


def test_a_reply_that_was_lost_after_the_commit(at: DBSBench) -> None:
    at.fault(api=[{"action": "lost_reply", "path": BULK, "count": 1}])
    with at.client() as client:
        with pytest.raises(DBSUnreachable) as caught:
            client.insert_block(body_of(0))
        assert caught.value.maybe_delivered
        assert client.block_exists(a_block(0).name)
        with pytest.raises(BlockExists):
            client.insert_block(body_of(0))


def test_a_request_that_was_lost(at: DBSBench) -> None:
    at.fault(api=[{"action": "reset", "path": BULK, "count": 1}])
    with at.client() as client:
        with pytest.raises(DBSUnreachable) as caught:
            client.insert_block(body_of(0))
        assert caught.value.maybe_delivered
        assert not client.block_exists(a_block(0).name)
        client.insert_block(body_of(0))


def test_a_reply_that_comes_too_late(at: DBSBench) -> None:
    at.fault(api=[{"action": "latency", "latency_s": 0.8, "path": BULK, "count": 1}])
    with at.client(patience=HURRIED) as hurried:
        with pytest.raises(DBSUnreachable) as caught:
            hurried.insert_block(body_of(0))
        assert caught.value.maybe_delivered
        # It is at work still: "not there" is no proof that it will not be.
        assert not hurried.block_exists(a_block(0).name)
        time.sleep(1)
        assert hurried.block_exists(a_block(0).name)


def test_a_body_that_the_front_does_not_take(at: DBSBench) -> None:
    small, large = (encoded(body_of(number, *map(a_file, range(number + 1)))) for number in (0, 9))
    at.fault(api=[{"action": "status", "status": 413, "path": BULK, "over_bytes": len(small)}])
    with at.client() as client:
        with pytest.raises(BlockTooLarge):
            client.insert_block(large)
        client.insert_block(small)


def test_an_outage(at: DBSBench) -> None:
    at.fault(api=[{"action": "status"}])
    with at.client() as client:
        with pytest.raises(DBSUnavailable):
            client.insert_block(body_of(0))
        with pytest.raises(DBSUnavailable):
            client.block(a_block(0).name)
        at.fault()
        client.insert_block(body_of(0))


def test_a_race_that_was_lost_is_run_again(at: DBSBench) -> None:
    race = (
        '[{"error": {"reason": "ORA-00001: unique constraint violated", "message": "", "function": "dbs.x", '
        '"code": 110}, "http": {"code": 400}}]'
    )
    fault = {"action": "status", "status": 400, "body": race, "path": BULK}
    at.fault(api=[{**fault, "count": 2}])
    with at.client() as client:
        client.insert_block(body_of(0))
        at.fault(api=[fault])
        with pytest.raises(DBSRace) as caught:
            client.insert_block(body_of(1))
    assert not caught.value.maybe_delivered


def test_too_many_requests_pass(at: DBSBench) -> None:
    at.fault(api=[{"action": "status", "status": 429, "body": "Too Many Requests", "count": 2}])
    with at.client() as client:
        client.insert_block(body_of(0))


def test_the_knobs(at: DBSBench) -> None:
    at.fault(api=[{"action": "status", "path": ".*"}])
    assert at.session.put(f"{at.url}/sandbox/faults", data="{}", timeout=20).status_code == 200
    assert at.dbs.faults.plan.api == ()
    answer = at.session.put(f"{at.url}/sandbox/faults", data='{"api": 1}', timeout=20)
    assert answer.status_code == 400
    assert at.session.get(f"{at.url}/sandbox/faults", timeout=20).json()["api"] == []


def test_an_error_says_that_it_is_compressed_and_is_not(at: DBSBench) -> None:
    """That is why the client asks for no compression: requests cannot read the real server's errors."""
    headers = {"Content-Type": "application/json", "Accept-Encoding": "gzip"}
    path = f"{at.url}/dbs/prod/phys03/DBSWriter/bulkblocks"
    with at.session.post(path, data="{}", headers=headers, stream=True, timeout=20) as answer:
        assert answer.headers["Content-Encoding"] == "gzip"
        raw = answer.raw.read(decode_content=False)
        assert raw.startswith(b"[{")
    blocks = at.ask("GET", "phys03/DBSReader/blocks", params={"block_name": "/a/b/C#1"}, headers=headers)
    assert blocks.json() == []


# --- as a program ---


def test_its_options(tmp_path: Path) -> None:
    needed = ["--cert", "c", "--key", "k", "--ca", "a", "--state", str(tmp_path)]
    args = _parser().parse_args(needed)
    assert (args.port, args.host, args.instance, args.migration_step) == (8447, "127.0.0.1", [], 0.5)
    dbs = SandboxDBS(Options(state=tmp_path, instances=("int/phys03",)))
    dbs.close()
    assert [path.name for path in tmp_path.glob("*.sqlite")] == ["int-phys03.sqlite"]
