"""Files into jobs, jobs into shards, settings into policies."""

from __future__ import annotations

from collections import Counter
from itertools import count
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncstageout.core.planning import (
    SHARE,
    JobKey,
    Link,
    PendingFile,
    ShardLoad,
    pack_shards,
    plan_jobs,
)
from asyncstageout.core.policies import LinkPolicy, PolicyRow, policy_for

sites = st.sampled_from(["T2_IT_Bari", "T2_CH_CERN", "T2_US_MIT"])
pending = st.builds(
    PendingFile,
    transfer_id=st.integers(1, 10**6),
    source=sites,
    destination=sites,
    identity=st.sampled_from(["service", "alice"]),
    activity=st.sampled_from(["default", "Analysis"]),
    priority=st.integers(1, 5),
    size_bytes=st.integers(0, 10**12),
    overwrite=st.booleans(),
)


@given(st.lists(pending, max_size=200, unique_by=lambda file: file.transfer_id), st.integers(1, 30))
def test_every_file_is_in_one_job_of_its_own_kind(files: list[PendingFile], size: int) -> None:
    numbers = count(1)
    jobs = plan_jobs(files, lambda _: LinkPolicy(files_per_job=size), lambda: UUID(int=next(numbers)))
    planned = [transfer_id for job in jobs for transfer_id in job.transfer_ids]
    assert sorted(planned) == sorted(file.transfer_id for file in files)
    assert len({job.sid for job in jobs}) == len(jobs)
    by_id = {file.transfer_id: file for file in files}
    for job in jobs:
        assert 0 < len(job.transfer_ids) <= size
        members = [by_id[transfer_id] for transfer_id in job.transfer_ids]
        assert {JobKey.of(file) for file in members} == {job.key}
        assert job.size_bytes == sum(file.size_bytes for file in members)
    # No more jobs than needed: all jobs of a key are full but its last.
    kinds = Counter(JobKey.of(file) for file in files)
    assert Counter(job.key for job in jobs) == {key: -(-number // size) for key, number in kinds.items()}


def test_order_is_kept_inside_a_job() -> None:
    files = [
        PendingFile(number, "T2_IT_Bari", "T2_CH_CERN", "service", "default", 3, 1) for number in (5, 2, 9, 1)
    ]
    (job,) = plan_jobs(files, lambda _: LinkPolicy(), lambda: UUID(int=1))
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


ROWS = [
    PolicyRow(None, None, {"files_per_job": 100, "max_attempts": 5}),
    PolicyRow("T2_IT_Bari", None, {"files_per_job": 50, "paused": "source drained"}),
    PolicyRow(None, "T2_CH_CERN", {"files_per_job": 60}),
    PolicyRow("T2_IT_Bari", "T2_CH_CERN", {"paused": None}),
]


@pytest.mark.parametrize(
    ("link", "files_per_job", "paused"),
    [
        (("T2_US_MIT", "T2_DE_DESY"), 100, None),
        (("T2_IT_Bari", "T2_DE_DESY"), 50, "source drained"),
        (("T2_US_MIT", "T2_CH_CERN"), 60, None),
        (("T2_IT_Bari", "T2_CH_CERN"), 60, None),
    ],
)
def test_the_most_specific_setting_counts(
    link: tuple[str, str], files_per_job: int, paused: str | None
) -> None:
    policy = policy_for(reversed(ROWS), *link)
    assert (policy.files_per_job, policy.paused, policy.max_attempts) == (files_per_job, paused, 5)
    assert policy_for([], *link) == LinkPolicy()
