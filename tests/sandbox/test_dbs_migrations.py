"""The sandbox's DBS copies blocks from its other instance: in steps, slowly, in vain, again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from asyncstageout.clients.dbs_errors import DBSNotFound, DBSRefused, MigrationRefused
from asyncstageout.core import dbs_answers
from asyncstageout.sandbox.tls import SandboxTLS
from sandbox.dbs_harness import PARENTS, DBSBench, a_block, a_file, body_of, dbs_bench, lfn
from sandbox.harness import certificates

STEP_S = 10


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> SandboxTLS:
    return certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def at(tls: SandboxTLS, tmp_path: Path) -> Iterator[DBSBench]:
    with dbs_bench(tls, tmp_path) as made:
        yield made


def family(at: DBSBench) -> tuple[str, str]:
    """Put a block and its parent into the global DBS."""
    at.put("global", body_of(1, a_file(1), dataset=PARENTS))
    at.put("global", body_of(0, a_file(0, parents=(lfn(1),)), parent_datasets=(PARENTS,)))
    return a_block(0).name, a_block(1, dataset=PARENTS).name


def test_a_block_is_copied_after_its_parents(at: DBSBench) -> None:
    child, parent = family(at)
    with at.client() as client:
        request = client.submit_migration(at.global_reader, child)
        assert request.state == dbs_answers.QUEUED
        seen = []
        for _ in range(5):
            at.clock.now_s += STEP_S
            now = client.migration(request.request_id)
            assert now is not None
            seen.append(now.state)
        assert seen == [
            dbs_answers.PENDING,
            dbs_answers.IN_PROGRESS,
            *[dbs_answers.COMPLETED] * 3,
        ]
        assert [one.is_at_destination for one in client.migrations_of(parent)] == [True]
        assert client.blocks_of_files([lfn(0), lfn(1)]) == {lfn(0): child, lfn(1): parent}
        # What it was for.
        client.insert_block(body_of(7, a_file(7, parents=(lfn(1),))))


def test_it_is_asked_for_again_at_every_time(at: DBSBench) -> None:
    child, _parent = family(at)
    with at.client() as client:
        first = client.submit_migration(at.global_reader, child)
        for _ in range(4):
            assert client.submit_migration(at.global_reader, child).request_id == first.request_id
            at.clock.now_s += STEP_S


def test_a_block_that_is_there_has_nothing_to_migrate(at: DBSBench) -> None:
    family(at)
    at.put("phys03", body_of(1, a_file(1), dataset=PARENTS))
    with at.client() as client:
        request = client.submit_migration(at.global_reader, a_block(1, dataset=PARENTS).name)
        at.clock.now_s += 3 * STEP_S
        found = client.migration(request.request_id)
    assert found is not None
    assert (found.state, found.is_at_destination) == (dbs_answers.EXISTS, True)


def test_a_migration_that_is_slow(at: DBSBench) -> None:
    child, parent = family(at)
    at.fault(migrations=[{"block": parent, "latency_s": 1000}])
    with at.client() as client:
        slow = client.submit_migration(at.global_reader, parent)
        at.clock.now_s += 100 * STEP_S
        found = client.migration(slow.request_id)
        assert found is not None
        assert (found.is_at_destination, found.has_failed) == (False, False)
        at.clock.now_s += 3 * 1000
        assert client.block_exists(parent)
        assert not client.block_exists(child)


def test_a_migration_that_fails_is_tried_again(at: DBSBench) -> None:
    child, parent = family(at)
    at.fault(migrations=[{"block": child, "failures": 2}])
    with at.client() as client:
        request = client.submit_migration(at.global_reader, child)
        at.clock.now_s += 4 * STEP_S
        found = client.migration(request.request_id)
        assert found is not None
        assert (found.is_at_destination, found.has_failed, found.retries) == (False, False, 2)
        assert client.block_exists(parent)
        at.clock.now_s += 2 * STEP_S
        assert client.block_exists(child)


def test_a_migration_that_failed_for_good_is_forgotten_and_asked_for_again(at: DBSBench) -> None:
    _child, parent = family(at)
    at.fault(migrations=[{"failures": None}])
    with at.client() as client:
        request = client.submit_migration(at.global_reader, parent)
        at.clock.now_s += 20 * STEP_S
        failed = client.submit_migration(at.global_reader, parent)
        assert (failed.request_id, failed.has_failed) == (request.request_id, True)
        at.fault()
        client.remove_migration(failed.request_id)
        with pytest.raises(DBSRefused):
            client.remove_migration(failed.request_id)
        again = client.submit_migration(at.global_reader, parent)
        assert again.request_id != failed.request_id
        at.clock.now_s += 3 * STEP_S
        assert client.block_exists(parent)


def test_what_the_other_dbs_does_not_have_is_not_copied(at: DBSBench) -> None:
    with at.client() as client, pytest.raises(MigrationRefused):
        client.submit_migration(at.global_reader, a_block(0).name)


def test_a_dataset_that_is_there_without_this_block_ends_for_good(at: DBSBench) -> None:
    family(at)
    with at.client() as client:
        request = client.submit_migration(at.global_reader, a_block(5).name)
        at.clock.now_s += 20 * STEP_S
        found = client.migration(request.request_id)
    assert found is not None
    assert found.has_failed


def test_a_path_of_another_server(at: DBSBench) -> None:
    with at.client() as client:
        client.migrate_url = client.reader_url
        with pytest.raises(DBSNotFound):
            client.submit_migration(at.global_reader, a_block(0).name)
