"""The parts of ``aso demo``: the look on the disks, the wait, the last lines, and being interrupted."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from click.testing import Result
from psycopg import Connection
from rich.text import Text

from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.lookup import Delays
from asyncstageout.catalogue.step_runs import Actor
from asyncstageout.cli import Advice, demo
from asyncstageout.cli.demo import Outcome, Stuck, counts_until_final, summary
from asyncstageout.cli.load import day_lines, load_requests, offer_sites
from asyncstageout.core.naming import request_id
from asyncstageout.sandbox.arrivals import Mismatch, mismatches
from asyncstageout.sandbox.days import Day, DayFile, write_files

Aso: TypeAlias = Callable[..., Result]
DAY = Day(file_count=12, user_count=3, site_count=6, median_bytes=50_000, label="demo1")


@pytest.fixture
def arrived(tmp_path: Path) -> list[DayFile]:
    """A day whose every file is at its source and at its destination."""
    files = list(DAY.files())
    write_files(files, DAY.filling, tmp_path)
    for file in files:
        (tmp_path / file.destination_path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / file.source_path, tmp_path / file.destination_path)
    return files


def states_of(files: list[DayFile], state: str = "DONE") -> dict[str, str]:
    return {request_id(file.request["source_lfn"]): state for file in files}


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_everything_where_it_should_be(arrived: list[DayFile], tmp_path: Path) -> None:
    checked: list[int] = []
    assert mismatches(arrived, states_of(arrived), tmp_path, checked.append) == []
    assert checked == [file.size_bytes for file in arrived]


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (Path.unlink, "it is not there"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes, not"),
        (flip_a_byte, "its adler32 is"),
    ],
)
def test_a_done_file_that_is_not_right_is_found(
    arrived: list[DayFile], tmp_path: Path, spoil: Callable[[Path], object], problem: str
) -> None:
    spoil(tmp_path / arrived[4].destination_path)
    (found,) = mismatches(arrived, states_of(arrived), tmp_path)
    assert found.destination_lfn == arrived[4].request["destination_lfn"]
    assert problem in found.problem


@pytest.mark.parametrize("state", ["FAILED", "KILLED"])
def test_a_failed_file_must_not_be_complete(arrived: list[DayFile], tmp_path: Path, state: str) -> None:
    states = states_of(arrived, state)
    (tmp_path / arrived[0].destination_path).unlink()
    flip_a_byte(tmp_path / arrived[1].destination_path)
    found = mismatches(arrived, states, tmp_path)
    assert [one.destination_lfn for one in found] == [file.request["destination_lfn"] for file in arrived[2:]]
    assert str(found[0]).endswith(f"{state}, but the whole file is at its destination")


def test_a_file_that_the_catalogue_lost_or_never_ended(arrived: list[DayFile], tmp_path: Path) -> None:
    states = states_of(arrived)
    del states[request_id(arrived[0].request["source_lfn"])]
    states[request_id(arrived[1].request["source_lfn"])] = "RETRY"
    found = mismatches(arrived, states, tmp_path)
    assert [(one.state, one.problem) for one in found] == [
        (None, "it was loaded"),
        ("RETRY", "the demo has ended"),
    ]


@pytest.fixture
def conn(catalogue_url: str) -> Iterator[Connection]:
    with connect(catalogue_url) as connection:
        offer_sites(connection, DAY, 8443, "test")
        yield connection


def load(conn: Connection, day: Day) -> None:
    load_requests(conn, day_lines(day.files()), Actor("demo", "test"))


def end(conn: Connection, state: str, *, at_most: int) -> None:
    conn.execute(
        "UPDATE transfer SET state = %s, ended_at = now() WHERE id IN"
        " (SELECT id FROM transfer WHERE state = 'NEW' ORDER BY id LIMIT %s)",
        (state, at_most),
    )


def test_the_wait_ends_with_the_last_file_of_this_demo(conn: Connection) -> None:
    load(conn, DAY)
    load(conn, replace(DAY, label="demo12"))  # another demo's files are none of ours
    pauses = iter(["DONE", "FAILED", "KILLED"])
    seen = list(
        counts_until_final(conn, DAY, clock=lambda: 0.0, pause=lambda _: end(conn, next(pauses), at_most=4))
    )
    assert seen == [
        {"NEW": 12},
        {"NEW": 8, "DONE": 4},
        {"NEW": 4, "DONE": 4, "FAILED": 4},
        {"DONE": 4, "FAILED": 4, "KILLED": 4},
    ]


def test_the_wait_gives_up_when_nothing_moves(conn: Connection) -> None:
    load(conn, DAY)
    now_s = [0.0]

    def pause(_: float) -> None:
        now_s[0] += 400
        if now_s[0] == 400:
            end(conn, "DONE", at_most=1)

    with pytest.raises(Stuck, match="1 done, 0 in flight, 11 waiting") as stuck:
        list(counts_until_final(conn, DAY, clock=lambda: now_s[0], pause=pause))
    assert now_s[0] == 1200, "the file that moved at 400 s put it off"
    assert stuck.value.counts == {"DONE": 1, "NEW": 11}


OUTCOME = Outcome(
    files=2000,
    size_bytes=284_000_000,
    links=298,
    lasted_s=50.0,
    counts={"FAILED": 2, "DONE": 1998},
    failures=[("quota", "copy HTTP 507 [x]", 2)],
    delays=Delays(4.0, 4.44, None, None),
    examples=[(7, "FAILED")],
    mismatches=[],
)


def told(outcome: Outcome) -> list[str]:
    return [Text.from_markup(line).plain.strip() for line in summary(outcome)]


def test_the_last_lines() -> None:
    assert told(OUTCOME) == [
        "2,000 files, 284.0 MB on 298 links in 50 s, 40 files/s: 1,998 DONE, 2 FAILED",
        "Checked on disk: 1,998 files DONE, with the right size and checksum; of the 2 others none is complete.",
        "What failed for good",
        "2 quota: the destination has no room\n        copy HTTP 507 [x]",
        "Delays                                  p50      p95",
        "from arrival to accepted by FTS      4.0 s    4.4 s",
        "from its end in FTS to DONE            - s      - s",
        "The whole story of a file",
        "aso files show 7          FAILED",
    ]


def test_the_last_lines_name_what_does_not_fit() -> None:
    wrong = [Mismatch("T2_IT_Bari", f"/store/{n}", "DONE", "it is not there") for n in range(25)]
    lines = told(replace(OUTCOME, mismatches=wrong))
    assert "Checked on disk: 25 files are not as the catalogue says" in lines
    assert "T2_IT_Bari /store/0: DONE, but it is not there" in lines
    assert "and 5 more" in lines


def test_examples_are_one_of_each_kind() -> None:
    rows: list[dict[str, Any]] = [
        {"id": 1, "state": "FAILED", "attempt": 1},
        {"id": 2, "state": "DONE", "attempt": 2},
        {"id": 3, "state": "DONE", "attempt": 3},
    ]
    assert demo._examples(rows) == [(2, "DONE after a failure"), (1, "FAILED")]


@pytest.fixture
def _heeding_interrupts() -> Iterator[None]:
    """A shell starts its background jobs with SIGINT ignored; a person at a terminal does not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_heeding_interrupts")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_stops_everything(
    aso: Aso, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    stopped: list[Path] = []
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]

    def interrupted(_day: Day, _failures: float, *, with_grid: bool) -> bool:
        os.kill(os.getpid(), number)
        raise AssertionError("it went on")

    def impatient(layout: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)  # a second Ctrl-C
        stopped.append(layout.home)

    monkeypatch.delenv("ASO_CATALOGUE_URL")
    monkeypatch.setattr(demo, "_run", interrupted)
    monkeypatch.setattr(demo, "stop", impatient)
    result = aso("demo")
    assert result.exit_code == 130, result.output
    assert stopped == [Path(os.environ["ASO_HOME"])]
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == handlers


@pytest.mark.parametrize(("correct", "code"), [(True, 0), (False, 1)])
def test_the_exit_code_tells_whether_all_is_right(
    aso: Aso, monkeypatch: pytest.MonkeyPatch, correct: bool, code: int
) -> None:
    days: list[Day] = []
    monkeypatch.delenv("ASO_CATALOGUE_URL")
    monkeypatch.setattr(demo, "_run", lambda day, _failures, **_: bool(days.append(day)) or correct)
    assert aso("demo", "--files", "5", "--seed", "9").exit_code == code
    assert (days[0].file_count, days[0].seed, days[0].user_count) == (5, 9, 40)
    assert days[0].label.startswith("demo")


def test_the_demo_leaves_other_catalogues_alone(aso: Aso) -> None:
    error = aso("demo").exception
    assert isinstance(error, Advice)
    assert "ASO_CATALOGUE_URL is set" in str(error)


def test_a_demo_that_is_stuck_goes_to_the_doctor(
    aso: Aso, conn: Connection, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def stuck(*_: object) -> None:
        raise Stuck({"NEW": 3}, 601.0)

    layout = replace(demo.Layout.load(), home=tmp_path)
    monkeypatch.delenv("ASO_CATALOGUE_URL")
    monkeypatch.setattr(demo, "_started", lambda: layout)
    monkeypatch.setattr(demo, "open_catalogue", lambda _url: connect(conn_url(conn)))
    monkeypatch.setattr(demo, "_set_faults", lambda *_: None)
    monkeypatch.setattr(demo, "_show_moving", stuck)
    result = aso("demo", "--files", "3")
    assert result.exit_code == 1
    assert "The demo is stuck: nothing moved for 601 s: 0 done, 0 in flight, 3 waiting" in result.output
    assert "nothing runs in" in result.output


def conn_url(conn: Connection) -> str:
    return f"postgresql://{conn.info.user}:{conn.info.password}@{conn.info.host}:{conn.info.port}/{conn.info.dbname}"
