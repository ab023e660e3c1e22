"""What is sent to FTS, and how much is asked at once."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncstageout.core.fts import (
    MAX_JOB_METADATA_BYTES,
    MAX_URL_CHARS,
    UNREADABLE,
    FTSFileStatus,
    JobParams,
    JobSubmission,
    NotSubmittable,
    TransferFile,
    chunks,
    parse_file,
    parse_job,
    submission_body,
)

FILE = TransferFile(
    7, 2, "davs://a.example.org:8443/x", "davs://b.example.org:8443/y", 1000, "1a2b3c", "Output"
)


def test_a_job_with_all_that_it_may_say() -> None:
    params = JobParams(
        overwrite=True,
        max_time_in_queue="10h",
        timeout_s=3600,
        retry_delay_s=60,
        reuse=True,
        job_metadata={"task": "t"},
    )
    body = submission_body(JobSubmission("sid", (FILE,), params))
    assert body == {
        "files": [
            {
                "sources": ["davs://a.example.org:8443/x"],
                "destinations": ["davs://b.example.org:8443/y"],
                "filesize": 1000,
                "checksum": "ADLER32:001a2b3c",
                "activity": "Output",
                "metadata": {"id": 7, "attempt": 2},
            }
        ],
        "params": {
            "id_generator": "deterministic",
            "sid": "sid",
            "verify_checksum": "both",
            "overwrite": True,
            "retry": -1,
            "retry_delay": 60,
            "priority": 3,
            "max_time_in_queue": "10h",
            "timeout": 3600,
            "reuse": True,
            "job_metadata": {"task": "t"},
        },
    }


def test_tokens_scitags_and_spaces() -> None:
    file = replace(FILE, source_token="from", destination_token="to", scitag=65535)
    params = JobParams(source_spacetoken="A", destination_spacetoken="B", unmanaged_tokens=True)
    submission = JobSubmission("sid", (file,), params)
    body = submission_body(submission)
    assert body["files"][0].items() >= {"source_tokens": ["from"], "destination_tokens": ["to"]}.items()
    assert body["files"][0]["scitag"] == 65535
    spaces = {"source_spacetoken": "A", "destination_spacetoken": "B", "unmanaged_tokens": True}
    assert body["params"].items() >= spaces.items()
    assert "from" not in repr(submission)


@pytest.mark.parametrize(
    "wrong", [{"scitag": 64}, {"scitag": 65536}, {"source_token": "x"}, {"destination_token": "x"}]
)
def test_what_fts_would_refuse_of_one_file_is_not_sent(wrong: dict[str, Any]) -> None:
    with pytest.raises(NotSubmittable) as raised:
        submission_body(JobSubmission("sid", (replace(FILE, **wrong),)))
    assert raised.value.transfer_id == FILE.transfer_id


def test_a_plain_job_leaves_the_rest_to_fts() -> None:
    body = submission_body(JobSubmission("sid", (replace(FILE, adler32=None),)))
    assert "checksum" not in body["files"][0]
    assert set(body["params"]) == {
        "id_generator",
        "sid",
        "verify_checksum",
        "overwrite",
        "retry",
        "priority",
    }


@pytest.mark.parametrize(
    "change",
    [
        {"source_url": "/etc/passwd"},
        {"source_url": "file:///etc/passwd"},
        {"dest_url": "davs://b.example.org"},
        {"dest_url": "davs://b.example.org/"},
        {"dest_url": "davs:/y"},
        {"dest_url": "davs://b.example.org/" + "y" * MAX_URL_CHARS},
        {"adler32": "not-hex"},
        {"adler32": "123456789"},
    ],
    ids=str,
)
def test_the_file_to_blame_is_named(change: dict[str, str]) -> None:
    job = JobSubmission("sid", (replace(FILE, transfer_id=8, dest_url=FILE.dest_url + "2"), FILE))
    bad = replace(job, files=(job.files[0], replace(FILE, **change)))  # type: ignore[arg-type]
    with pytest.raises(NotSubmittable) as caught:
        submission_body(bad)
    assert caught.value.transfer_id == 7
    assert "transfer 7" in str(caught.value)


def test_two_files_for_one_destination_are_not_sent() -> None:
    """FTS takes both, and the slower one wins."""
    with pytest.raises(NotSubmittable) as caught:
        submission_body(JobSubmission("sid", (FILE, replace(FILE, transfer_id=8))))
    assert caught.value.transfer_id == 8


@pytest.mark.parametrize(
    "job",
    [
        JobSubmission("", (FILE,)),
        JobSubmission("sid", ()),
        JobSubmission("sid", (FILE,), JobParams(priority=6)),
        JobSubmission("sid", (FILE,), JobParams(job_metadata={"x": "y" * MAX_JOB_METADATA_BYTES})),
    ],
    ids=["no sid", "no files", "priority", "metadata"],
)
def test_a_job_to_blame_names_no_file(job: JobSubmission) -> None:
    with pytest.raises(NotSubmittable) as caught:
        submission_body(job)
    assert caught.value.transfer_id is None


def test_metadata_are_measured_as_fts_does() -> None:
    """FTS adds a key of its own before it measures."""
    room = MAX_JOB_METADATA_BYTES - len(json.dumps({"x": "", "auth_method": "certificate"}))
    fits = JobParams(job_metadata={"x": "y" * room})
    assert submission_body(JobSubmission("sid", (FILE,), fits))
    with pytest.raises(NotSubmittable):
        submission_body(JobSubmission("sid", (FILE,), replace(fits, job_metadata={"x": "y" * (room + 1)})))


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"id": 5, "attempt": 3}, (5, 3)),
        ({"id": 5}, (5, None)),
        ({"id": "5", "attempt": True}, (None, None)),
        ({"label": "x"}, (None, None)),
        (None, (None, None)),
        ("text", (None, None)),
    ],
)
def test_metadata_of_others_are_not_taken_for_ours(
    metadata: object, expected: tuple[int | None, int | None]
) -> None:
    found = parse_file({"file_state": "ACTIVE", "file_metadata": metadata})
    assert (found.transfer_id, found.attempt) == expected


def test_a_state_of_the_future_is_just_a_word() -> None:
    row = {"job_id": str(FTS_ID), "job_state": "TELEPORTING", "files": [{"file_state": "HALF_THERE"}]}
    job = parse_job(row)
    assert (job.state, job.files) == ("TELEPORTING", (FTSFileStatus(None, "HALF_THERE"),))  # type: ignore[union-attr]


FTS_ID = "dd0b1a74-e64f-11f1-ae8a-02fc00000001"


@pytest.mark.parametrize(
    "row",
    [
        None,
        "text",
        [],
        {},
        {"job_id": "x", "job_state": "ACTIVE"},
        {"job_id": FTS_ID},
        {"job_id": FTS_ID, "http_status": "500 Internal"},
        {"job_id": FTS_ID, "job_state": None},
        {"job_id": FTS_ID, "job_state": "ACTIVE", "submit_time": "yesterday"},
        {"job_id": FTS_ID, "job_state": "ACTIVE", "files": [{}]},
        {"job_id": FTS_ID, "job_state": "ACTIVE", "files": ["x"]},
    ],
    ids=str,
)
def test_what_is_no_job_is_unreadable(row: object) -> None:
    with pytest.raises(UNREADABLE):
        parse_job(row)


@given(
    weights=st.lists(st.integers(0, 60), max_size=200),
    max_items=st.integers(1, 20),
    max_weight=st.integers(0, 50),
)
def test_chunks_keep_everything_in_order_and_within_bounds(
    weights: list[int], max_items: int, max_weight: int
) -> None:
    items = list(enumerate(weights))
    parts = list(chunks(items, max_items=max_items, max_weight=max_weight, weight=lambda item: item[1]))
    assert [item for part in parts for item in part] == items
    for part in parts:
        assert 1 <= len(part) <= max_items
        assert len(part) == 1 or sum(weight for _, weight in part) <= max_weight
    for part, following in pairwise(parts):
        full = len(part) == max_items
        too_heavy = sum(weight for _, weight in part) + following[0][1] > max_weight
        assert full or too_heavy, "a piece was cut too early"
