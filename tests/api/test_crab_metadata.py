"""CRAB's ``filemetadata``: PostJob says, publishers read, and ours publishes what it is given to."""

from __future__ import annotations

from typing import Any

import pytest
from psycopg import Connection

from api.conftest import ALICE, ANY_SERVICE, API, BOB
from api.crab_clients import CrabRest, PostJob, Publisher, encoded
from fixtures.publication import Press

NAMES = {
    "taskname", "filetype", "jobid", "outdataset", "acquisitionera", "swversion", "inevents", "globaltag",
    "publishname", "location", "tmplocation", "runlumi", "adler32", "cksum", "md5", "lfn", "filesize",
    "parents", "state", "created", "tmplfn",
}  # fmt: skip
"""Of a row, as CRABServer gives it."""


@pytest.fixture
def post_job(api: API) -> PostJob:
    return PostJob(CrabRest(api(ALICE)), worker="asyncstageout")


@pytest.fixture
def reader(api: API) -> Publisher:
    return Publisher(CrabRest(api(ANY_SERVICE)))


def test_from_injection_to_dbs_metadata_first(press: Press, post_job: PostJob) -> None:
    for number in (1, 2):
        post_job.inject(number)
    press.land()
    assert press.run() == []
    for number in (1, 2):
        post_job.upload_metadata(number)
    assert press.run() == []  # not before its word
    post_job.set_publication_flag(1, 2)
    press.run()
    assert set(post_job.publications().values()) == {"DONE"}
    doc = post_job.doc(1)
    assert doc is not None
    assert doc["dbs_blockname"] == press.at_dbs()[post_job.destination_lfn(1)]


def test_rows_are_as_crabs(post_job: PostJob, reader: Publisher) -> None:
    post_job.inject(1)
    post_job.upload_metadata(1, inparentlfns=["/store/mc/x/y.root"], outfileruns=["1", "2"],
        outfilelumis=["3:10,4:20", "5"])  # fmt: skip
    (row,) = reader.metadata(post_job.task, post_job.destination_lfn(1))
    assert row.keys() == NAMES
    assert row["runlumi"] == {"1": {"3": "10", "4": "20"}, "2": {"5": "None"}}
    assert (row["cksum"], row["filesize"], row["inevents"]) == (2091402041, 1001, 100)
    assert (row["parents"], row["tmplfn"]) == (["/store/mc/x/y.root"], post_job.lfn(1))
    assert reader.metadata(post_job.task, "/store/user/alice/mc/test/other.root") == []


def test_a_later_retry_replaces_what_was_said(post_job: PostJob, reader: Publisher) -> None:
    """CRAB's own service keeps the lumis and checksums of the first."""
    post_job.inject(1)
    post_job.upload_metadata(1)
    post_job.upload_metadata(1, outfilelumis=["9:1"], outsize=7)
    (row,) = reader.metadata(post_job.task)
    assert (row["runlumi"], row["filesize"]) == ({"1": {"9": "1"}}, 7)


def test_before_the_file_they_are_kept_for_it(press: Press, post_job: PostJob) -> None:
    post_job.upload_metadata(1)
    post_job.inject(1, publish=1, publication_state="NEW")
    press.land()
    press.conn.execute("UPDATE transfer SET due_at = now()")
    press.run()
    assert press.publications() == {"DONE": 1}


def test_inputs_of_two_tasks_do_not_meet(api: API, post_job: PostJob, reader: Publisher) -> None:
    bob = PostJob(CrabRest(api(BOB)), username="bob", task="261123_040001:bob_crab_test")
    inputs = {"outtype": "POOLIN", "outlfn": "/store/mc/x/y.root_1", "outtmplfn": "None"}
    post_job.upload_metadata(1, **inputs)
    bob.upload_metadata(1, **inputs)
    for job in (post_job, bob):
        (row,) = reader.metadata(job.task, filetype="POOLIN")
        assert row["taskname"] == job.task
    assert reader.metadata(post_job.task) == []


def test_a_state_is_kept_and_nothing_hangs_on_it(post_job: PostJob, reader: Publisher) -> None:
    post_job.inject(1)
    post_job.upload_metadata(1)
    said = {"taskname": post_job.task, "outlfn": post_job.destination_lfn(1), "filestate": "FINISHED"}
    assert post_job.rest.ok("POST", "filemetadata", encoded(said))["result"] == [{"modified": 1}]
    (row,) = reader.metadata(post_job.task)
    assert row["state"] == "FINISHED"


def test_only_so_many_the_newest_first(post_job: PostJob, reader: Publisher) -> None:
    for number in (1, 2, 3):
        post_job.inject(number)
        post_job.upload_metadata(number)
    assert [row["jobid"] for row in reader.metadata(post_job.task, howmany=2)] == ["3", "2"]


@pytest.mark.parametrize(
    ("changes", "parameter"),
    [
        ({"outfilelumis": ["1", "2"]}, "outfilelumis"),
        ({"outfilelumis": ["1;2"]}, "outfilelumis"),
        ({"outfileruns": ["x"]}, "outfileruns"),
        ({"appver": "14"}, "appver"),
        ({"outtype": "PNG"}, "outtype"),
        ({"outlfn": "file:x"}, "outlfn"),
        ({"events": "-1"}, "events"),
        ({"inparentlfns": ["/store/it's"]}, "inparentlfns"),
    ],
)
def test_what_crab_would_not_take_is_named(
    post_job: PostJob, changes: dict[str, Any], parameter: str
) -> None:
    post_job.inject(1)
    with pytest.raises(AssertionError, match=f'"parameter":"{parameter}"'):
        post_job.upload_metadata(1, **changes)


def test_what_is_published_is_not_changed(conn: Connection, post_job: PostJob) -> None:
    post_job.inject(1)
    post_job.upload_metadata(1)
    conn.execute("UPDATE transfer SET publication = 'DONE'")
    post_job.upload_metadata(1)  # the same again
    with pytest.raises(AssertionError, match="the file is published"):
        post_job.upload_metadata(1, events=7)
