"""A21 and A22: what lies at the destination, and whether a retry may overwrite it."""

from __future__ import annotations

from typing import Any

import pytest

from asyncstageout.catalogue.policies import put_policy
from asyncstageout.core.existing import THERE_ALREADY
from fixtures.catalogue import Add, assert_audited, record, states
from fixtures.cycles import House, jobs_at_fts

EXISTS = "DESTINATION [17] Destination file exists and overwrite is not enabled"
SPOILED = "DESTINATION [5] User-defined and destination ADLER32 checksum do not match (a != b)"
SAME = {"file_size": 1001, "checksum_type": "ADLER32", "checksum_value": "2", "file_on_tape": False}
WRONG = SAME | {"checksum_value": "ffff"}


@pytest.fixture
def careful(house: House, add: Add) -> House:
    """A house where nothing is overwritten, with one file."""
    put_policy(house.conn, None, None, {"overwrite": False}, "test")
    add(record(1))
    return house


def attempt(house: House, run_id: str, reason: str, there: dict[str, Any] | None = None) -> str | None:
    """Let one attempt fail, with FTS's report of what was in the way; return the job's overwrite flag."""
    house.set_faults(files=[{"path": "out_1.root", "reason": reason}])
    house.make_due()
    house.run_cycle(run_id)
    job = jobs_at_fts(house)[-1]
    house.finish_at_fts()
    if there:
        assert job.dst_file_report
        file = job.files[0]
        house.fts.fts.call(
            lambda: setattr(file, "file_metadata", {**(file.file_metadata or {}), "dst_file": there})
        )
    house.sense()
    house.update()
    flag: str | None = job.overwrite_flag
    return flag


def last_event(house: House) -> tuple[str, str | None]:
    row = house.conn.execute(
        "SELECT to_state::text, reason FROM transfer_event ORDER BY at DESC LIMIT 1"
    ).fetchone()
    assert row is not None
    return row[0], row[1]


def test_the_very_file_is_there_already(careful: House) -> None:
    attempt(careful, "first", EXISTS, SAME)
    assert states(careful.conn) == {"DONE": 1}
    assert last_event(careful) == ("DONE", THERE_ALREADY)
    assert careful.conn.execute("SELECT failure_category FROM transfer").fetchone() == (None,)
    assert_audited(careful.conn)


@pytest.mark.parametrize("there", [WRONG, SAME | {"file_size": 7}, None])
def test_a_strangers_file_is_not_touched(careful: House, there: dict[str, Any] | None) -> None:
    attempt(careful, "first", EXISTS, there)
    assert careful.conn.execute("SELECT state::text, failure_category, attempt FROM transfer").fetchall() == [
        ("FAILED", "destination-exists", 1)
    ]
    assert_audited(careful.conn)


def test_our_own_left_over_is_overwritten_once(careful: House) -> None:
    assert attempt(careful, "first", "TRANSFER [5] copy HTTP 500") is None
    assert attempt(careful, "second", EXISTS, WRONG) is None
    assert states(careful.conn) == {"RETRY": 1}
    assert attempt(careful, "third", EXISTS) == "Y"
    assert states(careful.conn) == {"FAILED": 1}, "on tape: no overwriting helps"
    assert_audited(careful.conn)


def test_not_where_the_policy_forbids_it(careful: House) -> None:
    put_policy(careful.conn, None, None, {"overwrite": False, "overwrite_wrong": False}, "test")
    attempt(careful, "first", "TRANSFER [5] copy HTTP 500")
    attempt(careful, "second", EXISTS, WRONG)
    assert states(careful.conn) == {"FAILED": 1}


def test_what_was_spoiled_on_the_way_goes_again_with_overwrite(careful: House) -> None:
    """A22: FTS may not have removed what arrived wrong."""
    assert attempt(careful, "first", SPOILED) is None
    assert attempt(careful, "second", SPOILED) == "Y"
    assert states(careful.conn) == {"FAILED": 1}, "twice is enough"


def test_a_wrong_source_is_not_tried_again(careful: House) -> None:
    attempt(
        careful,
        "first",
        "TRANSFER [5] SOURCE CHECKSUM MISMATCH Source and user-defined ADLER32 do not match (a != b)",
    )
    assert careful.conn.execute("SELECT state::text, failure_category FROM transfer").fetchall() == [
        ("FAILED", "source-checksum")
    ]


def test_where_overwriting_is_on_nothing_is_asked(house: House, add: Add) -> None:
    add(record(1))
    assert attempt(house, "first", "TRANSFER [5] copy HTTP 500") == "Y"
    assert not jobs_at_fts(house)[-1].dst_file_report


def test_driven_again_by_a_person_it_asks_again(careful: House) -> None:
    """A backfill starts over: no overwriting on the strength of what an earlier life of the file met."""
    attempt(careful, "first", SPOILED)
    attempt(careful, "second", SPOILED)
    careful.collect("backfill", created_from="2020-01-01T00:00:00Z", created_to="2100-01-01T00:00:00Z")
    assert states(careful.conn) == {"NEW": 1}
    assert attempt(careful, "third", EXISTS, WRONG) is None
    assert states(careful.conn) == {"FAILED": 1}
