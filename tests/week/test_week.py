"""A small week, in which everything happens; and that its checks see what is wrong."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from psycopg import Connection

from asyncstageout.sandbox.filling import Filling
from fixtures.catalogue import Add, record
from week import checks
from week.checks import CHECKS, DBS_FILE, Scene, verdict
from week.clock import prepare_catalogue, set_catalogue_clock
from week.diary import deaths
from week.hands import Hands
from week.manifest import START, Output, sites, week
from week.servers import HEARD, SITES

TESTS = Path(__file__).parents[1]


SMALL = ("--files", "300", "--tick-min", "720", "--deaths", "6", "--keep-failed-h", "72")
"""Two runs of every DAG a day, and a short quiet time: some 40 s of CPU, a quarter of it to count 240 hours."""


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_small_week_comes_to_its_right_end() -> None:
    # In a process of its own, as it moves the clock of the whole of it, and forks.
    done = subprocess.run(
        [sys.executable, "-m", "week", *SMALL], cwd=TESTS, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall("^Checked: ", done.stdout, re.MULTILINE)) == len(CHECKS), done.stdout
    for happened in (
        "written straight to their destination", "later retry", "killed by users, at FTS",
        "killed by operators", "deaths of fts", "deaths of dbs", "sites lost", "workers killed",
    ):  # fmt: skip
        assert re.search(rf"^ *[1-9][0-9,]*  .*{happened}", done.stdout, re.MULTILINE), (
            happened,
            done.stdout,
        )


def test_a_week_is_the_same_for_the_same_seed() -> None:
    """Busy days, quiet nights, a burst; most files are to be published, no log is."""
    outputs = week(2000, 1)
    assert [one.request for one in outputs] == [one.request for one in week(2000, 1)]
    assert [one.request for one in outputs] != [one.request for one in week(2000, 2)]
    assert (
        len({one.request_id for one in outputs})
        == len({one.request["destination_lfn"] for one in outputs})
        == 2000
    )
    by_day = [
        sum(one.arrives_at.date() == (START + timedelta(days=day)).date() for one in outputs)
        for day in range(7)
    ]
    assert max(by_day) == by_day[1]
    assert by_day[6] < min(by_day[:5])
    assert len({one.request["username"] for one in outputs}) <= 60
    assert {one.request["source"] for one in outputs} <= set(sites())
    assert 0.5 < sum(one.is_wanted for one in outputs) / 2000 < 0.9
    assert not any(one.is_wanted for one in outputs if one.request["type"] == "log")


def test_every_point_between_two_effects_has_its_hour() -> None:
    planned = [hour for hours in deaths().values() for hour, _ in hours]
    assert len(planned) == len(set(planned)) > 25
    assert max(planned) < 7 * 24
    assert sum(map(len, deaths(8).values())) == 8


@pytest.fixture
def fast(empty_database_url: str) -> Iterator[Connection]:
    prepare_catalogue(empty_database_url)
    with psycopg.connect(empty_database_url, autocommit=True) as conn:
        yield conn


def test_the_catalogue_has_the_weeks_time(fast: Connection) -> None:
    """In statements, in those that are prepared, in defaults, and in what is made of a default later."""
    fast.execute("CREATE TABLE t (at timestamptz DEFAULT now(), later timestamptz DEFAULT clock_timestamp())")
    for ahead in (timedelta(days=30), timedelta(days=-300)):
        set_catalogue_clock(fast, ahead.total_seconds())
        expected = datetime.now(UTC) + ahead
        row = fast.execute("INSERT INTO t DEFAULT VALUES RETURNING at, later").fetchone()
        seen = fast.execute("SELECT now(), clock_timestamp()", prepare=True).fetchone()
        assert row is not None
        assert seen is not None
        assert all(abs(at - expected) < timedelta(minutes=1) for at in (*row, *seen)), (row, seen, expected)


def test_all_processes_see_the_same_clock(tmp_path: Path) -> None:
    mine, theirs = Hands(tmp_path / "clock"), Hands(tmp_path / "clock")
    mine.shift_s = 86_400.0
    assert abs(theirs() - mine()) < 60
    assert theirs.shift_s == 86_400.0


# --- the checks see what is wrong -----------------------------------------------------------------

FILLING = Filling(1)
BLOCK = "/Mc/alice-test-0a/USER#1"


@pytest.fixture
def scene(conn: Connection, add: Add, tmp_path: Path) -> Scene:
    """Two files that their jobs wrote to their destinations; the second one is published."""
    outputs = []
    for number in (1, 2):
        request = record(
            number, adler32=FILLING.adler32(number, 1000 + number), publish=number == 2, already_there=True,
            job_retry_count=0,
        )  # fmt: skip
        add(request)
        outputs.append(Output(datetime.now(UTC), number, FILLING, request))
        outputs[-1].write(tmp_path / SITES, datetime.now(UTC))
    conn.execute(
        "WITH made AS (INSERT INTO block (name, task_id, dataset, destination, dbs, transfer_ids, lumis,"
        " payload_bytes, size_bytes, oldest_at) SELECT %s, task_id, '/Mc/alice-test-0a/USER', destination,"
        " 'dbs_default', ARRAY[id], 1, 1, 1, now() FROM transfer WHERE publication = 'NEW' RETURNING id)"
        " UPDATE transfer SET publication = 'DONE', block_id = made.id FROM made WHERE publication = 'NEW'",
        (BLOCK,),
    )
    with closing(sqlite3.connect(tmp_path / DBS_FILE)) as dbs, dbs:
        dbs.execute("CREATE TABLE block (id INTEGER, name TEXT)")
        dbs.execute("CREATE TABLE file (lfn TEXT, block_id INTEGER)")
        dbs.execute("INSERT INTO block VALUES (1, ?)", (BLOCK,))
        dbs.execute("INSERT INTO file VALUES (?, 1)", (outputs[1].request["destination_lfn"],))
    kinds = [(0, "transfer.done"), (1, "transfer.done"), (1, "publication.done")]
    hear(tmp_path, *((outputs[place], kind) for place, kind in kinds))
    now = datetime.now(UTC)
    return Scene(
        conn,
        tmp_path,
        {one.request_id: one for one in outputs},
        now - timedelta(minutes=10),
        now + timedelta(minutes=1),
    )


def hear(folder: Path, *messages: tuple[Output, str]) -> None:
    said = [
        {"id": f"{place}{kind}", "type": kind, "data": {"request_id": one.request_id}}
        for place, (one, kind) in enumerate(messages)
    ]
    (folder / HEARD).write_text(json.dumps({"messages": said}) + "\n")


def test_what_is_right_passes(scene: Scene) -> None:
    # It was published by hand, which the audit would see.
    found = [check(scene) for check in CHECKS if check is not checks.the_audit_is_clean]
    assert [one.violations for one in found] == [[]] * len(found)
    assert all(line.startswith("Checked: ") for line in verdict(found))


def published_in(scene: Scene, change: str) -> None:
    with closing(sqlite3.connect(scene.folder / DBS_FILE)) as dbs, dbs:
        dbs.execute(change)


def first(scene: Scene) -> Output:
    return next(iter(scene.truth.values()))


def leave(scene: Scene) -> None:
    path = scene.sites / first(scene).source_path
    path.parent.mkdir(parents=True)
    path.touch()


DAMAGES: list[tuple[Callable[[Scene], checks.Finding], Callable[[Scene], object], str]] = [
    (checks.every_file_is_in_one_final_state, lambda s: s.conn.execute("DELETE FROM transfer WHERE publication = 'DONE'"), "nowhere"),
    (checks.every_file_is_in_one_final_state, lambda s: s.conn.execute("INSERT INTO transfer_history SELECT * FROM transfer LIMIT 1"), "2 places"),
    (checks.every_file_is_in_one_final_state, lambda s: s.conn.execute("UPDATE transfer SET state = 'RETRY', ended_at = NULL"), "it is RETRY"),
    (checks.every_file_is_in_one_final_state, lambda s: s.truth.pop(first(s).request_id), "nobody handed it over"),
    (checks.done_files_are_on_disk, lambda s: (s.sites / first(s).destination_path).unlink(), "not there"),
    (checks.done_files_are_on_disk, lambda s: (s.sites / first(s).destination_path).write_bytes(b"x" * 1001), "adler32"),
    (checks.wanted_files_are_in_dbs_once, lambda s: published_in(s, "DELETE FROM file"), "in blocks []"),
    (checks.wanted_files_are_in_dbs_once, lambda s: published_in(s, "INSERT INTO file SELECT * FROM file"), f"{BLOCK}', '{BLOCK}"),
    (checks.wanted_files_are_in_dbs_once, lambda s: published_in(s, "UPDATE block SET name = 'other'"), "['other']"),
    (checks.wanted_files_are_in_dbs_once, lambda s: published_in(s, "INSERT INTO file VALUES ('/store/x.root', 1)"), "nobody handed it over"),
    (checks.wanted_files_are_in_dbs_once, lambda s: published_in(s, f"INSERT INTO file VALUES ('{first(s).request['destination_lfn']}', 1)"), "NOT_REQUIRED"),
    (checks.no_temporary_copy_is_left, leave, "left there"),
    (checks.the_audit_is_clean, lambda s: s.conn.execute("UPDATE transfer SET state = 'KILLED'"), "times, such as"),
    (checks.statistics_add_up, lambda s: s.conn.execute("INSERT INTO transfer_event (transfer_id, from_state, to_state, attempt, step_run) SELECT 0, 'KILL', 'KILLED', 0, min(id) FROM step_run"), "killed: statistics say 0"),
    (checks.everybody_was_told, lambda s: hear(s.folder, (first(s), "transfer.failed")), "the subscriber heard"),
]  # fmt: skip


@pytest.mark.parametrize(("check", "damage", "said"), DAMAGES)
def test_what_is_wrong_is_seen(
    scene: Scene, check: Callable[[Scene], checks.Finding], damage: Callable[[Scene], object], said: str
) -> None:
    damage(scene)
    found = check(scene)
    assert any(said in text for text in found.violations), found
    assert next(iter(verdict([found]))).startswith("NOT so: ")
