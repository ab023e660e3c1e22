"""Files into jobs, jobs into shards."""

from __future__ import annotations

from collections import Counter
from itertools import count
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from asyncstageout.core.planning import (
    SHARE,
    FileNames,
    JobKey,
    Link,
    PendingFile,
    ShardLoad,
    pack_shards,
    plan_jobs,
)

sites = st.sampled_from(["T2_IT_Bari", "T2_CH_CERN", "T2_US_MIT"])
pending = st.builds(
    PendingFile,
    transfer_id=st.integers(1, 10**6),
    source=sites,
    destination=sites,
    username=st.sampled_from(["alice", "bob"]),
    identity=st.sampled_from(["alice", "bob"]),
    activity=st.sampled_from(["default", "Analysis"]),
    priority=st.integers(1, 5),
    size_bytes=st.integers(0, 10**12),
    source_lfn=st.just("/store/a"),
    destination_lfn=st.just("/store/b"),
    overwrite=st.booleans(),
)


def key_of(file: PendingFile) -> JobKey:
    params = (("overwrite", file.overwrite),)
    names = FileNames(1, "davs", 2, "davs")
    return JobKey(
        file.source, file.destination, "fts", file.identity, file.activity, file.priority, names, params
    )


@given(st.lists(pending, max_size=200, unique_by=lambda file: file.transfer_id), st.integers(1, 30))
def test_every_file_is_in_one_job_of_its_own_kind(files: list[PendingFile], size: int) -> None:
    numbers = count(1)
    jobs = plan_jobs(
        [(key_of(file), file) for file in files], lambda _: size, lambda: UUID(int=next(numbers))
    )
    planned = [transfer_id for job in jobs for transfer_id in job.transfer_ids]
    assert sorted(planned) == sorted(file.transfer_id for file in files)
    assert len({job.sid for job in jobs}) == len(jobs)
    by_id = {file.transfer_id: file for file in files}
    for job in jobs:
        assert 0 < len(job.transfer_ids) <= size
        members = [by_id[transfer_id] for transfer_id in job.transfer_ids]
        assert {key_of(file) for file in members} == {job.key}
        assert job.size_bytes == sum(file.size_bytes for file in members)
    # No more jobs than needed: all jobs of a key are full but its last.
    kinds = Counter(key_of(file) for file in files)
    assert Counter(job.key for job in jobs) == {key: -(-number // size) for key, number in kinds.items()}


def test_order_is_kept_inside_a_job() -> None:
    files = [
        PendingFile(
            number, "T2_IT_Bari", "T2_CH_CERN", "alice", "alice", "default", 3, 1, "/store/a", "/store/b"
        )
        for number in (5, 2, 9, 1)
    ]
    (job,) = plan_jobs([(key_of(file), file) for file in files], lambda _: 200, lambda: UUID(int=1))
    assert job.transfer_ids == (5, 2, 9, 1)


loads = st.lists(
    st.builds(ShardLoad, sid=st.uuids(), link=st.builds(Link, sites, sites), file_count=st.integers(1, 200)),
    max_size=120,
    unique_by=lambda load: load.sid,
)


@given(loads, st.integers(1, 6), st.integers(1, 20))
def test_shards_hold_every_job_once(jobs: list[ShardLoad], most: int, per_shard: int) -> None:
    shards = pack_shards(jobs, most, per_shard)
    assert len(shards) <= most
    assert sorted(sid for shard in shards for sid in shard.sids) == sorted(job.sid for job in jobs)
    assert sum(shard.file_count for shard in shards) == sum(job.file_count for job in jobs)


def test_few_jobs_make_one_shard_and_many_balanced_ones() -> None:
    links = [Link("T2_IT_Bari", f"T2_US_{name}") for name in "ABCDEFGH"]
    jobs = [ShardLoad(UUID(int=number), links[number % 8], 200) for number in range(80)]
    assert len(pack_shards(jobs[:10], 4, 20)) == 1
    shards = pack_shards(jobs, 4, 20)
    assert [shard.file_count for shard in shards] == [4000] * 4
    assert shards[0].label.endswith("and 1 more link")
    assert pack_shards(jobs, 1, 20)[0].label == "T2_IT_Bari → T2_US_A and 7 more links"
    assert pack_shards(jobs[:1], 1, 20)[0].label == "T2_IT_Bari → T2_US_A"
    assert pack_shards([], 4, 20) == []


def test_weights_favour_priority_and_starve_nobody() -> None:
    assert list(SHARE.values()) == sorted(SHARE.values())
    assert min(SHARE.values()) > 0
