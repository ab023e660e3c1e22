"""Files into blocks, blocks to their end: every rule by itself."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from asyncstageout.core.blocks import (
    AfterSilence,
    BlockKey,
    Filling,
    OpenBlock,
    PublicationSettings,
    ReadyFile,
    after_silence,
    closing_times,
    fill,
    wait_s,
)

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
KEY = BlockKey(1, "/a/b-c/USER", "T2_CH_CERN", "dbs_default")
RULES = PublicationSettings(block_files=3, block_lumis=10, block_payload_bytes=1000)


def file(number: int, *, lumis: int = 1, payload_bytes: int = 10, key: BlockKey = KEY) -> ReadyFile:
    return ReadyFile(number, key, 1, lumis, payload_bytes, NOON)


def filled(*files: ReadyFile, block: Filling | None = None) -> list[tuple[list[int], str | None]]:
    fillings = fill(files, {block.key: block} if block else {}, lambda _: RULES)
    return [([one.transfer_id for one in each.added], each.close_reason) for each in fillings]


def test_a_block_is_closed_with_its_last_file_and_the_rest_stays_open() -> None:
    assert filled(*map(file, range(7))) == [
        ([0, 1, 2], "count: 3 files"), ([3, 4, 5], "count: 3 files"), ([6], None),
    ]  # fmt: skip


def test_an_open_block_is_filled_first() -> None:
    block = Filling(KEY, block_id=7, files=2, lumis=2, payload_bytes=20)
    assert filled(file(1), file(2), block=block) == [([1], "count: 3 files"), ([2], None)]


def test_a_file_that_would_be_too_much_opens_the_next_block() -> None:
    assert filled(file(1, lumis=6), file(2, lumis=5)) == [
        ([1], "lumis: the next file would make more than 10"), ([2], None),
    ]  # fmt: skip
    block = Filling(KEY, block_id=7, files=1, lumis=1, payload_bytes=995)
    reason = "size: the next file would make more than 1,000 bytes"
    assert filled(file(1), block=block) == [([], reason), ([1], None)]


def test_a_file_that_is_too_large_by_itself_goes_alone() -> None:
    found = filled(file(1, lumis=99), file(2, payload_bytes=5000), file(3))
    assert [ids for ids, _ in found] == [[1], [2], [3]]


def test_keys_do_not_mix() -> None:
    other = KEY._replace(destination="T2_US_MIT")
    assert filled(file(1), file(2, key=other), file(3)) == [([1, 3], None), ([2], None)]


def closes(block: OpenBlock) -> tuple[str, timedelta]:
    times = closing_times(block, PublicationSettings())
    reason = min(times, key=times.__getitem__)
    return reason.partition(":")[0], times[reason] - NOON


OPEN = OpenBlock(1, "dbs_default", NOON, NOON, None, None)


@pytest.mark.parametrize(
    ("block", "when"),
    [
        (OPEN, ("first", timedelta(minutes=10))),
        (
            OPEN._replace(dataset_closed_at=NOON - timedelta(hours=1)),
            ("time", timedelta(seconds=18_800 - 3600)),
        ),
        # After a long silence a block still takes what comes within ten minutes.
        (OPEN._replace(dataset_closed_at=NOON - timedelta(days=9)), ("time", timedelta(minutes=10))),
        (OPEN._replace(oldest_at=NOON - timedelta(days=4)), ("age", -timedelta(days=1))),
        (OPEN._replace(task_ended_at=NOON - timedelta(hours=3)), ("end", -timedelta(hours=3))),
    ],
)
def test_the_first_rule_of_time_counts(block: OpenBlock, when: tuple[str, timedelta]) -> None:
    assert closes(block) == when


@pytest.mark.parametrize(
    ("silences", "files", "others", "follows"),
    [
        (1, 100, True, AfterSilence.TELL),
        (2, 100, True, AfterSilence.SPLIT),
        (3, 100, False, AfterSilence.TELL),
        (4, 100, False, AfterSilence.SPLIT),
        (9, 1, False, AfterSilence.TELL),
        (4, 1, True, AfterSilence.TELL),
        (5, 1, True, AfterSilence.GIVE_UP),
    ],
)
def test_silence_is_a_blocks_fault_only_when_others_go(
    silences: int, files: int, others: bool, follows: AfterSilence
) -> None:
    assert after_silence(silences, files, PublicationSettings(), others_go=others) is follows


def test_waits_grow_to_an_hour() -> None:
    assert [wait_s(times) for times in range(1, 6)] == [60, 240, 960, 3600, 3600]
