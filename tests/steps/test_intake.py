"""What a source offers gets in once; what is wrong is put aside, with all that was right taken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from psycopg import Connection

from asyncstageout.catalogue.intake_objects import read_until
from asyncstageout.catalogue.step_runs import Actor
from asyncstageout.steps import intake
from asyncstageout.steps.intake import (
    Gone,
    IntakeNeedsPeople,
    Interval,
    Record,
    Report,
    SourceUnreadable,
    Unreadable,
    numbered,
)
from asyncstageout.steps.recording import Summary, recorded
from fixtures.catalogue import assert_audited, record, states

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
INTERVAL = Interval(NOON, NOON + timedelta(minutes=5))


@dataclass
class FakeBatch:
    name: str
    rows: Sequence[Any]
    digest: str | None = "1"
    again: bool = True
    error: Exception | None = None
    """Raised after the rows."""
    told: list[tuple[str, Report]] = field(default_factory=list)
    reads: int = 0

    def records(self) -> Iterator[Record]:
        self.reads += 1
        for position, row in enumerate(self.rows, start=1):
            yield Record(position, row) if row != "garbage" else Record(position, None, "not JSON")
        if self.error:
            raise self.error

    def done(self, report: Report) -> None:
        self.told.append(("done", report))

    def refused(self, report: Report) -> None:
        self.told.append(("refused", report))

    @property
    def verdicts(self) -> list[str]:
        return [verdict for verdict, _ in self.told]


@dataclass
class FakeSource:
    offered: Sequence[FakeBatch]
    name: str = "fake"
    has_times: bool = False
    error: Exception | None = None
    asked: list[Interval] = field(default_factory=list)

    def batches(self, interval: Interval) -> Iterator[FakeBatch]:
        self.asked.append(interval)
        yield from self.offered
        if self.error:
            raise self.error


def collect(conn: Connection, source: FakeSource, step: int, **options: Any) -> Summary:
    return intake.collect(conn, source, options.pop("interval", INTERVAL), step, **options)


def objects(conn: Connection) -> list[tuple[Any, ...]]:
    return conn.execute(
        "SELECT name, digest, created, existed, refused, problem FROM intake_object ORDER BY name, digest"
    ).fetchall()


def test_what_is_offered_is_taken_and_marked(conn: Connection, step: int) -> None:
    batch = FakeBatch("a", [record(1), record(2)])
    summary = collect(conn, FakeSource([batch]), step)
    assert summary.sentence == "fake: 2 files taken in, 0 were there already, 0 refused"
    assert states(conn) == {"NEW": 2}
    assert batch.verdicts == ["done"]
    assert objects(conn) == [("a", "1", 2, 0, 0, None)]
    assert_audited(conn)


def test_an_object_that_was_taken_is_not_read_again_but_marked(conn: Connection, step: int) -> None:
    """The task may have died between the catalogue and the mark."""
    batch = FakeBatch("a", [record(1)])
    for _ in range(2):
        summary = collect(conn, FakeSource([batch]), step)
    assert (batch.reads, batch.verdicts) == (1, ["done", "done"])
    assert summary.counts["known"] == 1
    assert states(conn) == {"NEW": 1}


def test_the_same_name_with_other_content_is_another_object(conn: Connection, step: int) -> None:
    collect(conn, FakeSource([FakeBatch("a", [record(1)])]), step)
    later = FakeBatch("a", [record(1), record(2)], digest="2")
    assert collect(conn, FakeSource([later]), step).counts["existed"] == 1
    assert states(conn) == {"NEW": 2}


def test_of_a_bad_object_the_good_is_taken_and_the_rest_is_reported(conn: Connection, step: int) -> None:
    rows = [
        record(1),
        "garbage",
        record(2, source="T2_XX_Nowhere"),
        record(3) | {"size_bytes": -1},
        [7],
        record(4),
    ]
    batch = FakeBatch("a", rows)
    summary = collect(conn, FakeSource([batch]), step)
    [(verdict, report)] = batch.told
    assert verdict == "refused"
    assert [(one.position, one.field) for one in report.refusals] == [
        (2, "record"), (3, "request"), (4, "size_bytes"), (5, "request"),
    ]  # fmt: skip
    assert report.refusals[1].reason == "unknown source site T2_XX_Nowhere"
    assert (report.created, report.refused) == (2, 4)
    assert summary.sentence.endswith("4 refused; 1 of 1 objects need people")
    assert objects(conn) == [("a", "1", 2, 0, 4, "2: record: not JSON")]


def test_a_broken_object_stops_nobody(conn: Connection, step: int) -> None:
    broken = FakeBatch("a", [record(1)], error=Unreadable("cut off \0 at byte 7"))
    gone = FakeBatch("b", [], error=Gone("b"))
    good = FakeBatch("c", [record(2)])
    collect(conn, FakeSource([broken, gone, good]), step)
    assert (broken.verdicts, gone.verdicts, good.verdicts) == (["refused"], [], ["done"])
    assert objects(conn) == [("a", "1", 1, 0, 0, "cut off  at byte 7"), ("c", "1", 1, 0, 0, None)]


def test_one_with_a_problem_is_read_again_when_it_may_be_mended(conn: Connection, step: int) -> None:
    """It was put back after somebody added the site."""
    batch = FakeBatch("a", [record(1, source="T2_XX_Nowhere")])
    kept = FakeBatch("b", [record(2, source="T2_XX_Nowhere")], again=False)
    collect(conn, FakeSource([batch, kept]), step)
    conn.execute(
        'INSERT INTO site SELECT (jsonb_populate_record(s, \'{"name": "T2_XX_Nowhere"}\')).* FROM site s LIMIT 1'
    )
    collect(conn, FakeSource([batch, kept]), step)
    assert (batch.verdicts, kept.verdicts) == (["refused", "done"], ["refused"])
    assert states(conn) == {"NEW": 1}


def test_when_the_source_fails_what_came_before_is_taken_and_the_rest_comes_next_time(
    conn: Connection, step: int
) -> None:
    batch = FakeBatch("a", [record(1)], error=ConnectionError("storage is away"))
    with pytest.raises(ConnectionError):
        collect(conn, FakeSource([FakeBatch("0", [record(0)]), batch]), step)
    assert batch.verdicts == []
    batch.error = None
    collect(conn, FakeSource([batch]), step)
    assert states(conn) == {"NEW": 2}
    assert batch.verdicts == ["done"]


def test_a_dry_run_says_the_same_and_changes_nothing(conn: Connection, step: int) -> None:
    rows = [record(1), record(2, source="T2_XX_Nowhere")]
    batch = FakeBatch("a", rows)
    source = FakeSource([batch], has_times=True)
    summary = collect(conn, source, step, dry_run=True)
    assert (summary.counts["created"], summary.counts["refused"]) == (1, 1)
    assert "would be taken in" in summary.sentence
    assert (states(conn), objects(conn), batch.told) == ({}, [], [])


def test_large_objects_are_taken_in_pieces(
    conn: Connection, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "CHUNK", 10)
    monkeypatch.setattr(intake, "KEPT_REFUSALS", 3)
    rows: list[Any] = [record(number) for number in range(25)] + ["garbage"] * 10
    batch = FakeBatch("a", rows)
    collect(conn, FakeSource([batch]), step)
    [(_, report)] = batch.told
    assert (report.created, report.refused, len(report.refusals)) == (25, 10, 3)
    assert report.refusals[0].position == 26


def test_a_source_with_times_is_given_all_time_since_the_last_run(conn: Connection, step: int) -> None:
    source = FakeSource([], has_times=True)
    collect(conn, source, step)
    later = Interval(NOON + timedelta(hours=6), NOON + timedelta(hours=7))
    source.error = SourceUnreadable("fake", "away")
    with pytest.raises(SourceUnreadable):
        collect(conn, source, step, interval=later)
    source.error = None
    collect(conn, source, step, interval=later)
    assert source.asked[1:] == [Interval(INTERVAL.end_at, later.end_at)] * 2
    assert read_until(conn, "fake") == later.end_at
    collect(conn, source, step, is_backfill=True)
    collect(conn, source, step)
    assert source.asked[3:] == [INTERVAL, INTERVAL], "a backfill is exact; an earlier interval is not cut"
    assert read_until(conn, "fake") == later.end_at


def run(conn: Connection, source: FakeSource, index: int, run_id: str = "r") -> None:
    actor = Actor("collect", "airflow", dag_id="d", run_id=run_id, map_index=index)
    recorded(conn, actor, lambda step_run: collect(conn, source, step_run))


def test_the_verdict_adds_up_and_is_green(conn: Connection) -> None:
    run(conn, FakeSource([FakeBatch("a", [record(1)])]), 0)
    run(conn, FakeSource([FakeBatch("a", [record(1), record(2)])], name="other"), 1)
    summary = intake.summarise(conn, "d", "r", ["fake", "other"])
    assert summary.sentence == "2 files taken in from 2 sources, 1 were there already"


def test_the_verdict_names_what_was_not_read_and_what_is_wrong(conn: Connection) -> None:
    run(conn, FakeSource([FakeBatch("a.ndjson", [record(1), "garbage"])]), 0)
    with pytest.raises(SourceUnreadable):
        run(conn, FakeSource([], name="crab", error=SourceUnreadable("crab", "no answer")), 1)
    with pytest.raises(IntakeNeedsPeople) as red:
        intake.summarise(conn, "d", "r", ["fake", "crab", "third"])
    assert str(red.value) == (
        "Intake needs people (runbooks/intake.md):"
        " crab was not read: SourceUnreadable: source crab: no answer;"
        " third was not read: its task did not end; see its log;"
        " fake: a.ndjson: 1 refused, first 2: record: not JSON"
    )
    run(conn, FakeSource([], name="crab"), 1)
    with pytest.raises(IntakeNeedsPeople) as red:
        intake.summarise(conn, "d", "r", ["fake", "crab"])
    assert not red.value.unread, "the second try counts"


def test_what_is_empty_counts_as_not_said() -> None:
    assert list(numbered([{"a": 1, "b": None}])) == [Record(1, {"a": 1})]
